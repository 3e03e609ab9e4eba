//! StatefulSets, DaemonSets, Jobs, CronJobs, rollouts under load, drains; and that what must not run twice does not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{Cluster, is_ready, ready};
use crate::faults::Load;

/// Applies a manifest given as JSON.
fn apply(cluster: &Cluster, manifest: &Value) {
    cluster.apply(&manifest.to_string());
}

fn pod_template(app: &str, command: &[&str]) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [
            {"name": "main", "image": "mainstay.dev/host", "command": command}]},
    })
}

fn workload(kind: &str, name: &str, spec: &Value) -> Value {
    let mut own =
        json!({"selector": {"matchLabels": {"app": name}}, "template": pod_template(name, &["sleep", "1000"])});
    for (key, value) in spec.as_object().unwrap() {
        own[key] = value.clone();
    }
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": own})
}

#[test]
fn sets_roll_out_and_back_by_their_revisions() {
    let cluster = Cluster::up(&[]);
    apply(&cluster, &workload("StatefulSet", "web", &json!({"replicas": 2, "serviceName": "web"})));
    apply(&cluster, &workload("DaemonSet", "log", &json!({})));
    for set in ["sts/web", "ds/log"] {
        cluster.k(&["rollout", "status", set, "--timeout", "30s"]);
        cluster.k(&["set", "env", set, "STEP=2"]);
        cluster.k(&["rollout", "status", set, "--timeout", "30s"]);
        let history = cluster.k(&["rollout", "history", set]);
        assert_eq!(history.lines().filter(|line| line.starts_with(['1', '2'])).count(), 2, "{history}");
        assert!(cluster.k(&["rollout", "history", set, "--revision", "2"]).contains("STEP"));
        cluster.k(&["rollout", "undo", set]);
        cluster.k(&["rollout", "status", set, "--timeout", "30s"]);
    }
    for pod in cluster.pods("default") {
        assert!(pod["spec"]["containers"][0]["env"].is_null(), "{pod}");
    }
    let nodes: Vec<Value> = cluster.get(&["pods", "-l", "app=log"])["items"].as_array().unwrap().clone();
    assert_eq!(nodes.len(), 3, "one on every node");
    cluster.k(&["scale", "sts/web", "--replicas", "0"]);
    cluster
        .wait("the set is empty", || cluster.get(&["pods", "-l", "app=web"])["items"].as_array().unwrap().is_empty());
}

#[test]
fn jobs_count_every_result_and_cron_jobs_start_them() {
    let cluster = Cluster::up(&[]);
    let job = |name: &str, spec: &Value, command: &str| {
        let mut template = pod_template(name, &["sh", "-c", command]);
        template["spec"]["restartPolicy"] = json!("Never");
        let mut own = json!({"template": template});
        for (key, value) in spec.as_object().unwrap() {
            own[key] = value.clone();
        }
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": own})
    };
    let indexed = json!({"completions": 4, "parallelism": 2, "completionMode": "Indexed"});
    apply(&cluster, &job("map", &indexed, "echo index $JOB_COMPLETION_INDEX"));
    apply(&cluster, &job("bad", &json!({"backoffLimit": 0}), "exit 3"));
    apply(&cluster, &job("brief", &json!({"ttlSecondsAfterFinished": 0}), "true"));
    cluster.k(&["wait", "--for=condition=Complete", "job/map", "--timeout", "30s"]);
    cluster.k(&["wait", "--for=condition=Failed", "job/bad", "--timeout", "30s"]);
    let map = cluster.get(&["job", "map"]);
    assert_eq!((&map["status"]["succeeded"], &map["status"]["completedIndexes"]), (&json!(4), &json!("0-3")));
    let logs = cluster.k(&["logs", "-l", "batch.kubernetes.io/job-name=map"]);
    for index in 0..4 {
        assert!(logs.contains(&format!("index {index}")), "{logs}");
    }
    cluster.wait("the brief job is gone", || cluster.get(&["job", "brief"]).is_null());
    let spec = job("x", &json!({}), "date")["spec"].clone();
    apply(
        &cluster,
        &json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "tick"},
        "spec": {"schedule": "* * * * *", "timeZone": "Europe/Berlin", "jobTemplate": {"spec": spec}}}),
    );
    let started = || {
        let jobs = cluster.get(&["jobs"])["items"].as_array().cloned().unwrap_or_default();
        jobs.iter().any(|job| {
            job["metadata"]["name"].as_str().unwrap().starts_with("tick-") && job["status"]["succeeded"] == 1
        })
    };
    // At most a minute, and a moment.
    let until = Instant::now() + Duration::from_secs(75);
    while !started() {
        assert!(Instant::now() < until, "no job of the clock");
        std::thread::sleep(Duration::from_millis(250));
    }
}

