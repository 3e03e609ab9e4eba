//! One endpoint as one core sees it: its connections, its record, who waits for it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::h1::{Connection, Exchange};
use super::h2::Http2Sender;
use crate::balance::peak_ewma;
use crate::health::{MeanLatency, Passive, Pending};
use crate::metrics::HostMetrics;
use crate::table::Endpoint;

/// Time over which a latency estimate forgets.
const DECAY_NS: u64 = 10_000_000_000;

/// What all cores know of an endpoint.
#[derive(Debug)]
pub(crate) struct HostShared {
    /// What the active checks say.
    pub(crate) healthy: AtomicBool,
    /// Until when a core left it out last; for people.
    pub(crate) ejected_until: Mutex<Option<Instant>>,
    /// Grows whenever the above changes.
    pub(crate) version: AtomicU64,
}

impl Default for HostShared {
    fn default() -> Self {
        Self { healthy: AtomicBool::new(true), ejected_until: Mutex::default(), version: AtomicU64::new(0) }
    }
}

/// An endpoint.
pub(crate) struct Host {
    pub(crate) endpoint: Endpoint,
    pub(crate) shared: Arc<HostShared>,
    pub(crate) metrics: Arc<HostMetrics>,
    pub(crate) passive: RefCell<Passive>,
    pub(crate) pending: RefCell<Pending>,
    /// Kept only where latency outliers are looked for.
    pub(crate) mean: Cell<MeanLatency>,
    pub(crate) in_flight: Cell<u32>,
    pub(crate) connections: Cell<u32>,
    pub(crate) http2: RefCell<Option<Http2Sender>>,
    pub(crate) born: Instant,
    latency_ns: Cell<u64>,
    latency_at: Cell<Instant>,
    idle: RefCell<VecDeque<Idle>>,
    /// The same endpoint under other settings: requests that began here give their connections back there.
    heir: RefCell<Weak<Host>>,
    /// When idle connections were last looked through: near enough for how long they are kept, and no look at the clock.
    swept: Cell<Instant>,
}

struct Idle {
    connection: Connection,
    since: Instant,
    open: OpenConnection,
}

/// Counts a connection while it lives.
pub(crate) struct OpenConnection(Weak<Host>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if let Some(host) = self.0.upgrade() {
            host.connections.set(host.connections.get() - 1);
        }
    }
}

impl Host {
    /// A new endpoint.
    pub(crate) fn new(
        endpoint: Endpoint,
        shared: Arc<HostShared>,
        metrics: Arc<HostMetrics>,
        now: Instant,
    ) -> Rc<Self> {
        Rc::new(Self {
            endpoint,
            shared,
            metrics,
            passive: RefCell::default(),
            pending: RefCell::default(),
            mean: Cell::default(),
            in_flight: Cell::new(0),
            connections: Cell::new(0),
            http2: RefCell::default(),
            born: now,
            latency_ns: Cell::new(0),
            latency_at: Cell::new(now),
            idle: RefCell::default(),
            heir: RefCell::default(),
            swept: Cell::new(now),
        })
    }

    /// Takes over what does not depend on settings: connections, the passive record, the expected latency.
    pub(crate) fn inherit(self: &Rc<Self>, before: &Self) {
        *self.passive.borrow_mut() = before.passive.borrow().clone();
        self.http2.borrow_mut().clone_from(&before.http2.borrow());
        self.latency_ns.set(before.latency_ns.get());
        self.latency_at.set(before.latency_at.get());
        self.mean.set(before.mean.get());
        self.swept.set(before.swept.get());
        let idle = before.idle.take().into_iter();
        self.idle.borrow_mut().extend(idle.map(|it| Idle { open: self.open(), ..it }));
        *before.heir.borrow_mut() = Rc::downgrade(self);
    }

    /// Counts a new connection.
    pub(crate) fn open(self: &Rc<Self>) -> OpenConnection {
        self.connections.set(self.connections.get() + 1);
        OpenConnection(Rc::downgrade(self))
    }

    /// An idle connection that is still good: the one used last, so that the others can be closed.
    pub(crate) fn take_idle(&self) -> Option<(Connection, OpenConnection)> {
        let mut idle = self.idle.borrow_mut();
        while let Some(found) = idle.pop_back() {
            if !found.connection.io.is_stale() {
                return Some((found.connection, found.open));
            }
        }
        None
    }

    /// Keeps a connection for the next request.
    fn keep(&self, connection: Connection, open: OpenConnection, idle_max: usize) {
        if let Some(heir) = self.heir.borrow().upgrade() {
            let open = heir.open();
            return heir.keep(connection, open, idle_max);
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() < idle_max {
            idle.push_back(Idle { connection, since: self.swept.get(), open });
        }
    }

    /// Closes idle connections that have been so for too long, or that the endpoint closed.
    pub(crate) fn sweep(&self, now: Instant, idle_timeout: Duration) {
        self.swept.set(now);
        self.idle.borrow_mut().retain(|it| now.duration_since(it.since) < idle_timeout && !it.connection.io.is_stale());
    }

    /// Closes all idle connections: the endpoint was found not to answer.
    pub(crate) fn close_idle(&self) {
        self.idle.borrow_mut().clear();
        *self.http2.borrow_mut() = None;
    }

    /// Takes in how long an answer's head took.
    pub(crate) fn note_latency(&self, took: Duration, now: Instant) {
        let elapsed = now.duration_since(self.latency_at.replace(now)).as_nanos() as u64;
        let sample = took.as_nanos() as u64;
        self.latency_ns.set(peak_ewma(self.latency_ns.get(), sample, elapsed, DECAY_NS));
    }

    /// Expected latency.
    pub(crate) fn latency_ns(&self) -> u64 {
        self.latency_ns.get()
    }

    /// Whether the endpoint may be used at `now`.
    pub(crate) fn healthy(&self, now: Instant) -> bool {
        self.shared.healthy.load(Ordering::Relaxed) && !self.passive.borrow().ejected(now)
    }
}

/// A request in flight at an endpoint; ends when dropped.
pub(crate) struct Permit {
    pub(crate) host: Rc<Host>,
    pub(crate) open: Cell<Option<OpenConnection>>,
    pub(crate) idle_max: usize,
}

impl Permit {
    /// A request begins.
    pub(crate) fn new(host: Rc<Host>, idle_max: usize) -> Self {
        host.in_flight.set(host.in_flight.get() + 1);
        Self { host, open: Cell::new(None), idle_max }
    }

    /// An exchange has ended; its connection is kept if it can be used again.
    pub(crate) fn give_back(&self, exchange: Exchange) {
        if let (Some(connection), Some(open)) = (exchange.recycle(), self.open.take()) {
            self.host.keep(connection, open, self.idle_max);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.host.in_flight.set(self.host.in_flight.get() - 1);
    }
}
