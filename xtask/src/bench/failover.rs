//! `cargo xtask bench failover`: three PostgreSQL members, a client that keeps a ledger, and one fault after the other.
//!
//! # Flow
//! the end-to-end test that breaks real servers, as often as asked for → its lines `failover: NAME gap_ms=N lost=N` → for each fault the
//! median and the longest gap between two acknowledged writes, and the acknowledged writes lost → table.
//!
//! # What is missing
//! Peers (Patroni, repmgr) in the same run; faults that need nodes of their own (a dead machine, a flapping link).

use std::collections::BTreeMap;
use std::process::Stdio;

use clap::Args;

use super::report::{Row, median, publish};
use crate::process::{Failure, Outcome, cargo, output};
use crate::workspace::Workspace;

/// Flags of `cargo xtask bench failover`.
#[derive(Args)]
pub(crate) struct FailoverArgs {
    /// How often all faults are gone through
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

/// Longest gaps allowed, by fault, in milliseconds.
const GOALS_MS: [(&str, f64); 6] = [
    ("server-killed", 700.0),
    ("steward-killed", 2000.0),
    ("all-stopped", 3000.0),
    ("server-stopped", 3000.0),
    ("switchover", 300.0),
    ("replica-killed", 300.0),
];

pub(crate) fn run(args: &FailoverArgs) -> Outcome {
    let workspace = Workspace::load()?;
    let mut seen: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for _ in 0..args.runs.max(1) {
        let mut test = cargo();
        test.args([
            "test",
            "--release",
            "-p",
            "mainstay",
            "--test",
            "e2e",
            "--",
            "--nocapture",
            "--include-ignored",
            "failover::",
        ]);
        let text = output(test.stdin(Stdio::null()))?;
        for (name, gap_ms, lost) in text.lines().filter_map(trial) {
            seen.entry(name.to_owned()).or_default().push((gap_ms, lost));
        }
    }
    if seen.is_empty() {
        return Err(Failure::Found("nothing was measured: is Debian's postgresql installed?".to_owned()));
    }
    let mut rows = Vec::new();
    for (name, trials) in seen {
        let gaps: Vec<f64> = trials.iter().map(|it| it.0).collect();
        let lost = trials.iter().map(|it| it.1).sum();
        rows.push(Row::plain(&format!("{name}: gap, median of {}", gaps.len()), median(&gaps), "ms"));
        let longest = gaps.iter().copied().fold(0.0, f64::max);
        let row = Row::plain(&format!("{name}: gap, longest"), longest, "ms");
        let goal = GOALS_MS.iter().find(|goal| goal.0 == name).map(|goal| goal.1);
        rows.push(match goal {
            Some(goal) => row.at_most_goal(goal),
            None => row,
        });
        rows.push(Row::at_most(&format!("{name}: acknowledged writes lost"), lost, "", 0.0));
    }
    publish(&workspace.target, "failover", &rows)
}

/// One line of the test.
fn trial(line: &str) -> Option<(&str, f64, f64)> {
    let mut words = line.split("failover: ").nth(1)?.split_whitespace();
    let name = words.next()?;
    let gap_ms = words.next()?.strip_prefix("gap_ms=")?.parse().ok()?;
    let lost = words.next()?.strip_prefix("lost=")?.parse().ok()?;
    Some((name, gap_ms, lost))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_test_is_understood() {
        assert_eq!(trial("failover: server-killed gap_ms=512 lost=0"), Some(("server-killed", 512.0, 0.0)));
        assert_eq!(trial("test failover::x ... failover: skipped, PostgreSQL is not installed"), None);
    }
}
