//! Server-side apply and field owners through the whole path of a request.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use crate::User;
use crate::testing::{Answer, World, admin, user};

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/shop/deployments/web";
const CONFIG_MAP: &str = "/api/v1/namespaces/shop/configmaps/c";
const APPLY: (&str, &str) = ("content-type", "application/apply-patch+yaml");

async fn world() -> World {
    let world = World::new().await;
    world.namespace("shop", json!({})).await;
    world
}

async fn apply(world: &World, path: &str, config: &Value) -> Answer {
    world.call_raw(admin(), "PATCH", path, &config.to_string(), &[APPLY]).await
}

fn deployment(replicas: u32, image: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": image, "resources": {"limits": {"cpu": "1000m"}}}]}}}})
}

fn config_map(data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
}

/// Owners as `manager operation subresource`, sorted.
fn owners(object: &Value) -> Vec<String> {
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    let mut all: Vec<String> = entries
        .map(|entry| {
            ["manager", "operation", "subresource"].map(|field| text(entry, field)).join(" ").trim().to_owned()
        })
        .collect();
    all.sort();
    all
}

fn fields(object: &Value, manager: &str) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    entries
        .filter(|entry| entry["manager"] == manager)
        .map(|entry| entry["fieldsV1"].clone())
        .next()
        .unwrap_or_default()
}

#[tokio::test]
async fn apply_creates_then_changes_then_does_nothing() {
    let world = world().await;
    let path = format!("{DEPLOYMENT}?fieldManager=a");
    let yaml = "# YAML, as people write it\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  replicas: 2\n  \
        selector: {matchLabels: {app: web}}\n  template:\n    metadata: {labels: {app: web}}\n    spec: {containers: [{name: c, image: x}]}\n";
    let made = world.call_raw(admin(), "PATCH", &path, yaml, &[APPLY]).await;
    assert_eq!(made.code, 201, "{}", made.body);
    assert_eq!(owners(&made.body), ["a Apply"]);
    assert_eq!(made.body["spec"]["revisionHistoryLimit"], 10);
    assert!(fields(&made.body, "a").pointer("/f:spec/f:revisionHistoryLimit").is_none());

    let changed = apply(&world, &path, &deployment(3, "y")).await;
    assert_eq!((changed.code, &changed.body["metadata"]["generation"]), (200, &json!(2)));
    let again = apply(&world, &path, &deployment(3, "y")).await.ok();
    assert_eq!(again, changed.body);
    // Not even when it is said in other words.
    let mut same = deployment(3, "y");
    same["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = json!(1);
    assert_eq!(
        apply(&world, &path, &same).await.ok()["metadata"]["resourceVersion"],
        changed.body["metadata"]["resourceVersion"]
    );
}

#[tokio::test]
async fn conflicts_name_the_other_and_force_takes() {
    let world = world().await;
    apply(&world, &format!("{DEPLOYMENT}?fieldManager=a"), &deployment(2, "x")).await.ok();
    let refused = apply(&world, &format!("{DEPLOYMENT}?fieldManager=b"), &deployment(5, "x")).await;
    assert_eq!(refused.refused(409), "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas");
    assert_eq!(refused.body["reason"], "Conflict");
    assert_eq!(
        refused.body["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"a\"", "field": ".spec.replicas"}])
    );
    let forced = apply(&world, &format!("{DEPLOYMENT}?fieldManager=b&force=true"), &deployment(5, "x")).await.ok();
    assert_eq!(forced["spec"]["replicas"], 5);
    assert_eq!(owners(&forced), ["a Apply", "b Apply"]);
    assert!(fields(&forced, "a").pointer("/f:spec/f:replicas").is_none());
    // What its manager applies no longer goes; the default comes back.
    let mut without = deployment(1, "x");
    without["spec"].as_object_mut().unwrap().remove("replicas");
    let object = apply(&world, &format!("{DEPLOYMENT}?fieldManager=b"), &without).await.ok();
    assert_eq!(object["spec"]["replicas"], 1);
    assert_eq!(object["spec"]["template"]["spec"]["containers"][0]["image"], "x");
}

