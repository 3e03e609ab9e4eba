//! The few shapes of answer the programs give.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

/// An answer whose body is in memory; every one of ours is small.
pub(crate) type Reply = Response<Full<Bytes>>;

/// Plain text with a line end, for people with `curl`.
pub(crate) fn text(status: StatusCode, line: impl std::fmt::Display) -> Reply {
    with_type(status, "text/plain; charset=utf-8", format!("{line}\n"))
}

/// JSON with a line end. A value that cannot be written as JSON is answered with 500 and the reason.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    match serde_json::to_string(value) {
        Ok(body) => with_type(status, "application/json", body + "\n"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

/// An HTML page.
pub(crate) fn html(status: StatusCode, page: String) -> Reply {
    with_type(status, "text/html; charset=utf-8", page)
}

/// Any body with any content type known at compile time.
pub(crate) fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}
