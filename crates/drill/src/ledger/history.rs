//! What clients of a store did and were told, and what that proves.
//!
//! Pure: a history in, findings out. Values are unique among all writes of a history, so that a value read tells which write it
//! is from. Times are microseconds after the beginning on one clock.
//!
//! Two findings, both certain (no interpretation of the history can excuse them):
//! - *Lost*: an acknowledged write is neither the last word on its key at the end, nor was another write of that key begun
//!   after it, nor at work at the same time.
//! - *Stale*: a read that began after a write was acknowledged answers with a value that was older than that write for sure.
//!
//! Finer breaches of order are found by [`linear`](super::linear).

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

/// What was asked of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Set it to a value that no other write of the history uses.
    Write(u64),
    /// What it is; filled in with the answer, `None` where there is nothing.
    Read(Option<u64>),
}

/// What the client knows about how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// Answered: for a write, acknowledged.
    Done,
    /// Certainly without effect, such as a refused connection.
    Refused,
    /// Nobody knows, such as after a timeout: a write may take effect at any later moment, or never.
    Unknown,
}

/// One operation of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Which client.
    pub client: u32,
    /// On which key.
    pub key: u64,
    /// What.
    pub action: Action,
    /// When it was asked, in microseconds.
    pub called_us: u64,
    /// When it ended, in microseconds.
    pub ended_us: u64,
    /// How.
    pub ending: Ending,
}

impl Operation {
    /// The value of a write.
    pub fn written(&self) -> Option<u64> {
        if let Action::Write(value) = self.action { Some(value) } else { None }
    }

    fn is_acknowledged_write(&self) -> bool {
        self.written().is_some() && self.ending == Ending::Done
    }
}

/// A breach that is certain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The acknowledged write at stake.
    pub write: Operation,
    /// What was found instead.
    pub found: Option<u64>,
    /// When the read began that found it.
    pub at_us: u64,
}

/// Acknowledged writes that are gone: `finally` is what each key held after all writing had ended.
pub fn lost(history: &[Operation], finally: &BTreeMap<u64, Option<u64>>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let at_us = history.iter().map(|operation| operation.ended_us).max().unwrap_or_default();
    for (key, operations) in by_key(history) {
        let Some(found) = finally.get(&key).copied() else { continue };
        let survivor =
            operations.iter().find(|operation| operation.written().is_some() && operation.written() == found);
        for write in operations.iter().filter(|operation| operation.is_acknowledged_write()) {
            let excused = match survivor {
                // Anything that was not over when this one began may have come after it.
                Some(survivor) => survivor.ending != Ending::Done || survivor.ended_us >= write.called_us,
                None => false,
            };
            if !excused {
                findings.push(Finding { write: **write, found, at_us });
            }
        }
    }
    findings.sort_by_key(|finding| finding.write.called_us);
    findings
}

/// Reads that answered with something older than what had been acknowledged before they began.
pub fn stale(history: &[Operation]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (_, operations) in by_key(history) {
        let mut writes: Vec<&Operation> = operations.iter().copied().filter(|it| it.is_acknowledged_write()).collect();
        writes.sort_by_key(|write| write.ended_us);
        let mut reads: Vec<&Operation> = operations.iter().copied().filter(|it| it.ending == Ending::Done).collect();
        reads.retain(|read| matches!(read.action, Action::Read(_)));
        reads.sort_by_key(|read| read.called_us);
        // Of the writes acknowledged before the read began: the one that was begun last.
        let (mut next, mut newest): (usize, Option<&Operation>) = (0, None);
        for read in reads {
            while let Some(write) = writes.get(next).filter(|write| write.ended_us < read.called_us) {
                newest = newest.filter(|known| known.called_us >= write.called_us).or(Some(write));
                next += 1;
            }
            let (Some(newest), Action::Read(found)) = (newest, read.action) else { continue };
            let source = operations.iter().find(|it| found.is_some() && it.written() == found);
            let is_older = match source {
                Some(source) => source.ending == Ending::Done && source.ended_us < newest.called_us,
                None => found.is_none(),
            };
            if is_older {
                findings.push(Finding { write: *newest, found, at_us: read.called_us });
            }
        }
    }
    findings.sort_by_key(|finding| finding.at_us);
    findings
}

/// The operations of each key, in their order.
pub(crate) fn by_key(history: &[Operation]) -> Vec<(u64, Vec<&Operation>)> {
    let mut keys: HashMap<u64, Vec<&Operation>> = HashMap::new();
    for operation in history {
        keys.entry(operation.key).or_default().push(operation);
    }
    let mut keys: Vec<_> = keys.into_iter().collect();
    keys.sort_by_key(|(key, _)| *key);
    keys
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn write(value: u64, called_us: u64, ended_us: u64) -> Operation {
        Operation { client: 0, key: 0, action: Action::Write(value), called_us, ended_us, ending: Ending::Done }
    }

    pub(crate) fn read(found: Option<u64>, called_us: u64, ended_us: u64) -> Operation {
        Operation { action: Action::Read(found), ..write(0, called_us, ended_us) }
    }

    fn finally(found: Option<u64>) -> BTreeMap<u64, Option<u64>> {
        BTreeMap::from([(0, found)])
    }

    #[test]
    fn an_acknowledged_write_that_is_gone_is_lost() {
        assert_eq!(lost(&[write(1, 0, 10)], &finally(None)).len(), 1);
        assert_eq!(lost(&[write(1, 0, 10), write(2, 20, 30)], &finally(Some(1))).len(), 1);
        assert_eq!(lost(&[write(1, 0, 10), write(2, 20, 30)], &finally(Some(2))), []);
    }

    #[test]
    fn what_can_be_excused_is_not_lost() {
        // At work at the same time: either may be the last.
        assert_eq!(lost(&[write(1, 0, 10), write(2, 5, 30)], &finally(Some(1))), []);
        // Unknown: the first may have taken effect after the second.
        let unknown = Operation { ending: Ending::Unknown, ..write(1, 0, 10) };
        assert_eq!(lost(&[unknown, write(2, 20, 30)], &finally(Some(1))), []);
        assert_eq!(lost(&[unknown], &finally(None)), []);
    }

    #[test]
    fn a_read_of_something_certainly_older_is_stale() {
        let two = [write(1, 0, 10), write(2, 20, 30)];
        let with = |read: Operation| stale(&[two[0], two[1], read]).len();
        assert_eq!(with(read(Some(1), 40, 50)), 1);
        assert_eq!(with(read(None, 40, 50)), 1);
        assert_eq!(with(read(Some(2), 40, 50)), 0);
        // Began before the second was acknowledged.
        assert_eq!(with(read(Some(1), 25, 50)), 0);
        assert_eq!(stale(&[write(1, 0, 100), write(2, 20, 30), read(Some(1), 40, 50)]), []);
    }
}
