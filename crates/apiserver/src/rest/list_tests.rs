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
