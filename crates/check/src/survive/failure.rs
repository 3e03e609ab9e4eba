//! What is taken away.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::Model;

/// Most pairs of nodes; beyond that pairs are left out, and that is said.
pub const PAIRS_MAX: usize = 20_000;

/// The kinds of failure, in the order in which they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// One pod is killed.
    Pod,
    /// One node is gone.
    Node,
    /// One volume is gone.
    Volume,
    /// One server of the control plane is gone.
    Server,
    /// All nodes of a zone are gone.
    Zone,
    /// Two nodes are gone at once.
    TwoNodes,
}

impl FailureKind {
    /// Every kind.
    pub const ALL: [Self; 6] = [Self::Pod, Self::Node, Self::Volume, Self::Server, Self::Zone, Self::TwoNodes];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Node => "node",
            Self::Volume => "volume",
            Self::Server => "server",
            Self::Zone => "zone",
            Self::TwoNodes => "two-nodes",
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One failure: places in the model's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A pod is killed.
    Pod(usize),
    /// A node is gone.
    Node(usize),
    /// A volume and what is on it is gone.
    Volume(usize),
    /// A server of the control plane is gone.
    Server(usize),
    /// A zone is gone.
    Zone(usize),
    /// Two nodes are gone at once.
    TwoNodes(usize, usize),
}

impl Failure {
    /// Its kind.
    pub fn kind(self) -> FailureKind {
        match self {
            Self::Pod(_) => FailureKind::Pod,
            Self::Node(_) => FailureKind::Node,
            Self::Volume(_) => FailureKind::Volume,
            Self::Server(_) => FailureKind::Server,
            Self::Zone(_) => FailureKind::Zone,
            Self::TwoNodes(..) => FailureKind::TwoNodes,
        }
    }

    /// As `mainstay fault` names its target: `node/node-2`, `pod/shop/cart-1`, `zone/zone-a`, `node/a+node/b`.
    pub fn target(self, model: &Model) -> String {
        let node = |at: usize| format!("node/{}", model.topology.nodes[at].name);
        match self {
            Self::Pod(at) => format!("pod/{}", model.pods[at].key),
            Self::Node(at) => node(at),
            Self::Volume(at) => format!("volume/{}", model.volumes[at].key),
            Self::Server(at) => format!("server/{}", model.topology.servers[at].name),
            Self::Zone(at) => format!("zone/{}", model.topology.zones[at]),
            Self::TwoNodes(a, b) => format!("{}+{}", node(a), node(b)),
        }
    }

    /// What is lost by it.
    pub fn lost(self, model: &Model) -> Lost {
        let mut lost = Lost::default();
        match self {
            Self::Pod(at) => drop(lost.pods.insert(at)),
            Self::Node(at) => drop(lost.nodes.insert(at)),
            Self::Volume(at) => drop(lost.volumes.insert(at)),
            Self::Server(at) => drop(lost.servers.insert(at)),
            Self::Zone(at) => lost.nodes.extend(model.nodes_of(at)),
            Self::TwoNodes(a, b) => lost.nodes.extend([a, b]),
        }
        lost
    }
}

/// What is gone at once, in places of the model's lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lost {
    /// Pods whose processes were killed.
    pub pods: BTreeSet<usize>,
    /// Nodes.
    pub nodes: BTreeSet<usize>,
    /// Volumes.
    pub volumes: BTreeSet<usize>,
    /// Servers of the control plane.
    pub servers: BTreeSet<usize>,
}

/// Every single failure, and every pair of nodes; and whether the pairs were too many.
pub fn all(model: &Model) -> (Vec<Failure>, bool) {
    let nodes = model.topology.nodes.len();
    let serves =
        |pod: &usize| model.pods[*pod].node.is_some() && model.workloads[model.pods[*pod].workload].kind.serves();
    let mut failures: Vec<Failure> = (0..model.pods.len()).filter(serves).map(Failure::Pod).collect();
    failures.extend((0..nodes).map(Failure::Node));
    failures.extend((0..model.volumes.len()).map(Failure::Volume));
    failures.extend((0..model.topology.servers.len()).map(Failure::Server));
    let zones = if model.topology.zone_count() > 0 { model.topology.zones.len() } else { 0 };
    failures.extend((0..zones).filter(|zone| !model.topology.zones[*zone].is_empty()).map(Failure::Zone));
    let pairs = nodes * nodes.saturating_sub(1) / 2;
    if pairs <= PAIRS_MAX {
        failures.extend((0..nodes).flat_map(|a| (a + 1..nodes).map(move |b| Failure::TwoNodes(a, b))));
    }
    (failures, pairs > PAIRS_MAX)
}
