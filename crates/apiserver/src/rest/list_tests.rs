//! Lists page by page, and how refusals of lists are told.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use crate::testing::{World, admin};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn world(names: &[&str]) -> World {
    let world = World::new().await;
    for name in names {
        world.post(MAPS, json!({"metadata": {"name": name}})).await;
    }
    world
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_list_whose_state_is_gone_can_be_gone_on_with() {
    let world = world(&["a", "b", "c"]).await;
    let first = world.get(&format!("{MAPS}?limit=1")).await;
    assert_eq!((names(&first), &first["metadata"]["remainingItemCount"]), (vec!["a"], &json!(2)));
    world.post(MAPS, json!({"metadata": {"name": "bb"}})).await;
    let now = world.api.store.revision().await.unwrap();
    world.api.store.compact(now).await.unwrap();
    let next = |page: &Value| format!("{MAPS}?limit=2&continue={}", page["metadata"]["continue"].as_str().unwrap());
    let expired = world.call(admin(), "GET", &next(&first), &Value::Null).await;
    assert!(expired.refused(410).starts_with("The provided continue parameter is too old"), "{}", expired.body);
    assert_eq!(expired.body["reason"], "Expired");
    let second = world.get(&next(&expired.body)).await;
    assert_eq!(names(&second), ["b", "bb"]);
    // From here on it is a list of one state again.
    assert_eq!(second["metadata"]["resourceVersion"], now.to_string());
    assert_eq!(names(&world.get(&next(&second)).await), ["c"]);
}

#[tokio::test]
async fn a_token_of_another_list_is_refused() {
    let world = world(&["a", "b"]).await;
    let first = world.get(&format!("{MAPS}?limit=1")).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    for path in [format!("/api/v1/secrets?continue={token}"), format!("{MAPS}?continue=nonsense")] {
        assert!(world.call(admin(), "GET", &path, &Value::Null).await.refused(400).starts_with("continue key"));
    }
}

#[tokio::test]
async fn refusals_come_in_the_encoding_that_was_asked_for() {
    let world = world(&[]).await;
    let get = async |accept: &str| {
        let answer = world.call_with(admin(), "GET", &format!("{MAPS}/a"), &Value::Null, &[("accept", accept)]).await;
        assert_eq!(answer.code, 404);
        (answer.headers["content-type"].to_str().unwrap().to_owned(), answer.body)
    };
    let (media_type, body) = get("application/vnd.kubernetes.protobuf, application/json").await;
    assert_eq!(media_type, "application/vnd.kubernetes.protobuf");
    let text = body.as_str().unwrap();
    assert!(text.starts_with("k8s\0") && text.contains("configmaps \"a\" not found"), "{text:?}");
    assert_eq!(get("application/yaml").await.0, "application/yaml");
    // What is a table otherwise, and what cannot be given at all, is refused in JSON.
    for accept in ["application/json;as=Table;v=v1;g=meta.k8s.io,application/json", "text/csv, */*;q=0.1"] {
        let (media_type, body) = get(accept).await;
        assert_eq!((media_type.as_str(), &body["kind"]), ("application/json", &json!("Status")));
    }
}

/// Configmaps as nobody would write them, more than one chunk of them.
async fn many() -> World {
    let world = world(&[]).await;
    for number in 0..620 {
        let metadata = match number % 3 {
            0 => json!({"labels": {"third": "yes"}, "annotations": {"quote": "\"back\\slash\n\u{1f980}"}}),
            1 => json!({"labels": {"third": "no"}}),
            _ => json!({}),
        };
        let mut map = json!({"metadata": metadata, "data": {"metadata": "{\"kind\":1}", "number": number.to_string()}});
        map["metadata"]["name"] = json!(format!("map-{number:04}"));
        world.post(MAPS, map).await;
    }
    world
}

/// What the store holds, read as trees.
async fn by_tree(world: &World, labels: &str) -> Vec<Value> {
    let uri = format!("{MAPS}?labelSelector={labels}").parse().unwrap();
    let catalogue = world.api.registry.now().await.unwrap();
    let crate::request::Target::Resource(call) = crate::request::parse(&http::Method::GET, &uri, &catalogue).unwrap()
    else {
        panic!("a list is about a resource")
    };
    super::select(&world.api, &call, &super::Filter::of(&call).unwrap()).await.unwrap().0
}

