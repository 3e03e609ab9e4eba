//! Custom resources from the definition to the last object, through a whole server.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::{Value, json};

use crate::testing::hook::Hook;
use crate::testing::{Answer, World, admin};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn definition() -> Value {
    let schema = json!({"type": "object", "required": ["spec"], "properties": {
        "spec": {"type": "object", "required": ["size"],
            "x-kubernetes-validations": [{"rule": "self.size <= self.max", "message": "size must not be above max"}],
            "properties": {
                "size": {"type": "integer", "minimum": 0}, "max": {"type": "integer", "default": 10},
                "color": {"type": "string", "enum": ["blue", "red"], "default": "red"},
                "name": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "name is immutable"}]},
                "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
                    "items": {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}, "p": {"type": "string", "default": "TCP"}}}},
            }},
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}},
    }});
    let version = |name: &str, storage: bool| {
        json!({
            "name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size",
                "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
            "additionalPrinterColumns": [
                {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
                {"name": "Color", "type": "string", "jsonPath": ".spec.color", "priority": 1},
                {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
            ],
            "selectableFields": [{"jsonPath": ".spec.color"}],
        })
    };
    let mut old = version("v1beta1", false);
    old["deprecated"] = json!(true);
    json!({
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]},
            "versions": [version("v1", true), old],
        },
    })
}