#[tokio::test]
async fn what_is_wrong_with_the_request_is_told() {
    let world = world().await;
    let with = |query: &str| format!("{CONFIG_MAP}?{query}");
    let good = config_map(&json!({"k": "v"}));
    assert_eq!(
        apply(&world, CONFIG_MAP, &good).await.refused(422),
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
    );
    assert!(apply(&world, &with("fieldManager=a%0Ab"), &good).await.refused(422).contains("invalid character U+000A"));
    let merge = world.call(admin(), "PATCH", &with("force=true"), &json!({})).await;
    assert!(merge.refused(422).ends_with("force: Forbidden: may not be specified for non-apply patch"));
    let cbor = [("content-type", "application/apply-patch+cbor")];
    assert!(
        world
            .call_raw(admin(), "PATCH", &with("fieldManager=a"), "{}", &cbor)
            .await
            .refused(415)
            .contains("apply-patch+yaml")
    );

    let path = with("fieldManager=a");
    for (config, message) in [
        (json!({"apiVersion": "v1", "kind": "Secret"}), "does not match the expected kind"),
        (json!({"apiVersion": "v2", "kind": "ConfigMap"}), "Incorrect version specified in apply patch"),
        (
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "d"}}),
            "does not match the name on the URL",
        ),
        (
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"managedFields": []}}),
            "metadata.managedFields must be nil",
        ),
        (
            json!({"apiVersion": "v1", "kind": "ConfigMap", "dta": {}}),
            "(shop/c; /v1, Kind=ConfigMap): .dta: field not declared in schema",
        ),
        (json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"k": 1}}), ".data.k: expected string, got 1"),
    ] {
        assert!(apply(&world, &path, &config).await.refused(400).contains(message), "{config}");
    }
    assert!(
        world.call_raw(admin(), "PATCH", &path, "a: [", &[APPLY]).await.refused(400).contains("error decoding YAML")
    );
    assert!(
        world.call_raw(admin(), "PATCH", &path, "just text", &[APPLY]).await.refused(400).contains("not an object")
    );
    assert_eq!(world.call(admin(), "GET", CONFIG_MAP, &Value::Null).await.code, 404);

    let mut stale = good.clone();
    stale["metadata"]["uid"] = json!("00000000-0000-0000-0000-000000000000");
    assert!(apply(&world, &path, &stale).await.refused(409).contains("uid mismatch"));
    let made = apply(&world, &path, &good).await.ok();
    stale["metadata"] = json!({"name": "c", "resourceVersion": "1"});
    assert!(apply(&world, &path, &stale).await.refused(409).contains("the object has been modified"));
    stale["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"].clone();
    stale["data"]["k"] = json!("w");
    assert_eq!(apply(&world, &path, &stale).await.ok()["data"]["k"], "w");
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let world = world().await;
    let path = format!("{CONFIG_MAP}?fieldManager=a&dryRun=All");
    let made = apply(&world, &path, &config_map(&json!({"k": "v"}))).await;
    assert_eq!((made.code, owners(&made.body)), (201, vec!["a Apply".to_owned()]));
    assert_eq!(world.call(admin(), "GET", CONFIG_MAP, &Value::Null).await.code, 404);
}

#[tokio::test]
async fn to_apply_what_is_not_there_takes_the_right_to_create() {
    let world = world().await;
    let role = |name: &str, verbs: Value| json!({"metadata": {"name": name}, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": verbs}]});
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    world.post(roles, role("patcher", json!(["patch"]))).await;
    world.post(roles, role("creator", json!(["patch", "create"]))).await;
    world.bind("shop", "patcher", "paul").await;
    world.bind("shop", "creator", "clara").await;
    let config = config_map(&json!({})).to_string();
    let path = format!("{CONFIG_MAP}?fieldManager=a");
    let by = |name: &str| world.call_raw(user(name), "PATCH", &path, &config, &[APPLY]);
    assert!(by("paul").await.refused(403).contains("cannot create resource"));
    assert_eq!(by("clara").await.code, 201);
    assert_eq!(by("paul").await.code, 200);
}

#[tokio::test]
async fn status_and_scale_have_owners_of_their_own() {
    let world = world().await;
    apply(&world, &format!("{DEPLOYMENT}?fieldManager=a"), &deployment(2, "x")).await.ok();
    let status = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"x": "y"}},
        "spec": {"replicas": 9}, "status": {"replicas": 2}});
    let object = apply(&world, &format!("{DEPLOYMENT}/status?fieldManager=s"), &status).await.ok();
    assert_eq!((&object["status"]["replicas"], &object["spec"]["replicas"]), (&json!(2), &json!(2)));
    assert_eq!(owners(&object), ["a Apply", "s Apply status"]);
    assert_eq!(fields(&object, "s"), json!({"f:status": {"f:replicas": {}}}));

    let scale = |replicas: u32| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {"replicas": replicas}});
    let path = format!("{DEPLOYMENT}/scale?fieldManager=h");
    let refused = apply(&world, &path, &scale(4)).await;
    assert_eq!(refused.refused(409), "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas");
    apply(&world, &format!("{path}&force=1"), &scale(4)).await.ok();
    world
        .call(admin(), "PATCH", &format!("{DEPLOYMENT}/scale?fieldManager=k"), &json!({"spec": {"replicas": 5}}))
        .await
        .ok();
    let object = world.get(DEPLOYMENT).await;
    assert_eq!((&object["spec"]["replicas"], &object["metadata"]["generation"]), (&json!(5), &json!(3)));
    assert_eq!(owners(&object), ["a Apply", "k Update scale", "s Apply status"]);
    let config = json!({"apiVersion": "apps/v1", "kind": "Deployment"});
    let path = DEPLOYMENT.replace("/web", "/none/status?fieldManager=s");
    assert_eq!(apply(&world, &path, &config).await.code, 404);
}

