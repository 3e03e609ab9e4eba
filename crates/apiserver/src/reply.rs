//! From results to HTTP responses: the one place where an [`ApiError`] becomes a `Status`.

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use mainstay_model::protobuf;
use mainstay_model::status::ApiError;
use serde_json::Value;

use crate::request::Encoding;

/// Errors a body can end with.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// A request's or response's body.
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// A body of bytes that are already there.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body of any sort.
pub(crate) fn boxed<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    body.map_err(|error| -> BodyError { error.into() }).boxed_unsync()
}

/// A JSON answer.
pub(crate) fn json(code: StatusCode, value: &Value) -> Response<Body> {
    // A `Value` always serialises: its keys are strings.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    typed(code, "application/json", bytes)
}

/// An object in the encoding that the client asked for.
pub(crate) fn object(code: StatusCode, value: &Value, encoding: Encoding) -> Response<Body> {
    let bytes = match encoding {
        Encoding::Json => None,
        Encoding::Yaml => serde_saphyr::to_string(value).ok().map(String::into_bytes),
        Encoding::Protobuf => protobuf::encode(value),
    };
    match bytes {
        Some(bytes) => typed(code, encoding.media_type(), bytes),
        // What has no other form, a scale of something custom for example, is at least something every client reads.
        None => json(code, value),
    }
}

/// An answer whose body is JSON already.
pub(crate) fn json_text(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// A plain text answer.
pub(crate) fn text(code: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    typed(code, "text/plain; charset=utf-8", text)
}

fn typed(code: StatusCode, media_type: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media_type));
    response
}

/// Tells the caller something besides the answer (RFC 7234 section 5.5, code 299).
pub(crate) fn warn(response: &mut Response<Body>, text: &str) {
    let quoted: String = text.chars().filter(|c| !c.is_control()).flat_map(escape).collect();
    if let Ok(value) = header::HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
        response.headers_mut().append(header::WARNING, value);
    }
}

/// A quoted string escapes quotes and backslashes (RFC 9110 section 5.6.4).
fn escape(c: char) -> impl Iterator<Item = char> {
    matches!(c, '"' | '\\').then_some('\\').into_iter().chain(std::iter::once(c))
}

/// The answer to a call that failed.
pub(crate) fn error(error: &ApiError, encoding: Encoding) -> Response<Body> {
    let code = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if error.code >= 500 {
        tracing::warn!(code = error.code, message = %error.message, "request failed");
    }
    let mut response = object(code, &error.to_status(), encoding);
    if let Some(seconds) = error.retry_after_seconds {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}
