//! From a request to an answer: attempts, retries, hedges.
//!
//! # Flow
//! [`Forward::run`] picks an endpoint, races an attempt (and a second one beside it, if the first is late or its endpoint
//! stalled), and tries another endpoint if the outcome allows it.
//!
//! # Guarantees
//! - A request that may not be repeated (RFC 9110, 9.2.2) is sent once; it is tried elsewhere only if it cannot have arrived.
//! - Retries after an answer or a timeout are within the budget, unless another endpoint is known to answer well; avoiding an
//!   endpoint that refuses is not a retry.
//! - Nothing is held beyond the call but what the answer holds.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version};
use http_body_util::{Either, Empty, Full};
use hyper::body::Incoming;

use super::race::{Race, Waiting};
use crate::body::ClientBody;
use crate::breaker::{Admission, SharedBreaker};
use crate::health::Outcome;
use crate::metrics::RuleMetrics;
use crate::table::settings::{Protocol, RetrySettings};
use crate::upstream::{
    ConnectError, Connection, Exchange, ExchangeError, Group, Host, Length, Outgoing, Permit, connect, handshake,
};

/// Endpoints tried for one request at most, refused ones included.
const HOSTS_TRIED_MAX: usize = 6;

/// A request as it goes to endpoints.
#[derive(Debug)]
pub(super) struct Outbound {
    pub(super) method: Method,
    /// Path and query; the authority for CONNECT.
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    pub(super) upgrade: Option<HeaderValue>,
}

/// Its body.
#[derive(Debug)]
pub(super) enum Payload {
    /// None.
    None,
    /// Kept for repetition.
    Full(Bytes),
    /// Can be sent once.
    Once(RefCell<Option<(ClientBody, Length)>>),
}

impl Payload {
    fn repeatable(&self) -> bool {
        match self {
            Self::None | Self::Full(_) => true,
            Self::Once(body) => body.borrow().is_some(),
        }
    }

    fn take(&self) -> Option<Outgoing> {
        match self {
            Self::None => Some(Outgoing::None),
            Self::Full(bytes) => Some(Outgoing::Full(bytes.clone())),
            Self::Once(body) => body.borrow_mut().take().map(|(body, length)| Outgoing::Stream(body, length)),
        }
    }
}

/// An endpoint's answer: its head, and where its body comes from.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: AnswerBody,
    pub(super) permit: Permit,
    /// Which endpoint of the group.
    pub(super) index: usize,
}

/// Where a body comes from.
pub(super) enum AnswerBody {
    Http1(Box<Exchange>),
    Http2(Incoming),
}

/// Why one attempt failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    #[error("HTTP/2: {0}")]
    Http2(#[from] hyper::Error),
    #[error("no answer in time")]
    TimedOut,
    #[error("all connections to the endpoint are in use")]
    Full,
    #[error("the request's body has been sent already")]
    Sent,
    #[error("the request cannot be written as HTTP/2: {0}")]
    Request(#[from] http::Error),
}

impl AttemptError {
    /// Whether the endpoint cannot have seen the request.
    fn never_sent(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Full)
    }
}

/// Why there is no answer at all.
#[derive(Debug)]
pub(super) enum Failure {
    /// No endpoint, or none healthy.
    NoHost,
    /// The circuit is open, for so long.
    CircuitOpen(Duration),
    /// The request's time is over.
    TimedOut,
    /// No endpoint could be connected to, or had a connection free.
    Unreachable(AttemptError),
    /// The last attempt failed.
    Broken(AttemptError),
}

/// A request being forwarded.
pub(super) struct Forward<'a> {
    pub(super) group: &'a Rc<Group>,
    pub(super) out: &'a Outbound,
    pub(super) payload: &'a Payload,
    pub(super) retry: &'a RetrySettings,
    pub(super) deadline: Option<Instant>,
    pub(super) hash: u64,
    /// An endpoint to try first, for sticky sessions.
    pub(super) first: Option<usize>,
    pub(super) metrics: &'a RuleMetrics,
    /// Wakes the core's tick, which looks after whoever waits.
    pub(super) wake: &'a dyn Fn(),
}

/// Counts in a cell until dropped.
pub(super) struct Counted<'a>(&'a Cell<u32>);

