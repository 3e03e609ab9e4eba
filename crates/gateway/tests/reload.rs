//! Nothing fails while the configuration is exchanged all the time, or the process itself.
//!
//! The long forms, with more load, are in `cargo xtask bench gateway --part faults`.
#![allow(clippy::unwrap_used)]

mod world;

use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use world::{Endpoint, Gateway, PATIENCE, free_port, plain, policy, reply};

/// Clients at once.
const CLIENTS: usize = 8;

/// Asks again and again while `work` runs: what went wrong, and how often all was well.
fn asked_during(port: u16, work: impl FnOnce()) -> (Vec<String>, usize) {
    let over = AtomicBool::new(false);
    let ask = || {
        let (mut wrong, mut good, mut connection) = (Vec::new(), 0, None);
        while !over.load(Ordering::Relaxed) {
            match get(&mut connection, port) {
                Ok(()) => good += 1,
                Err(kind) => wrong.push(kind),
            }
            // Load enough to meet every moment, and not so much that the machine is the limit.
            thread::sleep(Duration::from_millis(5));
        }
        (wrong, good)
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
        work();
        over.store(true, Ordering::Relaxed);
        clients.into_iter().map(|it| it.join().unwrap()).fold((Vec::new(), 0), |(mut wrong, good), more| {
            wrong.extend(more.0);
            (wrong, good + more.1)
        })
    })
}

/// One GET on a kept connection. One that was closed before anything came is asked again on a new one, as every client does;
/// a new one that is closed is a failure.
fn get(connection: &mut Option<BufReader<TcpStream>>, port: u16) -> Result<(), String> {
    loop {
        let kept = connection.is_some();
        let mut stream = if let Some(stream) = connection.take() {
            stream
        } else {
            let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)));
            let stream = stream.map_err(|error| format!("connecting: {error}"))?;
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            BufReader::new(stream)
        };
        match answer(&mut stream) {
            Ok((200, keep)) => {
                *connection = keep.then_some(stream);
                return Ok(());
            }
            Ok((status, _)) => return Err(format!("status {status}")),
            Err(error) => match error.kind() {
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe if kept => {}
                _ => return Err(format!("asking: {error}")),
            },
        }
    }
}

/// Status, and whether the connection stays.
fn answer(stream: &mut BufReader<TcpStream>) -> std::io::Result<(u16, bool)> {
    stream.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head)? == 0 {
            let kind = if head.is_empty() { ErrorKind::UnexpectedEof } else { ErrorKind::Other };
            return Err(std::io::Error::new(kind, "closed"));
        }
    }
    let length = world::header(&head, "content-length").and_then(|it| it.parse().ok()).unwrap_or(0);
    stream.read_exact(&mut vec![0; length]).map_err(std::io::Error::other)?;
    let status = head.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0);
    Ok((status, world::header(&head, "connection") != Some("close")))
}

#[test]
fn a_hundred_reloads_a_second_cost_no_request_and_no_connection() {
    let endpoints = [0, 1, 2].map(|_| Endpoint::start(|_, stream| reply(stream, "200 OK", "", b"good")));
    let addresses = endpoints.each_ref().map(|it| it.address);
    let port = free_port();
    // Every other time the upstream itself is another: it is checked less often.
    let every = |time: &str| {
        let checks = policy(&format!("  healthCheck: {{http: {{path: /}}, interval: {time}}}\n"));
        plain(port, &addresses, &checks)
    };
    let configurations = ["60s", "61s"].map(every);
    let gateway = Gateway::start(port, &configurations[0]);
    let next = gateway.directory.path().join("next");
    let (wrong, good) = asked_during(port, || {
        let begun = Instant::now();
        for number in 1..=300 {
            fs::write(&next, &configurations[number % 2]).unwrap();
            fs::rename(&next, gateway.directory.path().join("gateway.yaml")).unwrap();
            let due = begun + Duration::from_millis(10) * u32::try_from(number).unwrap();
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    });
    assert!(wrong.is_empty(), "{} of {}: {wrong:?}", wrong.len(), wrong.len() + good);
    let reloads = gateway.metric("reloads_total{result=\"good\"}");
    assert!(reloads >= 2.0, "{reloads} reloads, {good} requests");
    // A core needs no more connections to an endpoint than there are clients; without handing them on it would be that many
    // for every reload.
    let opened: u32 = endpoints.iter().map(Endpoint::connections).sum();
    assert!(opened <= 2 * 3 * CLIENTS as u32, "{opened} connections for {good} requests over {reloads} reloads");
}

#[test]
fn a_new_process_takes_over_without_a_failure() {
    let endpoint = Endpoint::start(|_, stream| reply(stream, "200 OK", "", b"good"));
    let port = free_port();
    let configuration = plain(port, &[endpoint.address], "");
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let socket = socket.to_string_lossy();
    let mut gateway = Gateway::start_with(port, &configuration, &[("HAND_OVER", &socket)]);
    let (wrong, good) = asked_during(port, || {
        for _ in 0..3 {
            // It offers its sockets once it serves.
            gateway.wait(|_| std::path::Path::new(&*socket).exists());
            let successor = Gateway::start_with(port, &configuration, &[("HAND_OVER", &socket)]);
            let mut before = std::mem::replace(&mut gateway, successor);
            assert!(before.ended(), "it drains and ends; its log:\n{}", before.log());
            gateway.wait(|it| it.log().contains("took sockets over"));
        }
    });
    assert!(wrong.is_empty(), "{} of {}: {wrong:?}", wrong.len(), wrong.len() + good);
}
