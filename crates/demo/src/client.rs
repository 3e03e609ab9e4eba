//! Asking another service: one GET, with a time limit, tried up to four times.
//!
//! Every try opens a connection of its own. That costs a round trip inside one machine and buys two things: each
//! request goes to a freshly chosen pod, and no idle connection to a dead pod is ever used. A GET may be repeated, so
//! a try that fails in any way is made again, after a pause: behind one address the next try may meet the same dead
//! pod, until somebody has noticed that it is dead. The tries together outlast that for a pod that was killed.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::address::{Address, AddressError};

/// How long a connection may take; on one machine it takes well under a millisecond, or the pod is gone.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(250);
/// How long one whole try may take.
const TRY_TIMEOUT: Duration = Duration::from_secs(1);
/// Before each further try.
const PAUSES: [Duration; 3] = [Duration::from_millis(25), Duration::from_millis(75), Duration::from_millis(200)];
/// Largest answer taken, in bytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// The step of the last try that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error(transparent)]
    Resolve(#[from] AddressError),
    #[error("no connection within {CONNECT_TIMEOUT:?}")]
    ConnectTimeout,
    #[error("cannot connect: {0}")]
    Connect(#[source] std::io::Error),
    #[error("no answer within {TRY_TIMEOUT:?}")]
    AnswerTimeout,
    #[error("broken off: {0}")]
    Exchange(#[source] hyper::Error),
    #[error("the answer could not be read: {0}")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{0}")]
    Status(StatusCode),
    #[error("the answer is not the JSON expected: {0}")]
    Json(#[from] serde_json::Error),
}

/// The JSON at `path` of the service at `address`.
pub(crate) async fn get_json(address: &Address, path: &str) -> Result<serde_json::Value, ClientError> {
    let mut pauses = PAUSES.into_iter();
    loop {
        let outcome = timeout(TRY_TIMEOUT, one_try(address, path)).await.unwrap_or(Err(ClientError::AnswerTimeout));
        match (outcome, pauses.next()) {
            (Ok(body), _) => return Ok(serde_json::from_slice(&body)?),
            (Err(_), Some(pause)) => tokio::time::sleep(pause).await,
            (Err(error), None) => return Err(error),
        }
    }
}

async fn one_try(address: &Address, path: &str) -> Result<Bytes, ClientError> {
    let target = address.resolve().await?;
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(target))
        .await
        .map_err(|_| ClientError::ConnectTimeout)?
        .map_err(ClientError::Connect)?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::Exchange)?;
    // The connection ends by itself once the sender is dropped, at the latest with the try's time limit.
    tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = path.parse().unwrap_or_default();
    if let Ok(host) = address.host().parse() {
        request.headers_mut().insert(header::HOST, host);
    }
    let answer = sender.send_request(request).await.map_err(ClientError::Exchange)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(ClientError::Body)?;
    if status.is_success() { Ok(body.to_bytes()) } else { Err(ClientError::Status(status)) }
}
