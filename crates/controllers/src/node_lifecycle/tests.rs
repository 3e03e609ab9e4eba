//! What becomes of the pods of a node that is not heard.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use mainstay_model::resource;
use serde_json::{Value, json};

use super::*;
use crate::testing::typed;

fn pod(name: &str, owner: &str, terminating: bool) -> Arc<Pod> {
    let mut meta = json!({"name": name, "namespace": "shop", "uid": name,
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": owner, "name": "o", "uid": "o", "controller": true}]});
    if terminating {
        meta["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    Arc::new(typed(
        json!({"metadata": meta, "spec": {"nodeName": "n", "containers": []}, "status": {"phase": "Running"}}),
    ))
}

fn node(extra: &Value) -> Node {
    let node = json!({"metadata": {"name": "n", "uid": "n", "resourceVersion": "7",
        "annotations": {fencing::ANNOTATION: "2500"}}});
    typed(mainstay_model::patch::merge(&node, extra).unwrap())
}

/// What is done about a node that has been silent for so long, until nothing more is done; pods taken away go.
fn told(mut node: Node, pace: Pace, silent_ms: u64, mut pods: Vec<Arc<Pod>>) -> (Vec<String>, Option<Duration>) {
    let mut done = Vec::new();
    for _ in 0..5 {
        let lease = Target { resource: resource::known("Lease"), key: ObjectKey::new(LEASE_NAMESPACE, "n"), uid: None };
        let silence = Some(Silence { lasts: Duration::from_millis(silent_ms), lease, revision: "3".to_owned() });
        let view = View {
            node: Arc::new(node.clone()),
            verdict: Verdict::Dead,
            pods: pods.clone(),
            pace: pace.clone(),
            silence,
        };
        let plan = reconcile(&view, "2026-01-01T00:00:00Z".parse().unwrap());
        if plan.actions.is_empty() {
            return (done, plan.requeue_after);
        }
        for action in &plan.actions {
            match action {
                Action::ReplaceStatus(object) if object.target.resource.kind == "Node" => {
                    node = typed(object.value.clone());
                }
                Action::Patch(_, patch) => {
                    let now = serde_json::to_value(&node).unwrap();
                    node = typed(mainstay_model::patch::merge(&now, patch).unwrap());
                    done.push(format!("taints {}", node.spec.as_ref().unwrap().taints.as_ref().unwrap().len()));
                }
                Action::Delete { target, grace_seconds, .. } => {
                    done.push(action.to_string());
                    let at = pods.iter().position(|pod| name(&**pod) == target.key.name).unwrap();
                    let gone = pods.remove(at);
                    if grace_seconds.is_none() {
                        pods.insert(
                            at,
                            pod(name(&*gone), &gone.metadata.owner_references.clone().unwrap()[0].kind, true),
                        );
                    }
                }
                Action::Note(_) => {}
                other => done.push(other.to_string()),
            }
        }
    }
    panic!("no rest: {done:?}");
}

#[test]
fn stateful_pods_are_replaced_only_when_their_node_has_stopped_them() {
    let pods = || vec![pod("db-0", "StatefulSet", false), pod("web-1", "ReplicaSet", false)];
    let (done, again) = told(node(&json!({})), Pace::Normal, 2_600, pods());
    let told_why = ["taints 2", "status Pod shop/db-0", "status Pod shop/web-1"];
    assert_eq!(done[..3], told_why, "their owners can tell that it is not their fault");
    assert_eq!(done[3..], ["delete Pod shop/db-0", "delete Pod shop/web-1"]);
    assert!(again.is_some_and(|again| again > Duration::from_millis(400)), "{again:?}");
    let (done, _) = told(node(&json!({})), Pace::Normal, 3_200, pods());
    let end = ["expect same Lease kube-node-lease/n", "delete Pod shop/db-0 now"];
    assert_eq!(done[5..], end, "the other one waits for its node: {done:?}");
}

#[test]
fn without_a_promise_nothing_is_taken_by_force() {
    let silent = node(&json!({"metadata": {"annotations": null}}));
    let (done, again) = told(silent, Pace::Normal, 1_000_000, vec![pod("db-0", "StatefulSet", false)]);
    let all = ["taints 2", "status Pod shop/db-0", "delete Pod shop/db-0"].map(str::to_owned).to_vec();
    assert_eq!((done, again), (all, None));
}

#[test]
fn when_most_of_a_zone_is_silent_pods_stay_and_the_reason_shows() {
    let why = "3 of 4 nodes of zone \"a\" are not heard".to_owned();
    let (done, _) = told(node(&json!({})), Pace::Stopped(why), 9_000, vec![pod("db-0", "StatefulSet", false)]);
    assert_eq!(done, ["taints 1"], "no new pods, but those there stay");
    assert!(silent_message(&Pace::Stopped("x".to_owned())).ends_with("Its pods are not evicted: x."));
}
