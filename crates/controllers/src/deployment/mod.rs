//! Deployment: moves pods from one template to the next without letting the service down.
//!
//! Flow: claim the ReplicaSets → find the one of the present template, or create it → number the revisions → decide every
//! ReplicaSet's size ([`rollout`]) → delete history → status ([`status`]).
//!
//! Guarantees: never more pods than `replicas + maxSurge` are asked for, never fewer than `replicas - maxUnavailable`
//! available ones are left by its own doing. All state is in the objects: a controller that restarts in the middle of a
//! rollout goes on with it.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/deployment/>.

mod revision;
mod rollout;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_informer::ObjectKey;
use mainstay_model::meta::pod_template_hash;
use serde_json::json;

use crate::action::{Action, Attempt, Note, Now, Object, Plan, Target};
use crate::caches::Caches;
use crate::claim::{candidates, claim, concerned};
use crate::driver::{Controller, Wiring};
use crate::object::{
    controller_of, controller_reference, created, is_finished, is_terminating, name, namespace, reference, selector,
    uid,
};

pub(crate) use rollout::number;

/// The label that keeps the pods of a Deployment's ReplicaSets apart.
const HASH_LABEL: &str = "pod-template-hash";

/// What one look needs to see.
pub(crate) struct View {
    pub(crate) deployment: Arc<Deployment>,
    /// ReplicaSets of its namespace that it owns or could own.
    pub(crate) sets: Vec<Arc<ReplicaSet>>,
    /// Whoever has the name that the ReplicaSet of the present template would get.
    pub(crate) namesake: Option<Arc<ReplicaSet>>,
    /// Pods of its ReplicaSets; only looked at when the strategy is `Recreate`.
    pub(crate) pods: Vec<Arc<Pod>>,
}

/// The ReplicaSet of the present template, if there is one, and the others, oldest first.
struct Sets {
    new: Option<Arc<ReplicaSet>>,
    old: Vec<Arc<ReplicaSet>>,
}

impl Sets {
    fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(self.new.iter())
    }
}

/// Decides about one Deployment.
pub(crate) fn reconcile(view: &View, now: Timestamp) -> Plan {
    let deployment = view.deployment.as_ref();
    let mut plan = Plan::default();
    let sets = arrange(view, &mut plan);
    if is_terminating(deployment) {
        "it is being deleted".clone_into(&mut plan.why);
        status::report(deployment, &sets, now, &mut plan);
        return plan;
    }
    let paused = deployment.spec.paused.unwrap_or(false);
    if sets.new.is_none() && !paused && !waits_for_old_pods(view, &sets) {
        create(view, &sets, &mut plan);
        return plan;
    }
    if let Some(new) = &sets.new {
        revision::number(deployment, new, &sets.old, &mut plan);
    }
    let sizes = rollout::sizes(deployment, &sets, !paused && !waits_for_old_pods(view, &sets));
    for (set, size) in &sizes {
        resize(deployment, set, *size, &mut plan);
    }
    if !paused && status::is_complete(deployment, deployment.status.as_ref()) {
        plan.actions.extend(revision::surplus(deployment, &sets.old).map(|set| Action::delete(Target::of(&**set))));
    }
    // A patch of the Deployment itself gives it a new revision: its status waits for the next look.
    if plan
        .actions
        .iter()
        .any(|action| matches!(action, Action::Patch(target, _) if target.resource.kind == "Deployment"))
    {
        "numbering revisions".clone_into(&mut plan.why);
        return plan;
    }
    status::report(deployment, &sets, now, &mut plan);
    plan
}

/// Adopts the ReplicaSets that match and releases those that no longer do; sorts the rest.
fn arrange(view: &View, plan: &mut Plan) -> Sets {
    let deployment = view.deployment.as_ref();
    let mut sets = claim(deployment, &selector(Some(&deployment.spec.selector)), &view.sets, plan);
    sets.sort_by_cached_key(|set| (created(&**set), name(&**set).to_owned()));
    let new = sets.iter().position(|set| {
        !is_terminating(&**set) && set.spec.template.as_ref().is_some_and(|t| same(t, &deployment.spec.template))
    });
    let new = new.map(|at| sets.remove(at));
    Sets { new, old: sets }
}

/// Whether two templates differ in nothing but the hash label.
fn same(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let without_hash = |template: &PodTemplateSpec| {
        let mut metadata = template.metadata.clone().unwrap_or_default();
        if let Some(labels) = &mut metadata.labels {
            labels.remove(HASH_LABEL);
        }
        metadata.labels = metadata.labels.filter(|labels| !labels.is_empty());
        metadata
    };
    a.spec == b.spec && without_hash(a) == without_hash(b)
}

/// `Recreate`: no new pod before the last old one has ended.
fn waits_for_old_pods(view: &View, sets: &Sets) -> bool {
    if !is_recreate(&view.deployment) {
        return false;
    }
    let old: Vec<&str> = sets.old.iter().map(|set| uid(&**set)).collect();
    sets.old.iter().any(|set| rollout::size(set) > 0)
        || view
            .pods
            .iter()
            .any(|pod| !is_finished(pod) && controller_of(&**pod).is_some_and(|o| old.contains(&o.uid.as_str())))
}

