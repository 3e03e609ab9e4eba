//! Table rows as `kubectl get` shows them.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use proptest::prelude::*;

use super::*;

fn now() -> Timestamp {
    "2026-01-02T00:10:00Z".parse().unwrap()
}

/// The cells shown without `-o wide`, with `|` between them; the object is one day and ten minutes old.
fn shown(kind: &str, object: Value) -> String {
    line(kind, object, 0)
}

fn line(kind: &str, mut object: Value, priority: i32) -> String {
    meta::set_metadata(&mut object, "name", json!("a"));
    meta::set_metadata(&mut object, "creationTimestamp", json!("2026-01-01T00:00:00Z"));
    let cells = row(kind, &object, now());
    assert_eq!(cells.len(), columns(kind).len(), "{kind}");
    let cells = cells.iter().zip(columns(kind)).filter(|(_, column)| column.priority == priority);
    let cells: Vec<_> = cells.map(|(cell, _)| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned)).collect();
    cells.join("|")
}

fn pod(phase: &str, statuses: Value, inits: Value) -> Value {
    json!({
        "spec": {
            "containers": [{"name": "a"}, {"name": "b"}],
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
        },
        "status": {"phase": phase, "containerStatuses": statuses, "initContainerStatuses": inits},
    })
}

#[test]
fn pods() {
    let running = |ready: bool| json!({"name": "a", "ready": ready, "restartCount": 0, "state": {"running": {}}});
    let waiting = |reason: &str| {
        json!({"name": "a", "restartCount": 2, "state": {"waiting": {"reason": reason}},
        "lastState": {"terminated": {"finishedAt": "2026-01-02T00:07:00Z"}}})
    };
    let ended =
        |code: i64, reason: &str| json!({"name": "a", "state": {"terminated": {"exitCode": code, "reason": reason}}});
    let done = json!([ended(0, "Completed"), {"name": "s", "started": true, "ready": true}]);
    for (phase, statuses, inits, expected) in [
        ("Pending", json!([]), json!([]), "a|0/3|Pending|0|24h"),
        ("Running", json!([running(true), running(true)]), done.clone(), "a|3/3|Running|0|24h"),
        ("Running", json!([running(true), running(false)]), done.clone(), "a|2/3|Running|0|24h"),
        (
            "Running",
            json!([waiting("CrashLoopBackOff"), running(true)]),
            done.clone(),
            "a|2/3|CrashLoopBackOff|2 (3m ago)|24h",
        ),
        ("Pending", json!([waiting("ImagePullBackOff")]), done.clone(), "a|1/3|ImagePullBackOff|2 (3m ago)|24h"),
        ("Succeeded", json!([ended(0, "Completed"), ended(0, "Completed")]), json!([]), "a|0/3|Completed|0|24h"),
        ("Running", json!([ended(0, "Completed"), running(true)]), json!([]), "a|1/3|NotReady|0|24h"),
        ("Failed", json!([ended(3, "")]), json!([]), "a|0/3|ExitCode:3|0|24h"),
        ("Failed", json!([ended(1, "Error")]), json!([]), "a|0/3|Error|0|24h"),
        ("Pending", json!([]), json!([{"name": "i", "state": {"running": {}}}]), "a|0/3|Init:0/2|0|24h"),
        (
            "Pending",
            json!([]),
            json!([ended(0, ""), {"name": "s", "state": {"waiting": {"reason": "PodInitializing"}}}]),
            "a|0/3|Init:1/2|0|24h",
        ),
        ("Pending", json!([]), json!([waiting("CrashLoopBackOff")]), "a|0/3|Init:CrashLoopBackOff|2 (3m ago)|24h"),
        ("Pending", json!([]), json!([ended(1, "Error")]), "a|0/3|Init:Error|0|24h"),
        ("Pending", json!([]), json!([ended(7, "")]), "a|0/3|Init:ExitCode:7|0|24h"),
    ] {
        assert_eq!(shown("Pod", pod(phase, statuses.clone(), inits)), expected, "{phase} {statuses}");
    }
    let mut ending = pod("Running", json!([running(true)]), done);
    meta::set_metadata(&mut ending, "deletionTimestamp", json!("2026-01-02T00:00:00Z"));
    assert_eq!(shown("Pod", ending.clone()), "a|2/3|Terminating|0|24h");
    ending["status"]["reason"] = json!("NodeLost");
    assert_eq!(shown("Pod", ending), "a|2/3|Unknown|0|24h");
    let evicted = json!({"status": {"phase": "Failed", "reason": "Evicted"}});
    assert_eq!(shown("Pod", evicted), "a|0/0|Evicted|0|24h");
    let wide =
        json!({"spec": {"nodeName": "n", "readinessGates": [{"conditionType": "x"}]}, "status": {"podIP": "10.0.0.1"}});
    assert_eq!(line("Pod", wide, 1), "10.0.0.1|n|<none>|0/1");
}

