//! Where pods can run: nodes in zones, and the servers of the control plane.
//!
//! From numbers (`--nodes 6 --zones 3`), from a file, or from the nodes of a running cluster. A file holds Node objects as
//! `kubectl get nodes -o yaml` prints them, or the short form:
//!
//! ```yaml
//! kind: Topology
//! zones:
//!   - name: zone-a
//!     nodes:
//!       - {name: node-1, cpu: 4, memory: 16Gi}
//!       - {name: node-2, cpu: 4, memory: 16Gi, labels: {disk: ssd}, taints: [{key: a, effect: NoSchedule}]}
//! controlPlane:                # names of servers; "on" says on which node one runs
//!   - {name: server-1, on: node-1}
//! ```

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Node;
use mainstay_model::meta;
use mainstay_scheduler::core::NodeFacts;
use serde_json::{Value, json};

use crate::manifest::{ManifestError, documents};

/// The label of a node's zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// The label of a node's name.
pub const HOSTNAME: &str = "kubernetes.io/hostname";
/// The label of a node that runs a server of the control plane.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
/// Most nodes.
const NODES_MAX: usize = 5_000;

/// Why there is no topology.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// The file could not be read.
    #[error("topology: {0}")]
    Read(#[from] ManifestError),
    /// It says something that cannot be understood.
    #[error("topology {path}: {what}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to write.
        what: String,
    },
    /// No node or too many.
    #[error("a topology has 1 to {NODES_MAX} nodes, not {0}")]
    Count(usize),
}

/// A node as the scheduler sees it alive, and dead.
#[derive(Debug, Clone)]
pub struct NodeModel {
    /// Its name.
    pub name: String,
    /// Its zone; empty without the label.
    pub zone: usize,
    /// While it is heard.
    pub facts: NodeFacts,
    /// When it is not: there, but tainted.
    pub dead_facts: NodeFacts,
    /// Labels, with the name's.
    pub labels: std::collections::BTreeMap<String, String>,
}

/// A server of the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// The node it shares its fate with, if any.
    pub on: Option<usize>,
}

/// Where pods can run.
#[derive(Debug, Clone)]
pub struct Topology {
    /// By name.
    pub nodes: Vec<NodeModel>,
    /// Names of the zones, sorted.
    pub zones: Vec<String>,
    /// Servers of the control plane; empty when somebody else runs it.
    pub servers: Vec<Server>,
}

/// The size of each node, where only their number is given.
#[derive(Debug, Clone)]
pub struct NodeSize {
    /// Processors, a Kubernetes quantity.
    pub cpu: String,
    /// Memory, a Kubernetes quantity.
    pub memory: String,
    /// Most pods.
    pub pods: u32,
}

impl Default for NodeSize {
    fn default() -> Self {
        Self { cpu: "4".to_owned(), memory: "16Gi".to_owned(), pods: 110 }
    }
}

impl Topology {
    /// `nodes` equal nodes that go round `zones` zones, named as `mainstay up` names them, with `servers` servers on none
    /// of them.
    ///
    /// # Errors
    /// When there are none, or too many.
    pub fn grid(nodes: usize, zones: usize, size: &NodeSize, servers: usize) -> Result<Self, TopologyError> {
        let zone = |index: usize| match u8::try_from(index) {
            Ok(index) if index < 26 => format!("zone-{}", char::from(b'a' + index)),
            _ => format!("zone-{index}"),
        };
        let made = (0..nodes.min(NODES_MAX + 1)).map(|index| {
            let (name, zone) = (format!("node-{}", index + 1), zone(index % zones.max(1)));
            node_object(&name, Some(&zone), &json!(size.cpu), &json!(size.memory), size.pods)
        });
        let mut topology = Self::of_nodes(&made.collect::<Vec<_>>())?;
        topology.servers = (1..=servers).map(|n| Server { name: format!("server-{n}"), on: None }).collect();
        Ok(topology)
    }

    /// From Node objects; those with the control plane's role run a server each.
    ///
    /// # Errors
    /// When there are none, or too many.
    pub fn of_nodes(objects: &[Value]) -> Result<Self, TopologyError> {
        if objects.is_empty() || objects.len() > NODES_MAX {
            return Err(TopologyError::Count(objects.len()));
        }
        let zone_of = |node: &Value| meta::label(node, ZONE).unwrap_or_default().to_owned();
        let mut zones: Vec<String> = objects.iter().map(zone_of).collect();
        zones.sort();
        zones.dedup();
        let mut nodes: Vec<NodeModel> = objects.iter().map(|object| node_model(object, &zones)).collect();
        nodes.sort_by_key(|node| natural(&node.name));
        let is_server = |node: &NodeModel| node.labels.contains_key(CONTROL_PLANE);
        let servers = nodes.iter().enumerate().filter(|(_, node)| is_server(node));
        let servers = servers.map(|(at, node)| Server { name: format!("server on {}", node.name), on: Some(at) });
        let servers = servers.collect();
        Ok(Self { nodes, zones, servers })
    }

