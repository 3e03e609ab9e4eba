//! StatefulSet: pods with a name, a place in line and volumes of their own.
//!
//! Flow: claim pods and revisions → find the present template's revision → put every pod in its slot → *volumes*: who owns
//! the claims → *fill*: create, replace or wait, slot by slot → *shrink*: delete from the highest ordinal down → *update*:
//! delete pods of an older template, again from the highest down → status.
//!
//! Guarantees: never two pods of one name are asked for, since the API server holds one object per name and it goes only
//! when the node, or the fence, has said that nothing of it runs; with `OrderedReady` at most one pod is on its way up or
//! down; a pod's claims are there before it is.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/>.

mod identity;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use mainstay_informer::ObjectKey;

use crate::action::{Action, Attempt, Note, Now, Object, Plan, Target};
use crate::caches::Caches;
use crate::claim::{candidates, claim, concerned};
use crate::driver::{Controller, Wiring};
use crate::object::{
    controller_of, is_finished, is_ready, is_terminating, name, namespace, reference, selector, until_available,
};
use crate::revisions::{HASH_LABEL, History, Present};

/// What one look needs to see.
pub(crate) struct View {
    pub(crate) set: Arc<StatefulSet>,
    /// Pods of its namespace that it owns or could own.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// ControllerRevisions that it owns or could own.
    pub(crate) revisions: Vec<Arc<ControllerRevision>>,
    /// Claims of its namespace whose names are those of its templates and ordinals.
    pub(crate) claims: Vec<Arc<PersistentVolumeClaim>>,
}

/// The set with its pods put in order, and the two revisions in play.
struct Ranks {
    /// By ordinal, within the wanted range; `None` where there is no pod.
    slots: BTreeMap<i32, Option<Arc<Pod>>>,
    /// Pods outside the wanted range, highest ordinal first.
    condemned: Vec<Arc<Pod>>,
    /// The revision all pods had when the last update was complete.
    current: Arc<ControllerRevision>,
    /// The present template's.
    update: Arc<ControllerRevision>,
}

/// Decides about one StatefulSet.
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
    let update = match history.present(set, &set.spec.template, collisions, &mut plan) {
        Present::Found(found) => found,
        Present::Created => return plan,
        Present::Collision => {
            plan.push(status::with_collision(set));
            return plan;
        }
    };
    let current = set.status.as_ref().and_then(|status| history.get(status.current_revision.as_deref()?)).cloned();
    let ranks = rank(set, pods, current.unwrap_or_else(|| update.clone()), update);
    identity::own_claims(set, &ranks, &view.claims, &mut plan);
    let report = status::of(set, &ranks, now);
    step(view, &ranks, now, &mut plan);
    if set.status.as_ref() != Some(&report) {
        plan.push(status::write(set, report));
    }
    let used: Vec<&str> = ranks.pods().filter_map(|pod| revision_of(pod)).collect();
    let kept = [name(&*ranks.current), name(&*ranks.update)];
    let is_in_use = |revision: &ControllerRevision| used.contains(&name(revision)) || kept.contains(&name(revision));
    history.trim(set.spec.revision_history_limit, is_in_use, &mut plan);
    plan.actions.sort_by_key(order);
    plan
}

/// A creation may be refused: what is known must show before that. Claims come before the pods that mount them, and what
/// is alike is together, so that it goes out at once.
fn order(action: &Action) -> u8 {
    match action {
        Action::Create(object) if object.target.resource.kind == "PersistentVolumeClaim" => 1,
        Action::Create(_) => 2,
        Action::Delete { .. } => 3,
        Action::Note(_) => 4,
        _ => 0,
    }
}

impl Ranks {
    fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.slots.values().flatten().chain(&self.condemned)
    }
}

fn rank(
    set: &StatefulSet,
    pods: Vec<Arc<Pod>>,
    current: Arc<ControllerRevision>,
    update: Arc<ControllerRevision>,
) -> Ranks {
    let (start, count) = (first_ordinal(set), set.spec.replicas.unwrap_or(1).max(0));
    let mut slots: BTreeMap<i32, Option<Arc<Pod>>> =
        (start..start.saturating_add(count)).map(|ordinal| (ordinal, None)).collect();
    let mut condemned = Vec::new();
    for pod in pods {
        let Some(ordinal) = identity::ordinal(set, name(&*pod)) else { continue };
        match slots.get_mut(&ordinal) {
            Some(slot) => *slot = Some(pod),
            None => condemned.push((ordinal, pod)),
        }
    }
    condemned.sort_by_key(|(ordinal, _)| -ordinal);
    Ranks { slots, condemned: condemned.into_iter().map(|(_, pod)| pod).collect(), current, update }
}

