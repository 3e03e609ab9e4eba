//! Rules of roles and bindings.

use serde_json::{Value, json};

use super::faults::{Faults, get, items, text};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn role(faults: &mut Faults, object: &Value) {
    for (i, rule) in items(object, "rules").iter().enumerate() {
        let path = format!("rules[{i}]");
        if items(rule, "verbs").is_empty() {
            faults.required(format!("{path}.verbs"), "verbs must contain at least one value");
        }
        let resources = !items(rule, "resources").is_empty();
        if !items(rule, "nonResourceURLs").is_empty() {
            if resources || !items(rule, "apiGroups").is_empty() || !items(rule, "resourceNames").is_empty() {
                let text = "rules cannot apply to both regular resources and non-resource URLs";
                faults.invalid(format!("{path}.nonResourceURLs"), &rule["nonResourceURLs"], text);
            }
            continue;
        }
        if items(rule, "apiGroups").is_empty() {
            faults.required(format!("{path}.apiGroups"), "resource rules must supply at least one api group");
        }
        if !resources {
            faults.required(format!("{path}.resources"), "resource rules must supply at least one resource");
        }
    }
}

pub(super) fn binding(faults: &mut Faults, kind: &str, object: &Value) {
    if let Some(role) = get(object, "roleRef") {
        if text(role, "apiGroup") != Some(GROUP) {
            faults.not_supported("roleRef.apiGroup", &role["apiGroup"], &[GROUP]);
        }
        let allowed: &[&str] = if kind == "RoleBinding" { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
        faults.one_of(role, "roleRef", "kind", allowed);
        if text(role, "name").is_none() {
            faults.required("roleRef.name", "");
        }
    }
    for (i, subject) in items(object, "subjects").iter().enumerate() {
        let path = format!("subjects[{i}]");
        if text(subject, "name").is_none() {
            faults.required(format!("{path}.name"), "");
        }
        faults.one_of(subject, &path, "kind", &["ServiceAccount", "User", "Group"]);
        let service_account = text(subject, "kind") == Some("ServiceAccount");
        // The subjects of a RoleBinding live in its own namespace unless they say otherwise.
        if service_account && kind == "ClusterRoleBinding" && text(subject, "namespace").is_none() {
            faults.required(format!("{path}.namespace"), "");
        }
        let group = if service_account { "" } else { GROUP };
        if text(subject, "apiGroup").unwrap_or_default() != group {
            faults.not_supported(format!("{path}.apiGroup"), &json!(subject["apiGroup"]), &[group]);
        }
    }
}
