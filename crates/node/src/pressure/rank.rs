//! Which pod has to go first when a node runs out of something. Pure.
//!
//! First those that use more than they requested; among them, and among the rest, those of lower priority; then those that are
//! furthest above their requests. Pods with guaranteed resources, and those that stay within their requests, come last by that
//! alone; the class itself is not looked at. For process ids nothing is requested, and only priority counts. Critical pods and
//! those that run without the API are never evicted.
//!
//! Source: <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#pod-selection-for-kubelet-eviction>.

use k8s_openapi::api::core::v1::Pod;
use mainstay_model::quantity::Quantity;

use crate::pod::qos::{self, amount};
use crate::pressure::signals::Signal;
use crate::static_pods;

/// From this priority on a pod is critical, as `system-cluster-critical`.
const CRITICAL: i32 = 2_000_000_000;

/// What is known of a pod that might be evicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its uid.
    pub uid: String,
    /// `spec.priority`.
    pub priority: i32,
    /// How much of what is low it uses.
    pub used: u64,
    /// How much of it it requested.
    pub requested: u64,
}

impl Candidate {
    /// A pod that may be evicted.
    pub fn of(pod: &Pod, signal: Signal, used: u64) -> Option<Self> {
        if is_critical(pod) {
            return None;
        }
        let spec = pod.spec.as_ref()?;
        let requested = match signal {
            Signal::Memory => u64::try_from(qos::requests(spec).1).unwrap_or(0),
            Signal::Disk => spec.containers.iter().map(|container| storage(container, Bound::Request)).sum(),
            Signal::Inodes | Signal::Pids => 0,
        };
        let used = if signal == Signal::Pids { 0 } else { used };
        Some(Self { uid: pod.metadata.uid.clone()?, priority: spec.priority.unwrap_or(0), used, requested })
    }

    fn key(&self) -> (bool, std::cmp::Reverse<i32>, i128) {
        let above = i128::from(self.used) - i128::from(self.requested);
        (above > 0, std::cmp::Reverse(self.priority), above)
    }
}

/// Whether a pod is never evicted by its node.
pub fn is_critical(pod: &Pod) -> bool {
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
    priority >= CRITICAL || static_pods::is_static(pod)
}

/// Which of the two is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// `requests`, or the limit where there is none.
    Request,
    /// `limits`.
    Limit,
}

/// A container's `ephemeral-storage` in bytes; 0 for none.
pub fn storage(container: &k8s_openapi::api::core::v1::Container, bound: Bound) -> u64 {
    let resources = container.resources.as_ref();
    let limit = || amount(resources.and_then(|resources| resources.limits.as_ref()), "ephemeral-storage");
    let request = || amount(resources.and_then(|resources| resources.requests.as_ref()), "ephemeral-storage");
    let found = if bound == Bound::Limit { limit() } else { request().or_else(limit) };
    found.map(Quantity::value).and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0)
}

/// The one to be evicted first; of equals, the one whose uid comes first.
pub fn first(candidates: impl IntoIterator<Item = Candidate>) -> Option<Candidate> {
    let mut all: Vec<_> = candidates.into_iter().collect();
    all.sort_by(|a, b| b.key().cmp(&a.key()).then_with(|| a.uid.cmp(&b.uid)));
    all.into_iter().next()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn one(uid: &str, priority: i32, used: u64, requested: u64) -> Candidate {
        Candidate { uid: uid.to_owned(), priority, used, requested }
    }

    #[test]
    fn above_the_request_first_then_priority_then_the_excess() {
        let order = |mut all: Vec<Candidate>| {
            let mut uids = String::new();
            while let Some(next) = first(all.clone()) {
                all.retain(|one| one.uid != next.uid);
                uids.push_str(&next.uid);
            }
            uids
        };
        let all = vec![
            one("a", 0, 10, 100),
            one("b", 5, 200, 100),
            one("c", 0, 110, 100),
            one("d", 0, 300, 100),
            one("e", -1, 1, 100),
        ];
        assert_eq!(order(all), "dcbea");
        assert_eq!(order(vec![one("b", 0, 0, 0), one("a", 0, 0, 0)]), "ab");
    }

    #[test]
    fn who_may_be_evicted_and_for_what() {
        let pod = |more: serde_json::Value| -> Pod {
            let pod = json!({"metadata": {"uid": "u"}, "spec": {"priority": 7, "containers": [{"name": "c", "resources": {
                "requests": {"memory": "1Ki"}, "limits": {"ephemeral-storage": "2Ki"}}}]}});
            serde_json::from_value(mainstay_model::patch::merge(&pod, &more).unwrap()).unwrap()
        };
        let of = |signal| Candidate::of(&pod(json!({})), signal, 9).unwrap();
        assert_eq!(of(Signal::Memory), one("u", 7, 9, 1024));
        assert_eq!(of(Signal::Disk), one("u", 7, 9, 2048));
        assert_eq!(of(Signal::Pids), one("u", 7, 0, 0));
        for critical in [json!({"spec": {"priority": 2_000_001_000}}), json!({"metadata": {"uid": "static-1"}})] {
            assert_eq!(Candidate::of(&pod(critical), Signal::Memory, 9), None);
        }
    }
}