#[test]
fn nodes() {
    let node = json!({
        "metadata": {"labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "edge"}},
        "spec": {"unschedulable": true},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
            "nodeInfo": {"kubeletVersion": "v1.37.0", "osImage": "Debian"},
        },
    });
    assert_eq!(shown("Node", node.clone()), "a|Ready,SchedulingDisabled|control-plane,edge|24h|v1.37.0");
    assert_eq!(line("Node", node, 1), "10.0.0.1|<none>|Debian|<unknown>|<unknown>");
    assert_eq!(shown("Node", json!({})), "a|Unknown|<none>|24h|");
    let lost = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    assert_eq!(shown("Node", lost), "a|NotReady|<none>|24h|");
}

#[test]
fn workloads() {
    let spec = json!({"replicas": 3, "selector": {"matchLabels": {"app": "a"}}, "template": {"spec": {"containers": [{"name": "c", "image": "x:1"}, {"name": "d", "image": "y:2"}]}}});
    let object = json!({"spec": spec, "status": {"replicas": 3, "readyReplicas": 2, "updatedReplicas": 1, "availableReplicas": 2}});
    assert_eq!(shown("Deployment", object.clone()), "a|2/3|1|2|24h");
    assert_eq!(line("Deployment", object.clone(), 1), "c,d|x:1,y:2|app=a");
    assert_eq!(shown("ReplicaSet", object.clone()), "a|3|3|2|24h");
    assert_eq!(shown("StatefulSet", object), "a|2/3|24h");
    let daemon = json!({"spec": {"template": {"spec": {"nodeSelector": {"x": "y"}}}}, "status": {"desiredNumberScheduled": 3, "numberReady": 1}});
    assert_eq!(shown("DaemonSet", daemon), "a|3|0|1|0|0|x=y|24h");
    let job = |extra: Value, status: Value| {
        let mut spec = json!({"parallelism": 2});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        shown("Job", json!({"spec": spec, "status": status}))
    };
    assert_eq!(job(json!({"completions": 1}), json!({"startTime": "2026-01-02T00:09:50Z"})), "a|Running|0/1|10s|24h");
    assert_eq!(job(json!({}), json!({"succeeded": 1})), "a|Running|1/1 of 2||24h");
    let complete = json!({"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}],
        "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:05Z"});
    assert_eq!(job(json!({"completions": 1}), complete), "a|Complete|1/1|5s|24h");
    let cron = json!({"spec": {"schedule": "* * * * *", "suspend": false}, "status": {"lastScheduleTime": "2026-01-02T00:09:00Z", "active": [{}]}});
    assert_eq!(shown("CronJob", cron), "a|* * * * *|<none>|False|1|60s|24h");
    let scaler = json!({
        "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "minReplicas": 1, "maxReplicas": 5,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}}]},
        "status": {"currentReplicas": 2, "currentMetrics": [{"resource": {"current": {"averageUtilization": 10}}}]},
    });
    assert_eq!(shown("HorizontalPodAutoscaler", scaler), "a|Deployment/d|cpu: 10%/80%|1|5|2|24h");
    assert_eq!(
        shown("PodDisruptionBudget", json!({"spec": {"minAvailable": "50%"}, "status": {"disruptionsAllowed": 1}})),
        "a|50%|N/A|1|24h"
    );
}

