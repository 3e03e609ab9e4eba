//! Table and property tests of the choice.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

pub(super) fn node(name: &str, zone: &str, extra: Value) -> NodeFacts {
    let mut node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone, "kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
    });
    merge(&mut node, extra);
    NodeFacts::of(&serde_json::from_value::<Node>(node).unwrap())
}

pub(super) fn pod(name: &str, extra: Value) -> PodFacts {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "main", "resources": {"requests": {"cpu": "500m", "memory": "64Mi"}}}]},
    });
    merge(&mut pod, extra);
    PodFacts::of(&serde_json::from_value::<Pod>(pod).unwrap())
}

pub(super) fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// Three nodes in three zones.
pub(super) fn three() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, zone) in [("a", "1"), ("b", "2"), ("c", "3")] {
        snapshot.put_node(node(name, zone, json!({})));
    }
    snapshot
}

fn spread(key: &str, when: &str, more: Value) -> Value {
    let mut constraint = json!({
        "maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": when, "labelSelector": {"matchLabels": {"app": "web"}},
    });
    merge(&mut constraint, more);
    json!({"spec": {"topologySpreadConstraints": [constraint]}})
}

fn anti() -> Value {
    json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}}}})
}

fn refusal(snapshot: &mut Snapshot, pod: &PodFacts) -> String {
    snapshot.schedule(pod).unwrap_err().to_string()
}

#[test]
fn refusals_read_as_kube_schedulers() {
    assert_eq!(refusal(&mut Snapshot::default(), &pod("p", json!({}))), "no nodes available to schedule pods");
    let mut snapshot = Snapshot::default();
    let taint = json!({"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}});
    snapshot.put_node(node("a", "1", taint.clone()));
    snapshot.put_node(node("b", "1", taint));
    snapshot.put_node(node("c", "1", json!({"status": {"allocatable": {"cpu": "100m"}}})));
    assert_eq!(
        refusal(&mut snapshot, &pod("p", json!({}))),
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s)."
    );
    snapshot.put_node(node("a", "1", json!({"spec": {"unschedulable": true}})));
    snapshot.put_node(node("b", "1", json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}})));
    snapshot.put_node(node("c", "1", json!({"status": {"allocatable": {"cpu": "1m", "memory": "1Mi", "pods": "0"}}})));
    assert_eq!(
        refusal(&mut snapshot, &pod("p", json!({}))),
        "0/3 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 node(s) had untolerated taint(s), \
         1 node(s) were unschedulable."
    );
}

#[test]
fn demands_choose_nodes() {
    let gpu = json!({"metadata": {"labels": {"gpu": "yes", "speed": "7"}}, "spec": {"taints": [
        {"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}});
    let affinity = |expression: Value| {
        json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [expression]}]}}}}})
    };
    let tolerated = json!({"spec": {"tolerations": [{"key": "gpu", "value": "yes"}]}});
    let cases = [
        (json!({"spec": {"nodeSelector": {"topology.kubernetes.io/zone": "2"}}}), Some("b")),
        (json!({"spec": {"nodeSelector": {"gpu": "yes"}}}), None),
        (affinity(json!({"key": "speed", "operator": "Gt", "values": ["5"]})), Some("gpu")),
        (affinity(json!({"key": "speed", "operator": "Gt", "values": ["7"]})), None),
        (affinity(json!({"key": "topology.kubernetes.io/zone", "operator": "NotIn", "values": ["1", "2"]})), Some("c")),
        (affinity(json!({"key": "gpu", "operator": "Exists"})), Some("gpu")),
    ];
    for (i, (extra, expected)) in cases.into_iter().enumerate() {
        let mut snapshot = three();
        snapshot.put_node(node("gpu", "3", gpu.clone()));
        let mut extra = extra;
        if expected == Some("gpu") {
            assert!(snapshot.schedule(&pod("p", extra.clone())).is_err(), "case {i}: the taint counts");
            merge(&mut extra, tolerated.clone());
        }
        assert_eq!(snapshot.schedule(&pod("p", extra)).ok().as_deref(), expected, "case {i}");
    }
}