fn is_recreate(deployment: &Deployment) -> bool {
    deployment.spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

fn hash(deployment: &Deployment) -> String {
    let count = deployment.status.as_ref().and_then(|status| status.collision_count);
    let template = serde_json::to_value(&deployment.spec.template).unwrap_or_default();
    pod_template_hash(&template, count.and_then(|count| u32::try_from(count).ok()))
}

fn set_name(deployment: &Deployment, hash: &str) -> String {
    format!("{}-{hash}", name(deployment))
}

/// Creates the ReplicaSet of the present template, at the size the rollout starts with.
fn create(view: &View, sets: &Sets, plan: &mut Plan) {
    let deployment = view.deployment.as_ref();
    if view.namesake.is_some() {
        // Another template has this hash: the count makes the next name differ.
        let mut status = deployment.status.clone().unwrap_or_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        "another ReplicaSet has the name".clone_into(&mut plan.why);
        plan.push(with_status(deployment, status));
        return;
    }
    let hash = hash(deployment);
    let labelled = |labels: Option<crate::object::Labels>| {
        let mut labels = labels.unwrap_or_default();
        labels.insert(HASH_LABEL.to_owned(), hash.clone());
        labels
    };
    let mut template = deployment.spec.template.clone();
    let mut template_meta = template.metadata.take().unwrap_or_default();
    let labels = labelled(template_meta.labels.take());
    template_meta.labels = Some(labels.clone());
    template.metadata = Some(template_meta);
    let mut selector = deployment.spec.selector.clone();
    selector.match_labels = Some(labelled(selector.match_labels.take()));
    let size = rollout::first_size(deployment, &sets.old);
    let mut annotations = revision::inherited(deployment);
    annotations.insert(revision::REVISION.to_owned(), revision::next(&sets.old).to_string());
    annotations.extend(rollout::size_annotations(deployment));
    let set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(set_name(deployment, &hash)),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: ReplicaSetSpec {
            replicas: Some(size),
            min_ready_seconds: deployment.spec.min_ready_seconds,
            selector,
            template: Some(template),
        },
        status: None,
    };
    plan.why = format!("a new template starts with {size} pods");
    plan.push(Action::Create(Object::of(&set)));
    if size > 0 {
        plan.push(Action::Note(scaled(deployment, &set, 0, size)));
    }
}

/// Gives a ReplicaSet its size and the notes by which a later look can tell that the Deployment was scaled. The revision
/// guards it: a size that was computed from an old view of the set must not undo what another look, or another process, did.
fn resize(deployment: &Deployment, set: &ReplicaSet, size: i32, plan: &mut Plan) {
    let before = rollout::size(set);
    let own = set.metadata.annotations.clone().unwrap_or_default();
    let notes: crate::object::Labels =
        rollout::size_annotations(deployment).into_iter().filter(|(key, value)| own.get(key) != Some(value)).collect();
    // Those that are empty and stay so are history; they need no notes.
    if size == before && (notes.is_empty() || size == 0) {
        return;
    }
    let mut patch = json!({"metadata": {"uid": uid(set), "resourceVersion": set.metadata.resource_version}});
    if !notes.is_empty() {
        patch["metadata"]["annotations"] = json!(notes);
    }
    if size != before {
        patch["spec"] = json!({"replicas": size});
    }
    plan.push(Action::Patch(Target::of(set), patch));
    if size != before {
        plan.push(Action::Note(scaled(deployment, set, before, size)));
    }
}

fn scaled(deployment: &Deployment, set: &ReplicaSet, before: i32, size: i32) -> Note {
    let way = if size > before { "up" } else { "down" };
    let message = format!("Scaled {way} replica set {} from {before} to {size}", name(set));
    Note { regarding: reference(deployment), warning: false, reason: "ScalingReplicaSet", message }
}

fn with_status(deployment: &Deployment, status: DeploymentStatus) -> Action {
    Action::ReplaceStatus(Object::of(&Deployment { status: Some(status), ..deployment.clone() }))
}

/// The controller of Deployments.
pub(crate) struct Deployments;

impl Controller for Deployments {
    type Key = ObjectKey;
    const NAME: &'static str = "deployment-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.deployments, |change, _| vec![change.key.clone()]);
        let chosen = |deployment: &Deployment| selector(Some(&deployment.spec.selector));
        wiring.on(&caches.replica_sets, move |change, caches| concerned(change, &caches.deployments, chosen));
        wiring.on(&caches.pods, |change, caches| {
            let ended = change.after.as_ref().is_none_or(|pod| is_finished(pod));
            change.before.as_ref().filter(|_| ended).map_or_else(Vec::new, |pod| waiting(pod, caches))
        });
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, now: Now) -> Plan {
        let Some(deployment) = caches.deployments.get_key(key) else { return Plan::nothing("it is gone") };
        let sets = candidates(&caches.replica_sets, &*deployment, &selector(Some(&deployment.spec.selector)));
        let namesake = caches.replica_sets.get(&key.namespace, &set_name(&deployment, &hash(&deployment)));
        let pods = if is_recreate(&deployment) {
            sets.iter().flat_map(|set| caches.pods.controlled_by(&key.namespace, uid(&**set))).collect()
        } else {
            Vec::new()
        };
        reconcile(&View { deployment, sets, namesake, pods }, now.wall)
    }
}

/// The `Recreate` Deployment that may have waited for this pod's end.
fn waiting(pod: &Pod, caches: &Caches) -> Vec<ObjectKey> {
    let owner = |namespace: &str| {
        let set = caches.replica_sets.get(namespace, &controller_of(pod)?.name)?;
        let deployment = caches.deployments.get(namespace, &controller_of(&*set)?.name)?;
        is_recreate(&deployment).then(|| ObjectKey::of(&*deployment))
    };
    owner(namespace(pod)).into_iter().collect()
}
