//! Validation: good objects pass, and each fault is named with its field.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::defaults::apply_defaults;
use pod_tests::pod;

mod bounds_tests;
mod pod_tests;

/// Creates with defaults and shows the faults as `field: message`.
fn create(kind: &str, mut object: Value) -> Vec<String> {
    if object["metadata"].is_null() {
        object["metadata"] = json!({"name": "a"});
        if crate::resource::BUILT_IN.iter().any(|row| row.kind == kind && row.namespaced) {
            object["metadata"]["namespace"] = json!("default");
        }
    }
    apply_defaults(kind, &mut object);
    validate_create(kind, &object).iter().map(ToString::to_string).collect()
}

fn update(kind: &str, mut old: Value, mut new: Value) -> Vec<String> {
    for object in [&mut old, &mut new] {
        if object["metadata"].is_null() {
            object["metadata"] = json!({"name": "a", "namespace": "default"});
        }
        apply_defaults(kind, object);
    }
    validate_update(kind, &old, &new).iter().map(ToString::to_string).collect()
}

/// Sets what a JSON pointer names, new members of objects included.
fn set(object: &mut Value, path: &str, value: Value) {
    if let Some(place) = object.pointer_mut(path) {
        *place = value;
    } else {
        let (parent, last) = path.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap_or_else(|| panic!("{path}"))[last] = value;
    }
}

/// Each case: a change (path and value) to a good object, and how the only fault begins; empty for none.
fn cases(kind: &str, good: Value, cases: &[(&str, Value, &str)]) {
    assert_eq!(create(kind, good.clone()), [""; 0], "the good {kind}");
    for (path, value, expected) in cases {
        let mut object = good.clone();
        set(&mut object, path, value.clone());
        let faults = create(kind, object);
        if expected.is_empty() {
            assert_eq!(faults, [""; 0], "{path} {value}");
        } else {
            assert!(
                faults.iter().any(|fault| fault.starts_with(expected)),
                "{path} {value}\n got {faults:#?}\nwant {expected}"
            );
            assert!(faults.len() <= 2, "{path} {value} {faults:#?}");
        }
    }
}

fn deployment() -> Value {
    json!({
        "metadata": {"name": "a", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": {
            "metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "web:1"}]}}},
    })
}

#[test]
fn deployments() {
    cases(
        "Deployment",
        deployment(),
        &[
            ("/spec/replicas", json!(-1), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
            ("/spec/replicas", json!("three"), "spec.replicas: Invalid value: \"three\": must be a 32-bit integer"),
            ("/spec/selector", json!(null), "spec.selector: Required value"),
            ("/spec/selector", json!({}), "spec.selector: Invalid value: {}: empty selector is invalid for deployment"),
            (
                "/spec/selector",
                json!({"matchLabels": {"app": "b"}}),
                "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`",
            ),
            (
                "/spec/selector",
                json!({"matchExpressions": [{"key": "app", "operator": "Is"}]}),
                "spec.selector.matchExpressions[0].operator: Invalid value",
            ),
            (
                "/spec/template/spec/restartPolicy",
                json!("Never"),
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ),
            (
                "/spec/template/spec/containers",
                json!([{"name": "c"}]),
                "spec.template.spec.containers[0].image: Required value",
            ),
            (
                "/spec/strategy",
                json!({"type": "Recreate", "rollingUpdate": {}}),
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ),
            (
                "/spec/strategy",
                json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}),
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
            ),
            (
                "/spec/strategy",
                json!({"rollingUpdate": {"maxSurge": "x"}}),
                "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"x\": a valid percent string",
            ),
            (
                "/spec/minReadySeconds",
                json!(600),
                "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds",
            ),
        ],
    );
    let mut new = deployment();
    new["spec"]["selector"] = json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]});
    let faults = update("Deployment", deployment(), new);
    assert!(
        faults[0].starts_with("spec.selector: Invalid value") && faults[0].ends_with("field is immutable"),
        "{faults:?}"
    );
    for kind in ["ReplicaSet", "StatefulSet", "DaemonSet"] {
        cases(
            kind,
            deployment(),
            &[("/spec/template/spec/restartPolicy", json!("Never"), "spec.template.spec.restartPolicy: Unsupported")],
        );
    }
    let mut new = deployment();
    new["spec"]["serviceName"] = json!("other");
    assert!(update("StatefulSet", deployment(), new)[0].starts_with("spec: Forbidden: updates to statefulset spec"));
}

