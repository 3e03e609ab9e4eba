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
enum End {
    Slow,
    Compacted { oldest: Revision },
    Closed,
}

/// All watchers of one store.
#[derive(Debug, Default)]
pub(crate) struct Hub {
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
    /// The watch wants what comes after this revision.
    from: Revision,
    events: mpsc::Sender<Arc<Event>>,
    end: Arc<OnceLock<End>>,
}

/// The receiving end of one watcher. Dropping it ends the subscription.
#[derive(Debug)]
pub(crate) struct Subscription {
    hub: Arc<Hub>,
    id: u64,
    pub(crate) prefix: Box<str>,
    pub(crate) events: mpsc::Receiver<Arc<Event>>,
    end: Arc<OnceLock<End>>,
    /// Every event after this revision comes through `events`; none before does.
    pub(crate) since: Revision,
}

impl Subscription {
    /// Why `events` has ended.
    pub(crate) fn end(&self) -> WatchError {
        match self.end.get() {
            Some(End::Slow) => WatchError::Slow { buffered_max: self.events.max_capacity() },
            Some(End::Compacted { oldest }) => WatchError::Compacted { oldest: *oldest },
            Some(End::Closed) | None => WatchError::Closed,
        }
    }

    /// The revision up to which every event is in `events` or was taken from it.
    pub(crate) fn published(&self) -> Revision {
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
    pub(crate) fn published(&self) -> Revision {
        self.published.load(Ordering::Acquire)
    }

    /// Says that there are no more events up to `revision`.
    pub(crate) fn advance(&self, revision: Revision) {
        self.published.fetch_max(revision, Ordering::AcqRel);
    }

    /// Starts a subscription to all later events of `prefix`, for a watch that wants what comes after `from`.
    pub(crate) fn subscribe(self: &Arc<Self>, prefix: &str, from: Revision, buffer_max: usize) -> Subscription {
        let (sender, events) = mpsc::channel(buffer_max);
        let end = Arc::new(OnceLock::new());
        let mut groups = self.lock();
        let id = groups.next_id;
        groups.next_id += 1;
        if !groups.closed {
            groups.add(prefix, Sender { id, from, events: sender, end: Arc::clone(&end) });
        }
        Subscription { hub: Arc::clone(self), id, prefix: prefix.into(), events, end, since: self.published() }
    }

    /// Hands `events`, which must be in order, to their watchers.
    pub(crate) fn publish(&self, events: &[Arc<Event>]) {
        let mut groups = self.lock();
        for event in events {
            groups.deliver(event);
        }
        // Within the lock: a new subscription either gets these events or knows that they are in the past.
        if let Some(last) = events.last() {
            self.advance(last.revision);
        }
    }

    /// Ends all subscriptions, for good.
    pub(crate) fn close(&self) {
        let mut groups = self.lock();
        groups.closed = true;
        groups.end(End::Closed, |_| true);
    }

    /// Ends the subscriptions of watches that want something before `oldest`, where not everything is known any more.
    pub(crate) fn compacted(&self, oldest: Revision) {
        self.lock().end(End::Compacted { oldest }, |sender| sender.from < oldest);
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

    fn end(&mut self, end: End, which: impl Fn(&Sender) -> bool) {
        let mut emptied = Vec::new();
        for (prefix, group) in &mut self.by_prefix {
            for sender in group.extract_if(.., |sender| which(sender)) {
                let _ = sender.end.set(end);
            }
            if group.is_empty() {
                emptied.push(prefix.clone());
            }
        }
        for prefix in emptied {
            self.forget(&prefix);
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
        let mut every = hub.subscribe("", 1, 8);
        let mut pods = hub.subscribe("/pods/", 1, 8);
        let mut nodes = hub.subscribe("/nodes/", 1, 8);
        let mut half = hub.subscribe("/pods/ä", 1, 8);
        hub.publish(&[event("/pods/ä", 2), event("/pods/ö", 3), event("/p", 4)]);
        let taken = |subscription: &mut Subscription| {
            std::iter::from_fn(|| subscription.events.try_recv().ok()).map(|event| event.revision).collect::<Vec<_>>()
        };
        assert_eq!(taken(&mut every), [2, 3, 4]);
        assert_eq!(taken(&mut pods), [2, 3]);
        assert_eq!(taken(&mut half), [2]);
        assert!(taken(&mut nodes).is_empty());
        assert_eq!(hub.published(), 4);
        drop((every, pods, nodes, half));
        assert!(hub.lock().by_prefix.is_empty() && hub.lock().lengths.is_empty());
    }

    #[test]
    fn only_who_wants_what_is_lost_is_ended() {
        let hub = Arc::new(Hub::default());
        let mut early = hub.subscribe("/", 1, 8);
        let mut late = hub.subscribe("/", 5, 8);
        hub.compacted(5);
        assert!(matches!(early.events.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
        assert!(matches!(early.end(), WatchError::Compacted { oldest: 5 }));
        hub.publish(&[event("/a", 6)]);
        assert_eq!(late.events.try_recv().unwrap().revision, 6);
        hub.close();
        assert!(matches!(late.end(), WatchError::Closed));
        assert!(hub.lock().by_prefix.is_empty() && hub.lock().lengths.is_empty());
    }

    #[test]
    fn a_full_buffer_ends_its_watcher_only() {
        let hub = Arc::new(Hub::default());
        let mut slow = hub.subscribe("/", 1, 2);
        let mut fast = hub.subscribe("/", 1, 8);
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
