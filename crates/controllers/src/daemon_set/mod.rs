//! DaemonSet: one pod on every node that suits it.
//!
//! Flow: claim pods and revisions → find the present template's revision → *place*: for each node, create the pod that is
//! missing, delete what should not be there → *update* ([`update`]): replace pods of an older template → status.
//!
//! Guarantees: each pod is pinned to its node by node affinity and goes through the scheduler like any other; pods
//! tolerate what befalls nodes (not ready, unreachable, pressure, cordon), because they belong there; an update takes down
//! at most `maxUnavailable` serving pods, or with `maxSurge` none before its successor serves.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/>.

mod failures;
mod update;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};
use mainstay_informer::{Change, ObjectKey};

use crate::action::{Action, Attempt, Note, Now, Object, Plan, Target};
use crate::caches::Caches;
use crate::claim::{candidates, claim, concerned};
use crate::driver::{Controller, Wiring};
use crate::object::{
    controller_reference, created, is_finished, is_ready, is_terminating, name, namespace, node_of, phase, reference,
    selector, uid, until_available,
};
use crate::placement::{is_repelled, is_wanted_on};
use crate::revisions::{HASH_LABEL, History, Present, hash_of};
use failures::Failures;

/// Pods created or deleted in one go; the next look continues.
const BURST_MAX: usize = 250;
const FIELD_NAME: &str = "metadata.name";
/// What a daemon's pod tolerates besides what its template says: (key, effect).
const TOLERATED: &[(&str, &str)] = &[
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

/// What one look needs to see.
pub(crate) struct View {
    pub(crate) set: Arc<DaemonSet>,
    pub(crate) nodes: Vec<Arc<Node>>,
    /// Pods of its namespace that it owns or could own.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// ControllerRevisions that it owns or could own.
    pub(crate) revisions: Vec<Arc<ControllerRevision>>,
    /// Nodes on which the successor of a failed pod has to wait, and how long.
    pub(crate) held: BTreeMap<String, Duration>,
}

/// A node with the set's pods on it.
struct Place<'a> {
    node: &'a Node,
    /// Whether a pod should be started there.
    wanted: bool,
    /// Whether one that is there may stay.
    may_stay: bool,
    /// Not ended; oldest first.
    pods: Vec<Arc<Pod>>,
}

/// Decides about one DaemonSet.
pub(crate) fn reconcile(view: &View, now: Timestamp) -> Plan {
    let set = view.set.as_ref();
    let mut plan = Plan::default();
    let chosen = selector(Some(&set.spec.selector));
    let pods = claim(set, &chosen, &view.pods, &mut plan);
    let history = History::new(claim(set, &chosen, &view.revisions, &mut plan));
    if is_terminating(set) {
        "it is being deleted".clone_into(&mut plan.why);
        return plan;
    }
    let collisions = set.status.as_ref().and_then(|status| status.collision_count);
    let present = match history.present(set, &set.spec.template, collisions, &mut plan) {
        Present::Found(found) => found,
        Present::Created => return plan,
        Present::Collision => {
            let mut status = set.status.clone().unwrap_or_default();
            status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
            plan.push(with_status(set, status));
            return plan;
        }
    };
    let places = places(set, &view.nodes, &pods);
    place(view, &places, &pods, &present, &mut plan);
    update::roll(set, &places, hash_of(&present), now, &mut plan);
    let status = status(set, &places, hash_of(&present), now, &mut plan);
    if set.status.as_ref() != Some(&status) {
        plan.push(with_status(set, status));
    }
    let used: Vec<&str> = pods.iter().map(|pod| hash_label(pod)).collect();
    let is_in_use =
        |revision: &ControllerRevision| used.contains(&hash_of(revision)) || hash_of(revision) == hash_of(&present);
    history.trim(set.spec.revision_history_limit, is_in_use, &mut plan);
    plan.actions.sort_by_key(|action| match action {
        Action::Delete { .. } => 1,
        Action::Create(_) => 2,
        Action::Note(_) => 3,
        _ => 0,
    });
    plan
}

fn hash_label(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(HASH_LABEL)).map_or("", String::as_str)
}