#[test]
fn jobs() {
    let job = json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "web:1"}]}}}});
    cases(
        "Job",
        job.clone(),
        &[
            (
                "/spec/template/spec/restartPolicy",
                json!("Always"),
                "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
            ),
            ("/spec/parallelism", json!(-1), "spec.parallelism: Invalid value"),
            ("/spec/completionMode", json!("Indexed"), ""),
        ],
    );
    let mut new = job.clone();
    new["spec"]["template"]["spec"]["containers"][0]["image"] = json!("web:2");
    let faults = update("Job", job.clone(), new);
    assert!(faults[0].starts_with("spec.template: ") && faults[0].ends_with("field is immutable"), "{faults:?}");
    let cron = json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": job["spec"]}}});
    cases(
        "CronJob",
        cron,
        &[
            ("/spec/schedule", json!("daily"), "spec.schedule: Invalid value: \"daily\": expected exactly 5 fields"),
            ("/spec/concurrencyPolicy", json!("x"), "spec.concurrencyPolicy: Unsupported value"),
            ("/metadata/name", json!("a".repeat(53)), "metadata.name: Invalid value"),
        ],
    );
}

#[test]
fn services() {
    let service = json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {"ports": [{"port": 80}], "selector": {"app": "a"}}});
    cases(
        "Service",
        service.clone(),
        &[
            ("/metadata/name", json!("1a"), "metadata.name: Invalid value: \"1a\": a DNS-1035 label"),
            ("/spec/ports", json!([]), "spec.ports: Required value"),
            ("/spec/ports", json!([{"port": 1}, {"port": 2, "name": "b"}]), "spec.ports[0].name: Required value"),
            (
                "/spec/ports",
                json!([{"port": 1, "name": "b"}, {"port": 2, "name": "b"}]),
                "spec.ports[1].name: Duplicate value: \"b\"",
            ),
            (
                "/spec/ports",
                json!([{"port": 0}]),
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ),
            (
                "/spec/ports",
                json!([{"port": 1, "nodePort": 30001}]),
                "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            ),
            ("/spec/type", json!("Cluster"), "spec.type: Unsupported value: \"Cluster\""),
            ("/spec/type", json!("ExternalName"), "spec.externalName: Required value"),
            ("/spec/clusterIP", json!("x"), "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP"),
            ("/spec/sessionAffinity", json!("x"), "spec.sessionAffinity: Unsupported value"),
            ("/spec/selector", json!({"app": "-"}), "spec.selector: Invalid value"),
        ],
    );
    let node_port =
        |port: i64| create("Service", json!({"spec": {"type": "NodePort", "ports": [{"port": 1, "nodePort": port}]}}));
    assert_eq!(node_port(30_000), [""; 0]);
    assert_eq!(
        node_port(8080),
        [
            "spec.ports[0].nodePort: Invalid value: 8080: provided port is not in the valid range. The range of valid ports is 30000-32767"
        ]
    );
    assert_eq!(create("Service", json!({"spec": {"clusterIP": "None"}})), [""; 0]);
    let with_ip = |ip: &str| {
        let mut s = service.clone();
        s["spec"]["clusterIP"] = json!(ip);
        s
    };
    assert_eq!(
        update("Service", with_ip("10.0.0.1"), with_ip("10.0.0.2")),
        ["spec.clusterIPs[0]: Invalid value: \"10.0.0.2\": field is immutable"]
    );
    assert_eq!(update("Service", with_ip(""), with_ip("10.0.0.2")), [""; 0]);
}

