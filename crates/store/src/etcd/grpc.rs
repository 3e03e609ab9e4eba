//! gRPC over HTTP/2, as much of it as etcd's API needs
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>): calls with one answer, and calls whose answers go on.
//!
//! A message is a flag byte (compressed: never), its length in four bytes, and itself. The outcome is in the trailers,
//! or, where there is no answer at all, in the headers.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, Response, header};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use prost::Message;

/// The largest answer, in bytes. Ranges are read in pages that stay far below.
const ANSWER_BYTES_MAX: usize = 256 << 20;
const PREFIX_BYTES: usize = 5;

/// Why a call had no useful answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// No endpoint could be connected to; nothing was sent.
    #[error("no etcd endpoint answers: {0}")]
    Unreachable(String),
    /// The connection ended, or the time was up. Whether etcd did what was asked is unknown.
    #[error("etcd's answer did not come: {0}")]
    Interrupted(String),
    /// etcd refused; nothing was done, except perhaps for a time-out of its own.
    #[error("etcd says: {message} (gRPC code {code})")]
    Refused {
        /// The gRPC status code.
        code: u32,
        /// What etcd says.
        message: String,
    },
    /// The answer is not what the protocol says.
    #[error("etcd's answer cannot be read: {0}")]
    Malformed(String),
}

/// gRPC's codes that are told apart here.
pub(super) const RESOURCE_EXHAUSTED: u32 = 8;
pub(super) const UNAVAILABLE: u32 = 14;

impl CallError {
    /// Whether the same question may get an answer elsewhere or a moment later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Interrupted(_) => true,
            Self::Refused { code, .. } => *code == UNAVAILABLE,
            Self::Malformed(_) => false,
        }
    }
}

/// The body of a request: one message, after which the stream ends, or stays open for as long as answers come.
#[derive(Debug)]
pub(super) struct Outgoing {
    message: Option<Bytes>,
    stays_open: bool,
}

impl Outgoing {
    pub(super) fn new(message: &impl Message, stays_open: bool) -> Self {
        let length = message.encoded_len();
        let mut framed = BytesMut::with_capacity(PREFIX_BYTES + length);
        framed.put_u8(0);
        framed.put_u32(length as u32);
        // There is room, the only thing that can be missing.
        let _ = message.encode(&mut framed);
        Self { message: Some(framed.freeze()), stays_open }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.message.take() {
            Some(message) => Poll::Ready(Some(Ok(Frame::data(message)))),
            None if self.stays_open => Poll::Pending,
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_none() && !self.stays_open
    }
}

/// The head of a call of `method`, such as `/etcdserverpb.KV/Range`.
pub(super) fn request(
    scheme: &str,
    authority: &str,
    method: &str,
    body: Outgoing,
) -> Result<Request<Outgoing>, CallError> {
    Request::post(format!("{scheme}://{authority}{method}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(body)
        .map_err(|error| CallError::Malformed(error.to_string()))
}

/// The messages of an answer, one after the other.
pub(super) struct Answers {
    body: Incoming,
    buffer: BytesMut,
    outcome: Option<HeaderMap>,
}

/// Sends a request and waits for the head of its answer.
pub(super) async fn send(sender: &mut SendRequest<Outgoing>, request: Request<Outgoing>) -> Result<Answers, CallError> {
    let response = sender.send_request(request).await.map_err(|error| {
        // Cancelled: the connection was found closed before anything was sent.
        let text = error.to_string();
        if error.is_canceled() { CallError::Unreachable(text) } else { CallError::Interrupted(text) }
    })?;
    Answers::new(response)
}

impl Answers {
    fn new(response: Response<Incoming>) -> Result<Self, CallError> {
        let (head, body) = response.into_parts();
        if !head.status.is_success() {
            return Err(CallError::Malformed(format!("HTTP status {}: is this an etcd v3 endpoint?", head.status)));
        }
        let outcome = head.headers.contains_key("grpc-status").then_some(head.headers);
        Ok(Self { body, buffer: BytesMut::new(), outcome })
    }

    /// The next message; `None` after the last one of a call that went well.
    pub(super) async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, CallError> {
        loop {
            if let Some(message) = self.buffered()? {
                return M::decode(message).map(Some).map_err(|error| CallError::Malformed(error.to_string()));
            }
            if let Some(outcome) = &self.outcome {
                return verdict(outcome).map(|()| None);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(frame) => self.outcome = frame.into_trailers().ok(),
                },
                Some(Err(error)) => return Err(CallError::Interrupted(error.to_string())),
                None => return Err(CallError::Interrupted("the stream ended without an outcome".to_owned())),
            }
        }
    }

    /// A whole message, if there is one.
    fn buffered(&mut self) -> Result<Option<Bytes>, CallError> {
        let Some(prefix) = self.buffer.get(..PREFIX_BYTES) else { return Ok(None) };
        let compressed = prefix[0] != 0;
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        if compressed || length > ANSWER_BYTES_MAX {
            return Err(CallError::Malformed(format!("a message of {length} bytes, compressed: {compressed}")));
        }
        if self.buffer.len() < PREFIX_BYTES + length {
            self.buffer.reserve(PREFIX_BYTES + length - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(PREFIX_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

fn verdict(outcome: &HeaderMap) -> Result<(), CallError> {
    let text = |name: &str| outcome.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status").parse() {
        Ok(0) => Ok(()),
        Ok(code) => Err(CallError::Refused { code, message: text("grpc-message").to_owned() }),
        Err(_) => Err(CallError::Malformed("no gRPC status".to_owned())),
    }
}
