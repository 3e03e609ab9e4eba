//! Defaults against what kube-apiserver fills in.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use super::*;

fn defaulted(kind: &str, mut object: Value) -> Value {
    apply_defaults(kind, &mut object);
    let once = object.clone();
    apply_defaults(kind, &mut object);
    assert_eq!(object, once, "twice");
    once
}

#[test]
fn pods() {
    let pod = defaulted(
        "Pod",
        json!({"spec": {
            "serviceAccountName": "robot",
            "containers": [{
                "name": "a", "image": "web", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}},
                "livenessProbe": {"httpGet": {"port": 80}, "periodSeconds": 5, "timeoutSeconds": 0},
                "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            }],
            "volumes": [{"name": "e"}, {"name": "c", "configMap": {"name": "x"}}, {"name": "h", "hostPath": {"path": "/"}}],
        }}),
    );
    let spec = &pod["spec"];
    assert_eq!(spec["restartPolicy"], "Always");
    assert_eq!(spec["serviceAccount"], "robot");
    assert_eq!((&spec["terminationGracePeriodSeconds"], &spec["enableServiceLinks"]), (&json!(30), &json!(true)));
    let container = &spec["containers"][0];
    assert_eq!(container["imagePullPolicy"], "Always");
    assert_eq!(container["ports"][0], json!({"containerPort": 80, "protocol": "TCP"}));
    assert_eq!(container["resources"]["requests"], json!({"cpu": "100m", "memory": "1Gi"}));
    assert_eq!(
        container["livenessProbe"],
        json!({
            "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
            "periodSeconds": 5, "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3,
        })
    );
    assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
    assert_eq!(
        spec["volumes"],
        json!([
            {"name": "e", "emptyDir": {}}, {"name": "c", "configMap": {"name": "x", "defaultMode": 420}},
            {"name": "h", "hostPath": {"path": "/", "type": ""}},
        ])
    );
}

#[test]
fn pull_policies() {
    for (image, policy) in [
        ("web", "Always"),
        ("web:latest", "Always"),
        ("web:1.2", "IfNotPresent"),
        ("host:5000/web", "Always"),
        ("host:5000/web:1", "IfNotPresent"),
        ("web@sha256:00", "IfNotPresent"),
        ("mainstay.dev/host", "Always"),
    ] {
        let pod = defaulted("Pod", json!({"spec": {"containers": [{"name": "a", "image": image}]}}));
        assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], policy, "{image}");
    }
}

#[test]
fn deployments_and_their_templates() {
    let object = defaulted("Deployment", json!({"spec": {"template": {"spec": {"containers": [{"name": "a"}]}}}}));
    let spec = &object["spec"];
    assert_eq!(
        spec["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
    );
    assert_eq!((&spec["replicas"], &spec["progressDeadlineSeconds"]), (&json!(1), &json!(600)));
    assert_eq!(spec["template"]["spec"]["containers"][0]["terminationMessagePolicy"], "File");
    let recreate = defaulted("Deployment", json!({"spec": {"replicas": 0, "strategy": {"type": "Recreate"}}}));
    assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));
    assert_eq!(recreate["spec"]["replicas"], 0);
}

