//! Facts about pods and rollouts that several parts need: readiness, resource sums, percentages, classes of service.
//!
//! Everything is computed from the object and a time given as an argument.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use crate::meta;
use crate::quantity::Quantity;

/// Amounts by resource name (`cpu`, `memory`, ...).
pub type Resources = BTreeMap<String, Quantity>;

/// `status.phase`, `Pending` when absent.
pub fn phase(pod: &Value) -> &str {
    meta::str_at(pod, "status.phase").filter(|phase| !phase.is_empty()).unwrap_or("Pending")
}

/// Whether the pod has ended for good.
pub fn is_pod_finished(pod: &Value) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether a controller counts the pod: neither ended nor being deleted.
pub fn is_pod_active(pod: &Value) -> bool {
    !is_pod_finished(pod) && !meta::is_being_deleted(pod)
}

/// Whether the pod's `Ready` condition is true.
pub fn is_pod_ready(pod: &Value) -> bool {
    meta::is_condition_true(pod, "Ready")
}

/// Since when the pod has been ready.
pub fn pod_ready_since(pod: &Value) -> Option<Timestamp> {
    let ready = meta::condition(pod, "Ready").filter(|ready| ready["status"] == "True")?;
    meta::time_at(ready, "lastTransitionTime")
}

/// Whether the pod has been ready for `min_ready_seconds` at `now`.
pub fn is_pod_available(pod: &Value, min_ready_seconds: i64, now: Timestamp) -> bool {
    if !is_pod_ready(pod) {
        return false;
    }
    min_ready_seconds <= 0
        || pod_ready_since(pod).is_some_and(|since| now.as_second() - since.as_second() >= min_ready_seconds)
}

/// Whether an init container is a sidecar: it keeps running beside the others.
pub fn is_sidecar(init_container: &Value) -> bool {
    init_container["restartPolicy"] == "Always"
}

/// The amounts in a map such as `resources.requests`; what is not a quantity is left out.
pub fn resources(map: Option<&Value>) -> Resources {
    let entries = map.and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(name, amount)| Some((name.clone(), Quantity::from_value(amount).ok()?))).collect()
}

fn add(sum: &mut Resources, more: &Resources) {
    for (name, amount) in more {
        let entry = sum.entry(name.clone()).or_insert(Quantity::ZERO);
        *entry = *entry + *amount;
    }
}

fn raise(most: &mut Resources, other: &Resources) {
    for (name, amount) in other {
        let entry = most.entry(name.clone()).or_insert(*amount);
        *entry = (*entry).max(*amount);
    }
}

/// What the scheduler must find free on a node for this pod (or pod template: anything with `spec`).
///
/// The containers and sidecars run together; each other init container runs with the sidecars started before it; the
/// pod needs the larger of the two, per resource, plus its overhead. `spec.resources` of the pod itself goes before
/// the sum. Source: <https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers>.
pub fn pod_requests(pod: &Value) -> Resources {
    pod_sum(pod, "requests")
}

/// As [`pod_requests`] for limits: a resource is there only for the containers that limit it.
pub fn pod_limits(pod: &Value) -> Resources {
    pod_sum(pod, "limits")
}

fn pod_sum(pod: &Value, field: &str) -> Resources {
    let of = |container: &Value| resources(container.pointer(&format!("/resources/{field}")));
    let mut together = Resources::new();
    for container in meta::list_at(pod, "spec.containers") {
        add(&mut together, &of(container));
    }
    let (mut sidecars, mut starting) = (Resources::new(), Resources::new());
    for container in meta::list_at(pod, "spec.initContainers") {
        let mut moment = of(container);
        if is_sidecar(container) {
            add(&mut sidecars, &moment);
            moment.clone_from(&sidecars);
        } else {
            add(&mut moment, &sidecars);
        }
        raise(&mut starting, &moment);
    }
    add(&mut together, &sidecars);
    raise(&mut together, &starting);
    for (name, amount) in resources(pod.pointer(&format!("/spec/resources/{field}"))) {
        together.insert(name, amount);
    }
    add(&mut together, &resources(pod.pointer("/spec/overhead")));
    together
}

