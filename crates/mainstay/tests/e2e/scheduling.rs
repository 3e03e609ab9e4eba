//! Where pods go, and what people are told when they go nowhere; by kubectl, as people ask.
//!
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/>.

use serde_json::{Value, json};

use crate::cluster::{Cluster, is_ready};
use crate::workloads::{apply, pod_template, workload};

const UNHELPFUL: &str = "preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.";

/// A pod of these further fields of its spec.
fn pod(name: &str, spec: &Value) -> Value {
    let mut template = pod_template(name, &["sleep", "1000"]);
    template["spec"]["terminationGracePeriodSeconds"] = json!(0);
    for (key, value) in spec.as_object().unwrap() {
        template["spec"][key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": template["spec"]})
}

/// A pod that asks for one of an extended resource.
fn with_dongle(name: &str, spec: &Value) -> Value {
    let mut pod = pod(name, spec);
    pod["spec"]["containers"][0]["resources"] = json!({"limits": {"example.com/dongle": "1"}});
    pod
}

/// Waits until the scheduler has told people this of a pod, in its events and in its condition.
fn told(cluster: &Cluster, name: &str, message: &str) {
    cluster.wait(&format!("{name} is told: {message}"), || {
        let conditions = cluster.get(&["pod", name])["status"]["conditions"].clone();
        let scheduled = conditions.as_array().into_iter().flatten().find(|one| one["type"] == "PodScheduled");
        let shown = scheduled.is_some_and(|one| one["reason"] == "Unschedulable" && one["message"] == message);
        let events = cluster.k(&["describe", "pod", name]);
        shown && events.contains("FailedScheduling") && events.contains(message)
    });
}

fn runs(cluster: &Cluster, name: &str) -> String {
    cluster.wait(&format!("{name} runs"), || is_ready(&cluster.get(&["pod", name])));
    cluster.get(&["pod", name])["spec"]["nodeName"].as_str().unwrap().to_owned()
}

#[test]
fn who_fits_nowhere_is_told_why_by_every_node() {
    let cluster = Cluster::up(&[]);
    apply(&cluster, &pod("picky", &json!({"nodeSelector": {"disk": "ssd"}})));
    told(
        &cluster,
        "picky",
        &format!("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector. {UNHELPFUL}"),
    );
    cluster.k(&["label", "node", "node-2", "disk=ssd"]);
    assert_eq!(runs(&cluster, "picky"), "node-2");

    cluster.k(&["cordon", "node-1"]);
    cluster.k(&["taint", "nodes", "node-2", "node-3", "for=others:NoSchedule"]);
    apply(&cluster, &pod("plain", &json!({})));
    told(
        &cluster,
        "plain",
        &format!(
            "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) had untolerated taint(s). {UNHELPFUL}"
        ),
    );
    let tolerations = json!([{"key": "for", "operator": "Exists"}]);
    apply(&cluster, &pod("tolerant", &json!({"tolerations": tolerations})));
    assert_ne!(runs(&cluster, "tolerant"), "node-1");
    cluster.k(&["taint", "nodes", "node-2", "node-3", "for-"]);
    cluster.k(&["uncordon", "node-1"]);
    runs(&cluster, "plain");

    let volume = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "none"}}]);
    apply(&cluster, &pod("homeless", &json!({"volumes": volume})));
    told(
        &cluster,
        "homeless",
        &format!("0/3 nodes are available: persistentvolumeclaim \"none\" not found. {UNHELPFUL}"),
    );
    // It is not looked at before its gate is gone.
    apply(&cluster, &pod("gated", &json!({"schedulingGates": [{"name": "example.com/wait"}]})));
    assert!(cluster.k(&["get", "pod", "gated"]).contains("SchedulingGated"));
    cluster.k(&[
        "patch",
        "pod",
        "gated",
        "--type",
        "json",
        "-p",
        r#"[{"op": "remove", "path": "/spec/schedulingGates"}]"#,
    ]);
    runs(&cluster, "gated");
    assert!(cluster.k(&["describe", "pod", "gated"]).contains("Successfully assigned default/gated to node-"));
}

#[test]
fn the_important_displace_the_others_and_replicas_keep_apart() {
    let cluster = Cluster::up(&[]);
    let capacity =
        r#"{"status": {"capacity": {"example.com/dongle": "2"}, "allocatable": {"example.com/dongle": "2"}}}"#;
    cluster.k(&["patch", "node", "node-3", "--subresource", "status", "-p", capacity]);
    cluster.k(&["create", "priorityclass", "high", "--value", "1000"]);
    for name in ["first", "second"] {
        apply(&cluster, &with_dongle(name, &json!({})));
        assert_eq!(runs(&cluster, name), "node-3");
    }
    cluster.k(&["create", "priorityclass", "polite", "--value", "1000", "--preemption-policy", "Never"]);
    apply(&cluster, &with_dongle("polite", &json!({"priorityClassName": "polite"})));
    told(
        &cluster,
        "polite",
        "0/3 nodes are available: 3 Insufficient example.com/dongle. preemption: not eligible due to preemptionPolicy=Never.",
    );
    cluster.k(&["delete", "pod", "polite"]);
    apply(&cluster, &with_dongle("third", &json!({})));
    told(
        &cluster,
        "third",
        "0/3 nodes are available: 3 Insufficient example.com/dongle. preemption: 0/3 nodes are available: 1 No preemption \
         victims found for incoming pod, 2 Preemption is not helpful for scheduling.",
    );
    apply(&cluster, &with_dongle("urgent", &json!({"priorityClassName": "high"})));
    assert_eq!(runs(&cluster, "urgent"), "node-3");
    let events = cluster.k(&["get", "events", "-o", "custom-columns=R:.reason,M:.message"]);
    assert!(events.contains("Preempted") && events.contains("on node node-3"), "{events}");
    assert!(cluster.get(&["pod", "first"]).is_null() != cluster.get(&["pod", "second"]).is_null(), "one had to go");

    let apart = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "apart"}}}]}});
    let mut set = workload("Deployment", "apart", &json!({"replicas": 4}));
    set["spec"]["template"]["spec"]["affinity"] = apart;
    apply(&cluster, &set);
    let left = || {
        let pods = cluster.get(&["pods", "-l", "app=apart", "--field-selector", "spec.nodeName="]);
        pods["items"].as_array().map_or(0, Vec::len)
    };
    cluster.wait("three of four have a node each", || left() == 1);
    let pending = cluster.get(&["pods", "-l", "app=apart", "--field-selector", "spec.nodeName="]);
    let reason = "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules. preemption: 0/3 nodes are \
                  available: 3 No preemption victims found for incoming pod.";
    told(&cluster, pending["items"][0]["metadata"]["name"].as_str().unwrap(), reason);

    let spread = json!([{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "even"}}, "matchLabelKeys": ["pod-template-hash"]}]);
    let mut set = workload("Deployment", "even", &json!({"replicas": 6}));
    set["spec"]["template"]["spec"]["topologySpreadConstraints"] = spread;
    apply(&cluster, &set);
    cluster.k(&["rollout", "status", "deploy/even", "--timeout", "30s"]);
    let pods = cluster.get(&["pods", "-l", "app=even"])["items"].as_array().unwrap().clone();
    for node in ["node-1", "node-2", "node-3"] {
        assert_eq!(pods.iter().filter(|pod| pod["spec"]["nodeName"] == node).count(), 2, "{node}");
    }
}
