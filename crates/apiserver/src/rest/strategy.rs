//! What differs between kinds when they are written: a few rules over the generic path, as data where possible.

use bytes::Bytes;
use mainstay_model::meta::{finalizers, format_time, is_being_deleted};
use mainstay_model::resource::Resource;
use mainstay_model::status::ApiError;
use mainstay_store::{Durability, Entry, Error as StoreError, Expect};
use serde_json::{Map, Value, json};

use super::object::{meta, meta_mut, new_uid};
use crate::api::Api;

/// Kinds whose `metadata.generation` counts changes of their `spec`.
const COUNTED: &[&str] = &["Deployment", "Pod", "PodDisruptionBudget", "ReplicaSet"];

/// Metadata that only the server writes.
const SERVER_KEEPS: &[&str] = &[
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generateName",
    "generation",
    "name",
    "namespace",
    "uid",
];

/// A new object before validation: what the server keeps, and the kind's beginning.
pub(super) async fn prepare_create(api: &Api, resource: &Resource, object: &mut Value) -> Result<(), ApiError> {
    let now = format_time(api.now());
    let metadata = meta_mut(object);
    metadata.insert("uid".to_owned(), json!(new_uid()));
    metadata.insert("creationTimestamp".to_owned(), json!(now));
    metadata.remove("generation");
    if COUNTED.contains(&resource.kind) {
        metadata.insert("generation".to_owned(), json!(1));
    }
    // A node reports its state with its registration; everybody else's state is what controllers find later.
    if resource.has_subresource("status") && resource.kind != "Node" {
        object["status"] = json!({});
    }
    match resource.kind {
        "Pod" => begin_pod(object),
        "Namespace" => object["status"] = json!({"phase": "Active"}),
        "Service" => {
            object["status"] = json!({"loadBalancer": {}});
            api.addresses.fill(api, object, None).await?;
        }
        "Secret" => fold_string_data(object),
        _ => {}
    }
    Ok(())
}

fn begin_pod(object: &mut Value) {
    object["status"] = json!({"phase": "Pending", "qosClass": mainstay_model::workload::qos_class(object)});
    if object["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        object["status"]["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]);
    }
}

/// `stringData` is the write-only, unencoded way to give `data` of a Secret.
fn fold_string_data(object: &mut Value) {
    use base64::Engine as _;
    let Some(Value::Object(texts)) = object.as_object_mut().and_then(|o| o.remove("stringData")) else { return };
    if !object["data"].is_object() {
        object["data"] = json!({});
    }
    for (key, text) in texts {
        let encoded = base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or_default());
        object["data"][key] = json!(encoded);
    }
}

/// An updated object before validation: the server's metadata stay, `spec` and `status` change only by their own path.
pub(super) async fn prepare_update(
    api: &Api,
    resource: &Resource,
    new: &mut Value,
    old: &Value,
    subresource: Option<&str>,
) -> Result<(), ApiError> {
    match subresource {
        Some("status") => {
            let status = new["status"].take();
            *new = old.clone();
            new["status"] = status;
            return Ok(());
        }
        // Computed by the server itself from the stored pod.
        Some("binding") => return Ok(()),
        Some("finalize") => {
            let wanted = new["spec"]["finalizers"].take();
            *new = old.clone();
            new["spec"]["finalizers"] = wanted;
            return Ok(());
        }
        _ => {}
    }
    keep_metadata(new, old);
    if resource.has_subresource("status") {
        put_or_remove(new, "status", &old["status"]);
    }
    match resource.kind {
        "Namespace" => put_or_remove(new, "spec", &old["spec"]),
        "Service" => api.addresses.fill(api, new, Some(old)).await?,
        "Secret" => fold_string_data(new),
        _ => {}
    }
    if COUNTED.contains(&resource.kind) && new["spec"] != old["spec"] {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        meta_mut(new).insert("generation".to_owned(), json!(generation));
    }
    Ok(())
}

fn keep_metadata(new: &mut Value, old: &Value) {
    let metadata = meta_mut(new);
    metadata.remove("selfLink");
    metadata.remove("managedFields");
    for field in SERVER_KEEPS {
        match &old["metadata"][field] {
            Value::Null => metadata.remove(*field),
            value => metadata.insert((*field).to_owned(), value.clone()),
        };
    }
    drop_empty(metadata);
}

fn drop_empty(metadata: &mut Map<String, Value>) {
    for field in ["annotations", "finalizers", "labels", "ownerReferences"] {
        let empty = metadata.get(field).is_some_and(|value| {
            value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
        });
        if empty {
            metadata.remove(field);
        }
    }
}

fn put_or_remove(object: &mut Value, field: &str, value: &Value) {
    match (object.as_object_mut(), value) {
        (Some(map), Value::Null) => drop(map.remove(field)),
        (Some(map), value) => drop(map.insert(field.to_owned(), value.clone())),
        (None, _) => {}
    }
}

/// Whether nothing holds a deleted object back any more, so that this write removes it.
pub(super) fn is_finished(resource: &Resource, object: &Value) -> bool {
    if !is_being_deleted(object) || !finalizers(object).is_empty() {
        return false;
    }
    match resource.kind {
        "Namespace" => object["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty),
        // A pod waits for its node to have stopped it; the node then deletes it with a grace period of zero.
        "Pod" => object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0,
        _ => true,
    }
}

/// Writes to the store. A node's heartbeat is worth nothing after a crash, so it does not wait for the disk.
pub(super) async fn put(
    api: &Api,
    resource: &Resource,
    key: &str,
    value: Bytes,
    expect: Expect,
) -> Result<Entry, StoreError> {
    let heartbeat = resource.kind == "Lease" && key.contains("/kube-node-lease/");
    let durability = if heartbeat { Durability::Relaxed } else { Durability::Immediate };
    api.store.put_with(key, value, expect, durability).await
}

/// The name an error is about.
pub(super) fn name_of(object: &Value) -> &str {
    meta(object, "name")
}
