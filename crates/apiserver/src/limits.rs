//! How much may happen at once.
//!
//! Requests that change something and requests that only read have their own share, so that a crowd of readers cannot
//! keep heartbeats out. Watches are long and cheap and have a share of their own. Over the limit the answer is 429.

use std::sync::Arc;

use mainstay_model::status::ApiError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::request::Verb;

/// Largest request body, in bytes: 3 MiB as in kube-apiserver.
pub(crate) const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Open TLS connections.
pub(crate) const CONNECTIONS_MAX: usize = 10_000;
/// Time for a TLS handshake and for the head of a request.
pub(crate) const HEAD_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

const READS_MAX: usize = 400;
const WRITES_MAX: usize = 400;
const WATCHES_MAX: usize = 20_000;
/// Requests that somebody else answers: logs, commands, ports, programs.
const STREAMS_MAX: usize = 2_000;

pub(crate) struct Limits {
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl Default for Limits {
    fn default() -> Self {
        let share = |places| Arc::new(Semaphore::new(places));
        Self {
            reads: share(READS_MAX),
            writes: share(WRITES_MAX),
            watches: share(WATCHES_MAX),
            streams: share(STREAMS_MAX),
        }
    }
}

impl Limits {
    /// A place for a request, held until it is answered.
    ///
    /// # Errors
    /// 429 when all places are taken.
    pub(crate) fn enter(&self, verb: Verb) -> Result<OwnedSemaphorePermit, ApiError> {
        let share = match verb {
            Verb::Watch => &self.watches,
            verb if verb.mutates() => &self.writes,
            _ => &self.reads,
        };
        take(share)
    }

    /// A place for a request that somebody else answers, held until all of the answer has flowed.
    ///
    /// # Errors
    /// 429 when all places are taken.
    pub(crate) fn enter_stream(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        take(&self.streams)
    }
}

fn take(share: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ApiError> {
    let full = |_| ApiError::too_many_requests("too many requests at once, please try again later", 1);
    share.clone().try_acquire_owned().map_err(full)
}
