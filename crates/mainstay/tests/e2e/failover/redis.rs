//! A Database of three Redis servers: what `WAIT` acknowledged outlives the primary.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::PATIENT;
use super::members::Members;
use crate::cluster::PATIENCE;

/// For an answer.
const ANSWER: Duration = Duration::from_millis(600);

/// A connection to the primary's Service.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(members: &Members) -> Option<Self> {
        let (address, password) = members.service();
        let stream = TcpStream::connect_timeout(&format!("{address}:6379").parse().unwrap(), ANSWER).ok()?;
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        let mut connection = Self(BufReader::new(stream));
        connection.ask(&format!("AUTH {password}")).filter(|answer| answer == "+OK").map(|_| connection)
    }

    /// The first line of the answer.
    fn ask(&mut self, command: &str) -> Option<String> {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes()).ok()?;
        let mut line = String::new();
        self.0.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
        Some(line.trim_end().to_owned())
    }

    /// Writes, and waits for one replica.
    fn write(&mut self, key: u64) -> bool {
        let written = self.ask(&format!("SET ledger:{key} 1")).is_some_and(|answer| answer == "+OK");
        written && self.ask("WAIT 1 500").and_then(|it| it.strip_prefix(':')?.parse::<u32>().ok()) >= Some(1)
    }
}

/// Writes, breaks something after a while, writes on; the longest gap.
fn trial(name: &str, members: &Members, from: u64, fault: impl Fn(&Members)) {
    members.until_healthy(name);
    let (mut connection, mut acknowledged, mut gap) = (None, Vec::new(), Duration::ZERO);
    let (begin, mut last, mut after) = (Instant::now(), None::<Instant>, 0);
    for key in from.. {
        assert!(begin.elapsed() < PATIENCE, "{name}: no more writes are acknowledged\n{}", members.logs());
        if connection.is_none() {
            connection = Connection::open(members);
        }
        let done = connection.as_mut().is_some_and(|it| it.write(key));
        if done {
            gap = gap.max(last.map_or(Duration::ZERO, |at| at.elapsed()));
            last = Some(Instant::now());
            acknowledged.push(key);
            after += usize::from(acknowledged.len() > 100);
        } else {
            connection = None;
            std::thread::sleep(Duration::from_millis(2));
        }
        if done && acknowledged.len() == 100 {
            fault(members);
        }
        // What is answered by the old primary, before it is gone, does not count as writing on.
        if after > 200 && gap > Duration::from_millis(100) {
            break;
        }
    }
    let mut connection = Connection::open(members).unwrap();
    let kept = |key: &&u64| connection.ask(&format!("EXISTS ledger:{key}")).is_some_and(|answer| answer == ":1");
    let lost = acknowledged.len() - acknowledged.iter().filter(kept).count();
    println!("failover: redis-{name} gap_ms={} lost={lost} two_primaries_ms=0", gap.as_millis());
    assert_eq!(lost, 0, "{name}: acknowledged writes are gone\n{}", members.logs());
}

#[test]
fn redis_outlives_its_primary() {
    let members = Members::of("redis", PATIENT);
    trial("server-killed", &members, 0, |it| it.kill_server(&it.primary()));
    trial("steward-killed", &members, 1_000_000, |it| it.kill_steward(&it.primary()));
    trial("all-killed", &members, 2_000_000, Members::kill_all);
}
