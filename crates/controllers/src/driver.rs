//! The one loop behind every controller: woken by changes and by timers, it asks for a plan and has it carried out.
//!
//! Flow: changes of the watched kinds become keys in the [`Queue`]; up to [`CONCURRENT_MAX`] keys are worked on at once, no
//! key twice; a plan is made from the caches and carried out by the [`Executor`]; then the key rests until something
//! changes, its timer runs out, or its back-off is over.
//!
//! Guarantees: a conflict is tried again at once with the fresh object; other failures are tried again after 5 ms to 30 s;
//! dropping the future stops everything.

use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use jiff::Timestamp;
use kube::Client;
use mainstay_informer::{Cache, Change, Kind};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::action::{Attempt, Now, Plan};
use crate::caches::Caches;
use crate::execute::{Executor, Stopped};
use crate::queue::{Queue, backoff};

/// Keys of one controller that are worked on at once.
const CONCURRENT_MAX: usize = 16;
/// Conflicts in a row after which a key backs off like after any failure.
const CONFLICTS_MAX: u32 = 8;
/// The longest wait for something that has to go first.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// What a controller works on: an object's key, mostly.
pub(crate) trait Key: Clone + Eq + Hash + Ord + Debug + Display + Send + Sync + 'static {}
impl<K: Clone + Eq + Hash + Ord + Debug + Display + Send + Sync + 'static> Key for K {}

/// One controller, as the driver sees it.
pub(crate) trait Controller: Send + Sync + 'static {
    /// What its queue holds.
    type Key: Key;
    /// Its name in logs and events, for example `deployment-controller`.
    const NAME: &'static str;

    /// Says which changes wake which keys.
    fn wire(&self, wiring: &mut Wiring<Self::Key>);

    /// Looks at the caches and decides; no I/O, no waiting.
    fn plan(&self, caches: &Caches, key: &Self::Key, attempt: &Attempt, now: Now) -> Plan;
}

/// The clock of all controllers.
#[derive(Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Now {
        Now { wall: Timestamp::now(), monotonic: self.0.elapsed() }
    }
}

/// A queue that feeders and the loop share.
pub(crate) struct Inbox<K> {
    queue: Mutex<Queue<K>>,
    wake: Notify,
}

impl<K: Key> Inbox<K> {
    fn new() -> Arc<Self> {
        Arc::new(Self { queue: Mutex::new(Queue::new()), wake: Notify::new() })
    }

    /// The keys need a look.
    pub(crate) fn add(&self, keys: impl IntoIterator<Item = K>) {
        self.with(|queue| keys.into_iter().for_each(|key| queue.add(&key)));
        self.wake.notify_one();
    }

    fn with<T>(&self, use_it: impl FnOnce(&mut Queue<K>) -> T) -> T {
        use_it(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Connects changes in the caches with a controller's queue.
pub(crate) struct Wiring<K> {
    /// For controllers that have to ask for what no cache holds.
    pub(crate) client: Client,
    pub(crate) caches: Caches,
    pub(crate) inbox: Arc<Inbox<K>>,
    pub(crate) tasks: JoinSet<()>,
}

impl<Q: Key> Wiring<Q> {
    /// Every change of a `K` wakes the keys that `map` gives for it.
    pub(crate) fn on<K: Kind>(
        &mut self,
        cache: &Cache<K>,
        map: impl Fn(&Change<K>, &Caches) -> Vec<Q> + Send + 'static,
    ) {
        let (mut changes, caches, inbox) = (cache.subscribe(), self.caches.clone(), self.inbox.clone());
        self.tasks.spawn(async move {
            loop {
                let changed = changes.changed().await;
                inbox.add(changed.iter().flat_map(|change| map(change, &caches)));
            }
        });
    }
}

/// Runs one controller for ever.
pub(crate) async fn drive<C: Controller>(controller: C, client: Client, caches: Caches, clock: Clock) {
    let executor = Executor::new(client.clone(), caches.clone(), C::NAME);
    let inbox = Inbox::new();
    let mut wiring = Wiring { client, caches: caches.clone(), inbox: inbox.clone(), tasks: JoinSet::new() };
    controller.wire(&mut wiring);
    let (worker, mut feeders) = (Arc::new(Worker { controller, caches, executor, clock }), wiring.tasks);
    let mut attempts = std::collections::HashMap::<C::Key, Attempt>::new();
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < CONCURRENT_MAX
            && let Some(key) = inbox.with(|queue| queue.take(clock.now().monotonic))
        {
            let attempt = attempts.get(&key).cloned().unwrap_or_default();
            running.push(worker.clone().work(key, attempt).boxed());
        }
        let timer = inbox.with(|queue| queue.next_timer()).filter(|_| running.len() < CONCURRENT_MAX);
        let timer = timer.map(|when| when.saturating_sub(clock.now().monotonic));
        tokio::select! {
            () = inbox.wake.notified() => {}
            () = tokio::time::sleep(timer.unwrap_or_default()), if timer.is_some() => {}
            Some((key, attempt, outcome)) = running.next() => {
                let again = settle::<C>(&mut attempts, &key, attempt, outcome);
                let again_at = again.map(|delay| clock.now().monotonic + delay);
                inbox.with(|queue| queue.done(&key, again_at));
            }
            // A feeder never ends by itself; a panic in one must not be silent.
            Some(ended) = feeders.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(controller = C::NAME, %error, "a feeder failed; the controller no longer hears all changes");
                }
            }
        }
    }
}

/// What is needed to work on a key.
struct Worker<C> {
    controller: C,
    caches: Caches,
    executor: Executor,
    clock: Clock,
}

impl<C: Controller> Worker<C> {
    /// Plans and acts on one key, again while the caches turn out to be out of date.
    async fn work(
        self: Arc<Self>,
        key: C::Key,
        attempt: Attempt,
    ) -> (C::Key, Attempt, Result<Option<Duration>, Stopped>) {
        let mut conflicts = 0;
        loop {
            let plan = self.controller.plan(&self.caches, &key, &attempt, self.clock.now());
            if !plan.actions.is_empty() {
                let actions: Vec<_> = plan.actions.iter().map(ToString::to_string).collect();
                tracing::debug!(controller = C::NAME, %key, why = plan.why, ?actions, "acting");
            }
            let outcome = match self.executor.run(&plan, attempt.failures > 0).await {
                Err(Stopped::Conflict(_)) if conflicts < CONFLICTS_MAX => {
                    conflicts += 1;
                    continue;
                }
                outcome => outcome.map(|()| plan.requeue_after),
            };
            return (key, attempt, outcome);
        }
    }
}

/// Notes how a key's work ended; the delay after which it wants another look.
fn settle<C: Controller>(
    attempts: &mut std::collections::HashMap<C::Key, Attempt>,
    key: &C::Key,
    mut attempt: Attempt,
    outcome: Result<Option<Duration>, Stopped>,
) -> Option<Duration> {
    match outcome {
        Ok(again) => {
            attempts.remove(key);
            again
        }
        Err(error) => {
            attempt.failures += 1;
            let (failures, mut delay) = (attempt.failures, backoff(attempt.failures));
            if matches!(error, Stopped::Remaining { .. }) {
                delay = delay.min(WAIT_MAX);
                tracing::debug!(controller = C::NAME, %key, %error, "waiting");
            } else {
                tracing::warn!(controller = C::NAME, %key, %error, failures, "will try again");
            }
            attempt.error = match &error {
                Stopped::Refused { source, .. } => Some(source.message.clone()),
                _ => None,
            };
            attempts.insert(key.clone(), attempt);
            Some(delay)
        }
    }
}
