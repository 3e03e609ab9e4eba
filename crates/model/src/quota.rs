//! ResourceQuota: what an object counts as, which quotas it falls under, and whether there is room.
//!
//! Source: <https://kubernetes.io/docs/concepts/policy/resource-quotas/>, with the words of kube-apiserver.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::meta;
use crate::quantity::{Format, Quantity};
use crate::resource::Resource;
use crate::workload::{Resources, is_pod_finished, pod_limits, pod_requests, qos_class, resources};

/// Kinds of the core group that quotas may name without `count/`.
const PLAIN: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];
/// Amounts that every container must state when a quota limits them.
const STATED: &[&str] = &["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];

fn one() -> Quantity {
    Quantity::new(1, Format::DecimalSi)
}

/// Everything an object counts as, by the names that `spec.hard` may have.
pub fn usage(resource: &Resource, object: &Value) -> Resources {
    let mut usage = Resources::new();
    let group = if resource.group.is_empty() { String::new() } else { format!(".{}", resource.group) };
    usage.insert(format!("count/{}{group}", resource.plural), one());
    if !resource.group.is_empty() {
        return usage;
    }
    // A pod that has ended is only an object any more.
    if PLAIN.contains(&resource.plural.as_str()) && !(resource.plural == "pods" && is_pod_finished(object)) {
        usage.insert(resource.plural.clone(), one());
    }
    match resource.plural.as_str() {
        "pods" if !is_pod_finished(object) => pod(&mut usage, object),
        "services" => service(&mut usage, object),
        "persistentvolumeclaims" => claim(&mut usage, object),
        _ => {}
    }
    usage
}

fn pod(usage: &mut Resources, pod: &Value) {
    for (name, amount) in pod_requests(pod) {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            usage.insert(name.clone(), amount);
        }
        usage.insert(format!("requests.{name}"), amount);
    }
    for (name, amount) in pod_limits(pod) {
        usage.insert(format!("limits.{name}"), amount);
    }
}

fn service(usage: &mut Resources, service: &Value) {
    let ports = Quantity::new(meta::list_at(service, "spec.ports").len() as i64, Format::DecimalSi);
    match service["spec"]["type"].as_str() {
        Some("NodePort") => drop(usage.insert("services.nodeports".to_owned(), ports)),
        Some("LoadBalancer") => {
            usage.insert("services.loadbalancers".to_owned(), one());
            if service["spec"]["allocateLoadBalancerNodePorts"] != false {
                usage.insert("services.nodeports".to_owned(), ports);
            }
        }
        _ => {}
    }
}

fn claim(usage: &mut Resources, claim: &Value) {
    let asked = resources(claim.pointer("/spec/resources/requests")).get("storage").copied().unwrap_or(Quantity::ZERO);
    usage.insert("requests.storage".to_owned(), asked);
    if let Some(class) = meta::str_at(claim, "spec.storageClassName").filter(|class| !class.is_empty()) {
        let prefix = format!("{class}.storageclass.storage.k8s.io");
        usage.insert(format!("{prefix}/requests.storage"), asked);
        usage.insert(format!("{prefix}/persistentvolumeclaims"), one());
    }
}

/// Whether a quota counts an object of a kind at all: its scopes, all of which must hold, are about pods (and claims).
pub fn in_scope(quota: &Value, kind: &str, object: &Value) -> bool {
    let plain = meta::list_at(quota, "spec.scopes").iter().filter_map(Value::as_str);
    let mut terms: Vec<(&str, &str, &[Value])> = plain.map(|scope| (scope, "Exists", &[][..])).collect();
    for term in meta::list_at(quota, "spec.scopeSelector.matchExpressions") {
        let text = |field: &str| term[field].as_str().unwrap_or_default();
        terms.push((text("scopeName"), text("operator"), meta::list_at(term, "values")));
    }
    terms.into_iter().all(|(scope, operator, values)| match (kind, scope) {
        ("Pod", scope) => in_pod_scope(scope, operator, values, object),
        ("PersistentVolumeClaim", "VolumeAttributesClass") => {
            holds(operator, values, meta::str_at(object, "spec.volumeAttributesClassName"))
        }
        _ => false,
    })
}

