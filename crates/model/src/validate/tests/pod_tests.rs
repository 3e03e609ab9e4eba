//! Validation of pods, one mutation of a good pod at a time.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use serde_json::{Value, json};

use super::{cases, create, set, update};
use crate::validate::validate_create;

pub(super) fn pod() -> Value {
    json!({
        "metadata": {"name": "a", "namespace": "default"},
        "spec": {"containers": [{
            "name": "c", "image": "web:1", "ports": [{"containerPort": 80, "name": "http"}, {"containerPort": 81}],
            "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "1"}}, "env": [{"name": "A", "value": "b"}],
            "livenessProbe": {"httpGet": {"port": "http"}}, "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "securityContext": {}, "lifecycle": {"preStop": {"exec": {"command": ["true"]}}},
        }], "initContainers": [{"name": "i", "image": "web:1"}], "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "configMap": {"name": "x"}}],
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"a": "b"}}}],
            "tolerations": [{"key": "k", "operator": "Exists"}], "affinity": {"podAntiAffinity": {}},
        },
    })
}

#[test]
fn pods() {
    cases(
        "Pod",
        pod(),
        &[
            ("/metadata/name", json!("A"), "metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain"),
            ("/metadata/namespace", json!(null), "metadata.namespace: Required value"),
            ("/metadata/labels", json!({"-": "x"}), "metadata.labels: Invalid value: \"-\": name part must consist"),
            ("/metadata/labels", json!({"a": 1}), "metadata.labels[a]: Invalid value: 1: must be a string"),
            (
                "/metadata/annotations",
                json!({"a": "x".repeat(300_000)}),
                "metadata.annotations: Too long: may not be more than 262144 bytes",
            ),
            (
                "/metadata/ownerReferences",
                json!([{"apiVersion": "v1", "kind": "Node", "name": "n"}]),
                "metadata.ownerReferences[0].uid: Required",
            ),
            ("/spec/containers", json!([]), "spec.containers: Required value"),
            ("/spec/containers", json!("x"), "spec.containers: Invalid value: \"x\": must be a list"),
            (
                "/spec/containers",
                json!([{"name": "i", "image": "x:1"}]),
                "spec.containers[0].name: Duplicate value: \"i\"",
            ),
            (
                "/spec/containers/0/name",
                json!("C"),
                "spec.containers[0].name: Invalid value: \"C\": a lowercase RFC 1123 label",
            ),
            ("/spec/containers/0/image", json!(""), "spec.containers[0].image: Required value"),
            (
                "/spec/containers/0/image",
                json!(" x"),
                "spec.containers[0].image: Invalid value: \" x\": must not have leading or trailing whitespace",
            ),
            (
                "/spec/containers/0/imagePullPolicy",
                json!("Sometimes"),
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            ),
            (
                "/spec/containers/0/ports/0/containerPort",
                json!(70000),
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                "/spec/containers/0/ports/1/name",
                json!("http"),
                "spec.containers[0].ports[1].name: Duplicate value: \"http\"",
            ),
            (
                "/spec/containers/0/ports/1/protocol",
                json!("tcp"),
                "spec.containers[0].ports[1].protocol: Unsupported value",
            ),
            (
                "/spec/containers/0/ports",
                json!([{"containerPort": 1, "hostPort": 5}, {"containerPort": 2, "hostPort": 5}]),
                "spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP/5\"",
            ),
            (
                "/spec/containers/0/resources/requests",
                json!({"cpu": "2"}),
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ),
            (
                "/spec/containers/0/resources/requests",
                json!({"cpu": "-1"}),
                "spec.containers[0].resources.requests[cpu]: Invalid value: \"-1\": must be greater",
            ),
            (
                "/spec/containers/0/resources/requests",
                json!({"cpu": "much"}),
                "spec.containers[0].resources.requests[cpu]: Invalid value: \"much\": quantities must match",
            ),
            ("/spec/containers/0/env", json!([{"name": "A=B"}]), "spec.containers[0].env[0].name: Invalid value"),
            (
                "/spec/containers/0/env",
                json!([{"name": "A", "valueFrom": {}}]),
                "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of",
            ),
            (
                "/spec/containers/0/env",
                json!([{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]),
                "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value",
            ),
            (
                "/spec/containers/0/env",
                json!([{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}}]),
                "",
            ),
            (
                "/spec/containers/0/livenessProbe",
                json!({}),
                "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            ),
            (
                "/spec/containers/0/livenessProbe",
                json!({"exec": {"command": ["a"]}, "tcpSocket": {"port": 1}}),
                "spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
            ),
            (
                "/spec/containers/0/livenessProbe/successThreshold",
                json!(2),
                "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            ),
            (
                "/spec/containers/0/livenessProbe/periodSeconds",
                json!(-1),
                "spec.containers[0].livenessProbe.periodSeconds: Invalid value: -1",
            ),
            ("/spec/containers/0/lifecycle/preStop", json!({}), "spec.containers[0].lifecycle.preStop: Required value"),
            (
                "/spec/containers/0/volumeMounts",
                json!([{"name": "x", "mountPath": "/x"}]),
                "spec.containers[0].volumeMounts[0].name: Not found: \"x\"",
            ),
            (
                "/spec/containers/0/volumeMounts",
                json!([{"name": "v", "mountPath": "/x"}, {"name": "v", "mountPath": "/x"}]),
                "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/x\": must be unique",
            ),
            (
                "/spec/containers/0/securityContext",
                json!({"privileged": true, "allowPrivilegeEscalation": false}),
                "spec.containers[0].securityContext: Invalid value",
            ),
            (
                "/spec/initContainers/0/readinessProbe",
                json!({"exec": {"command": ["a"]}}),
                "spec.initContainers[0].readinessProbe: Forbidden",
            ),
            (
                "/spec/volumes",
                json!([{"name": "v", "emptyDir": {}}, {"name": "v", "emptyDir": {}}]),
                "spec.volumes[1].name: Duplicate value: \"v\"",
            ),
            (
                "/spec/volumes/1",
                json!({"name": "w", "emptyDir": {}, "hostPath": {"path": "/"}}),
                "spec.volumes[1].hostPath: Forbidden: may not specify more than 1 volume type",
            ),
            (
                "/spec/volumes/1",
                json!({"name": "w", "secret": {}}),
                "spec.volumes[1].secret.secretName: Required value",
            ),
            (
                "/spec/volumes/1",
                json!({"name": "w", "configMap": {"name": "x", "items": [{"key": "k", "path": "../x"}]}}),
                "spec.volumes[1].configMap.items[0].path: Invalid value: \"../x\": must not contain '..'",
            ),
            (
                "/spec/restartPolicy",
                json!("Sometimes"),
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            ),
            (
                "/spec/activeDeadlineSeconds",
                json!(0),
                "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
            ),
            (
                "/spec/topologySpreadConstraints/0/maxSkew",
                json!(0),
                "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than 0",
            ),
            (
                "/spec/topologySpreadConstraints/0/topologyKey",
                json!(""),
                "spec.topologySpreadConstraints[0].topologyKey: Required value: can not be empty",
            ),
            (
                "/spec/tolerations/0/value",
                json!("x"),
                "spec.tolerations[0].operator: Invalid value: \"x\": value must be empty",
            ),
            ("/spec/nodeSelector", json!({"a": "-"}), "spec.nodeSelector: Invalid value"),
            (
                "/spec/affinity/podAntiAffinity",
                json!({"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": ""}]}),
                "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required",
            ),
            ("/spec/hostNetwork", json!(true), ""),
            (
                "/spec/ephemeralContainers",
                json!([{"name": "e", "image": "x:1"}]),
                "spec.ephemeralContainers: Forbidden: cannot be set on create",
            ),
        ],
    );
    assert_eq!(create("Pod", json!({})), ["spec.containers: Required value"]);
    assert_eq!(
        validate_create("Pod", &json!([])).iter().map(ToString::to_string).collect::<Vec<_>>(),
        [": Invalid value: must be an object"]
    );
}

