//! RuntimeClass: what running a pod in another way costs, and where that is possible.
//!
//! Source: <https://kubernetes.io/docs/concepts/containers/runtime-class/>.

use mainstay_model::status::ApiError;
use serde_json::{Value, json};

use super::{Review, forbidden};
use crate::api::Api;

pub(super) async fn mutate(api: &Api, review: Review<'_>, pod: &mut Value) -> Result<(), ApiError> {
    let name = pod["spec"]["runtimeClassName"].as_str().unwrap_or_default().to_owned();
    if name.is_empty() {
        if pod["spec"]["overhead"].as_object().is_some_and(|overhead| !overhead.is_empty()) {
            let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
            return Err(forbidden(review, pod, why));
        }
        return Ok(());
    }
    let Some(class) = api.followed.get("RuntimeClass", None, &name).await? else {
        return Err(forbidden(review, pod, &format!("pod rejected: RuntimeClass {name:?} not found")));
    };
    let overhead = &class["overhead"]["podFixed"];
    match &pod["spec"]["overhead"] {
        given if given.is_null() => {
            if overhead.is_object() {
                pod["spec"]["overhead"] = overhead.clone();
            }
        }
        given if given == overhead => {}
        _ => {
            let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
            return Err(forbidden(review, pod, why));
        }
    }
    schedule(review, &class["scheduling"], pod)
}

/// Adds the class's node selector and tolerations to the pod's own.
fn schedule(review: Review<'_>, scheduling: &Value, pod: &mut Value) -> Result<(), ApiError> {
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        let own = pod["spec"]["nodeSelector"][key].clone();
        if !own.is_null() && own != *value {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let why = format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(value),
                text(&own)
            );
            return Err(forbidden(review, pod, &why));
        }
        pod["spec"]["nodeSelector"][key] = value.clone();
    }
    let more = scheduling["tolerations"].as_array().cloned().unwrap_or_default();
    if !more.is_empty() {
        let mut all = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
        all.extend(more.into_iter().filter(|toleration| !all.contains(toleration)).collect::<Vec<_>>());
        pod["spec"]["tolerations"] = json!(all);
    }
    Ok(())
}
