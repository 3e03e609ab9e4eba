//! The patch that brings a pod's status in the API to what it is here. Pure.

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Map, Value, json};

use crate::static_pods;

/// The fields of a pod's status that the agent owns: absent here, they are removed there.
const OWN: [&str; 16] = [
    "conditions",
    "containerStatuses",
    "ephemeralContainerStatuses",
    "hostIP",
    "hostIPs",
    "initContainerStatuses",
    "message",
    "observedGeneration",
    "phase",
    "podIP",
    "podIPs",
    "qosClass",
    "reason",
    "resize",
    "startTime",
    "volumeHealth",
];

/// The JSON merge patch that makes the pod's status say `status`; none if it says that already. It carries the uid, so
/// that it cannot hit a later pod of the same name.
pub fn patch(pod: &Pod, status: &PodStatus) -> Option<Value> {
    // A pod from a file that has no copy in the API yet has no status there.
    let uid = static_pods::api_uid(pod)?;
    let there = pod.status.as_ref().map(plain).unwrap_or_default();
    let here = plain(status);
    let mut changes = Map::new();
    for key in OWN {
        match (there.get(key), here.get(key)) {
            (before, Some(now)) if before != Some(now) => drop(changes.insert(key.to_owned(), now.clone())),
            (Some(_), None) => drop(changes.insert(key.to_owned(), Value::Null)),
            _ => {}
        }
    }
    (!changes.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changes}))
}

/// As JSON without nulls and empty objects, which servers keep or drop as they like.
fn plain(status: &PodStatus) -> Map<String, Value> {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    prune(&mut value);
    if let Value::Object(map) = value { map } else { Map::new() }
}

fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(prune);
            map.retain(|_, value| !value.is_null() && value.as_object().is_none_or(|map| !map.is_empty()));
        }
        Value::Array(list) => list.iter_mut().for_each(prune),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_differs_is_written() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "u1"},
            "status": {"phase": "Pending", "podIP": "10.0.2.5", "nominatedNodeName": "x", "message": "old",
                "containerStatuses": [{"name": "a", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "lastState": {}}]}}))
        .unwrap();
        let mut status = pod.status.clone().unwrap();
        assert_eq!(patch(&pod, &status), None);
        status.container_statuses.as_mut().unwrap()[0].last_state = None;
        assert_eq!(patch(&pod, &status), None);
        (status.phase, status.message) = (Some("Running".to_owned()), None);
        assert_eq!(
            patch(&pod, &status),
            Some(json!({"metadata": {"uid": "u1"}, "status": {"phase": "Running", "message": null}}))
        );
    }
}
