//! `cargo xtask bench failover`: three PostgreSQL members, a client that keeps a ledger, and one fault after the other.
//!
//! # Flow
//! the end-to-end test that breaks real servers on three nodes, as often as asked for → its lines
//! `failover: NAME gap_ms=N lost=N two_primaries_ms=N` → for each fault the median and the longest gap between two acknowledged
//! writes, the acknowledged writes lost, and for how long two servers accepted writes → table.
//!
//! # What is missing
//! Peers (Patroni, repmgr) in the same run; a full disk.

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
const GOALS_MS: [(&str, f64); 10] = [
    ("server-killed", 700.0),
    ("steward-killed", 2000.0),
    ("node-killed", 2000.0),
    ("node-isolated", 2000.0),
    ("everything-stopped", 3000.0),
    ("server-stopped", 3000.0),
    ("switchover", 300.0),
    ("rolling-restart", 300.0),
    ("replica-killed", 300.0),
    ("api-down", 300.0),
];

pub(crate) fn run(args: &FailoverArgs) -> Outcome {
    let workspace = Workspace::load()?;
    let mut seen: BTreeMap<String, Vec<[f64; 3]>> = BTreeMap::new();
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
            "--ignored",
            "--exact",
            "failover::the_whole_matrix",
        ]);
        let text = output(test.stdin(Stdio::null()))?;
        for (name, seen_now) in text.lines().filter_map(trial) {
            seen.entry(name.to_owned()).or_default().push(seen_now);
        }
    }
    if seen.is_empty() {
        return Err(Failure::Found("nothing was measured: is Debian's postgresql installed?".to_owned()));
    }
    let mut rows = Vec::new();
    for (name, trials) in seen {
        let gaps: Vec<f64> = trials.iter().map(|it| it[0]).collect();
        let lost = trials.iter().map(|it| it[1]).sum();
        let two = trials.iter().map(|it| it[2]).fold(0.0, f64::max);
        rows.push(Row::plain(&format!("{name}: gap, median of {}", gaps.len()), median(&gaps), "ms"));
        let longest = gaps.iter().copied().fold(0.0, f64::max);
        let row = Row::plain(&format!("{name}: gap, longest"), longest, "ms");
        let goal = GOALS_MS.iter().find(|goal| goal.0 == name).map(|goal| goal.1);
        rows.push(match goal {
            Some(goal) => row.at_most_goal(goal),
            None => row,
        });
        rows.push(Row::at_most(&format!("{name}: acknowledged writes lost"), lost, "", 0.0));
        rows.push(Row::at_most(&format!("{name}: two primaries, longest"), two, "ms", 0.0));
    }
    publish(&workspace.target, "failover", &rows)
}

/// One line of the test.
fn trial(line: &str) -> Option<(&str, [f64; 3])> {
    let mut words = line.split("failover: ").nth(1)?.split_whitespace();
    let name = words.next()?;
    let mut figure = |key: &str| words.next()?.strip_prefix(key)?.strip_prefix('=')?.parse().ok();
    Some((name, [figure("gap_ms")?, figure("lost")?, figure("two_primaries_ms")?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_test_is_understood() {
        assert_eq!(
            trial("failover: server-killed gap_ms=512 lost=0 two_primaries_ms=0"),
            Some(("server-killed", [512.0, 0.0, 0.0]))
        );
        assert_eq!(trial("test failover::x ... failover: skipped, PostgreSQL is not installed"), None);
    }
}
