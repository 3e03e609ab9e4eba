//! A Database of three Redis servers: what `WAIT` acknowledged outlives the primary.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use super::PATIENT;
use super::members::Members;
use super::simple::{Client, matrix, trial};

/// For an answer.
const ANSWER: Duration = Duration::from_millis(600);

struct Connection(BufReader<TcpStream>);

impl Connection {
    /// The first line of the answer.
    fn ask(&mut self, command: &str) -> Option<String> {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes()).ok()?;
        let mut line = String::new();
        self.0.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
        Some(line.trim_end().to_owned())
    }
}

impl Client for Connection {
    fn open(members: &Members) -> Option<Self> {
        let (address, password) = members.service();
        let stream = TcpStream::connect_timeout(&format!("{address}:6379").parse().unwrap(), ANSWER).ok()?;
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        let mut connection = Self(BufReader::new(stream));
        connection.ask(&format!("AUTH {password}")).filter(|answer| answer == "+OK").map(|_| connection)
    }

    /// Writes, and waits for one replica.
    fn write(&mut self, key: u64) -> bool {
        let written = self.ask(&format!("SET ledger:{key} 1")).is_some_and(|answer| answer == "+OK");
        written && self.ask("WAIT 1 500").and_then(|it| it.strip_prefix(':')?.parse::<u32>().ok()) >= Some(1)
    }

    fn has(&mut self, key: u64) -> bool {
        self.ask(&format!("EXISTS ledger:{key}")).is_some_and(|answer| answer == ":1")
    }
}

#[test]
#[ignore = "takes minutes: `cargo xtask bench failover` runs it"]
fn the_matrix() {
    matrix::<Connection>("redis", &Members::of("redis", ""));
}

#[test]
fn redis_outlives_its_primary() {
    let members = Members::of("redis", PATIENT);
    trial::<Connection>("redis-server-killed", &members, 0, |it| it.kill_server(&it.primary()));
    trial::<Connection>("redis-steward-killed", &members, 1_000_000, |it| it.kill_steward(&it.primary()));
    trial::<Connection>("redis-all-killed", &members, 2_000_000, Members::kill_all);
}
