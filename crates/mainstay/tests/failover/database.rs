//! A Database on a real control plane: its definition is there, refuses nonsense, and becomes its objects.

use std::process::Command;

use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::server::{MAINSTAY, Server, wait};

struct World {
    server: Server,
    client: Client,
    runtime: tokio::runtime::Runtime,
    _directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let server = Server::start(directory.path());
        let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
            Client::try_from(config).unwrap()
        });
        let world = Self { server, client, runtime, _directory: directory };
        wait("databases are known", || world.get("mainstay.dev/v1alpha1", "Database", "none") == Some(Value::Null));
        world
    }

    fn api(&self, version: &str, kind: &str) -> Api<DynamicObject> {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        Api::namespaced_with(self.client.clone(), "default", &resource)
    }

    /// Null when there is none; `None` when the kind is not known.
    fn get(&self, version: &str, kind: &str, name: &str) -> Option<Value> {
        let found = self.runtime.block_on(self.api(version, kind).get_opt(name)).ok()?;
        // Of an unknown kind, too, nothing is found: its list tells.
        self.runtime.block_on(self.api(version, kind).list(&ListParams::default())).ok()?;
        Some(found.map_or(Value::Null, |object| serde_json::to_value(object).unwrap()))
    }

    fn create(&self, name: &str, spec: &Value) -> Result<Value, String> {
        let object = json!({
            "apiVersion": "mainstay.dev/v1alpha1", "kind": "Database", "metadata": {"name": name}, "spec": spec,
        });
        let object = serde_json::from_value(object).unwrap();
        let api = self.api("mainstay.dev/v1alpha1", "Database");
        let created = self.runtime.block_on(api.create(&PostParams::default(), &object));
        created.map(|object| serde_json::to_value(object).unwrap()).map_err(|error| error.to_string())
    }

    fn database(&self, args: &[&str]) -> (bool, String) {
        let mut command = Command::new(MAINSTAY);
        let output = command.arg("db").args(args).env("KUBECONFIG", self.server.kubeconfig()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }
}

#[test]
fn a_database_becomes_its_objects_and_says_how_it_is() {
    let world = World::new();
    let refused = |spec: Value| world.create("wrong", &spec).unwrap_err();
    assert!(refused(json!({"engine": "dbase"})).contains("spec.engine"));
    assert!(refused(json!({"engine": "postgres", "ttl": "1s", "renewal": "300ms"})).contains("four times"));
    assert!(
        refused(json!({"engine": "postgres", "replicas": 2, "synchronous": {"members": 2}})).contains("below replicas")
    );

    let made = world.create("shop", &json!({"engine": "postgres", "version": "15"})).unwrap();
    assert_eq!((&made["spec"]["replicas"], &made["spec"]["ttl"]), (&json!(3), &json!("1500ms")), "defaults");
    wait("it has a state", || {
        let now = world.get("mainstay.dev/v1alpha1", "Database", "shop").unwrap();
        now["status"]["state"] == "Creating" && now["status"]["replicas"] == 3
    });
    let objects = [
        ("v1", "Secret", "shop"),
        ("v1", "ServiceAccount", "shop-member"),
        ("rbac.authorization.k8s.io/v1", "RoleBinding", "shop-member"),
        ("v1", "Service", "shop"),
        ("v1", "Service", "shop-primary"),
        ("v1", "Service", "shop-replicas"),
        ("policy/v1", "PodDisruptionBudget", "shop"),
        ("apps/v1", "StatefulSet", "shop"),
    ];
    for (version, kind, name) in objects {
        assert_ne!(world.get(version, kind, name), Some(Value::Null), "{kind} {name}");
    }
    let password = || world.get("v1", "Secret", "shop").unwrap()["data"]["password"].clone();
    let before = password();
    let patch = json!({"spec": {"replicas": 5}});
    let api = world.api("mainstay.dev/v1alpha1", "Database");
    world.runtime.block_on(api.patch("shop", &PatchParams::default(), &Patch::Merge(&patch))).unwrap();
    wait("it is larger", || world.get("apps/v1", "StatefulSet", "shop").unwrap()["spec"]["replicas"] == 5);
    assert_eq!(password(), before, "a password is made once");

    let (well, list) = world.database(&["ls"]);
    assert!(well && list.starts_with("NAME   ENGINE"), "{list}");
    let (well, status) = world.database(&["status", "shop"]);
    assert!(!well && status.contains("shop: postgres, Creating"), "{status}");
    assert!(world.database(&["pause", "shop"]).0);
    assert_eq!(world.get("mainstay.dev/v1alpha1", "Database", "shop").unwrap()["spec"]["paused"], true);
    let (well, text) = world.database(&["switchover", "shop", "--to", "shop-9"]);
    assert!(!well && text.contains("has no member shop-9"), "{text}");
}
