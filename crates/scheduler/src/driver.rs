//! Runs the scheduler against the Kubernetes API.
//!
//! Flow: changes go into the [`Snapshot`] and into [`Pending`]; every waiting pod is decided about ([`decide`](crate::decide)):
//! given a node in the snapshot at once and bound, many at a time; or told to wait for its volume; or refused, maybe after
//! less important pods were made to go. A failed binding is forgotten and the pod tried again. A refusal becomes the pod's
//! `PodScheduled` condition and an Event, when it says something new.
//!
//! Guarantees: one decision at a time, each seeing all earlier ones; a pod is bound at most once (the API server refuses a
//! second binding); dropping the future stops everything.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Client;
use mainstay_informer::leader::{self, LeaderSettings};
use mainstay_informer::{Cache, Change, ObjectKey, Scope};
use tokio::task::JoinSet;

use crate::api::Api;
use crate::claims::Storage;
use crate::core::{NodeFacts, PodFacts, Snapshot, Strategy};
use crate::decide::Awaiting;
use crate::pending::{Pending, Waiting};

/// Refused pods are looked at again at most this often, however much changes.
const WAKE_INTERVAL: Duration = Duration::from_millis(50);
/// Wait after a failed binding.
const BIND_RETRY: Duration = Duration::from_millis(100);

/// Settings of [`run`].
#[derive(Debug, Clone)]
pub struct Settings {
    /// Only pods that ask for this scheduler (`spec.schedulerName`) are bound.
    pub scheduler_name: String,
    /// Of several servers one schedules; without this every one does, which is right only for one.
    pub leader: Option<LeaderSettings>,
    /// Whether full or empty nodes are better.
    pub strategy: Strategy,
    /// How often one pod is evicted that stands in the way of its spread; never without.
    pub rebalance_every: Option<Duration>,
    /// Where pods are read; one process that schedules and controls holds them once.
    pub pods: Cache<Pod>,
}

impl Default for Settings {
    fn default() -> Self {
        let scheduler_name = "default-scheduler".to_owned();
        let strategy = Strategy::default();
        Self { scheduler_name, leader: None, strategy, rebalance_every: None, pods: Cache::new() }
    }
}

/// What the scheduler reads.
#[derive(Clone, Default)]
pub(crate) struct Caches {
    pub(crate) pods: Cache<Pod>,
    pub(crate) nodes: Cache<Node>,
    pub(crate) namespaces: Cache<Namespace>,
    pub(crate) budgets: Cache<PodDisruptionBudget>,
    pub(crate) storage: Storage,
}

impl Caches {
    /// Starts to list and watch, and waits until everything has been listed once.
    async fn start(&self, client: &Client, tasks: &mut JoinSet<()>) {
        let storage = &self.storage;
        tasks.spawn(self.pods.clone().run(client.clone(), Scope::default()));
        tasks.spawn(self.nodes.clone().run(client.clone(), Scope::default()));
        tasks.spawn(self.namespaces.clone().run(client.clone(), Scope::default()));
        tasks.spawn(self.budgets.clone().run(client.clone(), Scope::default()));
        tasks.spawn(storage.claims.clone().run(client.clone(), Scope::default()));
        tasks.spawn(storage.volumes.clone().run(client.clone(), Scope::default()));
        tasks.spawn(storage.classes.clone().run(client.clone(), Scope::default()));
        let (claims, volumes, classes) = (storage.claims.synced(), storage.volumes.synced(), storage.classes.synced());
        futures::join!(self.pods.synced(), self.nodes.synced(), self.namespaces.synced(), self.budgets.synced());
        futures::join!(claims, volumes, classes);
    }
}

/// Runs the scheduler until the future is dropped; with [`Settings::leader`], while this process leads.
pub async fn run(client: Client, settings: Settings) {
    match settings.leader.clone() {
        Some(leader) => leader::lead(client.clone(), leader, || work(client.clone(), settings.clone())).await,
        None => work(client, settings).await,
    }
}