fn widget(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

async fn world() -> World {
    let world = World::new().await;
    let created = world.post(DEFINITIONS, definition()).await;
    let condition = |kind: &str| {
        created["status"]["conditions"].as_array().unwrap().iter().find(|it| it["type"] == kind).unwrap()["status"]
            .clone()
    };
    assert_eq!((condition("Established"), condition("NamesAccepted")), (json!("True"), json!("True")));
    world
}

async fn send(world: &World, method: &str, path: &str, body: &Value) -> Answer {
    world.call(admin(), method, path, body).await
}

#[tokio::test]
async fn a_kind_is_served_right_after_its_definition() {
    let world = world().await;
    let created = world.post(WIDGETS, widget("a", &json!({"size": 3, "ports": [{"n": 80}]}))).await;
    let expected = json!({"size": 3, "max": 10, "color": "red", "ports": [{"n": 80, "p": "TCP"}]});
    assert_eq!((&created["spec"], &created["metadata"]["generation"]), (&expected, &json!(1)));
    assert!(created.get("status").is_none());
}

#[tokio::test]
async fn discovery_and_openapi_know_the_kind() {
    let world = world().await;
    let list = world.get("/apis/example.com/v1").await;
    assert_eq!(list["resources"][0]["shortNames"], json!(["wd"]));
    assert_eq!(list["resources"].as_array().unwrap().len(), 3);
    let group = world.get("/apis/example.com").await;
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let aggregated = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")];
    let all = world.call_with(admin(), "GET", "/apis", &Value::Null, &aggregated).await.ok();
    let own = all["items"].as_array().unwrap().iter().find(|it| it["metadata"]["name"] == "example.com").unwrap();
    assert_eq!(own["versions"][1]["version"], "v1beta1");
    let document = world.get("/openapi/v3/apis/example.com/v1").await;
    let schema = &document["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(schema["properties"]["spec"]["properties"]["size"]["minimum"], 0);
    assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "Widget");
    assert!(document["components"]["schemas"]["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"].is_object());
    let second = world.get("/openapi/v2").await;
    assert!(second["definitions"]["com.example.v1.WidgetList"].is_object());
}

#[tokio::test]
async fn objects_are_judged_by_their_schema() {
    let world = world().await;
    let bad = send(&world, "POST", WIDGETS, &widget("b", &json!({"size": -1, "color": "green"}))).await;
    assert_eq!(
        bad.refused(422),
        "Widget.example.com \"b\" is invalid: [spec.color: Unsupported value: \"green\": supported values: \"blue\", \"red\", spec.size: Invalid value: -1: spec.size in body should be greater than or equal to 0]"
    );
    let bad = send(&world, "POST", WIDGETS, &widget("b", &json!({"size": 11}))).await;
    assert_eq!(
        bad.refused(422),
        "Widget.example.com \"b\" is invalid: spec: Invalid value: size must not be above max"
    );
    assert_eq!(bad.body["details"]["causes"][0]["field"], "spec");
    let bad = send(&world, "POST", WIDGETS, &json!({"metadata": {"name": "b"}})).await;
    assert_eq!(bad.refused(422), "Widget.example.com \"b\" is invalid: spec: Required value");
    let bad =
        send(&world, "POST", WIDGETS, &json!({"metadata": {"name": "b", "labels": {"a": 1}}, "spec": {"size": 1}}))
            .await;
    assert!(bad.refused(400).contains("cannot be handled as a Widget"), "{}", bad.message());

    let unknown = widget("b", &json!({"size": 1, "sise": 2}));
    let strict = send(&world, "POST", &format!("{WIDGETS}?fieldValidation=Strict"), &unknown).await;
    assert!(
        strict.refused(400).ends_with("strict decoding error: unknown field \"spec.sise\""),
        "{}",
        strict.message()
    );
    let warned = send(&world, "POST", WIDGETS, &unknown).await;
    assert!(warned.warnings()[0].contains("unknown field"), "{:?}", warned.warnings());
    assert_eq!(warned.ok()["spec"].get("sise"), None);
}

#[tokio::test]
async fn updates_status_and_scale() {
    let world = world().await;
    world.post(WIDGETS, widget("a", &json!({"size": 3, "name": "x"}))).await;
    let path = format!("{WIDGETS}/a");
    let patched = send(&world, "PATCH", &path, &json!({"spec": {"size": 4}, "status": {"replicas": 9}})).await.ok();
    assert_eq!((&patched["metadata"]["generation"], patched.get("status")), (&json!(2), None));
    let renamed = send(&world, "PATCH", &path, &json!({"spec": {"name": "y"}})).await;
    assert_eq!(
        renamed.refused(422),
        "Widget.example.com \"a\" is invalid: spec.name: Invalid value: \"y\": name is immutable"
    );
    let status = json!({"status": {"replicas": 2, "selector": "app=a"}, "spec": {"size": 9}});
    let status = send(&world, "PATCH", &format!("{path}/status"), &status).await.ok();
    assert_eq!((&status["spec"]["size"], &status["status"]["replicas"]), (&json!(4), &json!(2)));
    assert_eq!(status["metadata"]["generation"], 2);

    let scale = world.get(&format!("{path}/scale")).await;
    assert_eq!(scale["spec"], json!({"replicas": 4}));
    assert_eq!(scale["status"], json!({"replicas": 2, "selector": "app=a"}));
    send(&world, "PATCH", &format!("{path}/scale"), &json!({"spec": {"replicas": 6}})).await.ok();
    assert_eq!(world.get(&path).await["spec"]["size"], 6);
    let too_many = send(&world, "PATCH", &format!("{path}/scale"), &json!({"spec": {"replicas": 60}})).await;
    assert!(too_many.refused(422).contains("size must not be above max"));
}

#[tokio::test]
async fn columns_and_selectable_fields() {
    let world = world().await;
    world.post(WIDGETS, widget("a", &json!({"size": 3}))).await;
    world.post(WIDGETS, widget("b", &json!({"size": 4, "color": "blue"}))).await;
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = world.call_with(admin(), "GET", WIDGETS, &Value::Null, &accept).await.ok();
    let names: Vec<_> = table["columnDefinitions"].as_array().unwrap().iter().map(|it| it["name"].clone()).collect();
    assert_eq!(json!(names), json!(["Name", "Size", "Color", "Age"]));
    assert_eq!(table["rows"][1]["cells"].as_array().unwrap()[..3], [json!("b"), json!(4), json!("blue")]);
    let blue = world.get(&format!("{WIDGETS}?fieldSelector=spec.color%3Dblue")).await;
    assert_eq!(blue["items"].as_array().unwrap().len(), 1);
    assert_eq!(send(&world, "GET", &format!("{WIDGETS}?fieldSelector=spec.size%3D3"), &Value::Null).await.code, 400);
}

#[tokio::test]
async fn every_served_version_shows_the_same_object() {
    let world = world().await;
    world.post(WIDGETS, widget("a", &json!({"size": 3}))).await;
    let old = "/apis/example.com/v1beta1/namespaces/default/widgets/a";
    let answer = send(&world, "GET", old, &Value::Null).await;
    assert_eq!(answer.warnings(), ["299 - \"example.com/v1beta1 Widget is deprecated\""]);
    assert_eq!(answer.ok()["apiVersion"], "example.com/v1beta1");
    send(&world, "PATCH", old, &json!({"spec": {"size": 5}})).await.ok();
    let new = world.get(&format!("{WIDGETS}/a")).await;
    assert_eq!((&new["apiVersion"], &new["spec"]["size"]), (&json!("example.com/v1"), &json!(5)));
}

#[tokio::test]
async fn bad_definitions_are_refused_and_names_belong_to_the_first() {
    let world = world().await;
    let mut bad = definition();
    bad["metadata"]["name"] = json!("gadgets.example.com");
    let refused = send(&world, "POST", DEFINITIONS, &bad).await;
    let text = "metadata.name: Invalid value: \"gadgets.example.com\": must be spec.names.plural+\".\"+spec.group";
    assert!(refused.refused(422).contains(text), "{}", refused.message());

    bad["spec"]["names"]["plural"] = json!("gadgets");
    let second = world.post(DEFINITIONS, bad).await;
    let condition = |object: &Value, kind: &str| {
        object["status"]["conditions"].as_array().unwrap().iter().find(|it| it["type"] == kind).unwrap()["status"]
            .clone()
    };
    assert_eq!(condition(&second, "Established"), "False");
    assert_eq!(send(&world, "GET", "/apis/example.com/v1/gadgets", &Value::Null).await.code, 404);
    // Once the first is gone, its names are free.
    send(&world, "DELETE", &format!("{DEFINITIONS}/widgets.example.com"), &Value::Null).await.ok();
    until(&world, "gadgets", async || {
        condition(&world.get(&format!("{DEFINITIONS}/gadgets.example.com")).await, "Established") == "True"
    })
    .await;
    // Whoever sees that may be quicker than the catalogue, by as much as a watch takes.
    until(&world, "gadgets served", async || {
        send(&world, "GET", "/apis/example.com/v1/gadgets", &Value::Null).await.code == 200
    })
    .await;
}

/// Waits for something that a task of the server brings about.
async fn until(_: &World, what: &str, done: impl AsyncFn() -> bool) {
    for _ in 0..500 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn a_definition_outlives_its_objects() {
    let world = world().await;
    let mut held = widget("held", &json!({"size": 1}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    world.post(WIDGETS, held).await;
    world.post(WIDGETS, widget("a", &json!({"size": 1}))).await;
    let path = format!("{DEFINITIONS}/widgets.example.com");
    let ending = send(&world, "DELETE", &path, &Value::Null).await.ok();
    assert_eq!(ending["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    let refused = send(&world, "POST", WIDGETS, &widget("b", &json!({"size": 1}))).await;
    assert_eq!(refused.refused(405), "create not allowed while custom resource definition is terminating");
    until(&world, "the other object gone", async || {
        send(&world, "GET", &format!("{WIDGETS}/a"), &Value::Null).await.code == 404
    })
    .await;
    assert_eq!(send(&world, "GET", &path, &Value::Null).await.code, 200);
    send(&world, "PATCH", &format!("{WIDGETS}/held"), &json!({"metadata": {"finalizers": null}})).await.ok();
    until(&world, "the definition gone", async || send(&world, "GET", &path, &Value::Null).await.code == 404).await;
    until(&world, "the kind gone", async || send(&world, "GET", WIDGETS, &Value::Null).await.code == 404).await;
    // A new definition begins with nothing.
    world.post(DEFINITIONS, definition()).await;
    assert_eq!(world.get(WIDGETS).await["items"], json!([]));
}

/// A kind whose first version, which is stored, has `host` and `port`, and whose second has `address`.
fn converted(hook: &Hook) -> Value {
    let version = |name: &str, storage: bool, fields: Value| {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": fields}}});
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": schema}})
    };
    let text = json!({"type": "string"});
    let client = json!({"url": hook.url, "caBundle": hook.bundle});
    json!({
        "metadata": {"name": "doors.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "doors", "kind": "Door"},
            "versions": [
                version("v1", true, json!({"host": text, "port": text})),
                version("v2", false, json!({"address": text, "way": {"type": "string", "default": "in"}})),
            ],
            "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": client}},
        },
    })
}

fn convert(request: &Value) -> Value {
    let one = |object: &Value| {
        let (mut object, spec) = (object.clone(), &object["spec"]);
        object["spec"] = match (spec["address"].as_str().and_then(|address| address.split_once(':')), spec) {
            (Some((host, port)), _) => json!({"host": host, "port": port}),
            (None, spec) => {
                json!({"address": format!("{}:{}", spec["host"].as_str().unwrap(), spec["port"].as_str().unwrap())})
            }
        };
        object["apiVersion"] = request["desiredAPIVersion"].clone();
        object
    };
    let objects: Vec<Value> = request["objects"].as_array().unwrap().iter().map(one).collect();
    json!({"result": {"status": "Success"}, "convertedObjects": objects})
}

#[tokio::test]
async fn a_webhook_converts_between_versions() {
    let world = World::new().await;
    let hook = Hook::start(convert).await;
    world.post(DEFINITIONS, converted(&hook)).await;
    let (first, second) =
        ("/apis/example.com/v1/namespaces/default/doors", "/apis/example.com/v2/namespaces/default/doors");
    let made = world.post(second, json!({"metadata": {"name": "a"}, "spec": {"address": "left:80"}})).await;
    assert_eq!(
        (&made["apiVersion"], &made["spec"]),
        (&json!("example.com/v2"), &json!({"address": "left:80", "way": "in"}))
    );
    world.post(first, json!({"metadata": {"name": "b"}, "spec": {"host": "right", "port": "81"}})).await;
    let stored = world.get(&format!("{first}/a")).await;
    assert_eq!(
        (&stored["apiVersion"], &stored["spec"]),
        (&json!("example.com/v1"), &json!({"host": "left", "port": "80"}))
    );
    // All objects of a list go in one question.
    let before = hook.requests.lock().unwrap().len();
    let list = world.get(second).await;
    let addresses: Vec<&Value> =
        list["items"].as_array().unwrap().iter().map(|door| &door["spec"]["address"]).collect();
    assert_eq!(addresses, ["left:80", "right:81"]);
    assert_eq!(hook.requests.lock().unwrap().len(), before + 1);
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    // A patch is computed in the version it is sent to.
    let patch = json!({"spec": {"address": "middle:82"}, "metadata": {"labels": {"x": "y"}}});
    let patched = world.call(admin(), "PATCH", &format!("{second}/b"), &patch).await.ok();
    assert_eq!(patched["spec"]["address"], "middle:82");
    assert_eq!(world.get(&format!("{first}/b")).await["spec"], json!({"host": "middle", "port": "82"}));
    let watch = format!("{second}?watch=true&resourceVersion={revision}&timeoutSeconds=1");
    let seen = world.call(admin(), "GET", &watch, &Value::Null).await;
    assert_eq!(
        (&seen.body["type"], &seen.body["object"]["spec"]["address"]),
        (&json!("MODIFIED"), &json!("middle:82"))
    );
    world.call(admin(), "DELETE", &format!("{second}/a"), &Value::Null).await.ok();
}

#[tokio::test]
async fn without_its_webhook_only_the_stored_version_can_be_had() {
    let world = World::new().await;
    let hook = Hook::start(|_| json!({"result": {"status": "Failed", "message": "not today"}})).await;
    world.post(DEFINITIONS, converted(&hook)).await;
    let (first, second) =
        ("/apis/example.com/v1/namespaces/default/doors", "/apis/example.com/v2/namespaces/default/doors");
    world.post(first, json!({"metadata": {"name": "a"}, "spec": {"host": "left", "port": "80"}})).await;
    let said = world.call(admin(), "GET", &format!("{second}/a"), &Value::Null).await;
    assert_eq!(
        said.refused(500),
        "Internal error occurred: conversion webhook for example.com/v1, Kind=Door failed: conversion webhook failed: not today"
    );
    world
        .call(admin(), "POST", second, &json!({"metadata": {"name": "b"}, "spec": {"address": "x:1"}}))
        .await
        .refused(500);
    assert_eq!(world.get(first).await["items"].as_array().map(Vec::len), Some(1));
}
