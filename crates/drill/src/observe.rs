//! What the cluster says while things break: marks on the time line, and how many endpoints each Service has.
//!
//! Read from watches of pods, nodes and EndpointSlices, through caches; each mark carries the moment at which the watch told it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Client, ResourceExt as _};
use mainstay_informer::{Cache, Scope};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

/// Most marks kept.
const MARKS_MAX: usize = 20_000;
/// The label that names a slice's Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Whether a mark tells of something getting worse or better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tone {
    /// Noticed: something is not as it was.
    Worse,
    /// Something is as it should be.
    Better,
}

/// One thing that the API told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Microseconds after the load's beginning.
    pub at_us: u64,
    /// Which way.
    pub tone: Tone,
    /// For people, such as `node/node-2 is not ready`.
    pub what: String,
}

/// How many ready endpoints a Service has from a moment on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// Microseconds after the load's beginning.
    pub at_us: u64,
    /// `NAMESPACE/NAME`.
    pub service: String,
    /// Ready ones.
    pub ready: usize,
}

/// The cluster, as its watches tell it.
pub struct Observer {
    /// All pods.
    pub pods: Cache<Pod>,
    /// All nodes.
    pub nodes: Cache<Node>,
    /// All slices.
    pub slices: Cache<EndpointSlice>,
    client: Client,
    notes: Arc<Mutex<Notes>>,
    /// Ends with the observer.
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Notes {
    marks: Vec<Mark>,
    endpoints: Vec<Endpoints>,
}

impl Observer {
    /// Begins to watch; answers when everything is known. Times count from `began`.
    pub async fn start(client: &Client, began: Instant) -> Self {
        let (pods, nodes, slices) = (Cache::new(), Cache::new(), Cache::new());
        let notes = Arc::new(Mutex::new(Notes::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(Cache::run(Cache::clone(&pods), client.clone(), Scope::default()));
        tasks.spawn(Cache::run(Cache::clone(&nodes), client.clone(), Scope::default()));
        tasks.spawn(Cache::run(Cache::clone(&slices), client.clone(), Scope::default()));
        tokio::join!(pods.synced(), nodes.synced(), slices.synced());
        let observer = Self { pods, nodes, slices, client: client.clone(), notes, tasks };
        observer.note(began)
    }

    fn note(mut self, began: Instant) -> Self {
        let (mut of_pods, mut of_nodes) = (self.pods.subscribe(), self.nodes.subscribe());
        let mut of_slices = self.slices.subscribe();
        let (slices, notes) = (self.slices.clone(), Arc::clone(&self.notes));
        let first = ready_endpoints(&slices.list()).into_iter();
        self.lock().endpoints.extend(first.map(|(service, ready)| Endpoints { at_us: 0, service, ready }));
        self.tasks.spawn(async move {
            // What is there already is no news.
            let mut known = ready_endpoints(&slices.list());
            of_pods.take();
            of_nodes.take();
            loop {
                let mut marks: Vec<(Tone, String)> = Vec::new();
                tokio::select! {
                    changes = of_pods.changed() => {
                        marks.extend(changes.iter().filter_map(|it| pod_mark(it.before.as_deref(), it.after.as_deref())));
                    }
                    changes = of_nodes.changed() => {
                        marks.extend(changes.iter().filter_map(|it| node_mark(it.before.as_deref(), it.after.as_deref())));
                    }
                    _ = of_slices.changed() => {}
                }
                let at_us = began.elapsed().as_micros() as u64;
                let now = ready_endpoints(&slices.list());
                let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
                for (service, ready) in changed(&known, &now) {
                    notes.endpoints.push(Endpoints { at_us, service, ready });
                }
                known = now;
                let room = MARKS_MAX.saturating_sub(notes.marks.len());
                notes.marks.extend(marks.into_iter().take(room).map(|(tone, what)| Mark { at_us, tone, what }));
            }
        });
        self
    }

    /// The marks so far.
    pub fn marks(&self) -> Vec<Mark> {
        self.lock().marks.clone()
    }

    /// The changes of endpoints so far.
    pub fn endpoints(&self) -> Vec<Endpoints> {
        self.lock().endpoints.clone()
    }

    /// Ready endpoints of each Service now.
    pub fn ready_now(&self) -> BTreeMap<String, usize> {
        ready_endpoints(&self.slices.list())
    }

    /// Waits until no Service has fewer ready endpoints than `wanted`, every node that was `well` is Ready again, and no pod
    /// waits; answers whether it came to that in time.
    pub async fn until_healed(&self, wanted: &BTreeMap<String, usize>, well: &[String], patience: Duration) -> bool {
        let since = Instant::now();
        loop {
            let now = self.ready_now();
            let endpoints = wanted.iter().all(|(service, ready)| now.get(service).copied().unwrap_or(0) >= *ready);
            let nodes = well.iter().all(|name| self.nodes.get("", name).is_some_and(|node| node_is_ready(&node)));
            if endpoints && nodes {
                return true;
            }
            if since.elapsed() > patience {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether the API answers within a second.
    pub async fn api_answers(&self) -> bool {
        let Ok(request) = http::Request::get("/readyz").body(Vec::new()) else { return false };
        let answer = tokio::time::timeout(Duration::from_secs(1), self.client.request_text(request)).await;
        answer.is_ok_and(|answer| answer.is_ok())
    }

    /// Waits until the API answers; whether it did in time.
    pub async fn until_api_answers(&self, patience: Duration) -> bool {
        let since = Instant::now();
        while !self.api_answers().await {
            if since.elapsed() > patience {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }

    /// The nodes that are Ready.
    pub fn ready_nodes(&self) -> Vec<String> {
        self.nodes.list().iter().filter(|node| node_is_ready(node)).map(|node| node.name_any()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Services whose number of ready endpoints is another than before.
fn changed(before: &BTreeMap<String, usize>, now: &BTreeMap<String, usize>) -> Vec<(String, usize)> {
    let gone = before.keys().filter(|service| !now.contains_key(*service)).map(|service| (service.clone(), 0));
    let other = now.iter().filter(|(service, ready)| before.get(*service) != Some(*ready));
    gone.chain(other.map(|(service, ready)| (service.clone(), *ready))).collect()
}

fn ready_endpoints(slices: &[Arc<EndpointSlice>]) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for slice in slices {
        let Some(service) = slice.labels().get(SERVICE_LABEL) else { continue };
        let key = format!("{}/{service}", slice.namespace().unwrap_or_default());
        let is_ready = |conditions: Option<&k8s_openapi::api::discovery::v1::EndpointConditions>| {
            conditions.and_then(|conditions| conditions.ready).unwrap_or(true)
        };
        let ready = slice.endpoints.iter().flatten().filter(|endpoint| is_ready(endpoint.conditions.as_ref())).count();
        *all.entry(key).or_default() += ready;
    }
    all
}

/// Whether a pod's Ready condition is true and it is not ending.
pub fn pod_is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    let ready = conditions.filter(|condition| condition.type_ == "Ready").any(|condition| condition.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}

fn node_is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    conditions.filter(|condition| condition.type_ == "Ready").any(|condition| condition.status == "True")
}

fn pod_mark(before: Option<&Pod>, after: Option<&Pod>) -> Option<(Tone, String)> {
    let pod = after.or(before)?;
    let shown = format!("pod/{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    match (before.is_some_and(pod_is_ready), after.map(pod_is_ready)) {
        (true, Some(false)) if pod.metadata.deletion_timestamp.is_some() => {
            Some((Tone::Worse, format!("{shown} is ending")))
        }
        (true, Some(false)) => Some((Tone::Worse, format!("{shown} is not ready"))),
        (false, Some(true)) => Some((Tone::Better, format!("{shown} is ready"))),
        (true, None) => Some((Tone::Worse, format!("{shown} is gone"))),
        _ => None,
    }
}

fn node_mark(before: Option<&Node>, after: Option<&Node>) -> Option<(Tone, String)> {
    let node = after?;
    let shown = format!("node/{}", node.name_any());
    let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).map_or(0, Vec::len);
    match (before.is_some_and(node_is_ready), node_is_ready(node)) {
        (true, false) => Some((Tone::Worse, format!("{shown} is not ready"))),
        (false, true) => Some((Tone::Better, format!("{shown} is ready"))),
        _ => {
            let (then, now) = (before.map_or(0, taints), taints(node));
            match now.cmp(&then) {
                std::cmp::Ordering::Greater => Some((Tone::Worse, format!("{shown} is tainted"))),
                std::cmp::Ordering::Less => Some((Tone::Better, format!("{shown} is not tainted any more"))),
                std::cmp::Ordering::Equal => None,
            }
        }
    }
}