async fn work(client: Client, settings: Settings) {
    let caches = Caches { pods: settings.pods.clone(), ..Caches::default() };
    let mut tasks = JoinSet::new();
    caches.start(&client, &mut tasks).await;
    let (mut pods, mut nodes, mut namespaces) =
        (caches.pods.subscribe(), caches.nodes.subscribe(), caches.namespaces.subscribe());
    let (mut claims, mut volumes) = (caches.storage.claims.subscribe(), caches.storage.volumes.subscribe());
    let mut driver = Driver::new(client, settings, caches);
    driver.nodes_changed(&nodes.take());
    driver.namespaces_changed(&namespaces.take());
    loop {
        driver.decide();
        let timer = driver.next_timer();
        tokio::select! {
            changes = pods.changed() => driver.pods_changed(&changes),
            changes = nodes.changed() => driver.nodes_changed(&changes),
            changes = namespaces.changed() => driver.namespaces_changed(&changes),
            _ = claims.changed() => driver.storage_changed(),
            _ = volumes.changed() => driver.storage_changed(),
            Some(ended) = driver.requests.next() => driver.settle(ended),
            () = tokio::time::sleep(timer.unwrap_or_default()), if timer.is_some() => {}
        }
    }
}

/// How a request ended.
pub(crate) enum Ended {
    Bound(String),
    NotBound(Box<Waiting>, kube::Error),
    Reported,
    /// Claims were told a node, victims told to go, or a pod evicted.
    Asked(Result<(), kube::Error>),
}

pub(crate) struct Driver {
    pub(crate) api: Api,
    pub(crate) settings: Settings,
    pub(crate) caches: Caches,
    pub(crate) snapshot: Snapshot,
    pub(crate) pending: Pending,
    /// Pods given a node here, until the cache says so too: key and uid.
    pub(crate) assumed: HashMap<String, String>,
    /// Pods that have a node here and wait for their volumes.
    pub(crate) awaiting: HashMap<String, Awaiting>,
    pub(crate) requests: FuturesUnordered<BoxFuture<'static, Ended>>,
    pub(crate) bindings: usize,
    pub(crate) reports: usize,
    started: Instant,
    /// When refused pods were last woken, and whether something has changed since.
    woken: Duration,
    has_news: bool,
    /// When a misplaced pod was last looked for.
    pub(crate) rebalanced: Duration,
}

impl Driver {
    fn new(client: Client, settings: Settings, caches: Caches) -> Self {
        let api = Api::new(client, settings.scheduler_name.clone());
        let mut snapshot = Snapshot::default();
        snapshot.strategy = settings.strategy;
        Self {
            api,
            settings,
            caches,
            snapshot,
            pending: Pending::default(),
            assumed: HashMap::new(),
            awaiting: HashMap::new(),
            requests: FuturesUnordered::new(),
            bindings: 0,
            reports: 0,
            started: Instant::now(),
            woken: Duration::ZERO,
            has_news: false,
            rebalanced: Duration::ZERO,
        }
    }

    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn nodes_changed(&mut self, changes: &[Change<Node>]) {
        for change in changes {
            match &change.after {
                Some(node) => self.has_news |= self.snapshot.put_node(NodeFacts::of(node)),
                None => self.snapshot.remove_node(&change.key.name),
            }
        }
    }

    fn namespaces_changed(&mut self, changes: &[Change<Namespace>]) {
        for change in changes {
            let labels = change.after.as_ref().map(|namespace| namespace.metadata.labels.clone().unwrap_or_default());
            self.snapshot.put_namespace(&change.key.name, labels);
        }
    }

    fn storage_changed(&mut self) {
        self.has_news = true;
        self.volumes_came();
    }

    fn pods_changed(&mut self, changes: &[Change<Pod>]) {
        for change in changes {
            let key = change.key.to_string();
            match change.after.as_deref().filter(|pod| !is_finished(pod)) {
                Some(pod) if is_bound(pod) => {
                    self.forget(&key);
                    self.has_news |= self.replace(pod);
                }
                Some(pod) => self.unbound(&key, pod),
                None => {
                    self.forget(&key);
                    self.has_news |= self.snapshot.pod(&key).is_some();
                    self.snapshot.remove_pod(&key);
                }
            }
        }
    }

    /// The pod needs no node any more.
    fn forget(&mut self, key: &str) {
        self.pending.remove(key);
        self.assumed.remove(key);
        self.awaiting.remove(key);
        self.snapshot.drop_nomination(key);
    }

