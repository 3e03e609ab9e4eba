//! The steward: looks, decides, acts, for ever.
//!
//! # Flow
//! Everything that takes time runs beside the loop and comes back as an [`Event`]: looks at the Lease, questions to the peers, probes of
//! the server, one action on the server at a time. Each event, each tick and each death of a child wakes the loop: it takes the
//! events in, asks [`decide`] and starts what that says. Killing the server is the one thing done at once, within the loop.
//!
//! # Guarantees
//! - A steward that lost time (stopped, or starved of the processor) decides first, with its clock as it is then.
//! - The server never outlives the steward: see [`crate::server`].
//! - A promise and the position that goes with it are told together: the position is taken after the promise.
//!
//! # Deliberately absent
//! Everything runs on one thread; there is nothing to lock.

mod act;
mod observe;
mod timeline;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::core::{
    Action, Handover, LeaseView, Lineage, Local, MemberId, Peer, Plan, Policy, Position, Record, Server, Stage,
    Standing, Tenure, View, Written, decide,
};
use crate::engine::{Ending, Engine, Observation, Rebuild, Source, Standby};
use crate::lease::{LeaseStore, Look};
use crate::peer::{self, Asked, Question, Secret};
use crate::server::{Process, ServerError};
use crate::state::State;

/// The loop looks at least this often.
const TICK: Duration = Duration::from_millis(25);
/// Events that may wait.
const EVENTS_MAX: usize = 256;
/// With less free than this, in bytes, a disk counts as full: the next file of a log, or an emergency's, would not fit. Twice as much
/// and it does not any more.
const FULL_BYTES: u64 = 48 << 20;
/// A switchover must be ready after this.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// One member.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name.
    pub member: MemberId,
    /// Higher is elected first among equals; 0 never.
    pub priority: u32,
    /// What is wanted of the database.
    pub policy: Policy,
    /// All other members.
    pub peers: BTreeMap<MemberId, Address>,
    /// Where this steward answers, `address:port`.
    pub listen: String,
    /// Where its state is kept; beside the data, not in it.
    pub state: PathBuf,
    /// The command that ends in [`crate::server::launch`].
    pub launcher: Vec<String>,
}

/// Where a member is reached.
#[derive(Debug, Clone)]
pub struct Address {
    /// `host:port` of its steward.
    pub steward: String,
    /// `host:port` of its database.
    pub server: String,
}

