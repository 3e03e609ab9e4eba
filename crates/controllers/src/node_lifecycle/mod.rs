//! Node lifecycle: what happens to the pods of a node that is not heard any more.
//!
//! Flow: [`heartbeat`] judges each node. *Suspected*: its pods get `Ready=False` (reason `NodeSuspected`), so that they
//! leave the endpoints; the agent writes the truth again when it is back. *Dead*: the node gets `Ready=Unknown` and the
//! taint `node.kubernetes.io/unreachable`, and pods that do not tolerate it are deleted; they stay `Terminating` until
//! the agent confirms or the Node object goes, and their ReplicaSet replaces them at once. *Heard again*: the taints go.
//!
//! *Fenced*: a pod that must not run twice (of a StatefulSet, with a claimed volume, or annotated) is removed for good, so
//! that it can start elsewhere, once the node has surely stopped it: see [`mainstay_model::fencing`] for the proof. Pods of
//! nodes that promise no such thing are never removed so. *Zones*: when most of a zone falls silent at once, evictions
//! stop, and the node's `Ready` condition says why ([`zones`]).
//!
//! Guarantees: a suspicion loses nothing; nobody is judged by wall clocks; a pod's status is written only over the very
//! version that was looked at, so that an agent that is back is never overwritten; no pod that must not run twice does.
//!
//! Source: <https://kubernetes.io/docs/concepts/architecture/nodes/>,
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/>.

pub(crate) mod heartbeat;
#[cfg(test)]
mod tests;
mod zones;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use mainstay_informer::{Change, ObjectKey};
use mainstay_model::fencing::{self, Fence};
use serde_json::json;

use self::heartbeat::{Judge, Verdict};
use self::zones::Pace;
use crate::action::{Action, Attempt, Note, Now, Object, Plan, Propagation, Target};
use crate::caches::{Caches, LEASE_NAMESPACE};
use crate::driver::{Clock, Controller, Wiring};
use crate::object::{
    annotation, disrupted, is_finished, is_ready, is_terminating, name, namespace, node_of, reference, time, uid,
    with_condition,
};
use crate::placement::tolerates;
use crate::settings::HeartbeatSettings;

