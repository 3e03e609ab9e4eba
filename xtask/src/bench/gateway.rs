//! `cargo xtask bench gateway`: the gateway beside HAProxy and nginx, in one run on one core.
//!
//! # Flow
//! release build → three nginx as endpoints → per workload and round: each proxy in turn gets the same load from wrk (HTTP/2
//! from h2load) → the medians over the rounds. Proxies share core 0, endpoints and wrk have core 1; only one proxy has load at a time. A proxy
//! that is not installed has no column.
//!
//! # What is compared
//! Routing, round robin, active checks, retries and one rate limit are on in all three; the gateway also counts per route and
//! endpoint. All of it runs in a network namespace of its own. HAProxy and nginx have time limits of 500 ms and, HAProxy, checks every 200 ms: tuned as the faults need it (see
//! `faults`). CPU time per request is the figure to trust on a busy machine: the others measure the neighbours, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use clap::Args;

use super::proxies::{ENDPOINTS, PROXIES, Running, TLS, endpoint, find, start, start_proxy, wait_for};
use super::report::{Row, median, publish};
use super::{faults, overload, scale};
use crate::process::{Failure, Outcome, at, cargo, find_program, output, run as run_command};
use crate::workspace::Workspace;

/// Flags of `cargo xtask bench gateway`.
#[derive(Args)]
pub(crate) struct GatewayArgs {
    /// Rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of load for each proxy and round
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Connections
    #[arg(long, default_value_t = 64)]
    connections: u32,
    /// What to measure
    #[arg(long, value_enum, default_value = "all")]
    part: Part,
    /// The binary to measure instead of building one
    #[arg(long)]
    binary: Option<PathBuf>,
    /// This process is in a network namespace of its own already
    #[arg(long, hide = true)]
    apart: bool,
}

/// A part of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    All,
    /// Requests, latency and processor time without any fault.
    Speed,
    /// What clients see while an endpoint fails, the configuration changes, or the process is replaced.
    Faults,
    /// Memory of idle connections, and the price of many routes.
    Scale,
    /// What is answered, and how soon, at three times the capacity.
    Overload,
}

/// A kind of load.
#[derive(Debug, Clone, Copy)]
struct Workload {
    name: &'static str,
    path: &'static str,
    tls: bool,
    http2: bool,
}

const WORKLOADS: [Workload; 4] = [
    Workload { name: "512 bytes", path: "/", tls: false, http2: false },
    Workload { name: "64 KiB", path: "/large", tls: false, http2: false },
    Workload { name: "TLS, 512 bytes", path: "/", tls: true, http2: false },
    Workload { name: "TLS, HTTP/2, 512 bytes", path: "/", tls: true, http2: true },
];
/// Requests at once on an HTTP/2 connection.
const STREAMS: &str = "8";
/// Ticks of a processor's time in a second, as /proc counts them (`man 5 proc`; 100 on every Linux of today).
const TICKS: f64 = 100.0;

/// What one load showed.
#[derive(Debug, Default, Clone, Copy)]
struct Figures {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_s_per_million: f64,
    memory_mb: f64,
}

