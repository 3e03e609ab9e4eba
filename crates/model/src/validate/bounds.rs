//! Rules of what bounds others: priority classes, ranges of limits, quotas, runtime classes.
//!
//! Source: <https://kubernetes.io/docs/concepts/policy/limit-range/>, <https://kubernetes.io/docs/concepts/policy/resource-quotas/>,
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption/>.

use serde_json::{Value, json};

use super::IMMUTABLE;
use super::faults::{Faults, get, items, text};
use crate::meta::{self, names};
use crate::quantity::Quantity;

/// The highest priority that is not kept for the cluster's own classes.
const PRIORITY_MAX: i64 = 1_000_000_000;
/// The classes of the system, with the priorities they must have.
const SYSTEM_CLASSES: &[(&str, i64)] =
    &[("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

pub(super) fn priority_class(faults: &mut Faults, class: &Value) {
    let (name, value) = (meta::name(class), class["value"].as_i64().unwrap_or_default());
    faults.one_of(class, "", "preemptionPolicy", &["Never", "PreemptLowerPriority"]);
    if SYSTEM_CLASSES.contains(&(name, value)) && class["globalDefault"] != true {
        return;
    }
    if name.starts_with("system-") {
        let rule = "priority class names with 'system-' prefix are reserved for system use only";
        faults.forbidden("metadata.name", rule);
    }
    if value > PRIORITY_MAX {
        let rule = format!("maximum allowed value of a user defined priority is {PRIORITY_MAX}");
        faults.forbidden("value", rule);
    }
}

pub(super) fn priority_class_update(faults: &mut Faults, old: &Value, new: &Value) {
    if old["value"] != new["value"] {
        faults.forbidden("value", "may not be changed in an update.");
    }
    faults.unchanged(old, new, "preemptionPolicy", IMMUTABLE);
}

/// In this order each amount may not be above those that follow; with how messages call them.
const ORDER: &[(&str, &str)] =
    &[("min", "min"), ("defaultRequest", "default request"), ("default", "default"), ("max", "max")];

pub(super) fn limit_range(faults: &mut Faults, range: &Value) {
    let limits = items(&range["spec"], "limits");
    for (i, limit) in limits.iter().enumerate() {
        let path = format!("spec.limits[{i}]");
        let limited = text(limit, "type").unwrap_or_default();
        if limited.is_empty() {
            faults.required(format!("{path}.type"), "");
        } else if !matches!(limited, "Container" | "PersistentVolumeClaim" | "Pod") && !limited.contains('/') {
            let rule = "must be a standard limit type or fully qualified";
            faults.invalid(format!("{path}.type"), &json!(limited), rule);
        }
        if limits[..i].iter().any(|other| other["type"] == limit["type"]) {
            faults.duplicate(format!("{path}.type"), &limit["type"]);
        }
        let given = |field: &str| limit[field].as_object().is_some_and(|amounts| !amounts.is_empty());
        for field in ["default", "defaultRequest"].into_iter().filter(|field| limited == "Pod" && given(field)) {
            faults.forbidden(format!("{path}.{field}"), "may not be specified when `type` is 'Pod'");
        }
        let bound = |field: &str| limit[field].get("storage").is_some();
        if limited == "PersistentVolumeClaim" && !bound("min") && !bound("max") {
            let rule = "either minimum or maximum storage value is required, but neither was provided";
            faults.required(&path, rule);
        }
        amounts_in_order(faults, limit, &path);
        ratios(faults, limit, &path);
    }
}

fn amount(limit: &Value, field: &str, name: &str) -> Option<Quantity> {
    limit[field].get(name).and_then(|value| Quantity::from_value(value).ok())
}

fn amounts_in_order(faults: &mut Faults, limit: &Value, path: &str) {
    for (place, (lower, low_word)) in ORDER.iter().enumerate() {
        for (name, shown) in limit[*lower].as_object().into_iter().flatten() {
            let Some(low) = amount(limit, lower, name) else { continue };
            let above = |(upper, _): &&(&str, &str)| amount(limit, upper, name).is_some_and(|high| low > high);
            for (upper, high_word) in ORDER[place + 1..].iter().filter(above) {
                let high_word =
                    if *lower == "defaultRequest" && *upper == "default" { "default limit" } else { high_word };
                let (low, high) = (plain(shown), plain(&limit[*upper][name.as_str()]));
                let rule = format!("{low_word} value {low} is greater than {high_word} value {high}");
                // A minimum is the fault of what lies below it, unless that is the maximum.
                let blamed = if *lower == "min" && *upper != "max" { upper } else { lower };
                faults.invalid(format!("{path}.{blamed}[{name}]"), &limit[*blamed][name.as_str()], rule);
            }
        }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn ratios(faults: &mut Faults, limit: &Value, path: &str) {
    for (name, shown) in limit["maxLimitRequestRatio"].as_object().into_iter().flatten() {
        let at = format!("{path}.maxLimitRequestRatio[{name}]");
        let Ok(ratio) = Quantity::from_value(shown) else { continue };
        if ratio.as_f64() < 1.0 {
            faults.invalid(&at, shown, format!("ratio {} is less than 1", plain(shown)));
        }
        if let (Some(low), Some(high)) = (amount(limit, "min", name), amount(limit, "max", name))
            && !low.is_zero()
            && ratio.as_f64() > high.as_f64() / low.as_f64()
        {
            let most = high.as_f64() / low.as_f64();
            faults.invalid(&at, shown, format!("ratio {} is greater than max/min = {most:.6}", plain(shown)));
        }
    }
}

/// Scopes, and the one that cannot go with it.
const SCOPES: &[(&str, &str)] = &[
    ("BestEffort", "NotBestEffort"),
    ("CrossNamespacePodAffinity", ""),
    ("NotBestEffort", "BestEffort"),
    ("NotTerminating", "Terminating"),
    ("PriorityClass", ""),
    ("Terminating", "NotTerminating"),
    ("VolumeAttributesClass", ""),
];

pub(super) fn resource_quota(faults: &mut Faults, quota: &Value) {
    let Some(spec) = get(quota, "spec") else { return };
    for (name, shown) in spec["hard"].as_object().into_iter().flatten() {
        let at = format!("spec.hard[{name}]");
        faults.named(&at, name, names::check_qualified_name(name));
        let Ok(amount) = Quantity::from_value(shown) else { continue };
        if amount.is_negative() {
            faults.invalid(&at, shown, "must be greater than or equal to 0");
        }
        let counted = name.starts_with("count/")
            || ["pods", "services", "secrets", "configmaps", "replicationcontrollers", "resourcequotas"]
                .contains(&name.as_str())
            || ["persistentvolumeclaims", "services.nodeports", "services.loadbalancers"].contains(&name.as_str());
        if counted && !amount.is_whole() {
            faults.invalid(&at, shown, "must be an integer");
        }
    }
    let scopes: Vec<&str> = items(spec, "scopes").iter().filter_map(Value::as_str).collect();
    for scope in &scopes {
        match SCOPES.iter().find(|(known, _)| known == scope) {
            None => faults.invalid("spec.scopes", &spec["scopes"], "unsupported scope"),
            Some((_, other)) if scopes.contains(other) && scope < other => {
                faults.invalid("spec.scopes", &spec["scopes"], "conflicting scopes");
            }
            Some(_) => {}
        }
    }
    for (i, expression) in items(&spec["scopeSelector"], "matchExpressions").iter().enumerate() {
        let path = format!("spec.scopeSelector.matchExpressions[{i}]");
        let scope = text(expression, "scopeName").unwrap_or_default();
        if !SCOPES.iter().any(|(known, _)| *known == scope) {
            faults.invalid(format!("{path}.scopeName"), &json!(scope), "unsupported scope");
        }
        let values = items(expression, "values");
        match text(expression, "operator").unwrap_or_default() {
            "In" | "NotIn" if values.is_empty() => {
                let rule = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                faults.required(format!("{path}.values"), rule);
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let rule = "must be no value when `operator` is 'Exists' or 'DoesNotExist' for scope selector";
                faults.invalid(format!("{path}.values"), &json!(values), rule);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => faults.invalid(format!("{path}.operator"), &json!(other), "not a valid selector operator"),
        }
    }
}

pub(super) fn resource_quota_update(faults: &mut Faults, old: &Value, new: &Value) {
    faults.unchanged(old, new, "spec.scopes", IMMUTABLE);
}

pub(super) fn runtime_class(faults: &mut Faults, class: &Value) {
    if let Some(handler) = text(class, "handler") {
        faults.named("handler", handler, names::check_label(handler));
    }
}