/// One step towards what is wanted; it ends where the next has to wait for this one.
fn step(view: &View, ranks: &Ranks, now: Timestamp, plan: &mut Plan) {
    let set = view.set.as_ref();
    let ordered = set.spec.pod_management_policy.as_deref() != Some("Parallel");
    for (ordinal, slot) in &ranks.slots {
        let settled = fill(view, ranks, *ordinal, slot.as_deref(), now, plan);
        if !settled && ordered {
            return;
        }
    }
    // With `OrderedReady` an unhealthy pod holds up the end of the others, unless it is itself the next to end.
    let mut upwards = ranks.slots.values().flatten().chain(ranks.condemned.iter().rev());
    let first_unhealthy = upwards.find(|pod| !is_healthy(pod)).map(|pod| name(&**pod).to_owned());
    for pod in &ranks.condemned {
        if is_terminating(&**pod) {
            plan.why = format!("{} is ending", name(&**pod));
            if ordered {
                return;
            }
            continue;
        }
        let is_next = first_unhealthy.as_deref().is_none_or(|unhealthy| unhealthy == name(&**pod));
        if ordered && !is_healthy(pod) && !is_next {
            plan.why = format!("{} is not ready and not the first that is not", name(&**pod));
            return;
        }
        remove(set, pod, plan);
        if ordered {
            return;
        }
    }
    update(set, ranks, now, plan);
}

/// Brings one slot up. Says whether it is settled, so that the next in line may go on.
fn fill(view: &View, ranks: &Ranks, ordinal: i32, pod: Option<&Pod>, now: Timestamp, plan: &mut Plan) -> bool {
    let set = view.set.as_ref();
    let Some(pod) = pod else {
        create(view, ranks, ordinal, plan);
        return false;
    };
    if is_terminating(pod) {
        plan.why = format!("{} is ending", name(pod));
        return false;
    }
    if is_finished(pod) {
        plan.push(Action::Note(Note {
            regarding: reference(set),
            warning: true,
            reason: "RecreatingFailedPod",
            message: format!("StatefulSet {}/{} is recreating failed Pod {}", namespace(set), name(set), name(pod)),
        }));
        plan.push(Action::delete(Target::of(pod)));
        return false;
    }
    // A claim may have been deleted while its pod was not yet placed.
    if crate::object::phase(pod) == "Pending" {
        identity::missing_claims(set, ordinal, &view.claims, plan);
    }
    if let Some(patch) = identity::correction(set, ordinal, pod) {
        plan.push(Action::Patch(Target::of(pod), patch));
    }
    if !is_healthy(pod) {
        plan.why = format!("{} is not ready", name(pod));
        return false;
    }
    match until_available(pod, set.spec.min_ready_seconds.unwrap_or(0), now) {
        Some(left) if left.is_zero() => true,
        Some(left) => {
            plan.why = format!("{} has not been ready for minReadySeconds", name(pod));
            plan.look_again(left.max(Duration::from_millis(10)));
            false
        }
        None => false,
    }
}

/// Claims first, then the pod that mounts them.
fn create(view: &View, ranks: &Ranks, ordinal: i32, plan: &mut Plan) {
    let set = view.set.as_ref();
    let revision = if takes_current(set, ranks, ordinal) { &ranks.current } else { &ranks.update };
    let Some(pod) = identity::pod(set, ordinal, revision) else {
        plan.why = format!("revision {} cannot be read", name(&**revision));
        return;
    };
    // A claim on its way out must be gone first; its pod would hold it for ever.
    if let Some(leaving) = identity::leaving_claim(set, ordinal, &view.claims) {
        plan.why = format!("claim {leaving} is being deleted");
        return;
    }
    identity::missing_claims(set, ordinal, &view.claims, plan);
    let pod_name = name(&pod).to_owned();
    plan.why = format!("{pod_name} is created");
    plan.push(Action::Create(Object::of(&pod)));
    let message = format!("create Pod {pod_name} in StatefulSet {} successful", name(set));
    plan.push(Action::Note(Note { regarding: reference(set), warning: false, reason: "SuccessfulCreate", message }));
}

