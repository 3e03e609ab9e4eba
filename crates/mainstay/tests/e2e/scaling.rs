//! Autoscaling by real load, and what people are told by kubectl about rollouts, refusals and places.
//!
//! <https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale-walkthrough/>,
//! <https://kubernetes.io/docs/concepts/workloads/controllers/deployment/>.

use serde_json::{Value, json};

use crate::cluster::{Cluster, ready, text};
use crate::faults::Load;
use crate::workloads::{apply, workload};

#[test]
fn an_autoscaler_follows_the_load_up_and_down() {
    let cluster = Cluster::up(&["examples/shop"]);
    let quick =
        json!({"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 4, "periodSeconds": 1}]});
    apply(
        &cluster,
        &json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "front", "namespace": "shop"},
        "spec": {"minReplicas": 2, "maxReplicas": 5, "behavior": {"scaleUp": quick, "scaleDown": quick},
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "front"},
            "metrics": [{"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 100}}}]}}),
    );
    let replicas = || cluster.get(&["deployment", "front", "-n", "shop"])["spec"]["replicas"].clone();
    cluster.wait("without load there are as few as may be", || replicas() == 2);
    let loads: Vec<Load> = (0..8).map(|_| Load::start(cluster.front())).collect();
    let up = cluster.wait("under load there are as many as may be", || replicas() == 5);
    let front = |pod: &Value| pod["metadata"]["labels"]["app"] == "front";
    cluster.wait("they serve", || ready(&cluster.pods("shop").into_iter().filter(front).collect::<Vec<_>>()) == 5);
    let ended: Vec<_> = loads.into_iter().map(Load::end).collect();
    let (asked, failed): (usize, usize) =
        (ended.iter().map(|load| load.0).sum(), ended.iter().map(|load| load.1).sum());
    let fewer = cluster.wait("the load is gone, and so are they", || replicas() == 2);
    let (up, fewer) = (up.as_millis(), fewer.as_millis());
    println!("up after {up} ms, down after {fewer} ms; {failed} of {asked} requests failed");
    let shown = cluster.k(&["describe", "hpa", "front", "-n", "shop"]);
    for told in ["SuccessfulRescale", "New size: 5; reason: cpu resource utilization", "ScalingActive   True"] {
        assert!(shown.contains(told), "{told}: {shown}");
    }
}

#[test]
fn people_are_told_about_rollouts() {
    let cluster = Cluster::up(&[]);
    apply(&cluster, &workload("Deployment", "web", &json!({"replicas": 2})));
    let status = ["rollout", "status", "deploy/web", "--timeout", "30s"];
    assert!(cluster.k(&status).ends_with("deployment \"web\" successfully rolled out\n"));
    cluster.k(&["annotate", "deploy/web", "kubernetes.io/change-cause=first"]);
    cluster.k(&["rollout", "pause", "deploy/web"]);
    cluster.k(&["set", "env", "deploy/web", "STEP=2"]);
    cluster.k(&["rollout", "resume", "deploy/web"]);
    let rolled = cluster.k(&status);
    assert!(rolled.contains("Waiting for deployment \"web\" rollout to finish: "), "{rolled}");
    cluster.k(&["rollout", "restart", "deploy/web"]);
    cluster.k(&status);
    let history = cluster.k(&["rollout", "history", "deploy/web"]);
    assert!(history.contains("REVISION  CHANGE-CAUSE\n1         first\n2 "), "{history}");
    cluster.k(&["rollout", "pause", "deploy/web"]);
    let refused = text(&cluster.kubectl(&["rollout", "undo", "deploy/web"]).output().unwrap());
    assert!(refused.contains("cannot rollback a paused deployment"), "{refused}");
    cluster.k(&["rollout", "resume", "deploy/web"]);
    cluster.k(&["rollout", "undo", "deploy/web", "--to-revision=1"]);
    cluster.k(&status);
    let history = cluster.k(&["rollout", "history", "deploy/web"]);
    assert!(history.contains("CHANGE-CAUSE\n2 ") && history.contains("\n4         first\n"), "{history}");
    let shown = cluster.k(&["describe", "deploy", "web"]);
    for told in [
        "Available      True    MinimumReplicasAvailable",
        "Progressing    True    NewReplicaSetAvailable",
        "from 0 to 2",
    ] {
        assert!(shown.contains(told), "{told}: {shown}");
    }
    let set = cluster.get(&["rs", "-l", "app=web"])["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    let events = |about: &str| {
        cluster.k(&[
            "get",
            "events",
            "-o",
            "custom-columns=R:.reason,M:.message",
            "--field-selector",
            &format!("involvedObject.name={about}"),
        ])
    };
    cluster.wait("the set says what it made", || {
        let told = events(&set);
        told.contains("SuccessfulCreate") && told.contains(&format!("Created pod: {set}-"))
    });
}

#[test]
fn people_are_told_why_there_are_no_pods() {
    let cluster = Cluster::up(&[]);
    let mut big = workload("Deployment", "big", &json!({"replicas": 1, "progressDeadlineSeconds": 3}));
    big["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1000"}});
    apply(&cluster, &big);
    let shown = |args: &[&str]| text(&cluster.kubectl(args).output().unwrap());
    cluster.wait("the scheduler says what is missing on how many nodes", || {
        let told = shown(&["describe", "pods", "-l", "app=big"]);
        let message = "0/3 nodes are available: 3 Insufficient cpu. preemption: 0/3 nodes are available: 3 Preemption is not \
            helpful for scheduling.";
        told.contains("FailedScheduling") && told.contains(message)
    });
    let status = shown(&["rollout", "status", "deploy/big", "--timeout", "30s"]);
    assert!(status.contains("error: deployment \"big\" exceeded its progress deadline"), "{status}");
    cluster.k(&["create", "quota", "none", "--hard=pods=1"]);
    cluster.wait("the quota is counted", || cluster.get(&["quota", "none"])["status"]["used"]["pods"] == "1");
    cluster.k(&["create", "deployment", "more", "--image=mainstay.dev/host", "--", "sleep", "1000"]);
    cluster.wait("the quota's refusal shows", || {
        let conditions = cluster.get(&["deployment", "more"])["status"]["conditions"].clone();
        conditions.as_array().into_iter().flatten().any(|condition| {
            condition["type"] == "ReplicaFailure"
                && condition["reason"] == "FailedCreate"
                && condition["message"]
                    .as_str()
                    .is_some_and(|message| message.contains("is forbidden: exceeded quota: none"))
        })
    });
    cluster.wait("and at the set", || {
        let told = shown(&["describe", "rs", "-l", "app=more"]);
        told.contains("FailedCreate") && told.contains("Error creating: pods \"more-")
    });
}
