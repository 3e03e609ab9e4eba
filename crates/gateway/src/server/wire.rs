//! The bytes of one connection, in both directions: requests' heads and bodies as they arrive, and what is to be written.
//!
//! Buffers belong to the core, not to the connection: one that waits has none.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead as _, AsyncWrite as _};
use tokio::sync::oneshot;
use tokio_util::io::poll_read_buf;

use super::head::{self, HeadLimits, Refused, RequestHead};
use super::watch::Watch;
use crate::body::BodyError;
use crate::io::Io;
use crate::upstream::{Chunked, Length, Piece};

/// Least space for a read: most requests fit.
const READ_BYTES: usize = 4_096;
/// Space that is allocated at once: several requests share it.
const BUFFER_BYTES: usize = 16_384;
/// Space for reads within bodies.
const READ_BYTES_BODY: usize = 65_536;
/// Buffers that are kept for connections to come.
const SPARE_MAX: usize = 256;
/// A larger buffer for writing is not kept.
const OUT_KEPT_MAX: usize = 65_536;

/// Why a connection ends early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    /// The client sent something that is answered with a refusal.
    #[error("the request is refused: {0}")]
    Refused(#[from] Refused),
    /// The connection broke.
    #[error("the connection: {0}")]
    Io(#[from] io::Error),
    /// The client closed it in the middle of a request, or did not wait for the answer.
    #[error("the client went away")]
    Gone,
    /// The answer's body ended with an error.
    #[error("the answer's body: {0}")]
    Body(BodyError),
}

/// Buffers that nobody uses.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    inputs: RefCell<Vec<BytesMut>>,
    outs: RefCell<Vec<Vec<u8>>>,
}

impl Spare {
    fn give_input(&self, buffer: BytesMut) {
        let mut inputs = self.inputs.borrow_mut();
        if buffer.capacity() > 0 && inputs.len() < SPARE_MAX {
            inputs.push(buffer);
        }
    }

    fn give_out(&self, mut buffer: Vec<u8>) {
        let mut outs = self.outs.borrow_mut();
        if (1..=OUT_KEPT_MAX).contains(&buffer.capacity()) && outs.len() < SPARE_MAX {
            buffer.clear();
            outs.push(buffer);
        }
    }
}

/// What is left of the present request's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Done,
    Fixed(u64),
    Chunked(Chunked),
    Broken,
}

/// A connection that goes on with another protocol, and what the client has sent of it already.
pub(crate) type Upgraded = (Io, Bytes);

/// A connection's bytes.
#[derive(Debug)]
pub(super) struct Wire {
    io: Io,
    input: BytesMut,
    /// So many bytes of the input have been looked through for the end of a head.
    scanned: usize,
    pub(super) out: Vec<u8>,
    written: usize,
    reading: Reading,
    /// The client waits for 100 before it sends the body.
    continue_due: bool,
    pub(super) upgrade: Option<oneshot::Sender<Upgraded>>,
    watch: Rc<Watch>,
    spare: Rc<Spare>,
}

impl Wire {
    pub(super) fn new(io: Io, watch: Rc<Watch>, spare: Rc<Spare>) -> Self {
        Self {
            io,
            input: BytesMut::new(),
            scanned: 0,
            out: Vec::new(),
            written: 0,
            reading: Reading::Done,
            continue_due: false,
            upgrade: None,
            watch,
            spare,
        }
    }

