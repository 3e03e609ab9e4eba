//! The overload part of `cargo xtask bench gateway`: an endpoint that can answer a fixed number of requests a second is asked
//! for three times as many.
//!
//! # Flow
//! an endpoint with so many places, each for a fixed time → as many requests as it can take, for the peak → three times that
//! rate, by a clock, a tenth of it on a route of priority Critical → what was answered in time, and how soon.
//!
//! The policy is the adaptive limit alone: nobody tells the gateway what the endpoint can take.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::proxies::{start, wait_for};
use super::report::Row;
use crate::process::{Outcome, at};

const PORT: u16 = 18_090;
/// The endpoint's places, and how long a request has one: 1,000 requests a second.
const PLACES: usize = 8;
const SERVICE: Duration = Duration::from_millis(8);
/// An answer later than this is of no use to anybody.
const USEFUL: Duration = Duration::from_secs(1);
/// Threads that ask; each has one request at a time.
const CLIENTS: u32 = 400;

/// What was seen.
#[derive(Debug, Default)]
struct Seen {
    useful: AtomicU64,
    /// Latencies of critical requests in microseconds; of those that were refused or too late, the limit.
    critical: Mutex<Vec<u64>>,
}

impl Seen {
    fn p99_ms(&self) -> f64 {
        let mut all = self.critical.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.sort_unstable();
        all.get(all.len() * 99 / 100).copied().unwrap_or(0) as f64 / 1e3
    }
}

/// Measures the peak and the overload.
pub(super) fn measure(binary: &Path, folder: &Path, seconds: u32) -> Outcome<Vec<Row>> {
    let endpoint = endpoint().map_err(at(folder))?;
    let file = folder.join("overload.yaml");
    fs::write(&file, configuration(endpoint)).map_err(at(&file))?;
    let text = file.to_string_lossy().into_owned();
    let _gateway =
        start("0", binary, &["gateway", "--cores", "1", "--address", "127.0.0.1", "--admin", "off", "-f", &text])?;
    wait_for("gateway", PORT)?;
    let capacity = (PLACES as f64 / SERVICE.as_secs_f64()) as u32;
    let duration = Duration::from_secs(u64::from(seconds));
    // What comes of just what the endpoint can take, and of half of it, for the latency without any pressure.
    let calm = load(capacity / 2, duration);
    let peak = load(capacity, duration);
    let over = load(capacity * 3, duration);
    let per_second = |seen: &Seen| seen.useful.load(Ordering::Relaxed) as f64 / duration.as_secs_f64();
    let (at_peak, at_over) = (per_second(&peak), per_second(&over));
    Ok(vec![
        Row::plain("overload, answered at capacity", at_peak, "1/s"),
        Row::plain("overload, answered at three times the capacity", at_over, "1/s")
            .against(at_peak)
            .at_least_goal(at_peak * 0.9),
        Row::plain("overload, critical p99 at half the capacity", calm.p99_ms(), "ms"),
        Row::plain("overload, critical p99 at capacity", peak.p99_ms(), "ms"),
        Row::plain("overload, critical p99 at three times the capacity", over.p99_ms(), "ms"),
    ])
}

/// An endpoint with a fixed number of places; whoever finds none waits.
fn endpoint() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let places = Arc::new((Mutex::new(PLACES), Condvar::new()));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let places = places.clone();
            thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                let mut stream = BufReader::new(stream);
                while answer(&mut stream, &places).is_ok_and(|more| more) {}
            });
        }
    });
    Ok(address)
}

fn answer(stream: &mut BufReader<TcpStream>, places: &(Mutex<usize>, Condvar)) -> std::io::Result<bool> {
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Ok(false);
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut free = places.0.lock().unwrap_or_else(PoisonError::into_inner);
    while *free == 0 {
        free = places.1.wait(free).unwrap_or_else(PoisonError::into_inner);
    }
    *free -= 1;
    drop(free);
    thread::sleep(SERVICE);
    *places.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    places.1.notify_one();
    stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
    Ok(true)
}

fn configuration(endpoint: SocketAddr) -> String {
    let policy = |route: &str, priority: &str| {
        format!(
            "---\napiVersion: mainstay.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {route}}}\nspec:\n  targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: {route}}}]\n  priority: {priority}\n"
        )
    };
    let route = |name: &str, path: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}}}\nspec:\n  parentRefs: [{{name: over}}]\n  rules:\n  - matches: [{{path: {{value: {path}}}}}]\n    backendRefs: [{{group: mainstay.dev, kind: Backend, name: one}}]\n"
        )
    };
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: over}}\nspec:\n  gatewayClassName: mainstay\n  listeners: [{{name: http, port: {PORT}, protocol: HTTP}}]\n\
         ---\napiVersion: mainstay.dev/v1alpha1\nkind: Backend\nmetadata: {{name: one}}\nspec:\n  endpoints: [{{address: '{endpoint}'}}]\n\
         ---\napiVersion: mainstay.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: all}}\nspec:\n  targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: over}}]\n  concurrency: {{adaptive: {{max: 200}}}}\n  retry: {{attempts: 0}}\n{}{}{}{}",
        route("critical", "/critical"),
        route("other", "/"),
        policy("critical", "Critical"),
        policy("other", "Normal"),
    )
}

/// Asks `rate` times a second.
fn load(rate: u32, duration: Duration) -> Seen {
    let seen = Seen::default();
    let begun = Instant::now();
    let beat = Duration::from_secs(1) * CLIENTS / rate;
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let seen = &seen;
            scope.spawn(move || {
                let mut stream = None;
                let critical = number % 10 == 0;
                let mut due = begun + beat * number / CLIENTS;
                while due < begun + duration {
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    let good = ask(&mut stream, if critical { "/critical" } else { "/" }).unwrap_or(false);
                    let took = due.elapsed();
                    let useful = good && took <= USEFUL;
                    seen.useful.fetch_add(u64::from(useful), Ordering::Relaxed);
                    if critical {
                        let latency = if useful { took } else { USEFUL };
                        let mut all = seen.critical.lock().unwrap_or_else(PoisonError::into_inner);
                        all.push(latency.as_micros() as u64);
                    }
                    due += beat;
                }
            });
        }
    });
    seen
}

/// One request; whether it was answered with 200.
fn ask(kept: &mut Option<BufReader<TcpStream>>, path: &str) -> std::io::Result<bool> {
    let mut stream = if let Some(stream) = kept.take() {
        stream
    } else {
        let stream = TcpStream::connect(("127.0.0.1", PORT))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        BufReader::new(stream)
    };
    stream.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nHost: over\r\n\r\n").as_bytes())?;
    let (mut status, mut length) = (String::new(), 0);
    stream.read_line(&mut status)?;
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Ok(false);
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    *kept = Some(stream);
    Ok(status.starts_with("HTTP/1.1 200"))
}
