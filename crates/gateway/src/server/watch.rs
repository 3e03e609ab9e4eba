//! What clients' connections do, and since when: a sweep of the core looks at all of them now and then, instead of a timer for
//! each that every request sets and clears.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Idle connections of a gateway that drains end after this time.
const IDLE_DRAINING: Duration = Duration::from_secs(2);

/// A client that took back more requests than this, and more than it had answered, is cut off (CVE-2023-44487, rapid reset).
const CANCELLED_MAX: u32 = 200;

/// Time limits of a client's connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WatchLimits {
    /// For a request's head, from its first byte.
    pub(crate) header: Duration,
    /// Without a request, or without a byte that the gateway waits for.
    pub(crate) idle: Duration,
}

/// A client's connection, as the sweep sees it.
#[derive(Debug)]
pub(crate) struct Watch {
    limits: WatchLimits,
    /// Requests being answered.
    busy: Cell<u32>,
    /// Grows with every read and write.
    moved: Cell<u32>,
    /// Bytes of a request have come since the last one was answered.
    begun: Cell<bool>,
    /// A request cannot go on until the client sends or reads.
    waiting: Cell<bool>,
    over: Cell<bool>,
    /// Requests that were answered, and that the client took back before.
    answered: Cell<u32>,
    cancelled: Cell<u32>,
    waker: RefCell<Option<Waker>>,
    /// What the last sweep saw, and since when it has been so.
    seen: Cell<u32>,
    quiet_since: Cell<Instant>,
    begun_since: Cell<Option<Instant>>,
}

/// A request being answered, until dropped.
#[derive(Debug)]
pub(crate) struct Busy(Rc<Watch>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.set(self.0.busy.get() - 1);
        self.0.begun.set(false);
    }
}

impl Watch {
    /// A new connection.
    pub(crate) fn new(limits: WatchLimits, now: Instant) -> Rc<Self> {
        Rc::new(Self {
            limits,
            busy: Cell::new(0),
            moved: Cell::new(0),
            begun: Cell::new(false),
            waiting: Cell::new(false),
            over: Cell::new(false),
            answered: Cell::new(0),
            cancelled: Cell::new(0),
            waker: RefCell::default(),
            seen: Cell::new(0),
            quiet_since: Cell::new(now),
            begun_since: Cell::new(None),
        })
    }

    /// A request begins to be answered.
    pub(crate) fn busy(self: &Rc<Self>) -> Busy {
        self.busy.set(self.busy.get() + 1);
        Busy(self.clone())
    }

    /// How often something has moved.
    pub(crate) fn moved(&self) -> u32 {
        self.moved.get()
    }

    /// Something moves.
    pub(crate) fn note(&self) {
        self.moved.set(self.moved.get().wrapping_add(1));
    }

    /// A part of the next request is there, or nothing of it.
    pub(crate) fn begun(&self, begun: bool) {
        self.begun.set(begun);
    }

    /// A request waits for the client, or does no longer.
    pub(crate) fn waiting(&self, waiting: bool) {
        self.waiting.set(waiting);
    }

    /// A request has begun that the client may take back (HTTP/2's RST_STREAM).
    pub(crate) fn promise(self: &Rc<Self>) -> Promise {
        Promise { watch: self.clone(), kept: false }
    }