#[test]
fn claim_templates_are_volumes_of_the_pods() {
    let set = |mount: &str| {
        json!({"spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "serviceName": "s",
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {
                "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": mount, "mountPath": "/data"}]}],
            }},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
            }}],
        }})
    };
    assert_eq!(create("StatefulSet", set("data")), Vec::<String>::new());
    assert!(create("StatefulSet", set("other"))[0].contains("volumeMounts[0].name: Not found"));
}

#[test]
fn config() {
    cases(
        "ConfigMap",
        json!({"metadata": {"name": "a", "namespace": "default"}, "data": {"k": "v"}}),
        &[
            ("/data", json!({"a/b": "x"}), "data[a/b]: Invalid value: \"a/b\": a valid config key"),
            ("/data", json!({"a": 1}), "data[a]: Invalid value: 1: must be a string"),
            ("/binaryData", json!({"k": "YQ=="}), "data[k]: Invalid value: \"k\": duplicate of key"),
            ("/data", json!({"a": "x".repeat(1 << 20)}), ""),
            ("/data", json!({"a": "x".repeat((1 << 20) + 1)}), "data: Too long: may not be more than 1048576 bytes"),
        ],
    );
    cases(
        "Secret",
        json!({"metadata": {"name": "a", "namespace": "default"}, "data": {"k": "YQ=="}}),
        &[
            ("/data", json!({"k": "not base64"}), "data[k]: Invalid value: \"not base64\": must be base64 text"),
            ("/type", json!("kubernetes.io/tls"), "data[tls.crt]: Required value"),
        ],
    );
    let immutable = json!({"immutable": true, "data": {"a": "b"}});
    assert_eq!(
        update("ConfigMap", immutable.clone(), json!({"immutable": true, "data": {}})),
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
    assert_eq!(update("ConfigMap", immutable.clone(), immutable), [""; 0]);
    assert_eq!(update("Secret", json!({}), json!({"type": "x"})), ["type: Invalid value: \"x\": field is immutable"]);
    assert_eq!(
        create("Lease", json!({"spec": {"leaseDurationSeconds": 0}})),
        ["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"]
    );
    assert_eq!(create("Namespace", json!({"metadata": {"name": "a.b"}})).len(), 1);
    assert_eq!(
        create("Namespace", json!({"metadata": {"name": "a", "namespace": "b"}})),
        ["metadata.namespace: Forbidden: not allowed on this type"]
    );
    let node = |taint: Value| create("Node", json!({"spec": {"taints": [taint]}}));
    assert_eq!(node(json!({"key": "a", "effect": "NoSchedule"})), [""; 0]);
    assert_eq!(node(json!({"key": "a", "effect": "Never"})).len(), 1);
    let cidr = |cidr: &str| json!({"metadata": {"name": "a"}, "spec": {"podCIDR": cidr}});
    assert!(
        update("Node", cidr("10.0.0.0/24"), cidr("10.0.1.0/24"))[0].contains("node updates may not change podCIDR")
    );
}

#[test]
fn roles_and_bindings() {
    cases(
        "Role",
        json!({"metadata": {"name": "a:b", "namespace": "default"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}),
        &[("/rules/0/verbs", json!([]), "rules[0].verbs: Required value: verbs must contain at least one value")],
    );
    let binding = json!({"metadata": {"name": "a", "namespace": "default"}, "roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}]});
    let cluster = json!({"metadata": {"name": "a"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "r"},
        "subjects": [{"kind": "ServiceAccount", "name": "s", "namespace": "n"}]});
    cases(
        "ClusterRoleBinding",
        cluster,
        &[("/subjects/0/namespace", json!(""), "subjects[0].namespace: Required value")],
    );
    cases("RoleBinding", binding.clone(), &[("/roleRef/kind", json!("Pod"), "roleRef.kind: Unsupported value")]);
    let mut new = binding.clone();
    new["roleRef"]["name"] = json!("s");
    assert!(update("RoleBinding", binding, new)[0].ends_with("cannot change roleRef"));
}

#[test]
fn the_others() {
    cases(
        "EndpointSlice",
        json!({"metadata": {"name": "a", "namespace": "default"}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]}),
        &[
            ("/addressType", json!("IPv5"), "addressType: Unsupported value"),
            ("/endpoints", json!([{"addresses": []}]), "endpoints[0].addresses: Required value"),
            (
                "/endpoints",
                json!([{"addresses": ["::1"]}]),
                "endpoints[0].addresses[0]: Invalid value: \"::1\": must be a valid IPv4 address",
            ),
        ],
    );
    cases(
        "PodDisruptionBudget",
        json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {"minAvailable": 1}}),
        &[
            ("/spec/maxUnavailable", json!(1), "spec: Invalid value"),
            (
                "/spec/minAvailable",
                json!("101%"),
                "spec.minAvailable: Invalid value: \"101%\": must not be greater than 100%",
            ),
        ],
    );
    cases(
        "PersistentVolumeClaim",
        json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
        &[
            ("/spec/accessModes", json!([]), "spec.accessModes: Required value: at least 1 access mode is required"),
            ("/spec/resources", json!({}), "spec.resources[storage]: Required value"),
        ],
    );
    let path = |path: Value| json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {"rules": [{"http": {"paths": [path]}}]}});
    let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
    cases(
        "Ingress",
        path(json!({"path": "/", "pathType": "Prefix", "backend": backend})),
        &[
            ("/spec/rules", json!([]), "spec: Invalid value"),
            (
                "/spec/rules/0/http/paths/0/pathType",
                json!(""),
                "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified",
            ),
            ("/spec/rules/0/http/paths/0/path", json!("x"), "spec.rules[0].http.paths[0].path: Invalid value"),
            ("/spec/rules/0/http/paths/0/backend", json!({}), "spec.rules[0].http.paths[0].backend: Required value"),
        ],
    );
    cases(
        "HorizontalPodAutoscaler",
        json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "a"}}}),
        &[(
            "/spec/minReplicas",
            json!(5),
            "spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`",
        )],
    );
    cases(
        "NetworkPolicy",
        json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]}}),
        &[(
            "/spec/ingress/0/from/0/ipBlock/cidr",
            json!("10.0.0.0/64"),
            "spec.ingress[0].from[0].ipBlock.cidr: Invalid value",
        )],
    );
    assert_eq!(create("StorageClass", json!({"metadata": {"name": "a"}, "provisioner": "x"})), [""; 0]);
    assert_eq!(create("Widget", json!({"metadata": {"name": "a"}, "spec": 3})), [""; 0]);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        Just(json!(true)),
        any::<i64>().prop_map(|n| json!(n)),
        (-3i64..4).prop_map(|n| json!(n)),
        "[a-zA-Z/.%-]{0,6}".prop_map(|s| json!(s)),
        Just(json!(1.5)),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(|v| json!(v)),
            prop::collection::btree_map("name|spec|path|ports|exec|a", inner, 0..3).prop_map(|m| json!(m)),
        ]
    })
}

