//! ReplicaSet: keeps as many pods of one template as asked for.
//!
//! Flow: claim the pods (adopt orphans that match, release owned ones that no longer do) → create or delete the difference
//! → status. While pods are created or deleted the status waits for the next look, which comes with the answers.
//!
//! Guarantees: a pod is counted as soon as the API server has answered its creation; pods that a node reports failed, or
//! that are being deleted, are not counted.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/>.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use mainstay_informer::ObjectKey;

use crate::action::{Action, Attempt, Now, Object, Plan, Target};
use crate::caches::Caches;
use crate::claim::{candidates, claim, concerned};
use crate::driver::{Controller, Wiring};
use crate::object::{
    controller_of, controller_reference, created, is_active, is_ready, is_terminating, name, namespace, node_of, phase,
    pod_condition, selector, time, uid, until_available,
};

/// Pods created or deleted in one go; the next look continues.
const BURST_MAX: usize = 500;
/// How dear a pod is when another has to go: `controller.kubernetes.io/pod-deletion-cost`.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What one look needs to see.
pub(crate) struct View {
    pub(crate) set: Arc<ReplicaSet>,
    /// Pods of its namespace that it owns or could own.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// For each node, how many active pods of the same owner run there; a crowded node loses first.
    pub(crate) crowd: HashMap<String, usize>,
}

/// Decides about one ReplicaSet.
pub(crate) fn reconcile(view: &View, attempt: &Attempt, now: Timestamp) -> Plan {
    let set = view.set.as_ref();
    let spec = &set.spec;
    let mut plan = Plan::default();
    let claimed = claim(set, &selector(Some(&spec.selector)), &view.pods, &mut plan);
    let ending = claimed.iter().filter(|pod| is_terminating(&***pod)).count();
    let mut owned: Vec<_> = claimed.into_iter().filter(|pod| is_active(pod)).collect();
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    let min_ready_seconds = spec.min_ready_seconds.unwrap_or(0);
    plan.why = format!("{} of {wanted} pods", owned.len());
    let failure = attempt.error.as_deref().filter(|_| owned.len() != wanted);
    let status = status(set, &owned, ending, failure, now);
    let changed = set.status.as_ref() != Some(&status);
    if is_terminating(set) {
        "it is being deleted".clone_into(&mut plan.why);
    } else if owned.len() < wanted {
        // A refusal must show in the status before the next attempt.
        if failure.is_some() && changed {
            plan.push(with_status(set, status));
        }
        let missing = (wanted - owned.len()).min(BURST_MAX);
        plan.actions.extend((0..missing).filter_map(|_| Some(Action::Create(Object::of(&pod_of(set)?)))));
        return plan;
    } else if owned.len() > wanted {
        let surplus = (owned.len() - wanted).min(BURST_MAX);
        rank(&mut owned, &view.crowd);
        plan.actions.extend(owned[..surplus].iter().map(|pod| Action::delete(Target::of(&**pod))));
        return plan;
    }
    if changed {
        plan.push(with_status(set, status));
    }
    let soonest = owned.iter().filter_map(|pod| until_available(pod, min_ready_seconds, now)).filter(|d| !d.is_zero());
    if let Some(delay) = soonest.min() {
        plan.look_again(delay.max(Duration::from_millis(10)));
    }
    plan
}

/// A new pod of the set's template; the API server completes its name.
fn pod_of(set: &ReplicaSet) -> Option<Pod> {
    let template = set.spec.template.as_ref()?;
    let mut metadata = template.metadata.clone().unwrap_or_default();
    metadata.name = None;
    metadata.namespace = Some(namespace(set).to_owned());
    metadata.generate_name = Some(format!("{}-", name(set)));
    metadata.owner_references = Some(vec![controller_reference(set)]);
    Some(Pod { metadata, spec: template.spec.clone(), status: None })
}

/// Orders pods so that those that cost least to lose come first, as Kubernetes ranks them: not bound, not running, not
/// ready, cheap by annotation, on crowded nodes, ready for a short time, often
/// restarted, young.
pub(crate) fn rank(pods: &mut [Arc<Pod>], crowd: &HashMap<String, usize>) {
    pods.sort_by_cached_key(|pod| {
        let cost = pod.metadata.annotations.as_ref().and_then(|all| all.get(DELETION_COST)?.parse::<i32>().ok());
        let running = match phase(pod) {
            "Running" => 2,
            "Pending" => 0,
            _ => 1,
        };
        let since = pod_condition(pod, "Ready").and_then(|ready| ready.last_transition_time.as_ref());
        let since = since.map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        let restarts = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        let restarts = restarts.map(|container| container.restart_count).max().unwrap_or(0);
        (
            (!node_of(pod).is_empty(), running, is_ready(pod), cost.unwrap_or(0)),
            Reverse(crowd.get(node_of(pod)).copied().unwrap_or(0)),
            (Reverse(since), Reverse(restarts), Reverse(created(&**pod)), name(&**pod).to_owned()),
        )
    });
}

