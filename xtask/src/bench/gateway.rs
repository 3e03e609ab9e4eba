//! `cargo xtask bench gateway`: the gateway beside HAProxy and nginx, in one run on one core.
//!
//! # Flow
//! release build → three nginx as endpoints → per workload and round: each proxy in turn gets the same load from wrk → the
//! medians over the rounds. Proxies share core 0, endpoints and wrk have core 1; only one proxy has load at a time. A proxy
//! that is not installed has no column.
//!
//! # What is compared
//! Routing, round robin, active checks, retries and one rate limit are on in all three; the gateway also counts per route and
//! endpoint. HAProxy and nginx have time limits of 500 ms and, HAProxy, checks every 200 ms: tuned as the faults need it (see
//! `faults`). CPU time per request is the figure to trust on a busy machine: the others measure the neighbours, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::Args;

use super::faults;
use super::report::{Row, median, publish};
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
}

/// A part of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    All,
    /// Requests, latency and processor time without any fault.
    Speed,
    /// What clients see while an endpoint fails, the configuration changes, or the process is replaced.
    Faults,
}

/// Ports of the endpoints.
pub(super) const ENDPOINTS: [u16; 3] = [19_001, 19_002, 19_003];
/// (proxy, port it listens on).
pub(super) const PROXIES: [(&str, u16); 3] = [("gateway", 18_080), ("haproxy", 18_081), ("nginx", 18_082)];
/// (workload, path).
const WORKLOADS: [(&str, &str); 2] = [("512 bytes", "/"), ("64 KiB", "/large")];
/// Ticks of a processor's time in a second, as /proc counts them (`man 5 proc`; 100 on every Linux of today).
const TICKS: f64 = 100.0;

/// A process that ends with this value.
pub(super) struct Running(pub(super) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// What one load showed.
#[derive(Debug, Default, Clone, Copy)]
struct Figures {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_s_per_million: f64,
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
    let folder = std::env::temp_dir().join(format!("mainstay-bench-gateway-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(at(&folder))?;
    let rows = parts(args, &binary, &folder);
    let _ = fs::remove_dir_all(&folder);
    publish(&workspace.target, "gateway", &rows?)
}

fn parts(args: &GatewayArgs, binary: &Path, folder: &Path) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    if args.part != Part::Faults {
        rows.extend(measure(args, binary, folder)?);
    }
    if args.part != Part::Speed {
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
    let mut running = Vec::new();
    for port in ENDPOINTS {
        let configuration = write(&format!("endpoint-{port}.conf"), endpoint(folder, port))?;
        running.push(start("1", &find("nginx")?, &["-c", &configuration.to_string_lossy()])?);
    }
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
    for (workload, path) in WORKLOADS {
        let mut all = vec![Vec::new(); proxies.len()];
        for round in 0..args.rounds {
            for turn in 0..proxies.len() {
                // The order rotates, so that no proxy always has the machine's best or worst moment.
                let which = (turn + round) % proxies.len();
                let ((_, port), process) = &proxies[which];
                all[which].push(load(args, &process.0, *port, path)?);
            }
        }
        let names: Vec<&str> = proxies.iter().map(|((name, _), _)| *name).collect();
        rows.extend(summary(workload, &names, &all));
    }
    Ok(rows)
}

/// What a figure is called, its unit, and where it stands.
type Kind = (&'static str, &'static str, fn(&Figures) -> f64);

/// Starts a proxy by its name, on core 0.
pub(super) fn start_proxy(name: &str, binary: &Path, folder: &Path) -> Outcome<Running> {
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).map_err(at(&path)).map(|()| path.to_string_lossy().into_owned())
    };
    match name {
        "haproxy" => start("0", &find(name)?, &["-db", "-f", &write("haproxy.cfg", haproxy_cfg())?]),
        "nginx" => start("0", &find(name)?, &["-c", &write("nginx.conf", nginx_conf(folder))?]),
        _ => {
            let configuration = write("gateway.yaml", gateway_yaml())?;
            let socket = folder.join("hand-over.sock").to_string_lossy().into_owned();
            let mut arguments =
                vec!["gateway", "--cores", "1", "--address", "127.0.0.1", "--admin", "off", "-f", &configuration];
            if name.contains("hand-over") {
                arguments.extend(["--hand-over", &socket]);
            }
            start("0", binary, &arguments)
        }
    }
}

/// A row for each figure of the gateway, with HAProxy's beside it, and rows of the other proxies.
fn summary(workload: &str, names: &[&str], all: &[Vec<Figures>]) -> Vec<Row> {
    let figure = |which: usize, of: fn(&Figures) -> f64| median(&all[which].iter().map(of).collect::<Vec<_>>());
    let kinds: [Kind; 4] = [
        ("requests per second", "1/s", |it| it.per_second),
        ("p50", "us", |it| it.p50_us),
        ("p99", "us", |it| it.p99_us),
        ("CPU per million requests", "s", |it| it.cpu_s_per_million),
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
                if kind != "p50" {
                    (row.goal, row.goal_met) = (Some(peer.round()), Some(met));
                }
            }
            rows.push(row);
        }
    }
    rows
}

