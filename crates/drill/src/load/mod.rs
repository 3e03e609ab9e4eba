//! An open-loop HTTP load: requests are sent when they are due, whatever the answers do.
//!
//! Flow: [`LoadPlan`] → [`Load::start`]: one thread with a runtime of its own → `schedule` says when, `timer` waits for it,
//! `client` asks → every end is noted as a [`Sample`] → [`Load::end`] waits for what is in flight.
//!
//! Guarantees:
//! - Latency counts from the moment a request was *due*; a stalled server or generator cannot hide it.
//! - How late the generator itself was is noted in each sample (`lag_us`), so that a verdict can say whether to trust it.
//! - One core: the thread is single, and nothing of the drill's other work runs on it.
//!
//! Deliberately absent: HTTP/2 and several addresses; DNS (the address is looked up once, before).

mod client;
pub mod measure;
pub mod sample;
pub mod schedule;
pub mod timer;
pub mod tls;

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderValue;
use hyper::{Method, Uri};
use tokio::task::LocalSet;
use tokio::time::Instant;

use client::{Pool, Prepared, Session};
use sample::{Failure, Recording, Sample};
use schedule::{Arrivals, Due, Schedule};
use timer::Timer;
use tls::Tls;

/// Requests sent one after the other when the generator is behind, before it looks at answers again.
const BURST_MAX: u32 = 16;
/// The pause that lets the generator see that it is told to stop.
const LOOK: Duration = Duration::from_millis(50);

/// One kind of request among those of a load.
#[derive(Debug, Clone)]
pub struct Route {
    /// GET unless it says otherwise.
    pub method: Method,
    /// Path and query.
    pub path: Uri,
    /// Sent as it is.
    pub body: Bytes,
    /// How often, compared with the others.
    pub weight: u32,
}

/// A load.
#[derive(Debug, Clone)]
pub struct LoadPlan {
    /// Where to.
    pub address: SocketAddr,
    /// The `Host` header.
    pub host: String,
    /// Over TLS, if set.
    pub tls: Option<Tls>,
    /// Whether a connection is used again for the next request; if not, each is that of a new user.
    pub keep_alive: bool,
    /// Requests per second.
    pub rate: f64,
    /// How far apart.
    pub arrivals: Arrivals,
    /// What is asked; at least one.
    pub routes: Vec<Route>,
    /// Requests of one session, which keeps its cookies; 1: no sessions.
    pub steps: u32,
    /// Between two requests of a session.
    pub think: Duration,
    /// How long one try may take.
    pub timeout: Duration,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How often an idempotent request is tried, the first included. More than once is a property of the clients, and the
    /// verdict says so.
    pub tries: u8,
    /// Requests in flight at most; more count as [`Failure::NotSent`].
    pub in_flight_max: u32,
    /// Of mix and Poisson arrivals.
    pub seed: u64,
    /// When to end by itself.
    pub duration: Option<Duration>,
}

/// Why a load could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The host is not a header's value, or there is nothing to ask.
    #[error("the load cannot be used: {0}")]
    Plan(String),
    /// The thread or its runtime.
    #[error(
        "cannot start the load's thread: {0}; look at the limits on processes and open files (ulimit -u, ulimit -n)"
    )]
    Start(#[source] std::io::Error),
    /// The timer failed while it ran.
    #[error("the load's timer failed: {0}")]
    Timer(#[source] std::io::Error),
    /// The thread is gone.
    #[error("the load's thread ended before its time")]
    Lost,
}

/// A load that runs.
pub struct Load {
    /// What became of the requests so far.
    pub recording: Arc<Recording>,
    /// The moment that all times of samples count from.
    pub began: std::time::Instant,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), LoadError>>,
}

impl Load {
    /// Starts to ask.
    ///
    /// # Errors
    /// When the plan is unusable or there is no thread to be had.
    pub fn start(plan: LoadPlan) -> Result<Self, LoadError> {
        let host = HeaderValue::from_str(&plan.host);
        let host = host.map_err(|_| LoadError::Plan(format!("the host {:?} cannot be sent", plan.host)))?;
        if plan.routes.iter().all(|route| route.weight == 0) || plan.rate.is_nan() || plan.rate <= 0.0 {
            return Err(LoadError::Plan("it needs a rate above 0 and at least one path with a weight".to_owned()));
        }
        let (recording, stop) = (Arc::new(Recording::default()), Arc::new(AtomicBool::new(false)));
        let began = std::time::Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(LoadError::Start)?;
        let (noted, told) = (Arc::clone(&recording), Arc::clone(&stop));
        let work = move || {
            let pool = Pool::new(plan.address, host, plan.connect_timeout, plan.tls.clone());
            LocalSet::new().block_on(&runtime, generate(plan, pool, began.into(), noted, told))
        };
        let thread = std::thread::Builder::new().name("load".to_owned()).spawn(work).map_err(LoadError::Start)?;
        Ok(Self { recording, began, stop, thread })
    }