#[tokio::test]
async fn a_list_by_text_is_the_list_by_tree() {
    let world = many().await;
    for labels in ["", "third%3Dyes", "third%3Dnobody"] {
        let mut expected = by_tree(&world, labels).await;
        for object in &mut expected {
            let map = object.as_object_mut().unwrap();
            assert_eq!((map.remove("kind"), map.remove("apiVersion")), (Some(json!("ConfigMap")), Some(json!("v1"))));
        }
        let list = world.get(&format!("{MAPS}?labelSelector={labels}")).await;
        assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("ConfigMapList"), &json!("v1")));
        assert!(list["metadata"]["resourceVersion"].is_string());
        assert_eq!(list["items"], json!(expected));
        let mut pages = Vec::new();
        let mut next = String::new();
        loop {
            let page = world.get(&format!("{MAPS}?labelSelector={labels}&limit=150{next}")).await;
            pages.extend(page["items"].as_array().unwrap().iter().cloned());
            match page["metadata"]["continue"].as_str() {
                Some(token) => next = format!("&continue={token}"),
                None => break,
            }
        }
        assert_eq!(json!(pages), json!(expected));
    }
}

#[tokio::test]
async fn a_watch_begins_with_all_there_is_and_then_says_so() {
    let world = many().await;
    let watch = format!("{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=1");
    for (labels, accept) in [
        ("", "application/json"),
        ("third%3Dyes", "application/json"),
        ("third%3Dyes", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"),
    ] {
        let path = format!("{watch}&labelSelector={labels}");
        let answer = world.call_with(admin(), "GET", &path, &Value::Null, &[("accept", accept)]).await;
        let lines: Vec<Value> =
            answer.body.as_str().unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let (end, events) = lines.split_last().unwrap();
        assert_eq!((&end["type"], events.len()), (&json!("BOOKMARK"), by_tree(&world, labels).await.len()));
        assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
        assert!(events.iter().all(|event| event["type"] == "ADDED"));
        if !accept.contains("Partial") {
            let objects: Vec<&Value> = events.iter().map(|event| &event["object"]).collect();
            assert_eq!(json!(objects), json!(by_tree(&world, labels).await));
        }
    }
}

#[tokio::test]
async fn a_selecting_watch_sees_objects_come_and_go() {
    let world = world(&["a"]).await;
    let revision = world.api.store.revision().await.unwrap();
    for labels in [json!({"x": "1"}), json!({"x": "1", "y": "2"}), json!({}), json!({"x": "1"})] {
        let text = json!([{"op": "add", "path": "/metadata/labels", "value": labels}]).to_string();
        let patch = [("content-type", "application/json-patch+json")];
        world.call_raw(admin(), "PATCH", &format!("{MAPS}/a"), &text, &patch).await.ok();
    }
    world.call(admin(), "DELETE", &format!("{MAPS}/a"), &Value::Null).await.ok();
    let last = world.api.store.revision().await.unwrap().to_string();
    for (selector, expected) in [
        ("labelSelector=x", "ADDED MODIFIED DELETED ADDED DELETED"),
        ("fieldSelector=metadata.name%3Da", "MODIFIED MODIFIED MODIFIED MODIFIED DELETED"),
        ("", "MODIFIED MODIFIED MODIFIED MODIFIED DELETED"),
    ] {
        // Twice: the second watcher is told what the first one made.
        for _ in 0..2 {
            let path = format!("{MAPS}?watch=true&resourceVersion={revision}&timeoutSeconds=1&{selector}");
            let answer = world.call(admin(), "GET", &path, &Value::Null).await;
            let lines: Vec<Value> =
                answer.body.as_str().unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let kinds: Vec<&str> = lines.iter().map(|line| line["type"].as_str().unwrap()).collect();
            assert_eq!(kinds.join(" "), expected, "{selector}");
            assert_eq!(lines.last().unwrap()["object"]["metadata"]["resourceVersion"], last);
        }
    }
}
