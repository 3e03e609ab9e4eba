//! Making room, company, volumes, images, groups and going back to one's place.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::tests::{merge, node, pod, three};
use super::*;
use crate::selector::NodeTerm;

/// A pod of a priority that asks for so much processor.
fn ranked(name: &str, priority: i32, cpu: &str, extra: Value) -> PodFacts {
    let mut own = json!({"spec": {"priority": priority, "containers": [
        {"name": "main", "image": "app", "resources": {"requests": {"cpu": cpu}}}]}});
    merge(&mut own, extra);
    pod(name, own)
}

fn put(snapshot: &mut Snapshot, facts: PodFacts, node: &str) {
    snapshot.put_pod(Arc::new(PodFacts { node: Some(node.to_owned()), ..facts }));
}

fn preempt(snapshot: &mut Snapshot, pod: &PodFacts, budgets: &[Budget]) -> (Option<Preemption>, String) {
    let mut refusal = snapshot.schedule(pod).unwrap_err();
    let found = snapshot.preempt(pod, &mut refusal, budgets);
    (found, refusal.to_string())
}

#[test]
fn the_least_important_go_and_no_more_than_needed() {
    let mut snapshot = three();
    for (name, priority, node) in
        [("a1", 5, "a"), ("a2", 1, "a"), ("b1", 2, "b"), ("b2", 2, "b"), ("c1", 9, "c"), ("c2", 9, "c")]
    {
        put(&mut snapshot, ranked(name, priority, "2", json!({})), node);
    }
    let (found, text) = preempt(&mut snapshot, &ranked("p", 7, "1", json!({})), &[]);
    let found = found.unwrap();
    assert_eq!((found.node.as_str(), found.victims.as_slice()), ("a", &["shop/a2".to_owned()][..]));
    assert_eq!(
        text,
        "0/3 nodes are available: 3 Insufficient cpu. preemption: 0/3 nodes are available: \
         3 No preemption victims found for incoming pod."
    );
    assert_eq!(snapshot.pods.len(), 6, "nothing was really taken away");
    assert!(preempt(&mut snapshot, &ranked("p", 1, "1", json!({})), &[]).0.is_none(), "nobody is less important");
    let never = ranked("p", 7, "1", json!({"spec": {"preemptionPolicy": "Never"}}));
    assert!(preempt(&mut snapshot, &never, &[]).0.is_none());
    let elsewhere = ranked("p", 7, "1", json!({"spec": {"nodeSelector": {"disk": "ssd"}}}));
    let (found, text) = preempt(&mut snapshot, &elsewhere, &[]);
    assert!(found.is_none() && text.ends_with("3 Preemption is not helpful for scheduling."), "{text}");
}

#[test]
fn budgets_are_spared_and_places_are_held() {
    let mut snapshot = Snapshot::default();
    for name in ["a", "b"] {
        snapshot.put_node(node(name, "1", json!({})));
    }
    put(&mut snapshot, ranked("x", 0, "4", json!({"metadata": {"labels": {"app": "guarded"}}})), "a");
    put(&mut snapshot, ranked("y", 1, "4", json!({})), "b");
    let guarded =
        crate::selector::clauses(Some(&serde_json::from_value(json!({"matchLabels": {"app": "guarded"}})).unwrap()));
    let budget = Budget { namespace: "shop".to_owned(), selector: guarded.unwrap(), allowed: 0 };
    let important = ranked("p", 7, "3", json!({}));
    let (found, _) = preempt(&mut snapshot, &important, &[budget]);
    assert_eq!(found.unwrap().node, "b", "the less important one is guarded");
    snapshot.nominate(&important, "b");
    snapshot.remove_pod("shop/y");
    assert!(snapshot.schedule(&ranked("q", 7, "2", json!({}))).is_err(), "the place is held against its equals");
    assert_eq!(
        snapshot.schedule(&ranked("r", 8, "2", json!({}))).as_deref(),
        Ok("b"),
        "but not against the more important"
    );
    snapshot.remove_pod("shop/r");
    assert_eq!(snapshot.schedule(&important).as_deref(), Ok("b"));
    assert_eq!(snapshot.nomination("shop/p"), None);
}

