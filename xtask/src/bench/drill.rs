//! `cargo xtask bench drill`: the load generator on one core, beside `wrk` on the same core against the same server.
//!
//! # Flow
//! release build of the examples `load` and `steady` → the server on core 1, which answers each request after [`DELAY_US`] → for each
//! rate: `wrk` on core 0 with as many connections as come to that rate when each waits so long, then the load on core 0 at the
//! rate that wrk has reached.
//!
//! # What is compared
//! wrk asks when the last answer is there (closed loop), the load when a request is due. Against a server whose answers take a time
//! that is known and does not depend on the load, both must measure the same latency; what differs is their own work. The wait
//! of requests that were due while the generator slept is in the load's figures.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::report::{Row, median, publish};
use crate::process::{Failure, Outcome, cargo, find_program, output, run as run_command};
use crate::workspace::Workspace;

/// Flags of `cargo xtask bench drill`.
#[derive(Args)]
pub(crate) struct DrillArgs {
    /// Rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of load for each figure
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Where the examples `load` and `steady` to measure are, instead of building them
    #[arg(long)]
    examples: Option<PathBuf>,
}

/// Where the server listens.
const SERVER: &str = "127.0.0.1:19011";
/// How long each answer takes, in microseconds.
const DELAY_US: u32 = 10_000;
/// Requests per second.
const RATES: [u32; 4] = [500, 5_000, 10_000, 20_000];
/// How far the load may be from the rate it was asked for, and from wrk's latencies.
const OFF_PERCENT_MAX: f64 = 2.0;
/// wrk's name of each latency, and where it is in the load's figures.
const LATENCIES: [(&str, &str, &str); 3] =
    [("p50", " 50%", "/latency/p50_us"), ("p90", " 90%", "/latency/p90_us"), ("p99", " 99%", "/latency/p99_us")];

/// What wrk says.
struct Wrk {
    rate: f64,
    /// As in [`LATENCIES`], in microseconds.
    latencies_us: [f64; 3],
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures and publishes the table.
pub(crate) fn run(args: &DrillArgs) -> Outcome {
    for program in ["wrk", "taskset"] {
        if find_program(program).is_none() {
            return Err(Failure::Found(format!("{program} is missing; apt-get install {program}")));
        }
    }
    let workspace = Workspace::load()?;
    if args.examples.is_none() {
        let build = ["build", "--release", "--locked", "--package", "mainstay-drill", "--examples"];
        run_command(cargo().args(build))?;
    }
    let examples = args.examples.clone().unwrap_or(workspace.target.join("release/examples"));
    publish(&workspace.target, "drill", &measure(args, &examples)?)
}

fn measure(args: &DrillArgs, examples: &Path) -> Outcome<Vec<Row>> {
    let _server = server(&examples.join("steady"))?;
    let mut rows = Vec::new();
    for rate in RATES {
        let (mut wrks, mut loads) = (Vec::new(), Vec::new());
        for _ in 0..args.rounds {
            let wrk = one_wrk(args, rate)?;
            loads.push((wrk.rate, one_load(args, &examples.join("load"), wrk.rate)?));
            wrks.push(wrk);
        }
        let of =
            |path: &str| median(&loads.iter().filter_map(|(_, it)| it.pointer(path)?.as_f64()).collect::<Vec<_>>());
        let off = |is: f64, wanted: f64| (is / wanted - 1.0).abs() * 100.0;
        let rates = loads.iter().filter_map(|(wanted, it)| Some(off(it.pointer("/rateSent")?.as_f64()?, *wanted)));
        let off_rate = median(&rates.collect::<Vec<_>>());
        rows.push(Row::at_most(&format!("{rate}/s: off the rate asked for"), off_rate, "%", OFF_PERCENT_MAX));
        for (number, (name, _, path)) in LATENCIES.into_iter().enumerate() {
            let peer = median(&wrks.iter().map(|wrk| wrk.latencies_us[number]).collect::<Vec<_>>());
            rows.push(Row::plain(&format!("{rate}/s: latency {name}, beside wrk's"), of(path), "us").against(peer));
            let apart = off(of(path), peer);
            rows.push(Row::at_most(&format!("{rate}/s: latency {name}, off wrk's"), apart, "%", OFF_PERCENT_MAX));
        }
        rows.push(Row::plain(&format!("{rate}/s: failed"), of("/failed"), ""));
        rows.push(Row::plain(&format!("{rate}/s: sent late, p50"), of("/lagUs/0"), "us"));
        rows.push(Row::plain(&format!("{rate}/s: sent late, p99"), of("/lagUs/1"), "us"));
    }
    Ok(rows)
}

fn one_load(args: &DrillArgs, load: &Path, rate: f64) -> Outcome<Value> {
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(load).arg(format!("http://{SERVER}/"));
    let text = output(command.args([rate.to_string(), args.seconds.to_string()]))?;
    serde_json::from_str(&text).map_err(|source| Failure::Json { what: "the load's figures".into(), source })
}

/// wrk with as many connections as come to a rate.
fn one_wrk(args: &DrillArgs, rate: u32) -> Outcome<Wrk> {
    let connections = (rate / (1_000_000 / DELAY_US)).max(1).to_string();
    let mut command = Command::new("taskset");
    command.args(["-c", "0", "wrk", "-t1", "-c", &connections, "--latency", "-d", &format!("{}s", args.seconds)]);
    let text = output(command.arg(format!("http://{SERVER}/")))?;
    let word = |line_has: &str| {
        let line = text.lines().find(|line| line.contains(line_has)).unwrap_or_default();
        line.split_whitespace().nth(1).unwrap_or_default().to_owned()
    };
    let latencies_us = LATENCIES.map(|(_, line_has, _)| super::gateway::microseconds(&word(line_has)));
    match word("Requests/sec").parse() {
        Ok(rate) => Ok(Wrk { rate, latencies_us }),
        Err(_) => Err(Failure::Found(format!("wrk said no rate:\n{text}"))),
    }
}

fn server(program: &Path) -> Outcome<Running> {
    let mut command = Command::new("taskset");
    command.args(["-c", "1"]).arg(program).args([SERVER, &DELAY_US.to_string()]);
    let started = command.stdout(Stdio::null()).spawn();
    let server = Running(started.map_err(|source| Failure::Start { program: "steady".to_owned(), source })?);
    for _ in 0..500 {
        if std::net::TcpStream::connect(SERVER).is_ok() {
            return Ok(server);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(Failure::Found(format!("no server listens at {SERVER}; is something else there?")))
}
