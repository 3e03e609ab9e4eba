//! Objects from and to the store in the version of a call, where a definition's webhook converts.
//!
//! Flow: read what lies in the store → all objects that were written in another version go to the webhook in one
//! question → defaults and pruning by the schema of the version that was asked for. To the store the other way round.
//! Kinds without such a webhook, which are nearly all, are read and written at once.
//!
//! Deliberately absent: conversion of the sets in `managedFields`; those that do not fit the version are fitted by apply.
//!
//! Source: <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definition-versioning/#webhook-conversion>.

use std::time::Duration;

use bytes::Bytes;
use mainstay_custom::conversion::{Conversion, converted, request};
use mainstay_model::status::ApiError;
use mainstay_store::{Entry, Error as StoreError, Expect};
use serde_json::{Value, json};

use super::object::{decode, encode, finish, meta_mut, new_uid, parse};
use super::strategy;
use crate::admission::ask_webhook;
use crate::api::Api;
use crate::registry::{Custom, Served};

/// How long a webhook has for an answer.
const LIMIT: Duration = Duration::from_secs(30);

/// The webhook that converts a kind: where it is, and how to speak to it.
fn webhook(resource: &Served) -> Option<(&Custom, &Value, &'static str)> {
    let custom = resource.custom()?;
    match &*custom.version.conversion {
        Conversion::None => None,
        Conversion::Webhook { client, review } => Some((custom, client, review)),
    }
}

/// The objects of entries, in the version of `resource`.
///
/// # Errors
/// 500 when the webhook that must convert does not.
pub(crate) async fn from_entries(api: &Api, resource: &Served, entries: &[&Entry]) -> Result<Vec<Value>, ApiError> {
    let Some((custom, ..)) = webhook(resource) else {
        return Ok(entries.iter().map(|entry| decode(resource, &entry.value, entry.mod_revision)).collect());
    };
    let wanted = resource.api_version();
    let mut objects: Vec<Value> = entries.iter().map(|entry| parse(resource, &entry.value)).collect();
    let others: Vec<usize> = (0..objects.len()).filter(|i| objects[*i]["apiVersion"] != *wanted).collect();
    if !others.is_empty() {
        let given: Vec<Value> = others.iter().map(|i| objects[*i].take()).collect();
        for (i, object) in others.into_iter().zip(ask(api, resource, &wanted, &given).await?) {
            objects[i] = object;
        }
    }
    for (object, entry) in objects.iter_mut().zip(entries) {
        finish(&custom.version, object);
        meta_mut(object).insert("resourceVersion".to_owned(), json!(entry.mod_revision.to_string()));
    }
    Ok(objects)
}

/// The object of one entry.
///
/// # Errors
/// As for [`from_entries`].
pub(crate) async fn from_entry(api: &Api, resource: &Served, entry: &Entry) -> Result<Value, ApiError> {
    let mut objects = from_entries(api, resource, &[entry]).await?;
    objects.pop().ok_or_else(|| ApiError::internal("an object got lost when it was read"))
}

/// The bytes to store: the object in the version that is stored, without its `resourceVersion`.
///
/// # Errors
/// As for [`from_entries`].
pub(super) async fn to_bytes(api: &Api, resource: &Served, object: &mut Value) -> Result<Bytes, ApiError> {
    let Some((custom, ..)) =
        webhook(resource).filter(|(custom, ..)| custom.version.row.version != custom.version.storage)
    else {
        return Ok(encode(resource, object));
    };
    let stored = custom.version.storage_api_version();
    let mut converted = ask(api, resource, &stored, std::slice::from_ref(object)).await?;
    let object = converted.first_mut().ok_or_else(|| ApiError::internal("nothing was converted"))?;
    Ok(encode(resource, object))
}

/// Stores an object, and answers with what lies in the store then; or with why the store did not take it.
///
/// # Errors
/// As for [`from_entries`].
pub(super) async fn put(
    api: &Api,
    resource: &Served,
    key: &str,
    mut object: Value,
    expect: Expect,
) -> Result<Result<Value, StoreError>, ApiError> {
    let bytes = to_bytes(api, resource, &mut object).await?;
    match strategy::put(api, resource, key, bytes, expect).await {
        Ok(entry) => written(api, resource, object, &entry).await.map(Ok),
        Err(error) => Ok(Err(error)),
    }
}

/// An object as the entry holds it that was just made of it.
///
/// # Errors
/// As for [`from_entries`].
pub(super) async fn written(api: &Api, resource: &Served, mut object: Value, entry: &Entry) -> Result<Value, ApiError> {
    // What a definition says, and what a webhook makes of it, may be something else when it is read.
    if resource.custom().is_some() {
        return from_entry(api, resource, entry).await;
    }
    meta_mut(&mut object).insert("resourceVersion".to_owned(), json!(entry.mod_revision.to_string()));
    Ok(object)
}

async fn ask(api: &Api, resource: &Served, wanted: &str, objects: &[Value]) -> Result<Vec<Value>, ApiError> {
    let Some((_, client, review)) = webhook(resource) else { return Ok(objects.to_vec()) };
    let failed = |error: &dyn std::fmt::Display| {
        let from = objects.first().map_or(Value::Null, |object| object["apiVersion"].clone());
        let from = from.as_str().unwrap_or_default();
        ApiError::internal(format!("conversion webhook for {from}, Kind={} failed: {error}", resource.kind))
    };
    let uid = new_uid();
    let question = request(review, &uid, wanted, objects);
    let answer = ask_webhook(api, client, &question, LIMIT).await.map_err(|error| failed(&error))?;
    converted(&answer, &uid, wanted, objects).map_err(|error| failed(&error))
}
