//! The plugins through the whole server.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use std::sync::Arc;

use serde_json::{Value, json};

use crate::authn::User;
use crate::testing::{Answer, World, admin, user};

const PODS: &str = "/api/v1/namespaces/shop/pods";

fn pod(name: &str, resources: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}})
}

async fn world(labels: Value) -> World {
    let world = World::new().await;
    world.namespace("shop", labels).await;
    world
}

async fn create(world: &World, path: &str, body: &Value) -> Answer {
    world.call(admin(), "POST", path, body).await
}

#[tokio::test]
async fn limit_ranges_complete_and_refuse() {
    let world = world(json!({})).await;
    let limits = json!([{"type": "Container", "default": {"memory": "1Gi"}, "max": {"memory": "2Gi"}, "min": {"memory": "1Mi"}}]);
    world
        .post("/api/v1/namespaces/shop/limitranges", json!({"metadata": {"name": "l"}, "spec": {"limits": limits}}))
        .await;
    let made = create(&world, PODS, &pod("a", json!({}))).await.ok();
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({"limits": {"memory": "1Gi"}, "requests": {"memory": "1Gi"}})
    );
    let refused = create(&world, PODS, &pod("b", json!({"limits": {"memory": "3Gi"}}))).await;
    assert_eq!(
        refused.refused(403),
        "pods \"b\" is forbidden: [maximum memory usage per Container is 2Gi, but limit is 3Gi]"
            .replace(['[', ']'], "")
    );
}

#[tokio::test]
async fn quotas_hold_against_a_crowd() {
    let world = Arc::new(world(json!({})).await);
    create(&world, PODS, &pod("before", json!({"requests": {"cpu": "1"}}))).await.ok();
    let hard = json!({"pods": "5", "requests.cpu": "10", "count/configmaps": "1"});
    world
        .post("/api/v1/namespaces/shop/resourcequotas", json!({"metadata": {"name": "q"}, "spec": {"hard": hard}}))
        .await;
    let refused = create(&world, PODS, &pod("silent", json!({}))).await;
    assert_eq!(refused.refused(403), "pods \"silent\" is forbidden: failed quota: q: must specify requests.cpu for: c");
    let tries = (0..20).map(|n| {
        let world = world.clone();
        tokio::spawn(async move {
            create(&world, PODS, &pod(&format!("p{n}"), json!({"requests": {"cpu": "1"}}))).await.code
        })
    });
    let codes = futures::future::join_all(tries).await;
    assert_eq!(codes.iter().filter(|code| *code.as_ref().unwrap() == 201).count(), 4);
    let refused = create(&world, PODS, &pod("more", json!({"requests": {"cpu": "1"}}))).await;
    assert_eq!(
        refused.refused(403),
        "pods \"more\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5"
    );
    // A name that is taken costs nothing.
    let maps = "/api/v1/namespaces/shop/configmaps";
    create(&world, maps, &json!({"metadata": {"name": "m"}})).await.ok();
    let used = world.get("/api/v1/namespaces/shop/resourcequotas/q").await["status"]["used"].clone();
    assert_eq!(used, json!({"count/configmaps": "1", "pods": "5", "requests.cpu": "5"}));
    world
        .call(
            admin(),
            "PATCH",
            "/api/v1/namespaces/shop/resourcequotas/q",
            &json!({"spec": {"hard": {"count/configmaps": "2"}}}),
        )
        .await
        .ok();
    create(&world, maps, &json!({"metadata": {"name": "m"}})).await.refused(409);
    assert_eq!(world.get("/api/v1/namespaces/shop/resourcequotas/q").await["status"]["used"]["count/configmaps"], "1");
}

