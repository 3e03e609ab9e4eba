//! Tokens, impersonation and reviews through the whole server.

#![allow(clippy::unwrap_used)]

use base64::Engine as _;
use serde_json::{Value, json};

use crate::authn::User;
use crate::testing::{Answer, ISSUER, World, admin, user};

const WHOAMI: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

async fn whoami(world: &World, token: &str) -> Answer {
    let header = format!("Bearer {token}");
    world.call_with(None, "POST", WHOAMI, &json!({}), &[("authorization", &header)]).await
}

async fn token(world: &World, spec: Value) -> Value {
    world.post("/api/v1/namespaces/shop/serviceaccounts/default/token", json!({"spec": spec})).await
}

fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[tokio::test]
async fn a_token_stands_for_its_account_as_long_as_it_lives() {
    let world = World::new().await;
    world.namespace("shop", json!({})).await;
    let answer = token(&world, json!({})).await;
    let text = answer["status"]["token"].as_str().unwrap();
    assert_eq!((&answer["spec"]["expirationSeconds"], &answer["spec"]["audiences"]), (&json!(3600), &json!([ISSUER])));
    let claims = claims(text);
    assert_eq!(claims["sub"], "system:serviceaccount:shop:default");
    assert_eq!((&claims["iss"], &claims["aud"]), (&json!(ISSUER), &json!([ISSUER])));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3600);
    assert_eq!(claims["kubernetes.io"]["serviceaccount"]["name"], "default");
    let me = whoami(&world, text).await.ok();
    let info = &me["status"]["userInfo"];
    assert_eq!(info["username"], "system:serviceaccount:shop:default");
    assert_eq!(
        info["groups"],
        json!(["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"])
    );
    assert!(info["extra"]["authentication.kubernetes.io/credential-id"][0].as_str().unwrap().starts_with("JTI="));
    world.call(admin(), "DELETE", "/api/v1/namespaces/shop/serviceaccounts/default", &Value::Null).await.ok();
    whoami(&world, text).await.refused(401);
    // Another account of the same name is another account.
    world.post("/api/v1/namespaces/shop/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    whoami(&world, text).await.refused(401);
}

#[tokio::test]
async fn a_token_bound_to_a_pod_ends_with_it() {
    let world = World::new().await;
    world.namespace("shop", json!({})).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}], "terminationGracePeriodSeconds": 0}});
    world.post("/api/v1/namespaces/shop/pods", pod).await;
    let bound = json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p"}, "expirationSeconds": 3607});
    let answer = token(&world, bound).await;
    let text = answer["status"]["token"].as_str().unwrap();
    let claims = claims(text);
    assert_eq!(claims["kubernetes.io"]["warnafter"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3607);
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 365 * 24 * 3600);
    let me = whoami(&world, text).await.ok();
    assert_eq!(me["status"]["userInfo"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    world.call(admin(), "DELETE", "/api/v1/namespaces/shop/pods/p", &json!({"gracePeriodSeconds": 0})).await.ok();
    whoami(&world, text).await.refused(401);
}

#[tokio::test]
async fn wrong_requests_for_tokens_say_what_is_wrong() {
    let world = World::new().await;
    world.namespace("shop", json!({})).await;
    let path = "/api/v1/namespaces/shop/serviceaccounts/default/token";
    let short = world.call(admin(), "POST", path, &json!({"spec": {"expirationSeconds": 10}})).await;
    assert!(short.refused(422).contains("may not specify a duration less than 10 minutes"), "{}", short.body);
    let lost = json!({"spec": {"boundObjectRef": {"kind": "Secret", "apiVersion": "v1", "name": "s"}}});
    assert_eq!(world.call(admin(), "POST", path, &lost).await.refused(404), "secrets \"s\" not found");
    let path = "/api/v1/namespaces/shop/serviceaccounts/nobody/token";
    assert_eq!(
        world.call(admin(), "POST", path, &json!({})).await.refused(404),
        "serviceaccounts \"nobody\" not found"
    );
    for nonsense in ["a", "a.b.c", "abcdef.0123456789abcdef"] {
        whoami(&world, nonsense).await.refused(401);
    }
}

#[tokio::test]
async fn audiences_keep_tokens_apart() {
    let world = World::new().await;
    world.namespace("shop", json!({})).await;
    let answer = token(&world, json!({"audiences": ["vault"]})).await;
    let text = answer["status"]["token"].as_str().unwrap();
    whoami(&world, text).await.refused(401);
    let review = async |audiences: Value| {
        let spec = json!({"token": text, "audiences": audiences});
        world.post("/apis/authentication.k8s.io/v1/tokenreviews", json!({"spec": spec})).await["status"].clone()
    };
    let status = review(json!(["vault", "other"])).await;
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!(["vault"])));
    let status = review(json!([])).await;
    assert!(status["authenticated"].is_null() && status["error"].as_str().unwrap().contains("audiences"), "{status}");
}

#[tokio::test]
async fn a_bootstrap_token_is_a_secret() {
    let world = World::new().await;
    let secret = json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token", "stringData": {
        "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
        "auth-extra-groups": "system:bootstrappers:nodes,system:masters"}});
    world.post("/api/v1/namespaces/kube-system/secrets", secret).await;
    let me = whoami(&world, "abcdef.0123456789abcdef").await.ok();
    assert_eq!(me["status"]["userInfo"]["username"], "system:bootstrap:abcdef");
    assert_eq!(
        me["status"]["userInfo"]["groups"],
        json!(["system:bootstrappers", "system:bootstrappers:nodes", "system:authenticated"])
    );
    whoami(&world, "abcdef.0123456789abcdee").await.refused(401);
}

#[tokio::test]
async fn impersonation_takes_a_role() {
    let world = World::new().await;
    let headers = [("impersonate-user", "jane"), ("impersonate-group", "dev")];
    let me = world.call_with(admin(), "POST", WHOAMI, &json!({}), &headers).await.ok();
    let info = json!({"username": "jane", "groups": ["dev", "system:authenticated"]});
    assert_eq!(me["status"]["userInfo"], info);
    let refused = world.call_with(user("eve"), "POST", WHOAMI, &json!({}), &headers).await;
    assert_eq!(
        refused.refused(403),
        r#"users "jane" is forbidden: User "eve" cannot impersonate resource "users" in API group "" at the cluster scope"#
    );
    let nobody = world.call_with(admin(), "POST", WHOAMI, &json!({}), &[("impersonate-group", "dev")]).await;
    assert!(nobody.refused(400).contains("Impersonate-User"));
}

#[tokio::test]
async fn others_can_verify_tokens() {
    let world = World::new().await;
    let account = || Some(User::service_account("a", "b", "c"));
    let document = world.call(account(), "GET", "/.well-known/openid-configuration", &Value::Null).await.ok();
    assert_eq!(document["issuer"], ISSUER);
    let keys = world.call(account(), "GET", "/openid/v1/jwks", &Value::Null).await;
    assert_eq!(keys.headers["content-type"], "application/jwk-set+json");
    assert_eq!(keys.body["keys"][0]["kty"], "EC");
    world.call(user("jane"), "GET", "/openid/v1/jwks", &Value::Null).await.refused(403);
}