    /// From a file with Node objects or the short form.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn read(path: &Path) -> Result<Self, TopologyError> {
        Self::of_documents(path, &documents(path)?)
    }

    fn of_documents(path: &Path, documents: &[Value]) -> Result<Self, TopologyError> {
        let wrong = |what: String| TopologyError::Content { path: path.to_owned(), what };
        let Some(short) = documents.iter().find(|document| meta::kind(document) == "Topology") else {
            let items = documents.iter().flat_map(|document| match document["items"].as_array() {
                Some(items) => items.clone(),
                None => vec![document.clone()],
            });
            let nodes: Vec<Value> = items.filter(|item| meta::kind(item) == "Node").collect();
            if nodes.is_empty() {
                return Err(wrong("neither Node objects nor `kind: Topology` with `zones`".to_owned()));
            }
            return Self::of_nodes(&nodes);
        };
        let mut objects = Vec::new();
        for zone in meta::list_at(short, "zones") {
            let name = zone["name"].as_str().ok_or_else(|| wrong("a zone without a name".to_owned()))?;
            for node in meta::list_at(zone, "nodes") {
                objects.push(short_node(name, node).map_err(&wrong)?);
            }
        }
        let mut topology = Self::of_nodes(&objects)?;
        for server in meta::list_at(short, "controlPlane") {
            let name = server["name"].as_str().or(server.as_str());
            let name = name.ok_or_else(|| wrong("a server of controlPlane without a name".to_owned()))?.to_owned();
            let on = match server["on"].as_str() {
                None => None,
                Some(node) => Some(topology.node(node).ok_or_else(|| {
                    wrong(format!("server {name} is on {node:?}, which is no node of this topology"))
                })?),
            };
            topology.servers.push(Server { name, on });
        }
        Ok(topology)
    }

    /// The place of a node in [`Self::nodes`].
    pub fn node(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// How many zones have a name.
    pub fn zone_count(&self) -> usize {
        self.zones.iter().filter(|zone| !zone.is_empty()).count()
    }
}

fn short_node(zone: &str, node: &Value) -> Result<Value, String> {
    let name = node["name"].as_str().or(node.as_str()).ok_or_else(|| format!("a node of {zone} without a name"))?;
    let or = |field: &str, default: Value| node.get(field).filter(|given| !given.is_null()).cloned().unwrap_or(default);
    let size = NodeSize::default();
    let pods = or("pods", json!(size.pods)).as_u64().unwrap_or(110) as u32;
    let mut object =
        node_object(name, Some(zone), &or("cpu", json!(size.cpu)), &or("memory", json!(size.memory)), pods);
    for (key, value) in meta::map_at(node, "labels").into_iter().flatten() {
        object["metadata"]["labels"][key] = value.clone();
    }
    if node["taints"].is_array() {
        object["spec"]["taints"] = node["taints"].clone();
    }
    Ok(object)
}

fn node_object(name: &str, zone: Option<&str>, cpu: &Value, memory: &Value, pods: u32) -> Value {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut labels = json!({HOSTNAME: name});
    if let Some(zone) = zone {
        labels[ZONE] = json!(zone);
    }
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {},
        "status": {"allocatable": {"cpu": text(cpu), "memory": text(memory), "pods": pods.to_string()}}})
}

fn node_model(object: &Value, zones: &[String]) -> NodeModel {
    let node: Node = serde_json::from_value(object.clone()).unwrap_or_default();
    let mut dead = node.clone();
    let silent = json!([{"type": "Ready", "status": "Unknown", "lastHeartbeatTime": null, "lastTransitionTime": null}]);
    dead.status.get_or_insert_default().conditions = serde_json::from_value(silent).ok();
    let name = node.metadata.name.clone().unwrap_or_default();
    let mut labels = node.metadata.labels.clone().unwrap_or_default();
    labels.entry(HOSTNAME.to_owned()).or_insert_with(|| name.clone());
    let zone = labels.get(ZONE).map_or("", String::as_str);
    let zone = zones.iter().position(|known| known == zone).unwrap_or(0);
    NodeModel { name, zone, facts: NodeFacts::of(&node), dead_facts: NodeFacts::of(&dead), labels }
}

/// Sorts `node-2` before `node-10`.
fn natural(name: &str) -> (String, u64, String) {
    let digits = name.chars().rev().take_while(char::is_ascii_digit).count();
    let (text, number) = name.split_at(name.len() - digits);
    (text.to_owned(), number.parse().unwrap_or(0), name.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nodes_go_round_the_zones() {
        let topology = Topology::grid(12, 3, &NodeSize::default(), 1).unwrap();
        let shown: Vec<_> = topology.nodes.iter().map(|node| (node.name.as_str(), node.zone)).collect();
        assert_eq!(shown[..4], [("node-1", 0), ("node-2", 1), ("node-3", 2), ("node-4", 0)]);
        assert_eq!(shown[11], ("node-12", 2), "sorted by number");
        assert_eq!(topology.zones, ["zone-a", "zone-b", "zone-c"]);
        assert!(Topology::grid(0, 1, &NodeSize::default(), 0).is_err());
    }

    #[test]
    fn the_short_form_and_node_objects_are_read() {
        let short = json!({"kind": "Topology", "controlPlane": ["s", {"name": "t", "on": "n2"}], "zones": [
            {"name": "a", "nodes": ["n1", {"name": "n2", "cpu": 2, "memory": "1Gi", "labels": {"disk": "ssd"}}]}]});
        let topology = Topology::of_documents(Path::new("t.yaml"), &[short]).unwrap();
        assert_eq!(topology.nodes[1].facts.allocatable.cpu_milli, 2_000);
        assert_eq!(topology.nodes[1].labels["disk"], "ssd");
        assert_eq!(topology.servers[1], Server { name: "t".to_owned(), on: Some(1) });
        let list = json!({"kind": "List", "items": [{"kind": "Node", "metadata": {"name": "n", "labels": {CONTROL_PLANE: ""}}}]});
        let topology = Topology::of_documents(Path::new("t.yaml"), &[list]).unwrap();
        assert_eq!((topology.zones.len(), topology.zone_count(), topology.servers[0].on), (1, 0, Some(0)));
        for broken in [json!({}), json!({"kind": "Topology", "zones": [{"name": "a", "nodes": [{}]}]})] {
            assert!(Topology::of_documents(Path::new("t.yaml"), &[broken]).is_err());
        }
    }
}
