//! One drill, from the first request to the last thing undone.
//!
//! Flow: nothing may be broken from before → every fault can be made here, or is left out and said so → watch, load and ledgers
//! begin → for each fault: quiet, make, hold, undo, wait until all is there again → quiet → load and ledgers end → judge.
//!
//! Guarantees: whatever goes wrong, or when told to stop, everything is undone before this returns; what could not be undone is
//! an error and stays in the journal.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::{Method, Uri};
use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::fault::breaker::Breaker;
use crate::fault::{Fault, FaultError, Machine};
use crate::ledger::{self, HttpKeys, HttpLog, Judgement, Ledger, LedgerPlan, PostgresRows, Recorder, RedisKeys};
use crate::load::tls::Tls;
use crate::load::{Load, LoadError, LoadPlan, Route};
use crate::observe::{Endpoints, Mark, Observer};
use crate::report::{Report, live};
use crate::resource::{Drill, FaultSpec, LedgerKind, LedgerSpec, LoadTarget, RequestSpec};
use crate::target;
use crate::verdict::{self, Evidence, Step};

/// Quiet time after the last fault.
const QUIET_AFTER: Duration = Duration::from_secs(2);
/// How long the first lists of a cluster may take.
const API_PATIENCE: Duration = Duration::from_secs(15);
/// How much longer than planned the load may last, because making faults takes time.
const MAKING_PATIENCE: Duration = Duration::from_secs(150);
/// Requests in flight at most.
const IN_FLIGHT_MAX: u32 = 4096;

/// Why a drill could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Something is still broken from before.
    #[error("an earlier drill has left {count} faults in force ({path}); undo them first: mainstay drill undo")]
    LeftBroken {
        /// How many.
        count: usize,
        /// The journal.
        path: PathBuf,
    },
    /// A fault, or a target.
    #[error(transparent)]
    Fault(#[from] FaultError),
    /// The load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The API does not answer.
    #[error("the API does not let itself be watched within {0} s; does the cluster run?")]
    Silent(u64),
    /// A path of the load.
    #[error("spec.load.requests: {0}")]
    Request(String),
    /// A ledger's store.
    #[error("ledger {name}: {reason}")]
    Ledger {
        /// Which ledger.
        name: String,
        /// What it lacks.
        reason: String,
    },
    /// Something is still broken now.
    #[error("not everything could be undone: {0}; try again with: mainstay drill undo")]
    NotUndone(#[source] FaultError),
}

/// All that a drill needs besides itself.
pub struct Setting {
    /// The cluster.
    pub client: Client,
    /// The machine below it, where it is an instance here.
    pub machine: Option<Arc<dyn Machine>>,
    /// Where the journal is.
    pub journal: PathBuf,
    /// Told to stop before the end.
    pub stop: watch::Receiver<bool>,
    /// How the drill shows what it does while it runs.
    pub show: live::Show,
}

/// Runs a drill.
///
/// # Errors
/// See [`RunError`]. A drill that ran and failed is no error: the report's verdict says so.
pub async fn run(drill: &Drill, setting: Setting) -> Result<Report, RunError> {
    let mut breaker = Breaker::new(setting.client.clone(), setting.machine, &setting.journal)?;
    if !breaker.entries().is_empty() {
        return Err(RunError::LeftBroken { count: breaker.entries().len(), path: setting.journal });
    }
    let place = target::load(&setting.client, &drill.spec.load).await?;
    let tls = target::tls(&setting.client, &drill.spec.load, &place).await?;
    breaker.look_at(tls.clone().map(|tls| (place.address, tls)));
    let (mut faults, mut left_out) = (Vec::new(), Vec::new());
    for fault in drill.sequence() {
        match breaker.can(fault.fault, &fault.target) {
            Ok(()) => faults.push(fault),
            Err(reason) => left_out.push(reason.to_string()),
        }
    }
    let started = jiff::Timestamp::now();
    let observer_begins = Instant::now();
    let observing = timeout(API_PATIENCE, Observer::start(&setting.client, observer_begins)).await;
    let observer = observing.map_err(|_| RunError::Silent(API_PATIENCE.as_secs()))?;
    if let LoadTarget::Service(name) = &drill.spec.load.target {
        target::ready_behind(&observer, name)?;
    }
    for fault in &faults {
        target::exists(&observer, &setting.client, &fault.target).await?;
    }
    let ledgers = ledgers(drill, &setting.client, observer_begins).await?;
    let load = Load::start(load_plan(drill, &place, tls)?)?;
    // The watch began a little before the load, whose clock is the one that counts.
    let ahead_us = load.began.duration_since(observer_begins).as_micros() as u64;
    let (ledgers_stop, told) = watch::channel(false);
    let mut clients = JoinSet::new();
    for (_, ledger) in &ledgers {
        let (ledger, told) = (Arc::clone(ledger), told.clone());
        clients.spawn(async move { ledger.run(told).await });
    }
    let (state, shown) = watch::channel("warming up".to_owned());
    let live = tokio::spawn(live::run(setting.show, Arc::clone(&load.recording), load.began, shown));

    let mut stage = Stage { drill, observer: &observer, breaker: &mut breaker, load: &load, stop: setting.stop, state };
    let steps = stage.all(&faults).await;
    let undone = breaker.undo_all().await;

    let _ = ledgers_stop.send(true);
    while clients.join_next().await.is_some() {}
    let length = load.began.elapsed();
    live.abort();
    let samples = tokio::task::spawn_blocking(move || load.end()).await.map_err(|_| LoadError::Lost)??;
    let mut judged: Vec<Judgement> = Vec::new();
    for (name, ledger) in &ledgers {
        judged.push(ledger.judge(name).await);
    }
    let (marks, endpoints) = on_load_clock(observer.marks(), observer.endpoints(), ahead_us);
    let evidence = Evidence {
        samples: &samples,
        steps: &steps,
        marks: &marks,
        endpoints: &endpoints,
        ledgers: &judged,
        length,
        rate: drill.spec.load.rate,
    };
    let mut verdict = verdict::judge(&evidence, &drill.spec.objective, &drill.spec.require);
    if steps.len() < faults.len() {
        verdict.objections.push(format!("stopped after {} of {} faults", steps.len(), faults.len()));
    }
    undone.map_err(RunError::NotUndone)?;
    Ok(Report::new(drill, &place.shown, started, verdict, &evidence, left_out))
}

/// Moves what the watch told onto the load's clock.
fn on_load_clock(mut marks: Vec<Mark>, mut endpoints: Vec<Endpoints>, ahead_us: u64) -> (Vec<Mark>, Vec<Endpoints>) {
    for at_us in marks.iter_mut().map(|it| &mut it.at_us).chain(endpoints.iter_mut().map(|it| &mut it.at_us)) {
        *at_us = at_us.saturating_sub(ahead_us);
    }
    (marks, endpoints)
}

/// What the faults' part of a drill works on.
struct Stage<'a> {
    drill: &'a Drill,
    observer: &'a Observer,
    breaker: &'a mut Breaker,
    load: &'a Load,
    stop: watch::Receiver<bool>,
    state: watch::Sender<String>,
}