#[tokio::test]
async fn every_write_tells_its_owner() {
    let world = world().await;
    let agent = [("user-agent", "kubectl/v1.37.1 (linux/amd64)")];
    let path = "/api/v1/namespaces/shop/configmaps";
    let made = world.call_with(admin(), "POST", path, &config_map(&json!({"k": "v"})), &agent).await.ok();
    assert_eq!(owners(&made), ["kubectl Update"]);
    assert_eq!(fields(&made, "kubectl"), json!({"f:data": {".": {}, "f:k": {}}}));
    let patched =
        world.call(admin(), "PATCH", &format!("{CONFIG_MAP}?fieldManager=p"), &json!({"data": {"l": "w"}})).await.ok();
    assert_eq!(owners(&patched), ["kubectl Update", "p Update"]);
    assert_eq!(fields(&patched, "p"), json!({"f:data": {"f:l": {}}}));
    // A write that changes nothing is none, whoever it comes from.
    let same = world.call(admin(), "PUT", &format!("{CONFIG_MAP}?fieldManager=q"), &patched).await.ok();
    assert_eq!(same, patched);

    let mut bad = patched.clone();
    bad["metadata"]["managedFields"][0]["operation"] = json!("Create");
    let refused = world.call(admin(), "PUT", CONFIG_MAP, &bad).await;
    assert!(
        refused
            .refused(422)
            .contains("managedFields[0].operation: Invalid value: \"Create\": must be `Apply` or `Update`")
    );
    let reset = world.call(admin(), "PATCH", CONFIG_MAP, &json!({"metadata": {"managedFields": [{}]}})).await.ok();
    assert!(reset["metadata"].get("managedFields").is_none());
    let after = apply(&world, &format!("{CONFIG_MAP}?fieldManager=a"), &config_map(&json!({"k": "v"}))).await.ok();
    assert_eq!(owners(&after), ["a Apply", "before-first-apply Update"]);
}

#[tokio::test]
async fn what_the_server_adds_belongs_to_nobody() {
    let world = world().await;
    let by = |path: &str| format!("{path}?fieldManager=m");
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}});
    let made = world.post(&by("/api/v1/namespaces/shop/services"), service).await;
    let owned = fields(&made, "m");
    assert!(made["spec"]["clusterIP"].is_string() && owned["f:spec"].get("f:clusterIP").is_none(), "{owned}");
    let port = "k:{\"port\":80,\"protocol\":\"TCP\"}";
    let of_port = json!({".": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {}});
    assert_eq!(owned["f:spec"]["f:ports"], json!({".": {}, port: of_port}));
    assert!(["f:metadata", "f:status"].iter().all(|field| owned.get(field).is_none()), "{owned}");
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"k": "v"}});
    let made = world.post(&by("/api/v1/namespaces/shop/secrets"), secret).await;
    assert_eq!(fields(&made, "m"), json!({"f:data": {".": {}, "f:k": {}}, "f:type": {}}));
    let made = world.post(&by("/api/v1/namespaces"), json!({"metadata": {"name": "n"}})).await;
    let label = json!({"f:labels": {".": {}, "f:kubernetes.io/metadata.name": {}}});
    assert_eq!(fields(&made, "m")["f:metadata"], label);
}

#[tokio::test]
async fn what_nests_too_deep_is_refused() {
    let world = world().await;
    let path = format!("{CONFIG_MAP}?fieldManager=a");
    for depth in [200, 100_000] {
        for body in [format!("a: {}", "[".repeat(depth)), format!("a: {}{}", "[".repeat(depth), "]".repeat(depth))] {
            world.call_raw(admin(), "PATCH", &path, &body, &[APPLY]).await.refused(400);
            let yaml = [("content-type", "application/yaml")];
            world.call_raw(admin(), "POST", "/api/v1/namespaces/shop/configmaps", &body, &yaml).await.refused(400);
        }
    }
}

#[tokio::test]
async fn kube_rs_applies() {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::{Api, Patch, PatchParams};

    let world = world().await;
    let client = world.api.client(User::internal("system:kube-scheduler"));
    let maps: Api<ConfigMap> = Api::namespaced(client, "shop");
    let config = |value: &str| -> ConfigMap { serde_json::from_value(config_map(&json!({"k": value}))).unwrap() };
    let made = maps.patch("c", &PatchParams::apply("one"), &Patch::Apply(config("1"))).await.unwrap();
    assert_eq!(made.metadata.managed_fields.unwrap()[0].manager.as_deref(), Some("one"));
    let refused = maps.patch("c", &PatchParams::apply("two"), &Patch::Apply(config("2"))).await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.is_conflict()), "{refused}");
    let forced = maps.patch("c", &PatchParams::apply("two").force(), &Patch::Apply(config("2"))).await.unwrap();
    assert_eq!(forced.data.unwrap()["k"], "2");
    // A part inside this process owns what it writes by its name.
    let merged = maps.patch("c", &PatchParams::default(), &Patch::Merge(json!({"data": {"l": "3"}}))).await.unwrap();
    let managers = merged.metadata.managed_fields.unwrap();
    assert!(managers.iter().any(|entry| entry.manager.as_deref() == Some("kube-scheduler")), "{managers:?}");
}
