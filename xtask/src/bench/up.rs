//! `cargo xtask bench up`: how fast `mainstay up` has the shop Ready, and what memory it takes then.
//!
//! # Flow
//! release build → per round: an empty data directory, `up --detach`, the clock stops when it returns (all pods Ready),
//! memory after a moment of rest, `down` → table.
//!
//! The server's own record (`up.json` in the data directory, `ready_ms` since its process started) is shown beside the
//! clock's time where it exists. k3s, the peer, needs a machine of its own and is not measured: its column is empty.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;

use super::memory::{self, Process};
use super::report::{Row, largest, median, publish};
use crate::process::{Failure, Outcome, at, cargo, run as run_command};
use crate::workspace::Workspace;

/// Flags of `cargo xtask bench up`.
#[derive(Args)]
pub(crate) struct UpArgs {
    /// Rounds, each from an empty data directory
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Where the API listens; not the default, so that a Mainstay in use is not in the way
    #[arg(long, default_value = "127.0.0.1:26443")]
    api: String,
    /// The binary to measure instead of building one
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// Process start to all nine pods Ready, in seconds.
const READY_S_GOAL: f64 = 1.5;
/// Server and three node agents together, in megabytes.
const MEMORY_MB_GOAL: f64 = 60.0;
/// Each shim, in megabytes.
const SHIM_MB_GOAL: f64 = 4.0;
/// (subcommand, what its largest process is called in the table, goal in megabytes).
const ROLES: [(&str, &str, Option<f64>); 5] = [
    ("server", "server", None),
    ("supervise", "supervisor", None),
    ("node", "largest agent", None),
    ("shim", "largest shim", Some(SHIM_MB_GOAL)),
    ("demo", "largest shop program", None),
];
/// Rest before memory is read, so that what the start needed for a moment is not counted as idle.
const REST: Duration = Duration::from_secs(3);

/// What one round showed.
struct Round {
    ready_s: f64,
    recorded_s: Option<f64>,
    processes: Vec<Process>,
}

/// Measures all rounds and publishes the table.
pub(crate) fn run(args: &UpArgs) -> Outcome {
    let workspace = Workspace::load()?;
    let built = workspace.target.join("release/mainstay");
    if args.binary.is_none() {
        run_command(cargo().args(["build", "--release", "--locked", "--package", "mainstay"]))?;
    }
    let binary = args.binary.clone().unwrap_or(built);
    let shop = workspace.root.join("examples/shop");
    let mut rounds = Vec::new();
    for number in 1..=args.rounds {
        let data = std::env::temp_dir().join(format!("mainstay-bench-{}-{number}", std::process::id()));
        let round = round(&binary, &shop, &data, &args.api);
        // Whatever happened, nothing stays behind.
        let down = run_command(Command::new(&binary).arg("down").arg("--data-dir").arg(&data));
        let _ = fs::remove_dir_all(&data);
        let round = round?;
        down?;
        println!("round {number}: Ready after {:.3} s", round.ready_s);
        rounds.push(round);
    }
    publish(&workspace.target, "up", &rows(&rounds))
}

fn round(binary: &Path, shop: &Path, data: &Path, api: &str) -> Outcome<Round> {
    fs::create_dir_all(data).map_err(at(data))?;
    let others = memory::pids();
    let began = Instant::now();
    let mut up = Command::new(binary);
    up.arg("up").arg("-f").arg(shop).arg("--data-dir").arg(data).args(["--api", api, "--detach", "-q"]);
    run_command(&mut up)?;
    let ready_s = began.elapsed().as_secs_f64();
    std::thread::sleep(REST);
    let processes = memory::processes(&others);
    if !processes.iter().any(|process| process.role == "server") {
        return Err(Failure::Found("`mainstay up --detach` returned, but no `mainstay server` runs".into()));
    }
    Ok(Round { ready_s, recorded_s: recorded(data), processes })
}

/// What the server wrote down itself.
fn recorded(data: &Path) -> Option<f64> {
    let text = fs::read_to_string(data.join("up.json")).ok()?;
    let record: serde_json::Value = serde_json::from_str(&text).ok()?;
    Some(record.get("ready_ms")?.as_f64()? / 1e3)
}

fn rows(rounds: &[Round]) -> Vec<Row> {
    let ready: Vec<f64> = rounds.iter().map(|round| round.ready_s).collect();
    let recorded: Vec<f64> = rounds.iter().filter_map(|round| round.recorded_s).collect();
    let mut rows = vec![
        Row::at_most("process start to all shop pods Ready, median", median(&ready), "s", READY_S_GOAL),
        Row::at_most("process start to all shop pods Ready, worst", largest(&ready), "s", READY_S_GOAL),
    ];
    if !recorded.is_empty() {
        rows.push(Row::plain("the same by the server's own record, median", median(&recorded), "s"));
    }
    let plane = |size: fn(&Process) -> f64| {
        let sum = |round: &Round| of(round, "server").chain(of(round, "node")).map(size).sum::<f64>();
        median(&rounds.iter().map(sum).collect::<Vec<_>>())
    };
    rows.push(Row::at_most("server and agents together, resident", plane(|it| it.resident_mb), "MB", MEMORY_MB_GOAL));
    rows.push(Row::plain("server and agents together, proportional", plane(|it| it.proportional_mb), "MB"));
    for (role, what, goal) in ROLES {
        // A role without a process gets no row: 0 MB would look like a goal met.
        let all: Vec<&Process> = rounds.iter().flat_map(|round| of(round, role)).collect();
        if all.is_empty() {
            continue;
        }
        let worst = |size: fn(&Process) -> f64| largest(&all.iter().map(|it| size(it)).collect::<Vec<_>>());
        let (resident, proportional) = (worst(|it| it.resident_mb), worst(|it| it.proportional_mb));
        let metric = format!("{what}, resident");
        rows.push(match goal {
            Some(goal) => Row::at_most(&metric, resident, "MB", goal),
            None => Row::plain(&metric, resident, "MB"),
        });
        rows.push(Row::plain(&format!("{what}, proportional"), proportional, "MB"));
        let running = median(&rounds.iter().map(|round| of(round, role).count() as f64).collect::<Vec<_>>());
        rows.push(Row::plain(&format!("processes `mainstay {role}`"), running, ""));
    }
    rows
}

fn of<'a>(round: &'a Round, role: &'a str) -> impl Iterator<Item = &'a Process> {
    round.processes.iter().filter(move |process| process.role == role)
}
