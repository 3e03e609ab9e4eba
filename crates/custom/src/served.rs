//! What the API server needs to serve a kind: one [`Version`] for each served version of a definition.
//!
//! A version has the same row as a built-in resource, so that requests for it take the same path.

mod openapi;
mod table;

use std::sync::Arc;

use mainstay_model::meta::str_at;
use mainstay_model::resource::{Resource, VERBS};
use serde_json::Value;

use crate::conversion::Conversion;
use crate::definition;
use crate::jsonpath::JsonPath;
use crate::schema::{Schema, SchemaError};
pub use openapi::{LIST_META, OBJECT_META};
pub use table::Column;

/// A served version of a custom kind.
#[derive(Debug)]
pub struct Version {
    /// Where it is served and what it is called, as of any resource.
    pub row: Arc<Resource>,
    /// The version objects are stored in.
    pub storage: String,
    /// Its schema.
    pub schema: Schema,
    /// Columns of tables, the name not among them.
    pub columns: Vec<Column>,
    /// Fields that field selectors may use, by name (`spec.color`).
    pub selectable: Vec<String>,
    /// How many replicas, where the kind can be scaled.
    pub scale: Option<ScalePaths>,
    /// The warning for its users, when the version is deprecated.
    pub warning: Option<String>,
    /// How objects come from and to other versions.
    pub conversion: Arc<Conversion>,
    /// The schema as it was given, for OpenAPI.
    source: Value,
}

/// Where `scale` finds its figures.
#[derive(Debug, Clone, PartialEq)]
pub struct ScalePaths {
    /// Wanted replicas, below `.spec`.
    pub spec_replicas: JsonPath,
    /// Replicas there are, below `.status`.
    pub status_replicas: JsonPath,
    /// The label selector as text, if there is one.
    pub label_selector: Option<JsonPath>,
}

/// The served versions of a definition that validation has accepted.
///
/// # Errors
/// When a schema cannot be compiled.
pub fn versions(definition: &Value) -> Result<Vec<Version>, SchemaError> {
    let conversion = Arc::new(Conversion::of(definition));
    let served = definition::versions(definition).iter().filter(|version| version["served"] == true);
    served.map(|version| Version::read(definition, version, &conversion)).collect()
}

impl Version {
    fn read(definition: &Value, version: &Value, conversion: &Arc<Conversion>) -> Result<Self, SchemaError> {
        let row = row(definition, version);
        let source = version["schema"]["openAPIV3Schema"].clone();
        let names = version["selectableFields"].as_array().into_iter().flatten();
        let selectable = names.filter_map(|field| Some(field["jsonPath"].as_str()?.trim_start_matches('.').to_owned()));
        Ok(Self {
            storage: definition::storage_version(definition).unwrap_or_default().to_owned(),
            schema: Schema::compile(&source)?,
            columns: table::columns(version),
            selectable: selectable.collect(),
            scale: scale(&version["subresources"]["scale"]),
            warning: warning(&row, version),
            conversion: conversion.clone(),
            row: Arc::new(row),
            source,
        })
    }

    /// Its schema as the definition gives it.
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// `apiVersion` of stored objects.
    pub fn storage_api_version(&self) -> String {
        format!("{}/{}", self.row.group, self.storage)
    }
}

fn row(definition: &Value, version: &Value) -> Resource {
    let names = &definition["status"]["acceptedNames"];
    let names = if names["plural"].as_str().is_some_and(|plural| !plural.is_empty()) {
        names
    } else {
        &definition["spec"]["names"]
    };
    let text = |field: &str| names[field].as_str().unwrap_or_default().to_owned();
    let list = |field: &str| -> Vec<String> {
        names[field].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let subresources = ["scale", "status"].into_iter().filter(|name| version["subresources"][*name].is_object());
    Resource {
        group: str_at(definition, "spec.group").unwrap_or_default().to_owned(),
        version: version["name"].as_str().unwrap_or_default().to_owned(),
        kind: text("kind"),
        plural: text("plural"),
        singular: text("singular"),
        list_kind: text("listKind"),
        short_names: list("shortNames"),
        categories: list("categories"),
        namespaced: definition["spec"]["scope"] == "Namespaced",
        subresources: subresources.map(str::to_owned).collect(),
        verbs: VERBS.iter().map(|&verb| verb.to_owned()).collect(),
    }
}

fn scale(paths: &Value) -> Option<ScalePaths> {
    let path = |field: &str| JsonPath::parse(paths[field].as_str()?).ok();
    Some(ScalePaths {
        spec_replicas: path("specReplicasPath")?,
        status_replicas: path("statusReplicasPath")?,
        label_selector: path("labelSelectorPath"),
    })
}

fn warning(row: &Resource, version: &Value) -> Option<String> {
    if version["deprecated"] != true {
        return None;
    }
    let given = version["deprecationWarning"].as_str().map(str::to_owned);
    Some(given.unwrap_or_else(|| format!("{}/{} {} is deprecated", row.group, row.version, row.kind)))
}
