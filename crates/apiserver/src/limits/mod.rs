//! How much may happen at once, and who is next.
//!
//! Requests that change something and requests that only read have their own places, and the parts of the cluster (nodes,
//! controllers, scheduler) have places that nobody else can take: no crowd keeps heartbeats out. Within each, users take
//! turns ([`pool`]). Watches and streams are long and cheap and have places of their own. Bodies are read before a place
//! is taken, so that a slow sender holds up nobody, and each piece must come in time.
//!
//! What is over a limit is answered with 429 and `Retry-After`, and never queued without bound.

mod connections;
mod pool;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use mainstay_model::status::ApiError;
use tokio::time::{Instant, timeout_at};

pub(crate) use connections::Connections;
use pool::Pool;
pub(crate) use pool::Seat;

use crate::authn::{NODES, User};
use crate::reply::BodyError;
use crate::request::Verb;

/// Largest request body, in bytes: 3 MiB as in kube-apiserver.
pub(crate) const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Largest head of a request, in bytes.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Time for a TLS handshake and for the head of a request.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Deepest nesting of objects that are stored. (What is read at all may be a little deeper.)
pub(crate) const DEPTH_MAX: usize = 100;
/// The longest a request waits for a place.
const WAIT_MAX: Duration = Duration::from_secs(15);
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// The places there are.
pub(crate) struct Limits {
    reads: Arc<Pool>,
    writes: Arc<Pool>,
    system_reads: Arc<Pool>,
    system_writes: Arc<Pool>,
    watches: Arc<Pool>,
    streams: Arc<Pool>,
    bodies: Arc<Pool>,
    /// Time between two pieces of a body, and for all of it.
    piece_timeout: Duration,
    body_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        // Places, of which one user takes so many at most, and as many as may wait for each user.
        let pool = |seats, share, waiting| Arc::new(Pool::new(seats, share, waiting, WAIT_MAX));
        Self {
            reads: pool(400, 300, 400),
            writes: pool(400, 300, 400),
            system_reads: pool(400, 300, 400),
            system_writes: pool(400, 300, 400),
            watches: pool(20_000, 15_000, 0),
            streams: pool(2_000, 1_500, 0),
            bodies: pool(400, 200, 400),
            piece_timeout: PIECE_TIMEOUT,
            body_timeout: BODY_TIMEOUT,
        }
    }
}

impl Limits {
    /// A place for a request, held until it is answered.
    ///
    /// # Errors
    /// 429 when there is none in time.
    pub(crate) async fn enter(&self, verb: Verb, user: &User) -> Result<Seat, ApiError> {
        let pool = match (verb, is_system(user)) {
            (Verb::Watch, _) => &self.watches,
            (verb, true) if verb.mutates() => &self.system_writes,
            (_, true) => &self.system_reads,
            (verb, false) if verb.mutates() => &self.writes,
            _ => &self.reads,
        };
        pool.enter(&user.name).await
    }

    /// A place for a request that somebody else answers, held until all of the answer has flowed.
    ///
    /// # Errors
    /// 429 when all places are taken.
    pub(crate) async fn enter_stream(&self, user: &User) -> Result<Seat, ApiError> {
        self.streams.enter(&user.name).await
    }

    /// Reads a body.
    ///
    /// # Errors
    /// 413 when it is too large, 408 when it does not come in time, 400 when it breaks off.
    pub(crate) async fn read_body<B>(&self, body: B, user: &User) -> Result<Bytes, ApiError>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        if body.is_end_stream() {
            return Ok(Bytes::new());
        }
        let _seat = self.bodies.enter(&user.name).await?;
        let mut body = std::pin::pin!(Limited::new(body, BODY_BYTES_MAX));
        let (mut all, end) = (Vec::new(), Instant::now() + self.body_timeout);
        loop {
            let piece = timeout_at(end.min(Instant::now() + self.piece_timeout), body.frame()).await;
            match piece.map_err(|_| too_slow())? {
                None => return Ok(Bytes::from(all)),
                Some(Ok(frame)) => {
                    // A body that comes in one piece, as most do, is not copied.
                    let Ok(data) = frame.into_data() else { continue };
                    if all.is_empty() && body.is_end_stream() {
                        return Ok(data);
                    }
                    all.extend_from_slice(&data);
                }
                Some(Err(error)) if error.is::<LengthLimitError>() => return Err(ApiError::too_large(BODY_BYTES_MAX)),
                Some(Err(error)) => return Err(ApiError::bad_request(format!("reading the request body: {error}"))),
            }
        }
    }

    /// How many requests are answered now: reading, writing, watches, streams.
    pub(crate) fn in_flight(&self) -> [usize; 4] {
        [
            self.reads.taken() + self.system_reads.taken(),
            self.writes.taken() + self.system_writes.taken(),
            self.watches.taken(),
            self.streams.taken(),
        ]
    }
}

fn too_slow() -> ApiError {
    ApiError::new(408, "Timeout", "the request's body did not arrive in time")
}

/// The parts of the cluster itself.
fn is_system(user: &User) -> bool {
    user.is_in(NODES) || user.name.starts_with("system:kube-") || user.name == "system:apiserver"
}
