//! What an agent has to be told, and why it may refuse to run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mainstay_model::fencing;
use mainstay_net::plan::{Cidr, Network};
use mainstay_runtime::fence::FenceConfig;

use crate::pressure::signals::Thresholds;

/// Everything a node agent has to be told.
#[derive(Clone)]
pub struct NodeConfig {
    /// The node's name.
    pub name: String,
    /// `topology.kubernetes.io/zone`.
    pub zone: String,
    /// `topology.kubernetes.io/region`.
    pub region: Option<String>,
    /// Further labels of the node.
    pub labels: BTreeMap<String, String>,
    /// The node's address; the agent's server listens on it.
    pub address: Ipv4Addr,
    /// The node's pods.
    pub pod_cidr: Cidr,
    /// The cluster's address plan.
    pub network: Network,
    /// The cluster's id on this machine (`plan::instance_id`).
    pub instance: String,
    /// The node's own directory, absolute.
    pub data_dir: PathBuf,
    /// Where the machine's nodes keep images.
    pub images: PathBuf,
    /// The network namespace from which registries are reached; the agent's own if none.
    pub outside: Option<Arc<File>>,
    /// The mainstay program: shims are started from it.
    pub exe: PathBuf,
    /// Directories of this machine that no container may see.
    pub hidden: Vec<PathBuf>,
    /// Speaks to the API server with the node's identity.
    pub client: kube::Client,
    /// Renews the node's Lease, and nothing else: with no idle connections beside its own, a renewal that is not answered is
    /// followed by one over a new connection, which a node that can send but not hear never gets. So it falls silent.
    pub lease_client: kube::Client,
    /// Speaks to the API server as whoever enforces network policies, and so may see where all pods are.
    pub network_client: kube::Client,
    /// Certificate and keys of the agent's own server.
    pub tls: ServerTls,
    /// `status.capacity` entries that differ from what the machine has: name and quantity.
    pub capacity: BTreeMap<String, String>,
    /// From where on pods are evicted.
    pub eviction: Thresholds,
    /// Most processes and threads of one container.
    pub pids_max: u64,
    /// How long pods get to end when the node shuts down; of it, the last third is for critical ones.
    pub shutdown_grace: Duration,
    /// How often the node's Lease is renewed.
    pub lease_renewal: Duration,
}

impl NodeConfig {
    /// The node's promise to stop pods that must not run twice.
    pub fn fence(&self) -> FenceConfig {
        let stop_after_ms = u64::try_from(fencing::STOP_AFTER.as_millis()).unwrap_or(0);
        FenceConfig { file: self.data_dir.join("fence"), stop_after_ms }
    }
}

/// Certificate, key and client authority of the agent's server: PEM files.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// The server's certificate chain.
    pub certificate: PathBuf,
    /// The server's private key (PKCS #8).
    pub key: PathBuf,
    /// The authority whose clients are let in.
    pub client_ca: PathBuf,
}

/// The port of the agent's server.
pub const AGENT_PORT: u16 = 10250;
/// Most processes and threads of one container unless something else is said: a fork bomb must not take the node with it.
pub const PIDS_MAX: u64 = 4096;
/// How long pods get to end when the node shuts down unless something else is said.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(30);
/// How often a lease is renewed unless something else is said.
pub const LEASE_RENEWAL: Duration = Duration::from_millis(250);

/// Why an agent stopped.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its cgroup could not be entered.
    #[error("cannot enter the node's cgroup")]
    Cgroup(#[source] mainstay_runtime::cgroup::CgroupError),
    /// Its directory could not be used.
    #[error("cannot use the node's directory {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Its server could not be set up.
    #[error("cannot serve logs and exec on port {AGENT_PORT}")]
    Server(#[source] crate::server::ServerError),
}