/// Every place in an object, as JSON pointers.
fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| pointers(value, &format!("{at}/{key}"), all)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| pointers(value, &format!("{at}/{i}"), all));
        }
        _ => {}
    }
}

proptest! {
    #[test]
    fn never_panics(place in any::<prop::sample::Index>(), value in any_json(), which in 0usize..4) {
        let (kind, good) = [("Pod", pod()), ("Deployment", deployment()), ("StatefulSet", deployment()), ("Service", json!({
            "metadata": {"name": "a", "namespace": "b"}, "spec": {"type": "NodePort", "ports": [{"port": 1, "name": "a", "targetPort": "x"}]}}))][which].clone();
        let mut all = Vec::new();
        pointers(&good, "", &mut all);
        let mut object = good.clone();
        let place: &String = place.get(&all);
        *object.pointer_mut(place).unwrap() = value;
        apply_defaults(kind, &mut object);
        let _ = validate_create(kind, &object);
        let _ = validate_update(kind, &good, &object);
        let _ = validate_update(kind, &object, &good);
        let _ = validate_status_update(kind, &good, &object);
        for kind in ["Ingress", "Job", "CronJob", "EndpointSlice", "Secret", "NetworkPolicy", "PersistentVolume", "RoleBinding", "Node"] {
            let _ = validate_create(kind, &object);
        }
    }
}
