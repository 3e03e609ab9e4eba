//! The values of the present, in memory as far as they fit.
//!
//! A list of a thousand objects would otherwise walk down the file's tree a thousand times and copy a thousand values.
//! A revision is never given to two contents, so what is kept by revision cannot be wrong, only superseded; a superseded
//! value is dropped at once, since hardly anybody reads the past.
//!
//! At the limit a write displaces what was put in first, and a read displaces nothing: a list of everything must not push
//! out what is in use.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::{Change, Event, Revision};

/// What one value costs beside its bytes, about: its places in the map and the queue, and the allocator's share.
const OVERHEAD_BYTES: usize = 128;
/// A value larger than this share of the limit is not kept: it would displace too many others.
const SHARE_MAX: usize = 16;

/// A value with the revision that created its key.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) create_revision: Revision,
    pub(super) bytes: Bytes,
}

/// The values kept, by the revision that wrote them.
#[derive(Debug)]
pub(super) struct Values {
    kept: Mutex<Kept>,
    bytes_max: usize,
}

/// The values themselves, locked once for a whole list.
#[derive(Debug, Default)]
pub(super) struct Kept {
    by_revision: HashMap<Revision, Value>,
    /// In the order they came; what was superseded may still be in it.
    order: VecDeque<Revision>,
    bytes: usize,
}

impl Values {
    /// Keeps values of up to `bytes_max` together.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { kept: Mutex::default(), bytes_max }
    }

    /// All of them, for as long as the guard lives.
    pub(super) fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what was read, if there is room.
    pub(super) fn offer(&self, read: impl Iterator<Item = (Revision, Value)>) {
        let mut kept = self.lock();
        for (revision, value) in read {
            let cost = value.bytes.len() + OVERHEAD_BYTES;
            if kept.bytes + cost <= self.bytes_max && cost <= self.bytes_max / SHARE_MAX {
                kept.insert(revision, value);
            }
        }
    }

    /// Keeps what was written and drops what that superseded.
    pub(super) fn learn<'e>(&self, events: impl Iterator<Item = &'e Event>) {
        let mut kept = self.lock();
        for event in events {
            let (written, superseded) = match &event.change {
                Change::Put { entry, previous } => (Some(entry), previous.as_ref()),
                Change::Delete { previous } => (None, Some(previous)),
            };
            if let Some(superseded) = superseded {
                kept.remove(superseded.mod_revision);
            }
            let Some(entry) = written else { continue };
            let cost = entry.value.len() + OVERHEAD_BYTES;
            if cost > self.bytes_max / SHARE_MAX {
                continue;
            }
            while kept.bytes + cost > self.bytes_max {
                let Some(oldest) = kept.order.pop_front() else { break };
                kept.remove(oldest);
            }
            // A copy: whoever wrote it may have given it more room than it needs, or made it part of something larger.
            let bytes = Bytes::copy_from_slice(&entry.value);
            kept.insert(event.revision, Value { create_revision: entry.create_revision, bytes });
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        *self.lock() = Kept::default();
    }
}

impl Kept {
    /// The value that `revision` wrote, if it is here.
    pub(super) fn get(&self, revision: Revision) -> Option<Value> {
        self.by_revision.get(&revision).cloned()
    }

    fn insert(&mut self, revision: Revision, value: Value) {
        let cost = value.bytes.len() + OVERHEAD_BYTES;
        if self.by_revision.insert(revision, value).is_none() {
            self.bytes += cost;
            self.order.push_back(revision);
        }
        // What was superseded stays in the queue until there is more of it than of the rest.
        if self.order.len() > 2 * self.by_revision.len() + 64 {
            let by_revision = &self.by_revision;
            self.order.retain(|revision| by_revision.contains_key(revision));
        }
    }

    fn remove(&mut self, revision: Revision) {
        if let Some(value) = self.by_revision.remove(&revision) {
            self.bytes -= value.bytes.len() + OVERHEAD_BYTES;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Entry;

    fn entry(revision: Revision, bytes: usize) -> Entry {
        Entry { key: "/a".into(), value: vec![1; bytes].into(), create_revision: 1, mod_revision: revision }
    }

    fn put(revision: Revision, bytes: usize, previous: Option<Entry>) -> Event {
        Event { revision, change: Change::Put { entry: entry(revision, bytes), previous } }
    }

    #[test]
    fn the_present_is_kept_within_the_limit() {
        let values = Values::new(100 * (872 + OVERHEAD_BYTES));
        for revision in 1..=1000 {
            values.learn([put(revision, 872, None)].iter());
        }
        assert_eq!(values.lock().by_revision.len(), 100);
        assert!(values.lock().get(900).is_none() && values.lock().get(901).is_some());
        // Superseding one key over and over keeps one value of it, and the queue short.
        values.clear();
        for revision in 1..=1000 {
            values.learn([put(revision, 872, (revision > 1).then(|| entry(revision - 1, 872)))].iter());
        }
        let kept = values.lock();
        assert_eq!((kept.by_revision.len(), kept.bytes), (1, 1000));
        assert!(kept.order.len() <= 66);
    }

    #[test]
    fn reading_displaces_nothing() {
        let values = Values::new(32 * (872 + OVERHEAD_BYTES));
        values.learn([put(1, 872, None), put(2, 100_000, None)].iter());
        assert!(values.lock().get(2).is_none(), "too large to keep");
        let read = |revision| (revision, Value { create_revision: 1, bytes: vec![0; 872].into() });
        values.offer((100..200).map(read));
        assert!(values.lock().get(1).is_some() && values.lock().get(131).is_none());
        let event = Event { revision: 300, change: Change::Delete { previous: entry(1, 872) } };
        values.learn([event].iter());
        assert!(values.lock().get(1).is_none());
    }
}
