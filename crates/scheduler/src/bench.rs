//! How fast the choice is, without an API server: for `xtask bench scheduler`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::core::{NodeFacts, PodFacts, Snapshot};

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Nodes, spread over three zones.
    pub nodes: usize,
    /// Pods, in Deployments of ten.
    pub pods: usize,
    /// Whether each pod asks for zone spread (hard) and not to share a host with its siblings.
    pub constrained: bool,
}

/// Schedules a load and returns how long that took and how many pods found a node. Reading the objects counts, making
/// them does not.
pub fn run(load: Load) -> (Duration, usize) {
    let mut snapshot = Snapshot::default();
    for i in 0..load.nodes {
        snapshot.put_node(NodeFacts::of(&node(i)));
    }
    let pods: Vec<Pod> = (0..load.pods).map(|i| pod(i, load.constrained)).collect();
    let started = Instant::now();
    let bound = pods.iter().filter(|pod| snapshot.schedule(&PodFacts::of(pod)).is_ok()).count();
    (started.elapsed(), bound)
}

fn node(i: usize) -> Node {
    let mut node = Node::default();
    let name = format!("node-{i}");
    let zone = format!("zone-{}", i % 3);
    node.metadata.labels = Some(BTreeMap::from([
        ("kubernetes.io/hostname".to_owned(), name.clone()),
        ("topology.kubernetes.io/zone".to_owned(), zone),
    ]));
    node.metadata.name = Some(name);
    let quantity = |text: &str| k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned());
    let room = [("cpu", "16"), ("memory", "64Gi"), ("pods", "110")];
    let room = room.map(|(name, text)| (name.to_owned(), quantity(text)));
    node.status.get_or_insert_default().allocatable = Some(BTreeMap::from(room));
    node
}

fn pod(i: usize, constrained: bool) -> Pod {
    let app = format!("app-{}", i / 10);
    let chosen = json!({"matchLabels": {"app": app}});
    let mut spec = json!({"containers": [
        {"name": "main", "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}}]});
    if constrained {
        spec["topologySpreadConstraints"] = json!([{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": chosen}]);
        spec["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": chosen}]}});
    }
    let pod: Value = json!({
        "apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {"name": format!("pod-{i}"), "namespace": "bench", "labels": {"app": app}},
    });
    serde_json::from_value(pod).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pod_finds_a_node() {
        for constrained in [false, true] {
            let (_, bound) = run(Load { nodes: 60, pods: 100, constrained });
            assert_eq!(bound, 100);
        }
    }

    /// The figures of the design page: `cargo test --release -p mainstay-scheduler -- --ignored --nocapture speed`.
    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        for constrained in [false, true] {
            let (took, bound) = run(Load { nodes: 5_000, pods: 10_000, constrained });
            println!("constrained {constrained}: {bound} pods, {:.0} pods/s", bound as f64 / took.as_secs_f64());
        }
    }
}
