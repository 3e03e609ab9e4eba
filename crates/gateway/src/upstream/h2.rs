//! HTTP/2 to an endpoint: one connection per core carries many requests.

use bytes::Bytes;
use http_body_util::Either;
use http_body_util::{Empty, Full};
use hyper::client::conn::http2;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::time::Duration;

use crate::body::ClientBody;
use crate::io::Io;

/// A request's body on an HTTP/2 connection.
pub(crate) type Http2Body = Either<Full<Bytes>, Either<Empty<Bytes>, ClientBody>>;

/// Sends requests on a shared connection.
pub(crate) type Http2Sender = http2::SendRequest<Http2Body>;

/// Runs tasks on the core they were made on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalExecutor;

impl<F: Future + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move { drop(task.await) });
    }
}

/// Opens an HTTP/2 connection on a stream.
///
/// # Errors
/// The endpoint does not speak HTTP/2.
pub(crate) async fn handshake(io: Io) -> Result<Http2Sender, hyper::Error> {
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .max_concurrent_reset_streams(64)
        // A connection that is silent is asked; one that does not answer is dropped, and its requests are tried elsewhere.
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(5));
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "an HTTP/2 connection to an endpoint ended");
        }
    });
    Ok(sender)
}
