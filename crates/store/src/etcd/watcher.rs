//! A watch of the store in etcd: first what of the past is in memory, then the present from the hub.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::hub::Subscription;
use crate::tail::Tail;
use crate::{Event, Revision, WatchError, WatchSource};

/// The source behind a [`crate::Watcher`].
pub(super) struct Source {
    past: VecDeque<Arc<Event>>,
    /// Every event up to this revision is or was in `past`, or is not wanted.
    read_through: Revision,
    tail: Tail,
}

impl Source {
    pub(super) fn new(subscription: Subscription, past: VecDeque<Arc<Event>>, from: Revision) -> Self {
        let tail = Tail::new(subscription, from);
        Self { past, read_through: from.max(tail.since()), tail }
    }
}

impl WatchSource for Source {
    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Arc<Event>, WatchError>>> {
        match self.past.pop_front() {
            Some(event) => self.tail.returned(event),
            None => self.tail.poll_event(context, self.read_through),
        }
    }

    fn progress(&self) -> Revision {
        self.tail.progress()
    }
}