/// Measures all workloads and publishes the table.
pub(crate) fn run(args: &GatewayArgs) -> Outcome {
    if find_program("wrk").is_none() {
        return Err(Failure::Found("wrk is missing; apt-get install wrk".to_owned()));
    }
    let workspace = Workspace::load()?;
    if args.binary.is_none() {
        run_command(cargo().args(["build", "--release", "--locked", "--package", "mainstay"]))?;
    }
    let binary = args.binary.clone().unwrap_or(workspace.target.join("release/mainstay"));
    if !args.apart {
        return run_apart(args, &binary);
    }
    run_command(Command::new(find("ip")?).args(["link", "set", "lo", "up"]))?;
    let folder = std::env::temp_dir().join(format!("mainstay-bench-gateway-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(at(&folder))?;
    let rows = parts(args, &binary, &folder);
    let _ = fs::remove_dir_all(&folder);
    publish(&workspace.target, "gateway", &rows?)
}

/// Runs this bench again in a network namespace of its own, where nobody has its ports and packets can be dropped, and on core 1,
/// so that whoever makes the load is not on the proxies' core. Needs root.
fn run_apart(args: &GatewayArgs, binary: &Path) -> Outcome {
    let this = std::env::current_exe().map_err(at(Path::new("/proc/self/exe")))?;
    let mut command = Command::new(find("unshare")?);
    command.args(["--net", "taskset", "-c", "1"]).arg(this).args(std::env::args_os().skip(1)).arg("--apart");
    if args.binary.is_none() {
        command.arg("--binary").arg(binary);
    }
    run_command(&mut command)
}

fn parts(args: &GatewayArgs, binary: &Path, folder: &Path) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    let wanted = |part| args.part == Part::All || args.part == part;
    if wanted(Part::Speed) {
        rows.extend(measure(args, binary, folder)?);
    }
    if wanted(Part::Scale) {
        rows.extend(scale::measure(binary, folder, args.seconds)?);
    }
    if wanted(Part::Overload) {
        rows.extend(overload::measure(binary, folder, args.seconds)?);
    }
    if wanted(Part::Faults) {
        rows.extend(faults::measure(binary, folder, args.seconds)?);
    }
    Ok(rows)
}

fn measure(args: &GatewayArgs, binary: &Path, folder: &Path) -> Outcome<Vec<Row>> {
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).map_err(at(&path)).map(|()| path)
    };
    write("large", "y".repeat(65_536))?;
    let _endpoints = endpoints(folder)?;
    let mut proxies = Vec::new();
    for proxy in PROXIES {
        if proxy.0 == "gateway" || find_program(proxy.0).is_some() {
            proxies.push((proxy, start_proxy(proxy.0, binary, folder)?));
        }
    }
    for ((name, port), _) in &proxies {
        wait_for(name, *port)?;
    }
    let mut rows = Vec::new();
    for workload in WORKLOADS.into_iter().filter(|it| !it.http2 || find_program("h2load").is_some()) {
        let mut all = vec![Vec::new(); proxies.len()];
        for round in 0..args.rounds {
            for turn in 0..proxies.len() {
                // The order rotates, so that no proxy always has the machine's best or worst moment.
                let which = (turn + round) % proxies.len();
                let ((_, port), process) = &proxies[which];
                let load = if workload.http2 { load_http2 } else { load };
                all[which].push(load(args, &process.0, *port, workload)?);
            }
        }
        let names: Vec<&str> = proxies.iter().map(|((name, _), _)| *name).collect();
        rows.extend(summary(workload.name, &names, &all));
    }
    Ok(rows)
}

/// What a figure is called, its unit, and where it stands.
type Kind = (&'static str, &'static str, fn(&Figures) -> f64);

/// A row for each figure of the gateway, with HAProxy's beside it, and rows of the other proxies.
fn summary(workload: &str, names: &[&str], all: &[Vec<Figures>]) -> Vec<Row> {
    let figure = |which: usize, of: fn(&Figures) -> f64| median(&all[which].iter().map(of).collect::<Vec<_>>());
    let kinds: [Kind; 5] = [
        ("requests per second", "1/s", |it| it.per_second),
        ("p50", "us", |it| it.p50_us),
        ("p99", "us", |it| it.p99_us),
        ("CPU per million requests", "s", |it| it.cpu_s_per_million),
        ("memory (PSS)", "MB", |it| it.memory_mb),
    ];
    let haproxy = names.iter().position(|name| *name == "haproxy");
    let mut rows = Vec::new();
    for (kind, unit, of) in kinds {
        for (which, name) in names.iter().enumerate() {
            let value = figure(which, of);
            let mut row = Row::plain(&format!("{workload}, {kind}, {name}"), value, unit);
            if let (0, Some(peer)) = (which, haproxy.map(|peer| figure(peer, of))) {
                row.peer = Some(peer);
                row.ratio = Some(value / peer);
                // At least HAProxy's requests, at most its CPU time.
                let met = if unit == "1/s" { value >= peer } else { value <= peer };
                if unit == "1/s" || unit == "s" || (kind == "p99" && value > 0.0) {
                    (row.goal, row.goal_met) = (Some(peer.round()), Some(met));
                }
            }
            rows.push(row);
        }
    }
    rows
}

/// Three nginx on core 1.
pub(super) fn endpoints(folder: &Path) -> Outcome<Vec<Running>> {
    let one = |port: u16| {
        let path = folder.join(format!("endpoint-{port}.conf"));
        fs::write(&path, endpoint(folder, port)).map_err(at(&path))?;
        start("1", &find("nginx")?, &["-c", &path.to_string_lossy()])
    };
    let started: Outcome<Vec<Running>> = ENDPOINTS.into_iter().map(one).collect();
    for port in ENDPOINTS {
        wait_for("an endpoint", port)?;
    }
    started
}

