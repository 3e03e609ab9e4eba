//! The faults part of `cargo xtask bench gateway`: what a client sees while an endpoint fails, the configuration is reloaded
//! all the time, and the gateway itself is replaced.
//!
//! # Flow
//! The whole bench runs in a network namespace of its own (see `gateway`), where packets can be dropped without harm.
//! Per fault, rate and proxy: three endpoints and the proxy start anew → a second of load → the fault strikes one endpoint →
//! load goes on → failed requests and the worst latency. Then, for the gateway alone: its configuration file written anew a
//! hundred times a second, and the process replaced by a new one, under load.
//!
//! # How it is counted
//! Requests are sent by a clock, whether or not earlier ones are answered, and a latency counts from the moment a request was
//! due, so that a proxy that stands still for a second has a second in its figures. A request is `GET` on a connection that is
//! kept; one that finds its connection closed before anything was answered is sent again on a new one, as every client
//! library does. What is not a 200 within five seconds has failed; of what failed, the kinds are printed. `late` was never
//! sent: its connection was still busy with requests before it, five seconds after it was due. The row `no fault` says what of a
//! latency is the machine's own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::proxies::{self, ENDPOINTS, PROXIES, Running};
use super::report::Row;
use crate::process::{Failure, Outcome, at, find_program, run as run_command};

/// A client's patience.
const PATIENCE: Duration = Duration::from_secs(5);
/// Load before the fault.
const BEFORE: Duration = Duration::from_secs(1);
/// How long the configuration is written anew all the time.
const RELOADING: Duration = Duration::from_secs(30);
/// The endpoint that fails.
const VICTIM: usize = 1;

/// What happens to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Nothing, to compare with.
    None,
    /// SIGKILL.
    Killed,
    /// SIGSTOP.
    Hung,
    /// Its packets vanish.
    BlackHole,
    /// Every answer takes two seconds.
    Slow,
    /// Half of the answers are 500.
    Errors,
    /// SIGKILL, and it is back half a second later.
    Restarted,
}

/// The faults, with the goal for the worst latency in milliseconds where there is one.
const FAULTS: [(Fault, &str, Option<f64>); 7] = [
    (Fault::None, "no fault", None),
    (Fault::Killed, "killed", Some(20.0)),
    (Fault::Hung, "hung", Some(250.0)),
    (Fault::BlackHole, "black hole", Some(250.0)),
    (Fault::Slow, "slow (2 s)", None),
    (Fault::Errors, "half 500s", None),
    (Fault::Restarted, "restarted", None),
];

/// Rates in requests per second, with the connections they are sent on.
const RATES: [(u32, u32); 2] = [(200, 16), (5_000, 64)];

/// What a load showed.
#[derive(Debug, Default)]
struct Seen {
    asked: u64,
    failed: u64,
    worst: Duration,
    /// What failed, by kind.
    kinds: BTreeMap<String, u64>,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.asked += other.asked;
        self.failed += other.failed;
        self.worst = self.worst.max(other.worst);
        for (kind, count) in other.kinds {
            *self.kinds.entry(kind).or_default() += count;
        }
    }
}

/// Drops every packet to the endpoint that fails, until dropped itself.
struct Hole;

impl Hole {
    fn dig() -> Outcome<Self> {
        let rules = format!(
            "add table inet bench_hole; add chain inet bench_hole input {{ type filter hook input priority 0 ; }}; \
             add rule inet bench_hole input tcp dport {} drop",
            ENDPOINTS[VICTIM]
        );
        run_command(Command::new(proxies::find("nft")?).arg(rules)).map(|()| Self)
    }
}

impl Drop for Hole {
    fn drop(&mut self) {
        let _ = Command::new("nft").args(["delete", "table", "inet", "bench_hole"]).status();
    }
}

/// Measures everything; the binary is Mainstay's.
pub(super) fn measure(binary: &Path, folder: &Path, seconds: u32) -> Outcome<Vec<Row>> {
    let mut rows = shown("100 reloads a second", "gateway", &reloads(binary, folder)?, None);
    rows.extend(shown("process replaced", "gateway", &hand_over(binary, folder, seconds)?, None));
    for (fault, name, goal) in FAULTS {
        for rate in RATES {
            for (proxy, port) in PROXIES {
                if proxy != "gateway" && find_program(proxy).is_none() {
                    continue;
                }
                let seen = under_fault(binary, folder, fault, (proxy, port), rate, seconds)?;
                rows.extend(shown(&format!("{name}, {} /s", rate.0), proxy, &seen, goal));
            }
        }
    }
    Ok(rows)
}