impl<'a> Counted<'a> {
    pub(super) fn new(cell: &'a Cell<u32>) -> Self {
        cell.set(cell.get() + 1);
        Self(cell)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl<'a> Forward<'a> {
    /// Forwards until there is an answer that can be given, or no attempt is left.
    pub(super) async fn run(&'a self) -> Result<Answer, Failure> {
        let _active = Counted::new(&self.group.active);
        let mut tried: Vec<usize> = Vec::new();
        let mut retries_left = self.retry.attempts;
        let mut counted: Option<Counted<'_>> = None;
        loop {
            let now = Instant::now();
            if self.deadline.is_some_and(|deadline| deadline <= now) {
                return Err(Failure::TimedOut);
            }
            let picked = self.first.filter(|_| tried.is_empty()).or_else(|| self.group.pick(&tried, self.hash, now));
            let index = picked.ok_or(Failure::NoHost)?;
            let (breaker, admission) = match self.admit(index, now) {
                // This endpoint's own circuit is open: another one may be well.
                Err(Failure::CircuitOpen(_))
                    if !self.group.breakers.is_empty() && tried.len() + 1 < self.group.hosts.len() =>
                {
                    tried.push(index);
                    continue;
                }
                other => other?,
            };
            tried.push(index);
            let (index, result) = Race::run(self, index, &mut tried, now).await;
            let now_after = Instant::now();
            self.note(index, breaker, admission, &result, now_after, now_after - now);
            drop(counted.take());
            let repeatable = self.payload.repeatable() && self.out.upgrade.is_none();
            let again = tried.len() < HOSTS_TRIED_MAX && repeatable;
            match result {
                Ok(answer) => {
                    let unwanted = self.retry.statuses.contains(&answer.status);
                    if !(unwanted && again && self.spend(&mut retries_left, &tried)) {
                        return Ok(answer);
                    }
                }
                Err(AttemptError::TimedOut) if self.deadline.is_some_and(|deadline| deadline <= now_after) => {
                    return Err(Failure::TimedOut);
                }
                // Nothing was sent: another endpoint is not a repetition, as long as there is one that was not tried.
                Err(error) if error.never_sent() => {
                    if !(again && tried.len() < self.group.hosts.len().max(2)) {
                        return Err(Failure::Unreachable(error));
                    }
                }
                Err(error) => {
                    tracing::debug!(upstream = %self.group.spec.name, %error, "an attempt failed");
                    if !(again && self.retry.may_repeat(&self.out.method) && self.spend(&mut retries_left, &tried)) {
                        return Err(if matches!(error, AttemptError::TimedOut) {
                            Failure::TimedOut
                        } else {
                            Failure::Broken(error)
                        });
                    }
                }
            }
            self.metrics.retries.add(1);
            counted = Some(Counted::new(&self.group.retries));
            Box::pin(self.back_off(retries_left)).await;
        }
    }

    /// Takes a retry from what is left, if method and budget allow it. The budget keeps an upstream that fails as a whole from
    /// being asked even more; where another endpoint answers well, there is nothing to be kept from.
    fn spend(&self, left: &mut u8, tried: &[usize]) -> bool {
        let allowed = *left > 0
            && self.retry.may_repeat(&self.out.method)
            && (self.group.has_good_host(tried, Instant::now())
                || self.group.may_retry(self.retry.budget_percent, self.retry.budget_min));
        *left -= u8::from(allowed);
        allowed
    }

    /// Waits before the second and later retries: exponential, with full jitter.
    async fn back_off(&self, left: u8) {
        let done = u32::from(self.retry.attempts.saturating_sub(left));
        if self.retry.backoff.is_zero() || done < 2 {
            return;
        }
        let longest = self.retry.backoff * 2_u32.saturating_pow(done - 2).min(64);
        tokio::time::sleep(longest.mul_f64(fastrand::f64())).await;
    }

    fn admit(&self, index: usize, now: Instant) -> Result<(Option<&'a SharedBreaker>, Admission), Failure> {
        let breaker = self.group.breaker.as_ref().or_else(|| self.group.breakers.get(index));
        let Some(breaker) = breaker else { return Ok((None, Admission::Call)) };
        match breaker.lock().unwrap_or_else(PoisonError::into_inner).admit(now) {
            Admission::Refused(wait) => Err(Failure::CircuitOpen(wait)),
            admission => Ok((Some(breaker), admission)),
        }
    }

    /// Tells breaker and endpoint what came of an attempt.
    fn note(
        &self,
        index: usize,
        breaker: Option<&SharedBreaker>,
        admission: Admission,
        result: &Result<Answer, AttemptError>,
        now: Instant,
        took: Duration,
    ) {
        let host = &self.group.hosts[index];
        let (outcome, counter) = match result {
            Ok(answer) if !is_bad(answer.status) => (Outcome::Good, &host.metrics.good),
            Err(AttemptError::Connect(_)) => (Outcome::Refused, &host.metrics.refused),
            // The client's fault, or ours: it says nothing about the endpoint.
            Err(
                AttemptError::Exchange(ExchangeError::Client(_))
                | AttemptError::Full
                | AttemptError::Sent
                | AttemptError::Request(_),
            ) => return,
            _ => (Outcome::Bad, &host.metrics.bad),
        };
        counter.add(1);
        if result.is_ok() {
            self.group.note_latency(host, took, now);
            host.metrics.duration.note(took);
        }
        self.group.note(host, outcome, now);
        if let Some(breaker) = breaker {
            let mut breaker = breaker.lock().unwrap_or_else(PoisonError::into_inner);
            breaker.note(admission, now, outcome != Outcome::Good, took);
        }
    }

    /// Whether a second attempt may be made beside a first.
    pub(super) fn may_double(&self) -> bool {
        let kept = matches!(self.payload, Payload::None | Payload::Full(_));
        kept && self.out.upgrade.is_none() && self.retry.attempts > 0 && self.retry.may_repeat(&self.out.method)
    }

    /// Whether an answer ends a race that another attempt still runs in.
    pub(super) fn is_wanted(&self, result: &Result<Answer, AttemptError>) -> bool {
        result.as_ref().is_ok_and(|answer| !self.retry.statuses.contains(&answer.status))
    }

    /// Registers an attempt with the tick.
    pub(super) fn wait_at(&self, index: usize, now: Instant) -> Waiting {
        let per_try = self.retry.per_try_timeout.map(|limit| now + limit);
        let deadline = [per_try, self.deadline].into_iter().flatten().min();
        let host = &self.group.hosts[index];
        let hedge_after = self.retry.hedge_after.into_iter().chain(self.group.overdue(host)).min();
        let hedge_at = hedge_after.filter(|_| self.may_double()).map(|after| now + after);
        let waiting = Waiting::new(host, now, deadline, hedge_at);
        (self.wake)();
        waiting
    }

    /// One attempt at one endpoint.
    pub(super) async fn attempt(&self, index: usize) -> Result<Answer, AttemptError> {
        let settings = &self.group.spec.settings;
        let host = &self.group.hosts[index];
        let permit = Permit::new(host.clone(), settings.idle_max as usize);
        match settings.protocol {
            Protocol::Http1 => self.attempt_http1(index, host, permit).await,
            Protocol::Http2 => Box::pin(self.attempt_http2(index, host, permit)).await,
        }
    }

    async fn attempt_http1(&self, index: usize, host: &Rc<Host>, permit: Permit) -> Result<Answer, AttemptError> {
        loop {
            let (connection, open, reused) = match host.take_idle() {
                Some((connection, open)) => (connection, open, true),
                None if host.connections.get() >= self.group.spec.settings.connections_max => {
                    return Err(AttemptError::Full);
                }
                None => {
                    let open = host.open();
                    // Boxed because it is rare: a request's own future stays small.
                    let io = Box::pin(connect(host.endpoint.address, &self.group.spec.settings)).await?;
                    host.metrics.connects.add(1);
                    (Connection::new(io), open, false)
                }
            };
            permit.open.set(Some(open));
            let body = self.payload.take().ok_or(AttemptError::Sent)?;
            let out = self.out;
            let mut exchange =
                Exchange::new(connection, &out.method, &out.target, &out.headers, body, out.upgrade.as_ref());
            match poll_fn(|cx| exchange.poll_head(cx)).await {
                Ok(head) => {
                    let body = AnswerBody::Http1(Box::new(exchange));
                    return Ok(Answer { status: head.status, headers: head.headers, body, permit, index });
                }
                // The endpoint closed a kept connection just as it was used again: nothing of this request was wrong.
                Err(_)
                    if reused
                        && !exchange.heard()
                        && self.payload.repeatable()
                        && self.retry.may_repeat(&out.method) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn attempt_http2(&self, index: usize, host: &Rc<Host>, permit: Permit) -> Result<Answer, AttemptError> {
        let known = host.http2.borrow().clone().filter(|sender| !sender.is_closed());
        let mut sender = match known {
            Some(sender) => sender,
            None => {
                // Boxed because it is rare: a request's own future stays small.
                let io = Box::pin(connect(host.endpoint.address, &self.group.spec.settings)).await?;
                host.metrics.connects.add(1);
                let opened = handshake(io).await.map_err(|error| ConnectError::Http2(host.endpoint.address, error))?;
                // Another request may have opened one meanwhile; then that one is shared, and this one ends unused.
                let mut slot = host.http2.borrow_mut();
                match slot.as_ref().filter(|sender| !sender.is_closed()) {
                    Some(other) => other.clone(),
                    None => slot.insert(opened).clone(),
                }
            }
        };
        let body = match self.payload.take().ok_or(AttemptError::Sent)? {
            Outgoing::None => Either::Right(Either::Left(Empty::new())),
            Outgoing::Full(bytes) => Either::Left(Full::new(bytes)),
            Outgoing::Stream(body, _) => Either::Right(Either::Right(body)),
        };
        let mut request = Request::new(body);
        *request.method_mut() = self.out.method.clone();
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.out.headers.clone();
        let authority = request.headers_mut().remove(HOST);
        let authority = authority.as_ref().map_or(b"localhost".as_slice(), HeaderValue::as_bytes);
        let scheme = if self.group.spec.settings.tls.is_some() { "https" } else { "http" };
        *request.uri_mut() =
            Uri::builder().scheme(scheme).authority(authority).path_and_query(self.out.target.as_str()).build()?;
        let response = sender.send_request(request).await?;
        let (parts, incoming) = response.into_parts();
        Ok(Answer { status: parts.status, headers: parts.headers, body: AnswerBody::Http2(incoming), permit, index })
    }
}

/// Statuses that speak against an endpoint.
fn is_bad(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}