#[test]
fn services() {
    let service = |spec: Value| defaulted("Service", json!({"spec": spec}))["spec"].clone();
    assert_eq!(
        service(json!({"ports": [{"port": 80}]})),
        json!({
            "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"], "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
        })
    );
    let balancer = service(
        json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP", "ports": [{"port": 1, "targetPort": "web"}]}),
    );
    assert_eq!(balancer["externalTrafficPolicy"], "Cluster");
    assert_eq!(balancer["allocateLoadBalancerNodePorts"], true);
    assert_eq!(balancer["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10_800);
    assert_eq!(balancer["ports"][0]["targetPort"], "web");
    let external = service(json!({"type": "ExternalName", "externalName": "x.example"}));
    assert_eq!(external.get("ipFamilies"), None);
}

#[test]
fn jobs() {
    let job = |spec: Value| defaulted("Job", json!({"spec": spec}))["spec"].clone();
    let one = job(json!({}));
    assert_eq!((&one["completions"], &one["parallelism"], &one["backoffLimit"]), (&json!(1), &json!(1), &json!(6)));
    assert_eq!((&one["completionMode"], &one["suspend"]), (&json!("NonIndexed"), &json!(false)));
    assert_eq!(job(json!({"parallelism": 3})).get("completions"), None);
    let cron = defaulted("CronJob", json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": {}}}}}}));
    assert_eq!(cron["spec"]["concurrencyPolicy"], "Allow");
    assert_eq!(cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["dnsPolicy"], "ClusterFirst");
}

#[test]
fn the_others() {
    let namespace = defaulted("Namespace", json!({"metadata": {"name": "shop"}}));
    assert_eq!(namespace["metadata"]["labels"]["kubernetes.io/metadata.name"], "shop");
    assert_eq!(
        (&namespace["spec"]["finalizers"], &namespace["status"]["phase"]),
        (&json!(["kubernetes"]), &json!("Active"))
    );
    let ending = json!({"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}});
    assert_eq!(defaulted("Namespace", ending)["spec"], json!({}));
    assert_eq!(defaulted("Secret", json!({}))["type"], "Opaque");
    assert_eq!(defaulted("StorageClass", json!({}))["volumeBindingMode"], "Immediate");
    assert_eq!(
        defaulted("NetworkPolicy", json!({"spec": {"egress": [{}]}}))["spec"]["policyTypes"],
        json!(["Ingress", "Egress"])
    );
    let binding = defaulted(
        "RoleBinding",
        json!({"roleRef": {"kind": "Role"}, "subjects": [{"kind": "User"}, {"kind": "ServiceAccount"}]}),
    );
    assert_eq!(
        binding["subjects"],
        json!([{"kind": "User", "apiGroup": "rbac.authorization.k8s.io"}, {"kind": "ServiceAccount"}])
    );
    let stateful = defaulted("StatefulSet", json!({"spec": {"volumeClaimTemplates": [{"spec": {}}]}}));
    assert_eq!(stateful["spec"]["podManagementPolicy"], "OrderedReady");
    assert_eq!(stateful["spec"]["volumeClaimTemplates"][0]["spec"]["volumeMode"], "Filesystem");
    assert_eq!(stateful["spec"]["updateStrategy"]["rollingUpdate"]["partition"], 0);
    let daemon = defaulted("DaemonSet", json!({"spec": {}}));
    assert_eq!(daemon["spec"]["updateStrategy"]["rollingUpdate"], json!({"maxUnavailable": 1, "maxSurge": 0}));
    assert_eq!(defaulted("HorizontalPodAutoscaler", json!({"spec": {}}))["spec"]["minReplicas"], 1);
    assert_eq!(defaulted("PersistentVolume", json!({"spec": {}}))["spec"]["persistentVolumeReclaimPolicy"], "Retain");
    let node = defaulted("Node", json!({"status": {"capacity": {"cpu": "2"}}}));
    assert_eq!(node["status"]["allocatable"], json!({"cpu": "2"}));
}

#[test]
fn nulls_are_absent_in_built_in_kinds() {
    let pod = defaulted(
        "Pod",
        json!({"metadata": {"creationTimestamp": null}, "spec": {"volumes": [{"name": "v", "emptyDir": null}]}}),
    );
    assert_eq!(pod["metadata"], json!({}));
    assert_eq!(pod["spec"]["volumes"], json!([{"name": "v", "emptyDir": {}}]));
    assert_eq!(defaulted("Widget", json!({"spec": {"x": null}})), json!({"spec": {"x": null}}));
}

#[test]
fn wrong_types_are_left_alone() {
    for kind in ["Pod", "Deployment", "Service", "Job", "Namespace", "Secret", "StatefulSet", "CronJob"] {
        for value in [
            json!(null),
            json!(3),
            json!([]),
            json!({"spec": 3}),
            json!({"spec": {"template": [], "containers": 1, "ports": {"a": 1}, "strategy": "x"}}),
            json!({"metadata": 1, "status": 1}),
        ] {
            defaulted(kind, value);
        }
    }
}
