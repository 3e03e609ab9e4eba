//! What does not fit: every request here is refused with a `Status` that says why, and nothing is written.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use crate::testing::{Answer, World, admin};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON_PATCH: (&str, &str) = ("content-type", "application/json-patch+json");

async fn world() -> World {
    let world = World::new().await;
    world.post(MAPS, json!({"metadata": {"name": "a"}, "data": {"k": "v"}})).await;
    world
}

async fn json_patch(world: &World, path: &str, patch: &Value) -> Answer {
    world.call_raw(admin(), "PATCH", path, &patch.to_string(), &[JSON_PATCH]).await
}

#[tokio::test]
async fn a_patch_leaves_an_object() {
    let world = world().await;
    for value in [json!([]), json!("x"), json!(1), json!(null)] {
        let patch = json!([{"op": "replace", "path": "", "value": value}]);
        let refused = json_patch(&world, &format!("{MAPS}/a"), &patch).await;
        assert_eq!(refused.refused(400), "the JSON patch does not leave an object");
    }
}

#[tokio::test]
async fn an_object_is_the_one_of_its_url() {
    let world = world().await;
    let url = format!("{MAPS}/a");
    for (metadata, why) in [
        (json!({"name": "b"}), "the name of the object (b) does not match the name on the URL (a)"),
        (json!({}), "the name of the object (a based on URL) was undeterminable: name must be provided"),
        (
            json!({"name": "a", "namespace": "b"}),
            "the namespace of the object (b) does not match the namespace on the request (default)",
        ),
    ] {
        let put = world.call(admin(), "PUT", &url, &json!({"metadata": metadata})).await;
        assert_eq!(put.refused(400), why);
        let patch = json!([{"op": "replace", "path": "/metadata", "value": metadata}]);
        assert_eq!(json_patch(&world, &url, &patch).await.refused(400), why);
    }
}

#[tokio::test]
async fn bodies_of_other_kinds_have_their_shape_too() {
    let world = world().await;
    let namespace = "/api/v1/namespaces/default";
    world.post(&format!("{namespace}/serviceaccounts"), json!({"metadata": {"name": "bot"}})).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "bot", "containers": [{"name": "c", "image": "i"}]}});
    world.post(&format!("{namespace}/pods"), pod).await;
    for (method, path, body) in [
        ("POST", format!("{namespace}/serviceaccounts/bot/token"), json!({"spec": 5})),
        ("POST", format!("{namespace}/serviceaccounts/bot/token"), json!({"spec": {"audiences": "x"}})),
        ("POST", format!("{namespace}/serviceaccounts/bot/token"), json!({"kind": "Pod"})),
        ("POST", format!("{namespace}/pods/p/eviction"), json!({"deleteOptions": 5})),
        ("POST", format!("{namespace}/pods/p/eviction"), json!({"deleteOptions": {"preconditions": "x"}})),
        ("POST", format!("{namespace}/pods/p/binding"), json!({"target": "node"})),
        ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews".to_owned(), json!({"spec": 5})),
        ("POST", "/apis/authentication.k8s.io/v1/tokenreviews".to_owned(), json!({"spec": {"token": 5}})),
        // A condition that cannot be read is none that holds.
        ("DELETE", format!("{MAPS}/a"), json!({"preconditions": {"uid": 5}})),
        ("DELETE", format!("{MAPS}/a"), json!({"kind": "Pod"})),
        ("DELETE", format!("{MAPS}/a"), json!({"dryRun": ["Al"]})),
        ("DELETE", format!("{MAPS}?limit=-1"), Value::Null),
    ] {
        let refused = world.call(admin(), method, &path, &body).await;
        assert_eq!((refused.code, &refused.body["reason"]), (400, &json!("BadRequest")), "{path} {body}");
    }
    world.get(&format!("{MAPS}/a")).await;
    world.get(&format!("{namespace}/pods/p")).await;
}
