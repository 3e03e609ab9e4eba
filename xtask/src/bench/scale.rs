//! The scale part of `cargo xtask bench gateway`: what idle connections cost in memory, and what routes cost per request.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::gateway::{cpu_ticks, endpoints, memory_mb};
use super::proxies::{PROXIES, start_proxy, wait_for};
use super::report::{Row, median};
use crate::process::{Failure, Outcome, at, find_program, output};

/// Connections without a request; the limit on open files must be above it.
const IDLE: usize = 10_000;
/// Routes, each with a host of its own.
const ROUTES: usize = 5_000;
/// How long connections rest before memory is looked at.
const REST: Duration = Duration::from_secs(3);
/// Rounds with few and with many routes.
const ROUNDS: usize = 5;

/// Measures both.
pub(super) fn measure(binary: &Path, folder: &Path, seconds: u32) -> Outcome<Vec<Row>> {
    let _endpoints = endpoints(folder)?;
    let mut rows = Vec::new();
    for (proxy, port) in PROXIES {
        // HAProxy wants twice as many open files as connections before it starts, which not every machine lets it have.
        if proxy == "haproxy" || (proxy != "gateway" && find_program(proxy).is_none()) {
            continue;
        }
        let running = start_proxy(proxy, binary, folder)?;
        wait_for(proxy, port)?;
        let before = memory_mb(running.0.id());
        let connections = idle(port)?;
        std::thread::sleep(REST);
        let after = memory_mb(running.0.id());
        drop(connections);
        let row = Row::plain(&format!("{IDLE} idle connections, {proxy}"), after, "MB");
        rows.push(if proxy == "gateway" { row.at_most_goal(100.0) } else { row });
        let each = (after - before) * 1024.0 / IDLE as f64;
        rows.push(Row::plain(&format!("an idle connection, {proxy}"), each, "KiB"));
    }
    rows.push(routes(binary, folder, seconds)?);
    Ok(rows)
}

/// Connections that have had a request each.
fn idle(port: u16) -> Outcome<Vec<TcpStream>> {
    let one = || -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        let mut answer = [0; 4096];
        let read = stream.read(&mut answer)?;
        if answer[..read].starts_with(b"HTTP/1.1 200") {
            Ok(stream)
        } else {
            Err(std::io::ErrorKind::InvalidData.into())
        }
    };
    let opened: std::io::Result<Vec<TcpStream>> = (0..IDLE).map(|_| one()).collect();
    opened.map_err(|error| Failure::Found(format!("{IDLE} connections to port {port}: {error} (see `ulimit -n`)")))
}

/// Processor time per request with many routes, beside that with one.
fn routes(binary: &Path, folder: &Path, seconds: u32) -> Outcome<Row> {
    let (_, port) = PROXIES[0];
    let all = folder.join("routes");
    fs::create_dir_all(&all).map_err(at(&all))?;
    let file = all.join("routes.yaml");
    let mut measured = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (many, figures) in measured.iter_mut().enumerate() {
            let running = start_proxy("gateway", binary, folder)?;
            wait_for("gateway", port)?;
            if many == 1 {
                let base = folder.join("gateway.yaml");
                let text = fs::read_to_string(&base).map_err(at(&base))?;
                fs::write(&file, with_routes(&text)).map_err(at(&file))?;
                fs::rename(&file, &base).map_err(at(&base))?;
                wait_for_route(port)?;
            }
            let before = cpu_ticks(running.0.id());
            let mut wrk = Command::new("taskset");
            wrk.args(["-c", "1", "wrk", "-t1", "-c", "64", "-d", &format!("{seconds}s"), "-H"]);
            let host = if many == 1 { format!("Host: host-{}.example", ROUTES / 2) } else { "Host: bench".to_owned() };
            let text = output(wrk.arg(host).arg(format!("http://127.0.0.1:{port}/")))?;
            let line = text.lines().find(|it| it.contains("requests in")).unwrap_or_default();
            let requests: f64 = line.split_whitespace().next().and_then(|it| it.parse().ok()).unwrap_or(0.0);
            if requests < 1.0 || text.contains("Non-2xx") {
                return Err(Failure::Found(format!("with {ROUTES} routes: {text}")));
            }
            figures.push((cpu_ticks(running.0.id()) - before) / 100.0 / requests * 1e6);
        }
    }
    let name = format!("{ROUTES} routes, CPU per million requests (peer: one route)");
    let (one, many) = (median(&measured[0]), median(&measured[1]));
    // Differences below 3 % are noise.
    Ok(Row::plain(&name, many, "s").against(one).at_most_goal(one * 1.03))
}

fn with_routes(base: &str) -> String {
    let route = |number: usize| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r{number}}}\nspec:\n  parentRefs: [{{name: bench}}]\n  hostnames: [host-{number}.example]\n  rules:\n  - matches: [{{path: {{value: /}}}}]\n    backendRefs: [{{group: mainstay.dev, kind: Backend, name: endpoints}}]\n"
        )
    };
    base.to_owned() + &(0..ROUTES).map(route).collect::<Vec<_>>().concat()
}

/// Waits until the last of the routes is served: until then its host is not known there.
fn wait_for_route(port: u16) -> Outcome {
    for _ in 0..600 {
        let answered = || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            let host = ROUTES - 1;
            stream.write_all(format!("GET / HTTP/1.1\r\nHost: host-{host}.example\r\n\r\n").as_bytes())?;
            let mut answer = [0; 64];
            let read = stream.read(&mut answer)?;
            Ok(answer[..read].starts_with(b"HTTP/1.1 200"))
        };
        // The plain route answers every host, too: what tells is that the file has been read, which takes its time.
        std::thread::sleep(Duration::from_millis(50));
        if answered().unwrap_or(false) {
            std::thread::sleep(Duration::from_secs(2));
            return Ok(());
        }
    }
    Err(Failure::Found(format!("{ROUTES} routes were not taken over")))
}
