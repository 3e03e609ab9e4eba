//! Who watches what: the hub between the writer and the watchers.
//!
//! One change is one shared `Arc<Event>`. Watchers are indexed by the first two parts of their prefix (the resource), so
//! a change wakes only those that may care.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::{Event, Revision};

/// Events a watcher may be behind before it is cut off.
const BUFFER: usize = 8192;

/// Why a watch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The watcher read more slowly than changes came.
    #[error("the watcher fell more than {BUFFER} events behind")]
    Slow,
}

/// A running watch.
pub struct Watcher {
    backlog: VecDeque<Arc<Event>>,
    events: mpsc::Receiver<Arc<Event>>,
}

impl Watcher {
    /// The next change, in revision order.
    ///
    /// # Errors
    /// [`WatchError::Slow`] when events were lost; the watch is over.
    pub async fn next(&mut self) -> Result<Arc<Event>, WatchError> {
        match self.backlog.pop_front() {
            Some(event) => Ok(event),
            None => self.events.recv().await.ok_or(WatchError::Slow),
        }
    }
}

struct Listener {
    prefix: String,
    events: mpsc::Sender<Arc<Event>>,
}

#[derive(Default)]
struct Listeners {
    by_resource: HashMap<String, Vec<Listener>>,
    /// The last change that was told.
    told: Revision,
}

/// The hub; the writer publishes, watchers register.
pub(crate) struct Hub(Mutex<Listeners>);

impl Hub {
    pub(crate) fn new(revision: Revision) -> Self {
        Self(Mutex::new(Listeners { told: revision, ..Listeners::default() }))
    }

    /// Tells all listeners about committed changes. One that is full is dropped and thereby learns that it was slow.
    pub(crate) fn publish(&self, events: Vec<Event>) {
        let mut listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            listeners.told = event.revision;
            let event = Arc::new(event);
            if let Some(group) = listeners.by_resource.get_mut(resource_of(&event.key)) {
                group.retain(|l| !event.key.starts_with(&l.prefix) || l.events.try_send(event.clone()).is_ok());
            }
        }
    }

    /// A new listener, and the last revision told before it: what came up to there must be read from the log.
    pub(crate) fn listen(&self, prefix: &str) -> (mpsc::Receiver<Arc<Event>>, Revision) {
        let (sender, receiver) = mpsc::channel(BUFFER);
        let mut listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let group = listeners.by_resource.entry(resource_of(prefix).to_owned()).or_default();
        group.retain(|listener| !listener.events.is_closed());
        group.push(Listener { prefix: prefix.to_owned(), events: sender });
        (receiver, listeners.told)
    }
}

pub(crate) fn watcher(backlog: VecDeque<Arc<Event>>, events: mpsc::Receiver<Arc<Event>>) -> Watcher {
    Watcher { backlog, events }
}

/// `/core/pods/` of `/core/pods/shop/front`: the part by which listeners are indexed. Every prefix watched has both parts.
fn resource_of(key: &str) -> &str {
    let end = key.match_indices('/').nth(2).map_or(key.len(), |(at, _)| at + 1);
    &key[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_indexed_by_resource() {
        assert_eq!(resource_of("/core/pods/shop/front"), "/core/pods/");
        assert_eq!(resource_of("/core/pods/"), "/core/pods/");
        assert_eq!(resource_of("/core/nodes/n"), "/core/nodes/");
    }
}
