//! Quality-of-service classes and what follows from them for the kernel. Pure.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/> and, for the out-of-memory scores,
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#node-out-of-memory-behavior>.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use mainstay_model::quantity::Quantity;

/// A pod's quality-of-service class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QosClass {
    /// Every container's requests equal its limits, for CPU and memory.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl QosClass {
    /// As in `status.qosClass`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// What one container may use. Zero requests are as good as none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// Requested CPU, thousandths of a core.
    pub cpu_request_milli: i64,
    /// Requested memory, bytes.
    pub memory_request_bytes: i64,
    /// Most CPU, thousandths of a core.
    pub cpu_limit_milli: Option<i64>,
    /// Most memory, bytes.
    pub memory_limit_bytes: Option<i64>,
}

impl Resources {
    /// A container's resources; a limit without a request is a request as well.
    pub fn of(requirements: Option<&core::ResourceRequirements>) -> Self {
        let limits = requirements.and_then(|r| r.limits.as_ref());
        let requests = requirements.and_then(|r| r.requests.as_ref());
        let cpu_limit_milli = amount(limits, "cpu").map(Quantity::milli_value);
        let memory_limit_bytes = amount(limits, "memory").map(Quantity::value);
        let cpu_request = amount(requests, "cpu").map(Quantity::milli_value).or(cpu_limit_milli);
        let memory_request = amount(requests, "memory").map(Quantity::value).or(memory_limit_bytes);
        Self {
            cpu_request_milli: cpu_request.unwrap_or(0),
            memory_request_bytes: memory_request.unwrap_or(0),
            cpu_limit_milli,
            memory_limit_bytes,
        }
    }
}

/// What a pod requests: CPU in thousandths, memory in bytes. Init containers run before the others, so that the larger of the
/// two counts; those that stay count with the others.
///
/// Source: <https://kubernetes.io/docs/concepts/workloads/pods/init-containers/#resource-sharing-within-containers>.
pub fn requests(spec: &core::PodSpec) -> (i64, i64) {
    let of = |c: &core::Container| {
        let resources = Resources::of(c.resources.as_ref());
        (resources.cpu_request_milli, resources.memory_request_bytes)
    };
    let add = |a: (i64, i64), b: (i64, i64)| (a.0 + b.0, a.1 + b.1);
    let most = |a: (i64, i64), b: (i64, i64)| (a.0.max(b.0), a.1.max(b.1));
    let (mut staying, mut peak) = ((0, 0), (0, 0));
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            staying = add(staying, of(container));
            peak = most(peak, staying);
        } else {
            peak = most(peak, add(staying, of(container)));
        }
    }
    most(peak, spec.containers.iter().map(of).fold(staying, add))
}

/// An amount of a resource list, if it is there, can be read and is above zero.
pub fn amount(list: Option<&BTreeMap<String, Text>>, name: &str) -> Option<Quantity> {
    let quantity: Quantity = list?.get(name)?.0.parse().ok()?;
    (!quantity.is_zero() && !quantity.is_negative()).then_some(quantity)
}

/// The class of a pod.
pub fn class_of(spec: &core::PodSpec) -> QosClass {
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let all: Vec<_> = containers.map(|c| Resources::of(c.resources.as_ref())).collect();
    if all.iter().all(|r| *r == Resources::default()) {
        return QosClass::BestEffort;
    }
    let guaranteed = |r: &Resources| {
        r.cpu_limit_milli == Some(r.cpu_request_milli) && r.memory_limit_bytes == Some(r.memory_request_bytes)
    };
    if all.iter().all(guaranteed) { QosClass::Guaranteed } else { QosClass::Burstable }
}

/// `/proc/PID/oom_score_adj` of a container: the more of its memory is not requested, the sooner it is killed.
pub fn oom_score_adj(class: QosClass, memory_request_bytes: i64, node_memory_bytes: i64) -> i32 {
    match class {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let share = i128::from(memory_request_bytes) * 1000 / i128::from(node_memory_bytes.max(1));
            (1000 - share).clamp(3, 999) as i32
        }
    }
}

/// CPU shares (cgroup v1 `cpu.shares`) for a request in thousandths of a core, at least the kernel's minimum of 2.
pub fn cpu_shares(milli: i64) -> u64 {
    (milli.max(0) as u64).saturating_mul(1024).div_euclid(1000).clamp(2, 262_144)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
    use super::*;

    fn spec(containers: serde_json::Value) -> core::PodSpec {
        serde_json::from_value(serde_json::json!({ "containers": containers })).unwrap()
    }

    #[test]
    fn classes() {
        let none = serde_json::json!({"name": "a"});
        let full = serde_json::json!({"name": "b", "resources": {"limits": {"cpu": "1", "memory": "64Mi"}}});
        let some = serde_json::json!({"name": "c", "resources": {"requests": {"cpu": "100m"}}});
        for (containers, class) in [
            (vec![&none], QosClass::BestEffort),
            (vec![&full], QosClass::Guaranteed),
            (vec![&full, &none], QosClass::Burstable),
            (vec![&some], QosClass::Burstable),
        ] {
            assert_eq!(class_of(&spec(serde_json::json!(containers))), class);
        }
    }

    #[test]
    fn scores_and_shares() {
        assert_eq!(oom_score_adj(QosClass::Burstable, 0, 1 << 30), 999);
        assert_eq!(oom_score_adj(QosClass::Burstable, 1 << 29, 1 << 30), 500);
        assert_eq!(oom_score_adj(QosClass::Burstable, 1 << 40, 1 << 30), 3);
        assert_eq!((cpu_shares(0), cpu_shares(100), cpu_shares(1000)), (2, 102, 1024));
    }
}
