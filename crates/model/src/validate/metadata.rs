//! Rules of `metadata`, of objects and of pod templates.

use serde_json::{Value, json};

use super::IMMUTABLE;
use super::faults::{Faults, get, items, text};
use crate::meta::{self, names};
use crate::resource;

/// Largest sum of the sizes of all annotations, in bytes.
const ANNOTATIONS_MAX: usize = 256 * 1024;

type NameCheck = fn(&str) -> Vec<String>;

/// The rule for names of a kind.
fn name_rule(kind: &str) -> NameCheck {
    match kind {
        "Namespace" => names::check_label,
        "Service" => names::check_label_1035,
        "Role" | "ClusterRole" | "RoleBinding" | "ClusterRoleBinding" => names::check_path_segment,
        _ => names::check_subdomain,
    }
}

/// The metadata of a stored object.
pub(super) fn check(faults: &mut Faults, kind: &str, object: &Value) {
    let metadata = &object["metadata"];
    let rule = name_rule(kind);
    if let Some(prefix) = text(metadata, "generateName") {
        // The suffix makes a trailing dash or dot good.
        faults.named("metadata.generateName", prefix, rule(&format!("{prefix}x")));
    }
    match text(metadata, "name") {
        Some(name) => {
            faults.named("metadata.name", name, rule(name));
            if kind == "CronJob" && name.len() > 52 {
                faults.invalid("metadata.name", &json!(name), "must be no more than 52 characters");
            }
        }
        None if text(metadata, "generateName").is_none() => {
            faults.required("metadata.name", "name or generateName is required");
        }
        None => {}
    }
    if let Some(row) = resource::BUILT_IN.iter().find(|row| row.kind == kind) {
        match text(metadata, "namespace") {
            None if row.namespaced => faults.required("metadata.namespace", ""),
            Some(namespace) if row.namespaced => {
                faults.named("metadata.namespace", namespace, names::check_label(namespace));
            }
            Some(_) => faults.forbidden("metadata.namespace", "not allowed on this type"),
            None => {}
        }
    }
    faults.not_negative(metadata, "metadata", "generation");
    labels_and_annotations(faults, metadata, "metadata");
    owners(faults, metadata);
    for (i, finalizer) in items(metadata, "finalizers").iter().filter_map(Value::as_str).enumerate() {
        faults.named(&format!("metadata.finalizers[{i}]"), finalizer, names::check_qualified_name(finalizer));
    }
}

/// Labels and annotations, also of templates.
pub(super) fn labels_and_annotations(faults: &mut Faults, metadata: &Value, path: &str) {
    labels(faults, metadata, path, "labels");
    let mut size = 0;
    for (key, value) in get(metadata, "annotations").and_then(Value::as_object).into_iter().flatten() {
        faults.named(&format!("{path}.annotations"), key, names::check_qualified_name(&key.to_lowercase()));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX {
        faults.too_long(format!("{path}.annotations"), ANNOTATIONS_MAX);
    }
}

/// A map of labels, for example `nodeSelector`.
pub(super) fn labels(faults: &mut Faults, object: &Value, path: &str, field: &str) {
    let path = format!("{path}.{field}");
    for (key, value) in get(object, field).and_then(Value::as_object).into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        faults.named(&path, key, names::check_qualified_name(key));
        faults.named(&path, value, names::check_label_value(value));
    }
}

/// A LabelSelector object.
pub(super) fn selector(faults: &mut Faults, selector: &Value, path: &str) {
    labels(faults, selector, path, "matchLabels");
    for (i, expression) in items(selector, "matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let values = items(expression, "values");
        match expression["operator"].as_str().unwrap_or_default() {
            "In" | "NotIn" if values.is_empty() => {
                faults.required(format!("{path}.values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let rule = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                faults.forbidden(format!("{path}.values"), rule);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => faults.invalid(format!("{path}.operator"), &expression["operator"], "not a valid selector operator"),
        }
        let key = expression["key"].as_str().unwrap_or_default();
        faults.named(&format!("{path}.key"), key, names::check_qualified_name(key));
        for (j, value) in values.iter().filter_map(Value::as_str).enumerate() {
            faults.named(&format!("{path}.values[{j}]"), value, names::check_label_value(value));
        }
    }
}

fn owners(faults: &mut Faults, metadata: &Value) {
    let mut controllers = 0;
    for (i, owner) in items(metadata, "ownerReferences").iter().enumerate() {
        let path = format!("metadata.ownerReferences[{i}]");
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, field).is_none() {
                faults.invalid(format!("{path}.{field}"), &json!(""), format!("{field} must not be empty"));
            }
        }
        controllers += usize::from(owner["controller"] == true);
    }
    if controllers > 1 {
        let rule = "Only one reference can have Controller set to true";
        faults.invalid("metadata.ownerReferences", &json!(controllers), rule);
    }
}

/// What may not change in metadata.
pub(super) fn check_update(faults: &mut Faults, old: &Value, new: &Value) {
    for field in ["metadata.name", "metadata.namespace", "metadata.uid"] {
        faults.unchanged(old, new, field, IMMUTABLE);
    }
    if meta::generation(new) < meta::generation(old) {
        faults.invalid("metadata.generation", &new["metadata"]["generation"], "must not be decremented");
    }
    if meta::is_being_deleted(old) {
        let before = meta::finalizers(old);
        let added: Vec<_> = meta::finalizers(new).into_iter().filter(|finalizer| !before.contains(finalizer)).collect();
        if !added.is_empty() {
            let rule = "no new finalizers can be added if the object is being deleted, found new finalizers";
            faults.forbidden("metadata.finalizers", format!("{rule} {added:?}"));
        }
    }
}
