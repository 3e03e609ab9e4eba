//! `binding` of pods.

use mainstay_model::meta::format_time;
use mainstay_model::resource::known;
use mainstay_model::status::ApiError;
use serde_json::{Value, json};

use super::object::{meta, parse_body};
use super::update::change;
use crate::api::Api;
use crate::decode;
use crate::request::Call;

/// POST `binding`: the scheduler's choice of a node, once and for all.
pub(crate) async fn bind(api: &Api, call: &Call, media_type: &str, body: &[u8]) -> Result<Value, ApiError> {
    let mut binding = parse_body(media_type, body)?;
    decode::check_as("v1", "Binding", &mut binding)?;
    let node = binding["target"]["name"].as_str().filter(|name| !name.is_empty());
    let node = node
        .ok_or_else(|| ApiError::bad_request("target.name: Required value: the node to bind the pod to"))?
        .to_owned();
    let now = format_time(api.now());
    // A binding writes `spec.nodeName`, which no other update may: it goes around the checks of an update.
    let pod = Call { subresource: Some("binding".to_owned()), ..call.clone() };
    change(api, &pod, |old| {
        let refuse = |why: String| Err(ApiError::conflict("", "pods/binding", call.name(), &why));
        if !meta(old, "deletionTimestamp").is_empty() {
            return refuse(format!("pod {} is being deleted, cannot be assigned to a host", call.name()));
        }
        if let Some(bound) = old["spec"]["nodeName"].as_str().filter(|bound| !bound.is_empty()) {
            return refuse(format!("pod {} is already assigned to node {bound:?}", call.name()));
        }
        let mut new = old.clone();
        new["spec"]["nodeName"] = json!(node);
        let mut conditions = old["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions
            .push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now}));
        new["status"]["conditions"] = json!(conditions);
        Ok(new)
    })
    .await?;
    Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
}

/// POST to the collection `bindings`, which names the pod in its metadata.
pub(crate) async fn bind_named(api: &Api, call: &Call, media_type: &str, body: &[u8]) -> Result<Value, ApiError> {
    let name = meta(&parse_body(media_type, body)?, "name").to_owned();
    let pod = Call { resource: known("Pod").into(), name: Some(name), ..call.clone() };
    bind(api, &pod, media_type, body).await
}
