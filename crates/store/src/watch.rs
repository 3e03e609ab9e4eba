//! The receiving end of a watch.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;

use crate::{Event, Revision, WatchError};

/// What an implementation of [`Store`](crate::Store) provides behind a [`Watcher`].
pub trait WatchSource: Send {
    /// The next event, as [`Stream::poll_next`].
    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Arc<Event>, WatchError>>>;

    /// See [`Watcher::progress`].
    fn progress(&self) -> Revision;
}

/// A stream of the changes under one prefix, in order of revision, without gap or duplicate.
///
/// It ends only with an error (its last item) that says why. Dropping it ends the watch.
pub struct Watcher {
    source: Box<dyn WatchSource>,
    ended: bool,
}

impl Watcher {
    /// Wraps an implementation's source.
    pub fn new(source: impl WatchSource + 'static) -> Self {
        Self { source: Box::new(source), ended: false }
    }

    /// The next change; `None` after an error ended the watch.
    ///
    /// Cancel-safe: an event is either returned or still to come.
    pub async fn next(&mut self) -> Option<Result<Arc<Event>, WatchError>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// The revision up to which this watcher has returned every change of its prefix: what a Kubernetes bookmark says.
    ///
    /// It moves with the events, and beyond them whenever [`next`](Watcher::next) finds that there is nothing to return.
    pub fn progress(&self) -> Revision {
        self.source.progress()
    }
}

impl Stream for Watcher {
    type Item = Result<Arc<Event>, WatchError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = self.source.poll_event(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.ended = true;
        }
        polled
    }
}