    /// A bound pod as it is now; whether that can make room for others.
    fn replace(&mut self, pod: &Pod) -> bool {
        let facts = PodFacts::of(pod);
        let known = self.snapshot.pod(&facts.key);
        if known.is_some_and(|known| **known == facts) {
            return false;
        }
        self.snapshot.put_pod(Arc::new(facts));
        true
    }

    fn unbound(&mut self, key: &str, pod: &Pod) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        match self.assumed.get(key) {
            // Its binding is under way, or its volumes are.
            Some(assumed) if *assumed == uid && self.is_ours(pod) => return,
            Some(_) => {
                self.forget(key);
                self.snapshot.remove_pod(key);
            }
            None => {}
        }
        if !self.is_ours(pod) {
            self.forget(key);
            return;
        }
        let facts = Arc::new(PodFacts::of(pod));
        // The report of its refusal is a change of the pod, too; that alone is no reason to look again.
        let revision = pod.metadata.resource_version.clone().unwrap_or_default();
        if let Some(known) = self.pending.get_mut(key).filter(|known| known.uid == uid && *known.facts == *facts) {
            known.revision = revision;
            return;
        }
        let created = pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        self.pending.put(Waiting::new(facts.clone(), uid, facts.priority, created, revision));
    }

    pub(crate) fn is_ours(&self, pod: &Pod) -> bool {
        let spec = pod.spec.as_ref();
        let name = spec.and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        let is_gated = spec.and_then(|spec| spec.scheduling_gates.as_ref()).is_some_and(|gates| !gates.is_empty());
        name == self.settings.scheduler_name && !is_gated && pod.metadata.deletion_timestamp.is_none()
    }

    /// Decides about all pods that are due, as far as bindings may be under way.
    fn decide(&mut self) {
        let now = self.now();
        if self.has_news && now >= self.woken + WAKE_INTERVAL {
            self.has_news = false;
            self.woken = now;
            self.pending.wake_all();
        }
        self.decide_due(now);
        self.give_up_waiting(now);
        self.rebalance(now);
    }

    fn settle(&mut self, ended: Ended) {
        match ended {
            Ended::Reported => self.reports -= 1,
            Ended::Asked(Ok(())) => {}
            Ended::Asked(Err(error)) => tracing::debug!(%error, "a request for room or a volume was refused"),
            Ended::Bound(key) => {
                self.bindings -= 1;
                tracing::debug!(pod = key, "bound");
            }
            Ended::NotBound(pod, error) => {
                self.bindings -= 1;
                self.not_bound(*pod, &error);
            }
        }
    }

    fn not_bound(&mut self, mut pod: Waiting, error: &kube::Error) {
        let key = pod.facts.key.clone();
        // Only if it is still this pod that is taken to be there.
        if self.assumed.get(&key) != Some(&pod.uid) {
            return;
        }
        self.assumed.remove(&key);
        self.snapshot.remove_pod(&key);
        self.has_news = true;
        let current = self.object(&key);
        let is_current = current.as_ref().is_some_and(|now| now.metadata.uid.as_deref() == Some(&pod.uid));
        if let Some(current) = current.filter(|now| is_current && self.is_ours(now) && !is_bound(now)) {
            tracing::warn!(pod = key, %error, "binding failed; trying again");
            pod.facts = Arc::new(PodFacts::of(&current));
            self.pending.delay(pod, self.now() + BIND_RETRY);
        }
    }

    /// The pod as the cache has it.
    pub(crate) fn object(&self, key: &str) -> Option<Arc<Pod>> {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        self.caches.pods.get_key(&ObjectKey::new(namespace, name))
    }

    fn next_timer(&self) -> Option<Duration> {
        let news = (self.has_news && self.pending.has_refused()).then_some(self.woken + WAKE_INTERVAL);
        let volumes = self.awaiting.values().map(|awaiting| awaiting.until).min();
        let rebalance = self.settings.rebalance_every.map(|every| self.rebalanced + every);
        let all = [news, self.pending.next_timer(), volumes, rebalance];
        all.into_iter().flatten().min().map(|when| when.saturating_sub(self.now()))
    }
}

pub(crate) fn is_bound(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty())
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}
