//! A control-plane process of the simulation: the real controllers over caches that lag, and a scheduler with the real core.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use k8s_openapi::api::core::v1::Pod;
use mainstay_informer::ObjectKey;
use mainstay_scheduler::core::{NodeFacts, PodFacts, Snapshot};
use serde_json::json;

use crate::action::{Action, Attempt, Now, Plan};
use crate::driver::{Clock, Controller};
use crate::node_lifecycle::{NodeLifecycle, renewals};
use crate::object::{is_active, is_finished, is_terminating, name, node_of, uid};
use crate::settings::HeartbeatSettings;
use crate::testing::sight::Sight;
use crate::testing::store::{Refused, Store};

const ZONE: &str = "topology.kubernetes.io/zone";

pub(super) struct Manager {
    pub(super) sight: Sight,
    lifecycle: NodeLifecycle,
    attempts: HashMap<String, Attempt>,
    started: u64,
    rate: f64,
    is_new: bool,
    pub(super) down_until: u64,
}

impl Manager {
    pub(super) fn new(now: u64, rate: f64) -> Self {
        let lifecycle = NodeLifecycle::new(HeartbeatSettings::default(), Clock::start());
        let (sight, attempts) = (Sight::default(), HashMap::new());
        Self { sight, lifecycle, attempts, started: now, rate, is_new: true, down_until: 0 }
    }

    /// One moment: it sees what has arrived, judges the nodes, and looks at a few keys.
    pub(super) fn step(&mut self, store: &mut Store, now: u64, wall: jiff::Timestamp, random: &mut Rng) {
        if now < self.down_until {
            return;
        }
        // A process that comes up lists everything as it is; only what its watches tell from then on may be late.
        let lags = if std::mem::take(&mut self.is_new) { std::mem::take(&mut self.sight.lags) } else { HashMap::new() };
        self.sight.catch_up(store, now);
        self.sight.lags.extend(lags);
        let monotonic = Duration::from_secs_f64((now - self.started) as f64 * self.rate / 1000.0);
        self.lifecycle.judge.lock().unwrap().judge(monotonic, &renewals(&self.sight.caches));
        let now = Now { wall, monotonic };
        for _ in 0..8 {
            if self.look(store, now, random) == Some(true) {
                return;
            }
        }
    }

    /// One look at one key; whether the process crashed over it.
    fn look(&mut self, store: &mut Store, now: Now, random: &mut Rng) -> Option<bool> {
        let caches = self.sight.caches.clone();
        let any = |kind: &str, random: &mut Rng| -> Option<ObjectKey> {
            let keys: Vec<&ObjectKey> =
                store.objects.keys().filter(|(own, _)| own == kind).map(|(_, key)| key).collect();
            random.choice(keys).cloned()
        };
        let (name, key) = match random.u8(0..10) {
            0 => ("deployment", any("Deployment", random)?),
            1 => ("replicaset", any("ReplicaSet", random)?),
            2 => ("statefulset", any("StatefulSet", random)?),
            3 => ("job", any("Job", random)?),
            4 => ("budget", any("PodDisruptionBudget", random)?),
            5 => ("daemonset", any("DaemonSet", random)?),
            6 => ("endpoints", any("Service", random)?),
            _ => ("node", any("Node", random)?),
        };
        let attempt = self.attempts.entry(format!("{name}/{key}")).or_default().clone();
        let plan = match name {
            "deployment" => crate::deployment::Deployments.plan(&caches, &key, &attempt, now),
            "replicaset" => crate::replica_set::ReplicaSets.plan(&caches, &key, &attempt, now),
            "statefulset" => crate::stateful_set::StatefulSets.plan(&caches, &key, &attempt, now),
            "job" => crate::job::Jobs.plan(&caches, &key, &attempt, now),
            "daemonset" => crate::daemon_set::DaemonSets::default().plan(&caches, &key, &attempt, now),
            "endpoints" => crate::endpoint_slice::EndpointSlices.plan(&caches, &key, &attempt, now),
            "budget" => crate::disruption_budget::DisruptionBudgets.plan(&caches, &key, &attempt, now),
            _ => self.lifecycle.plan(&caches, &key, &attempt, now),
        };
        let crashed = self.carry_out(store, &plan, now.wall, random);
        if crashed {
            // It comes back as a new process that knows nothing.
            let lags = std::mem::take(&mut self.sight.lags);
            let rate = self.rate;
            let at = store.time;
            *self = Self::new(at, rate);
            self.sight.lags = lags;
            self.down_until = at + random.u64(0..2_000);
        }
        Some(crashed)
    }

