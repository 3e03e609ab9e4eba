//! What the Lease says: who holds it, in which epoch, and who has all acknowledged writes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::types::{MemberId, Position};

/// How many epochs of history are kept. A member that was away for more is cloned anew.
const HISTORY_MAX: usize = 32;

/// What all members agree upon, kept in one Lease and only ever changed by compare-and-swap.
///
/// `voters` and `quorum` say who has all acknowledged writes: **every acknowledged write is on at least
/// `voters - quorum + 1` of the voters**, so any `quorum` of them that stand still include one that has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Who may be written to; `None` between two primaries.
    pub holder: Option<MemberId>,
    /// Counts the primaries, from 1; the Lease's `leaseTransitions`.
    pub epoch: u64,
    /// Counts the writes of this record; orders what different members have seen of it.
    pub renewal: u64,
    /// Who may be elected.
    pub voters: BTreeSet<MemberId>,
    /// How many voters must stand still for an election. 0: replication is asynchronous, and one is enough.
    pub quorum: usize,
    /// Whom the last holder proposes, when it gave up the Lease itself.
    pub successor: Option<MemberId>,
    /// The identity of the data, once there is some; nobody makes a new database after that.
    pub system: Option<String>,
    /// The epochs that were opened for writes, oldest first.
    pub history: Vec<Chapter>,
    /// Where the primary was at the last renewal; bounds what asynchronous replication may lose.
    pub offset: u64,
    /// Automatic failover is suspended.
    pub paused: bool,
}

/// One epoch that was opened for writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chapter {
    /// Which.
    pub epoch: u64,
    /// What its primary had when it began: the end of this chapter's common past with the one before.
    pub from: Position,
    /// Its primary.
    pub primary: MemberId,
}

/// Whose writes a member's files are a beginning of. Kept on the member's disk, written before the files change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Lineage {
    /// The epoch of the primary last followed, cloned from, or been. 0: never any.
    pub epoch: u64,
    /// What that primary had when it began.
    pub from: Position,
}

impl Record {
    /// Whether the holder's epoch is open: it has been promoted, and can be followed.
    pub fn opened(&self) -> bool {
        self.epoch > 0 && self.history.last().is_some_and(|last| last.epoch == self.epoch)
    }

    /// Adds the holder's epoch to the history.
    pub fn open(&mut self, primary: MemberId, from: Position) {
        self.history.push(Chapter { epoch: self.epoch, from, primary });
        let surplus = self.history.len().saturating_sub(HISTORY_MAX);
        self.history.drain(..surplus);
    }

    /// The lineage of one who follows the holder; only when its epoch is open.
    pub fn lineage(&self) -> Option<Lineage> {
        let last = self.history.last().filter(|_| self.opened())?;
        Some(Lineage { epoch: last.epoch, from: last.from })
    }

    /// Whether what a member has is a beginning of what the newest open epoch has, so that it can just go on receiving.
    /// `false` where its writes went another way (they were never acknowledged), or are too old to tell.
    pub fn continues(&self, position: Position) -> bool {
        let Some(last) = self.history.last() else { return false };
        if last.epoch == position.epoch {
            return true;
        }
        // From the newest epoch down the line of its ancestors, until one that began where the member's epoch ended.
        self.line(last.epoch)
            .find(|chapter| chapter.from.epoch == position.epoch)
            .is_some_and(|chapter| position.offset <= chapter.from.offset)
    }

    /// The position of a member whose files are a beginning of `lineage` and have `offset`: the epoch of its newest write is the
    /// newest of the line that began before it.
    pub fn place(&self, lineage: Lineage, offset: u64) -> Position {
        let oldest = self.history.first().map_or(u64::MAX, |chapter| chapter.epoch);
        if lineage.epoch < oldest && lineage.epoch < self.epoch {
            // Too old to tell; or the first there was.
            return Position { epoch: lineage.epoch, offset };
        }
        if !self.history.iter().any(|chapter| chapter.epoch == lineage.epoch) {
            // An epoch that never opened: what it wrote was acknowledged to nobody, and nobody else has it.
            return Position { epoch: lineage.from.epoch, offset: offset.min(lineage.from.offset) };
        }
        let mut epoch = lineage.epoch;
        for chapter in self.line(lineage.epoch) {
            epoch = chapter.epoch;
            if chapter.from.offset <= offset {
                break;
            }
            epoch = chapter.from.epoch;
        }
        Position { epoch, offset }
    }

    /// The chapter of an epoch, its parent's, and so on.
    fn line(&self, epoch: u64) -> impl Iterator<Item = &Chapter> {
        let mut next = epoch;
        self.history.iter().rev().filter(move |chapter| {
            let found = chapter.epoch == next;
            if found {
                next = chapter.from.epoch;
            }
            found
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: u64, offset: u64) -> Position {
        Position { epoch, offset }
    }

    /// Epoch 1; 2 from it at 100; 3, which went on from epoch 1 at 90 because 2 was lost; 5 from 3 at 200.
    fn record() -> Record {
        let mut record = Record::default();
        for (epoch, from) in [(1, at(0, 0)), (2, at(1, 100)), (3, at(1, 90)), (5, at(3, 200))] {
            record.epoch = epoch;
            record.open("a".into(), from);
        }
        record
    }

    #[test]
    fn only_a_beginning_of_the_line_can_go_on() {
        let record = record();
        assert!(record.continues(at(5, 1000)));
        assert!(record.continues(at(3, 200)));
        assert!(!record.continues(at(3, 201)));
        assert!(record.continues(at(1, 90)));
        assert!(!record.continues(at(1, 91)), "epoch 3 never had it");
        assert!(!record.continues(at(2, 100)), "another way");
        assert!(!record.continues(at(4, 0)), "unknown");
    }

    #[test]
    fn a_position_is_of_the_epoch_that_wrote_it() {
        let record = record();
        let follows = |epoch| Lineage { epoch, from: at(0, 0) };
        assert_eq!(record.place(follows(5), 250), at(5, 250));
        assert_eq!(record.place(follows(5), 199), at(3, 199));
        assert_eq!(record.place(follows(5), 80), at(1, 80));
        assert_eq!(record.place(follows(2), 150), at(2, 150));
        // Promoted in epoch 4, which never opened.
        assert_eq!(record.place(Lineage { epoch: 4, from: at(3, 120) }, 130), at(3, 120));
    }

    #[test]
    fn history_has_a_limit() {
        let mut record = Record::default();
        for epoch in 1..100 {
            record.epoch = epoch;
            record.open("a".into(), at(epoch - 1, epoch));
        }
        assert_eq!(record.history.len(), HISTORY_MAX);
        assert!(!record.continues(at(10, 5)), "too old to tell");
    }
}