/// The annotation of a Node that renews no Lease and is not judged.
pub const HOLLOW: &str = "mainstay.dev/hollow";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// How often a node whose pods are held back is looked at again.
const PACE_INTERVAL: Duration = Duration::from_secs(1);
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions whose node takes no new pods while they are true, with their taints.
///
/// Source: <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/#taint-nodes-by-condition>.
const TAINTS_OF_CONDITIONS: &[(&str, &str)] = &[
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";
const UNKNOWN_REASON: &str = "NodeStatusUnknown";
const SUSPECTED_REASON: &str = "NodeSuspected";
/// The conditions an agent keeps; when it is silent none of them is known.
const AGENT_CONDITIONS: &[&str] = &["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// What one look needs to see.
pub(crate) struct View {
    pub(crate) node: Arc<Node>,
    pub(crate) verdict: Verdict,
    /// Pods bound to it.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// How fast its pods are evicted, should it be dead.
    pub(crate) pace: Pace,
    /// Since when it has not been heard, while its Lease is as it was then.
    pub(crate) silence: Option<Silence>,
}

/// How long a node has not been heard.
pub(crate) struct Silence {
    pub(crate) lasts: Duration,
    /// Its Lease and the revision that was seen last.
    pub(crate) lease: Target,
    pub(crate) revision: String,
}

/// Decides about one node.
pub(crate) fn reconcile(view: &View, now: Timestamp) -> Plan {
    let node = view.node.as_ref();
    let mut plan = Plan::nothing(format!("{:?}", view.verdict));
    let message = silent_message(&view.pace);
    if view.verdict == Verdict::Dead && !says(node, &message) {
        plan.push(Action::ReplaceStatus(Object::of(&silent(node, &message, now))));
        plan.push(Action::Note(Note {
            regarding: reference(node),
            warning: true,
            reason: "NodeNotReady",
            message: format!("Node {} status is now: NodeNotReady. {message}", name(node)),
        }));
        // The taints follow with the next look, which sees the node as it is then.
        return plan;
    }
    if let Some(taints) = taints(view, now) {
        let meta = json!({"uid": uid(node), "resourceVersion": node.metadata.resource_version});
        plan.push(Action::Patch(
            Target::of(node),
            json!({"metadata": meta, "spec": {"taints": Some(taints).filter(|all| !all.is_empty())}}),
        ));
        if view.verdict == Verdict::Dead {
            return plan;
        }
    }
    for pod in view.pods.iter().filter(|pod| !is_finished(pod)) {
        let suspected = view.verdict >= Verdict::Suspected && is_ready(pod);
        let staying = if is_terminating(&**pod) { Stay::ForGood } else { stay(pod, node, now) };
        let mut new = if suspected { withdrawn(pod, node, now) } else { Pod::clone(pod) };
        match staying {
            Stay::ForGood => {}
            Stay::For(left) => plan.look_again(left),
            Stay::Over => {
                let why = "Taint manager: deleting due to NoExecute taint";
                new = disrupted(&new, "DeletionByTaintManager", why, now);
                plan.push(Action::Note(Note {
                    regarding: reference(&**pod),
                    warning: false,
                    reason: "TaintManagerEviction",
                    message: format!("Marking for deletion Pod {}/{}", namespace(&**pod), name(&**pod)),
                }));
                plan.push(Action::delete(Target::of(&**pod)));
            }
        }
        if new != **pod {
            plan.push(Action::ReplaceStatus(Object::of(&new)));
        }
    }
    // What is alike goes out together: first what is said of the pods, then their deletion.
    plan.actions.sort_by_key(|action| match action {
        Action::Delete { .. } => 2,
        Action::Note(_) => 1,
        _ => 0,
    });
    if view.verdict == Verdict::Dead {
        replace_fenced(view, &mut plan);
    }
    plan
}

/// Removes the ending pods that must not run twice, once the node has stopped them for sure.
fn replace_fenced(view: &View, plan: &mut Plan) {
    let (Some(fence), Some(silence)) = (Fence::of(annotation(&*view.node, fencing::ANNOTATION)), &view.silence) else {
        return;
    };
    let is_waiting = |pod: &&Arc<Pod>| is_terminating(&***pod) && fencing::runs_once(&json!(***pod));
    let waiting: Vec<_> = view.pods.iter().filter(is_waiting).collect();
    let left = fence.replace_after().saturating_sub(silence.lasts);
    if waiting.is_empty() {
        return;
    }
    if !left.is_zero() {
        plan.why = format!("{} pods may still run there for {left:?}", waiting.len());
        return plan.look_again(left.max(Duration::from_millis(5)));
    }
    // The read that the proof needs: nothing was renewed that had not been seen.
    plan.push(Action::ExpectSame(silence.lease.clone(), silence.revision.clone()));
    plan.actions.extend(waiting.into_iter().map(|pod| Action::Delete {
        target: Target::of(&**pod),
        grace_seconds: Some(0),
        propagation: Propagation::Background,
    }));
}

fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

fn ready_condition(node: &Node) -> Option<&NodeCondition> {
    condition(node, "Ready")
}

/// What the node's conditions say while it is not heard.
fn silent_message(pace: &Pace) -> String {
    let text = "The node's agent has stopped renewing its Lease.";
    match pace {
        Pace::Normal => text.to_owned(),
        Pace::Slow(why) => format!("{text} Its pods are evicted slowly: {why}."),
        Pace::Stopped(why) => format!("{text} Its pods are not evicted: {why}."),
    }
}

fn says(node: &Node, message: &str) -> bool {
    ready_condition(node).is_some_and(|ready| ready.status == "Unknown" && ready.message.as_deref() == Some(message))
}

/// The node as it is when its agent is not heard: nothing is known.
fn silent(node: &Node, message: &str, now: Timestamp) -> Node {
    let mut node = node.clone();
    let status = node.status.get_or_insert_default();
    let conditions = status.conditions.get_or_insert_default();
    if !conditions.iter().any(|condition| condition.type_ == "Ready") {
        conditions.push(NodeCondition { type_: "Ready".to_owned(), ..NodeCondition::default() });
    }
    for condition in conditions.iter_mut().filter(|c| AGENT_CONDITIONS.contains(&c.type_.as_str())) {
        if condition.status != "Unknown" {
            "Unknown".clone_into(&mut condition.status);
            condition.last_transition_time = Some(time(now));
        }
        condition.reason = Some(UNKNOWN_REASON.to_owned());
        condition.message = Some(message.to_owned());
    }
    node
}

/// The taints the node should have, if they are not those it has.
fn taints(view: &View, now: Timestamp) -> Option<Vec<Taint>> {
    let old = view.node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    // An agent that says it is not ready takes no new pods, but keeps those it has.
    let not_ready = view.verdict == Verdict::Alive && ready_condition(&view.node).is_some_and(|c| c.status == "False");
    let dead = view.verdict == Verdict::Dead;
    let evict = dead && !matches!(view.pace, Pace::Stopped(_));
    // A suspected node stays as it was: it was dead and never came back, or it was not.
    let keep = view.verdict == Verdict::Suspected;
    let said = |type_: &str| condition(&view.node, type_).is_some_and(|condition| condition.status == "True");
    let cordoned = view.node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
    let mut wanted = vec![
        (UNREACHABLE, NO_SCHEDULE, dead),
        (UNREACHABLE, NO_EXECUTE, evict),
        (NOT_READY, NO_SCHEDULE, not_ready),
        (UNSCHEDULABLE, NO_SCHEDULE, cordoned),
    ];
    wanted.extend(TAINTS_OF_CONDITIONS.iter().map(|(type_, key)| (*key, NO_SCHEDULE, said(type_))));
    let mut new = old.clone();
    for (key, effect, present) in wanted {
        let is = |taint: &Taint| taint.key == key && taint.effect == effect;
        match (present, new.iter().any(is)) {
            (true, false) => new.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(time(now)),
            }),
            (false, true) if !keep => new.retain(|taint| !is(taint)),
            _ => {}
        }
    }
    (new != old).then_some(new)
}

