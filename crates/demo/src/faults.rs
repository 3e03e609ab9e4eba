//! What only `demo server` does: crash, hang, eat memory, and echo.
//!
//! Each fault is the real thing, not an imitation: a crash ends the process without draining, a hang stops the only
//! thread so that nothing is answered any more (SIGTERM included), and memory is really touched, so that the kernel's
//! out-of-memory killer acts when the container's limit is passed.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, StatusCode};
use serde_json::json;

use crate::endpoints::query_number;
use crate::reply::{self, Reply};

/// Largest body `/echo` takes, in bytes.
const ECHO_BYTES_MAX: usize = 1 << 20;
/// Most memory `/memory` holds, in MiB. Above any limit a test sets, below what could surprise the machine.
const MEMORY_MIB_MAX: u64 = 4096;

/// Memory held on request, so that it counts against the container's limit.
#[derive(Debug, Default)]
pub(crate) struct Ballast(Mutex<Vec<u8>>);

impl Ballast {
    /// Holds exactly `mib` MiB from now on, every page written to. 0 releases all of it.
    fn hold(&self, mib: u64) -> Result<(), std::collections::TryReserveError> {
        let bytes = (mib as usize) << 20;
        let mut held = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *held = Vec::new(); // let go of the old before asking for the new, so that the peak is the larger of the two
        held.try_reserve_exact(bytes)?;
        held.resize(bytes, 1);
        Ok(())
    }
}

/// Answers the test server's own paths.
pub(crate) async fn answer(ballast: &Ballast, request: Request<Incoming>) -> Reply {
    match (request.method(), request.uri().path()) {
        (_, "/crash") => match query_number(request.uri(), "code", 1, 255) {
            Ok(code) => std::process::exit(code as i32),
            Err(reason) => reply::text(StatusCode::BAD_REQUEST, reason),
        },
        (_, "/hang") => match query_number(request.uri(), "seconds", 0, u64::from(u32::MAX)) {
            Ok(seconds) => hang(seconds),
            Err(reason) => reply::text(StatusCode::BAD_REQUEST, reason),
        },
        (_, "/memory") => match query_number(request.uri(), "mib", 0, MEMORY_MIB_MAX) {
            Ok(mib) => match ballast.hold(mib) {
                Ok(()) => reply::text(StatusCode::OK, format_args!("holding {mib} MiB")),
                Err(error) => reply::text(StatusCode::INSUFFICIENT_STORAGE, error),
            },
            Err(reason) => reply::text(StatusCode::BAD_REQUEST, reason),
        },
        (&Method::GET, "/echo") => echo_head(&request),
        (_, "/echo") => echo_body(request).await,
        _ => reply::text(StatusCode::NOT_FOUND, "try /whoami /echo /memory?mib= /crash?code= /hang?seconds= /control"),
    }
}

/// Blocks the only thread: for good, or for `seconds` if that is not 0.
fn hang(seconds: u64) -> Reply {
    if seconds == 0 {
        loop {
            std::thread::park();
        }
    }
    std::thread::sleep(Duration::from_secs(seconds));
    reply::text(StatusCode::OK, format_args!("hung for {seconds} s"))
}

/// What arrived, as JSON: to see what a proxy on the way has changed.
fn echo_head(request: &Request<Incoming>) -> Reply {
    let headers: serde_json::Map<_, _> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let client = request.extensions().get::<std::net::SocketAddr>().map(ToString::to_string);
    let uri = request.uri();
    let seen = json!({
        "method": request.method().as_str(), "path": uri.path(), "query": uri.query(), "headers": headers,
        "client": client,
    });
    reply::json(StatusCode::OK, &seen)
}

/// The body, back as it came, with its content type.
async fn echo_body(request: Request<Incoming>) -> Reply {
    let content_type = request.headers().get(header::CONTENT_TYPE).cloned();
    match Limited::new(request.into_body(), ECHO_BYTES_MAX).collect().await {
        Ok(body) => {
            let body: Bytes = body.to_bytes();
            let mut reply = reply::with_type(StatusCode::OK, "application/octet-stream", body);
            let content_type = content_type.unwrap_or(HeaderValue::from_static("application/octet-stream"));
            reply.headers_mut().insert(header::CONTENT_TYPE, content_type);
            reply
        }
        Err(error) => {
            reply::text(StatusCode::PAYLOAD_TOO_LARGE, format_args!("at most {ECHO_BYTES_MAX} bytes: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ballast_holds_what_was_asked_last() {
        let ballast = Ballast::default();
        ballast.hold(2).unwrap();
        assert_eq!(ballast.0.lock().unwrap().len(), 2 << 20);
        ballast.hold(0).unwrap();
        assert_eq!(ballast.0.lock().unwrap().capacity(), 0);
    }
}