/// The quality-of-service class: `Guaranteed`, `Burstable` or `BestEffort`.
///
/// Source: <https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/>.
pub fn qos_class(pod: &Value) -> &'static str {
    let containers = meta::list_at(pod, "spec.containers").iter().chain(meta::list_at(pod, "spec.initContainers"));
    let (mut any, mut all) = (false, true);
    for container in containers {
        let requests = resources(container.pointer("/resources/requests"));
        let limits = resources(container.pointer("/resources/limits"));
        for name in ["cpu", "memory"] {
            let positive = |map: &Resources| map.get(name).copied().filter(|amount| !amount.is_zero());
            let (request, limit) = (positive(&requests), positive(&limits));
            any |= request.is_some() || limit.is_some();
            all &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// A number, or a percentage of `total`, rounded up or down. `None` when it is neither.
pub fn int_or_percent(value: &Value, total: i64, round_up: bool) -> Option<i64> {
    if let Some(number) = value.as_i64() {
        return Some(number);
    }
    let percent: i64 = value.as_str()?.strip_suffix('%')?.parse().ok()?;
    let product = percent.checked_mul(total)?;
    Some(if round_up {
        product.div_euclid(100) + i64::from(product.rem_euclid(100) > 0)
    } else {
        product.div_euclid(100)
    })
}

/// How many pods a rolling update may add and how many it may take away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RollingLimits {
    /// Pods above the wanted number.
    pub max_surge: i64,
    /// Pods below the wanted number.
    pub max_unavailable: i64,
}

/// The limits of a Deployment's rolling update: surge rounds up, unavailable rounds down, and when both come to zero
/// one pod may be unavailable so that the rollout can move. `Recreate` gives no surge and everything unavailable.
pub fn rolling_limits(deployment: &Value) -> RollingLimits {
    let replicas = meta::i64_at(deployment, "spec.replicas").unwrap_or(1);
    if meta::str_at(deployment, "spec.strategy.type") == Some("Recreate") {
        return RollingLimits { max_surge: 0, max_unavailable: replicas };
    }
    let field = |name: &str, round_up| {
        let value = deployment.pointer(&format!("/spec/strategy/rollingUpdate/{name}"));
        let quarter = Value::from("25%");
        int_or_percent(value.unwrap_or(&quarter), replicas, round_up).unwrap_or(0).max(0)
    };
    let (max_surge, unavailable) = (field("maxSurge", true), field("maxUnavailable", false));
    let max_unavailable = if max_surge == 0 && unavailable == 0 { 1 } else { unavailable };
    RollingLimits { max_surge, max_unavailable: max_unavailable.min(replicas) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn shown(resources: &Resources) -> Vec<String> {
        resources.iter().map(|(name, amount)| format!("{name}={amount}")).collect()
    }

    #[test]
    fn requests_follow_the_sidecar_rule() {
        let cpu = |amount: &str| json!({"resources": {"requests": {"cpu": amount}}});
        let sidecar = |amount: &str| json!({"restartPolicy": "Always", "resources": {"requests": {"cpu": amount}}});
        for (containers, inits, expected) in [
            (json!([cpu("100m"), cpu("200m")]), json!([]), "cpu=300m"),
            (json!([cpu("100m")]), json!([cpu("1")]), "cpu=1"),
            (json!([cpu("100m")]), json!([sidecar("50m"), cpu("1")]), "cpu=1050m"),
            (json!([cpu("1")]), json!([cpu("500m"), sidecar("50m")]), "cpu=1050m"),
            (json!([cpu("1")]), json!([sidecar("1"), sidecar("1")]), "cpu=3"),
        ] {
            let pod = json!({"spec": {"containers": containers, "initContainers": inits}});
            assert_eq!(shown(&pod_requests(&pod)), [expected], "{pod}");
        }
        let pod = json!({"spec": {"containers": [cpu("1")], "overhead": {"cpu": "10m", "memory": "1Mi"}}});
        assert_eq!(shown(&pod_requests(&pod)), ["cpu=1010m", "memory=1Mi"]);
        let pod = json!({"spec": {"containers": [cpu("1")], "resources": {"requests": {"cpu": "3"}}}});
        assert_eq!(shown(&pod_requests(&pod)), ["cpu=3"]);
        assert!(
            pod_requests(&json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "x"}}}, 3]}})).is_empty()
        );
        assert!(pod_limits(&pod).is_empty());
    }

    #[test]
    fn qos_classes() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"resources": resources}]}});
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(qos_class(&pod(json!({"requests": {"cpu": "1"}}))), "Burstable");
        assert_eq!(qos_class(&pod(json!({"limits": {"cpu": "1", "memory": "1Gi"}}))), "Guaranteed");
        let unequal = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Mi"}});
        assert_eq!(qos_class(&pod(unequal)), "Burstable");
    }

    #[test]
    fn readiness_and_availability() {
        let now: Timestamp = "2026-01-02T15:00:10Z".parse().unwrap();
        let ready = json!({"status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T15:00:00Z"}]}});
        assert!(is_pod_ready(&ready) && is_pod_active(&ready) && !is_pod_finished(&ready));
        for (min_ready_seconds, available) in [(0, true), (10, true), (11, false)] {
            assert_eq!(is_pod_available(&ready, min_ready_seconds, now), available);
        }
        assert!(!is_pod_available(&json!({}), 0, now));
        assert!(!is_pod_active(&json!({"status": {"phase": "Failed"}})));
        assert_eq!(phase(&json!({})), "Pending");
    }

    #[test]
    fn percentages() {
        for (value, total, up, down) in
            [(json!(3), 10, 3, 3), (json!("25%"), 10, 3, 2), (json!("100%"), 7, 7, 7), (json!("0%"), 7, 0, 0)]
        {
            assert_eq!(int_or_percent(&value, total, true), Some(up));
            assert_eq!(int_or_percent(&value, total, false), Some(down));
        }
        for value in [json!("25"), json!("x%"), json!(null), json!(1.5)] {
            assert_eq!(int_or_percent(&value, 10, true), None);
        }
    }

    #[test]
    fn rollouts() {
        let deployment = |replicas: i64, rolling: Value| json!({"spec": {"replicas": replicas, "strategy": {"rollingUpdate": rolling}}});
        for (replicas, rolling, surge, unavailable) in [
            (3, json!({}), 1, 0),
            (10, json!({}), 3, 2),
            (3, json!({"maxSurge": 0, "maxUnavailable": "10%"}), 0, 1),
            (2, json!({"maxSurge": 0, "maxUnavailable": 5}), 0, 2),
            (0, json!({}), 0, 0),
        ] {
            let limits = rolling_limits(&deployment(replicas, rolling.clone()));
            assert_eq!((limits.max_surge, limits.max_unavailable), (surge, unavailable), "{replicas} {rolling}");
        }
        let recreate = json!({"spec": {"replicas": 4, "strategy": {"type": "Recreate"}}});
        assert_eq!(rolling_limits(&recreate), RollingLimits { max_surge: 0, max_unavailable: 4 });
    }

    proptest! {
        #[test]
        fn a_rollout_can_always_move(replicas in 1i64..10_000, surge in 0i64..=100, unavailable in 0i64..=100) {
            let strategy = json!({"maxSurge": format!("{surge}%"), "maxUnavailable": format!("{unavailable}%")});
            let limits = rolling_limits(&json!({"spec": {"replicas": replicas, "strategy": {"rollingUpdate": strategy}}}));
            prop_assert!(limits.max_surge + limits.max_unavailable > 0);
            prop_assert!(limits.max_unavailable <= replicas && limits.max_surge <= replicas);
        }
    }
}
