//! Messages that take their time, get lost, and do not pass partitions.

use std::collections::{BTreeMap, BTreeSet};

use super::ledger::Entry;
use crate::core::{MemberId, Record, Standing};

/// What members, servers and the API say to each other.
#[derive(Debug, Clone)]
pub(super) enum Message {
    /// How do you stand? Asked at this time of the asker's clock.
    Ask(u64),
    /// The answer to what was asked then.
    Answer(u64, Standing),
    /// Am I still the one (my epoch)?
    Confirm(u64, u64),
    /// You are.
    Confirmed(u64, u64),
    /// Read the Lease.
    Read(u64),
    /// What it says.
    Reading(u64, Option<Record>),
    /// Compare and swap: the renewal it replaces.
    Write(u64, Option<u64>, Record),
    /// Done or not.
    Wrote(u64, Record, bool),
    /// To the other members: this was done.
    Told(Record),
    /// A replica's server to its primary's: which connection, whose log, and how much of it is on disk.
    Pull(u64, u64, u64),
    /// Entries from this place on.
    Push(u64, u64, Vec<Entry>),
}

/// Who talks. The API is `None`.
pub(super) type Place = Option<MemberId>;

#[derive(Default)]
pub(super) struct Network {
    queue: BTreeMap<(u64, u64), (Place, Place, Message)>,
    count: u64,
    /// Pairs that cannot reach each other.
    pub(super) cut: BTreeSet<(Place, Place)>,
    /// Of a hundred messages, how many are lost.
    pub(super) loss: u64,
    /// Longest delay.
    pub(super) delay_ms: u64,
}

impl Network {
    pub(super) fn new() -> Self {
        Self { delay_ms: 5, ..Self::default() }
    }

    pub(super) fn send(&mut self, random: &mut fastrand::Rng, now: u64, from: &Place, to: &Place, message: Message) {
        // Replication is a stream: it may be cut and delayed, not lose from its middle. The pull says where to go on.
        if self.is_cut(from, to) || random.u64(0..100) < self.loss {
            return;
        }
        let delay = random.u64(1..=self.delay_ms.max(1));
        self.count += 1;
        self.queue.insert((now + delay, self.count), (from.clone(), to.clone(), message));
    }

    pub(super) fn is_cut(&self, from: &Place, to: &Place) -> bool {
        self.cut.contains(&(from.clone(), to.clone())) || self.cut.contains(&(to.clone(), from.clone()))
    }

    /// Keeps a message until then: its receiver does not run.
    pub(super) fn hold(&mut self, until: u64, from: Place, to: Place, message: Message) {
        self.count += 1;
        self.queue.insert((until, self.count), (from, to, message));
    }

    /// The next message that has arrived by now.
    pub(super) fn next(&mut self, now: u64) -> Option<(Place, Place, Message)> {
        let first = self.queue.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}
