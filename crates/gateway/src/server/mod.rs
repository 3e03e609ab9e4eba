//! HTTP/1.1 towards clients (RFC 9110, 9112).
//!
//! # Role
//! Reads requests from a connection, has each answered, writes the answer. It knows nothing of routes. HTTP/2 is hyper's.
//!
//! # Flow
//! [`serve`]: head → the service, while the client is watched → head and body of the answer → the next request, until either
//! side wants no more.
//!
//! # Guarantees
//! - What two readers could take for different requests is refused, and the connection ends with the refusal.
//! - Four system calls for a request and its answer at most, of which two are the client's: one read, one write.
//! - A connection that waits holds no buffer: those belong to the core ([`Spare`]).
//! - A body is read when it is asked for, and written as fast as the client reads: nothing piles up in between.
//!
//! # Deliberately absent
//! Pipelined requests are answered one after the other, and read ahead no further than one buffer.

mod answer;
mod head;
mod watch;
mod wire;

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;

use crate::body::{BodyError, ReplyBody, RequestBody};
use crate::io::Io;
use answer::{Asked, Framing, write_head};
pub(crate) use head::{HeadLimits, read as read_request};
pub(crate) use watch::{Watch, WatchLimits, Watched, Watches};
use wire::{ServerError, Wire, linger};
pub(crate) use wire::{Spare, Upgraded};

/// So much of a body that nobody wanted is read over, so that the connection can be used again.
const SKIPPED_MAX: u64 = 65_536;
/// So much is read after the last answer, so that it is not lost in a reset.
const LINGERING_MAX: usize = 4 << 20;
/// Bytes of an answer that are gathered before they are written.
const GATHERED_MAX: usize = 65_536;

/// What the connections of a core share.
#[derive(Debug, Default)]
pub(crate) struct Common {
    pub(crate) spare: Rc<Spare>,
    /// The time as answers say it (RFC 9110, 5.6.7).
    pub(crate) date: RefCell<String>,
}

/// The body of a request as it arrives.
#[derive(Debug)]
pub(crate) struct Http1Body {
    wire: Rc<RefCell<Wire>>,
}

impl Http1Body {
    /// The connection itself, once the answer to this request has ended HTTP on it; an error if the answer does not.
    pub(crate) fn upgrade(&self) -> oneshot::Receiver<Upgraded> {
        let (sender, receiver) = oneshot::channel();
        self.wire.borrow_mut().upgrade = Some(sender);
        receiver
    }
}

impl Body for Http1Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.wire.borrow_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.wire.borrow().is_read()
    }

    fn size_hint(&self) -> SizeHint {
        self.wire.borrow().left()
    }
}

/// Serves a connection until it ends.
///
/// # Errors
/// It did not end between two requests.
pub(crate) async fn serve<F>(
    io: Io,
    limits: HeadLimits,
    watch: Rc<Watch>,
    common: &Common,
    mut service: impl FnMut(Request<RequestBody>) -> F,
) -> Result<(), ServerError>
where
    F: Future<Output = Response<ReplyBody>>,
{
    let wire = Rc::new(RefCell::new(Wire::new(io, watch.clone(), common.spare.clone())));
    loop {
        let head = match poll_fn(|cx| poll_head(&wire, &watch, cx, limits)).await {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(()),
            Err(ServerError::Refused(refused)) => {
                let text = Bytes::from([refused.message.as_bytes(), b"\n"].concat());
                let mut reply = Response::new(ReplyBody::Full(text));
                *reply.status_mut() = refused.status;
                reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                answer(&wire, &watch, common, &Asked::nothing(), reply).await?;
                within(&watch, linger(&wire, LINGERING_MAX)).await;
                return Err(refused.into());
            }
            Err(error) => return Err(error),
        };
        let asked = Asked::of(&head);
        let body = if wire.borrow().is_read() && !head.upgrades {
            RequestBody::Empty
        } else {
            RequestBody::Http1(Http1Body { wire: wire.clone() })
        };
        let busy = watch.busy();
        watch.waiting(false);
        let reply = {
            let mut answering = pin!(service(Request::from_parts(head.parts, body)));
            poll_fn(|cx| {
                if let Poll::Ready(reply) = answering.as_mut().poll(cx) {
                    return Poll::Ready(Ok(reply));
                }
                ready!(poll_end(&wire, &watch, cx));
                Poll::Ready(Err(ServerError::Gone))
            })
            .await?
        };
        let tunnels = asked.tunnels(reply.status());
        let keep = answer(&wire, &watch, common, &asked, reply).await?;
        drop(busy);
        let upgrade = wire.borrow_mut().upgrade.take();
        if let Some(upgrade) = upgrade.filter(|_| tunnels) {
            let _ = upgrade.send(wire.borrow_mut().take());
            return Ok(());
        }
        let skipped = within(&watch, skip(&wire)).await == Some(true);
        if !skipped {
            within(&watch, linger(&wire, LINGERING_MAX)).await;
        }
        if !keep || !skipped {
            within(&watch, poll_fn(|cx| wire.borrow_mut().poll_close(cx))).await;
            return Ok(());
        }
        wire.borrow_mut().answered();
    }
}

