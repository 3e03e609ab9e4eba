//! StatefulSets, DaemonSets, Jobs, CronJobs, rollouts under load, drains; and that what must not run twice does not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{Cluster, is_ready, ready};
use crate::faults::Load;

/// Applies a manifest given as JSON.
pub fn apply(cluster: &Cluster, manifest: &Value) {
    cluster.apply(&manifest.to_string());
}

pub fn pod_template(app: &str, command: &[&str]) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [
            {"name": "main", "image": "mainstay.dev/host", "command": command}]},
    })
}

pub fn workload(kind: &str, name: &str, spec: &Value) -> Value {
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
    judged_jobs(&cluster, &job);
    cluster.wait("the brief job is gone", || cluster.get(&["job", "brief"]).is_null());
    let spec = job("x", &json!({}), "date")["spec"].clone();
    apply(
        &cluster,
        &json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "tick"},
        "spec": {"schedule": "* * * * *", "timeZone": "Europe/Berlin", "jobTemplate": {"spec": spec}}}),
    );
    // By hand, whatever the clock says; it is the CronJob's, and not in its way.
    cluster.k(&["create", "job", "by-hand", "--from=cronjob/tick"]);
    cluster.k(&["wait", "--for=condition=Complete", "job/by-hand", "--timeout", "30s"]);
    let by_hand = cluster.get(&["job", "by-hand"])["metadata"].clone();
    assert_eq!(by_hand["annotations"]["cronjob.kubernetes.io/instantiate"], "manual");
    assert_eq!(by_hand["ownerReferences"][0]["name"], "tick");
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