/// What did not work.
#[derive(Debug, thiserror::Error)]
pub enum StewardError {
    /// The times cannot work.
    #[error(transparent)]
    Timing(#[from] crate::core::timing::TimingError),
    /// The address is taken, or not this machine's.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The state cannot be read or written; going on without would break promises.
    #[error("cannot keep the member's state in {path}")]
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Signals cannot be received.
    #[error("cannot receive signals")]
    Signals(#[source] std::io::Error),
    /// The server cannot be killed.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// What people are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Where the member is.
    pub stage: Stage,
    /// How the Lease looks to it.
    pub tenure: Tenure,
    /// Why it does what it does.
    pub why: String,
    /// The epoch it knows.
    pub epoch: u64,
    /// Who holds the Lease.
    pub holder: Option<MemberId>,
    /// Why it does not stand, although there is no primary.
    pub refusal: Option<String>,
    /// What it has.
    pub position: Option<Position>,
    /// A primary's: how far each replica is behind, in units of the position.
    pub lags: BTreeMap<MemberId, u64>,
    /// Its server can be used in its role.
    pub ready: bool,
}

/// What comes back from beside the loop.
enum Event {
    Looked(u64, Result<Option<Look>, String>),
    Wrote(u64, Record, Written),
    Heard(MemberId, u64, Standing),
    Confirmed(MemberId, u64, u64),
    Probed(u64, Option<Observation>),
    Did(u64, Box<Action>, Outcome),
    Prepared,
    /// Writing has ended for a switchover.
    Quiet(Ending),
}

/// What an action on the server came to.
#[derive(Default)]
struct Outcome {
    failed: Option<String>,
    observed: Option<Observation>,
    began: Option<u64>,
    system: Option<String>,
}

/// The steward of one member.
#[allow(clippy::struct_excessive_bools)] // each is a fact of its own about the server
struct Steward<E> {
    settings: Settings,
    engine: Rc<E>,
    store: Rc<LeaseStore>,
    secret: Secret,
    start: Instant,
    state: State,
    process: Process,
    lease: LeaseView,
    handover: Option<Handover>,
    peers: BTreeMap<MemberId, Peer>,
    events: mpsc::Sender<Event>,
    job: Option<JoinHandle<()>>,
    /// Wakes those who look at the Lease and the peers.
    looks: Rc<watch::Sender<u64>>,
    /// When the Lease runs out, if nothing is heard of it: it is looked at right then.
    expiry_ms: Rc<Cell<u64>>,
    /// Counts what was begun, so that what was given up is not taken for what came after.
    jobs: u64,
    retry_at_ms: u64,
    observed: Option<Observation>,
    /// When the newest answered probe was begun.
    answered_ms: u64,
    follows: Option<u64>,
    since: u64,
    rising: bool,
    began: Option<Position>,
    rebuild: Option<Rebuild>,
    starved_since_ms: Option<u64>,
    system: Option<String>,
    /// The server is, or is being, made ready for a switchover.
    preparing: bool,
    prepared: bool,
    /// The server was told to end.
    stopping: bool,
    /// It accepts nothing any more: how much it has, and since when.
    quiet: Option<(u64, u64)>,
    quiet_asked_ms: u64,
    /// The disk is full, or nearly so.
    full: bool,
    /// Until when a promotion that failed keeps it out of elections.
    failed_until_ms: u64,
    /// The primary keeps what its replicas need.
    served: bool,
    /// When the last action on the server ended.
    done_ms: u64,
    confirm_ms: u64,
    timeline: timeline::Timeline,
    said: Option<Report>,
    /// When that was.
    said_ms: u64,
    report: watch::Sender<Option<Report>>,
}

/// Runs a member until SIGTERM: then a primary hands over, and the server is ended.
///
/// Must run on a current-thread runtime, within a [`tokio::task::LocalSet`], on the process' main thread.
pub async fn run<E: Engine + 'static>(
    settings: Settings,
    engine: E,
    store: LeaseStore,
    secret: Secret,
    report: watch::Sender<Option<Report>>,
) -> Result<(), StewardError> {
    settings.policy.timing.check()?;
    let address = settings.listen.clone();
    let listening = TcpListener::bind(&address).await;
    let listener = listening.map_err(|source| StewardError::Listen { address, source })?;
    let path = settings.state.clone();
    let state = State::open(&path).map_err(|source| StewardError::State { path, source })?;
    let (events, inbox) = mpsc::channel(EVENTS_MAX);
    let peers = settings.peers.keys().map(|id| (id.clone(), Peer::default())).collect();
    let steward = Steward {
        process: Process::new(settings.launcher.clone()),
        engine: Rc::new(engine),
        store: Rc::new(store),
        secret,
        start: Instant::now(),
        state,
        lease: LeaseView::default(),
        handover: None,
        peers,
        events,
        job: None,
        looks: Rc::new(watch::Sender::new(0)),
        expiry_ms: Rc::default(),
        jobs: 0,
        retry_at_ms: 0,
        observed: None,
        answered_ms: 0,
        follows: None,
        since: 0,
        rising: false,
        began: None,
        rebuild: None,
        starved_since_ms: None,
        system: None,
        preparing: false,
        prepared: false,
        stopping: false,
        quiet: None,
        quiet_asked_ms: 0,
        full: false,
        failed_until_ms: 0,
        served: false,
        done_ms: 0,
        confirm_ms: 0,
        timeline: timeline::Timeline::default(),
        said: None,
        said_ms: 0,
        report,
        settings,
    };
    steward.live(listener, inbox).await
}

impl<E: Engine + 'static> Steward<E> {
    async fn live(mut self, listener: TcpListener, mut inbox: mpsc::Receiver<Event>) -> Result<(), StewardError> {
        let ready = Rc::new(Cell::new(false));
        let (ask, mut asked) = mpsc::channel::<Asked>(EVENTS_MAX);
        let answers = tokio::task::spawn_local(peer::serve(listener, self.secret.clone(), ready.clone(), ask));
        let beside = self.look_around();
        let mut children = signal(SignalKind::child()).map_err(StewardError::Signals)?;
        let mut term = signal(SignalKind::terminate()).map_err(StewardError::Signals)?;
        let mut ending: Option<Instant> = None;
        loop {
            tokio::select! {
                Some(event) = inbox.recv() => self.take_in(event)?,
                Some((question, reply)) = asked.recv() => {
                    let _ = reply.send(self.answer(&question));
                    if !matches!(question, Question::Written(_)) {
                        continue;
                    }
                }
                _ = children.recv() => {}
                _ = term.recv() => ending = ending.or(Some(Instant::now())),
                () = tokio::time::sleep(self.pause()) => {}
            }
            while let Ok(event) = inbox.try_recv() {
                self.take_in(event)?;
            }
            if ending.is_some() && self.may_end(ending) {
                break;
            }
            let plan = self.decide()?;
            self.tell(&plan, &ready);
            self.carry_out(plan)?;
        }
        answers.abort();
        beside.iter().for_each(JoinHandle::abort);
        self.cancel();
        self.end().await
    }

