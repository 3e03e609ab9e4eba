//! Rules of the subresources that change a part of `spec`: ephemeral containers and in-place resize of pods.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/pods/ephemeral-containers/>,
//! <https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources/>.

use serde_json::{Value, json};

use super::faults::{Faults, items};
use crate::meta;
use crate::workload::qos_class;

/// The faults of a change of a pod through `ephemeralcontainers` or `resize`, whose result is `new`.
pub(super) fn check(faults: &mut Faults, subresource: &str, old: &Value, new: &Value) {
    match subresource {
        "ephemeralcontainers" => ephemeral(faults, old, new),
        "resize" => resize(faults, old, new),
        _ => {}
    }
}

/// Ephemeral containers are only ever added.
fn ephemeral(faults: &mut Faults, old: &Value, new: &Value) {
    let now = items(&new["spec"], "ephemeralContainers");
    for before in items(&old["spec"], "ephemeralContainers") {
        let name = before["name"].as_str().unwrap_or_default();
        match now.iter().find(|container| container["name"] == before["name"]) {
            None => faults.forbidden(
                "spec.ephemeralContainers",
                format!("existing ephemeral containers {name:?} may not be removed"),
            ),
            Some(after) if after != before => faults.forbidden(
                "spec.ephemeralContainers",
                format!("existing ephemeral containers {name:?} may not be changed"),
            ),
            Some(_) => {}
        }
    }
    let others: Vec<&Value> =
        ["containers", "initContainers"].iter().flat_map(|list| items(&new["spec"], list)).collect();
    for (i, container) in now.iter().enumerate() {
        let path = format!("spec.ephemeralContainers[{i}]");
        let twice = now[..i].iter().chain(others.iter().copied()).any(|other| other["name"] == container["name"]);
        if twice {
            faults.duplicate(format!("{path}.name"), &container["name"]);
        }
        for field in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "ports", "resources"] {
            let given = container.get(field).is_some_and(|v| !v.is_null() && *v != json!({}) && *v != json!([]));
            if given {
                faults.forbidden(format!("{path}.{field}"), "field not allowed in EphemeralContainer");
            }
        }
    }
}

/// A resize keeps the pod's quality of service, and its node's kind of life.
fn resize(faults: &mut Faults, old: &Value, new: &Value) {
    let (before, after) = (qos_class(old), qos_class(new));
    if before != after {
        faults.invalid(
            "metadata",
            &json!(after),
            format!("Pod QOS Class may not change as a result of resizing (it was {before})"),
        );
    }
    if matches!(meta::str_at(old, "status.phase"), Some("Succeeded" | "Failed")) {
        faults.forbidden("spec", "pods that have ended cannot be resized");
    }
}