#[test]
fn preferences_and_free_room_decide_among_equals() {
    let mut snapshot = three();
    let prefer = json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 10, "preference": {"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["b"]}]}}]}}}});
    assert_eq!(snapshot.schedule(&pod("liked", prefer)).unwrap(), "b");
    let next: BTreeSet<_> = ["x", "y"].iter().map(|name| snapshot.schedule(&pod(name, json!({}))).unwrap()).collect();
    assert_eq!(next.into_iter().collect::<Vec<_>>(), ["a", "c"], "where nobody is yet");
}

#[test]
fn host_ports_are_taken_once() {
    let mut snapshot = Snapshot::default();
    snapshot.put_node(node("a", "1", json!({})));
    let with = |address: &str| {
        let port = json!({"containerPort": 80, "hostPort": 8080, "hostIP": address});
        json!({"spec": {"containers": [{"name": "main", "ports": [port]}]}})
    };
    assert!(snapshot.schedule(&pod("p", with("10.0.0.1"))).is_ok());
    assert!(snapshot.schedule(&pod("q", with("10.0.0.2"))).is_ok());
    assert_eq!(
        refusal(&mut snapshot, &pod("r", with(""))),
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."
    );
    snapshot.remove_pod("shop/p");
    snapshot.remove_pod("shop/q");
    assert!(snapshot.schedule(&pod("r", with(""))).is_ok());
}

#[test]
fn init_containers_sidecars_and_overhead_count_as_kubernetes_says() {
    let container = |cpu: &str, always: bool| {
        let mut c = json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        if always {
            c["restartPolicy"] = json!("Always");
        }
        c
    };
    for (containers, inits, milli) in [
        (json!([container("100m", false), container("200m", false)]), json!([]), 300),
        (json!([container("100m", false)]), json!([container("1", false)]), 1000),
        (json!([container("100m", false)]), json!([container("50m", true), container("1", false)]), 1050),
        (json!([container("1", false)]), json!([container("500m", false), container("50m", true)]), 1050),
    ] {
        let spec = json!({"spec": {"containers": containers, "initContainers": inits, "overhead": {"cpu": "1m"}}});
        assert_eq!(pod("p", spec).requests.cpu_milli, milli + 1);
    }
}

#[test]
fn pods_of_one_controller_spread_by_themselves() {
    let mut snapshot = Snapshot::default();
    for (name, zone) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("c1", "c")] {
        snapshot.put_node(node(name, zone, json!({})));
    }
    let owned = json!({"metadata": {"ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": true}]}});
    let zones: BTreeSet<_> =
        (0..3).map(|i| snapshot.schedule(&pod(&format!("p{i}"), owned.clone())).unwrap()[..1].to_owned()).collect();
    assert_eq!(zones.len(), 3, "one in each zone");
}

#[test]
fn hard_spread_refuses_and_says_so() {
    let mut snapshot = three();
    snapshot.put_node(node("c", "3", json!({"spec": {"unschedulable": true}})));
    let extra = spread("topology.kubernetes.io/zone", "DoNotSchedule", json!({}));
    let names: BTreeSet<_> =
        ["p", "q"].iter().map(|name| snapshot.schedule(&pod(name, extra.clone())).unwrap()).collect();
    assert_eq!(names.len(), 2);
    // Zone 3 still counts as a domain with none, so a third pod would be one too many anywhere else.
    assert_eq!(
        refusal(&mut snapshot, &pod("r", extra)),
        "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) didn't match pod topology spread constraints."
    );
    let honor = spread("topology.kubernetes.io/zone", "DoNotSchedule", json!({"nodeTaintsPolicy": "Honor"}));
    assert!(snapshot.schedule(&pod("r", honor)).is_ok(), "unless nodes that cannot be used do not count");
    let none = spread("no/such-label", "DoNotSchedule", json!({}));
    assert!(refusal(&mut snapshot, &pod("s", none)).contains("(missing required label)"));
}

#[test]
fn min_domains_and_match_label_keys() {
    let mut snapshot = three();
    let extra = spread("topology.kubernetes.io/zone", "DoNotSchedule", json!({"minDomains": 4}));
    for i in 0..3 {
        assert!(snapshot.schedule(&pod(&format!("p{i}"), extra.clone())).is_ok());
    }
    assert!(snapshot.schedule(&pod("p3", extra)).is_err(), "with too few domains the minimum is taken as none");
    let keyed = |hash: &str| {
        let mut extra = spread("topology.kubernetes.io/zone", "DoNotSchedule", json!({"matchLabelKeys": ["hash"]}));
        merge(&mut extra, json!({"metadata": {"labels": {"hash": hash}}}));
        extra
    };
    let mut snapshot = three();
    for i in 0..3 {
        assert!(snapshot.schedule(&pod(&format!("o{i}"), keyed("old"))).is_ok());
    }
    let zones: BTreeSet<_> = (0..3).map(|i| snapshot.schedule(&pod(&format!("n{i}"), keyed("new"))).unwrap()).collect();
    assert_eq!(zones.len(), 3, "the old pods do not count for the new ones");
}

#[test]
fn pods_being_deleted_do_not_count_for_spread_but_for_room() {
    let mut snapshot = three();
    let extra = spread("topology.kubernetes.io/zone", "DoNotSchedule", json!({}));
    for i in 0..3 {
        snapshot.schedule(&pod(&format!("p{i}"), extra.clone())).unwrap();
    }
    let leaving = snapshot.pod("shop/p0").unwrap().node.clone().unwrap();
    let mut going = extra.clone();
    merge(
        &mut going,
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"nodeName": leaving}}),
    );
    snapshot.put_pod(Arc::new(pod("p0", going)));
    assert_eq!(snapshot.schedule(&pod("p3", extra)).unwrap(), leaving);
    let at = snapshot.by_name[&leaving];
    assert_eq!(snapshot.nodes[at].used.cpu_milli, 1000, "both are there");
}

