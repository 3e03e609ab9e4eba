//! Rules of what a pod asks of the scheduler: selectors, affinity, spread, tolerations.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::faults::{Faults, get, items, text};
use super::metadata;
use crate::meta::names;

pub(super) fn check(faults: &mut Faults, spec: &Value, path: &str) {
    metadata::labels(faults, spec, path, "nodeSelector");
    for (i, toleration) in items(spec, "tolerations").iter().enumerate() {
        check_toleration(faults, toleration, &format!("{path}.tolerations[{i}]"));
    }
    let mut seen = HashSet::new();
    for (i, constraint) in items(spec, "topologySpreadConstraints").iter().enumerate() {
        let at = format!("{path}.topologySpreadConstraints[{i}]");
        check_spread(faults, constraint, &at);
        let pair = (
            text(constraint, "topologyKey").unwrap_or_default(),
            text(constraint, "whenUnsatisfiable").unwrap_or_default(),
        );
        if !seen.insert(pair) {
            faults.duplicate(
                format!("{at}.{{topologyKey, whenUnsatisfiable}}"),
                &json!(format!("{{{}, {}}}", pair.0, pair.1)),
            );
        }
    }
    if let Some(affinity) = get(spec, "affinity") {
        check_affinity(faults, affinity, &format!("{path}.affinity"));
    }
}

fn check_toleration(faults: &mut Faults, toleration: &Value, path: &str) {
    match text(toleration, "key") {
        Some(key) => faults.named(&format!("{path}.key"), key, names::check_qualified_name(key)),
        None if text(toleration, "operator") != Some("Exists") => {
            let rule = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            faults.invalid(format!("{path}.operator"), &toleration["operator"], rule);
        }
        None => {}
    }
    let seconds = get(toleration, "tolerationSeconds");
    if seconds.is_some() && text(toleration, "effect") != Some("NoExecute") {
        let rule = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        faults.invalid(format!("{path}.effect"), &toleration["effect"], rule);
    }
    if text(toleration, "operator") == Some("Exists") && text(toleration, "value").is_some() {
        faults.invalid(
            format!("{path}.operator"),
            &toleration["value"],
            "value must be empty when `operator` is 'Exists'",
        );
    }
    faults.one_of(toleration, path, "operator", &["Equal", "Exists", "Gt", "Lt"]);
    faults.one_of(toleration, path, "effect", &["NoExecute", "NoSchedule", "PreferNoSchedule"]);
}

fn check_spread(faults: &mut Faults, constraint: &Value, path: &str) {
    for field in ["maxSkew", "minDomains"] {
        if let Some(number) = get(constraint, field).filter(|number| number.as_i64().is_some_and(|n| n <= 0)) {
            faults.invalid(format!("{path}.{field}"), number, "must be greater than 0");
        }
    }
    match text(constraint, "topologyKey") {
        Some(key) => faults.named(&format!("{path}.topologyKey"), key, names::check_qualified_name(key)),
        None => faults.required(format!("{path}.topologyKey"), "can not be empty"),
    }
    faults.one_of(constraint, path, "whenUnsatisfiable", &["DoNotSchedule", "ScheduleAnyway"]);
    faults.one_of(constraint, path, "nodeAffinityPolicy", &["Honor", "Ignore"]);
    faults.one_of(constraint, path, "nodeTaintsPolicy", &["Honor", "Ignore"]);
    if get(constraint, "minDomains").is_some() && text(constraint, "whenUnsatisfiable") == Some("ScheduleAnyway") {
        let rule = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway";
        faults.invalid(format!("{path}.minDomains"), &constraint["minDomains"], rule);
    }
    if let Some(selector) = get(constraint, "labelSelector") {
        metadata::selector(faults, selector, &format!("{path}.labelSelector"));
    }
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn check_affinity(faults: &mut Faults, affinity: &Value, path: &str) {
    if let Some(node) = get(affinity, "nodeAffinity") {
        let at = format!("{path}.nodeAffinity");
        if let Some(required) = get(node, REQUIRED) {
            let terms = items(required, "nodeSelectorTerms");
            if terms.is_empty() {
                let rule = "must have at least one node selector term";
                faults.required(format!("{at}.{REQUIRED}.nodeSelectorTerms"), rule);
            }
            for (i, term) in terms.iter().enumerate() {
                check_node_term(faults, term, &format!("{at}.{REQUIRED}.nodeSelectorTerms[{i}]"));
            }
        }
        for (i, preferred) in items(node, PREFERRED).iter().enumerate() {
            let at = format!("{at}.{PREFERRED}[{i}]");
            faults.between(preferred, &at, "weight", (1, 100));
            check_node_term(faults, &preferred["preference"], &format!("{at}.preference"));
        }
    }
    for field in ["podAffinity", "podAntiAffinity"] {
        let Some(pod) = get(affinity, field) else { continue };
        for (i, term) in items(pod, REQUIRED).iter().enumerate() {
            check_pod_term(faults, term, &format!("{path}.{field}.{REQUIRED}[{i}]"));
        }
        for (i, preferred) in items(pod, PREFERRED).iter().enumerate() {
            let at = format!("{path}.{field}.{PREFERRED}[{i}]");
            faults.between(preferred, &at, "weight", (1, 100));
            check_pod_term(faults, &preferred["podAffinityTerm"], &format!("{at}.podAffinityTerm"));
        }
    }
}

/// One node selector term, also of persistent volumes.
pub(super) fn check_node_term(faults: &mut Faults, term: &Value, path: &str) {
    for field in ["matchExpressions", "matchFields"] {
        for (i, expression) in items(term, field).iter().enumerate() {
            let at = format!("{path}.{field}[{i}]");
            let count = items(expression, "values").len();
            match expression["operator"].as_str().unwrap_or_default() {
                "In" | "NotIn" if count == 0 => {
                    faults.required(format!("{at}.values"), "must be specified when `operator` is 'In' or 'NotIn'");
                }
                "Exists" | "DoesNotExist" if count > 0 => {
                    let rule = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    faults.forbidden(format!("{at}.values"), rule);
                }
                "Gt" | "Lt" if count != 1 => {
                    let rule = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                    faults.required(format!("{at}.values"), rule);
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
                _ => faults.invalid(format!("{at}.operator"), &expression["operator"], "not a valid selector operator"),
            }
            let key = expression["key"].as_str().unwrap_or_default();
            faults.named(&format!("{at}.key"), key, names::check_qualified_name(key));
        }
    }
}

fn check_pod_term(faults: &mut Faults, term: &Value, path: &str) {
    match text(term, "topologyKey") {
        Some(key) => faults.named(&format!("{path}.topologyKey"), key, names::check_qualified_name(key)),
        None => faults.required(format!("{path}.topologyKey"), "can not be empty"),
    }
    for field in ["labelSelector", "namespaceSelector"] {
        if let Some(selector) = get(term, field) {
            metadata::selector(faults, selector, &format!("{path}.{field}"));
        }
    }
}
