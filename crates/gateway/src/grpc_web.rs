//! gRPC-Web (gRPC's PROTOCOL-WEB): the trailers of gRPC as a last frame of the body, for clients that cannot read trailers.
//!
//! Binary bodies pass unchanged in both directions but for that frame. `grpc-web-text` answers are base64; text requests, which
//! no current client sends, are refused by the backend as what they are not.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response};
use http_body::{Body, Frame};

use crate::body::{BodyError, ReplyBody};

/// The bit of a frame's first byte that says it holds trailers.
const TRAILERS: u8 = 0x80;

/// How the client wants its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes.
    Binary,
    /// Base64.
    Text,
}

impl Kind {
    /// The kind of a gRPC-Web request; `None` if it is none.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let starts =
            |name, prefix: &str| headers.get(name).is_some_and(|it| it.as_bytes().starts_with(prefix.as_bytes()));
        if !starts(CONTENT_TYPE, "application/grpc-web") {
            return None;
        }
        Some(if starts(ACCEPT, "application/grpc-web-text") { Self::Text } else { Self::Binary })
    }
}

/// Turns a gRPC answer into a gRPC-Web answer.
pub(crate) fn reply(reply: Response<ReplyBody>, kind: Kind) -> Response<ReplyBody> {
    let (mut head, body) = reply.into_parts();
    let written = match kind {
        Kind::Binary => "application/grpc-web+proto",
        Kind::Text => "application/grpc-web-text+proto",
    };
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static(written));
    head.headers.remove(CONTENT_LENGTH);
    Response::from_parts(head, ReplyBody::Boxed(Box::pin(Framed { body, kind })))
}

struct Framed {
    body: ReplyBody,
    kind: Kind,
}

impl Body for Framed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose()? else {
            return Poll::Ready(None);
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => frame.into_trailers().map(|it| trailer_frame(&it)).unwrap_or_default(),
        };
        let data = match this.kind {
            Kind::Binary => data,
            Kind::Text => Bytes::from(STANDARD.encode(data)),
        };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}

fn trailer_frame(trailers: &HeaderMap) -> Bytes {
    let mut lines = Vec::new();
    for (name, value) in trailers {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    let mut frame = vec![TRAILERS];
    frame.extend_from_slice(&(lines.len() as u32).to_be_bytes());
    frame.extend_from_slice(&lines);
    Bytes::from(frame)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http_body_util::BodyExt as _;

    #[tokio::test]
    async fn trailers_become_the_last_frame() {
        let trailers: HeaderMap =
            [("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))].into_iter().collect();
        let inner = http_body_util::Full::new(Bytes::from_static(b"\0\0\0\0\x01x"));
        let inner = inner.with_trailers(std::future::ready(Some(Ok(trailers)))).map_err(|never| match never {});
        let answer = reply(Response::new(ReplyBody::Boxed(Box::pin(inner))), Kind::Binary);
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/grpc-web+proto");
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(bytes.as_ref(), b"\0\0\0\0\x01x\x80\0\0\0\x10grpc-status: 0\r\n");
    }
}
