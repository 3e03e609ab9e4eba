//! Other forms of the same objects: `Table`, which `kubectl get` prints, and `PartialObjectMetadata`.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/api-concepts/#receiving-resources-as-tables>.

use jiff::Timestamp;
use mainstay_model::table;
use serde_json::{Value, json};

use crate::registry::Served;
use crate::request::{Call, Form};

/// Objects with a list's metadata, before they take their form.
pub(crate) struct Objects {
    items: Vec<Value>,
    metadata: Value,
}

/// Puts objects and the metadata of their list together.
pub(crate) fn list_of(items: Vec<Value>, metadata: Value) -> Objects {
    Objects { items, metadata }
}

/// One object as a table of one row.
pub(crate) fn table_of(object: Value) -> Objects {
    let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
    Objects { items: vec![object], metadata }
}

/// The answer to a call about one object, in the form the client asked for.
pub(crate) fn shape_one(call: &Call, object: Value, form: Form, now: Timestamp) -> Value {
    match form {
        Form::Metadata => metadata_only(&object),
        Form::Table if object["kind"] == call.resource.kind => {
            let include = call.query.get("includeObject").unwrap_or("Metadata");
            to_form(&call.resource, table_of(object), form, include, now)
        }
        _ => object,
    }
}

/// A list in the form the client asked for; `include` says what a table row carries of its object.
pub(crate) fn to_form(resource: &Served, objects: Objects, form: Form, include: &str, now: Timestamp) -> Value {
    let Objects { items, metadata } = objects;
    if form == Form::Metadata {
        let items: Vec<Value> = items.iter().map(metadata_only).collect();
        return json!({
            "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items,
        });
    }
    let version = resource.custom().map(|custom| &custom.version);
    let columns = version
        .map_or_else(|| table::column_definitions(resource.rules()), |version| json!(version.column_definitions()));
    let rows = items.into_iter().map(|object| {
        let cells = match version {
            Some(version) => version.cells(&object, now),
            None => table::row(resource.rules(), &object, now),
        };
        let object = match include {
            "None" => Value::Null,
            "Object" => object,
            _ => metadata_only(&object),
        };
        json!({"cells": cells, "object": object})
    });
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": columns, "rows": rows.collect::<Vec<_>>(),
    })
}

/// An object's metadata as an object of its own.
pub(super) fn metadata_only(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}
