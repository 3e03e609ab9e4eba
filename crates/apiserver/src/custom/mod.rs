//! Custom resources in the generic path: what its steps ask when a kind comes from a CustomResourceDefinition, and what is
//! done about the definitions themselves.
//!
//! The rules are those of `mainstay_custom`, which knows no store and no requests; here they meet both.

mod cleanup;
mod definitions;

use jiff::Timestamp;
use mainstay_custom::definition::{self, CLEANUP_FINALIZER, Names};
use mainstay_custom::policy;
use mainstay_model::conform::conform as conform_type;
use mainstay_model::meta;
use mainstay_model::selector::LabelSelector;
use mainstay_model::status::{ApiError, FieldError};
use serde_json::{Value, json};

use crate::api::Api;
use crate::registry::{Custom, Served};

pub(crate) use cleanup::{Cleanups, clean_up};
pub(crate) use definitions::Definitions;

/// The kind of definitions.
pub(crate) const DEFINITION: &str = "CustomResourceDefinition";

/// Brings an object into the shape of its kind: metadata by their type, the rest by the schema. Answers the fields that
/// nobody knows and that were dropped.
///
/// # Errors
/// What a Go decoder would say of metadata of a wrong type.
pub(crate) fn conform(custom: &Custom, object: &mut Value) -> Result<Vec<String>, String> {
    let mut unknown = Vec::new();
    if !object["metadata"].is_null() {
        let fields = conform_type("ObjectMeta", &mut object["metadata"]).map_err(|mismatch| mismatch.to_string())?;
        unknown.extend(fields.into_iter().map(|field| format!("metadata.{field}")));
    }
    let schema = &custom.version.schema;
    schema.default(object);
    unknown.extend(schema.prune(object));
    Ok(unknown)
}

/// The defaults of what this module knows more of than the tables.
pub(crate) fn apply_defaults(resource: &Served, object: &mut Value) {
    match resource.rules() {
        DEFINITION => definition::apply_defaults(object),
        kind if policy::KINDS.contains(&kind) => policy::apply_defaults(kind, object),
        _ => {}
    }
}

/// The faults of the tables, and those of definitions, policies and schemas.
pub(crate) fn and_faults(
    mut causes: Vec<FieldError>,
    resource: &Served,
    object: &Value,
    old: Option<&Value>,
) -> Vec<FieldError> {
    let more = match (resource.rules(), resource.custom()) {
        (_, Some(custom)) => custom.version.schema.validate(object, old),
        (DEFINITION, _) => definition::validate(object, old),
        (kind, _) if policy::KINDS.contains(&kind) => policy::validate(kind, object),
        _ => return causes,
    };
    for fault in more {
        if !causes.iter().any(|known| known.field == fault.field && known.kind == fault.kind) {
            causes.push(fault);
        }
    }
    causes
}

/// Gives a definition its status, over the names that other definitions hold.
pub(crate) async fn judge(api: &Api, object: &mut Value) -> Result<(), ApiError> {
    let (own, group) = (meta::name(object).to_owned(), object["spec"]["group"].clone());
    let names = api.registry.definitions(|definitions| {
        let mut names = Names::default();
        for other in definitions.objects().filter(|other| meta::name(other) != own && other["spec"]["group"] == group) {
            names.add(other);
        }
        names
    });
    definition::set_status(object, &names.await?, api.now());
    Ok(())
}

/// A definition whose deletion begins keeps its objects' kind until they are gone.
pub(crate) fn mark_for_deletion(object: &mut Value, now: Timestamp) {
    if meta::has_finalizer(object, CLEANUP_FINALIZER) || meta::condition(object, "Terminating").is_some() {
        return;
    }
    meta::add_finalizer(object, CLEANUP_FINALIZER);
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    definition::set_condition(object, "Terminating", true, "InstanceDeletionPending", message, now);
}

/// Wanted replicas, replicas there are, and the selector of a custom object.
///
/// # Errors
/// 500 when it does not say how many are wanted.
pub(crate) fn scale_of(custom: &Custom, object: &Value) -> Result<(i64, i64, String), ApiError> {
    let none = || ApiError::internal("the kind has no scale subresource");
    let paths = custom.version.scale.as_ref().ok_or_else(none)?;
    let count = |found: Option<&Value>| found.and_then(Value::as_i64);
    let there = count(paths.status_replicas.first(object)).unwrap_or(0);
    let wanted = count(paths.spec_replicas.first(object)).ok_or_else(|| {
        let path = paths.spec_replicas.simple().unwrap_or_default().join(".");
        ApiError::internal(format!("the spec replicas field \".{path}\" does not exist"))
    })?;
    let selector = match paths.label_selector.as_ref().and_then(|path| path.first(object)) {
        Some(Value::String(text)) => text.clone(),
        Some(selector) => LabelSelector::from_object(selector).map(|selector| selector.to_string()).unwrap_or_default(),
        None => String::new(),
    };
    Ok((wanted, there, selector))
}

/// Writes the wanted replicas where the definition says they are.
pub(crate) fn set_replicas(custom: &Custom, object: &mut Value, replicas: Value) {
    let Some(names) = custom.version.scale.as_ref().and_then(|paths| paths.spec_replicas.simple()) else { return };
    let mut place = object;
    for name in names {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[name];
    }
    *place = replicas;
}

#[cfg(test)]
mod tests;