fn places<'a>(set: &DaemonSet, nodes: &'a [Arc<Node>], pods: &[Arc<Pod>]) -> Vec<Place<'a>> {
    let mut by_node: BTreeMap<&str, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !is_finished(pod)) {
        if let Some(node) = target_of(pod) {
            by_node.entry(node).or_default().push(pod.clone());
        }
    }
    let spec = set.spec.template.spec.clone().unwrap_or_default();
    let tolerations = tolerations(&spec);
    let mut places: Vec<_> = nodes
        .iter()
        .filter(|node| !is_terminating(&***node))
        .map(|node| {
            let fits = is_wanted_on(&spec, node);
            let mut pods = by_node.remove(name(&**node)).unwrap_or_default();
            pods.sort_by_key(|pod| (created(&**pod), name(&**pod).to_owned()));
            Place {
                node,
                wanted: fits && !is_repelled(node, &tolerations, &["NoSchedule", "NoExecute"]),
                may_stay: fits && !is_repelled(node, &tolerations, &["NoExecute"]),
                pods,
            }
        })
        .collect();
    places.sort_by_key(|place| name(place.node).to_owned());
    places
}

/// Where a pod runs, or is meant to: bound, or by the affinity it was made with.
fn target_of(pod: &Pod) -> Option<&str> {
    if !node_of(pod).is_empty() {
        return Some(node_of(pod));
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let mut fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let pinned = fields.find(|field| field.key == FIELD_NAME && field.operator == "In")?;
    pinned.values.as_ref()?.first().map(String::as_str)
}

/// Creates what is missing and deletes what is too much.
fn place(view: &View, places: &[Place<'_>], pods: &[Arc<Pod>], present: &ControllerRevision, plan: &mut Plan) {
    let set = view.set.as_ref();
    // A pod that has ended makes way for the next.
    for pod in pods.iter().filter(|pod| is_finished(pod) && !is_terminating(&***pod)) {
        if let Some(left) = view.held.get(node_of(pod)).filter(|_| phase(pod) == "Failed") {
            plan.look_again(*left);
            continue;
        }
        let who = format!("{}/{} on node {}", namespace(set), name(&**pod), node_of(pod));
        let (warning, reason, message) = if phase(pod) == "Failed" {
            (true, "FailedDaemonPod", format!("Found failed daemon pod {who}, will try to kill it"))
        } else {
            (false, "SucceededDaemonPod", format!("Found succeeded daemon pod {who}, will try to delete it"))
        };
        plan.push(Action::Note(Note { regarding: reference(set), warning, reason, message }));
        plan.push(Action::delete(Target::of(&**pod)));
    }
    let known: Vec<&str> = places.iter().map(|place| name(place.node)).collect();
    // Pods that were made for a node that is gone would wait for ever.
    for pod in pods.iter().filter(|pod| node_of(pod).is_empty() && !is_finished(pod) && !is_terminating(&***pod)) {
        if target_of(pod).is_none_or(|node| !known.contains(&node)) {
            plan.push(Action::delete(Target::of(&**pod)));
        }
    }
    let mut missing = Vec::new();
    for place in places {
        let staying = || place.pods.iter().filter(|pod| !is_terminating(&***pod));
        if !place.may_stay {
            plan.actions.extend(staying().map(|pod| Action::delete(Target::of(&**pod))));
        } else if place.wanted && place.pods.is_empty() {
            missing.extend(Some(place.node).filter(|node| !view.held.contains_key(name(*node))));
        } else if update::surge(set, places.len()) == 0 {
            // Two on one node: the one that was there first stays.
            plan.actions.extend(staying().skip(1).map(|pod| Action::delete(Target::of(&**pod))));
        }
    }
    plan.why = format!("{} nodes, {} without their pod", places.len(), missing.len());
    for node in missing.into_iter().take(BURST_MAX) {
        plan.push(Action::Create(Object::of(&pod(set, name(node), hash_of(present)))));
    }
}

fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let network = ("node.kubernetes.io/network-unavailable", "NoSchedule");
    let host = spec.host_network == Some(true);
    for (key, effect) in TOLERATED.iter().copied().chain(host.then_some(network)) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    all
}

/// A new pod of the present template for one node; the API server completes its name.
fn pod(set: &DaemonSet, node: &str, hash: &str) -> Pod {
    let mut metadata = set.spec.template.metadata.clone().unwrap_or_default();
    metadata.name = None;
    metadata.generate_name = Some(format!("{}-", name(set)));
    metadata.namespace = Some(namespace(set).to_owned());
    metadata.owner_references = Some(vec![controller_reference(set)]);
    let labels = metadata.labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
    labels.insert("pod-template-generation".to_owned(), set.metadata.generation.unwrap_or(1).to_string());
    let mut spec = set.spec.template.spec.clone().unwrap_or_default();
    spec.tolerations = Some(tolerations(&spec));
    pin(&mut spec, node);
    Pod { metadata, spec: Some(spec), status: None }
}

/// Node affinity to this node only, on top of what the template's node selector asks for.
fn pin(spec: &mut PodSpec, node: &str) {
    let field = NodeSelectorRequirement {
        key: FIELD_NAME.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_with(NodeAffinity::default);
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(|| NodeSelector { node_selector_terms: vec![NodeSelectorTerm::default()] });
    if required.node_selector_terms.is_empty() {
        required.node_selector_terms.push(NodeSelectorTerm::default());
    }
    for term in &mut required.node_selector_terms {
        term.match_fields = Some(vec![field.clone()]);
    }
}

fn status(set: &DaemonSet, places: &[Place<'_>], hash: &str, now: Timestamp, plan: &mut Plan) -> DaemonSetStatus {
    let count = |keep: &dyn Fn(&Place<'_>) -> bool| {
        i32::try_from(places.iter().filter(|place| keep(place)).count()).unwrap_or(i32::MAX)
    };
    let min_ready_seconds = set.spec.min_ready_seconds.unwrap_or(0);
    let left = |pod: &Pod| until_available(pod, min_ready_seconds, now);
    let waits = places.iter().flat_map(|place| &place.pods).filter_map(|pod| left(pod)).filter(|left| !left.is_zero());
    if let Some(soonest) = waits.min() {
        plan.look_again(soonest.max(Duration::from_millis(10)));
    }
    let any = |place: &Place<'_>, is: &dyn Fn(&Pod) -> bool| place.wanted && place.pods.iter().any(|pod| is(pod));
    let desired = count(&|place| place.wanted);
    let available = count(&|place| any(place, &|pod| left(pod).is_some_and(|left| left.is_zero())));
    DaemonSetStatus {
        current_number_scheduled: count(&|place| any(place, &|_| true)),
        desired_number_scheduled: desired,
        number_misscheduled: count(&|place| !place.wanted && !place.pods.is_empty()),
        number_ready: count(&|place| any(place, &is_ready)),
        number_available: Some(available).filter(|count| *count > 0),
        number_unavailable: Some(desired - available).filter(|count| *count > 0),
        updated_number_scheduled: Some(count(&|place| {
            any(place, &|pod| hash_label(pod) == hash && !is_terminating(pod))
        }))
        .filter(|count| *count > 0),
        observed_generation: set.metadata.generation,
        collision_count: set.status.as_ref().and_then(|status| status.collision_count),
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
    }
}

fn with_status(set: &DaemonSet, status: DaemonSetStatus) -> Action {
    Action::ReplaceStatus(Object::of(&DaemonSet { status: Some(status), ..set.clone() }))
}

/// The controller of DaemonSets.
#[derive(Default)]
pub(crate) struct DaemonSets {
    failures: Mutex<Failures>,
}

impl DaemonSets {
    /// Where the successors of failed pods have to wait.
    fn held(&self, set: &DaemonSet, pods: &[Arc<Pod>], now: Duration) -> BTreeMap<String, Duration> {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = pods.iter().filter(|pod| phase(pod) == "Failed" && !is_terminating(&***pod));
        let nodes: BTreeSet<&str> = failed.map(|pod| node_of(pod)).collect();
        let wait = |node: &str| {
            let place = (uid(set).to_owned(), set.metadata.generation.unwrap_or(0), node.to_owned());
            (node.to_owned(), failures.wait(&place, now))
        };
        nodes.into_iter().map(wait).filter(|(_, left)| !left.is_zero()).collect()
    }
}

impl Controller for DaemonSets {
    type Key = ObjectKey;
    const NAME: &'static str = "daemonset-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        let chosen = |set: &DaemonSet| selector(Some(&set.spec.selector));
        wiring.on(&caches.daemon_sets, |change, _| vec![change.key.clone()]);
        wiring.on(&caches.pods, move |change, caches| concerned(change, &caches.daemon_sets, chosen));
        wiring.on(&caches.revisions, move |change, caches| concerned(change, &caches.daemon_sets, chosen));
        wiring.on(&caches.nodes, |change: &Change<Node>, caches| {
            let placing = |node: &Arc<Node>| {
                let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone());
                (node.metadata.labels.clone(), taints, is_terminating(&**node))
            };
            if change.before.as_ref().map(placing) == change.after.as_ref().map(placing) {
                return Vec::new();
            }
            caches.daemon_sets.list().iter().map(|set| ObjectKey::of(&**set)).collect()
        });
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, now: Now) -> Plan {
        let Some(set) = caches.daemon_sets.get_key(key) else { return Plan::nothing("it is gone") };
        let chosen = selector(Some(&set.spec.selector));
        let pods = candidates(&caches.pods, &*set, &chosen);
        let revisions = candidates(&caches.revisions, &*set, &chosen);
        let held = self.held(&set, &pods, now.monotonic);
        reconcile(&View { set, nodes: caches.nodes.list(), pods, revisions, held }, now.wall)
    }
}
