//! What must hold for every system: losing nothing hurts nobody, and one replica more never makes it worse.
#![allow(clippy::unwrap_used)]

use mainstay_check::engine::Engine;
use mainstay_check::model::Model;
use mainstay_check::survive::{Failure, Lost, State, aftermath};
use mainstay_check::topology::{NodeSize, Topology};
use mainstay_check::{Settings, check, manifest};
use proptest::prelude::*;
use serde_json::{Value, json};

fn deployment(name: &str, replicas: usize, needs: &str, is_spread: bool) -> [Value; 2] {
    let labels = json!({"app": name});
    let mut spec = json!({"containers": [{"name": "a", "image": "a:1",
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}, "env": [{"name": "NEEDS_HOST", "value": needs}]}]});
    if is_spread {
        spec["topologySpreadConstraints"] = json!([{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": labels}}]);
    }
    [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"selector": labels, "ports": [{"port": 80}]}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": replicas,
            "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}}}),
    ]
}

fn model(all: &[(usize, bool)], nodes: usize, zones: usize) -> Model {
    let names = ["a", "b", "c", "d"];
    let objects = all.iter().enumerate().flat_map(|(at, (replicas, is_spread))| {
        deployment(names[at], *replicas, if at == 0 { "" } else { names[at - 1] }, *is_spread)
    });
    let texts: Vec<String> = objects.map(|object| object.to_string()).collect();
    let objects = manifest::parse("x.yaml", &texts.join("\n---\n")).unwrap();
    let topology = Topology::grid(nodes, zones, &NodeSize::default(), 1).unwrap();
    Model::build(objects, topology, Engine::mainstay(), 1.0).unwrap()
}

fn worst(model: &Model, lost: &Lost) -> Vec<State> {
    aftermath(model, lost).fates.iter().map(|fate| fate.timeline.worst()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn losing_nothing_leaves_everything_fine(all in proptest::collection::vec((1_usize..5, any::<bool>()), 1..4), nodes in 1_usize..6, zones in 1_usize..4) {
        let model = model(&all, nodes, zones);
        let after = aftermath(&model, &Lost::default());
        prop_assert!(after.stuck.is_empty() && after.displaced.is_empty());
        for fate in after.fates {
            prop_assert_eq!(fate.timeline.worst(), State::Fine);
            prop_assert_eq!(fate.healed_s, Some(0.0));
        }
    }

    /// With pods spread over nodes: among the losses of any one node the worst is no worse with one replica more.
    #[test]
    fn a_replica_more_is_never_worse(replicas in 1_usize..6, nodes in 2_usize..6, zones in 1_usize..4) {
        let over = |replicas| {
            let model = model(&[(replicas, true)], nodes, zones);
            (0..nodes).map(|node| worst(&model, &Failure::Node(node).lost(&model))[0]).max().unwrap()
        };
        prop_assert!(over(replicas + 1) <= over(replicas));
    }

    /// Losing more is never better.
    #[test]
    fn losing_more_is_never_better(all in proptest::collection::vec((1_usize..5, any::<bool>()), 1..4), nodes in 2_usize..6, a in 0_usize..6, b in 0_usize..6) {
        let model = model(&all, nodes, 2);
        let (a, b) = (a % nodes, b % nodes);
        let one = worst(&model, &Failure::Node(a).lost(&model));
        let two = worst(&model, &Failure::TwoNodes(a, b).lost(&model));
        for (one, two) in one.iter().zip(two) {
            prop_assert!(two >= *one);
        }
    }
}

/// A thousand pods on fifty nodes, every pair of nodes: `cargo test --release -p mainstay-check -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn a_thousand_pods_on_fifty_nodes() {
    let names: Vec<String> = (0..100).map(|at| format!("app-{at}")).collect();
    let all = names.iter().enumerate();
    let objects = all.flat_map(|(at, name)| deployment(name, 10, if at == 0 { "" } else { &names[at - 1] }, true));
    let texts: Vec<String> = objects.map(|object| object.to_string()).collect();
    let started = std::time::Instant::now();
    let objects = manifest::parse("x.yaml", &texts.join("\n---\n")).unwrap();
    let read = started.elapsed();
    let size = NodeSize { cpu: "16".to_owned(), memory: "64Gi".to_owned(), ..NodeSize::default() };
    let report = check(objects, Topology::grid(50, 3, &size, 1).unwrap(), &Settings::default()).unwrap();
    let (pods, tried) = (report.model.pods.len(), report.rows.len());
    println!("{pods} pods, {tried} failures: read {read:?}, all {:?}", started.elapsed());
    assert_eq!((pods, tried), (1_000, 1_000 + 50 + 1 + 3 + 50 * 49 / 2));
}
