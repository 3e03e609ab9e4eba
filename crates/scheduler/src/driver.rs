//! Runs the scheduler against the Kubernetes API.
//!
//! Flow: changes of pods and nodes go into the [`Snapshot`] and into [`Pending`]; every waiting pod is given a node in the
//! snapshot at once and its binding is posted, many at a time; a failed binding is forgotten and the pod tried again. A
//! refusal becomes the pod's `PodScheduled` condition and an Event, when it says something new.
//!
//! Guarantees: one decision at a time, each seeing all earlier ones; a pod is bound at most once (the API server refuses a
//! second binding); dropping the future stops everything.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use mainstay_informer::{Cache, Change, ObjectKey, Scope};
use tokio::task::JoinSet;

use crate::api::Api;
use crate::core::{NodeFacts, PodFacts, Snapshot};
use crate::pending::{Pending, Waiting};

/// Bindings under way at once.
const BINDINGS_MAX: usize = 64;
/// Reports of refusals under way at once; above it they wait for the next refusal.
const REPORTS_MAX: usize = 32;
/// Refused pods are looked at again at most this often, however much changes.
const WAKE_INTERVAL: Duration = Duration::from_millis(50);
/// Wait after a failed binding.
const BIND_RETRY: Duration = Duration::from_millis(100);

/// Settings of [`run`].
#[derive(Debug, Clone)]
pub struct Settings {
    /// Only pods that ask for this scheduler (`spec.schedulerName`) are bound.
    pub scheduler_name: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { scheduler_name: "default-scheduler".to_owned() }
    }
}

/// Runs the scheduler until the future is dropped.
pub async fn run(client: Client, settings: Settings) {
    let (pods, nodes) = (Cache::<Pod>::new(), Cache::<Node>::new());
    let mut tasks = JoinSet::new();
    tasks.spawn(pods.clone().run(client.clone(), Scope::default()));
    tasks.spawn(nodes.clone().run(client.clone(), Scope::default()));
    nodes.synced().await;
    pods.synced().await;
    let (mut pod_changes, mut node_changes) = (pods.subscribe(), nodes.subscribe());
    let mut driver = Driver::new(client, settings, pods);
    driver.nodes_changed(&node_changes.take());
    loop {
        driver.decide();
        let timer = driver.next_timer();
        tokio::select! {
            changes = pod_changes.changed() => driver.pods_changed(&changes),
            changes = node_changes.changed() => driver.nodes_changed(&changes),
            Some(ended) = driver.requests.next() => driver.settle(ended),
            () = tokio::time::sleep(timer.unwrap_or_default()), if timer.is_some() => {}
        }
    }
}

/// How a request ended.
enum Ended {
    Bound(String),
    NotBound(Box<Waiting>, kube::Error),
    Reported,
}

struct Driver {
    api: Api,
    settings: Settings,
    pods: Cache<Pod>,
    snapshot: Snapshot,
    pending: Pending,
    /// Pods given a node here, until the cache says so too: key and uid.
    assumed: HashMap<String, String>,
    requests: FuturesUnordered<BoxFuture<'static, Ended>>,
    bindings: usize,
    reports: usize,
    started: Instant,
    /// When refused pods were last woken, and whether something has changed since.
    woken: Duration,
    has_news: bool,
}

impl Driver {
    fn new(client: Client, settings: Settings, pods: Cache<Pod>) -> Self {
        let api = Api::new(client, settings.scheduler_name.clone());
        Self {
            api,
            settings,
            pods,
            snapshot: Snapshot::default(),
            pending: Pending::default(),
            assumed: HashMap::new(),
            requests: FuturesUnordered::new(),
            bindings: 0,
            reports: 0,
            started: Instant::now(),
            woken: Duration::ZERO,
            has_news: false,
        }
    }

    fn now(&self) -> Duration {
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

    fn pods_changed(&mut self, changes: &[Change<Pod>]) {
        for change in changes {
            let key = change.key.to_string();
            match change.after.as_deref().filter(|pod| !is_finished(pod)) {
                Some(pod) if is_bound(pod) => {
                    self.pending.remove(&key);
                    self.assumed.remove(&key);
                    self.has_news |= self.replace(pod);
                }
                Some(pod) => self.unbound(&key, pod),
                None => {
                    self.pending.remove(&key);
                    self.assumed.remove(&key);
                    self.has_news |= self.snapshot.pod(&key).is_some();
                    self.snapshot.remove_pod(&key);
                }
            }
        }
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
            // Its binding is under way.
            Some(assumed) if *assumed == uid => return,
            Some(_) => {
                self.assumed.remove(key);
                self.snapshot.remove_pod(key);
            }
            None => {}
        }
        if !self.is_ours(pod) {
            self.pending.remove(key);
            return;
        }
        let facts = Arc::new(PodFacts::of(pod));
        // The report of its refusal is a change of the pod, too; that alone is no reason to look again.
        let revision = pod.metadata.resource_version.clone().unwrap_or_default();
        if let Some(known) = self.pending.get_mut(key).filter(|known| known.uid == uid && *known.facts == *facts) {
            known.revision = revision;
            return;
        }
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let created = pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        self.pending.put(Waiting::new(facts, uid, priority, created, revision));
    }