/// Waits for something as long as the connection may go on.
async fn within<T>(watch: &Watch, what: impl Future<Output = T>) -> Option<T> {
    let mut what = pin!(what);
    poll_fn(|cx| match what.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => watch.poll_over(cx).map(|()| None),
    })
    .await
}

fn poll_head(
    wire: &RefCell<Wire>,
    watch: &Watch,
    cx: &mut Context<'_>,
    limits: HeadLimits,
) -> Poll<Result<Option<head::RequestHead>, ServerError>> {
    if let Poll::Ready(head) = wire.borrow_mut().poll_head(cx, limits) {
        return Poll::Ready(head);
    }
    watch.poll_over(cx).map(|()| Ok(None))
}

/// Ready when nobody waits for the answer any more, or the connection has been told to end.
fn poll_end(wire: &RefCell<Wire>, watch: &Watch, cx: &mut Context<'_>) -> Poll<()> {
    if wire.borrow_mut().poll_gone(cx).is_ready() {
        return Poll::Ready(());
    }
    watch.poll_over(cx)
}

/// Writes an answer; whether the connection can be used again.
async fn answer(
    wire: &RefCell<Wire>,
    watch: &Watch,
    common: &Common,
    asked: &Asked,
    reply: Response<ReplyBody>,
) -> Result<bool, ServerError> {
    let (mut framing, keep) = {
        let mut wire = wire.borrow_mut();
        wire.answering();
        // A body that will not be read over ends the connection, and the client should know before.
        let asked = asked.unless_ending(wire.is_skippable(SKIPPED_MAX));
        write_head(&mut wire.out, &asked, &reply, common.date.borrow().as_bytes())
    };
    let mut body = reply.into_body();
    let (mut chunk, mut tail) = (Bytes::new(), b"".as_slice());
    poll_fn(|cx| {
        loop {
            // The body may still read the request: the wire is not borrowed while it does.
            let waits = gather(wire, &mut body, &mut framing, (&mut chunk, &mut tail), cx)?;
            match wire.borrow_mut().poll_flush(cx, &mut chunk, &mut tail) {
                Poll::Ready(flushed) => flushed?,
                Poll::Pending => {
                    ready!(watch.poll_over(cx));
                    return Poll::Ready(Err(ServerError::Gone));
                }
            }
            if framing.ended() {
                return Poll::Ready(Ok(keep));
            }
            if waits {
                ready!(poll_end(wire, watch, cx));
                return Poll::Ready(Err(ServerError::Gone));
            }
        }
    })
    .await
}

/// Takes what there is of a body; whether there will be more.
fn gather(
    wire: &RefCell<Wire>,
    body: &mut ReplyBody,
    framing: &mut Framing,
    (chunk, tail): (&mut Bytes, &mut &'static [u8]),
    cx: &mut Context<'_>,
) -> Result<bool, ServerError> {
    while !framing.ended() && chunk.is_empty() && tail.is_empty() && wire.borrow().out.len() < GATHERED_MAX {
        let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else { return Ok(true) };
        let out = &mut wire.borrow_mut().out;
        match frame {
            Some(Ok(frame)) => framing.frame(out, chunk, tail, frame),
            Some(Err(error)) => Err(error),
            None => framing.finish(out, None),
        }
        .map_err(ServerError::Body)?;
    }
    Ok(false)
}

/// Reads over what is left of the request's body; whether that succeeded.
async fn skip(wire: &RefCell<Wire>) -> bool {
    let mut skipped = 0;
    loop {
        if wire.borrow().is_read() {
            return true;
        }
        if skipped > SKIPPED_MAX || !wire.borrow().is_skippable(SKIPPED_MAX) {
            return false;
        }
        match poll_fn(|cx| wire.borrow_mut().poll_frame(cx)).await {
            Some(Ok(frame)) => skipped += frame.data_ref().map_or(0, |data| data.len() as u64),
            Some(Err(_)) => return false,
            None => {}
        }
    }
}
