//! OpenAPI v3, as much of it as clients need before they send an object: which patches and parameters each kind takes.
//!
//! `kubectl apply` looks here for the `fieldValidation` parameter and then leaves the checking of fields to the server,
//! which does it in [`crate::decode`]. Schemas of the kinds (`kubectl explain`) are not here yet.

use mainstay_model::resource::Resource;
use mainstay_model::status::ApiError;
use serde_json::{Map, Value, json};

use crate::registry::Catalogue;

/// `/openapi/v3`: the documents there are.
pub(crate) fn index(catalogue: &Catalogue) -> Value {
    let mut paths = Map::new();
    for resource in catalogue.all() {
        let name = document_name(&resource.group, &resource.version);
        let url = format!("/openapi/v3/{name}?hash={}", env!("CARGO_PKG_VERSION"));
        paths.insert(name, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

fn document_name(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v3/apis/apps/v1` and the like.
///
/// # Errors
/// 404 for a group that is not served.
pub(crate) fn group(catalogue: &Catalogue, name: &str) -> Result<Value, ApiError> {
    let mut paths = Map::new();
    for resource in catalogue.all().iter().filter(|r| document_name(&r.group, &r.version) == name) {
        let namespace = resource.namespaced.then_some("{namespace}");
        let kind = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
        let write = |method: &str| operation(resource, method, &kind);
        paths.insert(resource.path(namespace, None), json!({"post": write("post")}));
        paths.insert(resource.path(namespace, Some("{name}")), json!({"put": write("put"), "patch": write("patch")}));
    }
    if paths.is_empty() {
        return Err(ApiError::no_such_path());
    }
    Ok(json!({
        "openapi": "3.0.0", "info": {"title": "Mainstay", "version": "v1.37.0"},
        "paths": paths, "components": {"schemas": {}},
    }))
}

fn operation(resource: &Resource, method: &str, kind: &Value) -> Value {
    let parameter =
        |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    json!({
        "operationId": format!("{method}{}{}", resource.version, resource.kind),
        "parameters": [parameter("dryRun"), parameter("fieldManager"), parameter("fieldValidation")],
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": method, "x-kubernetes-group-version-kind": kind,
    })
}
