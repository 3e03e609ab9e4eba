//! Rules of persistent volumes, claims and storage classes.

use serde_json::{Value, json};

use super::faults::{Faults, get, items, text};
use crate::meta;
use crate::quantity::Quantity;

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const UPDATES: &str = "is forbidden after creation";

fn access_modes(faults: &mut Faults, spec: &Value) {
    let modes = items(spec, "accessModes");
    if modes.is_empty() {
        faults.required("spec.accessModes", "at least 1 access mode is required");
    }
    for mode in modes.iter().filter(|mode| !mode.as_str().is_some_and(|mode| ACCESS_MODES.contains(&mode))) {
        faults.not_supported("spec.accessModes", mode, ACCESS_MODES);
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        faults.forbidden("spec.accessModes", "may not use ReadWriteOncePod with other access modes");
    }
    faults.one_of(spec, "spec", "volumeMode", &["Block", "Filesystem"]);
}

fn storage(faults: &mut Faults, amount: Option<&Value>, path: &str) {
    match amount {
        None => faults.required(path, ""),
        Some(amount) => {
            if Quantity::from_value(amount).is_ok_and(|amount| amount <= Quantity::ZERO) {
                faults.invalid(path, amount, "must be greater than zero");
            }
        }
    }
}

pub(super) fn claim(faults: &mut Faults, object: &Value) {
    let Some(spec) = get(object, "spec") else { return faults.required("spec", "") };
    access_modes(faults, spec);
    storage(faults, meta::at(spec, "resources.requests.storage"), "spec.resources[storage]");
}

pub(super) fn claim_update(faults: &mut Faults, old: &Value, new: &Value) {
    let fixed = |object: &Value| {
        let mut spec = object["spec"].as_object().cloned().unwrap_or_default();
        spec.retain(|_, value| !value.is_null());
        spec.remove("resources");
        spec.remove("volumeAttributesClassName");
        // The binder fills in the volume once, and a default class may come later.
        for field in ["volumeName", "storageClassName"] {
            if meta::at(&object["spec"], field).is_none() || old["spec"].get(field).is_none_or(Value::is_null) {
                spec.remove(field);
            }
        }
        spec
    };
    if fixed(old) != fixed(new) {
        let rule =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        faults.forbidden("spec", rule);
    }
    let size = |object: &Value| {
        meta::at(object, "spec.resources.requests.storage").and_then(|size| Quantity::from_value(size).ok())
    };
    if let (Some(before), Some(after)) = (size(old), size(new))
        && after < before
    {
        faults.forbidden("spec.resources.requests.storage", "field can not be less than status.capacity");
    }
}

pub(super) fn volume(faults: &mut Faults, object: &Value) {
    const SOURCES: [&str; 7] = ["csi", "fc", "hostPath", "iscsi", "local", "nfs", "rbd"];
    let Some(spec) = get(object, "spec") else { return faults.required("spec", "") };
    access_modes(faults, spec);
    storage(faults, meta::at(spec, "capacity.storage"), "spec.capacity[storage]");
    faults.one_of(spec, "spec", "persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"]);
    let given: Vec<_> = SOURCES.into_iter().filter(|source| get(spec, source).is_some()).collect();
    match given.as_slice() {
        [] => faults.required("spec", "must specify a volume type"),
        [source] => {
            if matches!(*source, "hostPath" | "local") && text(&spec[*source], "path").is_none() {
                faults.required(format!("spec.{source}.path"), "");
            }
            if *source == "local" && get(spec, "nodeAffinity").is_none() {
                faults.required("spec.nodeAffinity", "Local volume requires node affinity");
            }
        }
        [_, more @ ..] => {
            for source in more {
                faults.forbidden(format!("spec.{source}"), "may not specify more than 1 volume type");
            }
        }
    }
}

pub(super) fn class(faults: &mut Faults, object: &Value) {
    if text(object, "provisioner").is_none() {
        faults.required("provisioner", "");
    }
    for (field, allowed) in [
        ("reclaimPolicy", &["Delete", "Retain"][..]),
        ("volumeBindingMode", &["Immediate", "WaitForFirstConsumer"][..]),
    ] {
        if let Some(value) = text(object, field).filter(|value| !allowed.contains(value)) {
            faults.not_supported(field, &json!(value), allowed);
        }
    }
}

pub(super) fn class_update(faults: &mut Faults, old: &Value, new: &Value) {
    for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
        if meta::at(old, field) != meta::at(new, field) {
            faults.forbidden(field, format!("updating {field} {UPDATES}"));
        }
    }
}
