//! Roles, bindings and reviews through the whole server.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use crate::authn::User;
use crate::testing::{World, admin, user};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

#[tokio::test]
async fn a_binding_counts_at_once_and_its_end_too() {
    let world = World::new().await;
    world.namespace("shop", json!({})).await;
    let pods = "/api/v1/namespaces/shop/pods";
    let refused = world.call(user("jane"), "GET", pods, &Value::Null).await;
    assert_eq!(
        refused.refused(403),
        r#"pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "shop""#
    );
    for _ in 0..20 {
        world.bind("shop", "view", "jane").await;
        world.call(user("jane"), "GET", pods, &Value::Null).await.ok();
        let bindings = format!("{RBAC}/namespaces/shop/rolebindings");
        world.call(admin(), "DELETE", &bindings, &Value::Null).await.ok();
        world.call(user("jane"), "GET", pods, &Value::Null).await.refused(403);
    }
    // The aggregated role has what its parts have.
    world.bind("shop", "edit", "jane").await;
    world.call(user("jane"), "GET", "/api/v1/namespaces/shop/secrets", &Value::Null).await.ok();
    world.call(user("jane"), "GET", "/api/v1/namespaces/default/secrets", &Value::Null).await.refused(403);
}

#[tokio::test]
async fn nobody_grants_what_he_does_not_have() {
    let world = World::new().await;
    world.namespace("shop", json!({})).await;
    world.bind("shop", "admin", "jane").await;
    let roles = format!("{RBAC}/namespaces/shop/roles");
    let role = |verbs: &[&str], resource: &str| {
        let rules = json!([{"apiGroups": [""], "resources": [resource], "verbs": verbs}]);
        json!({"metadata": {"name": format!("r-{resource}")}, "rules": rules})
    };
    world.call(user("jane"), "POST", &roles, &role(&["get", "list"], "pods")).await.ok();
    let refused = world.call(user("jane"), "POST", &roles, &role(&["get", "delete"], "nodes")).await;
    assert_eq!(
        refused.refused(403),
        "roles.rbac.authorization.k8s.io \"r-nodes\" is forbidden: user \"jane\" (groups=[\"system:authenticated\"]) is \
         attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\" \"delete\"]}"
    );
    let binding = |role: &str| {
        json!({"metadata": {"name": role}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "eve"}]})
    };
    let bindings = format!("{RBAC}/namespaces/shop/rolebindings");
    world.call(user("jane"), "POST", &bindings, &binding("view")).await.ok();
    world.call(user("jane"), "POST", &bindings, &binding("cluster-admin")).await.refused(403);
    world.call(user("jane"), "POST", &bindings, &binding("nothing")).await.refused(404);
    // With the verb `bind` on that role, it goes.
    let rules = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "verbs": ["bind"], "resourceNames": ["cluster-admin"]}]);
    world.post(&format!("{RBAC}/clusterroles"), json!({"metadata": {"name": "binder"}, "rules": rules})).await;
    world.bind("shop", "binder", "jane").await;
    world.call(user("jane"), "POST", &bindings, &binding("cluster-admin")).await.ok();
    world.call(user("eve"), "DELETE", "/api/v1/namespaces/shop/secrets", &Value::Null).await.ok();
    // What one has must not be changed into what one has not.
    let more = json!({"rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]});
    world.call(user("jane"), "PATCH", &format!("{roles}/r-pods"), &more).await.refused(403);
}

#[tokio::test]
async fn reviews_answer_what_requests_would() {
    let world = World::new().await;
    world.namespace("shop", json!({})).await;
    world.bind("shop", "view", "jane").await;
    let ask = async |verb: &str, resource: &str| {
        let spec = json!({"resourceAttributes": {"namespace": "shop", "verb": verb, "resource": resource}});
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        world.call(user("jane"), "POST", path, &json!({"spec": spec})).await.ok()["status"].clone()
    };
    assert_eq!(
        ask("list", "pods").await["reason"],
        r#"RBAC: allowed by RoleBinding "NAME/shop" of ClusterRole "view" to User "jane""#
            .replace("NAME", &binding(&world).await)
    );
    assert_eq!(ask("delete", "pods").await, json!({"allowed": false}));
    let about = json!({"spec": {"user": "jane", "resourceAttributes": {"namespace": "shop", "verb": "get", "resource": "pods", "subresource": "log"}}});
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    assert_eq!(world.post(path, about.clone()).await["status"]["allowed"], true);
    world.call(user("jane"), "POST", path, &about).await.refused(403);
    world.call(admin(), "POST", path, &json!({"spec": {"user": "a"}})).await.refused(422);
    let rules = json!({"spec": {"namespace": "shop"}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let status = world.call(user("jane"), "POST", path, &rules).await.ok()["status"].clone();
    assert!(status["resourceRules"].to_string().contains("pods/log") && status["incomplete"] == false, "{status}");
}

async fn binding(world: &World) -> String {
    let all = world.get(&format!("{RBAC}/namespaces/shop/rolebindings")).await;
    all["items"][0]["metadata"]["name"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn strangers_get_health_and_version_only() {
    let world = World::new().await;
    for path in ["/healthz", "/readyz", "/livez", "/version"] {
        assert_eq!(world.call(None, "GET", path, &Value::Null).await.code, 200, "{path}");
    }
    let refused = world.call(None, "GET", "/api", &Value::Null).await;
    assert_eq!(refused.refused(403), r#"forbidden: User "system:anonymous" cannot get path "/api""#);
    world.call(None, "GET", "/api/v1/pods", &Value::Null).await.refused(403);
    world.call(user("jane"), "GET", "/apis", &Value::Null).await.ok();
    world.call(user("jane"), "GET", "/metrics", &Value::Null).await.refused(403);
    // Whether a resource exists is nobody's business who may not use it.
    world.call(user("jane"), "GET", "/apis/example.com/v1/unicorns", &Value::Null).await.refused(403);
    world.call(admin(), "GET", "/apis/example.com/v1/unicorns", &Value::Null).await.refused(404);
}

#[tokio::test]
async fn a_node_sees_what_its_pods_need() {
    let world = World::new().await;
    world.namespace("shop", json!({})).await;
    for name in ["used", "other"] {
        world.post("/api/v1/namespaces/shop/secrets", json!({"metadata": {"name": name}})).await;
    }
    let node = || Some(User::new("system:node:n1", &["system:nodes"]));
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i",
        "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "used", "key": "k"}}}]}]}});
    let used = "/api/v1/namespaces/shop/secrets/used";
    world.call(node(), "GET", used, &Value::Null).await.refused(403);
    world.post("/api/v1/namespaces/shop/pods", pod).await;
    world.call(node(), "GET", used, &Value::Null).await.ok();
    let refused = world.call(node(), "GET", "/api/v1/namespaces/shop/secrets/other", &Value::Null).await;
    assert!(refused.refused(403).ends_with("no relationship found between node 'n1' and this object"));
    world.call(node(), "GET", "/api/v1/namespaces/shop/secrets", &Value::Null).await.refused(403);
    world.call(node(), "GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1", &Value::Null).await.ok();
    world.call(node(), "GET", "/api/v1/pods", &Value::Null).await.refused(403);
    world.call(node(), "GET", "/apis/discovery.k8s.io/v1/endpointslices", &Value::Null).await.ok();
}
