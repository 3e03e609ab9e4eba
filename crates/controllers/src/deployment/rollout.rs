//! How many pods each ReplicaSet of a Deployment should have: the arithmetic of a rollout, without I/O or clock.
//!
//! Bounds: the sizes add up to at most `replicas + maxSurge`; old pods go only while more than `replicas - maxUnavailable`
//! are available, and pods that are not available go first.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Sets, is_recreate};
use crate::object::{Labels, annotation, created, name};

/// `replicas` when this ReplicaSet was last sized.
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// `replicas + maxSurge` when this ReplicaSet was last sized.
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// `spec.replicas` of a ReplicaSet.
pub(super) fn size(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

/// `spec.replicas` of a Deployment.
pub(super) fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.replicas.unwrap_or(1)
}

/// Available pods of the present template, once its ReplicaSet's controller has seen its present size. Before that the count
/// may be of pods that are on their way out because the set was to be empty: a rollback would take the others away for them.
fn surely_available(set: &ReplicaSet) -> i32 {
    let observed = set.status.as_ref().and_then(|status| status.observed_generation);
    if observed == set.metadata.generation { available(set) } else { 0 }
}

/// Pods that may be there beyond `replicas`, and pods that may be missing: (`maxSurge`, `maxUnavailable`).
pub(super) fn limits(deployment: &Deployment) -> (i32, i32) {
    let replicas = replicas(deployment);
    if is_recreate(deployment) {
        return (0, replicas);
    }
    let rolling = deployment.spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.clone());
    let rolling = rolling.unwrap_or_default();
    let surge = number(rolling.max_surge.as_ref(), replicas, true);
    let unavailable = number(rolling.max_unavailable.as_ref(), replicas, false);
    // Both zero could never move.
    if surge == 0 && unavailable == 0 { (0, 1.min(replicas)) } else { (surge, unavailable.min(replicas)) }
}

/// A number or a percentage of `total`; 25 % when it is absent or not understood.
pub(crate) fn number(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    let value = match value {
        Some(IntOrString::Int(number)) => serde_json::Value::from(*number),
        Some(IntOrString::String(text)) => serde_json::Value::from(text.as_str()),
        None => serde_json::Value::from("25%"),
    };
    let number = mainstay_model::workload::int_or_percent(&value, i64::from(total), round_up).unwrap_or(0);
    i32::try_from(number.max(0)).unwrap_or(i32::MAX)
}

/// The notes a ReplicaSet carries about the size of its Deployment.
pub(super) fn size_annotations(deployment: &Deployment) -> Labels {
    let (replicas, (surge, _)) = (replicas(deployment), limits(deployment));
    let max = if replicas > 0 { replicas.saturating_add(surge) } else { 0 };
    [(DESIRED.to_owned(), replicas.to_string()), (MAX.to_owned(), max.to_string())].into()
}

/// The size the ReplicaSet of a new template starts with.
pub(super) fn first_size(deployment: &Deployment, old: &[Arc<ReplicaSet>]) -> i32 {
    grown(deployment, 0, old.iter().map(|set| size(set)).sum())
}

/// How far the present template's ReplicaSet may grow while `total` pods are asked for in all.
fn grown(deployment: &Deployment, own: i32, total: i32) -> i32 {
    let (replicas, (surge, _)) = (replicas(deployment), limits(deployment));
    if is_recreate(deployment) {
        return replicas;
    }
    let room = replicas.saturating_add(surge).saturating_sub(total).max(0);
    own + room.min(replicas - own).max(0)
}

/// The wanted size of every ReplicaSet. While not `moving` (paused, or waiting) only a changed `replicas` has an effect.
pub(super) fn sizes(deployment: &Deployment, sets: &Sets, moving: bool) -> Vec<(Arc<ReplicaSet>, i32)> {
    if !moving && is_recreate(deployment) && !deployment.spec.paused.unwrap_or(false) {
        return sets.old.iter().map(|set| (set.clone(), 0)).collect();
    }
    if !moving || was_scaled(deployment, sets) {
        return scaled(deployment, sets);
    }
    rolled(deployment, sets)
}

/// Whether `replicas` has changed since the ReplicaSets were last sized.
fn was_scaled(deployment: &Deployment, sets: &Sets) -> bool {
    let wanted = replicas(deployment).to_string();
    sets.all().any(|set| size(set) > 0 && annotation(&**set, DESIRED).is_some_and(|noted| noted != wanted))
}