impl Stage<'_> {
    /// All faults, one after the other; fewer when told to stop or when the load is over.
    async fn all(&mut self, faults: &[FaultSpec]) -> Vec<Step> {
        let mut random = fastrand::Rng::with_seed(self.drill.spec.seed);
        let mut steps: Vec<Step> = Vec::new();
        for fault in faults {
            let _ = self.state.send(format!("quiet before {}", fault.shown()));
            if !self.wait(fault.after).await {
                break;
            }
            if let Some(before) = steps.last_mut() {
                before.until_us = self.now_us();
            }
            let step = self.one(fault, &mut random).await;
            tracing::debug!(name = step.name, evidence = ?step.evidence, "step done");
            steps.push(step);
        }
        let _ = self.state.send("quiet at the end".to_owned());
        self.wait(QUIET_AFTER).await;
        if let Some(last) = steps.last_mut() {
            last.until_us = self.now_us();
        }
        steps
    }

    /// One fault, from made to healed.
    async fn one(&mut self, fault: &FaultSpec, random: &mut fastrand::Rng) -> Step {
        let (wanted, well) = (self.observer.ready_now(), self.observer.ready_nodes());
        let near = near(self.drill);
        let resolved = target::fault(self.observer, &fault.target, near.as_deref(), random);
        let shown = resolved.as_ref().map_or_else(|_| fault.target.to_string(), ToString::to_string);
        let _ = self.state.send(format!("{}: {shown}", fault.shown()));
        let from_us = self.now_us();
        let evidence = match resolved {
            Ok(target) => {
                let fault = Fault { kind: fault.fault, target, settings: fault.settings.clone() };
                self.breaker.make(&fault).await
            }
            Err(error) => Err(error),
        };
        if evidence.is_ok() {
            self.wait(fault.hold).await;
        }
        let _ = self.state.send(format!("healing {shown}"));
        let api_was_away = !self.observer.api_answers().await;
        let undone = self.breaker.undo_all().await;
        let undone_us = self.now_us();
        let since = Instant::now();
        let api_back_us = if api_was_away && self.observer.until_api_answers(fault.heal_within).await {
            Some(self.now_us())
        } else {
            None
        };
        let patience = fault.heal_within.saturating_sub(since.elapsed());
        let api = !api_was_away || api_back_us.is_some();
        let healed = api && undone.is_ok() && self.observer.until_healed(&wanted, &well, patience).await;
        let healed_us = healed.then(|| self.now_us());
        let evidence = evidence.and_then(|shows| undone.map(|_| shows)).map_err(|error| error.to_string());
        let until_us = self.now_us();
        Step { name: fault.shown(), target: shown, from_us, undone_us, healed_us, api_back_us, until_us, evidence }
    }

    /// Waits; answers whether it may go on.
    async fn wait(&mut self, time: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(time) => !self.load.is_over(),
            _ = self.stop.wait_for(|stop| *stop) => false,
        }
    }

    fn now_us(&self) -> u64 {
        self.load.began.elapsed().as_micros() as u64
    }
}

