//! Ledgers: clients of a store that remember what was acknowledged, and hold the store to it.
//!
//! Flow: [`record`] lets some clients write and read keys all through the drill → [`judge`] reads every key once more when all
//! is healed, and computes what was lost, stale or out of order (`history`, `linear`).
//!
//! Guarantees: a finding is a proof, within what the clients' one clock can tell; a store that answers every write truly is
//! never accused. A write without an answer counts as unknown, never as lost.
//!
//! Deliberately absent: transactions over several keys; whatever a store promises beyond single registers and a log.

pub mod history;
mod http;
pub mod linear;
mod postgres;
mod redis;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, join_all};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use history::{Action, Ending, Finding, Operation};
use linear::Linear;

pub use http::{HttpKeys, HttpLog, Place};
pub use postgres::PostgresRows;
pub use redis::RedisKeys;

/// Operations on one key before its clients go on to a fresh one: judging long histories of one key is dear.
const OPERATIONS_PER_KEY: u32 = 250;
/// Operations of one ledger at most; its clients fall silent then.
const OPERATIONS_MAX: u64 = 1_000_000;
/// Findings kept of each kind; more are only counted.
pub const FINDINGS_MAX: usize = 100;
/// How long a key is asked for at the end before it counts as unreadable.
const FINAL_PATIENCE: Duration = Duration::from_secs(10);

/// A store as its clients see it.
pub trait Ledger: Send + Sync {
    /// What it is, for people.
    fn shown(&self) -> String;

    /// Sets a key to a value, as client number `client`; answers with what is known about it.
    fn write(&self, client: u32, key: u64, value: u64) -> BoxFuture<'_, Ending>;

    /// What a key is; `None` as the outer value when nobody knows.
    fn read(&self, client: u32, key: u64) -> BoxFuture<'_, Option<Option<u64>>>;

    /// Whether keys are set once only, as in a log.
    fn is_append_only(&self) -> bool {
        false
    }

