//! Pod clean-up: pods whose node is gone for good can never be confirmed by an agent.
//!
//! A terminating one is deleted at once; one that is not yet is deleted after a pause, in case its node is only being
//! registered again. The API server is asked whether the node is really gone.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-garbage-collection>.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use mainstay_informer::{Change, ObjectKey};
use mainstay_model::resource;

use crate::action::{Action, Attempt, Now, Plan, Propagation, Target};
use crate::caches::Caches;
use crate::driver::{Controller, Wiring};
use crate::object::{is_terminating, node_of};

/// How long a pod may be without its node.
const PAUSE: Duration = Duration::from_secs(5);

/// Decides about one pod whose node has been missing for `missing_for`.
pub(crate) fn reconcile(pod: &Pod, missing_for: Duration) -> Plan {
    let mut plan = Plan::nothing(format!("node {} is missing", node_of(pod)));
    if !is_terminating(pod) && missing_for < PAUSE {
        plan.look_again(PAUSE.saturating_sub(missing_for));
        return plan;
    }
    let node = Target { resource: resource::known("Node"), key: ObjectKey::new("", node_of(pod)), uid: None };
    plan.push(Action::ExpectGone(node));
    plan.push(Action::Delete { target: Target::of(pod), grace_seconds: Some(0), propagation: Propagation::Background });
    plan
}

/// The controller of left-over pods.
#[derive(Default)]
pub(crate) struct PodGc {
    /// Since when a pod's node has been missing.
    missing: Mutex<HashMap<ObjectKey, Duration>>,
}

impl Controller for PodGc {
    type Key = ObjectKey;
    const NAME: &'static str = "pod-garbage-collector";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.pods, |change: &Change<Pod>, _| vec![change.key.clone()]);
        wiring.on(&caches.nodes, |change: &Change<Node>, caches| {
            if change.after.is_some() && change.before.is_some() {
                return Vec::new();
            }
            let pods = caches.pods.filter(|pod| node_of(pod) == change.key.name);
            pods.iter().map(|pod: &Arc<Pod>| ObjectKey::of(&**pod)).collect()
        });
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, now: Now) -> Plan {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = caches.pods.get_key(key).filter(|pod| {
            let node = node_of(pod);
            !node.is_empty() && caches.nodes.get("", node).is_none()
        });
        let Some(pod) = lost else {
            missing.remove(key);
            return Plan::nothing("it has its node, or needs none");
        };
        let since = *missing.entry(key.clone()).or_insert(now.monotonic);
        reconcile(&pod, now.monotonic.saturating_sub(since))
    }
}
