//! Bodies on their way through: from the client, and to the client.

use std::cell::Cell;
use std::error::Error;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};

use crate::server::Http1Body;
use crate::upstream::{Exchange, Permit};

/// Any error of a body; it ends the connection or stream, nobody reads it but the log.
pub(crate) type BodyError = Box<dyn Error + Send + Sync>;

/// A body of a kind that is not known here.
pub(crate) type BoxBody = Pin<Box<dyn Body<Data = Bytes, Error = BodyError>>>;

/// A client's body as it arrives.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// None.
    Empty,
    /// From a connection of our own.
    Http1(Http1Body),
    /// From hyper.
    Http2(Incoming),
    /// All there.
    Whole(Bytes),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Http1(body) => Pin::new(body).poll_frame(cx),
            Self::Http2(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
            Self::Whole(bytes) => bytes.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

/// A client's body as it arrives, with the bytes that are still allowed.
pub(crate) struct ClientBody {
    body: RequestBody,
    left: u64,
    /// Set when the bytes run out.
    too_large: Rc<Cell<bool>>,
}

impl ClientBody {
    /// A body that may have so many bytes; `too_large` is set if it has more.
    pub(crate) fn new(body: RequestBody, bytes_max: u64, too_large: Rc<Cell<bool>>) -> Self {
        Self { body, left: bytes_max, too_large }
    }
}

impl std::fmt::Debug for ClientBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientBody({} bytes left)", self.left)
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let Some(rest) = this.left.checked_sub(data.len() as u64) else {
                this.too_large.set(true);
                return Poll::Ready(Some(Err("the request's body is larger than allowed".into())));
            };
            this.left = rest;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body for the client.
pub(crate) enum ReplyBody {
    /// None.
    Empty,
    /// All there.
    Full(Bytes),
    /// From an endpoint, as it arrives.
    Stream(Box<Streaming>),
    /// Converted.
    Boxed(BoxBody),
}

impl From<&'static str> for ReplyBody {
    fn from(text: &'static str) -> Self {
        Self::Full(Bytes::from_static(text.as_bytes()))
    }
}

/// A body that arrives from an endpoint. What it holds is given back when it ends or is dropped.
pub(crate) struct Streaming {
    source: Source,
    permit: Option<Permit>,
    idle: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
}

enum Source {
    Http1(Option<Exchange>),
    Http2(Incoming),
}

impl Streaming {
    /// The rest of an HTTP/1.1 exchange.
    pub(crate) fn http1(exchange: Exchange, permit: Permit, idle: Option<Duration>) -> Self {
        Self { source: Source::Http1(Some(exchange)), permit: Some(permit), idle, timer: None }
    }

    /// The body of an HTTP/2 response.
    pub(crate) fn http2(body: Incoming, permit: Permit, idle: Option<Duration>) -> Self {
        Self { source: Source::Http2(body), permit: Some(permit), idle, timer: None }
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.source {
            Source::Http2(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Source::Http1(slot) => {
                let Some(exchange) = slot else { return Poll::Ready(None) };
                let frame = std::task::ready!(exchange.poll_frame(cx));
                // At its end the connection goes back at once: the client may send its next request before this is dropped.
                if (frame.is_none() || exchange.remaining() == Some(0))
                    && let (Some(exchange), Some(permit)) = (slot.take(), self.permit.as_ref())
                {
                    permit.give_back(exchange);
                    self.permit = None;
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match this {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Boxed(body) => body.as_mut().poll_frame(cx),
            Self::Stream(stream) => {
                if let Poll::Ready(frame) = stream.poll_source(cx) {
                    stream.timer = None;
                    return Poll::Ready(frame);
                }
                let Some(idle) = stream.idle else { return Poll::Pending };
                let timer = stream.timer.get_or_insert_with(|| Box::pin(sleep(idle)));
                if timer.deadline() > Instant::now() + idle {
                    timer.as_mut().reset(Instant::now() + idle);
                }
                match timer.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Some(Err("the endpoint sends no more of its body".into()))),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Boxed(body) => body.is_end_stream(),
            Self::Stream(stream) => match &stream.source {
                Source::Http1(exchange) => exchange.is_none(),
                Source::Http2(body) => body.is_end_stream(),
            },
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Boxed(body) => body.size_hint(),
            Self::Stream(stream) => match &stream.source {
                Source::Http1(exchange) => {
                    let left = exchange.as_ref().map_or(Some(0), Exchange::remaining);
                    left.map_or_else(SizeHint::default, SizeHint::with_exact)
                }
                Source::Http2(body) => body.size_hint(),
            },
        }
    }
}
