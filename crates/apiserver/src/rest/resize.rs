//! The `resize` subresource of pods: other requests and limits for containers that go on running.
//!
//! Source: <https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources/>.

use serde_json::Value;

/// Lists of a pod's containers whose resources may be changed in place.
const RESIZABLE: &[&str] = &["containers", "initContainers"];

/// Takes the resources of the containers in `wanted` into `pod`, and nothing else; `resizePolicy` goes with them.
pub(super) fn take_resources(pod: &mut Value, wanted: &Value) {
    for list in RESIZABLE {
        for container in pod["spec"][*list].as_array_mut().into_iter().flatten() {
            let named = wanted["spec"][*list].as_array().into_iter().flatten().find(|w| w["name"] == container["name"]);
            for field in ["resources", "resizePolicy"] {
                match named.map(|named| &named[field]) {
                    Some(Value::Null) | None => {}
                    Some(value) => container[field] = value.clone(),
                }
            }
        }
    }
}