/// HTTP/2: the same number of requests at once, on fewer connections.
fn load_http2(args: &GatewayArgs, proxy: &Child, port: u16, workload: Workload) -> Outcome<Figures> {
    let before = cpu_ticks(proxy.id());
    let mut h2load = Command::new("taskset");
    let connections = (args.connections / 8).max(1).to_string();
    h2load.args(["-c", "1", "h2load", "-t1", "-c", &connections, "-m", STREAMS, "-D", &args.seconds.to_string()]);
    let text = output(h2load.arg(format!("https://127.0.0.1:{}{}", port + TLS, workload.path)))?;
    let ticks = cpu_ticks(proxy.id()) - before;
    let number = |line_begins: &str, word: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(line_begins)).unwrap_or_default();
        let words: Vec<&str> = line.split([' ', ',']).filter(|it| !it.is_empty()).collect();
        let at = words.iter().position(|it| *it == word).unwrap_or(0);
        words.get(at.wrapping_sub(1)).and_then(|it| it.parse().ok()).unwrap_or(0.0)
    };
    let (requests, failed) = (number("status codes:", "2xx"), number("requests:", "failed"));
    if requests < 1.0 || failed > 0.0 {
        return Err(Failure::Found(format!("the proxy on port {port} does not answer as it should:\n{text}")));
    }
    Ok(Figures {
        per_second: number("finished in", "req/s"),
        cpu_s_per_million: ticks / TICKS / requests * 1e6,
        memory_mb: memory_mb(proxy.id()),
        ..Figures::default()
    })
}

/// Load on a keep-alive connection each, over HTTP/1.1.
fn load(args: &GatewayArgs, proxy: &Child, port: u16, workload: Workload) -> Outcome<Figures> {
    let before = cpu_ticks(proxy.id());
    let mut wrk = Command::new("taskset");
    wrk.args([
        "-c",
        "1",
        "wrk",
        "-t1",
        "--latency",
        "-c",
        &args.connections.to_string(),
        "-d",
        &format!("{}s", args.seconds),
    ]);
    let (scheme, port) = if workload.tls { ("https", port + TLS) } else { ("http", port) };
    let text = output(wrk.arg(format!("{scheme}://127.0.0.1:{port}{}", workload.path)))?;
    let ticks = cpu_ticks(proxy.id()) - before;
    let word = |line_has: &str, at: usize| {
        let line = text.lines().find(|line| line.contains(line_has)).unwrap_or_default();
        line.split_whitespace().nth(at).unwrap_or_default().to_owned()
    };
    let requests: f64 = word("requests in", 0).parse().unwrap_or(0.0);
    if requests < 1.0 || text.contains("Non-2xx") {
        return Err(Failure::Found(format!("the proxy on port {port} does not answer as it should:\n{text}")));
    }
    Ok(Figures {
        per_second: word("Requests/sec", 1).parse().unwrap_or(0.0),
        p50_us: microseconds(&word(" 50%", 1)),
        p99_us: microseconds(&word(" 99%", 1)),
        cpu_s_per_million: ticks / TICKS / requests * 1e6,
        memory_mb: memory_mb(proxy.id()),
    })
}

/// Memory of a process and its children, shared pages by their share (PSS).
pub(super) fn memory_mb(id: u32) -> f64 {
    let of = |id: u32| -> f64 {
        let rollup = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).unwrap_or_default();
        let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|it| it.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
    };
    of(id) + children(id).into_iter().map(of).sum::<f64>()
}

fn children(id: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|it| it.parse().ok()).collect()
}

/// `1.23ms` in microseconds.
pub(super) fn microseconds(text: &str) -> f64 {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    let found = units.iter().find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor));
    found.unwrap_or(0.0)
}

/// Processor time of a process and its children, in ticks.
pub(super) fn cpu_ticks(id: u32) -> f64 {
    let of = |id: u32| -> f64 {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<f64>().ok()).sum()
    };
    of(id) + children(id).into_iter().map(of).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrks_times_are_read() {
        for (text, wanted) in [("831.00us", 831.0), ("1.17ms", 1170.0), ("2.00s", 2e6), ("", 0.0)] {
            assert!((microseconds(text) - wanted).abs() < 0.01, "{text}");
        }
    }
}
