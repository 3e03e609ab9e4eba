//! The paths of a resource and what can be done there.

use serde_json::{Map, Value, json};

use super::library::{Version, definition_name};
use crate::registry::Served;

/// What the query of a method may say, with its JSON type.
const PARAMETERS: &[(&[&str], &str, &str)] = &[
    (&["post", "put", "patch", "delete", "deletecollection"], "dryRun", "string"),
    (&["post", "put", "patch"], "fieldManager", "string"),
    (&["post", "put", "patch"], "fieldValidation", "string"),
    (&["patch"], "force", "boolean"),
    (&["delete", "deletecollection"], "gracePeriodSeconds", "integer"),
    (&["delete", "deletecollection"], "propagationPolicy", "string"),
    (&["list"], "allowWatchBookmarks", "boolean"),
    (&["list", "deletecollection"], "continue", "string"),
    (&["list", "deletecollection"], "fieldSelector", "string"),
    (&["list", "deletecollection"], "labelSelector", "string"),
    (&["list", "deletecollection"], "limit", "integer"),
    (&["list", "deletecollection"], "resourceVersion", "string"),
    (&["list", "deletecollection"], "resourceVersionMatch", "string"),
    (&["list"], "sendInitialEvents", "boolean"),
    (&["list"], "timeoutSeconds", "integer"),
    (&["list"], "watch", "boolean"),
];

/// Adds the paths of a resource and its plain subresources.
pub(super) fn add(paths: &mut Map<String, Value>, resource: &Served, version: Version) {
    let namespace = resource.namespaced.then_some("{namespace}");
    let names = definition_name(resource);
    let own = names.first().map(|(_, name)| version.reference(name));
    let list = names.get(1).map(|(_, name)| version.reference(name));
    let operation = |action: &str, place: &str, body: bool, answer: &Option<Value>| {
        operation_of(resource, version, (action, place), body.then_some(&own).and_then(Option::as_ref), answer.as_ref())
    };
    let mut add = |path: String, mut item: Value| {
        let segments: Vec<Value> = ["namespace", "name"]
            .into_iter()
            .filter(|segment| path.contains(&format!("{{{segment}}}")))
            .map(|segment| version.segment(segment))
            .collect();
        if !segments.is_empty() {
            item["parameters"] = json!(segments);
        }
        paths.insert(path, item);
    };
    let mut collection = json!({});
    for (verb, method, action, answer) in [("list", "get", "list", &list), ("create", "post", "post", &own)] {
        if resource.has_verb(verb) {
            collection[method] = operation(action, "", verb == "create", answer);
        }
    }
    if resource.has_verb("deletecollection") {
        collection["delete"] = operation("deletecollection", "", false, &None);
    }
    add(resource.path(namespace, None), collection);
    if !resource.has_verb("get") {
        return;
    }
    if resource.namespaced {
        add(resource.path(None, None), json!({"get": operation("list", "ForAllNamespaces", false, &list)}));
    }
    let changes = |place: &str| {
        let mut item = json!({"get": operation("get", place, false, &own)});
        if resource.has_verb("update") {
            item["put"] = operation("put", place, true, &own);
            item["patch"] = operation("patch", place, false, &own);
        }
        item
    };
    let path = resource.path(namespace, Some("{name}"));
    if resource.has_subresource("status") {
        add(format!("{path}/status"), changes("Status"));
    }
    let mut object = changes("");
    if resource.has_verb("delete") {
        object["delete"] = operation("delete", "", false, &None);
    }
    add(path, object);
}

fn operation_of(
    resource: &Served,
    version: Version,
    (action, place): (&str, &str),
    body: Option<&Value>,
    answer: Option<&Value>,
) -> Value {
    let kind = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
    let taken = PARAMETERS.iter().filter(|(actions, ..)| actions.contains(&action));
    let mut parameters: Vec<Value> = taken.map(|(_, name, of_type)| version.query(name, of_type)).collect();
    let mut operation = json!({
        "operationId": format!("{action}{}{}{}{place}", resource.group, resource.version, resource.kind),
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
