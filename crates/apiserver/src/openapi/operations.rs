//! The paths of a resource and what can be done there.

use serde_json::{Map, Value, json};

use super::library::{Version, definition_name};
use crate::registry::Served;

/// Adds the paths of a resource and its plain subresources.
pub(super) fn add(paths: &mut Map<String, Value>, resource: &Served, version: Version) {
    let namespace = resource.namespaced.then_some("{namespace}");
    let names = definition_name(resource);
    let own = names.first().map(|(_, name)| version.reference(name));
    let list = names.get(1).map(|(_, name)| version.reference(name));
    let operation = |method: &str, action: &str, body: bool, answer: &Option<Value>| {
        let answer = answer.as_ref();
        operation_of(resource, version, (method, action), body.then_some(&own).and_then(Option::as_ref), answer)
    };
    let mut collection = Map::new();
    for (verb, method, action) in [("list", "get", "list"), ("create", "post", "post")] {
        if resource.has_verb(verb) {
            let answer = if verb == "list" { &list } else { &own };
            collection.insert(method.to_owned(), operation(method, action, verb == "create", answer));
        }
    }
    if resource.has_verb("deletecollection") {
        collection.insert("delete".to_owned(), operation("delete", "deletecollection", false, &None));
    }
    paths.insert(resource.path(namespace, None), Value::Object(collection));
    if !resource.has_verb("get") {
        return;
    }
    if resource.namespaced {
        paths.insert(resource.path(None, None), json!({"get": operation("get", "list", false, &list)}));
    }
    let object = json!({
        "get": operation("get", "get", false, &own), "put": operation("put", "put", true, &own),
        "patch": operation("patch", "patch", false, &own), "delete": operation("delete", "delete", false, &None),
    });
    let path = resource.path(namespace, Some("{name}"));
    if resource.has_subresource("status") {
        let status = json!({
            "get": operation("get", "get", false, &own), "put": operation("put", "put", true, &own),
            "patch": operation("patch", "patch", false, &own),
        });
        paths.insert(format!("{path}/status"), status);
    }
    paths.insert(path, object);
}

fn operation_of(
    resource: &Served,
    version: Version,
    (method, action): (&str, &str),
    body: Option<&Value>,
    answer: Option<&Value>,
) -> Value {
    let kind = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
    let mut parameters = Vec::new();
    if matches!(method, "post" | "put" | "patch") {
        parameters.extend(["dryRun", "fieldManager", "fieldValidation"].map(|name| version.query(name)));
    }
    if method == "patch" {
        parameters.push(version.query("force"));
    }
    let mut operation = json!({
        "operationId": format!("{action}{}{}", resource.version, resource.kind),
        "responses": {"200": version.response(answer)},
        "x-kubernetes-action": action, "x-kubernetes-group-version-kind": kind,
    });
    if let Some(body) = body {
        version.body(&mut operation, &mut parameters, body);
    }
    if !parameters.is_empty() {
        operation["parameters"] = json!(parameters);
    }
    operation
}
