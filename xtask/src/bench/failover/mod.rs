//! `cargo xtask bench failover`: three members of each database, a client that keeps a ledger, and one fault after the other.
//!
//! # Flow
//! the end-to-end test that breaks real servers on three nodes, as often as asked for → its lines
//! `failover: NAME gap_ms=N lost=N two_primaries_ms=N` → for each fault the median and the longest gap between two acknowledged
//! writes, the acknowledged writes lost, and for how long two servers accepted writes → table and picture.
//!
//! # What is missing
//! Peers in the same run: Patroni, Sentinel and repmgr were measured once, with the same faults (`docs/performance.md`). Each needs a
//! cluster of its own beside, and takes minutes for a fault at its defaults.

mod plot;

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;

use clap::Args;

use super::report::{Row, largest, median, publish};
use crate::process::{Failure, Outcome, at, cargo};
use crate::workspace::Workspace;
use plot::{Bar, svg};

/// Flags of `cargo xtask bench failover`.
#[derive(Args)]
pub(crate) struct FailoverArgs {
    /// How often all faults are gone through
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Only these databases (default: all)
    #[arg(long, value_delimiter = ',')]
    engines: Vec<String>,
    /// With the debug build, where the release build would take too long
    #[arg(long)]
    debug: bool,
}

/// Databases, and the test that goes through the faults of each.
const MATRICES: [(&str, &str); 3] = [
    ("postgres", "failover::the_whole_matrix"),
    ("mysql", "failover::mysql::the_matrix"),
    ("redis", "failover::redis::the_matrix"),
];

/// Longest gaps allowed, by fault, in milliseconds; the engine is said before the fault where it is not PostgreSQL.
const GOALS_MS: [(&str, f64); 11] = [
    ("server-killed", 700.0),
    ("steward-killed", 2000.0),
    ("server-and-steward-killed", 2000.0),
    ("node-killed", 2000.0),
    ("node-isolated", 2000.0),
    ("everything-stopped", 3000.0),
    ("server-stopped", 3000.0),
    ("switchover", 300.0),
    ("rolling-restart", 300.0),
    ("replica-killed", 300.0),
    ("api-down", 300.0),
];

/// What was seen of one fault, run by run.
type Seen = BTreeMap<String, Vec<Trial>>;

/// One run of one fault.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Trial {
    gap_ms: f64,
    lost: f64,
    /// How long there were two primaries, where somebody looked.
    two_primaries_ms: Option<f64>,
}

pub(crate) fn run(args: &FailoverArgs) -> Outcome {
    let workspace = Workspace::load()?;
    let mut seen = Seen::new();
    let wanted = |engine: &str| args.engines.is_empty() || args.engines.iter().any(|it| it == engine);
    for (_, test) in MATRICES.into_iter().filter(|it| wanted(it.0)) {
        for _ in 0..args.runs.max(1) {
            go_through(test, args.debug, &mut seen)?;
        }
    }
    if seen.is_empty() {
        return Err(Failure::Found("nothing was measured: are Debian's servers installed?".to_owned()));
    }
    let (mut rows, mut bars) = (Vec::new(), Vec::new());
    for (name, trials) in seen {
        let column = |of: fn(&Trial) -> Option<f64>| trials.iter().filter_map(of).collect::<Vec<f64>>();
        let (gaps, lost) = (column(|it| Some(it.gap_ms)), trials.iter().map(|it| it.lost).sum());
        let two = column(|it| it.two_primaries_ms);
        let fault = ["mysql-", "redis-"].iter().find_map(|engine| name.strip_prefix(engine)).unwrap_or(&name);
        let goal = GOALS_MS.iter().find(|goal| goal.0 == fault).map(|goal| goal.1);
        let (middle, longest) = (median(&gaps), largest(&gaps));
        rows.push(Row::plain(&format!("{name}: gap, median of {}", gaps.len()), middle, "ms"));
        let row = Row::plain(&format!("{name}: gap, longest"), longest, "ms");
        rows.push(match goal {
            Some(goal) => row.at_most_goal(goal),
            None => row,
        });
        rows.push(Row::at_most(&format!("{name}: acknowledged writes lost"), lost, "", 0.0));
        if !two.is_empty() {
            rows.push(Row::at_most(&format!("{name}: two primaries, longest"), largest(&two), "ms", 0.0));
        }
        bars.push(Bar { name, median: middle, longest, goal, lost });
    }
    publish(&workspace.target, "failover", &rows)?;
    let file = workspace.target.join("bench/failover.svg");
    let title = "Longest time between two acknowledged writes: median (dot), longest (bar), goal (line)";
    fs::write(&file, svg(title, &bars)).map_err(at(&file))?;
    println!("drawn in {}", file.display());
    Ok(())
}

/// Runs one test and takes in its lines; one that fails has still measured what it came to.
fn go_through(test: &str, debug: bool, seen: &mut Seen) -> Outcome {
    let mut command = cargo();
    command.arg("test");
    if !debug {
        command.arg("--release");
    }
    command.args(["-p", "mainstay", "--test", "e2e", "--", "--nocapture", "--ignored", "--exact", test]);
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|source| Failure::Start { program: "cargo".into(), source })?;
    let text = String::from_utf8_lossy(&output.stdout);
    for (name, trial) in text.lines().filter_map(trial) {
        let two = trial.two_primaries_ms.map_or("not looked at".to_owned(), |ms| format!("for {ms} ms"));
        println!("{name}: {} ms, {} lost, two primaries {two}", trial.gap_ms, trial.lost);
        seen.entry(name.to_owned()).or_default().push(trial);
    }
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let told: Vec<&str> = said.lines().filter(|line| line.contains("panicked") || line.contains("error")).collect();
        eprintln!("{test} did not come to its end:\n{}", told.join("\n"));
    }
    Ok(())
}

/// One line of the test.
fn trial(line: &str) -> Option<(&str, Trial)> {
    let mut words = line.split("failover: ").nth(1)?.split_whitespace();
    let name = words.next()?;
    let mut figure = |key: &str| words.next()?.strip_prefix(key)?.strip_prefix('=')?.parse().ok();
    let (gap_ms, lost) = (figure("gap_ms")?, figure("lost")?);
    Some((name, Trial { gap_ms, lost, two_primaries_ms: figure("two_primaries_ms") }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_test_is_understood() {
        assert_eq!(
            trial("failover: server-killed gap_ms=512 lost=0 two_primaries_ms=0"),
            Some(("server-killed", Trial { gap_ms: 512.0, lost: 0.0, two_primaries_ms: Some(0.0) }))
        );
        assert_eq!(
            trial("failover: redis-node-killed gap_ms=7 lost=1"),
            Some(("redis-node-killed", Trial { gap_ms: 7.0, lost: 1.0, two_primaries_ms: None }))
        );
        assert_eq!(trial("test failover::x ... failover: skipped, PostgreSQL is not installed"), None);
    }
}