#[test]
fn a_rolling_update_under_load_loses_no_request_and_can_be_undone() {
    let cluster = Cluster::up(&["examples/shop"]);
    let load = Load::start(cluster.front());
    cluster.k(&["set", "env", "deploy/front", "-n", "shop", "STEP=2"]);
    cluster.k(&["rollout", "status", "deploy/front", "-n", "shop", "--timeout", "60s"]);
    cluster.k(&["rollout", "undo", "deploy/front", "-n", "shop"]);
    cluster.k(&["rollout", "status", "deploy/front", "-n", "shop", "--timeout", "60s"]);
    let (asked, failed, gap) = load.end();
    println!("rolled and back: {failed} of {asked} requests failed, longest gap {} ms", gap.as_millis());
    assert_eq!(failed, 0, "of {asked}");
}

#[test]
fn a_drain_honours_the_budget() {
    let cluster = Cluster::up(&["examples/shop"]);
    apply(
        &cluster,
        &json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": "front", "namespace": "shop"},
        "spec": {"minAvailable": 3, "selector": {"matchLabels": {"app": "front"}}}}),
    );
    cluster.wait("the budget is counted", || {
        cluster.get(&["pdb", "front", "-n", "shop"])["status"]["currentHealthy"] == 3
    });
    let drain = ["drain", "node-1", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout", "3s"];
    assert!(!cluster.kubectl(&drain).output().unwrap().status.success(), "the budget allows nobody to go");
    assert!(cluster.pods("shop").iter().filter(|pod| pod["metadata"]["labels"]["app"] == "front").all(is_ready));
    cluster.k(&["patch", "pdb", "front", "-n", "shop", "--type", "merge", "-p", r#"{"spec":{"minAvailable":2}}"#]);
    let load = Load::start(cluster.front());
    cluster.k(&["drain", "node-1", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout", "60s"]);
    cluster.wait("nine are ready elsewhere", || ready(&cluster.pods("shop")) == 9);
    let (asked, failed, _) = load.end();
    assert_eq!(failed, 0, "of {asked}");
    cluster.k(&["uncordon", "node-1"]);
}

/// Each pod writes its uid and the time into a file of its own name, on a directory that all nodes have, fifty times a
/// second. From that it can be told who ran when.
#[test]
fn a_stateful_pod_of_a_lost_node_runs_elsewhere_within_five_seconds_and_never_twice() {
    let cluster = Cluster::up(&[]);
    let ledger = tempfile::Builder::new().prefix("mainstay-ledger-").tempdir().unwrap();
    let write = "while :; do echo \"$UID_OF_POD $(date +%s%N)\" >> /ledger/$HOSTNAME; sleep 0.02; done";
    let mut template = pod_template("db", &["sh", "-c", write]);
    let container = &mut template["spec"]["containers"][0];
    container["env"] = json!([{"name": "UID_OF_POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}]);
    container["volumeMounts"] = json!([{"name": "ledger", "mountPath": "/ledger"}]);
    template["spec"]["volumes"] = json!([{"name": "ledger", "hostPath": {"path": ledger.path()}}]);
    apply(&cluster, &workload("StatefulSet", "db", &json!({"replicas": 3, "serviceName": "db", "template": template})));
    cluster.k(&["rollout", "status", "sts/db", "--timeout", "30s"]);
    for fault in ["isolate", "kill", "pause"] {
        let pod = cluster.get(&["pod", "db-1"]);
        let node = pod["spec"]["nodeName"].as_str().unwrap().to_owned();
        let since = Instant::now();
        cluster.ok(&["fault", fault, &format!("node/{node}")]);
        cluster.wait("another db-1 is ready", || {
            let now = cluster.get(&["pod", "db-1"]);
            now["metadata"]["uid"] != pod["metadata"]["uid"] && is_ready(&now)
        });
        let took = since.elapsed();
        println!("{fault}: elsewhere and ready after {} ms", took.as_millis());
        assert!(took < Duration::from_secs(5), "{fault}: {took:?}");
        cluster.ok(&["fault", "heal", &format!("node/{node}")]);
        cluster.wait("the node is back", || {
            let node = cluster.get(&["node", &node]);
            is_ready(&node) && node["spec"]["taints"].as_array().is_none_or(Vec::is_empty)
        });
        cluster.k(&["rollout", "status", "sts/db", "--timeout", "30s"]);
        // A paused process wakes with its node, and is stopped within a moment.
        let allowed = if fault == "pause" { 5 } else { 0 };
        for ordinal in 0..3 {
            let text = std::fs::read_to_string(ledger.path().join(format!("db-{ordinal}"))).unwrap();
            let late = late_writes(&text);
            assert!(late <= allowed, "{fault}: db-{ordinal} wrote {late} times after its successor had begun");
        }
    }
}

/// Lines that a pod wrote after its successor had begun to.
fn late_writes(ledger: &str) -> usize {
    let lines = ledger.lines().filter_map(|line| line.split_once(' '));
    let lines: Vec<(&str, i64)> = lines.filter_map(|(uid, time)| Some((uid, time.parse().ok()?))).collect();
    let mut begun: BTreeMap<&str, i64> = BTreeMap::new();
    for (uid, time) in &lines {
        let first = begun.entry(uid).or_insert(*time);
        *first = (*first).min(*time);
    }
    let successor = |uid: &str| begun.values().copied().filter(|first| *first > begun[uid]).min();
    lines.iter().filter(|(uid, time)| successor(uid).is_some_and(|first| *time > first)).count()
}