fn in_pod_scope(scope: &str, operator: &str, values: &[Value], pod: &Value) -> bool {
    let has_deadline = pod["spec"]["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0);
    match scope {
        "Terminating" => has_deadline,
        "NotTerminating" => !has_deadline,
        "BestEffort" => qos_class(pod) == "BestEffort",
        "NotBestEffort" => qos_class(pod) != "BestEffort",
        "PriorityClass" => holds(operator, values, meta::str_at(pod, "spec.priorityClassName")),
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

fn holds(operator: &str, values: &[Value], given: Option<&str>) -> bool {
    let given = given.filter(|given| !given.is_empty());
    let listed = given.is_some_and(|given| values.iter().any(|value| value == given));
    match operator {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => given.is_some(),
        "DoesNotExist" => given.is_none(),
        _ => false,
    }
}

/// Whether an affinity term of the pod names other namespaces.
fn crosses_namespaces(pod: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].into_iter().any(|affinity| {
        let own = &pod["spec"]["affinity"][affinity];
        let required = meta::list_at(own, "requiredDuringSchedulingIgnoredDuringExecution").iter();
        let preferred = meta::list_at(own, "preferredDuringSchedulingIgnoredDuringExecution").iter();
        let terms = required.chain(preferred.map(|term| &term["podAffinityTerm"]));
        terms
            .into_iter()
            .any(|term| !meta::list_at(term, "namespaces").is_empty() || term["namespaceSelector"].is_object())
    })
}

/// What a pod's containers would have to state because the quota limits it, as kube-apiserver says it.
pub fn unstated(hard: &Resources, pod: &Value) -> Option<String> {
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for name in STATED.iter().filter(|name| hard.contains_key(**name)) {
        let (field, resource) = name.split_once('.').unwrap_or(("requests", name));
        for container in ["containers", "initContainers"].into_iter().flat_map(|list| meta::list_at(&pod["spec"], list))
        {
            let of_pod = &pod["spec"]["resources"][field][resource];
            if container["resources"][field][resource].is_null() && of_pod.is_null() {
                missing.entry(name).or_default().insert(container["name"].as_str().unwrap_or_default());
            }
        }
    }
    let words = missing
        .iter()
        .map(|(name, containers)| format!("{name} for: {}", containers.iter().copied().collect::<Vec<_>>().join(",")));
    let words: Vec<String> = words.collect();
    (!words.is_empty()).then(|| format!("must specify {}", words.join("; ")))
}

/// The figures of a quota after adding `delta`, whose names are all in `hard`; or the refusal.
///
/// # Errors
/// `exceeded quota: NAME, requested: ..., used: ..., limited: ...`.
pub fn charge(name: &str, hard: &Resources, used: &Resources, delta: &Resources) -> Result<Resources, String> {
    let mut after = used.clone();
    let mut over = Vec::new();
    for (resource, amount) in delta {
        let sum = used.get(resource).copied().unwrap_or(Quantity::ZERO) + *amount;
        // Giving back is always allowed, however much is in use.
        if *amount > Quantity::ZERO && hard.get(resource).is_some_and(|limit| sum > *limit) {
            over.push(resource.as_str());
        }
        after.insert(resource.clone(), sum);
    }
    if over.is_empty() {
        return Ok(after);
    }
    let show = |amounts: &Resources| {
        let one = |name: &&str| format!("{name}={}", amounts.get(*name).copied().unwrap_or(Quantity::ZERO));
        over.iter().map(one).collect::<Vec<_>>().join(",")
    };
    Err(format!("exceeded quota: {name}, requested: {}, used: {}, limited: {}", show(delta), show(used), show(hard)))
}

/// The part of `usage` that a quota limits.
pub fn limited(hard: &Resources, usage: &Resources) -> Resources {
    usage.iter().filter(|(name, _)| hard.contains_key(*name)).map(|(name, amount)| (name.clone(), *amount)).collect()
}

/// `after` less `before`, without what is equal.
pub fn difference(after: &Resources, before: &Resources) -> Resources {
    let names: BTreeSet<&String> = after.keys().chain(before.keys()).collect();
    let of = |amounts: &Resources, name: &str| amounts.get(name).copied().unwrap_or(Quantity::ZERO);
    let change = |name: &String| (name.clone(), of(after, name) - of(before, name));
    names.into_iter().map(change).filter(|(_, amount)| !amount.is_zero()).collect()
}

/// As in `status.used`.
pub fn to_value(amounts: &Resources) -> Value {
    amounts
        .iter()
        .map(|(name, amount)| (name.clone(), json!(amount.to_string())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::known;

    fn amounts(value: &Value) -> Resources {
        resources(Some(value))
    }

    #[test]
    fn what_objects_count_as() {
        let pod = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "gpu": "2"}, "limits": {"cpu": "2"}}}]}});
        let usage = usage(known("Pod"), &pod);
        let expected = json!({"count/pods": "1", "pods": "1", "cpu": "1", "requests.cpu": "1", "requests.gpu": "2", "limits.cpu": "2"});
        assert_eq!(usage, amounts(&expected));
        let service = json!({"spec": {"type": "LoadBalancer", "ports": [{}, {}]}});
        let expected =
            json!({"count/services": "1", "services": "1", "services.loadbalancers": "1", "services.nodeports": "2"});
        assert_eq!(super::usage(known("Service"), &service), amounts(&expected));
        assert_eq!(super::usage(known("Deployment"), &json!({})), amounts(&json!({"count/deployments.apps": "1"})));
        let ended = json!({"status": {"phase": "Succeeded"}});
        assert_eq!(super::usage(known("Pod"), &ended), amounts(&json!({"count/pods": "1"})));
    }

    #[test]
    fn room_is_given_until_there_is_none() {
        let (hard, used) = (amounts(&json!({"pods": "2", "cpu": "1"})), amounts(&json!({"pods": "1", "cpu": "800m"})));
        let small = amounts(&json!({"pods": "1", "cpu": "200m"}));
        assert_eq!(charge("q", &hard, &used, &small), Ok(amounts(&json!({"pods": "2", "cpu": "1"}))));
        let large = amounts(&json!({"pods": "2", "cpu": "1"}));
        assert_eq!(
            charge("q", &hard, &used, &large),
            Err("exceeded quota: q, requested: cpu=1,pods=2, used: cpu=800m,pods=1, limited: cpu=1,pods=2".to_owned())
        );
    }

    #[test]
    fn what_is_limited_must_be_stated() {
        let pod =
            json!({"spec": {"containers": [{"name": "b"}, {"name": "a", "resources": {"limits": {"cpu": "1"}}}]}});
        let hard = amounts(&json!({"limits.cpu": "1", "requests.memory": "1Gi"}));
        assert_eq!(unstated(&hard, &pod).as_deref(), Some("must specify limits.cpu for: b; requests.memory for: a,b"));
    }

    #[test]
    fn scopes_choose_pods() {
        let quota = |scopes: Value| json!({"spec": {"scopes": scopes}});
        let best_effort = json!({"spec": {"containers": [{"name": "c"}]}});
        assert!(in_scope(&quota(json!(["BestEffort", "NotTerminating"])), "Pod", &best_effort));
        assert!(!in_scope(&quota(json!(["NotBestEffort"])), "Pod", &best_effort));
        assert!(!in_scope(&quota(json!(["BestEffort"])), "Service", &json!({})));
        let high = json!({"spec": {"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}});
        assert!(in_scope(&high, "Pod", &json!({"spec": {"priorityClassName": "high"}})));
        assert!(!in_scope(&high, "Pod", &best_effort));
    }
}