fn load(args: &GatewayArgs, proxy: &Child, port: u16, path: &str) -> Outcome<Figures> {
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
    let text = output(wrk.arg(format!("http://127.0.0.1:{port}{path}")))?;
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
    })
}

/// `1.23ms` in microseconds.
pub(super) fn microseconds(text: &str) -> f64 {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    let found = units.iter().find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor));
    found.unwrap_or(0.0)
}

/// Processor time of a process and its children, in ticks.
fn cpu_ticks(id: u32) -> f64 {
    let of = |id: u32| -> f64 {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<f64>().ok()).sum()
    };
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    of(id) + children.split_whitespace().filter_map(|it| it.parse().ok()).map(of).sum::<f64>()
}

pub(super) fn find(program: &str) -> Outcome<PathBuf> {
    find_program(program).ok_or_else(|| Failure::Found(format!("{program} is missing; apt-get install {program}")))
}

pub(super) fn start(core: &str, program: &Path, arguments: &[&str]) -> Outcome<Running> {
    let mut command = Command::new("taskset");
    command
        .args(["-c", core])
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let started = command.spawn();
    started.map(Running).map_err(|source| Failure::Start { program: program.display().to_string(), source })
}

pub(super) fn wait_for(name: &str, port: u16) -> Outcome {
    for _ in 0..500 {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(Failure::Found(format!("{name} does not listen on port {port}; is something else there?")))
}

/// What nginx needs to run from a folder of its own.
pub(super) fn nginx_frame(folder: &Path, name: &str, http: &str) -> String {
    let folder = folder.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {folder}/{name}-{kind};\n"))
        .concat();
    format!(
        "daemon off;\nworker_processes 1;\npid {folder}/{name}.pid;\nerror_log {folder}/{name}.log crit;\nevents {{ worker_connections 4096; }}\nhttp {{\n{temporary}  access_log off;\n  keepalive_requests 100000000;\n{http}}}\n"
    )
}

fn endpoint(folder: &Path, port: u16) -> String {
    let server = format!(
        "  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 \"{}\"; }} location = /large {{ root {}; }} }}\n",
        "x".repeat(512),
        folder.display()
    );
    nginx_frame(folder, &format!("endpoint-{port}"), &server)
}

/// One line of configuration for each endpoint.
fn for_each_endpoint(line: impl Fn(u16) -> String) -> String {
    ENDPOINTS.map(line).concat()
}

fn gateway_yaml() -> String {
    let endpoints = for_each_endpoint(|port| format!("  - {{address: \"127.0.0.1:{port}\"}}\n"));
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: bench}}\nspec:\n  gatewayClassName: mainstay\n  listeners: [{{name: http, port: {}, protocol: HTTP}}]\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: all}}\nspec:\n  parentRefs: [{{name: bench}}]\n  rules:\n  - backendRefs: [{{group: mainstay.dev, kind: Backend, name: endpoints}}]\n---\n\
         apiVersion: mainstay.dev/v1alpha1\nkind: Backend\nmetadata: {{name: endpoints}}\nspec:\n  endpoints:\n{endpoints}---\n\
         apiVersion: mainstay.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: all}}\nspec:\n  targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: all}}]\n  rateLimits: [{{requests: 10000000, period: 1s}}]\n  healthCheck: {{http: {{path: /}}, interval: 1s}}\n",
        PROXIES[0].1
    )
}

fn haproxy_cfg() -> String {
    let servers = for_each_endpoint(|port| format!("  server s{port} 127.0.0.1:{port} check inter 200ms\n"));
    format!(
        "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  mode http\n  timeout connect 500ms\n  timeout client 60s\n  timeout server 500ms\n  http-reuse always\n  retries 3\n  option redispatch\n  retry-on all-retryable-errors\n\
         frontend f\n  bind 127.0.0.1:{}\n  stick-table type ip size 100k expire 30s store http_req_rate(1s)\n  http-request track-sc0 src\n  http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt 10000000 }}\n  option forwardfor\n  default_backend b\n\
         backend b\n  balance roundrobin\n  option httpchk GET /\n{servers}",
        PROXIES[1].1
    )
}

fn nginx_conf(folder: &Path) -> String {
    let servers = for_each_endpoint(|port| format!("server 127.0.0.1:{port}; "));
    let http = format!(
        "  limit_req_zone $binary_remote_addr zone=a:10m rate=1000000r/s;\n  upstream u {{ {servers}keepalive 128; keepalive_requests 100000000; }}\n  server {{ listen 127.0.0.1:{} backlog=4096; location / {{ limit_req zone=a burst=100000 nodelay; proxy_http_version 1.1; proxy_connect_timeout 500ms; proxy_read_timeout 500ms; proxy_next_upstream error timeout http_500 http_502 http_503 http_504; proxy_set_header Connection \"\"; proxy_set_header X-Forwarded-For $remote_addr; proxy_pass http://u; }} }}\n",
        PROXIES[2].1
    );
    nginx_frame(folder, "nginx", &http)
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
