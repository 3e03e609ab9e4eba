//! One request and its answer over HTTP/1.1 (RFC 9112), without a task or a channel of its own: whoever waits for the
//! answer drives the connection.
//!
//! # Flow
//! [`Exchange::poll_head`] writes the request and reads the head; then [`Exchange::poll_frame`] reads the body, still
//! writing if the request's body is longer than the endpoint's patience. A connection whose exchange ended cleanly can be
//! taken back with [`Exchange::recycle`].

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::header::HeaderValue;
use http::{HeaderMap, Method, StatusCode};
use http_body::{Body, Frame};
use tokio::io::AsyncWrite as _;
use tokio_util::io::poll_read_buf;

use super::chunked::{ChunkError, Chunked, Piece};
use super::head::{self, Head, Length};
use crate::body::ClientBody;
use crate::io::Io;

/// Least space for a read: most responses fit.
const READ_BYTES: usize = 4_096;
/// Space that is allocated at once: several responses share it, so that not every one allocates.
const BUFFER_BYTES: usize = 16_384;
/// Space for reads within large bodies.
const READ_BYTES_LARGE: usize = 65_536;

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// The request could not be written.
    #[error("writing the request: {0}")]
    Write(#[source] io::Error),
    /// The response could not be read.
    #[error("reading the response: {0}")]
    Read(#[source] io::Error),
    /// The endpoint closed the connection before the end of the response.
    #[error("the connection was closed before the end of the response")]
    Closed,
    /// The response's head cannot be used.
    #[error("the response's head: {0}")]
    Head(&'static str),
    /// The response's body cannot be used.
    #[error("the response's body: {0}")]
    Body(#[from] ChunkError),
    /// The client's request body ended with an error.
    #[error("the client's body: {0}")]
    Client(String),
}

/// The body of a request on its way.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// None.
    None,
    /// All there.
    Full(Bytes),
    /// As the client sends it.
    Stream(ClientBody, Length),
}

impl Outgoing {
    fn length(&self) -> Length {
        match self {
            Self::None => Length::None,
            Self::Full(bytes) => Length::Fixed(bytes.len() as u64),
            Self::Stream(_, length) => *length,
        }
    }
}

/// A connection between exchanges.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) io: Io,
    buffer: BytesMut,
    out: Vec<u8>,
}

impl Connection {
    /// A new connection.
    pub(crate) fn new(io: Io) -> Self {
        Self { io, buffer: BytesMut::new(), out: Vec::new() }
    }

    /// The stream, and what was read beyond the head: for a tunnel.
    pub(crate) fn into_tunnel(self) -> (Io, Bytes) {
        (self.io, self.buffer.freeze())
    }
}

/// A request being answered.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts, not a state machine")]
pub(crate) struct Exchange {
    connection: Connection,
    written: usize,
    body: Outgoing,
    method: Method,
    reading: Reading,
    keep_alive: bool,
    sent: bool,
    /// The endpoint does not read any more; it may still have answered.
    write_failed: Option<io::Error>,
    /// Something of the response arrived.
    heard: bool,
    large: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Head,
    Fixed(u64),
    Chunked(Chunked),
    Close,
    Done,
}

impl Exchange {
    /// Prepares a request. `headers` are free of hop-by-hop headers; `upgrade` asks for another protocol.
    pub(crate) fn new(
        mut connection: Connection,
        method: &Method,
        target: &str,
        headers: &HeaderMap,
        body: Outgoing,
        upgrade: Option<&HeaderValue>,
    ) -> Self {
        connection.out.clear();
        head::write(&mut connection.out, method, target, headers, body.length(), upgrade);
        let mut body = body;
        if let Outgoing::Full(bytes) = &body {
            // One write for head and body.
            connection.out.extend_from_slice(bytes);
            body = Outgoing::None;
        }
        let method = method.clone();
        let (reading, written) = (Reading::Head, 0);
        Self {
            connection,
            written,
            body,
            method,
            reading,
            keep_alive: false,
            sent: false,
            write_failed: None,
            heard: false,
            large: false,
        }
    }

    /// Whether anything of the response has arrived: then the endpoint has seen the request.
    pub(crate) fn heard(&self) -> bool {
        self.heard
    }

    /// Writes what can be written; ready when all is.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ExchangeError>> {
        while !self.sent && self.write_failed.is_none() {
            let Connection { io, out, .. } = &mut self.connection;
            while self.written < out.len() {
                match ready!(Pin::new(&mut *io).poll_write(cx, &out[self.written..])) {
                    Ok(0) => self.write_failed = Some(io::ErrorKind::WriteZero.into()),
                    Ok(count) => {
                        self.written += count;
                        continue;
                    }
                    Err(error) => self.write_failed = Some(error),
                }
                return Poll::Ready(Ok(()));
            }
            out.clear();
            self.written = 0;
            let Outgoing::Stream(body, length) = &mut self.body else {
                if let Err(error) = ready!(Pin::new(io).poll_flush(cx)) {
                    self.write_failed = Some(error);
                }
                self.sent = true;
                break;
            };
            let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else {
                // The client is slow: what it has sent so far goes out.
                if let Poll::Ready(Err(error)) = Pin::new(io).poll_flush(cx) {
                    self.write_failed = Some(error);
                }
                return Poll::Pending;
            };
            let chunked = *length == Length::Chunked;
            match frame.transpose().map_err(|error| ExchangeError::Client(error.to_string()))? {
                Some(frame) => {
                    if write_frame(out, frame, chunked) {
                        self.body = Outgoing::None;
                    }
                }
                None => {
                    if chunked {
                        out.extend_from_slice(b"0\r\n\r\n");
                    }
                    self.body = Outgoing::None;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes the request and reads the response's head. Interim responses other than 101 are passed over.
    pub(crate) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, ExchangeError>> {
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        loop {
            if !self.connection.buffer.is_empty()
                && let Some(head) = head::read(&mut self.connection.buffer, &self.method)?
            {
                if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
                    continue;
                }
                self.reading = match head.length {
                    Length::None => Reading::Done,
                    Length::Fixed(bytes) => Reading::Fixed(bytes),
                    Length::Chunked => Reading::Chunked(Chunked::Size),
                    Length::Close => Reading::Close,
                };
                self.keep_alive = head.keep_alive;
                return Poll::Ready(Ok(head));
            }
            if ready!(self.poll_read(cx))? == 0 {
                let failed = self.write_failed.take();
                return Poll::Ready(Err(failed.map_or(ExchangeError::Closed, ExchangeError::Write)));
            }
            self.heard = true;
        }
    }

    /// The next frame of the response's body.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        if !self.sent
            && let Poll::Ready(Err(error)) = self.poll_send(cx)
        {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            match &mut self.reading {
                Reading::Head | Reading::Done => return Poll::Ready(None),
                Reading::Fixed(left) if !self.connection.buffer.is_empty() => {
                    let take = self.connection.buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= take as u64;
                    let data = self.connection.buffer.split_to(take).freeze();
                    if *left == 0 {
                        self.reading = Reading::Done;
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Reading::Chunked(state) => match state.next(&mut self.connection.buffer)? {
                    Piece::Data(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Piece::End(trailers) => {
                        self.reading = Reading::Done;
                        return Poll::Ready((!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers))));
                    }
                    Piece::More => {}
                },
                Reading::Close if !self.connection.buffer.is_empty() => {
                    return Poll::Ready(Some(Ok(Frame::data(self.connection.buffer.split().freeze()))));
                }
                Reading::Fixed(_) | Reading::Close => {}
            }
            self.large = true;
            match ready!(self.poll_read(cx)) {
                Ok(0) if self.reading == Reading::Close => {
                    self.reading = Reading::Done;
                    return Poll::Ready(None);
                }
                Ok(0) => return Poll::Ready(Some(Err(ExchangeError::Closed))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    /// Bytes of the body that are left, if that is known.
    pub(crate) fn remaining(&self) -> Option<u64> {
        match self.reading {
            Reading::Fixed(left) => Some(left),
            Reading::Done => Some(0),
            _ => None,
        }
    }

    /// The body, if all of it is in the buffer already: then it need not be streamed.
    pub(crate) fn take_whole(&mut self) -> Option<Bytes> {
        match self.reading {
            Reading::Done => Some(Bytes::new()),
            Reading::Fixed(left) if left <= self.connection.buffer.len() as u64 => {
                self.reading = Reading::Done;
                Some(self.connection.buffer.split_to(left as usize).freeze())
            }
            _ => None,
        }
    }

    /// The connection for another exchange, if this one ended cleanly.
    pub(crate) fn recycle(self) -> Option<Connection> {
        let clean = self.reading == Reading::Done && self.sent && self.keep_alive && self.write_failed.is_none();
        (clean && self.connection.buffer.is_empty()).then_some(self.connection)
    }

    /// The connection as it is, for a tunnel.
    pub(crate) fn into_connection(self) -> Connection {
        self.connection
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, ExchangeError>> {
        let Connection { io, buffer, .. } = &mut self.connection;
        // Under pressure a large body is read in large pieces; a head in small ones, so that idle connections are cheap.
        let (least, wanted) =
            if self.large { (READ_BYTES_LARGE, READ_BYTES_LARGE) } else { (READ_BYTES, BUFFER_BYTES) };
        if buffer.capacity() - buffer.len() < least {
            buffer.reserve(wanted);
        }
        poll_read_buf(Pin::new(io), cx, buffer).map_err(ExchangeError::Read)
    }
}

/// Writes a frame; answers whether it was the last.
fn write_frame(out: &mut Vec<u8>, frame: Frame<Bytes>, chunked: bool) -> bool {
    match frame.into_data() {
        Ok(data) if data.is_empty() => {}
        Ok(data) if chunked => {
            out.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
            out.extend_from_slice(&data);
            out.extend_from_slice(b"\r\n");
        }
        Ok(data) => out.extend_from_slice(&data),
        Err(frame) => {
            // Trailers can only follow chunks; where there are none, they are dropped (RFC 9110, 6.5.1).
            if let Ok(trailers) = frame.into_trailers()
                && chunked
            {
                out.extend_from_slice(b"0\r\n");
                for (name, value) in &trailers {
                    out.extend_from_slice(name.as_str().as_bytes());
                    out.extend_from_slice(b": ");
                    out.extend_from_slice(value.as_bytes());
                    out.extend_from_slice(b"\r\n");
                }
                out.extend_from_slice(b"\r\n");
            }
            return true;
        }
    }
    false
}