#[test]
fn pod_updates() {
    let change = |path: &str, value: Value| {
        let mut new = pod();
        set(&mut new, path, value);
        update("Pod", pod(), new)
    };
    for (path, value) in [
        ("/spec/containers/0/image", json!("web:2")),
        ("/spec/initContainers/0/image", json!("web:2")),
        ("/spec/activeDeadlineSeconds", json!(5)),
        ("/spec/tolerations", json!([{"key": "k", "operator": "Exists"}, {"key": "l", "operator": "Exists"}])),
        ("/metadata/labels", json!({"a": "b"})),
    ] {
        assert_eq!(change(path, value), [""; 0], "{path}");
    }
    for (path, value, expected) in [
        (
            "/spec/nodeName",
            json!("n"),
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`",
        ),
        ("/spec/containers/0/env", json!([]), "spec: Forbidden: pod updates may not change"),
        ("/spec/tolerations", json!([]), "spec.tolerations: Forbidden: existing toleration can not be modified"),
        (
            "/spec/initContainers",
            json!([]),
            "spec.initContainers: Forbidden: pod updates may not add or remove containers",
        ),
        ("/metadata/name", json!("b"), "metadata.name: Invalid value: \"b\": field is immutable"),
    ] {
        let faults = change(path, value);
        assert!(faults.len() == 1 && faults[0].starts_with(expected), "{path} {faults:?}");
    }
    let faults = change("/spec/nodeName", json!("n"));
    assert!(faults[0].ends_with("changed: spec.nodeName"), "{faults:?}");
    let mut ending = pod();
    ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let mut finalised = ending.clone();
    finalised["metadata"]["finalizers"] = json!(["example.com/x"]);
    assert!(update("Pod", ending, finalised)[0].contains("no new finalizers can be added"));
}