/// Jobs that end, or not, by more than how often they failed.
fn judged_jobs(cluster: &Cluster, job: &dyn Fn(&str, &Value, &str) -> Value) {
    let codes = |action: &str, code: i32| json!({"rules": [{"action": action, "onExitCodes": {"operator": "In", "values": [code]}}]});
    apply(cluster, &job("broken", &json!({"podFailurePolicy": codes("FailJob", 42)}), "exit 42"));
    let each = json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 0});
    apply(cluster, &job("each", &each, "test $JOB_COMPLETION_INDEX != 1"));
    let mut leader = each.clone();
    leader["successPolicy"] = json!({"rules": [{"succeededIndexes": "0"}]});
    apply(cluster, &job("leader", &leader, "test $JOB_COMPLETION_INDEX = 0 || sleep 1000"));
    apply(cluster, &job("later", &json!({"suspend": true}), "true"));
    cluster.k(&["wait", "--for=condition=Suspended", "job/later", "--timeout", "30s"]);
    assert!(cluster.get(&["pods", "-l", "batch.kubernetes.io/job-name=later"])["items"][0].is_null());
    cluster.k(&["patch", "job", "later", "-p", r#"{"spec": {"suspend": false}}"#]);
    for (name, ended, reason) in [
        ("broken", "Failed", "PodFailurePolicy"),
        ("each", "Failed", "FailedIndexes"),
        ("leader", "Complete", "SuccessPolicy"),
        ("later", "Complete", "CompletionsReached"),
    ] {
        cluster.k(&["wait", &format!("--for=condition={ended}"), &format!("job/{name}"), "--timeout", "30s"]);
        let status = cluster.get(&["job", name])["status"].clone();
        let conditions = status["conditions"].as_array().unwrap().clone();
        assert!(conditions.iter().any(|one| one["type"] == ended && one["reason"] == reason), "{name}: {status}");
    }
    let status = cluster.get(&["job", "each"])["status"].clone();
    assert_eq!((&status["completedIndexes"], &status["failedIndexes"]), (&json!("0,2"), &json!("1")), "{status}");
    an_eviction_is_not_the_jobs_fault(cluster, job);
}

fn an_eviction_is_not_the_jobs_fault(cluster: &Cluster, job: &dyn Fn(&str, &Value, &str) -> Value) {
    let policy = json!({"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]});
    apply(cluster, &job("spared", &json!({"backoffLimit": 0, "podFailurePolicy": policy}), "sleep 1000"));
    let pods = || cluster.get(&["pods", "-l", "batch.kubernetes.io/job-name=spared"])["items"].clone();
    cluster.wait("its pod runs", || is_ready(&pods()[0]));
    let first = pods()[0]["metadata"].clone();
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": first["name"], "namespace": "default"}});
    let file = cluster.dir().join("eviction.json");
    std::fs::write(&file, eviction.to_string()).unwrap();
    let path = format!("/api/v1/namespaces/default/pods/{}/eviction", first["name"].as_str().unwrap());
    cluster.k(&["create", "--raw", &path, "-f", &file.display().to_string()]);
    cluster.wait("another runs in its place", || {
        let now = pods();
        now.as_array().is_some_and(|all| all.len() == 1)
            && now[0]["metadata"]["uid"] != first["uid"]
            && is_ready(&now[0])
    });
    let status = cluster.get(&["job", "spared"])["status"].clone();
    assert!(status["failed"].is_null() && status["conditions"].is_null(), "{status}");
    cluster.k(&["delete", "job", "spared"]);
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
/// second. From that it can be told who ran when. And when it starts it writes its uid into its own volume, where its
/// successors find it.
#[test]
fn a_stateful_pod_of_a_lost_node_runs_elsewhere_within_five_seconds_and_never_twice() {
    let cluster = Cluster::up(&[]);
    let ledger = tempfile::Builder::new().prefix("mainstay-ledger-").tempdir().unwrap();
    let write = "echo $UID_OF_POD >> /data/history; while :; do echo \"$UID_OF_POD $(date +%s%N)\" >> /ledger/$HOSTNAME; sleep 0.02; done";
    let mut template = pod_template("db", &["sh", "-c", write]);
    let container = &mut template["spec"]["containers"][0];
    container["env"] = json!([{"name": "UID_OF_POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}]);
    container["volumeMounts"] =
        json!([{"name": "ledger", "mountPath": "/ledger"}, {"name": "data", "mountPath": "/data"}]);
    template["spec"]["volumes"] = json!([{"name": "ledger", "hostPath": {"path": ledger.path()}}]);
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "storageClassName": "shared", "resources": {"requests": {"storage": "1Mi"}}}});
    let spec = json!({"replicas": 3, "serviceName": "db", "template": template, "volumeClaimTemplates": [claim]});
    apply(&cluster, &workload("StatefulSet", "db", &spec));
    cluster.k(&["rollout", "status", "sts/db", "--timeout", "30s"]);
    let volume = cluster.get(&["pvc", "data-db-1"])["spec"]["volumeName"].clone();
    for fault in ["isolate", "kill", "pause", "deafen"] {
        let pod = cluster.get(&["pod", "db-1"]);
        let node = pod["spec"]["nodeName"].as_str().unwrap().to_owned();
        let since = Instant::now();
        if fault == "deafen" {
            deafen(&cluster, &node, true);
        } else {
            cluster.ok(&["fault", fault, &format!("node/{node}")]);
        }
        cluster.wait("another db-1 is ready", || {
            let now = cluster.get(&["pod", "db-1"]);
            now["metadata"]["uid"] != pod["metadata"]["uid"] && is_ready(&now)
        });
        let took = since.elapsed();
        println!("{fault}: elsewhere and ready after {} ms", took.as_millis());
        assert!(took < Duration::from_secs(5), "{fault}: {took:?}");
        let history = cluster.k(&["exec", "db-1", "--", "cat", "/data/history"]);
        let before = pod["metadata"]["uid"].as_str().unwrap();
        assert!(history.lines().rev().nth(1) == Some(before), "{fault}: not the data of {before}: {history}");
        assert_eq!(cluster.get(&["pvc", "data-db-1"])["spec"]["volumeName"], volume);
        if fault == "deafen" {
            deafen(&cluster, &node, false);
        } else {
            cluster.ok(&["fault", "heal", &format!("node/{node}")]);
        }
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

/// What is sent to a node does not arrive there any more, or again; what it sends does.
fn deafen(cluster: &Cluster, node: &str, is_deaf: bool) {
    let rules = "add table inet deaf; add chain inet deaf in { type filter hook input priority -300; policy drop; }";
    let rules = if is_deaf { rules } else { "delete table inet deaf" };
    let status = std::process::Command::new("nsenter")
        .args(["--net", "--target", &cluster.pid(node).to_string(), "nft", rules])
        .status();
    assert!(status.unwrap().success(), "nft in the namespace of {node}");
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
