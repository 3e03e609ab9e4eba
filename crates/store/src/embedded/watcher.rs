//! A watch of the embedded store: first the past from the file, then the present from the hub.
//!
//! The subscription stands before the past is read, so nothing falls between the two. The past is read in steps, each in
//! a transaction of its own: a watcher that nobody polls holds no old pages of the file, but may find its past compacted.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::task::JoinHandle;

use super::Core;
use super::tables::Chunk;
use crate::hub::Subscription;
use crate::tail::Tail;
use crate::{Error, Event, Result, Revision, WatchError, WatchSource};

/// The source behind a [`crate::Watcher`].
pub(super) struct Source {
    core: Arc<Core>,
    tail: Tail,
    /// Every event up to this revision was returned or is in `past`.
    read_through: Revision,
    past: VecDeque<Arc<Event>>,
    reading: Option<JoinHandle<Result<Chunk>>>,
}

impl Source {
    pub(super) fn new(core: Arc<Core>, subscription: Subscription, from: Revision) -> Self {
        let tail = Tail::new(subscription, from);
        Self { core, tail, read_through: from, past: VecDeque::new(), reading: None }
    }

    fn read_past(&self) -> JoinHandle<Result<Chunk>> {
        let core = Arc::clone(&self.core);
        let prefix = self.tail.prefix().to_owned();
        let (from, through) = (self.read_through, self.tail.since());
        tokio::task::spawn_blocking(move || {
            core.read("read past events", |snapshot| snapshot.events(&prefix, from, through))
        })
    }
}

impl WatchSource for Source {
    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Arc<Event>, WatchError>>> {
        // The past, as far as the subscription does not reach back.
        loop {
            if let Some(event) = self.past.pop_front() {
                return self.tail.returned(event);
            }
            if self.read_through >= self.tail.since() {
                break;
            }
            if self.reading.is_none() {
                self.reading = Some(self.read_past());
            }
            let Some(reading) = &mut self.reading else { break };
            let chunk = ready!(Pin::new(reading).poll(context));
            self.reading = None;
            match chunk {
                Ok(Ok(chunk)) => {
                    self.past = chunk.events.into();
                    self.read_through = chunk.through;
                }
                Ok(Err(Error::Compacted { oldest })) => {
                    return Poll::Ready(Some(Err(WatchError::Compacted { oldest })));
                }
                Ok(Err(Error::Closed)) | Err(_) => return Poll::Ready(Some(Err(WatchError::Closed))),
                Ok(Err(error)) => return Poll::Ready(Some(Err(WatchError::Read(error)))),
            }
        }
        self.tail.poll_event(context, self.read_through)
    }

    fn progress(&self) -> Revision {
        self.tail.progress()
    }
}
