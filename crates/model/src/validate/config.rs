//! Rules of ConfigMap, Secret, Lease and Node.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::IMMUTABLE;
use super::faults::{Faults, get, items, text};
use super::network::{CIDR, is_cidr};
use crate::meta::{self, names};
use crate::schema;

/// Largest sum of the sizes of all values, in bytes.
const DATA_MAX: usize = 1024 * 1024;

fn entries<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a str)> {
    let map = get(object, field).and_then(Value::as_object);
    map.into_iter().flatten().map(|(key, value)| (key, value.as_str().unwrap_or_default()))
}

fn keys(faults: &mut Faults, object: &Value, field: &str) {
    for (key, _) in entries(object, field) {
        faults.named(&format!("{field}[{key}]"), key, names::check_config_key(key));
    }
}

pub(super) fn config_map(faults: &mut Faults, object: &Value) {
    keys(faults, object, "data");
    keys(faults, object, "binaryData");
    for (key, _) in entries(object, "data").filter(|(key, _)| object["binaryData"].get(key.as_str()).is_some()) {
        faults.invalid(format!("data[{key}]"), &json!(key), "duplicate of key present in binaryData");
    }
    let binary: usize = entries(object, "binaryData").map(|(_, value)| schema::base64_len(value)).sum();
    let size = entries(object, "data").map(|(_, value)| value.len()).sum::<usize>() + binary;
    if size > DATA_MAX {
        faults.too_long("data", DATA_MAX);
    }
}

pub(super) fn secret(faults: &mut Faults, object: &Value) {
    keys(faults, object, "data");
    keys(faults, object, "stringData");
    if entries(object, "data").map(|(_, value)| schema::base64_len(value)).sum::<usize>() > DATA_MAX {
        faults.too_long("data", DATA_MAX);
    }
    let needed: &[&str] = match text(object, "type").unwrap_or("Opaque") {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/basic-auth" => {
            let has = |key: &str| ["data", "stringData"].iter().any(|field| object[*field].get(key).is_some());
            if !has("username") && !has("password") {
                faults.required("data[username]", "");
                faults.required("data[password]", "");
            }
            &[]
        }
        "kubernetes.io/service-account-token" => {
            if meta::annotation(object, "kubernetes.io/service-account.name").is_none_or(str::is_empty) {
                faults.required("metadata.annotations[kubernetes.io/service-account.name]", "");
            }
            &[]
        }
        _ => &[],
    };
    let given = |key: &&&str| ["data", "stringData"].iter().any(|field| object[*field].get(**key).is_some());
    for key in needed.iter().filter(|key| !given(key)) {
        faults.required(format!("data[{key}]"), "");
    }
    for key in [".dockerconfigjson", ".dockercfg"].iter().filter(|key| needed.contains(key)) {
        let Some(encoded) = object["data"][*key].as_str() else { continue };
        let content = STANDARD.decode(encoded).unwrap_or_default();
        if let Err(error) = serde_json::from_slice::<Value>(&content) {
            faults.invalid(format!("data[{key}]"), &json!("<secret contents redacted>"), error.to_string());
        }
    }
}

/// What an immutable ConfigMap or Secret forbids, and a Secret's type.
pub(super) fn data_update(faults: &mut Faults, kind: &str, old: &Value, new: &Value) {
    const RULE: &str = "field is immutable when `immutable` is set";
    if kind == "Secret" {
        faults.unchanged(old, new, "type", IMMUTABLE);
    }
    if old["immutable"] != true {
        return;
    }
    if new["immutable"] != true {
        faults.forbidden("immutable", RULE);
    }
    for field in ["data", "binaryData"] {
        if meta::at(old, field) != meta::at(new, field) {
            faults.forbidden(field, RULE);
        }
    }
}

pub(super) fn lease(faults: &mut Faults, object: &Value) {
    let Some(spec) = get(object, "spec") else { return };
    if let Some(seconds) = get(spec, "leaseDurationSeconds").filter(|seconds| seconds.as_i64().is_some_and(|n| n <= 0))
    {
        faults.invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0");
    }
    faults.not_negative(spec, "spec", "leaseTransitions");
}

pub(super) fn node(faults: &mut Faults, object: &Value) {
    let ranges = items(&object["spec"], "podCIDRs");
    for (i, range) in ranges.iter().enumerate() {
        if !range.as_str().is_some_and(is_cidr) {
            faults.invalid(format!("spec.podCIDRs[{i}]"), range, CIDR);
        }
    }
    let first = text(&object["spec"], "podCIDR");
    if let (Some(first), Some(range)) = (first, ranges.first().filter(|range| range.as_str() != first)) {
        faults.invalid("spec.podCIDRs[0]", range, format!("must be the same as spec.podCIDR, which is {first:?}"));
    }
    if let Some(first) = first.filter(|first| ranges.is_empty() && !is_cidr(first)) {
        faults.invalid("spec.podCIDR", &json!(first), CIDR);
    }
    let taints = items(&object["spec"], "taints");
    for (i, taint) in taints.iter().enumerate() {
        let path = format!("spec.taints[{i}]");
        let key = text(taint, "key").unwrap_or_default();
        faults.named(&format!("{path}.key"), key, names::check_qualified_name(key));
        if let Some(value) = text(taint, "value") {
            faults.named(&format!("{path}.value"), value, names::check_label_value(value));
        }
        faults.one_of(taint, &path, "effect", &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        if taints[..i].iter().any(|other| other["key"] == taint["key"] && other["effect"] == taint["effect"]) {
            faults.duplicate(&path, &json!({"key": key, "effect": taint["effect"]}));
        }
    }
}

pub(super) fn node_update(faults: &mut Faults, old: &Value, new: &Value) {
    for field in ["spec.podCIDR", "spec.providerID"] {
        let before = meta::str_at(old, field).unwrap_or_default();
        if !before.is_empty() && meta::str_at(new, field) != Some(before) {
            let name = field.trim_start_matches("spec.");
            faults.forbidden(field, format!("node updates may not change {name} except from \"\" to valid"));
        }
    }
}