#[tokio::test]
async fn pod_security_refuses_warns_and_looks_back() {
    let world = world(
        json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"}),
    )
    .await;
    let mut bad = pod("a", json!({}));
    bad["spec"]["hostNetwork"] = json!(true);
    assert_eq!(
        create(&world, PODS, &bad).await.refused(403),
        "pods \"a\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"
    );
    let made = create(&world, PODS, &pod("b", json!({}))).await;
    assert_eq!(made.code, 201);
    assert!(
        made.warnings()[0]
            .contains("would violate PodSecurity \\\"restricted:latest\\\": allowPrivilegeEscalation != false")
    );
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": bad["spec"]}}});
    let made = create(&world, "/apis/apps/v1/namespaces/shop/deployments", &deployment).await;
    assert_eq!((made.code, made.warnings().len()), (201, 1));
    let stricter = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    let changed = world.call(admin(), "PATCH", "/api/v1/namespaces/shop", &stricter).await;
    let text = changed.warnings().join("\n");
    assert!(
        text.contains("violate the new PodSecurity enforce level") && text.contains("b: allowPrivilegeEscalation"),
        "{text}"
    );
    let wrong = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "strict"}}});
    world.call(admin(), "PATCH", "/api/v1/namespaces/shop", &wrong).await.refused(422);
}

#[tokio::test]
async fn pods_get_account_and_priority() {
    let world = world(json!({})).await;
    let class = json!({"metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never"});
    world.post("/apis/scheduling.k8s.io/v1/priorityclasses", class).await;
    let mut wanted = pod("a", json!({}));
    wanted["spec"]["priorityClassName"] = json!("high");
    let made = create(&world, PODS, &wanted).await.ok();
    assert_eq!((&made["spec"]["priority"], &made["spec"]["preemptionPolicy"]), (&json!(1000), &json!("Never")));
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    let plain = create(&world, PODS, &pod("b", json!({}))).await.ok();
    assert_eq!((&plain["spec"]["priority"], &plain["spec"]["priorityClassName"]), (&json!(0), &Value::Null));
    let mut lost = pod("c", json!({}));
    lost["spec"]["serviceAccountName"] = json!("nobody");
    assert_eq!(
        create(&world, PODS, &lost).await.refused(403),
        "pods \"c\" is forbidden: error looking up service account shop/nobody: serviceaccount \"nobody\" not found"
    );
    lost["spec"] = json!({"priorityClassName": "none", "containers": wanted["spec"]["containers"]});
    assert_eq!(
        create(&world, PODS, &lost).await.refused(403),
        "pods \"c\" is forbidden: no PriorityClass with name none was found"
    );
    lost["spec"]["priorityClassName"] = json!("system-node-critical");
    assert_eq!(create(&world, PODS, &lost).await.ok()["spec"]["priority"], 2_000_001_000);
}

#[tokio::test]
async fn some_namespaces_stay() {
    let world = world(json!({})).await;
    let refused = world.call(admin(), "DELETE", "/api/v1/namespaces/kube-system", &Value::Null).await;
    assert_eq!(refused.refused(403), "namespaces \"kube-system\" is forbidden: this namespace may not be deleted");
    world.call(admin(), "DELETE", "/api/v1/namespaces/shop", &Value::Null).await.ok();
}