#[test]
fn network() {
    let service = |spec: Value, status: Value| shown("Service", json!({"spec": spec, "status": status}));
    let ports = json!([{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP", "nodePort": 30053}]);
    assert_eq!(
        service(json!({"type": "ClusterIP", "clusterIP": "10.0.0.1", "ports": ports}), json!({})),
        "a|ClusterIP|10.0.0.1|<none>|80/TCP,53:30053/UDP|24h"
    );
    assert_eq!(
        service(json!({"type": "LoadBalancer", "clusterIP": "10.0.0.1"}), json!({})),
        "a|LoadBalancer|10.0.0.1|<pending>|<none>|24h"
    );
    let assigned = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "x.example"}]}});
    assert_eq!(
        service(json!({"type": "LoadBalancer"}), assigned),
        "a|LoadBalancer|<none>|192.0.2.1,x.example|<none>|24h"
    );
    assert_eq!(
        service(json!({"type": "ExternalName", "externalName": "x.example"}), json!({})),
        "a|ExternalName|<none>|x.example|<none>|24h"
    );
    let slice = json!({"addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["1"]}, {"addresses": ["2"]}, {"addresses": ["3"]}, {"addresses": ["4"]}]});
    assert_eq!(shown("EndpointSlice", slice), "a|IPv4|80|1,2,3 + 1 more...|24h");
    assert_eq!(shown("EndpointSlice", json!({"addressType": "IPv4"})), "a|IPv4|<unset>|<unset>|24h");
    let ingress = json!({"spec": {"ingressClassName": "c", "rules": [{"host": "x.example"}], "tls": [{}]}});
    assert_eq!(shown("Ingress", ingress), "a|c|x.example||80, 443|24h");
    assert_eq!(shown("NetworkPolicy", json!({"spec": {"podSelector": {"matchLabels": {"a": "b"}}}})), "a|a=b|24h");
}

#[test]
fn config_and_storage() {
    assert_eq!(shown("ConfigMap", json!({"data": {"a": "", "b": ""}, "binaryData": {"c": ""}})), "a|3|24h");
    assert_eq!(shown("Secret", json!({"type": "Opaque", "data": {"a": ""}})), "a|Opaque|1|24h");
    assert_eq!(shown("Namespace", json!({"status": {"phase": "Active"}})), "a|Active|24h");
    assert_eq!(shown("Lease", json!({"spec": {"holderIdentity": "x"}})), "a|x|24h");
    assert_eq!(shown("ServiceAccount", json!({})), "a|0|24h");
    assert_eq!(shown("Role", json!({})), "a|2026-01-01T00:00:00Z");
    assert_eq!(shown("RoleBinding", json!({"roleRef": {"kind": "Role", "name": "r"}})), "a|Role/r|24h");
    assert_eq!(shown("PriorityClass", json!({"value": 5})), "a|5|false|24h|");
    assert_eq!(shown("Widget", json!({})), "a|24h");
    let event = json!({"type": "Warning", "reason": "BackOff", "message": "m\n", "involvedObject": {"kind": "Pod", "name": "p"},
        "firstTimestamp": "2026-01-02T00:00:00Z", "lastTimestamp": "2026-01-02T00:09:00Z", "count": 4, "source": {"component": "c", "host": "h"}});
    assert_eq!(shown("Event", event.clone()), "60s|Warning|BackOff|pod/p|m");
    assert_eq!(line("Event", event, 1), "|c, h|10m|4|a");
    let volume = json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain", "claimRef": {"namespace": "n", "name": "c"}}, "status": {"phase": "Bound"}});
    assert_eq!(shown("PersistentVolume", volume), "a|1Gi|RWO|Retain|Bound|n/c||<unset>||24h");
    let claim = json!({"spec": {"volumeName": "v", "storageClassName": "s"}, "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"]}});
    assert_eq!(shown("PersistentVolumeClaim", claim), "a|Bound|v|1Gi|RWX|s|<unset>|24h");
    let class = json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "p"});
    assert_eq!(shown("StorageClass", class), "a (default)|p|Delete|<unset>|false|24h");
}

#[test]
fn whole_tables() {
    let object = json!({"metadata": {"name": "a"}, "data": {}});
    let made = table("ConfigMap", [&object], &json!({"resourceVersion": "7"}), IncludeObject::Metadata, now());
    assert_eq!((&made["kind"], &made["metadata"]["resourceVersion"]), (&json!("Table"), &json!("7")));
    assert_eq!(made["columnDefinitions"][0]["format"], "name");
    assert_eq!(made["rows"][0]["cells"], json!(["a", 0, "<unknown>"]));
    assert_eq!(made["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(IncludeObject::parse("x"), None);
    let made = table("ConfigMap", [&object], &json!({}), IncludeObject::Object, now());
    assert_eq!(made["rows"][0]["object"], object);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        Just(json!(true)),
        any::<i64>().prop_map(|n| json!(n)),
        "[a-z]{0,3}".prop_map(|s| json!(s))
    ];
    let keys = "spec|status|metadata|name|containers|containerStatuses|initContainerStatuses|state|conditions|ports|addresses|metrics";
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(|v| json!(v)),
            prop::collection::btree_map(keys, inner, 0..4).prop_map(|m| json!(m))
        ]
    })
}

proptest! {
    #[test]
    fn a_row_always_has_a_cell_for_each_column(object in any_json()) {
        for kind in ["Pod", "Node", "Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "CronJob", "HorizontalPodAutoscaler",
            "PodDisruptionBudget", "Service", "EndpointSlice", "Ingress", "IngressClass", "NetworkPolicy", "PersistentVolume",
            "PersistentVolumeClaim", "StorageClass", "ConfigMap", "Secret", "Namespace", "Lease", "ServiceAccount", "Event", "Role",
            "RoleBinding", "PriorityClass", "RuntimeClass", "Widget"] {
            prop_assert_eq!(row(kind, &object, now()).len(), columns(kind).len());
        }
    }
}
