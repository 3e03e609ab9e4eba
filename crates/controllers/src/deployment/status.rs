//! What a Deployment's status says: the counts, and the conditions `kubectl rollout status` and `kubectl wait` read.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};

use super::{Sets, revision, rollout, with_status};
use crate::action::Plan;
use crate::object::{annotation, name, time};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const FAILURE: &str = "ReplicaFailure";
const COMPLETE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";
/// A deadline this long means none.
const NO_DEADLINE: i32 = i32::MAX;
const DEADLINE_DEFAULT: i32 = 600;

/// Writes the status if it says something new, and asks for a look when the progress deadline runs out.
pub(super) fn report(deployment: &Deployment, sets: &Sets, now: Timestamp, plan: &mut Plan) {
    let old = deployment.status.clone().unwrap_or_default();
    let mut new = counts(deployment, sets);
    new.conditions = Some(conditions(deployment, sets, &old, &new, now));
    if plan.why.is_empty() {
        plan.why = format!(
            "{} of {} pods updated, {} available",
            new.updated_replicas.unwrap_or(0),
            rollout::replicas(deployment),
            new.available_replicas.unwrap_or(0)
        );
    }
    if let Some(delay) = until_timeout(deployment, &new, now) {
        plan.look_again(delay);
    }
    if deployment.status.as_ref() != Some(&new) {
        plan.push(with_status(deployment, new));
    }
}

fn counts(deployment: &Deployment, sets: &Sets) -> DeploymentStatus {
    let of = |set: &ReplicaSet| set.status.clone().unwrap_or_default();
    let sum = |field: &dyn Fn(&ReplicaSet) -> i32| sets.all().map(|set| field(set)).sum::<i32>();
    let available = sum(&|set| of(set).available_replicas.unwrap_or(0));
    let shown = |count: i32| (count > 0).then_some(count);
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: shown(sum(&|set| of(set).replicas)),
        updated_replicas: shown(sets.new.as_ref().map_or(0, |set| of(set).replicas)),
        ready_replicas: shown(sum(&|set| of(set).ready_replicas.unwrap_or(0))),
        available_replicas: shown(available),
        unavailable_replicas: shown(sum(&rollout::size) - available),
        terminating_replicas: shown(sum(&|set| of(set).terminating_replicas.unwrap_or(0))),
        collision_count: deployment.status.as_ref().and_then(|status| status.collision_count),
        conditions: None,
    }
}

/// Whether every wanted pod has the present template and is available, and no other pod is left.
pub(super) fn is_complete(deployment: &Deployment, status: Option<&DeploymentStatus>) -> bool {
    let Some(status) = status else { return false };
    let wanted = rollout::replicas(deployment);
    let all = [status.updated_replicas, status.replicas, status.available_replicas];
    all.iter().all(|count| count.unwrap_or(0) == wanted)
        && status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0)
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let count = |field: Option<i32>| field.unwrap_or(0);
    let outdated = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(new.updated_replicas) > count(old.updated_replicas)
        || outdated(new) < outdated(old)
        || count(new.ready_replicas) > count(old.ready_replicas)
        || count(new.available_replicas) > count(old.available_replicas)
}

fn find<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_.as_deref() == Some(type_))
}