    /// Makes what has to be there before the first write, such as a table.
    ///
    /// # Errors
    /// Why it cannot be made, for people.
    fn prepare(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    /// Takes away what [`prepare`](Self::prepare) made, as far as that is possible.
    fn clear(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// How a ledger's clients behave.
#[derive(Debug, Clone, Copy)]
pub struct LedgerPlan {
    /// How many clients; each does one thing at a time.
    pub clients: u32,
    /// How many keys they share at any one time.
    pub keys: u32,
    /// The number of the first key. What an earlier drill left in the store under other numbers is no answer to this one.
    pub first_key: u64,
    /// Operations per second, all clients together.
    pub rate: f64,
    /// The share of writes, 0 to 1.
    pub writes: f64,
    /// Of all that is drawn.
    pub seed: u64,
}

/// What a ledger found.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Judgement {
    /// Which ledger.
    pub name: String,
    /// Operations that were begun.
    pub operations: usize,
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Operations whose end nobody knows.
    pub unknown: usize,
    /// Acknowledged writes that are gone, all of them.
    pub lost_count: usize,
    /// Reads of something older than what was acknowledged, all of them.
    pub stale_count: usize,
    /// The first of the lost.
    pub lost: Vec<Finding>,
    /// The first of the stale.
    pub stale: Vec<Finding>,
    /// Keys whose history is not linearizable, or could not be decided.
    pub disorder: Vec<(u64, Linear)>,
    /// Keys that could not be read at the end: what became of their writes is not known.
    pub unreadable: Vec<u64>,
}

impl Judgement {
    /// Whether the store kept its word, as far as it could be asked.
    pub fn is_clean(&self) -> bool {
        let broken = self.disorder.iter().any(|(_, found)| matches!(found, Linear::No { .. }));
        self.lost_count == 0 && self.stale_count == 0 && !broken && self.unreadable.is_empty()
    }
}

/// A ledger at work.
pub struct Recorder {
    ledger: Arc<dyn Ledger>,
    plan: LedgerPlan,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next_value: u64,
    /// Of each of the shared keys: how many operations it has had.
    used: HashMap<u32, u32>,
    history: Vec<Operation>,
}

impl Recorder {
    /// Nothing recorded yet; times count from `began`.
    pub fn new(ledger: Arc<dyn Ledger>, plan: LedgerPlan, began: Instant) -> Self {
        Self { ledger, plan, began, state: Mutex::default() }
    }

    /// Makes what the store has to have first.
    ///
    /// # Errors
    /// Why it cannot be made, for people.
    pub async fn prepare(&self) -> Result<(), String> {
        self.ledger.prepare().await
    }

    /// Lets all clients work until told to stop.
    pub async fn run(&self, stop: watch::Receiver<bool>) {
        join_all((0..self.plan.clients.max(1)).map(|client| self.client(client, stop.clone()))).await;
    }

    /// One client: one thing after the other, at its share of the rate.
    async fn client(&self, client: u32, mut stop: watch::Receiver<bool>) {
        let clients = f64::from(self.plan.clients.max(1));
        let mut pace = tokio::time::interval(Duration::from_secs_f64(clients / self.plan.rate.max(0.01)));
        // A client that waited long does not catch up in a burst.
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut random = fastrand::Rng::with_seed(self.plan.seed.wrapping_add(u64::from(client)));
        loop {
            tokio::select! {
                _ = pace.tick() => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            let Some((key, value)) = self.choose(&mut random) else { return };
            let operation = self.one(client, key, value).await;
            self.state().history.push(operation);
        }
    }

    /// Which key, and the value to write if it is to be a write; `None` at the limit.
    fn choose(&self, random: &mut fastrand::Rng) -> Option<(u64, Option<u64>)> {
        let mut state = self.state();
        state.next_value += 1;
        let value = state.next_value;
        if value > OPERATIONS_MAX {
            return None;
        }
        if self.ledger.is_append_only() {
            return Some((self.plan.first_key + value, Some(value)));
        }
        let keys = self.plan.keys.max(1);
        let key = random.u32(0..keys);
        let used = state.used.entry(key).or_default();
        *used += 1;
        let generation = *used / OPERATIONS_PER_KEY;
        let key = self.plan.first_key + u64::from(key) + u64::from(generation) * u64::from(keys);
        Some((key, (random.f64() < self.plan.writes).then_some(value)))
    }

    async fn one(&self, client: u32, key: u64, value: Option<u64>) -> Operation {
        let called_us = self.now_us();
        let (action, ending) = match value {
            Some(value) => (Action::Write(value), self.ledger.write(client, key, value).await),
            None => match self.ledger.read(client, key).await {
                Some(found) => (Action::Read(found), Ending::Done),
                None => (Action::Read(None), Ending::Unknown),
            },
        };
        Operation { client, key, action, called_us, ended_us: self.now_us(), ending }
    }

    /// Reads every key once more, clears the store of them where it can, and judges. Call it when the clients have ended and the faults are healed.
    pub async fn judge(&self, name: &str) -> Judgement {
        let mut history = self.state().history.clone();
        let keys: BTreeSet<u64> = history.iter().map(|operation| operation.key).collect();
        let (mut finally, mut unreadable) = (BTreeMap::new(), Vec::new());
        for key in keys {
            match self.last_word(key).await {
                Some(operation) => {
                    if let Action::Read(found) = operation.action {
                        finally.insert(key, found);
                    }
                    history.push(operation);
                }
                None => unreadable.push(key),
            }
        }
        self.ledger.clear().await;
        conclude(name, &history, &finally, unreadable, self.ledger.is_append_only())
    }

    async fn last_word(&self, key: u64) -> Option<Operation> {
        let since = Instant::now();
        loop {
            let operation = self.one(0, key, None).await;
            if operation.ending == Ending::Done {
                return Some(operation);
            }
            if since.elapsed() > FINAL_PATIENCE {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn now_us(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The judgement of a history and what each key held at the end. Pure.
fn conclude(
    name: &str,
    history: &[Operation],
    finally: &BTreeMap<u64, Option<u64>>,
    unreadable: Vec<u64>,
    append_only: bool,
) -> Judgement {
    let (mut lost, mut stale) = (history::lost(history, finally), history::stale(history));
    let writes = history.iter().filter(|operation| operation.written().is_some());
    let judgement = Judgement {
        name: name.to_owned(),
        operations: history.len(),
        acknowledged: writes.filter(|write| write.ending == Ending::Done).count(),
        unknown: history.iter().filter(|operation| operation.ending == Ending::Unknown).count(),
        lost_count: lost.len(),
        stale_count: stale.len(),
        lost: Vec::new(),
        stale: Vec::new(),
        // What is set once has no order to keep.
        disorder: if append_only { Vec::new() } else { linear::breaches(history) },
        unreadable,
    };
    lost.truncate(FINDINGS_MAX);
    stale.truncate(FINDINGS_MAX);
    Judgement { lost, stale, ..judgement }
}
