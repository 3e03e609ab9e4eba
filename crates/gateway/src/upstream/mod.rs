//! Upstreams as one core sees them: endpoints, their record, and which is next.

mod chunked;
mod connect;
mod h1;
mod h2;
mod head;
mod host;

pub(crate) use chunked::{Chunked, Piece};
pub(crate) use connect::{ConnectError, connect};
pub(crate) use h1::{Connection, Exchange, ExchangeError, Outgoing};
pub(crate) use h2::{LocalExecutor, handshake};
pub(crate) use head::{Length, read as read_head};
pub(crate) use host::{Host, HostShared, Permit};

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::balance::{Balancer, HostFacts, Hosts, Selection, select};
use crate::breaker::SharedBreaker;
use crate::health::{Ejections, MeanLatency, Outcome, is_outlier};
use crate::registry::Registry;
use crate::table::Upstream;

/// An attempt is overdue after so many times the endpoint's usual latency.
const OVERDUE_FACTOR: u32 = 10;
/// And after so many times the stall limit while that is not known.
const OVERDUE_UNKNOWN: u32 = 3;
/// Shortest time between two looks at who is healthy.
const REFRESH_MIN: Duration = Duration::from_millis(1);

/// An upstream.
pub(crate) struct Group {
    pub(crate) spec: Arc<Upstream>,
    pub(crate) hosts: Vec<Rc<Host>>,
    pub(crate) active: Cell<u32>,
    pub(crate) retries: Cell<u32>,
    pub(crate) breaker: Option<SharedBreaker>,
    /// One for each endpoint, if circuits are the endpoints' own.
    pub(crate) breakers: Vec<SharedBreaker>,
    balancer: RefCell<Balancer>,
    selection: RefCell<Selection>,
    /// When the selection must be made anew, at the latest.
    refresh_at: Cell<Option<Instant>>,
    dirty: Cell<bool>,
    versions: Cell<u64>,
    zone: Option<Arc<str>>,
    /// The time of the present pick, for weights that grow.
    now: Cell<Instant>,
}

impl Group {
    /// An upstream whose known endpoints keep their record and their connections. `before` may have other settings, as long as
    /// they are reached in the same way.
    pub(crate) fn new(
        spec: Arc<Upstream>,
        before: Option<&Group>,
        registry: &Registry,
        breaker: Option<SharedBreaker>,
        breakers: Vec<SharedBreaker>,
        zone: Option<Arc<str>>,
        now: Instant,
    ) -> Rc<Self> {
        let known = |address| before.and_then(|group| group.hosts.iter().find(|host| host.endpoint.address == address));
        let hosts: Vec<Rc<Host>> = spec
            .endpoints
            .iter()
            .map(|endpoint| match known(endpoint.address) {
                Some(host) if host.endpoint == *endpoint && before.is_some_and(|it| it.spec.key == spec.key) => {
                    host.clone()
                }
                Some(host) => {
                    // What no check will ever correct is not taken over.
                    let known = spec.settings.health.as_ref().map(|_| &*host.shared);
                    let (shared, metrics) = registry.host(&spec.key, &spec.name, endpoint.address, known);
                    let heir = Host::new(endpoint.clone(), shared, metrics, host.born);
                    heir.inherit(host);
                    heir
                }
                None => {
                    let (shared, metrics) = registry.host(&spec.key, &spec.name, endpoint.address, None);
                    Host::new(endpoint.clone(), shared, metrics, now)
                }
            })
            .collect();
        let names: Vec<String> = hosts.iter().map(|host| host.endpoint.address.to_string()).collect();
        let weights: Vec<u32> = hosts.iter().map(|host| host.endpoint.weight).collect();
        let balancer = Balancer::new(spec.settings.algorithm, &names, &weights);
        Rc::new(Self {
            hosts,
            active: Cell::new(0),
            retries: Cell::new(0),
            breaker,
            breakers,
            balancer: RefCell::new(balancer),
            selection: RefCell::default(),
            refresh_at: Cell::new(None),
            dirty: Cell::new(true),
            versions: Cell::new(0),
            zone,
            now: Cell::new(now),
            spec,
        })
    }

    /// Whether the balancer wants a key.
    pub(crate) fn needs_hash(&self) -> bool {
        self.balancer.borrow().needs_hash()
    }

    /// The endpoint for a request.
    pub(crate) fn pick(&self, tried: &[usize], hash: u64, now: Instant) -> Option<usize> {
        self.refresh(now);
        self.now.set(now);
        let selection = self.selection.borrow();
        self.balancer.borrow_mut().pick(self, &selection.hosts, tried, hash, &mut |below| fastrand::u32(..below.max(1)))
    }

    /// Whether no endpoint is healthy.
    pub(crate) fn none_healthy(&self, now: Instant) -> bool {
        self.refresh(now);
        self.selection.borrow().none_healthy
    }

    /// Makes the selection anew, if something may have changed.
    fn refresh(&self, now: Instant) {
        let versions = self.hosts.iter().map(|host| host.shared.version.load(Ordering::Relaxed)).sum();
        let due = self.refresh_at.get().is_some_and(|at| at <= now);
        if !self.dirty.get() && !due && versions == self.versions.get() {
            return;
        }
        let facts: Vec<HostFacts> = self
            .hosts
            .iter()
            .map(|host| HostFacts {
                healthy: host.healthy(now),
                priority: host.endpoint.priority,
                local: self.zone.is_some() && host.endpoint.zone == self.zone,
                weight: host.endpoint.weight,
            })
            .collect();
        let settings = &self.spec.settings;
        *self.selection.borrow_mut() =
            select(&facts, settings.panic_percent, settings.zone_aware && self.zone.is_some());
        let returns = self.hosts.iter().filter_map(|host| host.passive.borrow().until()).filter(|at| *at > now).min();
        self.refresh_at.set(returns.map(|at| at.max(now + REFRESH_MIN)));
        self.dirty.set(false);
        self.versions.set(versions);
    }

