//! The definition can be read and the code agrees with it; a Database becomes these objects; its status says what its pods say.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::kind::{Database, DatabaseSpec};
use super::objects::{Wanted, wanted};
use super::status::status;

fn database(spec: Value) -> Database {
    let object = json!({
        "apiVersion": "mainstay.dev/v1alpha1", "kind": "Database",
        "metadata": {"name": "shop", "namespace": "prod", "uid": "7", "generation": 3}, "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

fn objects(database: &Database) -> Vec<Wanted> {
    let mut count = 0;
    wanted(database, &mut || {
        count += 1;
        format!("secret-{count}")
    })
}

fn find(objects: &[Wanted], kind: &str, name: &str) -> Value {
    let of = |it: &&Wanted| it.object()["kind"] == kind && it.object()["metadata"]["name"] == name;
    objects.iter().find(of).unwrap_or_else(|| panic!("no {kind} {name}")).object().clone()
}

fn pod(name: &str, role: &str, ready: bool) -> Pod {
    let status = if ready { "True" } else { "False" };
    let object = json!({
        "metadata": {"name": name, "namespace": "prod", "labels": {"mainstay.dev/database": "shop", "mainstay.dev/role": role}},
        "spec": {"nodeName": "node-1", "containers": []},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]},
    });
    serde_json::from_value(object).unwrap()
}

#[test]
fn the_definition_names_every_field_and_default_of_the_code() {
    let text = include_str!("../../../mainstay/definitions/40-database.yaml");
    let definition: Value = serde_saphyr::from_str(text).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    let full = DatabaseSpec {
        version: Some("17".into()),
        image: Some("i".into()),
        resources: json!({}),
        ..DatabaseSpec::default()
    };
    let code = serde_json::to_value(&full).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(keys(&code), keys(schema));
    for (name, field) in schema.as_object().unwrap() {
        if let Some(default) = field.get("default") {
            assert_eq!(&code[name], default, "{name}");
        }
        assert!(field["description"].is_string(), "{name} is not explained");
    }
}

#[test]
fn a_database_becomes_its_objects() {
    let database =
        database(json!({"engine": "postgres", "parameters": {"log_line_prefix": "it's %m"}, "priorities": {"1": 0}}));
    let objects = objects(&database);
    let names: Vec<_> = objects
        .iter()
        .map(|it| {
            let object = it.object();
            let once = if matches!(it, Wanted::Once(_)) { " once" } else { "" };
            format!("{} {}{once}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap())
        })
        .collect();
    let expected = [
        "Secret shop once",
        "ServiceAccount shop-member",
        "Role shop-member",
        "RoleBinding shop-member",
        "Service shop",
        "Service shop-primary",
        "Service shop-replicas",
        "PodDisruptionBudget shop",
        "StatefulSet shop",
    ];
    assert_eq!(names, expected);
    assert!(objects.iter().all(|it| it.object()["metadata"]["ownerReferences"][0]["uid"] == "7"));
    let secret = &find(&objects, "Secret", "shop")["stringData"];
    assert_eq!(secret["uri"], "postgresql://postgres:secret-1@shop-primary.prod.svc:5432/postgres");
    let primary = &find(&objects, "Service", "shop-primary")["spec"];
    assert_eq!(primary["selector"], json!({"mainstay.dev/database": "shop", "mainstay.dev/role": "primary"}));
    let set = &find(&objects, "StatefulSet", "shop")["spec"];
    assert_eq!((&set["replicas"], &set["podManagementPolicy"]), (&json!(3), &json!("Parallel")));
    let apart = &set["template"]["spec"]["affinity"]["podAntiAffinity"];
    let (hard, soft) =
        ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution");
    assert_eq!(apart[hard][0]["topologyKey"], "kubernetes.io/hostname");
    assert_eq!(apart[soft][0]["podAffinityTerm"]["topologyKey"], "topology.kubernetes.io/zone");
}

/// The words that a member's steward is started with, by the real shell.
#[test]
fn each_member_starts_its_steward_with_words_of_its_own() {
    let database = database(json!({
        "engine": "postgres", "version": "15", "parameters": {"log_line_prefix": "it's $HOME %m"}, "priorities": {"1": 0},
    }));
    let set = find(&objects(&database), "StatefulSet", "shop");
    let script = set["spec"]["template"]["spec"]["containers"][0]["command"][2].as_str().unwrap().to_owned();
    let spoken =
        script.replace("exec mainstay", "printf '%s\\n'").replace("$(id -u postgres):$(id -g postgres)", "1:2");
    let mut shell = std::process::Command::new("sh");
    let output =
        shell.args(["-c", &spoken]).envs([("POD_NAME", "shop-1"), ("POD_NAMESPACE", "prod")]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let expected = [
        "steward",
        "--engine",
        "postgres",
        "--member",
        "shop-1",
        "--namespace",
        "prod",
        "--lease",
        "shop",
        "--data",
        "/var/lib/database/data",
        "--programs",
        "/usr/lib/postgresql/15/bin",
        "--user",
        "1:2",
        "--port",
        "5432",
        "--password-file",
        "/etc/mainstay/database/password",
        "--secret-file",
        "/etc/mainstay/database/steward-secret",
        "--synchronous",
        "1",
        "--lag-max",
        "1048576",
        "--ttl-ms",
        "1500",
        "--renewal-ms",
        "300",
        "--peer",
        "shop-0=shop-0.shop:8008,shop-0.shop:5432",
        "--priority",
        "0",
        "--peer",
        "shop-2=shop-2.shop:8008,shop-2.shop:5432",
        "--parameter",
        "log_line_prefix=it's $HOME %m",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn users_have_secrets_that_say_how_to_connect() {
    let database =
        database(json!({"engine": "mysql", "users": [{"name": "app"}, {"name": "web_1", "database": "pages"}]}));
    let objects = objects(&database);
    let uri = |name: &str| find(&objects, "Secret", name)["stringData"]["uri"].clone();
    assert_eq!(uri("shop-app"), "mysql://app:secret-3@shop-primary.prod.svc:3306/app");
    assert_eq!(uri("shop-web-1"), "mysql://web_1:secret-4@shop-primary.prod.svc:3306/pages");
    let pod = find(&objects, "StatefulSet", "shop")["spec"]["template"]["spec"].clone();
    let sources = json!([
        {"secret": {"name": "shop-app", "items": [{"key": "password", "path": "app"}]}},
        {"secret": {"name": "shop-web-1", "items": [{"key": "password", "path": "web_1"}]}},
    ]);
    assert_eq!(pod["volumes"][1]["projected"]["sources"], sources);
    assert_eq!(pod["containers"][0]["volumeMounts"][2]["mountPath"], "/etc/mainstay/users");
    let script = pod["containers"][0]["command"][2].as_str().unwrap();
    assert!(script.contains("--own app=app") && script.contains("--own web_1=pages"), "{script}");
}

#[test]
fn the_status_says_what_the_pods_say() {
    let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
    let mut database = database(json!({"engine": "postgres"}));
    let record = r#"{"epoch": 2, "history": [{"epoch": 2, "primary": "shop-1", "from": {"epoch": 1, "offset": 900}}]}"#;
    let lease: Lease =
        serde_json::from_value(json!({"metadata": {"annotations": {"mainstay.dev/record": record}}})).unwrap();
    let (a, mut b, mut c) =
        (pod("shop-0", "replica", true), pod("shop-1", "primary", true), pod("shop-2", "replica", false));
    let said = |text: &str| [("mainstay.dev/position".to_owned(), text.to_owned())].into();
    (b.metadata.annotations, c.metadata.annotations) = (Some(said("2/5000")), Some(said("2/1400")));
    let reason = ("mainstay.dev/steward".to_owned(), "it holds the lease".to_owned());
    let lags = ("mainstay.dev/lags".to_owned(), r#"{"shop-0": 10, "shop-2": 3600}"#.to_owned());
    b.metadata.annotations.as_mut().unwrap().extend([reason, lags]);
    let state =
        |database: &Database, pods: &[&Pod]| status(database, pods, None, now)["state"].as_str().unwrap().to_owned();
    assert_eq!(state(&database, &[&a]), "Creating");
    let two = status(&database, &[&c, &b, &a], Some(&lease), now);
    assert_eq!((&two["state"], &two["primary"], &two["ready"]), (&json!("Degraded"), &json!("shop-1"), &json!("2/3")));
    let member = json!({
        "name": "shop-1", "role": "primary", "state": "Ready", "node": "node-1", "position": "2/5000",
        "message": "it holds the lease",
    });
    assert_eq!(two["members"][1], member);
    assert_eq!((&two["lag"], &two["epoch"]), (&json!("3KiB"), &json!(2)));
    assert_eq!(two["history"], json!([{"epoch": 2, "primary": "shop-1", "from": "1/900"}]));
    database.status = two;
    let none = status(&database, &[&a], None, now);
    assert_eq!((&none["state"], &none["primary"]), (&json!("FailingOver"), &json!("shop-1")), "who was last stays");
    assert_eq!(state(&database, &[&c]), "Down");
    let whole = [&a, &b, &pod("shop-2", "replica", true)];
    assert_eq!(state(&database, &whole), "Healthy");
    database.spec.paused = true;
    assert_eq!(state(&database, &whole), "Paused");
}

#[test]
fn what_is_not_said_is_safe() {
    let spec = |replicas| DatabaseSpec { replicas, ..DatabaseSpec::default() };
    assert_eq!([1, 2, 3, 5].map(|replicas| spec(replicas).synchronous_members()), [0, 0, 1, 1]);
    let mut some = spec(3);
    some.priorities.insert("2".into(), 0);
    assert_eq!((some.priority("shop-2"), some.priority("shop-12")), (0, 100));
    assert_eq!((some.ttl().unwrap().as_millis(), some.renewal().unwrap().as_millis()), (1500, 300));
}
