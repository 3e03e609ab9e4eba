//! The figures of a bench: a table for people, a JSON file for everything else.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::process::{Failure, Outcome, at};

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) metric: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// The same figure of a peer measured in the same run.
    pub(crate) peer: Option<f64>,
    /// `value / peer`.
    pub(crate) ratio: Option<f64>,
    pub(crate) goal: Option<f64>,
    /// Only where a goal is set.
    pub(crate) goal_met: Option<bool>,
}

impl Row {
    /// A figure that only informs.
    pub(crate) fn plain(metric: &str, value: f64, unit: &'static str) -> Self {
        Self { metric: metric.to_owned(), value, unit, peer: None, ratio: None, goal: None, goal_met: None }
    }

    /// A figure with a goal it should not exceed.
    pub(crate) fn at_most(metric: &str, value: f64, unit: &'static str, goal: f64) -> Self {
        Self::plain(metric, value, unit).at_most_goal(goal)
    }

    /// The same, with a goal it should not exceed.
    pub(crate) fn at_most_goal(self, goal: f64) -> Self {
        Self { goal: Some(goal), goal_met: Some(self.value <= goal), ..self }
    }

    /// The same, with a goal it should reach.
    pub(crate) fn at_least_goal(self, goal: f64) -> Self {
        Self { goal: Some(goal), goal_met: Some(self.value >= goal), ..self }
    }

    /// The same beside what a peer did in the same run.
    pub(crate) fn against(self, peer: f64) -> Self {
        Self { peer: Some(peer), ratio: Some(self.value / peer), ..self }
    }
}

/// Prints the table and writes `target/bench/NAME.json`.
pub(crate) fn publish(target: &Path, name: &str, rows: &[Row]) -> Outcome {
    println!("\n{:<58} {:>9} {:<5} {:>9} {:>8} {:>4}", "metric", "value", "unit", "peer", "goal", "met");
    for row in rows {
        let peer = row.peer.map(|peer| format!("{peer:.3}")).unwrap_or_default();
        let goal = row.goal.map(|goal| format!("{}", (goal * 10.0).round() / 10.0)).unwrap_or_default();
        let met = row.goal_met.map_or("", |met| if met { "yes" } else { "no" });
        println!("{:<58} {:>9.3} {:<5} {peer:>9} {goal:>8} {met:>4}", row.metric, row.value, row.unit);
    }
    let folder = target.join("bench");
    fs::create_dir_all(&folder).map_err(at(&folder))?;
    let file = folder.join(format!("{name}.json"));
    let json =
        serde_json::to_string_pretty(rows).map_err(|source| Failure::Json { what: "the table".into(), source })?;
    fs::write(&file, json + "\n").map_err(at(&file))?;
    println!("\nwritten to {}", file.display());
    Ok(())
}

/// The middle value; the mean of the two middle ones for an even number. 0 without values.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

/// The largest value; 0 without values.
pub(crate) fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).abs() < f64::EPSILON);
        assert!((largest(&[1.0, 3.0, 2.0]) - 3.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_row_knows_whether_its_goal_is_met() {
        assert_eq!(Row::at_most("m", 1.5, "s", 1.5).goal_met, Some(true));
        assert_eq!(Row::at_most("m", 1.6, "s", 1.5).goal_met, Some(false));
        assert_eq!(Row::plain("m", 1.6, "s").goal_met, None);
        let row = Row::plain("m", 12.0, "1/s").at_least_goal(10.0).against(6.0);
        assert_eq!((row.goal_met, row.ratio), (Some(true), Some(2.0)));
    }
}
