//! Revisions: their numbers, what `kubectl rollout history` shows of them, and how many are kept.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use serde_json::json;

use super::rollout;
use crate::action::{Action, Plan, Target};
use crate::object::{Labels, annotation, created, is_terminating, uid};

/// The revision's number, on Deployments and ReplicaSets.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
/// Numbers the same template had before, on ReplicaSets.
pub(super) const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Old ReplicaSets kept when the Deployment does not say.
const KEPT_DEFAULT: i32 = 10;
/// Deployment annotations that ReplicaSets do not get.
const NOT_INHERITED: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
    REVISION,
    HISTORY,
    rollout::DESIRED,
    rollout::MAX,
];

/// The revision of a ReplicaSet; 0 while it has none.
pub(super) fn of(set: &ReplicaSet) -> i64 {
    annotation(set, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The revision of a template that follows these.
pub(super) fn next(old: &[Arc<ReplicaSet>]) -> i64 {
    old.iter().map(|set| of(set)).max().unwrap_or(0) + 1
}

/// The annotations of the Deployment that its ReplicaSet carries too, such as `kubernetes.io/change-cause`.
pub(super) fn inherited(deployment: &Deployment) -> Labels {
    let all = deployment.metadata.annotations.clone().unwrap_or_default();
    all.into_iter().filter(|(key, _)| !NOT_INHERITED.contains(&key.as_str())).collect()
}

/// Sees that the present template has the highest number and that the Deployment says so. A template that comes back
/// (a rollback) gets a new number; its earlier ones become history.
pub(super) fn number(deployment: &Deployment, new: &ReplicaSet, old: &[Arc<ReplicaSet>], plan: &mut Plan) {
    let (before, wanted) = (of(new), next(old));
    let number = before.max(wanted);
    let own = new.metadata.annotations.clone().unwrap_or_default();
    let mut annotations: Labels =
        inherited(deployment).into_iter().filter(|(key, value)| own.get(key) != Some(value)).collect();
    if before < wanted {
        annotations.insert(REVISION.to_owned(), wanted.to_string());
        if before > 0 {
            let earlier = own.get(HISTORY).filter(|text| !text.is_empty());
            let history = earlier.map_or_else(|| before.to_string(), |earlier| format!("{earlier},{before}"));
            annotations.insert(HISTORY.to_owned(), history);
        }
    }
    let mut patch = json!({"metadata": {"uid": uid(new)}});
    let late = new.spec.min_ready_seconds.unwrap_or(0) != deployment.spec.min_ready_seconds.unwrap_or(0);
    if late {
        patch["spec"] = json!({"minReadySeconds": deployment.spec.min_ready_seconds.unwrap_or(0)});
    }
    if !annotations.is_empty() {
        patch["metadata"]["annotations"] = json!(annotations);
    }
    if late || !annotations.is_empty() {
        plan.push(Action::Patch(Target::of(new), patch));
    }
    if annotation(deployment, REVISION) != Some(number.to_string().as_str()) {
        let patch = json!({"metadata": {"uid": uid(deployment), "annotations": {REVISION: number.to_string()}}});
        plan.push(Action::Patch(Target::of(deployment), patch));
    }
}

/// The old, empty ReplicaSets beyond `revisionHistoryLimit`, lowest revision first.
pub(super) fn surplus<'a>(
    deployment: &Deployment,
    old: &'a [Arc<ReplicaSet>],
) -> impl Iterator<Item = &'a Arc<ReplicaSet>> {
    let kept = deployment.spec.revision_history_limit.unwrap_or(KEPT_DEFAULT);
    let kept = usize::try_from(kept).unwrap_or(0);
    let mut empty: Vec<_> = old
        .iter()
        .filter(|set| {
            let status = set.status.clone().unwrap_or_default();
            let seen = status.observed_generation.unwrap_or(0) >= set.metadata.generation.unwrap_or(0);
            rollout::size(set) == 0 && status.replicas == 0 && seen && !is_terminating(&***set)
        })
        .collect();
    empty.sort_by_key(|set| (of(set), created(&***set)));
    let count = empty.len().saturating_sub(kept);
    empty.into_iter().take(count)
}
