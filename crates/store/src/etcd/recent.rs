//! The last changes, so that a watch can begin a little in the past without asking etcd.
//!
//! etcd cannot say reliably when a watch that began in the past has caught up if nothing follows (its answers to progress
//! requests overtook events before 3.4.25 and 3.5.8, <https://github.com/etcd-io/etcd/issues/15220>). One feed of all
//! changes, some of them kept here, needs no such answer, and costs etcd one watch instead of thousands.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::{Change, Event, Revision};

/// How many changes are kept.
pub(super) const EVENTS_MAX: usize = 4096;
/// How many bytes of values are kept with them.
const BYTES_MAX: usize = 16 << 20;

/// The changes after `oldest`, in order and without a gap.
#[derive(Debug, Default)]
pub(super) struct Recent {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    oldest: Revision,
}

/// The bytes of values an event holds; a value that is both new and, in the next event, previous is counted twice.
fn bytes(event: &Event) -> usize {
    match &event.change {
        Change::Put { entry, previous } => entry.value.len() + previous.as_ref().map_or(0, |entry| entry.value.len()),
        Change::Delete { previous } => previous.value.len(),
    }
}

impl Recent {
    /// Adds a change later than all others.
    pub(super) fn push(&mut self, event: Arc<Event>) {
        self.bytes += bytes(&event);
        self.events.push_back(event);
        while self.events.len() > EVENTS_MAX || self.bytes > BYTES_MAX {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.bytes -= bytes(&event);
            self.oldest = event.revision;
        }
    }

    /// Gives up the changes up to `revision`.
    pub(super) fn forget(&mut self, revision: Revision) {
        while self.events.front().is_some_and(|event| event.revision <= revision) {
            self.pop();
        }
        self.oldest = self.oldest.max(revision);
    }

    /// Begins anew: nothing up to `revision` is known.
    pub(super) fn reset(&mut self, revision: Revision) {
        *self = Self { oldest: revision, ..Self::default() };
    }

    /// The changes of `prefix` after `from`, up to `through`; or the oldest revision that can be asked for.
    pub(super) fn after(
        &self,
        prefix: &str,
        from: Revision,
        through: Revision,
    ) -> Result<VecDeque<Arc<Event>>, Revision> {
        if from < self.oldest {
            return Err(self.oldest);
        }
        let start = self.events.partition_point(|event| event.revision <= from);
        let wanted = self.events.range(start..).take_while(|event| event.revision <= through);
        Ok(wanted.filter(|event| event.key().starts_with(prefix)).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Entry;

    fn event(key: &str, revision: Revision, bytes: usize) -> Arc<Event> {
        let value = vec![0; bytes].into();
        let entry = Entry { key: key.into(), value, create_revision: revision, mod_revision: revision };
        Arc::new(Event { revision, change: Change::Put { entry, previous: None } })
    }

    fn revisions(found: &VecDeque<Arc<Event>>) -> Vec<Revision> {
        found.iter().map(|event| event.revision).collect()
    }

    #[test]
    fn what_is_kept_is_whole_and_what_is_not_is_refused() {
        let mut recent = Recent::default();
        recent.reset(10);
        for revision in [12, 13, 15, 20] {
            recent.push(event(if revision == 13 { "/b" } else { "/a" }, revision, 1));
        }
        assert_eq!(revisions(&recent.after("/", 10, 15).unwrap()), [12, 13, 15]);
        assert_eq!(revisions(&recent.after("/a", 12, 99).unwrap()), [15, 20]);
        assert_eq!(recent.after("/", 9, 99), Err(10));
        recent.forget(14);
        assert_eq!(recent.after("/", 13, 99), Err(14));
        assert_eq!(revisions(&recent.after("/", 14, 99).unwrap()), [15, 20]);
    }

    #[test]
    fn it_does_not_grow_beyond_its_limits() {
        let mut recent = Recent::default();
        for revision in 1..10_000 {
            recent.push(event("/a", revision, 1));
        }
        assert_eq!((recent.events.len(), recent.oldest), (EVENTS_MAX, 9999 - EVENTS_MAX as u64));
        for revision in 10_000..10_100 {
            recent.push(event("/a", revision, 1 << 20));
        }
        assert!(recent.events.len() < 17 && recent.bytes <= BYTES_MAX);
    }
}