    /// Until the next tick, or until the Lease must be found lost.
    fn pause(&self) -> Duration {
        let until = self.view().hold_until_ms().unwrap_or(u64::MAX).saturating_sub(self.now_ms());
        if until == 0 { TICK } else { TICK.min(Duration::from_millis(until)) }
    }

    fn now_ms(&self) -> u64 {
        // From 1: 0 means "never" where a time is kept as a plain number.
        self.start.elapsed().as_millis() as u64 + 1
    }

    fn decide(&mut self) -> Result<Plan, StewardError> {
        self.notice_death()?;
        self.expiry_ms.set(self.lease.changed_ms + self.settings.policy.timing.ttl_ms);
        Ok(decide(&self.view()))
    }

    fn view(&self) -> View<'_> {
        View {
            now_ms: self.now_ms(),
            policy: &self.settings.policy,
            me: self.local(),
            lease: self.lease.clone(),
            peers: &self.peers,
            handover: self.handover.clone().filter(|_| self.prepared),
        }
    }

    fn local(&self) -> Local {
        // While it starts it may be recovering, which takes as long as it takes; after its first answer silence means something.
        let answered = self.observed.is_some();
        let quiet = answered && self.now_ms() > self.answered_ms + self.settings.policy.timing.hung_ms / 3;
        Local {
            id: self.settings.member.clone(),
            priority: self.settings.priority,
            server: self.server(),
            lineage: self.state.lineage(),
            promise: self.state.promise(),
            began: self.began,
            silent_since_ms: quiet.then_some(self.answered_ms),
            rebuild: self.rebuild,
            starved_since_ms: self.starved_since_ms,
            rising: self.rising,
            full: self.full,
            failed: self.now_ms() < self.failed_until_ms,
            system: self.system.clone(),
            busy: self.job.is_some() || self.now_ms() < self.retry_at_ms,
            started_ms: 1,
        }
    }

    fn server(&self) -> Server {
        if !self.process.exists() {
            return if self.engine.initialised() { Server::Stopped } else { Server::Empty };
        }
        match &self.observed {
            None => Server::Starting,
            Some(seen) if seen.role == crate::core::Role::Replica => {
                Server::Replica { offset: seen.offset, follows: self.follows }
            }
            Some(seen) => Server::Primary {
                offset: seen.offset,
                standbys: self.standbys(seen),
                synchronous: seen.synchronous.clone(),
                since: self.since,
            },
        }
    }

    /// The replicas, with what each has.
    fn standbys(&self, seen: &Observation) -> Vec<Standby> {
        let mut all = seen.standbys.clone();
        if !self.engine.knows_standbys() {
            let epoch = self.lease.record.as_ref().map(|record| record.epoch);
            for standby in &mut all {
                // Of one that follows this epoch it is true for ever: even a copy made since has at least as much.
                let standing = self.peers.get(&standby.member).and_then(|it| it.standing.as_ref());
                let position = standing.filter(|it| it.follows == epoch).and_then(|it| it.position);
                standby.offset = position.map_or(0, |it| it.offset);
            }
        }
        all
    }

    /// On SIGTERM a primary hands over first, if it can.
    fn may_end(&mut self, since: Option<Instant>) -> bool {
        let late = since.is_some_and(|since| since.elapsed() > STOP_GRACE);
        let holder = self.lease.record.as_ref().and_then(|it| it.holder.as_ref()) == Some(&self.settings.member);
        if holder && !late {
            self.handover.get_or_insert(Handover { to: None });
        }
        let alone = !self.peers.values().any(|peer| peer.standing.is_some());
        !holder || late || alone
    }

    /// The orderly end of the server, and then the certain one.
    async fn end(mut self) -> Result<(), StewardError> {
        self.process.signal(self.engine.stop_signal());
        let begin = Instant::now();
        while self.process.runs() && begin.elapsed() < STOP_GRACE {
            tokio::time::sleep(TICK).await;
        }
        Ok(self.process.fence()?)
    }

    fn source(&self, member: &MemberId, lineage: &Lineage) -> Option<Source> {
        let address = self.settings.peers.get(member)?.server.clone();
        Some(Source { member: member.clone(), address, epoch: lineage.epoch })
    }

    fn others(&self) -> BTreeSet<MemberId> {
        self.settings.peers.keys().cloned().collect()
    }
}