    /// Carries out a plan as the executor does: in order, up to the first refusal; own writes are seen at once.
    fn carry_out(&mut self, store: &mut Store, plan: &Plan, wall: jiff::Timestamp, random: &mut Rng) -> bool {
        for action in &plan.actions {
            if random.u32(0..2_000) == 0 {
                return true;
            }
            match store.act(action, wall) {
                Ok(Some((target, Some(value)))) => self.sight.caches.observe(&target.resource.kind, value),
                Ok(Some((target, None))) => self.sight.caches.observe_deleted(&target.resource.kind, &target.key),
                Ok(None) => {}
                Err(Refused::Missing) => {
                    if let Action::Delete { target, .. } | Action::Patch(target, _) = action {
                        self.sight.caches.observe_deleted(&target.resource.kind, &target.key);
                    }
                    return false;
                }
                Err(_) => {
                    self.refresh(store, action);
                    return false;
                }
            }
        }
        false
    }

    /// After a conflict the object is read again.
    fn refresh(&mut self, store: &Store, action: &Action) {
        let target = match action {
            Action::Create(object) | Action::Replace(object) | Action::ReplaceStatus(object) => &object.target,
            Action::Patch(target, _) | Action::Delete { target, .. } | Action::ExpectSame(target, _) => target,
            _ => return,
        };
        match store.get(&target.resource.kind, &target.key) {
            Some(value) => self.sight.caches.observe(&target.resource.kind, value.clone()),
            None => self.sight.caches.observe_deleted(&target.resource.kind, &target.key),
        }
    }
}

#[derive(Default)]
pub(super) struct Scheduler {
    pub(super) sight: Sight,
    /// Bound here and not seen yet: uid and node.
    assumed: HashMap<String, String>,
}

impl Scheduler {
    /// Binds every waiting pod it sees; the error says whose spread that would break.
    pub(super) fn step(&mut self, store: &mut Store, now: u64) -> Result<(), String> {
        self.sight.catch_up(store, now);
        let pods = self.sight.caches.pods.list();
        let mut waiting: Vec<Arc<Pod>> = Vec::new();
        let mut snapshot = Snapshot::default();
        for pod in &pods {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            if !node_of(pod).is_empty() {
                self.assumed.remove(&uid);
            }
            if is_finished(pod) {
                continue;
            }
            let mut facts = PodFacts::of(pod);
            facts.node = facts.node.or_else(|| self.assumed.get(&uid).cloned());
            if facts.node.is_some() {
                snapshot.put_pod(Arc::new(facts));
            } else if !is_terminating(&**pod) {
                waiting.push(pod.clone());
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        for node in self.sight.caches.nodes.list() {
            snapshot.put_node(NodeFacts::of(&node));
        }
        waiting.sort_by_key(|pod| pod.metadata.name.clone());
        for pod in waiting {
            let Ok(node) = snapshot.schedule(&PodFacts::of(&pod)) else { continue };
            self.check_spread(&pod, &node)?;
            let id = ("Pod".to_owned(), ObjectKey::of(&*pod));
            let unbound = store.objects.get(&id).is_some_and(|now| now["spec"]["nodeName"].is_null());
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let bound = store.change(&id, &json!({"uid": uid}), |pod| {
                if unbound {
                    pod["spec"]["nodeName"] = json!(node);
                }
            });
            if bound.is_ok() && unbound {
                self.assumed.insert(uid, node);
            } else {
                // As the driver does: what was not bound does not count for the next.
                snapshot.remove_pod(&PodFacts::of(&pod).key);
            }
        }
        Ok(())
    }

    /// Counts again, in the plainest way, what the choice of a node means for a hard spread over zones.
    fn check_spread(&self, pod: &Pod, node: &str) -> Result<(), String> {
        let app = |pod: &Pod| pod.metadata.labels.as_ref().and_then(|labels| labels.get("app").cloned());
        let spreads = pod.spec.as_ref().and_then(|spec| spec.topology_spread_constraints.clone()).unwrap_or_default();
        if !spreads.iter().any(|spread| spread.when_unsatisfiable == "DoNotSchedule") {
            return Ok(());
        }
        let zone = |node: &str| self.sight.caches.nodes.get("", node)?.metadata.labels.as_ref()?.get(ZONE).cloned();
        let mut counts: BTreeMap<String, i32> = BTreeMap::new();
        for node in self.sight.caches.nodes.list() {
            counts.entry(zone(name(&*node)).unwrap_or_default()).or_insert(0);
        }
        let counted = |other: &Pod| app(other) == app(pod) && is_active(other);
        for other in self.sight.caches.pods.filter(counted) {
            let assumed = self.assumed.get(uid(&*other)).map(String::as_str);
            let at = Some(node_of(&other)).filter(|node| !node.is_empty()).or(assumed);
            if let Some(count) = at.and_then(zone).and_then(|zone| counts.get_mut(&zone)) {
                *count += 1;
            }
        }
        let least = counts.values().copied().min().unwrap_or(0);
        let here = zone(node).and_then(|zone| counts.get(&zone).copied()).unwrap_or(0) + 1;
        let skew = spreads.iter().map(|spread| spread.max_skew).min().unwrap_or(0);
        if here - least > skew {
            return Err(format!("{} was bound to {node}, whose zone has {here} now, another {least}", name(pod)));
        }
        Ok(())
    }
}
