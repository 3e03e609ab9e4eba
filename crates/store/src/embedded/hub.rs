//! Fan-out: from one change to all watchers of its key.
//!
//! Watchers are grouped by prefix, and an event looks up only those of its key's prefixes that are as long as some
//! watched prefix: a change costs as much as it has watchers, however many others there are. Events are shared, not
//! copied. A watcher whose buffer is full is ended, so nobody waits for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::mpsc;

use crate::{Event, Revision, WatchError};

/// Why the hub ended a subscription.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Slow,
    Compacted { oldest: Revision },
    Closed,
}

/// All watchers of one store.
#[derive(Debug, Default)]
pub(super) struct Hub {
    groups: Mutex<Groups>,
    published: AtomicU64,
}

#[derive(Debug, Default)]
struct Groups {
    /// By prefix; each group in ascending order of id.
    by_prefix: HashMap<Box<str>, Vec<Sender>>,
    /// How many groups have a prefix of this length.
    lengths: BTreeMap<usize, usize>,
    next_id: u64,
    closed: bool,
}

#[derive(Debug)]
struct Sender {
    id: u64,
    events: mpsc::Sender<Arc<Event>>,
    end: Arc<OnceLock<End>>,
}

/// The receiving end of one watcher. Dropping it ends the subscription.
#[derive(Debug)]
pub(super) struct Subscription {
    hub: Arc<Hub>,
    id: u64,
    pub(super) prefix: Box<str>,
    pub(super) events: mpsc::Receiver<Arc<Event>>,
    end: Arc<OnceLock<End>>,
    /// Every event after this revision comes through `events`; none before does.
    pub(super) since: Revision,
}

impl Subscription {
    /// Why `events` has ended.
    pub(super) fn end(&self) -> WatchError {
        match self.end.get() {
            Some(End::Slow) => WatchError::Slow { buffered_max: self.events.max_capacity() },
            Some(End::Compacted { oldest }) => WatchError::Compacted { oldest: *oldest },
            Some(End::Closed) | None => WatchError::Closed,
        }
    }

    /// The revision up to which every event is in `events` or was taken from it.
    pub(super) fn published(&self) -> Revision {
        self.hub.published()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.lock().remove(&self.prefix, self.id);
    }
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The revision up to which every event has been put into the buffers of its watchers.
    pub(super) fn published(&self) -> Revision {
        self.published.load(Ordering::Acquire)
    }

    /// Says that there are no more events up to `revision`.
    pub(super) fn advance(&self, revision: Revision) {
        self.published.fetch_max(revision, Ordering::AcqRel);
    }

    /// Starts a subscription to all later events of `prefix`.
    pub(super) fn subscribe(self: &Arc<Self>, prefix: &str, buffer_max: usize) -> Subscription {
        let (sender, events) = mpsc::channel(buffer_max);
        let end = Arc::new(OnceLock::new());
        let mut groups = self.lock();
        let id = groups.next_id;
        groups.next_id += 1;
        if !groups.closed {
            groups.add(prefix, Sender { id, events: sender, end: Arc::clone(&end) });
        }
        Subscription { hub: Arc::clone(self), id, prefix: prefix.into(), events, end, since: self.published() }
    }

    /// Hands `events`, which must be in order, to their watchers.
    pub(super) fn publish(&self, events: &[Arc<Event>]) {
        let mut groups = self.lock();
        for event in events {
            groups.deliver(event);
        }
        // Within the lock: a new subscription either gets these events or knows that they are in the past.
        if let Some(last) = events.last() {
            self.advance(last.revision);
        }
    }

    /// Ends all subscriptions.
    pub(super) fn end_all(&self, end: End) {
        let mut groups = self.lock();
        groups.closed |= matches!(end, End::Closed);
        groups.lengths.clear();
        for sender in groups.by_prefix.drain().flat_map(|(_, group)| group) {
            let _ = sender.end.set(end);
        }
    }
}

impl Groups {
    fn add(&mut self, prefix: &str, sender: Sender) {
        if let Some(group) = self.by_prefix.get_mut(prefix) {
            group.push(sender);
        } else {
            self.by_prefix.insert(prefix.into(), vec![sender]);
            *self.lengths.entry(prefix.len()).or_default() += 1;
        }
    }

    fn remove(&mut self, prefix: &str, id: u64) {
        let Some(group) = self.by_prefix.get_mut(prefix) else { return };
        if let Ok(place) = group.binary_search_by_key(&id, |sender| sender.id) {
            group.remove(place);
        }
        if group.is_empty() {
            self.forget(prefix);
        }
    }

    fn forget(&mut self, prefix: &str) {
        self.by_prefix.remove(prefix);
        if let Some(groups) = self.lengths.get_mut(&prefix.len()) {
            *groups -= 1;
            if *groups == 0 {
                self.lengths.remove(&prefix.len());
            }
        }
    }

    fn deliver(&mut self, event: &Arc<Event>) {
        let mut emptied = Vec::new();
        for length in self.lengths.keys() {
            let Some(prefix) = event.key().get(..*length) else { continue };
            let Some(group) = self.by_prefix.get_mut(prefix) else { continue };
            group.retain(|sender| match sender.events.try_send(Arc::clone(event)) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    let _ = sender.end.set(End::Slow);
                    false
                }
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            });
            if group.is_empty() {
                emptied.push(*length);
            }
        }
        for length in emptied {
            self.forget(&event.key()[..length]);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::*;
    use crate::{Change, Entry};

    fn event(key: &str, revision: Revision) -> Arc<Event> {
        let entry = Entry { key: key.into(), value: Bytes::new(), create_revision: revision, mod_revision: revision };
        Arc::new(Event { revision, change: Change::Put { entry, previous: None } })
    }

    #[test]
    fn only_watchers_of_the_key_get_the_event() {
        let hub = Arc::new(Hub::default());
        let mut every = hub.subscribe("", 8);
        let mut pods = hub.subscribe("/pods/", 8);
        let mut nodes = hub.subscribe("/nodes/", 8);
        let mut half = hub.subscribe("/pods/ä", 8);
        hub.publish(&[event("/pods/ä", 2), event("/pods/ö", 3), event("/p", 4)]);
        let taken = |subscription: &mut Subscription| {
            std::iter::from_fn(|| subscription.events.try_recv().ok()).map(|event| event.revision).collect::<Vec<_>>()
        };
        assert_eq!(taken(&mut every), [2, 3, 4]);
        assert_eq!(taken(&mut pods), [2, 3]);
        assert_eq!(taken(&mut half), [2]);
        assert_eq!(taken(&mut nodes), []);
        assert_eq!(hub.published(), 4);
        drop((every, pods, nodes, half));
        assert!(hub.lock().by_prefix.is_empty() && hub.lock().lengths.is_empty());
    }

    #[test]
    fn a_full_buffer_ends_its_watcher_only() {
        let hub = Arc::new(Hub::default());
        let mut slow = hub.subscribe("/", 2);
        let mut fast = hub.subscribe("/", 8);
        for revision in 2..6 {
            hub.publish(&[event("/a", revision)]);
        }
        assert_eq!(slow.events.try_recv().unwrap().revision, 2);
        assert_eq!(slow.events.try_recv().unwrap().revision, 3);
        assert!(matches!(slow.events.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
        assert!(matches!(slow.end(), WatchError::Slow { buffered_max: 2 }));
        assert_eq!(fast.events.len(), 4);
        fast.events.close();
        hub.publish(&[event("/a", 6)]);
        assert!(hub.lock().by_prefix.is_empty());
    }
}