fn conditions(
    deployment: &Deployment,
    sets: &Sets,
    old: &DeploymentStatus,
    new: &DeploymentStatus,
    now: Timestamp,
) -> Vec<DeploymentCondition> {
    let mut all = old.conditions.clone().unwrap_or_default();
    let minimum = rollout::replicas(deployment) - rollout::limits(deployment).1;
    let available = if new.available_replicas.unwrap_or(0) >= minimum {
        condition(AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability.", now)
    } else {
        condition(
            AVAILABLE,
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
            now,
        )
    };
    set(&mut all, available, false);
    if deadline(deployment).is_none() {
        all.retain(|condition| condition.type_.as_deref() != Some(PROGRESSING));
    } else if let Some((condition, renew)) = progress(deployment, sets, old, new, now) {
        set(&mut all, condition, renew);
    }
    // What keeps a ReplicaSet from creating pods is shown here too, the present template's before the others'.
    let failures = sets.new.iter().chain(&sets.old).filter_map(|set| failure(set));
    all.retain(|condition| condition.type_.as_deref() != Some(FAILURE));
    all.extend(failures.take(1));
    all
}

/// The `Progressing` condition, if it must change, and whether its update time moves.
fn progress(
    deployment: &Deployment,
    sets: &Sets,
    old: &DeploymentStatus,
    new: &DeploymentStatus,
    now: Timestamp,
) -> Option<(DeploymentCondition, bool)> {
    let current = find(old, PROGRESSING);
    let reason = current.and_then(|condition| condition.reason.as_deref()).unwrap_or_default();
    let is = |status, reason, message: String| Some((condition(PROGRESSING, status, reason, &message, now), false));
    match (deployment.spec.paused.unwrap_or(false), reason) {
        (true, PAUSED) => return None,
        (true, _) => return is("Unknown", PAUSED, "Deployment is paused".to_owned()),
        (false, PAUSED) => return is("Unknown", "DeploymentResumed", "Deployment is resumed".to_owned()),
        (false, _) => {}
    }
    let set = sets.new.as_deref()?;
    let quoted = format!("\"{}\"", name(set));
    if is_complete(deployment, Some(new)) {
        return is("True", COMPLETE, format!("ReplicaSet {quoted} has successfully progressed."));
    }
    let known = current.and_then(|condition| condition.message.as_deref()).is_some_and(|text| text.contains(&quoted));
    if !known && reason != "DeploymentResumed" {
        // A new template: the deadline starts anew.
        let (reason, verb) = match annotation(set, revision::HISTORY) {
            Some(_) => ("FoundNewReplicaSet", "Found"),
            None => ("NewReplicaSetCreated", "Created"),
        };
        return Some((condition(PROGRESSING, "True", reason, &format!("{verb} new replica set {quoted}"), now), true));
    }
    // Complete once, it stays so, whatever its pods do, until the next template.
    let settled = reason == COMPLETE && new.replicas == new.updated_replicas;
    if !settled && has_progressed(old, new) {
        let text = format!("ReplicaSet {quoted} is progressing.");
        return Some((condition(PROGRESSING, "True", "ReplicaSetUpdated", &text, now), true));
    }
    if !settled && until_timeout(deployment, old, now).is_some_and(|left| left.is_zero()) {
        return is("False", TIMED_OUT, format!("ReplicaSet {quoted} has timed out progressing."));
    }
    None
}

fn deadline(deployment: &Deployment) -> Option<SignedDuration> {
    let seconds = deployment.spec.progress_deadline_seconds.unwrap_or(DEADLINE_DEFAULT);
    (seconds != NO_DEADLINE).then(|| SignedDuration::from_secs(i64::from(seconds)))
}

/// How long until the rollout has stood still for too long; `None` when nothing is waited for.
fn until_timeout(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let progressing = find(status, PROGRESSING)?;
    if matches!(progressing.reason.as_deref(), Some(COMPLETE | TIMED_OUT | PAUSED)) {
        return None;
    }
    let due = progressing.last_update_time.as_ref()?.0 + deadline(deployment)?;
    Some(Duration::try_from(due.duration_since(now)).unwrap_or_default())
}

fn condition(type_: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(type_.to_owned()),
        status: Some(status.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(time(now)),
        last_transition_time: Some(time(now)),
    }
}

/// Puts a condition in place of the one of its type. The same status and reason again changes nothing unless `renew`,
/// which moves the update time.
fn set(all: &mut Vec<DeploymentCondition>, mut new: DeploymentCondition, renew: bool) {
    let Some(old) = all.iter_mut().find(|condition| condition.type_ == new.type_) else { return all.push(new) };
    if old.status == new.status && old.reason == new.reason && old.message == new.message && !renew {
        return;
    }
    if old.status == new.status {
        new.last_transition_time = old.last_transition_time.take();
    }
    *old = new;
}

fn failure(set: &ReplicaSet) -> Option<DeploymentCondition> {
    let all = set.status.as_ref()?.conditions.as_ref()?;
    let found = all.iter().find(|condition| condition.type_.as_deref() == Some(FAILURE))?;
    Some(DeploymentCondition {
        type_: found.type_.clone(),
        status: found.status.clone(),
        reason: found.reason.clone(),
        message: found.message.clone(),
        last_update_time: found.last_transition_time.clone(),
        last_transition_time: found.last_transition_time.clone(),
    })
}
