//! `binding` and `eviction` of pods.

use bytes::Bytes;
use mainstay_model::meta::format_time;
use mainstay_model::resource::known;
use mainstay_model::selector::LabelSelector;
use mainstay_model::status::ApiError;
use serde_json::{Value, json};

use super::delete::delete;
use super::list::{Filter, select};
use super::object::{meta, parse_body};
use super::update::change;
use crate::api::Api;
use crate::request::{Call, Query, Verb};

/// POST `binding`: the scheduler's choice of a node, once and for all.
pub(crate) async fn bind(api: &Api, call: &Call, media_type: &str, body: &[u8]) -> Result<Value, ApiError> {
    let binding = parse_body(media_type, body)?;
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

/// POST `eviction`: a deletion that asks the pod's PodDisruptionBudgets first.
///
/// # Errors
/// 429 when a budget allows no disruption now.
pub(crate) async fn evict(api: &Api, call: &Call, media_type: &str, body: &[u8]) -> Result<Value, ApiError> {
    let eviction = parse_body(media_type, body)?;
    let object = Call { subresource: None, ..call.clone() };
    let pod = super::get(api, &object).await?;
    let budgets = Call {
        verb: Verb::List,
        resource: known("PodDisruptionBudget"),
        name: None,
        subresource: None,
        query: Query::default(),
        ..call.clone()
    };
    let (budgets, _) = select(api, &budgets, &Filter::of(&budgets)?).await?;
    for budget in budgets.iter().filter(|budget| guards(budget, &pod)) {
        if budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0) < 1 {
            let name = meta(budget, "name");
            let text = "Cannot evict pod as it would violate the pod's disruption budget.";
            tracing::debug!(pod = call.name(), budget = name, "eviction refused");
            return Err(ApiError::too_many_requests(text, 10));
        }
    }
    let options = Bytes::from(eviction["deleteOptions"].to_string());
    let options = if eviction["deleteOptions"].is_object() { options } else { Bytes::new() };
    delete(api, &Call { verb: Verb::Delete, ..object }, &options).await?;
    Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
}

fn guards(budget: &Value, pod: &Value) -> bool {
    LabelSelector::from_object(&budget["spec"]["selector"]).is_ok_and(|s| s.matches_object(pod))
}
