//! Server-side apply: cases as Kubernetes documents them, and properties.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

mod cases;
mod custom;
mod properties;
mod updates;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;

/// The second at which write number `n` happens.
fn at(n: i64) -> Timestamp {
    Timestamp::from_second(1_767_366_245 + n).unwrap()
}

fn write<'a>(kind: &str, manager: &'a str, now: i64) -> Write<'a> {
    let api_version = if matches!(kind, "Deployment") { "apps/v1" } else { "v1" };
    Write {
        view: View::built_in(kind),
        manager,
        api_version,
        subresource: "",
        reach: Reach::Without("status"),
        now: at(now),
    }
}

/// A Deployment with this `spec`.
fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"}, "spec": spec})
}

/// A ConfigMap with this `data`.
fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "default"}, "data": data})
}

fn kind_of(object: &Value) -> String {
    object["kind"].as_str().unwrap().to_owned()
}

/// Applies as `manager`; the object's kind says the schema.
fn applied(manager: &str, live: Option<&Value>, config: &Value) -> Value {
    apply(&write(&kind_of(config), manager, 0), live, config, false).unwrap()
}

fn refused(manager: &str, live: &Value, config: &Value) -> String {
    apply(&write(&kind_of(config), manager, 0), Some(live), config, false).unwrap_err().to_string()
}

/// The object as `manager` would leave it with a plain create or update.
fn updated(manager: &str, old: Option<&Value>, mut new: Value) -> Value {
    let fields = update(&write(&kind_of(&new), manager, 0), old, &new, None);
    new["metadata"]["managedFields"] = fields;
    new
}

/// The fields a manager owns, as `fieldsV1`; null when it owns none.
fn owned(object: &Value, manager: &str) -> Value {
    let entries = object["metadata"]["managedFields"].as_array();
    let entry = entries.into_iter().flatten().find(|entry| entry["manager"] == manager);
    entry.map_or(Value::Null, |entry| entry["fieldsV1"].clone())
}
