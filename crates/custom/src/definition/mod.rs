//! A CustomResourceDefinition object: its defaults, its validation, its status.
//!
//! Flow of a write: [`apply_defaults`] → [`validate`] (with the stored one, in an update) → [`set_status`] with the names
//! that other definitions hold.
//!
//! Source: <https://kubernetes.io/docs/reference/kubernetes-api/extend-resources/custom-resource-definition-v1/>.

mod columns;
mod names;
mod rules;
mod status;
mod structural;
mod validate;

use std::cmp::Ordering;

use mainstay_model::meta::{list_at, str_at};
use serde_json::{Value, json};

pub use status::{CLEANUP_FINALIZER, Names, is_established, set_condition, set_status};
pub use validate::validate;

/// Fills in what a definition may leave out.
pub fn apply_defaults(definition: &mut Value) {
    let spec = &mut definition["spec"];
    if !spec.is_object() {
        return;
    }
    let kind = spec["names"]["kind"].as_str().unwrap_or_default().to_owned();
    if spec["names"].is_object() && !kind.is_empty() {
        for (field, default) in [("singular", kind.to_lowercase()), ("listKind", format!("{kind}List"))] {
            if spec["names"][field].as_str().is_none_or(str::is_empty) {
                spec["names"][field] = json!(default);
            }
        }
    }
    if spec["conversion"].is_null() {
        spec["conversion"] = json!({"strategy": "None"});
    }
    if let Some(service) = spec.pointer_mut("/conversion/webhook/clientConfig/service")
        && service.is_object()
        && service["port"].is_null()
    {
        service["port"] = json!(443);
    }
    if spec["preserveUnknownFields"] == false
        && let Some(map) = spec.as_object_mut()
    {
        map.remove("preserveUnknownFields");
    }
}

/// The versions of a definition.
pub fn versions(definition: &Value) -> &[Value] {
    list_at(definition, "spec.versions")
}

/// The name of the version objects are stored in.
pub fn storage_version(definition: &Value) -> Option<&str> {
    versions(definition).iter().find(|version| version["storage"] == true)?["name"].as_str()
}

/// Where the schema of a version stands in messages: kube-apiserver speaks of one schema when all versions have the same.
fn schema_path(definition: &Value, index: usize) -> String {
    format!("{}.openAPIV3Schema", shared_path(definition, index, "schema", "validation"))
}

/// The path of a part of a version, or of the whole `spec` when all versions have the same.
fn shared_path(definition: &Value, index: usize, field: &str, shared: &str) -> String {
    let versions = versions(definition);
    let same = versions.iter().all(|version| version[field] == versions[0][field]);
    if same { format!("spec.{shared}") } else { format!("spec.versions[{index}].{field}") }
}

/// Group and plural, for example `widgets.example.com`.
pub fn full_name(definition: &Value) -> String {
    let text = |path: &str| str_at(definition, path).unwrap_or_default();
    format!("{}.{}", text("spec.names.plural"), text("spec.group"))
}

/// The order of versions: `v2`, `v1`, `v1beta2`, `v1beta1`, `v1alpha1`, then all others by name.
///
/// Source: <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definition-versioning/#version-priority>.
pub fn by_priority(a: &str, b: &str) -> Ordering {
    match (rank(a), rank(b)) {
        (Some(a), Some(b)) => b.cmp(&a),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

/// Stability (2 general, 1 beta, 0 alpha), major and minor number of a version that follows the rule.
fn rank(version: &str) -> Option<(u8, u32, u32)> {
    let number = |text: &str| Some(text).filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?.parse().ok();
    let rest = version.strip_prefix('v')?;
    for (word, stability) in [("beta", 1), ("alpha", 0)] {
        if let Some((major, minor)) = rest.split_once(word) {
            return Some((stability, number(major)?, number(minor)?));
        }
    }
    Some((2, number(rest)?, 0))
}

#[cfg(test)]
mod tests;