#[test]
fn company_is_sought_and_shunned() {
    let term = |weight: i32, app: &str| json!([{"weight": weight, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": app}}}}]);
    let seeks = |kind: &str, app: &str| json!({"spec": {"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": term(100, app)}}}});
    let mut snapshot = three();
    put(&mut snapshot, pod("cache", json!({"metadata": {"labels": {"app": "cache"}}})), "b");
    assert_eq!(snapshot.schedule(&pod("near", seeks("podAffinity", "cache"))).as_deref(), Ok("b"));
    // One that is there wants to be alone.
    put(
        &mut snapshot,
        pod("shy", merged(seeks("podAntiAffinity", "loud"), json!({"metadata": {"labels": {"app": "shy"}}}))),
        "a",
    );
    for (name, at) in [("u", "b"), ("v", "b"), ("x", "c"), ("y", "c"), ("z", "c")] {
        put(&mut snapshot, pod(name, json!({})), at);
    }
    let loud = pod("loud", json!({"metadata": {"labels": {"app": "loud"}}}));
    assert_ne!(snapshot.schedule(&loud).as_deref(), Ok("a"));
}

fn merged(mut a: Value, b: Value) -> Value {
    merge(&mut a, b);
    a
}

#[test]
fn namespaces_are_chosen_by_their_labels() {
    let apart = json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
        "topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}},
        "namespaceSelector": {"matchLabels": {"team": "red"}}}]}}}});
    let mut snapshot = Snapshot::default();
    snapshot.put_node(node("a", "1", json!({})));
    put(&mut snapshot, pod("other", json!({"metadata": {"namespace": "red"}})), "a");
    let mine = pod("mine", apart);
    assert_eq!(snapshot.schedule(&mine).as_deref(), Ok("a"), "red is not known to be of the team");
    snapshot.remove_pod(&mine.key);
    snapshot.put_namespace("red", Some([("team".to_owned(), "red".to_owned())].into()));
    assert!(snapshot.schedule(&mine).is_err());
    snapshot.put_namespace("red", Some([("team".to_owned(), "blue".to_owned())].into()));
    assert_eq!(snapshot.schedule(&mine).as_deref(), Ok("a"));
}

#[test]
fn volumes_tie_and_images_draw() {
    let mut snapshot = three();
    let on = |host: &str| {
        let term = json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]});
        vec![NodeTerm::of(&serde_json::from_value(term).unwrap())]
    };
    assert_eq!(snapshot.schedule(&pod("p", json!({})).with_volumes(vec![on("c")])).as_deref(), Ok("c"));
    let torn = pod("q", json!({})).with_volumes(vec![on("a"), on("b")]);
    let text = snapshot.schedule(&torn).unwrap_err().to_string();
    assert_eq!(text, "0/3 nodes are available: 3 node(s) didn't match PersistentVolume's node affinity.");
    let image = json!({"status": {"images": [{"names": ["registry/app:latest"], "sizeBytes": 900_000_000}]}});
    snapshot.put_node(node("b", "2", image));
    snapshot.put_node(node("d", "2", json!({})));
    let wants = json!({"spec": {"containers": [{"name": "main", "image": "registry/app"}]}});
    assert_eq!(snapshot.schedule(&pod("r", wants)).as_deref(), Ok("b"));
}

#[test]
fn full_nodes_first_when_asked_for() {
    let mut snapshot = three();
    snapshot.strategy = super::Strategy::MostAllocated;
    put(&mut snapshot, ranked("x", 0, "2", json!({})), "b");
    assert_eq!(snapshot.schedule(&ranked("p", 0, "1", json!({}))).as_deref(), Ok("b"));
}

#[test]
fn after_a_node_is_back_its_pods_have_a_better_place() {
    let spread = json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "w", "uid": "w", "controller": true}]},
        "spec": {"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": {"app": "web"}}}]}});
    let mut snapshot = three();
    for (name, at) in [("p1", "a"), ("p2", "a"), ("p3", "b")] {
        put(&mut snapshot, pod(name, spread.clone()), at);
    }
    assert_eq!(snapshot.misplaced().as_deref(), Some("shop/p1"));
    snapshot.remove_pod("shop/p1");
    assert_eq!(snapshot.schedule(&pod("p4", spread)).as_deref(), Ok("c"));
    assert_eq!(snapshot.misplaced(), None);
}

proptest! {
    /// Whoever is made to go really makes room, is less important, and nothing else changes.
    #[test]
    fn preemption_makes_room(
        there in prop::collection::vec((0i32..4, 1i64..4, 0usize..3), 1..14),
        priority in 0i32..5,
        asked in 1i64..5,
    ) {
        let mut snapshot = three();
        for (i, (priority, cpu, at)) in there.iter().enumerate() {
            let facts = ranked(&format!("p{i}"), *priority, &cpu.to_string(), json!({}));
            let node = ["a", "b", "c"][*at];
            let used: i64 = snapshot.nodes[snapshot.by_name[node]].used.cpu_milli;
            if used + cpu * 1000 <= 4000 {
                put(&mut snapshot, facts, node);
            }
        }
        let wants = ranked("want", priority, &asked.to_string(), json!({}));
        let before = snapshot.pods.len();
        let Err(mut refusal) = snapshot.schedule(&wants) else { return Ok(()) };
        let found = snapshot.preempt(&wants, &mut refusal, &[]);
        prop_assert_eq!(snapshot.pods.len(), before);
        if let Some(found) = found {
            for key in &found.victims {
                prop_assert!(snapshot.pod(key).unwrap().priority < priority);
                snapshot.remove_pod(key);
            }
            prop_assert_eq!(snapshot.schedule(&wants).unwrap(), found.node);
        } else {
            let lesser = snapshot.pods.values().filter(|placed| placed.facts.priority < priority);
            for key in lesser.map(|placed| placed.facts.key.clone()).collect::<Vec<_>>() {
                snapshot.remove_pod(&key);
            }
            prop_assert!(snapshot.schedule(&wants).is_err(), "all of them together would have made room");
        }
    }
}