    fn is_ours(&self, pod: &Pod) -> bool {
        let spec = pod.spec.as_ref();
        let name = spec.and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        let is_gated = spec.and_then(|spec| spec.scheduling_gates.as_ref()).is_some_and(|gates| !gates.is_empty());
        name == self.settings.scheduler_name && !is_gated && pod.metadata.deletion_timestamp.is_none()
    }

    /// Gives nodes to all pods that are due, as far as bindings may be under way.
    fn decide(&mut self) {
        let now = self.now();
        if self.has_news && now >= self.woken + WAKE_INTERVAL {
            self.has_news = false;
            self.woken = now;
            self.pending.wake_all();
        }
        while self.bindings < BINDINGS_MAX
            && let Some(mut pod) = self.pending.take(now)
        {
            match self.snapshot.schedule(&pod.facts) {
                Ok(node) => self.bind(pod, node),
                Err(refusal) => {
                    let message = refusal.to_string();
                    if pod.told.as_ref() != Some(&message) && self.reports < REPORTS_MAX {
                        self.report(&pod, message.clone());
                        pod.told = Some(message);
                    }
                    self.pending.refuse(pod, now);
                }
            }
        }
    }

    fn bind(&mut self, pod: Waiting, node: String) {
        self.assumed.insert(pod.facts.key.clone(), pod.uid.clone());
        self.bindings += 1;
        let api = self.api.clone();
        let future = async move {
            match api.bind(&pod, &node).await {
                Ok(()) => {
                    api.note(&pod, false, "Scheduled", &format!("Successfully assigned {} to {node}", pod.facts.key));
                    Ended::Bound(pod.facts.key.clone())
                }
                Err(error) => Ended::NotBound(Box::new(pod), error),
            }
        };
        self.requests.push(future.boxed());
    }

    fn report(&mut self, pod: &Waiting, message: String) {
        self.reports += 1;
        let (api, pod) = (self.api.clone(), pod.clone());
        let future = async move {
            if let Err(error) = api.refused(&pod, &message).await {
                tracing::debug!(pod = pod.facts.key, %error, "the refusal was not recorded");
            }
            api.note(&pod, true, "FailedScheduling", &message);
            Ended::Reported
        };
        self.requests.push(future.boxed());
    }

    fn settle(&mut self, ended: Ended) {
        match ended {
            Ended::Reported => self.reports -= 1,
            Ended::Bound(key) => {
                self.bindings -= 1;
                tracing::debug!(pod = key, "bound");
            }
            Ended::NotBound(pod, error) => {
                self.bindings -= 1;
                let key = pod.facts.key.clone();
                // Only if it is still this pod that is taken to be there.
                if self.assumed.get(&key) != Some(&pod.uid) {
                    return;
                }
                self.assumed.remove(&key);
                self.snapshot.remove_pod(&key);
                self.has_news = true;
                let (namespace, name) = key.split_once('/').unwrap_or(("", &key));
                let current = self.pods.get_key(&ObjectKey::new(namespace, name));
                let is_current = current.as_ref().is_some_and(|now| now.metadata.uid.as_deref() == Some(&pod.uid));
                if let Some(current) = current.filter(|now| is_current && self.is_ours(now) && !is_bound(now)) {
                    tracing::warn!(pod = key, %error, "binding failed; trying again");
                    let until = self.now() + BIND_RETRY;
                    let mut pod = *pod;
                    pod.facts = Arc::new(PodFacts::of(&current));
                    self.pending.delay(pod, until);
                }
            }
        }
    }

    fn next_timer(&self) -> Option<Duration> {
        let news = (self.has_news && self.pending.has_refused()).then_some(self.woken + WAKE_INTERVAL);
        let next = news.into_iter().chain(self.pending.next_timer()).min()?;
        // While all bindings are taken, only their end changes anything.
        (self.bindings < BINDINGS_MAX).then(|| next.saturating_sub(self.now()))
    }
}

fn is_bound(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty())
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}
