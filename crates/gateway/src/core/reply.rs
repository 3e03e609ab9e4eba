//! Answers of the gateway itself.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};

use crate::body::ReplyBody;
use crate::table::settings::Canned;

/// An answer of the gateway.
pub(super) type Reply = Response<ReplyBody>;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// An error with a sentence that says why. A gRPC client gets it as gRPC says it (status in the headers of a 200).
pub(super) fn error(status: StatusCode, message: &'static str, grpc: bool) -> Reply {
    if grpc {
        let mut reply = Response::new(ReplyBody::Empty);
        let headers = reply.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from(grpc_code(status)));
        headers.insert(GRPC_MESSAGE, HeaderValue::from_static(message));
        return reply;
    }
    let text = [message.as_bytes(), b"\n"].concat();
    let mut reply = Response::new(ReplyBody::Full(Bytes::from(text)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    reply
}

/// The gRPC code of an HTTP status (gRPC, "HTTP to gRPC Status Code Mapping").
fn grpc_code(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        408 | 504 => 4,
        413 | 429 => 8,
        _ => 14,
    }
}

/// An error with the time after which to ask again, in whole seconds rounded up.
pub(super) fn retry_after(mut reply: Reply, nanos: u64) -> Reply {
    reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(nanos.div_ceil(1_000_000_000).max(1)));
    reply
}

/// A canned answer.
pub(super) fn canned(canned: &Canned) -> Reply {
    let mut reply = Response::new(ReplyBody::Full(canned.body.clone()));
    *reply.status_mut() = canned.status;
    for (name, value) in &canned.headers {
        reply.headers_mut().append(name.clone(), value.clone());
    }
    reply.headers_mut().remove(CONTENT_LENGTH);
    reply
}
