//! What keeping track of owners costs each write: `cargo run --release -p mainstay-model --example ownership`.
//!
//! Processor time, so that other work on the machine does not count.

use std::hint::black_box;

use jiff::Timestamp;
use mainstay_model::apply::{Reach, View, Write, apply, update};
use serde_json::{Value, json};

const ROUNDS: u32 = 20_000;

fn deployment() -> Value {
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 5, "timeoutSeconds": 1,
        "successThreshold": 1, "failureThreshold": 3});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web", "tier": "front"},
            "annotations": {"deployment.kubernetes.io/revision": "3"}},
        "spec": {
            "replicas": 3, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10, "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {
                "metadata": {"labels": {"app": "web", "tier": "front"}},
                "spec": {
                    "containers": [{
                        "name": "web", "image": "registry.example/web:1.2.3", "imagePullPolicy": "IfNotPresent",
                        "ports": [{"containerPort": 8080, "name": "http", "protocol": "TCP"}, {"containerPort": 9090, "name": "metrics", "protocol": "TCP"}],
                        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}, {"name": "C", "value": "3"}],
                        "resources": {"limits": {"cpu": "1", "memory": "128Mi"}, "requests": {"cpu": "100m", "memory": "64Mi"}},
                        "readinessProbe": probe, "livenessProbe": probe,
                        "volumeMounts": [{"mountPath": "/etc/web", "name": "config"}],
                        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                    }],
                    "volumes": [{"name": "config", "configMap": {"name": "web", "defaultMode": 420}}],
                    "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                    "securityContext": {}, "terminationGracePeriodSeconds": 30,
                },
            },
        },
    })
}

fn measure(what: &str, mut run: impl FnMut()) {
    for _ in 0..ROUNDS / 10 {
        run();
    }
    let start = processor_ns();
    for _ in 0..ROUNDS {
        run();
    }
    println!("{what:28} {:6.1} µs", (processor_ns() - start) / 1e3 / f64::from(ROUNDS));
}

/// The processor time of this process so far: the first number in the kernel's `schedstat`.
fn processor_ns() -> f64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

fn main() {
    let write = Write {
        view: View::built_in("Deployment"),
        manager: "kubectl",
        api_version: "apps/v1",
        subresource: "",
        reach: Reach::Without("status"),
        now: Timestamp::UNIX_EPOCH,
    };
    let new = deployment();
    measure("create", || drop(black_box(update(&write, None, black_box(&new), None))));

    let mut old = new.clone();
    old["metadata"]["managedFields"] = update(&write, None, &new, None);
    measure("update that changes nothing", || drop(black_box(update(&write, Some(&old), black_box(&new), None))));

    let mut scaled = new.clone();
    scaled["spec"]["replicas"] = json!(4);
    let other = Write { manager: "controller", ..write };
    measure("update of one field", || drop(black_box(update(&other, Some(&old), black_box(&scaled), None))));

    let mut status = new.clone();
    status["status"] = json!({"replicas": 3, "readyReplicas": 2, "observedGeneration": 4, "conditions": [
        {"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable", "message": "", "lastUpdateTime": "2026-01-01T00:00:00Z"}]});
    let to_status = Write { subresource: "status", reach: Reach::Only(&["status"]), ..other };
    measure("update of the status", || drop(black_box(update(&to_status, Some(&old), black_box(&status), None))));

    let applier = Write { manager: "applier", ..write };
    measure("apply of a new object", || drop(black_box(apply(&applier, None, black_box(&new), false))));
    let live = apply(&applier, None, &new, false).unwrap_or_default();
    measure("apply of the same", || drop(black_box(apply(&applier, Some(&live), black_box(&new), false))));
    measure("for comparison: a clone", || drop(black_box(new.clone())));
    measure("for comparison: parse", || {
        drop(black_box(serde_json::from_str::<Value>(black_box(&new.to_string()))));
    });
}
