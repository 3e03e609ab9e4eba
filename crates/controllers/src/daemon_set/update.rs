//! How a DaemonSet's pods move to the next template.
//!
//! Without surge an old pod goes while at most `maxUnavailable` nodes are without a serving pod; old pods that do not serve
//! go first and cost nothing. With surge its successor is started beside it, on at most `maxSurge` nodes at once, and it
//! goes when the successor serves.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;

use super::{Place, hash_label, pod};
use crate::action::{Action, Object, Plan, Target};
use crate::deployment::number;
use crate::object::{is_terminating, name, until_available};

fn is_rolling(set: &DaemonSet) -> bool {
    set.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
}

fn limit(set: &DaemonSet, nodes: usize, surge: bool) -> usize {
    let rolling = set.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let nodes = i32::try_from(nodes).unwrap_or(i32::MAX);
    let field = rolling.and_then(|rolling| if surge { &rolling.max_surge } else { &rolling.max_unavailable }.as_ref());
    let default = i32::from(!surge);
    usize::try_from(field.map_or(default, |field| number(Some(field), nodes, true))).unwrap_or(0)
}

/// Nodes that may have two pods during an update.
pub(super) fn surge(set: &DaemonSet, nodes: usize) -> usize {
    if is_rolling(set) { limit(set, nodes, true) } else { 0 }
}

/// One step of the update.
pub(super) fn roll(set: &DaemonSet, places: &[Place<'_>], hash: &str, now: Timestamp, plan: &mut Plan) {
    if !is_rolling(set) {
        return;
    }
    let serves = |pod: &Pod| {
        let left = until_available(pod, set.spec.min_ready_seconds.unwrap_or(0), now);
        !is_terminating(pod) && left.is_some_and(|left| left.is_zero())
    };
    let wanted: Vec<_> = places.iter().filter(|place| place.wanted && place.may_stay).collect();
    let old = |place: &Place<'_>| {
        let mut pods = place.pods.iter().filter(|pod| !is_terminating(&***pod));
        pods.find(|pod| hash_label(pod) != hash).cloned()
    };
    let new = |place: &Place<'_>| place.pods.iter().find(|pod| hash_label(pod) == hash).cloned();
    let surge = surge(set, wanted.len());
    if surge == 0 {
        let down = wanted.iter().filter(|place| !place.pods.iter().any(|pod| serves(pod))).count();
        let mut spare = limit(set, wanted.len(), false).max(1).saturating_sub(down);
        for place in &wanted {
            let Some(pod) = old(place) else { continue };
            let cost = usize::from(serves(&pod));
            if cost <= spare {
                spare -= cost;
                plan.push(Action::delete(Target::of(&*pod)));
            }
        }
        return;
    }
    let under_way = wanted.iter().filter(|place| old(place).is_some() && new(place).is_some()).count();
    let mut spare = surge.saturating_sub(under_way);
    for place in &wanted {
        match (old(place), new(place)) {
            // Nothing serves there: its successor need not wait for its end, but two are too many once both run.
            (Some(previous), Some(next)) if serves(&next) => plan.push(Action::delete(Target::of(&*previous))),
            (Some(previous), None) if !serves(&previous) => plan.push(Action::delete(Target::of(&*previous))),
            (Some(_), None) if spare > 0 => {
                spare -= 1;
                plan.push(Action::Create(Object::of(&pod(set, name(place.node), hash))));
            }
            _ => {}
        }
    }
}
