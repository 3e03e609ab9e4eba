//! Names in a definition: their syntax.

use mainstay_model::meta::names::{check_label_1035, check_subdomain};
use serde_json::{Value, json};

use crate::path::{Faults, Path};

/// The annotation with which the owners of `*.k8s.io` say that a kind may live there.
const APPROVAL: &str = "api-approved.kubernetes.io";
const APPROVAL_RULE: &str = "https://github.com/kubernetes/enhancements/pull/1111";

/// `spec.names` or `status.acceptedNames`.
pub(super) fn check(names: &Value, path: &Path<'_>, faults: &mut Faults) {
    let text = |field: &str| names[field].as_str().unwrap_or_default();
    for field in ["plural", "singular"] {
        let value = text(field);
        if value.is_empty() {
            if field == "plural" {
                faults.required(path.field(field), "");
            }
            continue;
        }
        labels(value, &path.field(field), faults);
    }
    for field in ["kind", "listKind"] {
        let value = text(field);
        if value.is_empty() {
            faults.required(path.field(field), "");
            continue;
        }
        let rules = check_label_1035(&value.to_lowercase());
        if !rules.is_empty() {
            let detail = format!("may have mixed case, but should otherwise match: {}", rules.join(","));
            faults.invalid(path.field(field), &json!(value), detail);
        }
    }
    if !text("kind").is_empty() && text("kind") == text("listKind") {
        faults.invalid(path.field("listKind"), &json!(text("listKind")), "kind and listKind may not be the same");
    }
    for field in ["shortNames", "categories"] {
        let list = path.field(field);
        for (i, name) in names[field].as_array().into_iter().flatten().enumerate() {
            labels(name.as_str().unwrap_or_default(), &list.index(i), faults);
        }
    }
}

fn labels(value: &str, path: &Path<'_>, faults: &mut Faults) {
    for rule in check_label_1035(value) {
        faults.invalid(path, &json!(value), rule);
    }
}

/// `spec.group`, and the name of the object, which follows from it.
pub(super) fn check_group(definition: &Value, faults: &mut Faults) {
    let group = definition["spec"]["group"].as_str().unwrap_or_default();
    if group.is_empty() {
        faults.required("spec.group", "");
    } else {
        for rule in check_subdomain(group) {
            faults.invalid("spec.group", &json!(group), rule);
        }
        if !group.contains('.') {
            faults.invalid("spec.group", &json!(group), "should be a domain with at least one dot");
        }
    }
    let name = definition["metadata"]["name"].as_str().unwrap_or_default();
    if name != super::full_name(definition) {
        faults.invalid("metadata.name", &json!(name), "must be spec.names.plural+\".\"+spec.group");
    }
}

/// Groups of the Kubernetes project need an approval.
pub(super) fn check_approval(definition: &Value, faults: &mut Faults) {
    if !is_protected(definition) {
        return;
    }
    let path = format!("metadata.annotations[{APPROVAL}]");
    let approval = definition["metadata"]["annotations"][APPROVAL].as_str();
    match approval {
        None | Some("") => {
            let detail = format!("protected groups must have approval annotation {APPROVAL:?}, see {APPROVAL_RULE}");
            faults.required(path, detail);
        }
        Some(text) if text.starts_with("unapproved") || crate::cel::Url::parse(text).is_some() => {}
        Some(text) => {
            let detail = format!(
                "protected groups must have approval annotation {APPROVAL:?} with either a URL or a reason starting with \"unapproved\", see {APPROVAL_RULE}"
            );
            faults.invalid(path, &json!(text), detail);
        }
    }
}

fn is_protected(definition: &Value) -> bool {
    let group = definition["spec"]["group"].as_str().unwrap_or_default();
    ["k8s.io", "kubernetes.io"].iter().any(|domain| group == *domain || group.ends_with(&format!(".{domain}")))
}

/// The condition that says how the approval stands; none for groups that need none.
pub(super) fn approval_condition(definition: &Value) -> Option<(bool, &'static str, String)> {
    let approval = definition["metadata"]["annotations"][APPROVAL].as_str().unwrap_or_default();
    if !is_protected(definition) {
        return None;
    }
    Some(if approval.starts_with("unapproved") {
        (false, "UnapprovedAnnotation", format!("not approved: {approval:?}"))
    } else if approval.is_empty() {
        let text = format!("protected groups must have approval annotation {APPROVAL:?}, see {APPROVAL_RULE}");
        (false, "MissingAnnotation", text)
    } else {
        (true, "ApprovedAnnotation", format!("approved in {approval}"))
    })
}