/// Whether a new pod of this ordinal gets the template before the present one.
fn takes_current(set: &StatefulSet, ranks: &Ranks, ordinal: i32) -> bool {
    let place = ordinal - first_ordinal(set);
    let strategy = set.spec.update_strategy.as_ref();
    match strategy.and_then(|strategy| strategy.rolling_update.as_ref()) {
        Some(rolling) => place < rolling.partition.unwrap_or(0),
        // Without a partition those that have it keep it until they are updated.
        None => {
            name(&*ranks.current) != name(&*ranks.update)
                && place < set.status.as_ref().and_then(|status| status.current_replicas).unwrap_or(0)
        }
    }
}

/// Deletes pods of an older template, highest ordinal first, while no more than `maxUnavailable` are down.
fn update(set: &StatefulSet, ranks: &Ranks, now: Timestamp, plan: &mut Plan) {
    let strategy = set.spec.update_strategy.as_ref();
    if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
        return;
    }
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let lowest = first_ordinal(set).saturating_add(rolling.and_then(|rolling| rolling.partition).unwrap_or(0));
    let count = i32::try_from(ranks.slots.len()).unwrap_or(i32::MAX);
    let limit = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
    let limit = limit.map_or(1, |limit| crate::deployment::number(Some(limit), count, true).max(1));
    let serves = |pod: &Pod| {
        let left = until_available(pod, set.spec.min_ready_seconds.unwrap_or(0), now);
        is_healthy(pod) && left.is_some_and(|left| left.is_zero())
    };
    let down = ranks.slots.values().filter(|slot| !slot.as_ref().is_some_and(|pod| serves(pod))).count();
    let mut spare = limit.saturating_sub(i32::try_from(down).unwrap_or(i32::MAX));
    for (_, slot) in ranks.slots.range(lowest..).rev() {
        let Some(pod) = slot.as_ref().filter(|pod| !is_terminating(&***pod)) else { continue };
        if revision_of(pod) == Some(name(&*ranks.update)) {
            continue;
        }
        // One that does not serve anyway costs nothing.
        let cost = i32::from(serves(pod));
        if cost > spare {
            plan.why = format!("{} waits for those before it", name(&**pod));
            return;
        }
        spare -= cost;
        remove(set, pod, plan);
    }
}

fn remove(set: &StatefulSet, pod: &Pod, plan: &mut Plan) {
    plan.why = format!("{} is deleted", name(pod));
    plan.push(Action::delete(Target::of(pod)));
    let message = format!("delete Pod {} in StatefulSet {} successful", name(pod), name(set));
    plan.push(Action::Note(Note { regarding: reference(set), warning: false, reason: "SuccessfulDelete", message }));
}

fn first_ordinal(set: &StatefulSet) -> i32 {
    set.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0)
}

/// Running, ready and staying.
fn is_healthy(pod: &Pod) -> bool {
    is_ready(pod) && crate::object::phase(pod) == "Running" && !is_terminating(pod)
}

/// The name of the revision a pod was made from.
fn revision_of(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(HASH_LABEL).map(String::as_str)
}

/// The controller of StatefulSets.
pub(crate) struct StatefulSets;

impl Controller for StatefulSets {
    type Key = ObjectKey;
    const NAME: &'static str = "statefulset-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        let chosen = |set: &StatefulSet| selector(Some(&set.spec.selector));
        wiring.on(&caches.stateful_sets, |change, _| vec![change.key.clone()]);
        wiring.on(&caches.pods, move |change, caches| concerned(change, &caches.stateful_sets, chosen));
        wiring.on(&caches.revisions, move |change, caches| concerned(change, &caches.stateful_sets, chosen));
        wiring.on(&caches.claims, |change, caches| {
            let own = |set: &StatefulSet| {
                namespace(set) == change.key.namespace && identity::is_claim_of(set, &change.key.name)
            };
            caches.stateful_sets.filter(own).iter().map(|set| ObjectKey::of(&**set)).collect()
        });
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, now: Now) -> Plan {
        let Some(set) = caches.stateful_sets.get_key(key) else { return Plan::nothing("it is gone") };
        let chosen = selector(Some(&set.spec.selector));
        // A pod of ours under another controller's name cannot be; one without an ordinal is not ours to adopt.
        let fits = |pod: &Arc<Pod>| controller_of(&**pod).is_some() || identity::ordinal(&set, name(&**pod)).is_some();
        let pods = candidates(&caches.pods, &*set, &chosen).into_iter().filter(fits).collect();
        let revisions = candidates(&caches.revisions, &*set, &chosen);
        let own = |claim: &PersistentVolumeClaim| identity::is_claim_of(&set, name(claim));
        let claims = caches.claims.in_namespace(&key.namespace, own);
        reconcile(&View { set, pods, revisions, claims }, now.wall)
    }
}
