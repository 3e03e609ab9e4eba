//! `cargo xtask bench drill`: the load generator on one core, beside `wrk` on the same core against the same server.
//!
//! # Flow
//! release build of the example `load` → one nginx on core 1 → for each rate: the load on core 0, its rate, its own lateness and
//! its latencies. Then wrk with one connection, closed loop, beside a load at the rate that wrk reached: on an idle server both
//! measure the same round trip.
//!
//! # What is compared
//! wrk asks when the last answer is there (closed loop), the load when a request is due; so the latencies are only the same
//! where the server is far from busy. The wait of requests that were due while the generator slept is in the load's figures.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::report::{Row, median, publish};
use crate::process::{Failure, Outcome, at, cargo, find_program, output, run as run_command};
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
    /// The example `load` to measure instead of building it
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// Where nginx listens.
const PORT: u16 = 19_011;
/// Requests per second.
const RATES: [u32; 4] = [500, 5_000, 10_000, 20_000];

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// Measures and publishes the table.
pub(crate) fn run(args: &DrillArgs) -> Outcome {
    for program in ["wrk", "nginx", "taskset"] {
        if find_program(program).is_none() {
            return Err(Failure::Found(format!("{program} is missing; apt-get install {program}")));
        }
    }
    let workspace = Workspace::load()?;
    if args.binary.is_none() {
        let build = ["build", "--release", "--locked", "--package", "mainstay-drill", "--example", "load"];
        run_command(cargo().args(build))?;
    }
    let load = args.binary.clone().unwrap_or(workspace.target.join("release/examples/load"));
    let folder = std::env::temp_dir().join(format!("mainstay-bench-drill-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(at(&folder))?;
    let rows = measure(args, &load, &folder);
    let _ = fs::remove_dir_all(&folder);
    publish(&workspace.target, "drill", &rows?)
}

fn measure(args: &DrillArgs, load: &Path, folder: &Path) -> Outcome<Vec<Row>> {
    let _server = server(folder)?;
    let mut rows = Vec::new();
    for rate in RATES {
        let all: Vec<Value> =
            (0..args.rounds).map(|_| one_load(args, load, f64::from(rate))).collect::<Outcome<_>>()?;
        let of = |path: &str| median(&all.iter().filter_map(|it| it.pointer(path)?.as_f64()).collect::<Vec<_>>());
        let off_percent = (of("/rateSent") / f64::from(rate) - 1.0).abs() * 100.0;
        rows.push(Row::at_most(&format!("{rate}/s: off the rate asked for"), off_percent, "%", 2.0));
        rows.push(Row::plain(&format!("{rate}/s: failed"), of("/failed"), ""));
        rows.push(Row::plain(&format!("{rate}/s: sent late, p50"), of("/lagUs/0"), "us"));
        rows.push(Row::plain(&format!("{rate}/s: sent late, p99"), of("/lagUs/1"), "us"));
        rows.push(Row::plain(&format!("{rate}/s: latency p50"), of("/latency/p50Us"), "us"));
        rows.push(Row::plain(&format!("{rate}/s: latency p99"), of("/latency/p99Us"), "us"));
    }
    let (mut loads, mut wrks, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        let (rate, p50_us) = one_wrk(args)?;
        let figures = one_load(args, load, rate)?;
        loads.push(figures.pointer("/latency/p50Us").and_then(Value::as_f64).unwrap_or_default());
        wrks.push(p50_us);
        rates.push(rate);
    }
    rows.push(Row::plain("wrk, one connection: rate reached", median(&rates), "1/s"));
    rows.push(Row::plain("the same rate: latency p50, beside wrk's", median(&loads), "us").against(median(&wrks)));
    Ok(rows)
}

fn one_load(args: &DrillArgs, load: &Path, rate: f64) -> Outcome<Value> {
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(load).arg(format!("http://127.0.0.1:{PORT}/"));
    let text = output(command.args([rate.to_string(), args.seconds.to_string()]))?;
    serde_json::from_str(&text).map_err(|source| Failure::Json { what: "the load's figures".into(), source })
}

/// The rate that wrk reaches with one connection, and its p50 in microseconds.
fn one_wrk(args: &DrillArgs) -> Outcome<(f64, f64)> {
    let mut command = Command::new("taskset");
    command.args(["-c", "0", "wrk", "-t1", "-c1", "--latency", "-d", &format!("{}s", args.seconds)]);
    let text = output(command.arg(format!("http://127.0.0.1:{PORT}/")))?;
    let word = |line_has: &str| {
        let line = text.lines().find(|line| line.contains(line_has)).unwrap_or_default();
        line.split_whitespace().nth(1).unwrap_or_default().to_owned()
    };
    let rate = word("Requests/sec").parse().unwrap_or(0.0);
    Ok((rate, super::gateway::microseconds(&word(" 50%"))))
}

fn server(folder: &Path) -> Outcome<Running> {
    let http = format!(
        "  server {{ listen 127.0.0.1:{PORT} backlog=4096; location / {{ return 200 \"{}\"; }} }}\n",
        "x".repeat(512)
    );
    let path = folder.join("nginx.conf");
    fs::write(&path, super::proxies::nginx_frame(folder, "nginx", &http)).map_err(at(&path))?;
    let mut command = Command::new("taskset");
    command.args(["-c", "1", "nginx", "-c"]).arg(&path).stdout(Stdio::null()).stderr(Stdio::null());
    let started = command.spawn().map_err(|source| Failure::Start { program: "nginx".to_owned(), source })?;
    let server = Running(started);
    for _ in 0..500 {
        if std::net::TcpStream::connect(("127.0.0.1", PORT)).is_ok() {
            return Ok(server);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(Failure::Found(format!("nginx does not listen on port {PORT}; is something else there?")))
}
