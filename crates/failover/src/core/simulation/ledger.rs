//! What must always hold, checked as the simulation goes.

use std::collections::BTreeMap;

use crate::core::MemberId;

/// One write: the epoch of the primary that made it, and a number of its own.
pub(super) type Entry = (u64, u64);

/// Every acknowledged write, and who accepted writes in which epoch.
#[derive(Default)]
pub(super) struct Ledger {
    acknowledged: BTreeMap<u64, (Entry, u64)>,
    writers: BTreeMap<u64, MemberId>,
    /// The newest epoch in which a server was made primary, and what it had.
    newest: (u64, Vec<Entry>),
    /// Lose nothing; asynchronous replication may.
    synchronous: bool,
}

impl Ledger {
    pub(super) fn new(synchronous: bool) -> Self {
        Self { synchronous, ..Self::default() }
    }

    /// A server was made primary, with this log.
    pub(super) fn promoted(&mut self, member: &MemberId, epoch: u64, log: &[Entry]) {
        let writer = self.writers.entry(epoch).or_insert_with(|| member.clone());
        assert_eq!(writer, member, "two writers in epoch {epoch}");
        if epoch >= self.newest.0 {
            self.newest = (epoch, log.to_vec());
        }
        self.holds_all(log, &format!("{member} became primary of epoch {epoch}"));
    }

    /// Every acknowledged write must be in this log, at its place. `occasion` begins the message.
    pub(super) fn holds_all(&self, log: &[Entry], occasion: &str) {
        if !self.synchronous {
            return;
        }
        for (entry, index) in self.acknowledged.values() {
            let kept = log.get(*index as usize);
            assert_eq!(kept, Some(entry), "{occasion} without an acknowledged write");
        }
    }

    /// A write at this place of its primary's log was acknowledged to its client. By a primary of the past only where its replicas
    /// had answered before they promised, and it was stopped since: then the new primary has it.
    pub(super) fn acknowledged(&mut self, entry: Entry, index: u64) {
        if self.synchronous && entry.0 < self.newest.0 {
            let kept = self.newest.1.get(index as usize);
            assert_eq!(kept, Some(&entry), "acknowledged by a primary of the past, and not kept");
        }
        self.acknowledged.insert(entry.1, (entry, index));
    }

    pub(super) fn epochs(&self) -> u64 {
        self.writers.len() as u64
    }

    pub(super) fn writes(&self) -> u64 {
        self.acknowledged.len() as u64
    }
}