fn shown(what: &str, proxy: &str, seen: &Seen, goal_ms: Option<f64>) -> Vec<Row> {
    if seen.failed > 0 {
        println!("{what}, {proxy}: {:?}", seen.kinds);
    }
    let failed = Row::plain(&format!("{what}, failed of {}, {proxy}", seen.asked), seen.failed as f64, "requests");
    let worst = Row::plain(&format!("{what}, worst, {proxy}"), seen.worst.as_secs_f64() * 1e3, "ms");
    if proxy != "gateway" {
        return vec![failed, worst];
    }
    vec![failed.at_most_goal(0.0), goal_ms.map_or_else(|| worst.clone(), |goal| worst.clone().at_most_goal(goal))]
}

fn under_fault(
    binary: &Path,
    folder: &Path,
    fault: Fault,
    (proxy, port): (&'static str, u16),
    (rate, connections): (u32, u32),
    seconds: u32,
) -> Outcome<Seen> {
    let mut endpoints = Vec::new();
    for (at, port) in ENDPOINTS.into_iter().enumerate() {
        // Errors are nginx's to give, the rest is done to the demo server from outside.
        let errors = fault == Fault::Errors && at == VICTIM;
        endpoints.push(if errors { failing_endpoint(folder, port)? } else { endpoint(binary, port)? });
    }
    for port in ENDPOINTS {
        proxies::wait_for("an endpoint", port)?;
    }
    let _proxy = proxies::start_proxy(proxy, binary, folder)?;
    proxies::wait_for(proxy, port)?;
    let stop = AtomicBool::new(false);
    let strike = || -> Outcome {
        thread::sleep(BEFORE);
        let id = endpoints[VICTIM].0.id();
        match fault {
            Fault::None | Fault::Errors => {}
            Fault::BlackHole => {
                let hole = Hole::dig()?;
                thread::sleep(Duration::from_secs(u64::from(seconds)).saturating_sub(BEFORE));
                drop(hole);
            }
            Fault::Killed => signal(id, "-KILL"),
            Fault::Hung => signal(id, "-STOP"),
            Fault::Slow => {
                let address = SocketAddr::from(([127, 0, 0, 1], ENDPOINTS[VICTIM]));
                let _ = ask(&mut None, address, "/control?latency_ms=2000", Instant::now() + PATIENCE);
            }
            Fault::Restarted => {
                signal(id, "-KILL");
                thread::sleep(Duration::from_millis(500));
                let again = endpoint(binary, ENDPOINTS[VICTIM])?;
                thread::sleep(Duration::from_secs(u64::from(seconds)).saturating_sub(BEFORE));
                drop(again);
            }
        }
        Ok(())
    };
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let (seen, struck) = thread::scope(|scope| {
        let striking = scope.spawn(strike);
        let seen = load(address, rate, connections, Duration::from_secs(u64::from(seconds)) + BEFORE, &stop);
        (seen, striking.join())
    });
    // A stopped process takes no other signal until it goes on.
    signal(endpoints[VICTIM].0.id(), "-CONT");
    struck.map_err(|_| Failure::Found("the fault could not be made".to_owned()))??;
    Ok(seen)
}

/// The gateway's file is written anew a hundred times a second; every other time it says something else.
fn reloads(binary: &Path, folder: &Path) -> Outcome<Seen> {
    let _endpoints = all_endpoints(binary)?;
    let _proxy = proxies::start_proxy(PROXIES[0].0, binary, folder)?;
    proxies::wait_for("gateway", PROXIES[0].1)?;
    let path = folder.join("gateway.yaml");
    let text = fs::read_to_string(&path).map_err(at(&path))?;
    let duration = RELOADING;
    let writing = || {
        let begun = Instant::now();
        for number in 0_u32.. {
            let due = begun + Duration::from_millis(10) * number;
            if due > begun + duration {
                break;
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let changed = text.replace("interval: 1s", if number % 2 == 0 { "interval: 1s" } else { "interval: 2s" });
            let next = folder.join(".gateway.yaml.next");
            // Replaced as a whole, as configuration management does it.
            let _ = fs::write(&next, changed).and_then(|()| fs::rename(&next, &path));
        }
    };
    let address = SocketAddr::from(([127, 0, 0, 1], PROXIES[0].1));
    let stop = AtomicBool::new(false);
    let seen = thread::scope(|scope| {
        scope.spawn(writing);
        load(address, 2_000, 64, duration, &stop)
    });
    fs::write(&path, text).map_err(at(&path))?;
    Ok(seen)
}

/// The gateway is replaced by a new process once a second.
fn hand_over(binary: &Path, folder: &Path, seconds: u32) -> Outcome<Seen> {
    let _endpoints = all_endpoints(binary)?;
    let first = proxies::start_proxy("gateway with hand-over", binary, folder)?;
    proxies::wait_for("gateway", PROXIES[0].1)?;
    let stop = AtomicBool::new(false);
    let address = SocketAddr::from(([127, 0, 0, 1], PROXIES[0].1));
    let duration = Duration::from_secs(u64::from(seconds) + 2);
    let (seen, last) = thread::scope(|scope| {
        let replacing = scope.spawn(|| -> Outcome<Vec<Running>> {
            let mut all = vec![first];
            for _ in 0..seconds {
                thread::sleep(Duration::from_secs(1));
                all.push(proxies::start_proxy("gateway with hand-over", binary, folder)?);
            }
            Ok(all)
        });
        (load(address, 2_000, 64, duration, &stop), replacing.join())
    });
    let mut all = last.map_err(|_| Failure::Found("the gateway could not be replaced".to_owned()))??;
    let running = all.iter_mut().filter_map(|it| it.0.try_wait().ok()).filter(Option::is_none).count();
    if running != 1 {
        return Err(Failure::Found(format!("{running} gateways run after the hand-over, and should be one")));
    }
    Ok(seen)
}

fn endpoint(binary: &Path, port: u16) -> Outcome<Running> {
    proxies::start("1", binary, &["demo", "server", "--quiet", "--listen", &format!("127.0.0.1:{port}")])
}

fn all_endpoints(binary: &Path) -> Outcome<Vec<Running>> {
    let endpoints: Outcome<Vec<Running>> = ENDPOINTS.into_iter().map(|port| endpoint(binary, port)).collect();
    for port in ENDPOINTS {
        proxies::wait_for("an endpoint", port)?;
    }
    endpoints
}

/// Answers every other request with 500.
fn failing_endpoint(folder: &Path, port: u16) -> Outcome<Running> {
    let http = format!(
        "  split_clients \"$request_id\" $bad {{ 50% 1; * 0; }}\n  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ if ($bad) {{ return 500; }} return 200 good; }} }}\n"
    );
    let path = folder.join("failing.conf");
    fs::write(&path, proxies::nginx_frame(folder, "failing", &http)).map_err(at(&path))?;
    proxies::start("1", &proxies::find("nginx")?, &["-c", &path.to_string_lossy()])
}

fn signal(id: u32, signal: &str) {
    let _ = Command::new("kill").args([signal, &id.to_string()]).stderr(std::process::Stdio::null()).status();
}

/// Sends `rate` requests a second over so many connections, each on its own beat.
fn load(address: SocketAddr, rate: u32, connections: u32, duration: Duration, stop: &AtomicBool) -> Seen {
    let begun = Instant::now();
    let beat = Duration::from_secs(1) * connections / rate;
    let one = |number: u32| {
        let (mut seen, mut connection) = (Seen::default(), None);
        let mut due = begun + beat * number / connections;
        while due < begun + duration && !stop.load(Ordering::Relaxed) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            seen.asked += 1;
            if let Err(kind) = ask(&mut connection, address, "/whoami", due + PATIENCE) {
                seen.failed += 1;
                *seen.kinds.entry(kind).or_default() += 1;
            }
            seen.worst = seen.worst.max(due.elapsed());
            due += beat;
        }
        seen
    };
    thread::scope(|scope| {
        let one = &one;
        let clients: Vec<_> = (0..connections).map(|number| scope.spawn(move || one(number))).collect();
        let mut sum = Seen::default();
        clients.into_iter().filter_map(|client| client.join().ok()).for_each(|seen| sum.add(seen));
        sum
    })
}

/// One GET; the kind of failure unless it is answered with 200 before `until`.
fn ask(
    connection: &mut Option<BufReader<TcpStream>>,
    address: SocketAddr,
    path: &str,
    until: Instant,
) -> Result<(), String> {
    let kind = |step: &str, error: &std::io::Error| format!("{step}: {:?}", error.kind());
    let mut sent_before = false;
    loop {
        let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
        let left = left.ok_or_else(|| if sent_before { "timed out" } else { "late" }.to_owned())?;
        let kept = connection.is_some();
        let mut stream = match connection.take() {
            Some(stream) => stream,
            None => BufReader::new(TcpStream::connect_timeout(&address, left).map_err(|it| kind("connect", &it))?),
        };
        stream.get_ref().set_read_timeout(Some(left)).map_err(|it| kind("connect", &it))?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n");
        let sent = stream.get_mut().write_all(request.as_bytes());
        sent_before = true;
        match sent.and_then(|()| answer(&mut stream)) {
            Ok(Some((status, keep))) => {
                *connection = keep.then_some(stream);
                return if status == 200 { Ok(()) } else { Err(format!("status {status}")) };
            }
            // Closed before anything came: on a kept connection that is no answer, but a closed connection.
            Ok(None) if kept => {}
            Ok(None) => return Err("a new connection was closed".to_owned()),
            Err(error) if kept && matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {}
            Err(error) => return Err(kind("answer", &error)),
        }
    }
}

/// Status, and whether the connection stays; nothing if it was closed before the first byte.
fn answer(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<(u16, bool)>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let status = line.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0);
    let (mut length, mut keep) = (0, true);
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        let header = line.trim_end().to_ascii_lowercase();
        match header.split_once(": ") {
            Some(("content-length", value)) => length = value.parse().unwrap_or(0),
            Some(("connection", "close")) => keep = false,
            _ => {}
        }
        if header.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Some((status, keep)))
}
