//! A JSON request answered by gRPC.

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TE, TRAILER};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};

use super::reply::Reply;
use super::serve::Journey;
use crate::body::{ClientBody, ReplyBody, RequestBody};
use crate::transcode::{Call, Transcoder, error_json, http_status, status};

/// Largest request and answer in bytes: both are held as a whole.
const BYTES_MAX: usize = 4 << 20;
/// gRPC's code for what the endpoint should not have answered.
const INTERNAL: u32 = 13;

/// Answers a request that is for one of a transcoder's methods; gives it back if it is for none, or is gRPC already.
pub(super) async fn answer(
    journey: &Journey<'_>,
    transcoder: &Transcoder,
    parts: &mut Parts,
    body: RequestBody,
    degraded: bool,
) -> Result<Reply, RequestBody> {
    let grpc = parts.headers.get(CONTENT_TYPE).is_some_and(|it| it.as_bytes().starts_with(b"application/grpc"));
    let call = if grpc { None } else { transcoder.find(&parts.method, parts.uri.path()) };
    let Some(call) = call else { return Err(body) };
    let limited = Limited::new(ClientBody::new(body, BYTES_MAX as u64, journey.too_large.clone()), BYTES_MAX);
    let Ok(json) = limited.collect().await else {
        return Ok(if journey.too_large.get() {
            journey.error(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than allowed")
        } else {
            journey.error(StatusCode::BAD_REQUEST, "the body ended early")
        });
    };
    let message = match call.request(parts.uri.query(), &json.to_bytes()) {
        Ok(message) => message,
        Err(error) => return Ok(json_reply(StatusCode::BAD_REQUEST, error_json(3, &error.to_string()))),
    };
    let Ok(uri) = Uri::try_from(call.path()) else {
        return Ok(journey.error(StatusCode::INTERNAL_SERVER_ERROR, "the method's path is none"));
    };
    let host = parts.uri.authority().and_then(|it| HeaderValue::from_str(it.as_str()).ok());
    if let Some(host) = host {
        parts.headers.insert(http::header::HOST, host);
    }
    (parts.method, parts.uri) = (Method::POST, uri);
    for name in [CONTENT_LENGTH, ACCEPT_ENCODING] {
        parts.headers.remove(name);
    }
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    parts.headers.insert(TE, HeaderValue::from_static("trailers"));
    let reply = journey.ask(parts, RequestBody::Whole(message), degraded).await;
    Ok(to_json(&call, reply).await)
}

async fn to_json(call: &Call<'_>, reply: Reply) -> Reply {
    let (mut head, body) = reply.into_parts();
    let early = status(&head.headers);
    if early.is_none() && head.status != StatusCode::OK {
        // The gateway's own refusal, or no gRPC: it says enough as it is.
        return Response::from_parts(head, body);
    }
    let collected = match Limited::new(body, BYTES_MAX).collect().await {
        Ok(collected) => collected,
        Err(error) => return json_reply(StatusCode::BAD_GATEWAY, error_json(INTERNAL, &error.to_string())),
    };
    let ended = collected.trailers().and_then(status).or(early);
    let (code, message) = ended.unwrap_or((INTERNAL, "the endpoint said no gRPC status".to_owned()));
    if code != 0 {
        return json_reply(http_status(code), error_json(code, &message));
    }
    match call.answer(&collected.to_bytes()) {
        Ok(json) => {
            for name in ["grpc-status", "grpc-message", "grpc-encoding", "grpc-accept-encoding"] {
                head.headers.remove(name);
            }
            head.headers.remove(TRAILER);
            let mut reply = json_reply(StatusCode::OK, json);
            carry_over(&mut head.headers, reply.headers_mut());
            reply
        }
        Err(error) => json_reply(StatusCode::BAD_GATEWAY, error_json(INTERNAL, &error.to_string())),
    }
}

/// What the endpoint said besides: its metadata.
fn carry_over(from: &mut HeaderMap, to: &mut HeaderMap) {
    from.remove(CONTENT_TYPE);
    from.remove(CONTENT_LENGTH);
    to.extend(std::mem::take(from));
}

fn json_reply(status: StatusCode, json: Vec<u8>) -> Reply {
    let mut reply = Response::new(ReplyBody::Full(Bytes::from(json)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}
