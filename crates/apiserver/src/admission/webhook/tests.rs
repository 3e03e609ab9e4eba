//! Real webhooks: HTTPS servers of the test, asked by the whole server.

#![allow(clippy::unwrap_used)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::testing::hook::Hook;
use crate::testing::{World, admin};

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/shop/configmaps";

trait Definition {
    fn definition(&self, name: &str, more: &Value) -> Value;
}

impl Definition for Hook {
    /// A webhook in a configuration, on writes of config maps.
    fn definition(&self, name: &str, more: &Value) -> Value {
        let mut definition = json!({
            "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": {"url": self.url, "caBundle": self.bundle},
            "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            definition[field] = value.clone();
        }
        definition
    }
}

async fn configure(world: &World, kind: &str, webhooks: Value) {
    let body = json!({"metadata": {"name": "w"}, "webhooks": webhooks});
    world.post(&format!("{CONFIGURATIONS}/{kind}webhookconfigurations"), body).await;
}

fn patch(operations: &Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string())})
}

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"a": "1"}})
}

async fn world() -> World {
    let world = World::new().await;
    world.namespace("shop", json!({"team": "a"})).await;
    world
}

#[tokio::test]
async fn a_validating_webhook_refuses_warns_and_sees_everything() {
    let world = world().await;
    let hook = Hook::start(|request| {
        let allowed = request["object"]["data"]["a"] != "bad" && request["operation"] != "DELETE";
        json!({"allowed": allowed, "warnings": ["looked at"], "status": {"code": 403, "reason": "Forbidden", "message": "no"}})
    })
    .await;
    configure(&world, "validating", json!([hook.definition("v.example.com", &json!({}))])).await;
    let made = world.call(admin(), "POST", MAPS, &map("m")).await;
    assert_eq!((made.code, made.warnings()), (201, vec!["299 - \"looked at\"".to_owned()]));
    let bad = json!({"data": {"a": "bad"}});
    let refused = world.call(admin(), "PATCH", &format!("{MAPS}/m"), &bad).await;
    assert_eq!(refused.refused(403), "admission webhook \"v.example.com\" denied the request: no");
    world.call(admin(), "DELETE", &format!("{MAPS}/m"), &Value::Null).await.refused(403);
    let requests = hook.requests.lock().unwrap().clone();
    let words: Vec<&str> = requests.iter().filter_map(|request| request["operation"].as_str()).collect();
    assert_eq!(words, ["CREATE", "UPDATE", "DELETE"]);
    let update = &requests[1];
    assert_eq!((&update["oldObject"]["data"]["a"], &update["object"]["data"]["a"]), (&json!("1"), &json!("bad")));
    assert_eq!(
        (&update["name"], &update["namespace"], &update["userInfo"]["username"]),
        (&json!("m"), &json!("shop"), &json!("admin"))
    );
    assert_eq!(update["resource"], json!({"group": "", "version": "v1", "resource": "configmaps"}));
    assert_eq!(requests[2]["object"], Value::Null);
}

#[tokio::test]
async fn mutating_webhooks_go_one_after_another_and_again_if_needed() {
    let world = world().await;
    let first = Hook::start(|request| {
        let seen = request["object"]["data"]["second"].as_str().unwrap_or("no");
        patch(&json!([{"op": "add", "path": "/data/first", "value": seen}]))
    })
    .await;
    let second = Hook::start(|_| patch(&json!([{"op": "add", "path": "/data/second", "value": "yes"}]))).await;
    let webhooks = json!([
        first.definition("first.example.com", &json!({"reinvocationPolicy": "IfNeeded"})),
        second.definition("second.example.com", &json!({})),
    ]);
    configure(&world, "mutating", webhooks).await;
    let made = world.call(admin(), "POST", MAPS, &map("m")).await.ok();
    assert_eq!(made["data"], json!({"a": "1", "first": "yes", "second": "yes"}));
    assert_eq!((first.requests.lock().unwrap().len(), second.requests.lock().unwrap().len()), (2, 1));
}

