//! Which writes a policy or a binding is about: resource rules, exclusions, selectors.
//!
//! Source: <https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/validating-admission-policy-v1/>, MatchResources.

use mainstay_model::resource::Resource;
use mainstay_model::selector::LabelSelector;
use serde_json::Value;

/// A write as rules see it.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub operation: &'a str,
    /// What is written.
    pub resource: &'a Resource,
    /// For example `status`; empty for the object itself.
    pub subresource: &'a str,
    /// The object's name; may be empty.
    pub name: &'a str,
    /// The namespace object; null for cluster-scoped kinds.
    pub namespace: &'a Value,
    /// The new object; null in a deletion.
    pub object: &'a Value,
    /// The stored object; null in a creation.
    pub old: &'a Value,
}

/// Whether `matchConstraints` or `matchResources` choose a write. `null` chooses every write.
pub fn matches(constraints: &Value, write: &Write<'_>) -> bool {
    if constraints.is_null() {
        return true;
    }
    let any = |field: &str| constraints[field].as_array().into_iter().flatten().any(|rule| rule_matches(rule, write));
    let has_rules = constraints["resourceRules"].as_array().is_some_and(|rules| !rules.is_empty());
    (!has_rules || any("resourceRules")) && !any("excludeResourceRules") && selected(constraints, write)
}

fn selected(constraints: &Value, write: &Write<'_>) -> bool {
    let by_labels = |selector: &Value, object: &Value| {
        LabelSelector::from_object(selector).is_ok_and(|selector| selector.matches_object(object))
    };
    let namespaces = &constraints["namespaceSelector"];
    // Cluster-scoped objects have no namespace to be chosen by; a namespace is chosen by its own labels.
    let namespace = if write.resource.kind == "Namespace" && write.resource.group.is_empty() {
        if write.object.is_null() { write.old } else { write.object }
    } else {
        write.namespace
    };
    let in_namespace = namespaces.is_null() || namespace.is_null() || by_labels(namespaces, namespace);
    let objects = &constraints["objectSelector"];
    let given = |object: &Value| !object.is_null() && by_labels(objects, object);
    in_namespace && (is_everything(objects) || given(write.object) || given(write.old))
}

fn is_everything(selector: &Value) -> bool {
    selector.as_object().is_none_or(serde_json::Map::is_empty)
}

fn rule_matches(rule: &Value, write: &Write<'_>) -> bool {
    let has = |field: &str, wanted: &str| {
        rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).any(|one| one == "*" || one == wanted)
    };
    let scope_fits = match rule["scope"].as_str() {
        Some("Cluster") => !write.resource.namespaced,
        Some("Namespaced") => write.resource.namespaced,
        _ => true,
    };
    let names = rule["resourceNames"].as_array().map_or(&[][..], Vec::as_slice);
    scope_fits
        && has("operations", write.operation)
        && has("apiGroups", &write.resource.group)
        // matchPolicy: Equivalent makes versions of one kind the same.
        && (has("apiVersions", &write.resource.version) || !write.resource.group.is_empty())
        && rule["resources"].as_array().into_iter().flatten().filter_map(Value::as_str).any(|one| is_resource(one, write))
        && (names.is_empty() || names.iter().any(|name| name == write.name))
}

/// `pods`, `pods/status`, `*`, `*/*`, `pods/*`, `*/scale`.
fn is_resource(pattern: &str, write: &Write<'_>) -> bool {
    let (resource, subresource) = pattern.split_once('/').unwrap_or((pattern, ""));
    (resource == "*" || resource == write.resource.plural)
        && (subresource == write.subresource || (subresource == "*" && pattern.contains('/')))
}