    /// Ready when the connection must end.
    pub(crate) fn poll_over(&self, cx: &Context<'_>) -> Poll<()> {
        if self.over.get() {
            return Poll::Ready(());
        }
        let mut waker = self.waker.borrow_mut();
        if waker.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Ends the connection if it is idle for too long, too slow with a request's head, or keeps a request waiting.
    fn sweep(&self, now: Instant, draining: bool) {
        let moved = self.moved.get() != self.seen.replace(self.moved.get());
        let busy = self.busy.get() > 0;
        if moved || (busy && !self.waiting.get()) {
            self.quiet_since.set(now);
        }
        if busy || !self.begun.get() {
            self.begun_since.set(None);
        } else if self.begun_since.get().is_none() {
            self.begun_since.set(Some(now));
        }
        let idle = if draining && !busy { self.limits.idle.min(IDLE_DRAINING) } else { self.limits.idle };
        let quiet = now.duration_since(self.quiet_since.get()) >= idle;
        let slow = self.begun_since.get().is_some_and(|since| now.duration_since(since) >= self.limits.header);
        if quiet || slow {
            self.end();
        }
    }

    fn end(&self) {
        self.over.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// A request whose answer is owed.
#[derive(Debug)]
pub(crate) struct Promise {
    watch: Rc<Watch>,
    kept: bool,
}

impl Promise {
    /// The answer is there.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let count = if self.kept { &self.watch.answered } else { &self.watch.cancelled };
        count.set(count.get().saturating_add(1));
        let cancelled = self.watch.cancelled.get();
        if cancelled > CANCELLED_MAX && cancelled > self.watch.answered.get() {
            tracing::debug!(cancelled, "a client takes back what it asks for");
            self.watch.end();
        }
    }
}

/// A stream that notes when something moves.
pub(crate) struct Watched<S> {
    stream: S,
    watch: Rc<Watch>,
}

impl<S> Watched<S> {
    /// Watches a stream.
    pub(crate) fn new(stream: S, watch: Rc<Watch>) -> Self {
        Self { stream, watch }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_read(cx, buf);
        if result.is_ready() {
            this.watch.note();
            this.watch.begun(true);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.watch.note();
        Pin::new(&mut this.stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.watch.note();
        Pin::new(&mut this.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// All connections of a core.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    all: RefCell<Vec<Weak<Watch>>>,
}

impl Watches {
    /// Looks after a connection until it is dropped.
    pub(crate) fn add(&self, watch: &Rc<Watch>) {
        self.all.borrow_mut().push(Rc::downgrade(watch));
    }

    /// Looks at every connection.
    pub(crate) fn sweep(&self, now: Instant, draining: bool) {
        self.all.borrow_mut().retain(|watch| {
            let watch = watch.upgrade();
            watch.inspect(|watch| watch.sweep(now, draining)).is_some()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Clock {
        watches: Watches,
        watch: Rc<Watch>,
        start: Instant,
    }

    impl Clock {
        fn new() -> Self {
            let start = Instant::now();
            let limits = WatchLimits { header: Duration::from_secs(10), idle: Duration::from_secs(75) };
            let watch = Watch::new(limits, start);
            let watches = Watches::default();
            watches.add(&watch);
            Self { watches, watch, start }
        }

        /// Whether the connection is over after a sweep each second up to this one.
        fn over_at(&self, from: u64, to: u64, draining: bool) -> bool {
            for second in from..=to {
                self.watches.sweep(self.start + Duration::from_secs(second), draining);
            }
            self.watch.poll_over(&Context::from_waker(Waker::noop())).is_ready()
        }
    }

    #[test]
    fn idle_connections_end() {
        let clock = Clock::new();
        assert!(!clock.over_at(1, 74, false));
        clock.watch.note();
        assert!(!clock.over_at(75, 140, false), "something moved");
        assert!(clock.over_at(141, 150, false));
        let clock = Clock::new();
        assert!(!clock.over_at(1, 1, true));
        assert!(clock.over_at(2, 2, true));
    }

    #[test]
    fn slow_heads_end_and_requests_do_not() {
        let clock = Clock::new();
        clock.watch.begun(true);
        for second in 1..=10 {
            clock.watch.note();
            assert!(!clock.over_at(second, second, false), "{second}");
        }
        assert!(clock.over_at(11, 11, false), "however often a byte comes");
        let clock = Clock::new();
        clock.watch.begun(true);
        let busy = clock.watch.busy();
        assert!(!clock.over_at(1, 500, true), "an endpoint may take its time");
        clock.watch.waiting(true);
        assert!(!clock.over_at(501, 574, false));
        assert!(clock.over_at(575, 576, false), "a client that neither sends nor reads may not");
        drop(busy);
    }

    #[test]
    fn clients_that_only_take_back_are_cut_off() {
        let over = |clock: &Clock| clock.watch.poll_over(&Context::from_waker(Waker::noop())).is_ready();
        let clock = Clock::new();
        for number in 0..2 * CANCELLED_MAX {
            clock.watch.promise().keep();
            drop(clock.watch.promise());
            assert!(!over(&clock), "{number}");
        }
        let clock = Clock::new();
        for _ in 0..CANCELLED_MAX {
            drop(clock.watch.promise());
        }
        assert!(!over(&clock));
        drop(clock.watch.promise());
        assert!(over(&clock));
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let clock = Clock::new();
        drop(clock.watch);
        clock.watches.sweep(clock.start, false);
        assert!(clock.watches.all.borrow().is_empty());
    }
}