#[tokio::test]
async fn selectors_choose_and_dry_runs_are_asked_about() {
    let world = world().await;
    let refuse = async || Hook::start(|_| json!({"allowed": false})).await;
    let elsewhere = json!({"namespaceSelector": {"matchLabels": {"team": "b"}}});
    let labelled = json!({"objectSelector": {"matchLabels": {"guarded": "yes"}}});
    let webhooks = json!([
        refuse().await.definition("n.example.com", &elsewhere),
        refuse().await.definition("o.example.com", &labelled)
    ]);
    configure(&world, "validating", webhooks).await;
    world.call(admin(), "POST", MAPS, &map("free")).await.ok();
    let mut guarded = map("guarded");
    guarded["metadata"]["labels"] = json!({"guarded": "yes"});
    let refused = world.call(admin(), "POST", MAPS, &guarded).await;
    assert_eq!(refused.refused(400), "admission webhook \"o.example.com\" denied the request without explanation");
    let dry = world.call(admin(), "POST", &format!("{MAPS}?dryRun=All"), &guarded).await;
    assert_eq!(dry.refused(400), "admission webhook \"o.example.com\" denied the request without explanation");
    // A configuration can always be removed.
    let path = format!("{CONFIGURATIONS}/validatingwebhookconfigurations/w");
    world.call(admin(), "DELETE", &path, &Value::Null).await.ok();
    world.call(admin(), "POST", MAPS, &guarded).await.ok();
}

#[tokio::test]
async fn conditions_choose_by_expressions() {
    let world = world().await;
    let hook = Hook::start(|_| json!({"allowed": false})).await;
    let condition = |expression: &str| json!({"matchConditions": [{"name": "c", "expression": expression}]});
    let guarded =
        hook.definition("c.example.com", &condition("object.data.a == 'bad' && request.userInfo.username != 'root'"));
    configure(&world, "validating", json!([guarded])).await;
    world.call(admin(), "POST", MAPS, &map("m")).await.ok();
    world.call(admin(), "POST", MAPS, &json!({"metadata": {"name": "n"}, "data": {"a": "bad"}})).await.refused(400);
    assert_eq!(hook.requests.lock().unwrap().len(), 1);
    let path = format!("{CONFIGURATIONS}/validatingwebhookconfigurations/w");
    let broken = json!({"webhooks": [hook.definition("c.example.com", &condition("object.data.none == 'x'"))]});
    world.call(admin(), "PATCH", &path, &broken).await.ok();
    world.call(admin(), "POST", MAPS, &map("o")).await.refused(403);
    let wrong = json!({"webhooks": [hook.definition("c.example.com", &condition("object.data ==="))]});
    let refused = world.call(admin(), "PATCH", &path, &wrong).await;
    assert!(refused.refused(422).contains("webhooks[0].matchConditions"), "{}", refused.body);
}

#[tokio::test]
async fn a_webhook_that_fails_refuses_unless_it_may_be_ignored() {
    let world = world().await;
    let hook = Hook::start(|_| json!({"allowed": true})).await;
    // A certificate of somebody else is no certificate.
    let stranger = Hook::start(|_| json!({"allowed": true})).await;
    let strange = json!({"url": hook.url, "caBundle": stranger.bundle});
    let definition =
        |policy: &str| hook.definition("f.example.com", &json!({"clientConfig": strange, "failurePolicy": policy}));
    configure(&world, "validating", json!([definition("Fail")])).await;
    let refused = world.call(admin(), "POST", MAPS, &map("m")).await;
    let text = refused.refused(500);
    assert!(
        text.starts_with(
            "Internal error occurred: failed calling webhook \"f.example.com\": failed to call webhook: Post"
        ),
        "{text}"
    );
    let path = format!("{CONFIGURATIONS}/validatingwebhookconfigurations/w");
    world.call(admin(), "PATCH", &path, &json!({"webhooks": [definition("Ignore")]})).await.ok();
    world.call(admin(), "POST", MAPS, &map("m")).await.ok();
    let lost = json!({"clientConfig": {"service": {"namespace": "shop", "name": "none"}}, "failurePolicy": "Fail"});
    let webhooks = json!({"webhooks": [hook.definition("s.example.com", &lost)]});
    world.call(admin(), "PATCH", &path, &webhooks).await.ok();
    let refused = world.call(admin(), "POST", MAPS, &map("n")).await;
    assert!(refused.refused(500).contains("service \"none\" not found"), "{}", refused.body);
}
