//! What differs between kinds when they are written: a few rules over the generic path, as data where possible.

use bytes::Bytes;
use mainstay_model::meta::{finalizers, format_time, is_being_deleted};
use mainstay_model::resource::Resource;
use mainstay_model::status::ApiError;
use mainstay_store::{Deleted, Durability, Entry, Error as StoreError, Expect, Revision};
use serde_json::{Map, Value, json};

use super::object::{meta, meta_mut, new_uid};
use super::resize;
use crate::api::Api;
use crate::custom;
use crate::registry::Served;
use crate::request::Call;

/// Kinds whose `metadata.generation` counts changes of what is wanted (of everything besides metadata and status).
const COUNTED: &[&str] = &[
    "CronJob",
    "CustomResourceDefinition",
    "DaemonSet",
    "Deployment",
    "EndpointSlice",
    "Ingress",
    "Job",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "MutatingWebhookConfiguration",
    "NetworkPolicy",
    "Pod",
    "PodDisruptionBudget",
    "PriorityClass",
    "ReplicaSet",
    "ReplicationController",
    "StatefulSet",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
];

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

fn is_counted(resource: &Served) -> bool {
    resource.custom().is_some() || COUNTED.contains(&resource.rules())
}

/// A new object before validation: what the server keeps, and the kind's beginning.
pub(super) async fn prepare_create(api: &Api, call: &Call, object: &mut Value) -> Result<(), ApiError> {
    let resource = &call.resource;
    let now = format_time(api.now());
    let metadata = meta_mut(object);
    metadata.insert("uid".to_owned(), json!(new_uid()));
    metadata.insert("creationTimestamp".to_owned(), json!(now));
    metadata.remove("generation");
    if is_counted(resource) {
        metadata.insert("generation".to_owned(), json!(1));
    }
    // A node reports its state with its registration; everybody else's state is what controllers find later.
    if resource.custom().is_some() && resource.has_subresource("status") {
        put_or_remove(object, "status", &Value::Null);
    } else if resource.has_subresource("status") && resource.rules() != "Node" {
        object["status"] = json!({});
    }
    match resource.rules() {
        "Pod" => begin_pod(object),
        "Namespace" => {
            object["status"] = json!({"phase": "Active"});
            name_as_label(object);
        }
        "PersistentVolume" | "PersistentVolumeClaim" => object["status"] = json!({"phase": "Pending"}),
        "Ingress" => object["status"] = json!({"loadBalancer": {}}),
        "Service" => {
            object["status"] = json!({"loadBalancer": {}});
            api.addresses.fill(api, object, None).await?;
        }
        "Secret" => fold_string_data(object),
        "CertificateSigningRequest" => sign_off_request(call, object),
        custom::DEFINITION => custom::judge(api, object).await?,
        _ => {}
    }
    Ok(())
}

/// What a new object says in a shorter form, and so belongs to whoever wrote it.
pub(super) fn fold(resource: &Served, object: &mut Value) {
    match resource.rules() {
        "Secret" => fold_string_data(object),
        "Namespace" => name_as_label(object),
        _ => {}
    }
}

