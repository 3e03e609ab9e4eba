//! What may change in a pod that exists: very little.

use serde_json::{Map, Value};

use super::faults::{Faults, get, items};

/// As kube-apiserver names it.
const MAY_CHANGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
     `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
     `spec.tolerations` (only additions to existing tolerations),\
     `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn check(faults: &mut Faults, old: &Value, new: &Value) {
    let (old, new) = (&old["spec"], &new["spec"]);
    for field in ["containers", "initContainers"] {
        if items(old, field).len() != items(new, field).len() {
            return faults.forbidden(format!("spec.{field}"), "pod updates may not add or remove containers");
        }
    }
    deadline(faults, old, new);
    let tolerated: Vec<_> = items(new, "tolerations").iter().map(lasting).collect();
    if !items(old, "tolerations").iter().all(|toleration| tolerated.contains(&lasting(toleration))) {
        return faults
            .forbidden("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds");
    }
    gates(faults, old, new);
    let (before, after) = (comparable(old), comparable(new));
    let mut changed: Vec<_> =
        after.iter().filter(|(key, value)| before.get(*key) != Some(*value)).map(|(key, _)| key).collect();
    changed.extend(before.keys().filter(|key| !after.contains_key(*key)));
    if !changed.is_empty() {
        let changed: Vec<_> = changed.into_iter().map(|key| format!("spec.{key}")).collect();
        faults.forbidden("spec", format!("{MAY_CHANGE}\nchanged: {}", changed.join(", ")));
    }
}

/// A toleration without how long it lasts.
fn lasting(toleration: &Value) -> Value {
    let mut toleration = toleration.clone();
    if let Some(map) = toleration.as_object_mut() {
        map.remove("tolerationSeconds");
    }
    toleration
}

fn deadline(faults: &mut Faults, old: &Value, new: &Value) {
    let path = "spec.activeDeadlineSeconds";
    let seconds = |spec: &Value| get(spec, "activeDeadlineSeconds").and_then(Value::as_i64);
    match (seconds(old), seconds(new)) {
        (Some(before), Some(after)) if after > before => {
            faults.invalid(path, &after.into(), "must be less than or equal to previous value");
        }
        (Some(_), None) => faults.invalid(path, &Value::Null, "must not update from a positive integer to nil value"),
        _ => {}
    }
}

fn gates(faults: &mut Faults, old: &Value, new: &Value) {
    let before = items(old, "schedulingGates");
    if items(new, "schedulingGates").iter().any(|gate| !before.contains(gate)) {
        faults.forbidden("spec.schedulingGates", "only deletion is allowed, but found new scheduling gates");
    }
}

/// The spec without what may change.
fn comparable(spec: &Value) -> Map<String, Value> {
    let mut map = spec.as_object().cloned().unwrap_or_default();
    map.retain(|_, value| !value.is_null());
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        map.remove(field);
    }
    // A negative grace period may become 1; both are left out.
    if map.get("terminationGracePeriodSeconds").and_then(Value::as_i64).is_some_and(|n| n < 0 || n == 1) {
        map.insert("terminationGracePeriodSeconds".to_owned(), 1.into());
    }
    for field in ["containers", "initContainers"] {
        for container in map.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                container.remove("image");
            }
        }
    }
    // Ephemeral containers have a subresource of their own.
    map.remove("ephemeralContainers");
    map
}
