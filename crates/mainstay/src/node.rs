//! `mainstay node`: one node's agent, inside the node's network namespace.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use mainstay_net::netns::NetnsError;
use mainstay_net::plan;
use mainstay_node::{NodeConfig, NodeError, ServerTls};

use crate::client::{self, ClientError};
use crate::instance::{Instance, InstanceError, node_number};
use crate::pki::{NETWORK_POLICIES, Pair, authority_file, node_kubeconfig};
use crate::up::processes::{self, ProcessError};

/// Why an agent stopped.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The instance.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The node is not one of the instance's.
    #[error("{0:?} is not a node of this instance; nodes are named node-1, node-2, ...")]
    NoSuchNode(String),
    /// Its namespace.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    /// Its client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// This program's own file.
    #[error(transparent)]
    Program(#[from] ProcessError),
    /// The agent itself.
    #[error(transparent)]
    Agent(#[from] NodeError),
}

/// Enters the node's network namespace; to be called before the process has a second thread.
///
/// # Errors
/// When there is no such namespace.
pub fn enter(instance: &Instance, name: &str) -> Result<(u32, Option<File>), AgentError> {
    let number = node_number(name).filter(|number| *number <= instance.nodes);
    let number = number.ok_or_else(|| AgentError::NoSuchNode(name.to_owned()))?;
    // Kept open: images are fetched from where the machine is, with its name servers and its loopback.
    let outside = File::open("/proc/self/ns/net").ok();
    mainstay_net::netns::enter(&plan::netns_name(&instance.id(), number))?;
    Ok((number, outside))
}

/// Runs the agent of node `number`.
///
/// # Errors
/// See [`AgentError`].
pub async fn run(instance: Instance, name: String, (number, outside): (u32, Option<File>)) -> Result<(), AgentError> {
    let network = instance.plan().map_err(InstanceError::from)?;
    let own = Pair::of(&instance.pki(), &name);
    let mut config = NodeConfig {
        zone: instance.zone_of(number),
        region: None,
        labels: std::collections::BTreeMap::new(),
        address: network.node_address(number).map_err(InstanceError::from)?,
        pod_cidr: network.pod_cidr(number).map_err(InstanceError::from)?,
        network,
        instance: instance.id(),
        data_dir: instance.node_dir(&name),
        images: instance.images(),
        outside: outside.map(Arc::new),
        exe: processes::program()?,
        hidden: hidden(&instance),
        client: client::named(&node_kubeconfig(&instance, &name), "kubelet").await?,
        lease_client: client::named(&node_kubeconfig(&instance, &name), "kubelet").await?,
        network_client: client::named(&node_kubeconfig(&instance, NETWORK_POLICIES), "kubelet").await?,
        tls: ServerTls { certificate: own.certificate, key: own.key, client_ca: authority_file(&instance.pki()) },
        capacity: std::collections::BTreeMap::new(),
        eviction: mainstay_node::Thresholds::default(),
        pids_max: mainstay_node::PIDS_MAX,
        shutdown_grace: std::time::Duration::ZERO,
        lease_renewal: mainstay_node::LEASE_RENEWAL,
        name,
    };
    instance.node.apply(&mut config);
    Ok(mainstay_node::run(config).await?)
}

/// No container may see the instance's keys and state, wherever its data directory lies.
fn hidden(instance: &Instance) -> Vec<PathBuf> {
    vec![instance.data_dir.clone()]
}