    /// Reads what there is; 0 at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>, body: bool) -> Poll<io::Result<usize>> {
        ready!(self.io.poll_readable(cx));
        if self.input.capacity() == 0 {
            self.input = self.spare.inputs.borrow_mut().pop().unwrap_or_default();
        }
        let (least, wanted) = if body { (READ_BYTES_BODY, READ_BYTES_BODY) } else { (READ_BYTES, BUFFER_BYTES) };
        if self.input.capacity() - self.input.len() < least {
            self.input.reserve(wanted);
        }
        let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input);
        match &read {
            Poll::Ready(_) => self.watch.note(),
            Poll::Pending => self.rest(),
        }
        read
    }

    /// Gives back the buffers that hold nothing.
    fn rest(&mut self) {
        if self.input.is_empty() {
            self.spare.give_input(std::mem::take(&mut self.input));
        }
        if self.out.is_empty() {
            self.spare.give_out(std::mem::take(&mut self.out));
        }
    }

    /// The next request's head; `None` if the client closed the connection before one.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        limits: HeadLimits,
    ) -> Poll<Result<Option<RequestHead>, ServerError>> {
        loop {
            if self.may_be_whole(limits) {
                if let Some(head) = head::read(&mut self.input, limits)? {
                    self.scanned = 0;
                    self.reading = match head.length {
                        Length::Fixed(bytes) => Reading::Fixed(bytes),
                        Length::Chunked => Reading::Chunked(Chunked::Size),
                        Length::None | Length::Close => Reading::Done,
                    };
                    self.continue_due = head.expects;
                    return Poll::Ready(Ok(Some(head)));
                }
                self.scanned = self.input.len();
            }
            match ready!(self.poll_fill(cx, false)) {
                Ok(0) if self.input.is_empty() => return Poll::Ready(Ok(None)),
                Ok(0) => return Poll::Ready(Err(ServerError::Gone)),
                Ok(_) => self.watch.begun(true),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Whether it is worth parsing the input: not again for every byte of a slow client.
    fn may_be_whole(&mut self, limits: HeadLimits) -> bool {
        if self.input.is_empty() {
            return false;
        }
        if self.scanned == 0 || self.input.len() >= limits.bytes_max {
            return true;
        }
        let fresh = &self.input[self.scanned.saturating_sub(3)..];
        let ends = fresh.windows(2).any(|it| it == b"\n\n") || fresh.windows(3).any(|it| it == b"\n\r\n");
        self.scanned = self.input.len();
        ends
    }

    /// The next part of the request's body.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.reading == Reading::Done {
            return Poll::Ready(None);
        }
        if std::mem::take(&mut self.continue_due) && self.input.is_empty() {
            self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        if !self.out.is_empty()
            && let Poll::Ready(Err(error)) = self.poll_flush(cx, &mut Bytes::new(), &mut b"".as_slice())
        {
            return Poll::Ready(Some(Err(error.into())));
        }
        let frame = loop {
            match self.next_piece() {
                Ok(Piece::Data(data)) => break Some(Ok(Frame::data(data))),
                Ok(Piece::End(trailers)) => {
                    self.reading = Reading::Done;
                    break (!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers)));
                }
                Ok(Piece::More) => {}
                Err(error) => break Some(Err(error)),
            }
            let Poll::Ready(read) = self.poll_fill(cx, true) else {
                self.watch.waiting(true);
                return Poll::Pending;
            };
            match read {
                Ok(0) => break Some(Err("the client closed the connection within its body".into())),
                Ok(_) => {}
                Err(error) => break Some(Err(error.into())),
            }
        };
        self.watch.waiting(false);
        if let Some(Err(_)) = &frame {
            self.reading = Reading::Broken;
        }
        Poll::Ready(frame)
    }

    fn next_piece(&mut self) -> Result<Piece, BodyError> {
        match &mut self.reading {
            Reading::Fixed(_) if self.input.is_empty() => Ok(Piece::More),
            Reading::Fixed(left) => {
                let take = self.input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= take as u64;
                if *left == 0 {
                    self.reading = Reading::Done;
                }
                Ok(Piece::Data(self.input.split_to(take).freeze()))
            }
            Reading::Chunked(state) => Ok(state.next(&mut self.input)?),
            Reading::Done => Ok(Piece::End(http::HeaderMap::new())),
            Reading::Broken => Err("the body was broken before".into()),
        }
    }

    /// Whether nothing of the request's body is left.
    pub(super) fn is_read(&self) -> bool {
        self.reading == Reading::Done
    }

    /// What is known of the length of what is left.
    pub(super) fn left(&self) -> SizeHint {
        match self.reading {
            Reading::Done => SizeHint::with_exact(0),
            Reading::Fixed(left) => SizeHint::with_exact(left),
            Reading::Chunked(_) | Reading::Broken => SizeHint::default(),
        }
    }

    /// Whether the rest of the body can be read over: it is broken off where the client waits to be asked for it.
    pub(super) fn is_skippable(&self, bytes_max: u64) -> bool {
        let small = match self.reading {
            Reading::Fixed(left) => left <= bytes_max,
            Reading::Chunked(_) | Reading::Done => true,
            Reading::Broken => false,
        };
        small && !self.continue_due
    }

    /// The answer begins: nothing is said any more about whether the body may come.
    pub(super) fn answering(&mut self) {
        if self.continue_due {
            self.reading = Reading::Broken;
        }
        if self.out.capacity() == 0 {
            self.out = self.spare.outs.borrow_mut().pop().unwrap_or_default();
        }
    }

    /// A request has been answered.
    pub(super) fn answered(&mut self) {
        self.watch.begun(!self.input.is_empty());
    }

    /// Ready when the client has closed the connection while its request is being answered. What it sends of the next
    /// request is kept; then there is no telling any more.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.reading != Reading::Done || !self.input.is_empty() {
            return Poll::Pending;
        }
        match self.poll_fill(cx, false) {
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(()),
            Poll::Ready(Ok(_)) | Poll::Pending => Poll::Pending,
        }
    }

    /// Writes the buffer, then `chunk`, then `tail`.
    pub(super) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
        tail: &mut &[u8],
    ) -> Poll<io::Result<()>> {
        loop {
            let out = &self.out[self.written..];
            if out.is_empty() && chunk.is_empty() && tail.is_empty() {
                break;
            }
            let io = Pin::new(&mut self.io);
            let wrote = if chunk.is_empty() && tail.is_empty() {
                io.poll_write(cx, out)
            } else {
                let pieces = [io::IoSlice::new(out), io::IoSlice::new(chunk), io::IoSlice::new(tail)];
                io.poll_write_vectored(cx, &pieces)
            };
            let Poll::Ready(wrote) = wrote else {
                self.watch.waiting(true);
                return Poll::Pending;
            };
            let mut count = match wrote {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => count,
                Err(error) => return Poll::Ready(Err(error)),
            };
            self.watch.note();
            let of_out = count.min(self.out.len() - self.written);
            self.written += of_out;
            count -= of_out;
            let of_chunk = count.min(chunk.len());
            chunk.advance(of_chunk);
            *tail = &tail[count - of_chunk..];
        }
        self.watch.waiting(false);
        self.out.clear();
        self.written = 0;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Says goodbye where the protocol below has a word for it (TLS), so that an end is not taken for a cut.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.io {
            Io::Tls(_) => Pin::new(&mut self.io).poll_shutdown(cx).map(drop),
            Io::Plain(_) | Io::Gone => Poll::Ready(()),
        }
    }

    /// The connection without what belongs to this protocol.
    pub(super) fn take(&mut self) -> Upgraded {
        let input = std::mem::take(&mut self.input).freeze();
        (std::mem::replace(&mut self.io, Io::Gone), input)
    }
}

/// Closes a connection so that the client can read what was written last: a reset, which bytes that nobody reads would cause,
/// could overtake it (RFC 9112, 9.6).
pub(super) async fn linger(wire: &RefCell<Wire>, bytes_max: usize) {
    let shut = poll_fn(|cx| Pin::new(&mut wire.borrow_mut().io).poll_shutdown(cx));
    if shut.await.is_err() {
        return;
    }
    let mut left = bytes_max;
    wire.borrow_mut().watch.begun(true);
    poll_fn(|cx| {
        let mut wire = wire.borrow_mut();
        loop {
            let mut scratch = [0; 4_096];
            let mut buffer = tokio::io::ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut wire.io).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() && left > buffer.filled().len() => left -= buffer.filled().len(),
                _ => return Poll::Ready(()),
            }
        }
    })
    .await;
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.input.clear();
        self.out.clear();
        self.rest();
    }
}
