//! The present of a watch: what the hub delivers, behind what was read from the past.

use std::sync::Arc;
use std::task::{Context, Poll};

use crate::hub::Subscription;
use crate::{Event, Revision, WatchError};

/// The receiving end of a watch that has its past.
#[derive(Debug)]
pub(crate) struct Tail {
    subscription: Subscription,
    progress: Revision,
}

impl Tail {
    /// Goes on after revision `from`.
    pub(crate) fn new(subscription: Subscription, from: Revision) -> Self {
        Self { subscription, progress: from }
    }

    /// Every event after this revision is delivered by [`Tail::poll_event`].
    pub(crate) fn since(&self) -> Revision {
        self.subscription.since
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.subscription.prefix
    }

    /// Notes an event of the past that the watch returns, and wraps it.
    pub(crate) fn returned(&mut self, event: Arc<Event>) -> Poll<Option<Result<Arc<Event>, WatchError>>> {
        self.progress = event.revision;
        Poll::Ready(Some(Ok(event)))
    }

    /// The next event of the present; all of the past, up to `read_through`, must have been returned.
    pub(crate) fn poll_event(
        &mut self,
        context: &mut Context<'_>,
        read_through: Revision,
    ) -> Poll<Option<Result<Arc<Event>, WatchError>>> {
        let published = self.subscription.published();
        loop {
            return match self.subscription.events.poll_recv(context) {
                // The watch began at a revision that was committed but not yet published.
                Poll::Ready(Some(event)) if event.revision <= read_through => continue,
                Poll::Ready(Some(event)) => self.returned(event),
                Poll::Ready(None) => Poll::Ready(Some(Err(self.subscription.end()))),
                Poll::Pending => {
                    // tokio also says Pending to a task that used up its turn: only an empty buffer is progress. (Empty
                    // before closed: it closes when it is full.)
                    let events = &self.subscription.events;
                    if events.is_empty() && !events.is_closed() {
                        self.progress = self.progress.max(published);
                    }
                    Poll::Pending
                }
            };
        }
    }

    /// See [`crate::Watcher::progress`].
    pub(crate) fn progress(&self) -> Revision {
        self.progress
    }
}