/// The pod taken out of the endpoints.
fn withdrawn(pod: &Pod, node: &Node, now: Timestamp) -> Pod {
    let message = format!("Node {} is not heard; its agent corrects this when it is back.", name(node));
    with_condition(pod, "Ready", "False", SUSPECTED_REASON, &message, now)
}

/// How long a pod may stay on a node.
#[derive(Debug, PartialEq, Eq)]
enum Stay {
    ForGood,
    For(Duration),
    Over,
}

/// What the node's `NoExecute` taints mean for a pod.
fn stay(pod: &Pod, node: &Node, now: Timestamp) -> Stay {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut left: Option<SignedDuration> = None;
    let all = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    for taint in all.filter(|taint| taint.effect == NO_EXECUTE) {
        let matching: Vec<_> = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).collect();
        if matching.is_empty() {
            return Stay::Over;
        }
        if let Some(seconds) = matching.iter().filter_map(|toleration| toleration.toleration_seconds).min() {
            let added = taint.time_added.as_ref().map_or(now, |time| time.0);
            let until = added + SignedDuration::from_secs(seconds.clamp(0, i64::from(i32::MAX)));
            let rest = until.duration_since(now);
            left = Some(left.map_or(rest, |other| other.min(rest)));
        }
    }
    match left.map(Duration::try_from) {
        None => Stay::ForGood,
        Some(Ok(left)) if !left.is_zero() => Stay::For(left),
        Some(_) => Stay::Over,
    }
}

/// The controller of nodes.
pub(crate) struct NodeLifecycle {
    pub(crate) judge: Arc<Mutex<Judge>>,
    clock: Clock,
    /// Nodes of a large zone that were let through one by one, and when the last was.
    let_through: Mutex<BTreeMap<String, (Duration, BTreeSet<String>)>>,
}

impl NodeLifecycle {
    pub(crate) fn new(settings: HeartbeatSettings, clock: Clock) -> Self {
        Self { judge: Arc::new(Mutex::new(Judge::new(settings))), clock, let_through: Mutex::default() }
    }
}