    /// Stops asking, waits for the answers of what is in flight, and answers with all samples.
    ///
    /// # Errors
    /// When the generator failed.
    pub fn end(self) -> Result<Vec<Sample>, LoadError> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| LoadError::Lost)??;
        Ok(self.recording.since(0))
    }

    /// Whether it has ended by itself.
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }
}

/// All that a request in flight needs.
struct Shared {
    plan: LoadPlan,
    prepared: Vec<Prepared>,
    pool: Pool,
    began: Instant,
    recording: Arc<Recording>,
    in_flight: Cell<u32>,
}

async fn generate(
    plan: LoadPlan,
    pool: Pool,
    began: Instant,
    recording: Arc<Recording>,
    stop: Arc<AtomicBool>,
) -> Result<(), LoadError> {
    let timer = Timer::new().map_err(LoadError::Timer)?;
    let mut schedule = Schedule::new(plan.rate, plan.arrivals, plan.steps, plan.think, plan.seed);
    let mut choice = Choice::new(&plan.routes, plan.seed);
    let prepare =
        |route: &Route| Prepared { method: route.method.clone(), path: route.path.clone(), body: route.body.clone() };
    let prepared = plan.routes.iter().map(prepare).collect();
    let shared = Rc::new(Shared { plan, prepared, pool, began, recording, in_flight: Cell::new(0) });
    let mut sessions: HashMap<u64, Rc<Session>> = HashMap::new();
    let mut burst = 0;
    while let Some(due) = schedule.next() {
        let at = Duration::from_nanos(due.at_ns);
        if shared.plan.duration.is_some_and(|duration| at >= duration) {
            break;
        }
        burst += 1;
        loop {
            if stop.load(Ordering::Relaxed) {
                return finish(&shared).await;
            }
            let wait = at.saturating_sub(began.elapsed());
            if wait.is_zero() {
                break;
            }
            burst = 0;
            timer.sleep(wait.min(LOOK)).await.map_err(LoadError::Timer)?;
        }
        // Behind: answers that wait to be read must not wait for ever.
        if burst >= BURST_MAX {
            burst = 0;
            tokio::task::yield_now().await;
        }
        let session = session_of(&mut sessions, due, schedule.steps());
        let route = choice.next();
        if shared.in_flight.get() >= shared.plan.in_flight_max {
            shared.note(due, shared.late(due), 0, Some(Failure::NotSent));
            continue;
        }
        // Counted here, not in the task: what is spawned is in flight.
        shared.in_flight.set(shared.in_flight.get() + 1);
        tokio::task::spawn_local(ask(Rc::clone(&shared), due, route, session));
    }
    finish(&shared).await
}

/// Waits until nothing is in flight; every request has its own deadline.
async fn finish(shared: &Shared) -> Result<(), LoadError> {
    while shared.in_flight.get() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// The memory of the session, which ends with its last request.
fn session_of(sessions: &mut HashMap<u64, Rc<Session>>, due: Due, steps: u32) -> Option<Rc<Session>> {
    if steps <= 1 {
        return None;
    }
    let session = Rc::clone(sessions.entry(due.session).or_default());
    if due.step + 1 == steps {
        sessions.remove(&due.session);
    }
    Some(session)
}

/// One request, from due to noted.
async fn ask(shared: Rc<Shared>, due: Due, route: usize, session: Option<Rc<Session>>) {
    let (plan, lag) = (&shared.plan, shared.late(due));
    let prepared = &shared.prepared[route];
    let tries_max = if prepared.is_idempotent() { plan.tries.max(1) } else { 1 };
    let mut tries = 0;
    let result = loop {
        tries += 1;
        let deadline = Instant::now() + plan.timeout;
        let result = shared.pool.exchange(prepared, session.as_deref(), deadline, tries > 1 || !plan.keep_alive).await;
        if result.is_ok() || tries >= tries_max {
            break result;
        }
    };
    shared.in_flight.set(shared.in_flight.get() - 1);
    shared.note(due, lag, tries, result.err());
}

impl Shared {
    /// How much later than due it is now.
    fn late(&self, due: Due) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_nanos(due.at_ns))
    }

    fn note(&self, due: Due, lag: Duration, tries: u8, failure: Option<Failure>) {
        let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let (latency_us, lag_us) = (micros(self.late(due)), micros(lag));
        self.recording.note(Sample { due_us: due.at_ns / 1000, latency_us, lag_us, tries, failure });
    }
}

/// Draws routes by their weights.
struct Choice {
    /// Running totals of the weights.
    totals: Vec<u32>,
    random: fastrand::Rng,
}

impl Choice {
    fn new(routes: &[Route], seed: u64) -> Self {
        let mut total = 0;
        let add = |route: &Route| {
            total += route.weight;
            total
        };
        Self { totals: routes.iter().map(add).collect(), random: fastrand::Rng::with_seed(seed ^ 0x6d69_7865) }
    }

    fn next(&mut self) -> usize {
        let all = self.totals.last().copied().unwrap_or(1);
        let drawn = self.random.u32(0..all.max(1));
        self.totals.partition_point(|total| *total <= drawn)
    }
}
