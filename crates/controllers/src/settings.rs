//! What the controllers are told at start.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use mainstay_informer::Cache;
use mainstay_informer::leader::LeaderSettings;

/// Settings of [`crate::run`].
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// First and last address for services of type `LoadBalancer`; without a range they stay pending.
    pub load_balancer_range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// When a silent node is given up.
    pub heartbeat: HeartbeatSettings,
    /// The certificate by which pods know the API server, PEM; without it namespaces get no `kube-root-ca.crt`.
    pub root_ca: Option<String>,
    /// Where certificates are signed; without it requests stay unsigned.
    pub signer: Option<Signer>,
    /// Of several servers one runs the controllers; without this every one does, which is right only for one.
    pub leader: Option<LeaderSettings>,
    /// Directory on every node under which the built-in provisioner makes volumes; without it claims wait for others.
    pub volumes: Option<PathBuf>,
    /// Where pods are read; one process that schedules and controls holds them once.
    pub pods: Cache<Pod>,
}

/// What certificates are signed with.
#[derive(Debug, Clone)]
pub struct Signer {
    /// Certificate of the authority, PEM.
    pub certificate: String,
    /// Its private key, PEM.
    pub key: String,
}

/// When a silent node is given up.
#[derive(Debug, Clone, Copy)]
pub struct HeartbeatSettings {
    /// Silence after which a node's pods leave the endpoints; taken back when it is heard again. Must be at least four
    /// times the agents' renewal interval (250 ms).
    pub suspect_after: Duration,
    /// Silence after which a node is tainted and its pods are evicted.
    pub dead_after: Duration,
}

impl Default for HeartbeatSettings {
    fn default() -> Self {
        Self { suspect_after: Duration::from_secs(1), dead_after: Duration::from_millis(2_500) }
    }
}