impl Controller for NodeLifecycle {
    type Key = ObjectKey;
    const NAME: &'static str = "node-lifecycle-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.nodes, |change, _| vec![change.key.clone()]);
        // A pod bound to a node that is given up already, or a status that an old agent wrote meanwhile.
        wiring.on(&caches.pods, |change: &Change<Pod>, _| {
            let node = change.after.as_ref().map(|pod| node_of(pod)).filter(|node| !node.is_empty());
            node.map(|node| ObjectKey::new("", node)).into_iter().collect()
        });
        let (judge, clock, inbox) = (self.judge.clone(), self.clock, wiring.inbox.clone());
        wiring.tasks.spawn(async move {
            let interval = judge.lock().unwrap_or_else(PoisonError::into_inner).interval();
            loop {
                let leases = renewals(&caches);
                let ruling = judge.lock().unwrap_or_else(PoisonError::into_inner).judge(clock.now().monotonic, &leases);
                if let Some(grace) = ruling.grace {
                    tracing::warn!(?grace, "the silence was ours; every node's count starts anew");
                }
                if ruling.deafened {
                    tracing::warn!("no node is heard at all; nobody is judged until one is");
                }
                for node in &ruling.changed {
                    let verdict = judge.lock().unwrap_or_else(PoisonError::into_inner).verdict(node);
                    tracing::info!(node, ?verdict, "heartbeat");
                }
                inbox.add(ruling.changed.iter().map(|node| ObjectKey::new("", node)));
                tokio::time::sleep(interval).await;
            }
        });
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, now: Now) -> Plan {
        let Some(node) = caches.nodes.get_key(key) else { return Plan::nothing("it is gone") };
        let judge = self.judge.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = judge.verdict(&key.name);
        let lease = caches.leases.get(LEASE_NAMESPACE, &key.name);
        let silence = judge.silence(&key.name, now.monotonic).zip(lease).and_then(|((lasts, renewal), lease)| {
            let revision = lease.metadata.resource_version.clone()?;
            (said(&lease).as_deref() == renewal).then(|| Silence { lasts, lease: Target::of(&*lease), revision })
        });
        let pace = if verdict == Verdict::Dead { self.pace(caches, &judge, &node, now) } else { Pace::Normal };
        drop(judge);
        // A node that is well keeps its pods, whoever they are.
        let evicts = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).any(|t| t.effect == NO_EXECUTE);
        let concerns = verdict != Verdict::Alive || evicts;
        let pods = if concerns { caches.pods.filter(|pod| node_of(pod) == key.name) } else { Vec::new() };
        let mut plan = reconcile(&View { node, verdict, pods, pace: pace.clone(), silence }, now.wall);
        if pace != Pace::Normal {
            plan.look_again(PACE_INTERVAL);
        }
        plan
    }
}

impl NodeLifecycle {
    /// How fast the pods of a dead node are evicted.
    fn pace(&self, caches: &Caches, judge: &Judge, node: &Node, now: Now) -> Pace {
        let mut all: BTreeMap<String, zones::Zone> = BTreeMap::new();
        for other in caches.nodes.list() {
            let zone = all.entry(zone_of(&other)).or_default();
            zone.nodes += 1;
            zone.dead += usize::from(judge.verdict(name(&*other)) == Verdict::Dead);
        }
        let own = zone_of(node);
        let pace = zones::pace(&all, &own);
        let mut let_through = self.let_through.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(pace, Pace::Slow(_)) {
            let_through.remove(&own);
            return pace;
        }
        let (last, nodes) = let_through.entry(own).or_insert((now.monotonic, BTreeSet::new()));
        if !nodes.contains(name(node)) && now.monotonic.saturating_sub(*last) >= zones::SLOW {
            *last = now.monotonic;
            nodes.insert(name(node).to_owned());
        }
        match pace {
            Pace::Slow(_) if nodes.contains(name(node)) => Pace::Normal,
            Pace::Slow(why) => Pace::Stopped(why),
            other => other,
        }
    }
}

fn zone_of(node: &Node) -> String {
    node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE_LABEL)).cloned().unwrap_or_default()
}

/// For each node what its Lease says: the renewal time and holder, as text to compare.
pub(crate) fn renewals(caches: &Caches) -> BTreeMap<String, Option<String>> {
    let of = |node: &str| said(&*caches.leases.get(LEASE_NAMESPACE, node)?);
    let judged = caches.nodes.filter(|node| annotation(node, HOLLOW).is_none());
    judged.iter().map(|node| (name(&**node).to_owned(), of(name(&**node)))).collect()
}

fn said(lease: &Lease) -> Option<String> {
    let spec = lease.spec.as_ref()?;
    let renewed = spec.renew_time.as_ref()?.0;
    Some(format!("{renewed} {}", spec.holder_identity.as_deref().unwrap_or_default()))
}