/// One step of the rollout.
fn rolled(deployment: &Deployment, sets: &Sets) -> Vec<(Arc<ReplicaSet>, i32)> {
    let Some(new) = &sets.new else { return Vec::new() };
    let replicas = replicas(deployment);
    let total: i32 = sets.all().map(|set| size(set)).sum();
    let new_size = if size(new) > replicas { replicas } else { grown(deployment, size(new), total) };
    let mut result = vec![(new.clone(), new_size)];
    if is_recreate(deployment) {
        result.extend(sets.old.iter().map(|set| (set.clone(), 0)));
        return result;
    }
    let minimum = replicas - limits(deployment).1;
    let missing = (new_size - surely_available(new)).max(0);
    // Counted by wanted sizes, so that a size just lowered cannot be spent twice before its status follows.
    let mut room = (total - size(new) + new_size - minimum - missing).max(0);
    let mut old: Vec<(Arc<ReplicaSet>, i32)> = sets.old.iter().map(|set| (set.clone(), size(set))).collect();
    // Pods that do not serve anyway go first.
    for (set, left) in &mut old {
        let idle = (*left - available(set)).clamp(0, room);
        *left -= idle;
        room -= idle;
    }
    let serving = sets.old.iter().map(|set| available(set).min(size(set))).sum::<i32>();
    let serving = serving + surely_available(new).min(size(new));
    let mut spare = (serving - minimum).max(0).min(room);
    for (_, left) in &mut old {
        let gone = (*left).min(spare);
        *left -= gone;
        spare -= gone;
    }
    result.extend(old);
    result
}

/// After `replicas` changed: each ReplicaSet in proportion, so that a rollout under way keeps its balance.
fn scaled(deployment: &Deployment, sets: &Sets) -> Vec<(Arc<ReplicaSet>, i32)> {
    let replicas = replicas(deployment);
    let active: Vec<_> = sets.all().filter(|set| size(set) > 0).cloned().collect();
    match active.as_slice() {
        [] => {
            let latest = sets.new.as_ref().or(sets.old.last());
            return latest.map(|set| (set.clone(), replicas)).into_iter().collect();
        }
        [only] => return vec![(only.clone(), replicas)],
        _ => {}
    }
    if let Some(new) = sets.new.as_ref().filter(|new| is_saturated(deployment, new)) {
        let old = sets.old.iter().map(|set| (set.clone(), 0));
        return old.chain([(new.clone(), replicas)]).collect();
    }
    proportional(deployment, active)
}

/// Whether the present template serves everything already.
fn is_saturated(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let replicas = replicas(deployment);
    size(set) == replicas && available(set) == replicas && annotation(set, DESIRED) == Some(&replicas.to_string())
}

fn proportional(deployment: &Deployment, mut active: Vec<Arc<ReplicaSet>>) -> Vec<(Arc<ReplicaSet>, i32)> {
    let replicas = replicas(deployment);
    let allowed = if replicas > 0 { replicas.saturating_add(limits(deployment).0) } else { 0 };
    let to_add = allowed - active.iter().map(|set| size(set)).sum::<i32>();
    // The largest take first; among equals the newer grow first and the older shrink first.
    active.sort_by_cached_key(|set| {
        let age = created(&**set).as_second();
        (Reverse(size(set)), if to_add > 0 { -age } else { age }, name(&**set).to_owned())
    });
    let mut added = 0;
    let mut result: Vec<(Arc<ReplicaSet>, i32)> = Vec::new();
    for set in active {
        let share = share(deployment, &set, allowed);
        let rest = to_add - added;
        let change = if to_add > 0 { share.clamp(0, rest) } else { share.clamp(rest, 0) };
        added += change;
        result.push((set.clone(), size(&set) + change));
    }
    if let Some((_, first)) = result.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    result
}

/// How many pods a ReplicaSet gets or gives when all of them together may be `allowed`.
fn share(deployment: &Deployment, set: &ReplicaSet, allowed: i32) -> i32 {
    let own = size(set);
    let noted = annotation(set, MAX).and_then(|text| text.parse::<i32>().ok()).filter(|max| *max > 0);
    let was = noted.or_else(|| deployment.status.as_ref()?.replicas).filter(|was| *was > 0).unwrap_or(own.max(1));
    let (own_wide, allowed, was) = (i64::from(own), i64::from(allowed), i64::from(was));
    // Rounded to the nearest.
    let fair = (2 * own_wide * allowed + was).div_euclid(2 * was);
    i32::try_from(fair).unwrap_or(i32::MAX) - own
}