/// A namespace carries its name as a label, so that policies can select it.
fn name_as_label(object: &mut Value) {
    let name = meta(object, "name").to_owned();
    if !name.is_empty() {
        object["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(name);
    }
}

/// A request for a certificate says who asks, and only the server can know.
fn sign_off_request(call: &Call, object: &mut Value) {
    if let Some(spec) = object["spec"].as_object_mut() {
        spec.retain(|field, _| !matches!(field.as_str(), "username" | "uid" | "groups" | "extra"));
    }
    for (field, value) in call.user.to_value().as_object().into_iter().flatten() {
        object["spec"][field] = value.clone();
    }
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

/// What follows from the name, once that is known: a Job finds its pods by its own uid, unless it asks to select them
/// itself.
///
/// Source: <https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-selector>.
pub(super) fn complete(resource: &Served, object: &mut Value) {
    if resource.rules() != "Job" || object["spec"]["manualSelector"] == true || !object["spec"].is_object() {
        return;
    }
    let (uid, name) = (object["metadata"]["uid"].clone(), object["metadata"]["name"].clone());
    let labels = &mut object["spec"]["template"]["metadata"]["labels"];
    if labels.is_null() {
        *labels = json!({});
    }
    for (key, value) in [("controller-uid", &uid), ("job-name", &name)] {
        if let Some(labels) = labels.as_object_mut() {
            labels.insert(key.to_owned(), value.clone());
            labels.insert(format!("batch.kubernetes.io/{key}"), value.clone());
        }
    }
    if object["spec"]["selector"].is_null() {
        object["spec"]["selector"] = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
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
pub(super) async fn prepare_update(api: &Api, call: &Call, new: &mut Value, old: &Value) -> Result<(), ApiError> {
    let resource = &call.resource;
    match call.subresource.as_deref() {
        Some("status") => return take_only(new, old, &["status"]),
        // Computed by the server itself from the stored pod.
        Some("binding") => return Ok(()),
        Some("finalize") => return take_only(new, old, &["spec", "finalizers"]),
        Some("ephemeralcontainers") => {
            take_only(new, old, &["spec", "ephemeralContainers"])?;
            count_change(resource, new, old);
            return Ok(());
        }
        Some("resize") => {
            let wanted = std::mem::replace(new, old.clone());
            resize::take_resources(new, &wanted);
            count_change(resource, new, old);
            return Ok(());
        }
        Some("approval") => {
            take_only(new, old, &["status", "conditions"])?;
            stamp_conditions(api, new);
            return Ok(());
        }
        _ => {}
    }
    keep_metadata(new, old);
    if resource.has_subresource("status") {
        put_or_remove(new, "status", &old["status"]);
    }
    match resource.rules() {
        "Namespace" | "CertificateSigningRequest" => put_or_remove(new, "spec", &old["spec"]),
        "Service" => api.addresses.fill(api, new, Some(old)).await?,
        "Secret" => fold_string_data(new),
        custom::DEFINITION => custom::judge(api, new).await?,
        _ => {}
    }
    if resource.rules() == "Namespace" {
        let name = meta(old, "name").to_owned();
        new["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(name);
    }
    count_change(resource, new, old);
    Ok(())
}

/// Takes one field of `new`, given by its path, into what is otherwise `old`.
#[allow(clippy::unnecessary_wraps)]
fn take_only(new: &mut Value, old: &Value, path: &[&str]) -> Result<(), ApiError> {
    let wanted = path.iter().fold(&mut *new, |value, field| &mut value[*field]).take();
    *new = old.clone();
    let Some((last, parents)) = path.split_last() else { return Ok(()) };
    let parent = parents.iter().fold(&mut *new, |value, field| &mut value[*field]);
    put_or_remove(parent, last, &wanted);
    Ok(())
}

/// Conditions given without times get the time of the write.
fn stamp_conditions(api: &Api, object: &mut Value) {
    let now = format_time(api.now());
    for condition in object["status"]["conditions"].as_array_mut().into_iter().flatten() {
        for field in ["lastUpdateTime", "lastTransitionTime"] {
            if condition[field].is_null() {
                condition[field] = json!(now);
            }
        }
    }
}

/// Counts the generation up when anything besides metadata and status is different now.
fn count_change(resource: &Served, new: &mut Value, old: &Value) {
    if !is_counted(resource) {
        return;
    }
    // Without a subresource for it, `status` is a field like any other.
    let plain_status = resource.custom().is_some() && !resource.has_subresource("status");
    let is_content = |key: &str| match key {
        "apiVersion" | "kind" | "metadata" => false,
        "status" => plain_status,
        _ => true,
    };
    let content = |object: &Value, key: &str| object.get(key).filter(|value| !value.is_null()).cloned();
    let keys = new.as_object().into_iter().chain(old.as_object()).flat_map(Map::keys);
    if keys.filter(|key| is_content(key)).any(|key| content(new, key) != content(old, key)) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        meta_mut(new).insert("generation".to_owned(), json!(generation));
    }
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
    // Custom kinds of these names live in groups of their own.
    match resource.kind.as_str() {
        _ if !resource.group.is_empty() => true,
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
    let entry = api.store.put_with(key, value, expect, durability).await?;
    settle(api, key, entry.mod_revision).await;
    Ok(entry)
}

/// Removes from the store.
pub(super) async fn remove(api: &Api, key: &str, expect: Expect) -> Result<Deleted, StoreError> {
    let deleted = api.store.delete(key, expect).await?;
    settle(api, key, deleted.revision).await;
    Ok(deleted)
}

/// Who wrote a role or a quota must find it in force with the next request.
async fn settle(api: &Api, key: &str, revision: Revision) {
    api.authoriser.settle(key, revision).await;
    api.followed.settle(key, revision).await;
    api.registry.settle(key, revision).await;
    api.policies.settle(key, revision).await;
}

/// The name an error is about.
pub(super) fn name_of(object: &Value) -> &str {
    meta(object, "name")
}
