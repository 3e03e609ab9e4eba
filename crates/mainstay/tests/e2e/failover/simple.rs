//! One fault after the other with a client at work that writes keys, for engines whose clients are a few lines.

use std::time::{Duration, Instant};

use super::members::Members;
use crate::cluster::PATIENCE;

/// A connection to the primary's Service.
pub trait Client: Sized {
    /// None while nobody accepts connections.
    fn open(members: &Members) -> Option<Self>;

    /// Whether this write was acknowledged so that it outlives the primary.
    fn write(&mut self, key: u64) -> bool;

    /// Whether a write is there.
    fn has(&mut self, key: u64) -> bool;
}

/// Writes, breaks something after a while, writes on; the longest gap and what is lost.
pub fn trial<C: Client>(name: &str, members: &Members, from: u64, fault: impl Fn(&Members)) {
    members.until_healthy(name);
    let (mut client, mut acknowledged, mut gap) = (None::<C>, Vec::new(), Duration::ZERO);
    let (begin, mut last, mut after) = (Instant::now(), None::<Instant>, 0);
    for key in from.. {
        assert!(begin.elapsed() < PATIENCE, "{name}: no more writes are acknowledged\n{}", members.logs());
        if client.is_none() {
            client = C::open(members);
        }
        let done = client.as_mut().is_some_and(|it| it.write(key));
        if done {
            gap = gap.max(last.map_or(Duration::ZERO, |at| at.elapsed()));
            last = Some(Instant::now());
            acknowledged.push(key);
            after += usize::from(acknowledged.len() > 100);
        } else {
            client = None;
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
    let mut client = client.or_else(|| C::open(members)).unwrap();
    let kept = acknowledged.iter().filter(|key| client.has(**key)).count();
    let lost = acknowledged.len() - kept;
    println!("failover: {name} gap_ms={} lost={lost}", gap.as_millis());
    assert_eq!(lost, 0, "{name}: acknowledged writes are gone\n{}", members.logs());
}

/// All that is tried with these engines.
pub fn matrix<C: Client>(engine: &str, members: &Members) {
    let faults: [(&str, fn(&Members)); 5] = [
        ("server-killed", |it| it.kill_server(&it.primary())),
        ("switchover", |it| drop(it.db(&["switchover", &it.name]))),
        ("steward-killed", |it| it.kill_steward(&it.primary())),
        ("server-and-steward-killed", |it| it.kill_both(&it.primary())),
        ("all-killed", Members::kill_all),
    ];
    for (number, (fault, act)) in (0..).zip(faults) {
        trial::<C>(&format!("{engine}-{fault}"), members, number * 1_000_000, act);
    }
}