    /// Takes in what an attempt at an endpoint came to.
    pub(crate) fn note(&self, host: &Host, outcome: Outcome, now: Instant) {
        let ejected = || self.hosts.iter().filter(|it| !it.healthy(now)).count();
        let others = match outcome {
            Outcome::Good => Ejections { hosts: self.hosts.len(), ejected: 0 },
            _ => Ejections { hosts: self.hosts.len(), ejected: ejected() },
        };
        if host.passive.borrow_mut().note(outcome, now, &self.spec.settings.outlier, others) {
            self.dirty.set(true);
            host.metrics.ejections.add(1);
            let until = host.passive.borrow().until();
            *host.shared.ejected_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
            if matches!(outcome, Outcome::Refused | Outcome::Stalled) {
                host.close_idle();
            }
            tracing::info!(upstream = %self.spec.name, endpoint = %host.endpoint.address, ?outcome, "left out for a while");
        }
    }

    /// Takes in how long an answer's head took; an endpoint that is much slower than the others is left out.
    pub(crate) fn note_latency(&self, host: &Host, took: Duration, now: Instant) {
        host.note_latency(took, now);
        let factor = self.spec.settings.outlier.latency_factor;
        if factor <= 0.0 {
            return;
        }
        let mut mean = host.mean.get();
        mean.note(took);
        host.mean.set(mean);
        let others = self.hosts.iter().filter(|it| !std::ptr::eq(Rc::as_ptr(it), host)).map(|it| it.mean.get());
        if is_outlier(mean, others, factor) {
            self.note(host, Outcome::Slow, now);
            // It begins anew when it is back.
            host.mean.set(MeanLatency::default());
        }
    }

    /// Whether a retry is within the budget: a share of what is active, and a few always.
    pub(crate) fn may_retry(&self, percent: u8, min: u32) -> bool {
        let allowed = (u64::from(self.active.get()) * u64::from(percent) / 100).max(u64::from(min));
        u64::from(self.retries.get()) < allowed
    }

    /// Whether an endpoint that was not tried yet answered well the last time.
    pub(crate) fn has_good_host(&self, tried: &[usize], now: Instant) -> bool {
        let mut others = self.hosts.iter().enumerate().filter(|(index, _)| !tried.contains(index));
        others.any(|(_, host)| host.healthy(now) && host.passive.borrow().is_well())
    }

    /// How long an attempt may wait before another is made beside it although nobody else is there to show that this endpoint
    /// hangs: far longer than it usually takes, so that what is merely slow is not asked for twice.
    pub(crate) fn overdue(&self, host: &Host) -> Option<Duration> {
        let stall = self.spec.settings.outlier.stall?;
        match host.latency_ns() {
            0 => Some(stall * OVERDUE_UNKNOWN),
            usual => Some(stall.max(Duration::from_nanos(usual) * OVERDUE_FACTOR)),
        }
    }

    /// Another endpoint has answered what an attempt at this one still waits for: that is what tells a hung one.
    pub(crate) fn outdone(&self, host: &Host, now: Instant) {
        let stalled = |limit| host.pending.borrow().stalled(now, limit, Some(now));
        if self.spec.settings.outlier.stall.is_some_and(stalled) && !host.passive.borrow().ejected(now) {
            self.note(host, Outcome::Stalled, now);
        }
    }

    /// Looks through waiting attempts; answers whether anything waits.
    pub(crate) fn tick(&self, now: Instant) -> bool {
        let mut waits = false;
        for (index, host) in self.hosts.iter().enumerate() {
            let mut pending = host.pending.borrow_mut();
            if pending.len() == 0 {
                continue;
            }
            waits = true;
            let others = self.hosts.iter().enumerate().filter(|(other, _)| *other != index);
            let answered = || others.filter_map(|(_, other)| other.pending.borrow().answered()).max();
            let stall = self.spec.settings.outlier.stall;
            let stalled = stall.is_some_and(|limit| pending.stalled(now, limit, answered()));
            pending.tick(now, stalled);
            drop(pending);
            if stalled && !host.passive.borrow().ejected(now) {
                self.note(host, Outcome::Stalled, now);
            }
        }
        waits
    }
}

impl Hosts for Group {
    fn weight(&self, host: usize) -> u32 {
        let Some(host) = self.hosts.get(host) else { return 0 };
        let slow_start = self.spec.settings.slow_start;
        if slow_start.is_zero() {
            return host.endpoint.weight;
        }
        // Weights are taken tenfold, so that an endpoint of weight 1 can have a tenth of it.
        let since = host.passive.borrow().last_return().unwrap_or(host.born);
        let age = self.now.get().saturating_duration_since(since).as_secs_f64() / slow_start.as_secs_f64();
        let full = host.endpoint.weight.saturating_mul(10);
        ((f64::from(full) * age.clamp(0.1, 1.0)) as u32).max(1)
    }

    fn in_flight(&self, host: usize) -> u32 {
        self.hosts.get(host).map_or(0, |host| host.in_flight.get())
    }

    fn latency_ns(&self, host: usize) -> u64 {
        self.hosts.get(host).map_or(0, |host| host.latency_ns())
    }
}
