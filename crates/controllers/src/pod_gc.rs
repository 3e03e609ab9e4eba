//! Pod clean-up: pods that nobody will end, and those that have ended and are too many.
//!
//! | a pod | is removed |
//! |---|---|
//! | whose node is gone for good, so that no agent can confirm its end | after a pause, in case the node is only being registered again |
//! | that is ending, on a node that is not ready and tainted `node.kubernetes.io/out-of-service` | at once: a person vouches that nothing runs there |
//! | that is ending and was never bound | at once |
//! | that has ended, beyond [`ENDED_MAX`] of them | the oldest first |
//!
//! The API server is asked whether a missing node is really gone. What had not ended is said to have failed, and why, for
//! those who count failures.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-garbage-collection>.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use mainstay_informer::{Change, ObjectKey};
use mainstay_model::resource;

use crate::action::{Action, Attempt, Now, Object, Plan, Propagation, Target};
use crate::caches::Caches;
use crate::driver::{Controller, Wiring};
use crate::object::{created, disrupted, is_finished, is_terminating, node_of, uid};

/// How long a pod may be without its node.
const PAUSE: Duration = Duration::from_secs(5);
/// Pods that have ended and are kept, as kube-controller-manager's `--terminated-pod-gc-threshold`.
const ENDED_MAX: usize = 12_500;
/// How often pods that have ended are counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(20);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// What is the matter with a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// Its node has been missing for so long.
    NoNode(Duration),
    /// Its node is out of service.
    OutOfService,
    /// It is ending, and was never bound.
    Unbound,
    /// It has ended, and there are too many such.
    Surplus,
}

/// Decides about one pod.
pub(crate) fn reconcile(pod: &Pod, lost: Lost, now: Timestamp) -> Plan {
    let mut plan = Plan::nothing(match lost {
        Lost::NoNode(_) => format!("node {} is missing", node_of(pod)),
        Lost::OutOfService => format!("node {} is out of service", node_of(pod)),
        Lost::Unbound => "it is ending and was never bound".to_owned(),
        Lost::Surplus => "too many pods have ended".to_owned(),
    });
    if let Lost::NoNode(missing_for) = lost {
        if !is_terminating(pod) && missing_for < PAUSE {
            plan.look_again(PAUSE.saturating_sub(missing_for));
            return plan;
        }
        let node = Target { resource: resource::known("Node"), key: ObjectKey::new("", node_of(pod)), uid: None };
        plan.push(Action::ExpectGone(node));
        if !is_finished(pod) {
            let why = "PodGC: node no longer exists";
            let mut failed = disrupted(pod, "DeletionByPodGC", why, now);
            failed.status.get_or_insert_default().phase = Some("Failed".to_owned());
            plan.push(Action::ReplaceStatus(Object::of(&failed)));
        }
    } else if lost == Lost::OutOfService && !is_finished(pod) {
        let mut failed = pod.clone();
        failed.status.get_or_insert_default().phase = Some("Failed".to_owned());
        plan.push(Action::ReplaceStatus(Object::of(&failed)));
    }
    plan.push(Action::Delete { target: Target::of(pod), grace_seconds: Some(0), propagation: Propagation::Background });
    plan
}

/// Whether a person has said that nothing runs on the node any more, and nothing of it says otherwise.
fn is_out_of_service(node: &Node) -> bool {
    let ready = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let is_ready = ready.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    !is_ready && taints.any(|taint| taint.key == OUT_OF_SERVICE)
}

/// The controller of left-over pods.
#[derive(Default)]
pub(crate) struct PodGc {
    /// Since when a pod's node has been missing.
    missing: Mutex<HashMap<ObjectKey, Duration>>,
    /// Uids of pods that have ended and are too many.
    surplus: Arc<Mutex<HashSet<String>>>,
}

impl PodGc {
    fn lost(&self, caches: &Caches, key: &ObjectKey, pod: &Pod, now: Now) -> Option<Lost> {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let node = Some(node_of(pod)).filter(|node| !node.is_empty());
        let found = node.map(|node| caches.nodes.get("", node));
        if found.as_ref().is_some_and(Option::is_none) {
            let since = *missing.entry(key.clone()).or_insert(now.monotonic);
            return Some(Lost::NoNode(now.monotonic.saturating_sub(since)));
        }
        missing.remove(key);
        if is_finished(pod) && self.surplus.lock().unwrap_or_else(PoisonError::into_inner).contains(uid(pod)) {
            return Some(Lost::Surplus);
        }
        match found.flatten() {
            Some(node) => (is_terminating(pod) && is_out_of_service(&node)).then_some(Lost::OutOfService),
            None => is_terminating(pod).then_some(Lost::Unbound),
        }
    }
}

/// The oldest of the pods that have ended, if there are more than so many.
fn surplus(caches: &Caches, most: usize) -> Vec<Arc<Pod>> {
    let mut ended = caches.pods.filter(|pod| is_finished(pod) && !is_terminating(pod));
    let surplus = ended.len().saturating_sub(most);
    if surplus > 0 {
        ended.sort_by_cached_key(|pod| (created(&**pod), ObjectKey::of(&**pod)));
    }
    ended.truncate(surplus);
    ended
}

impl Controller for PodGc {
    type Key = ObjectKey;
    const NAME: &'static str = "pod-garbage-collector";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.pods, |change: &Change<Pod>, _| vec![change.key.clone()]);
        wiring.on(&caches.nodes, |change: &Change<Node>, caches| {
            let of_interest = change.after.as_ref().is_none_or(|node| is_out_of_service(node));
            if !of_interest && change.before.is_some() {
                return Vec::new();
            }
            let pods = caches.pods.filter(|pod| node_of(pod) == change.key.name);
            pods.iter().map(|pod: &Arc<Pod>| ObjectKey::of(&**pod)).collect()
        });
        let (inbox, found) = (wiring.inbox.clone(), self.surplus.clone());
        wiring.tasks.spawn(async move {
            loop {
                let oldest = surplus(&caches, ENDED_MAX);
                *found.lock().unwrap_or_else(PoisonError::into_inner) =
                    oldest.iter().map(|pod| uid(&**pod).to_owned()).collect();
                inbox.add(oldest.iter().map(|pod| ObjectKey::of(&**pod)));
                tokio::time::sleep(COUNT_INTERVAL).await;
            }
        });
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, now: Now) -> Plan {
        let Some(pod) = caches.pods.get_key(key) else {
            self.missing.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
            return Plan::nothing("it is gone");
        };
        match self.lost(caches, key, &pod, now) {
            Some(lost) => reconcile(&pod, lost, now.wall),
            None => Plan::nothing("it has its node, or needs none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::typed;

    #[test]
    fn the_oldest_of_the_ended_are_too_many() {
        let caches = Caches::default();
        for (name, phase, second) in
            [("a", "Failed", 3), ("b", "Succeeded", 1), ("c", "Running", 0), ("d", "Failed", 2)]
        {
            let at = format!("2026-01-01T00:00:0{second}Z");
            let pod = json!({"metadata": {"name": name, "namespace": "shop", "creationTimestamp": at}, "status": {"phase": phase}});
            caches.pods.observe(typed(pod));
        }
        let names = |most| {
            let found = surplus(&caches, most);
            found.iter().map(|pod| crate::object::name(&**pod).to_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!((names(3), names(2), names(0)), (String::new(), "b".to_owned(), "b d a".to_owned()));
    }
}