/// The namespace whose pods the load reaches.
fn near(drill: &Drill) -> Option<String> {
    let named = match &drill.spec.load.target {
        LoadTarget::Service(name) | LoadTarget::Gateway(name) => name.split_once('/').map(|(near, _)| near.to_owned()),
        LoadTarget::Url(_) => None,
    };
    drill.metadata.namespace.clone().or(named)
}

fn load_plan(drill: &Drill, place: &target::Place, tls: Option<Tls>) -> Result<LoadPlan, RunError> {
    let load = &drill.spec.load;
    let root = [RequestSpec { method: "GET".to_owned(), path: "/".to_owned(), body: String::new(), weight: 1 }];
    let requests = if load.requests.is_empty() { &root[..] } else { &load.requests };
    let mut routes = Vec::new();
    for request in requests {
        let wrong = |what: &str| {
            RunError::Request(format!("{:?} is not a {what}", format!("{} {}", request.method, request.path)))
        };
        let path: Uri = request.path.parse().map_err(|_| wrong("path"))?;
        let method: Method = request.method.parse().map_err(|_| wrong("method"))?;
        routes.push(Route { method, path, body: request.body.clone().into(), weight: request.weight });
    }
    let sessions = load.sessions.as_ref();
    Ok(LoadPlan {
        address: place.address,
        host: load.host.clone().unwrap_or_else(|| place.host.clone()),
        tls,
        keep_alive: load.keep_alive,
        rate: load.rate,
        arrivals: load.arrivals,
        routes,
        steps: sessions.map_or(1, |sessions| sessions.requests),
        think: sessions.map_or(Duration::ZERO, |sessions| sessions.think),
        timeout: load.timeout,
        connect_timeout: load.connect_timeout,
        tries: load.tries,
        in_flight_max: IN_FLIGHT_MAX,
        seed: drill.spec.seed,
        // A little more than it can take: the end is told.
        duration: Some(drill.length() + QUIET_AFTER + MAKING_PATIENCE),
    })
}

async fn ledgers(drill: &Drill, client: &Client, began: Instant) -> Result<Vec<(String, Arc<Recorder>)>, RunError> {
    // No two drills begin in the same microsecond, nor does one make as many keys as there are until the next.
    let first_key = jiff::Timestamp::now().as_microsecond().unsigned_abs();
    let mut all = Vec::new();
    for spec in &drill.spec.ledgers {
        let addresses = target::ledger(client, &spec.target).await?;
        let login = target::login(client, spec).await?;
        let plan = LedgerPlan {
            first_key,
            clients: spec.clients,
            keys: spec.keys,
            rate: spec.rate,
            writes: f64::from(spec.writes) / 100.0,
            seed: drill.spec.seed,
        };
        let recorder = Recorder::new(open_ledger(spec, addresses, login), plan, began);
        recorder.prepare().await.map_err(|reason| RunError::Ledger { name: spec.name.clone(), reason })?;
        all.push((spec.name.clone(), Arc::new(recorder)));
    }
    Ok(all)
}

fn open_ledger(
    spec: &LedgerSpec,
    addresses: Vec<std::net::SocketAddr>,
    (user, password): (String, String),
) -> Arc<dyn Ledger> {
    let host = addresses.first().map(ToString::to_string).unwrap_or_default();
    let (base, timeout) = (spec.prefix.clone(), spec.timeout);
    let place = ledger::Place { addresses: addresses.clone(), host, base, timeout };
    match spec.kind {
        LedgerKind::HttpKeys => Arc::new(HttpKeys(place)),
        LedgerKind::HttpLog => Arc::new(HttpLog(place)),
        LedgerKind::RedisKeys => {
            Arc::new(RedisKeys { addresses, user, password, prefix: spec.prefix.clone(), timeout })
        }
        LedgerKind::PostgresRows => {
            let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
            let database = or(spec.database.as_deref().unwrap_or_default(), "postgres");
            let table = or(&spec.prefix, "mainstay_drill");
            Arc::new(PostgresRows { addresses, user: or(&user, "postgres"), password, database, table, timeout })
        }
    }
}
