//! What a StatefulSet's status says: the counts and revisions that `kubectl rollout status` reads.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::{Ranks, is_healthy, revision_of};
use crate::action::{Action, Object};
use crate::object::{is_finished, is_terminating, name, until_available};

/// The status as the pods are now.
pub(super) fn of(set: &StatefulSet, ranks: &Ranks, now: Timestamp) -> StatefulSetStatus {
    let (mut current, update) = (name(&*ranks.current), name(&*ranks.update));
    let count = |keep: &dyn Fn(&Pod) -> bool| {
        let counted = ranks.pods().filter(|pod| !is_finished(pod) && keep(pod)).count();
        i32::try_from(counted).unwrap_or(i32::MAX)
    };
    let has = |pod: &Pod, revision: &str| !is_terminating(pod) && revision_of(pod) == Some(revision);
    let min_ready_seconds = set.spec.min_ready_seconds.unwrap_or(0);
    let is_available =
        |pod: &Pod| is_healthy(pod) && until_available(pod, min_ready_seconds, now).is_some_and(|left| left.is_zero());
    let (replicas, ready) = (count(&|_| true), count(&|pod| is_healthy(pod)));
    let updated = count(&|pod| has(pod, update));
    let on_delete = set.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("OnDelete");
    // The update is complete when every pod has the present template and is ready.
    let is_complete = updated == replicas && ready == replicas && replicas == set.spec.replicas.unwrap_or(1);
    if is_complete && !on_delete {
        current = update;
    }
    StatefulSetStatus {
        replicas,
        ready_replicas: Some(ready).filter(|count| *count > 0),
        available_replicas: Some(count(&is_available)),
        current_replicas: Some(count(&|pod| has(pod, current))).filter(|count| *count > 0),
        updated_replicas: Some(updated).filter(|count| *count > 0),
        current_revision: Some(current.to_owned()),
        update_revision: Some(update.to_owned()),
        observed_generation: set.metadata.generation,
        collision_count: Some(set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0)),
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
    }
}

/// Writes it.
pub(super) fn write(set: &StatefulSet, status: StatefulSetStatus) -> Action {
    Action::ReplaceStatus(Object::of(&StatefulSet { status: Some(status), ..set.clone() }))
}

/// One more template whose hash was taken.
pub(super) fn with_collision(set: &StatefulSet) -> Action {
    let mut status = set.status.clone().unwrap_or_default();
    status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
    write(set, status)
}
