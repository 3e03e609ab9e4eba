//! LimitRange: what containers get that ask for nothing, and how much they may ask for.
//!
//! Source: <https://kubernetes.io/docs/concepts/policy/limit-range/>, with the words of kube-apiserver.

use serde_json::{Value, json};

use crate::meta;
use crate::quantity::Quantity;
use crate::workload::{Resources, pod_limits, pod_requests, resources};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// Gives a pod's containers the requests and limits that the ranges of its namespace say, where they have none, and notes
/// it in an annotation.
pub fn apply_defaults(ranges: &[&Value], pod: &mut Value) {
    let mut notes = Vec::new();
    for item in items(ranges, "Container") {
        for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
            for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
                for (field, defaults) in [("requests", "defaultRequest"), ("limits", "default")] {
                    let set = fill(container, field, &item[defaults]);
                    if !set.is_empty() {
                        let noun = field.trim_end_matches('s');
                        notes.push(format!("{} {noun} for {what} {}", set.join(", "), text(container, "name")));
                    }
                }
            }
        }
    }
    if !notes.is_empty() {
        meta::set_annotation(pod, ANNOTATION, &format!("LimitRanger plugin set: {}", notes.join("; ")));
    }
}

/// Adds the amounts that are missing; answers their names.
fn fill(container: &mut Value, field: &str, defaults: &Value) -> Vec<String> {
    let mut set = Vec::new();
    for (name, amount) in defaults.as_object().into_iter().flatten() {
        if container["resources"][field][name].is_null() {
            container["resources"][field][name] = amount.clone();
            set.push(name.clone());
        }
    }
    set
}

/// What of a Pod or PersistentVolumeClaim is outside the ranges, in sentences.
pub fn violations(ranges: &[&Value], kind: &str, object: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    if kind == "PersistentVolumeClaim" {
        let requests = resources(object.pointer("/spec/resources/requests"));
        for item in items(ranges, kind) {
            for (name, bound) in resources(item.get("min")) {
                faults.extend(below(kind, &name, bound, requests.get(&name), None));
            }
            for (name, bound) in resources(item.get("max")) {
                faults.extend(request_above(kind, &name, bound, requests.get(&name)));
            }
        }
        return faults;
    }
    for item in items(ranges, "Container") {
        for list in ["containers", "initContainers"] {
            for container in meta::list_at(&object["spec"], list) {
                let of = |field: &str| resources(container.pointer(&format!("/resources/{field}")));
                check(&mut faults, "Container", item, &of("requests"), &of("limits"));
            }
        }
    }
    for item in items(ranges, "Pod") {
        check(&mut faults, "Pod", item, &pod_requests(object), &pod_limits(object));
    }
    faults
}

/// The completed limits of a LimitRange itself: a maximum is the default limit, that the default request, or a minimum is.
pub fn complete(range: &mut Value) {
    for item in range["spec"]["limits"].as_array_mut().into_iter().flatten() {
        if item["type"] != "Container" {
            continue;
        }
        for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
            for (name, amount) in item[from].as_object().cloned().unwrap_or_default() {
                if item[to][&name].is_null() {
                    item[to][&name] = amount;
                }
            }
        }
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn items<'a>(ranges: &[&'a Value], kind: &str) -> Vec<&'a Value> {
    let all = ranges.iter().flat_map(|range| meta::list_at(range, "spec.limits"));
    all.filter(|item| item["type"] == json!(kind)).collect()
}

fn check(faults: &mut Vec<String>, kind: &str, item: &Value, requests: &Resources, limits: &Resources) {
    for (name, bound) in resources(item.get("min")) {
        faults.extend(below(kind, &name, bound, requests.get(&name), limits.get(&name)));
    }
    for (name, bound) in resources(item.get("max")) {
        faults.extend(above(kind, &name, bound, requests.get(&name), limits.get(&name)));
    }
    for (name, bound) in resources(item.get("maxLimitRequestRatio")) {
        faults.extend(ratio(kind, &name, bound, requests.get(&name), limits.get(&name)));
    }
}