#[test]
fn affinity_and_anti_affinity() {
    let mut snapshot = three();
    for i in 0..3 {
        assert!(snapshot.schedule(&pod(&format!("p{i}"), anti())).is_ok());
    }
    assert_eq!(
        refusal(&mut snapshot, &pod("p3", anti())),
        "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules."
    );
    assert_eq!(
        refusal(&mut snapshot, &pod("plain", json!({}))),
        "0/3 nodes are available: 3 node(s) didn't satisfy existing pods anti-affinity rules."
    );
    let near = |app: &str| {
        json!({"metadata": {"labels": {"app": app}}, "spec": {"affinity": {"podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "topology.kubernetes.io/zone",
                "labelSelector": {"matchLabels": {"app": "cache"}}}]}}}})
    };
    assert!(refusal(&mut snapshot, &pod("far", near("other"))).contains("didn't match pod affinity rules"));
    let first = snapshot.schedule(&pod("first", near("cache"))).unwrap();
    assert_eq!(snapshot.schedule(&pod("second", near("other"))).unwrap(), first, "the first of its kind may start");
}

#[test]
fn nodes_come_and_go_under_their_pods() {
    let mut snapshot = Snapshot::default();
    let bound = |name: &str, node: &str| {
        let mut extra = anti();
        merge(&mut extra, json!({"spec": {"nodeName": node}}));
        Arc::new(pod(name, extra))
    };
    snapshot.put_pod(bound("early", "a"));
    snapshot.put_node(node("a", "1", json!({})));
    assert!(snapshot.schedule(&pod("x", anti())).is_err(), "the pod was there before its node was known");
    snapshot.remove_node("a");
    snapshot.put_node(node("b", "1", json!({})));
    assert_eq!(snapshot.schedule(&pod("x", anti())).unwrap(), "b");
    snapshot.put_node(node("a", "1", json!({})));
    assert!(snapshot.schedule(&pod("y", anti())).is_err());
    snapshot.remove_pod("shop/early");
    assert_eq!(snapshot.schedule(&pod("y", anti())).unwrap(), "a");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes and goes: no node is overbooked, no zone is ahead of another by more than the skew at the moment of
    /// a choice, the incremental counts are those counted anew, and a refusal is never given while a node would do.
    #[test]
    fn invariants(
        zones in proptest::collection::vec(0u8..4, 1..12),
        steps in proptest::collection::vec((0u8..10, 0u8..40, 100i64..1500), 1..150),
    ) {
        let mut snapshot = Snapshot::default();
        for (i, zone) in zones.iter().enumerate() {
            snapshot.put_node(node(&format!("n{i}"), &zone.to_string(), json!({})));
        }
        let mut placed: BTreeMap<String, usize> = BTreeMap::new();
        for (kind, id, milli) in steps {
            let name = format!("p{id}");
            if kind == 0 || placed.contains_key(&name) {
                snapshot.remove_pod(&format!("shop/{name}"));
                placed.remove(&name);
                continue;
            }
            if kind == 1 {
                let at = usize::from(id) % zones.len();
                let taints = if milli % 2 == 0 { json!([{"key": "k", "effect": "NoSchedule"}]) } else { json!([]) };
                snapshot.put_node(node(&format!("n{at}"), &zones[at].to_string(), json!({"spec": {"taints": taints}})));
                continue;
            }
            let mut extra = spread("topology.kubernetes.io/zone", "DoNotSchedule", json!({"maxSkew": 2}));
            merge(&mut extra, json!({"spec": {"containers": [
                {"name": "main", "resources": {"requests": {"cpu": format!("{milli}m")}}}]}}));
            let facts = pod(&name, extra);
            let counts = |placed: &BTreeMap<String, usize>| {
                let mut counts: BTreeMap<u8, i64> = zones.iter().map(|zone| (*zone, 0)).collect();
                for at in placed.values() {
                    *counts.get_mut(&zones[*at]).unwrap() += 1;
                }
                counts
            };
            let before = counts(&placed);
            match snapshot.schedule(&facts) {
                Ok(node) => {
                    let at: usize = node[1..].parse().unwrap();
                    prop_assert!(before[&zones[at]] + 1 - before.values().min().unwrap() <= 2);
                    placed.insert(name, at);
                }
                Err(refusal) => prop_assert_eq!(refusal.reasons.values().sum::<usize>() >= zones.len(), true),
            }
            for (i, zone) in zones.iter().enumerate() {
                let there = &snapshot.nodes[snapshot.by_name[&format!("n{i}")]];
                prop_assert!(there.used.cpu_milli <= 4000, "{} {}", zone, there.used.cpu_milli);
                prop_assert_eq!(there.used.pods, placed.values().filter(|at| **at == i).count() as i64);
            }
        }
        // Built anew, the counts are the same: the next choice is the same.
        let probe = pod("probe", spread("topology.kubernetes.io/zone", "DoNotSchedule", json!({})));
        let first = snapshot.schedule(&probe);
        snapshot.remove_pod("shop/probe");
        snapshot.stale = true;
        prop_assert_eq!(first, snapshot.schedule(&probe));
    }
}