#[tokio::test]
async fn nodes_write_about_themselves_only() {
    let world = world(json!({})).await;
    let node = || Some(User::new("system:node:n1", &["system:nodes"]));
    let own = json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}}});
    let made = world.call(node(), "POST", "/api/v1/nodes", &own).await.ok();
    assert_eq!(made["spec"]["taints"][0]["key"], "node.kubernetes.io/not-ready");
    let other = json!({"metadata": {"name": "n2"}});
    let refused = world.call(node(), "POST", "/api/v1/nodes", &other).await;
    assert_eq!(refused.refused(403), "nodes \"n2\" is forbidden: node \"n1\" is not allowed to modify node \"n2\"");
    let labels = json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}});
    world.call(node(), "PATCH", "/api/v1/nodes/n1", &labels).await.refused(403);
    world.call(node(), "PATCH", "/api/v1/nodes/n1", &json!({"metadata": {"labels": {"disk": "ssd"}}})).await.ok();
    world.call(node(), "PATCH", "/api/v1/nodes/n1", &json!({"spec": {"taints": []}})).await.refused(403);
    let mut foreign = pod("p", json!({}));
    foreign["spec"]["nodeName"] = json!("n2");
    create(&world, PODS, &foreign).await.ok();
    let status = json!({"status": {"phase": "Running"}});
    world.call(node(), "PATCH", &format!("{PODS}/p/status"), &status).await.refused(403);
    world.call(node(), "DELETE", &format!("{PODS}/p"), &Value::Null).await.refused(403);
    world.call(node(), "POST", PODS, &pod("q", json!({}))).await.refused(403);
    let token = "/api/v1/namespaces/shop/serviceaccounts/default/token";
    world.call(node(), "POST", token, &json!({})).await.refused(403);
    let mut mine = pod("mine", json!({}));
    mine["spec"]["nodeName"] = json!("n1");
    let uid = create(&world, PODS, &mine).await.ok()["metadata"]["uid"].clone();
    let bound = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "mine", "uid": uid}}});
    world.call(node(), "POST", token, &bound).await.ok();
    let wrong = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": uid}}});
    world.call(node(), "POST", token, &wrong).await.refused(403);
    let lease = json!({"metadata": {"name": "n2"}});
    world
        .call(node(), "POST", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", &lease)
        .await
        .refused(403);
}

#[tokio::test]
async fn a_secret_with_a_token_is_good_until_it_is_deleted() {
    use base64::Engine as _;
    let world = world(json!({})).await;
    let secret = json!({"metadata": {"name": "t", "annotations": {"kubernetes.io/service-account.name": "default"}},
        "type": "kubernetes.io/service-account-token"});
    let made = create(&world, "/api/v1/namespaces/shop/secrets", &secret).await.ok();
    let token = base64::engine::general_purpose::STANDARD.decode(made["data"]["token"].as_str().unwrap()).unwrap();
    let header = format!("Bearer {}", String::from_utf8(token).unwrap());
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let me = world.call_with(None, "POST", path, &json!({}), &[("authorization", &header)]).await.ok();
    assert_eq!(me["status"]["userInfo"]["username"], "system:serviceaccount:shop:default");
    world.call(admin(), "DELETE", "/api/v1/namespaces/shop/secrets/t", &Value::Null).await.ok();
    world.call_with(None, "POST", path, &json!({}), &[("authorization", &header)]).await.refused(401);
}

#[tokio::test]
async fn classes_are_filled_in_and_claims_grow_only_where_they_can() {
    let world = world(json!({})).await;
    let class = json!({"metadata": {"name": "fast", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "p"});
    world.post("/apis/storage.k8s.io/v1/storageclasses", class).await;
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let path = "/api/v1/namespaces/shop/persistentvolumeclaims";
    let made = create(&world, path, &claim).await.ok();
    assert_eq!(made["spec"]["storageClassName"], "fast");
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    let more = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    assert!(world.call(admin(), "PATCH", &format!("{path}/c"), &more).await.code >= 400);
}

#[tokio::test]
async fn certificates_are_approved_by_who_may() {
    let world = world(json!({})).await;
    let request = json!({"metadata": {"name": "r"}, "spec": {"signerName": "example.com/one", "usages": ["client auth"],
        // The header is enough: nobody signs it here.
        "request": "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K"}});
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    create(&world, path, &request).await.ok();
    let role = json!({"metadata": {"name": "approver"}, "rules": [{"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests/approval"], "verbs": ["update", "patch"]}]});
    world.post("/apis/rbac.authorization.k8s.io/v1/clusterroles", role).await;
    let binding = json!({"metadata": {"name": "approver"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "approver"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
    world.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
    let approve = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "r"}]}});
    let refused = world.call(user("jane"), "PATCH", &format!("{path}/r/approval"), &approve).await;
    assert!(
        refused.refused(403).ends_with("user not permitted to approve requests with signerName \"example.com/one\"")
    );
    world.call(admin(), "PATCH", &format!("{path}/r/approval"), &approve).await.ok();
}