fn below(
    kind: &str,
    name: &str,
    bound: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let say = |how: String| Some(format!("minimum {name} usage per {kind} is {bound}{how}"));
    match (request, limit) {
        (None, _) => say(".  No request is specified".to_owned()),
        (Some(request), _) if *request < bound => say(format!(", but request is {request}")),
        (_, Some(limit)) if *limit < bound => say(format!(", but limit is {limit}")),
        _ => None,
    }
}

fn above(
    kind: &str,
    name: &str,
    bound: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let say = |how: String| Some(format!("maximum {name} usage per {kind} is {bound}{how}"));
    match (limit, request) {
        (None, _) => say(".  No limit is specified".to_owned()),
        (Some(limit), _) if *limit > bound => say(format!(", but limit is {limit}")),
        (_, Some(request)) if *request > bound => say(format!(", but request is {request}")),
        _ => None,
    }
}

fn request_above(kind: &str, name: &str, bound: Quantity, request: Option<&Quantity>) -> Option<String> {
    let say = |how: String| Some(format!("maximum {name} usage per {kind} is {bound}{how}"));
    match request {
        None => say(".  No request is specified".to_owned()),
        Some(request) if *request > bound => say(format!(", but request is {request}")),
        _ => None,
    }
}

fn ratio(
    kind: &str,
    name: &str,
    bound: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let say = |how: String| Some(format!("{name} max limit to request ratio per {kind} is {bound}, but {how}"));
    let given = |amount: Option<&Quantity>| amount.copied().filter(|amount| !amount.is_zero());
    match (given(request), given(limit)) {
        (None, _) => say("no request is specified or request is 0".to_owned()),
        (_, None) => say("no limit is specified or limit is 0".to_owned()),
        (Some(request), Some(limit)) => {
            let ratio = limit.as_f64() / request.as_f64();
            (ratio > bound.as_f64()).then(|| say(format!("provided ratio is {ratio:.6}"))).flatten()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::needless_pass_by_value)] // `json!` makes values
    use super::*;

    fn range(limits: Value) -> Value {
        json!({"spec": {"limits": [limits]}})
    }

    fn pod(resources: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    #[test]
    fn defaults_are_filled_in_and_noted() {
        let mut range = range(json!({"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}));
        complete(&mut range);
        assert_eq!(range["spec"]["limits"][0]["defaultRequest"], json!({"cpu": "2", "memory": "1Mi"}));
        let mut pod = pod(json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}));
        apply_defaults(&[&range], &mut pod);
        assert_eq!(pod["spec"]["containers"][0]["resources"]["requests"], json!({"cpu": "1", "memory": "1Mi"}));
        assert_eq!(meta::annotation(&pod, ANNOTATION), Some("LimitRanger plugin set: memory request for container c"));
    }

    #[test]
    fn what_is_outside_is_told() {
        let range = range(json!({"type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": "1", "memory": "1Gi"},
            "maxLimitRequestRatio": {"cpu": "4"}}));
        let of = |resources: Value| violations(&[&range], "Pod", &pod(resources));
        assert_eq!(
            of(json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "500m", "memory": "2Gi"}})),
            [
                "minimum cpu usage per Container is 100m, but request is 50m",
                "maximum memory usage per Container is 1Gi, but limit is 2Gi",
                "cpu max limit to request ratio per Container is 4, but provided ratio is 10.000000"
            ]
        );
        assert_eq!(of(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "1", "memory": "1Gi"}})), [""; 0]);
        assert!(of(json!({})).contains(&"maximum cpu usage per Container is 1.  No limit is specified".to_owned()));
    }

    #[test]
    fn claims_have_ranges_too() {
        let range =
            range(json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}}));
        let claim = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
        let of = |size: &str| violations(&[&range], "PersistentVolumeClaim", &claim(size));
        assert_eq!(of("3Gi"), ["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"]);
        assert_eq!((of("1Mi").len(), of("2Gi").len()), (1, 0));
    }
}