fn status(
    set: &ReplicaSet,
    owned: &[Arc<Pod>],
    ending: usize,
    failure: Option<&str>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let spec = set.spec.clone();
    let labels = spec.template.and_then(|template| template.metadata).and_then(|meta| meta.labels).unwrap_or_default();
    let count = |keep: &dyn Fn(&Pod) -> bool| i32::try_from(owned.iter().filter(|pod| keep(pod)).count()).unwrap_or(0);
    let carries = |pod: &Pod| {
        labels.iter().all(|(key, value)| pod.metadata.labels.as_ref().is_some_and(|own| own.get(key) == Some(value)))
    };
    let min_ready_seconds = spec.min_ready_seconds.unwrap_or(0);
    let available = |pod: &Pod| until_available(pod, min_ready_seconds, now).is_some_and(|left| left.is_zero());
    ReplicaSetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: positive(count(&carries)),
        ready_replicas: positive(count(&is_ready)),
        available_replicas: positive(count(&available)),
        terminating_replicas: positive(i32::try_from(ending).unwrap_or(i32::MAX)),
        observed_generation: set.metadata.generation,
        conditions: conditions(old.conditions, failure, now),
    }
}

/// Kubernetes leaves zero out.
fn positive(count: i32) -> Option<i32> {
    (count > 0).then_some(count)
}

/// `ReplicaFailure` is there while the API server refuses what the set needs.
fn conditions(
    old: Option<Vec<ReplicaSetCondition>>,
    failure: Option<&str>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut all = old.unwrap_or_default();
    let is_failure = |condition: &ReplicaSetCondition| condition.type_.as_deref() == Some("ReplicaFailure");
    let since = all.iter().find(|c| is_failure(c)).and_then(|condition| condition.last_transition_time.clone());
    all.retain(|condition| !is_failure(condition));
    if let Some(message) = failure {
        all.push(ReplicaSetCondition {
            type_: Some("ReplicaFailure".to_owned()),
            status: Some("True".to_owned()),
            reason: Some("FailedCreate".to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: since.or_else(|| Some(time(now))),
        });
    }
    (!all.is_empty()).then_some(all)
}

fn with_status(set: &ReplicaSet, status: ReplicaSetStatus) -> Action {
    Action::ReplaceStatus(Object::of(&ReplicaSet { status: Some(status), ..set.clone() }))
}

/// The controller of ReplicaSets.
pub(crate) struct ReplicaSets;

impl Controller for ReplicaSets {
    type Key = ObjectKey;
    const NAME: &'static str = "replicaset-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.replica_sets, |change, _| vec![change.key.clone()]);
        let chosen = |set: &ReplicaSet| selector(Some(&set.spec.selector));
        wiring.on(&caches.pods, move |change, caches| concerned(change, &caches.replica_sets, chosen));
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, attempt: &Attempt, now: Now) -> Plan {
        let Some(set) = caches.replica_sets.get_key(key) else { return Plan::nothing("it is gone") };
        let pods = candidates(&caches.pods, &*set, &selector(Some(&set.spec.selector)));
        // Only who has too many asks who is crowded.
        let active = pods.iter().filter(|pod| is_active(pod)).count();
        let has_surplus = active > usize::try_from(set.spec.replicas.unwrap_or(1)).unwrap_or(0);
        let crowd = if has_surplus { crowd(caches, &set, &pods) } else { HashMap::new() };
        reconcile(&View { set, pods, crowd }, attempt, now.wall)
    }
}

/// How crowded each node is with active pods of the sets that share this set's owner.
fn crowd(caches: &Caches, set: &ReplicaSet, own: &[Arc<Pod>]) -> HashMap<String, usize> {
    let mut crowd = HashMap::new();
    let mut count = |pod: &Pod| *crowd.entry(node_of(pod).to_owned()).or_insert(0) += 1;
    match controller_of(set) {
        Some(owner) => {
            let siblings = caches.replica_sets.controlled_by(namespace(set), &owner.uid);
            let pods = siblings.iter().flat_map(|sibling| caches.pods.controlled_by(namespace(set), uid(&**sibling)));
            pods.filter(|pod| is_active(pod)).for_each(|pod| count(&pod));
        }
        None => own.iter().filter(|pod| is_active(pod)).for_each(|pod| count(pod)),
    }
    crowd
}
