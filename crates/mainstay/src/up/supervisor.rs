//! Keeps an instance's processes running until it is told to end.
//!
//! Flow: adopt the data → lay the network → certificates → one server, one agent per node → restart what dies (unless a
//! fault says that the node is meant to be dead) → on SIGTERM or Ctrl-C take everything down.
//!
//! Guarantees: crash-only — it can be killed at any time and started again; pods, held by their shims, go on meanwhile.

use std::time::{Duration, Instant};

use mainstay_net::fabric::{FORWARDING_FILE, Fabric, FabricError};
use mainstay_runtime::cgroup::{CgroupError, Cgroups};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinSet;

use super::processes::{self, Lock, ProcessError};
use crate::instance::{Instance, InstanceError};
use crate::pki::{self, PkiError};

/// The shortest time between two starts of the same process.
const RESTART_AFTER: Duration = Duration::from_millis(100);
/// The longest, when it keeps dying at once.
const RESTART_AFTER_MAX: Duration = Duration::from_secs(10);
/// A process that ran this long is well again.
const WELL_AFTER: Duration = Duration::from_secs(10);
/// How often a node that is meant to be dead is looked at.
const FAULT_POLL: Duration = Duration::from_millis(200);
/// How long an agent takes to end after its pods have.
const AGENT_ENDS: Duration = Duration::from_secs(2);
/// How long pods' programs get to end when everything is taken down.
const PODS_END: Duration = Duration::from_secs(2);

/// Why an instance could not be supervised or taken down.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// Processes.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Network.
    #[error(transparent)]
    Network(#[from] FabricError),
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Files.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// Cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// The network of an instance.
///
/// # Errors
/// When its address plan does not work out.
pub fn fabric(instance: &Instance) -> Result<Fabric, InstanceError> {
    Ok(Fabric::new(instance.plan()?, instance.id(), FORWARDING_FILE))
}

/// A running instance; dropping it stops the watching, not the processes.
pub struct Supervisor {
    instance: Instance,
    keepers: JoinSet<()>,
    _lock: Lock,
}

impl Supervisor {
    /// Lays the network and starts all processes.
    ///
    /// # Errors
    /// When any of it fails; what was begun stays and is adopted by the next try, or ended by `mainstay down`.
    pub fn start(instance: Instance) -> Result<Self, SuperviseError> {
        instance.save()?;
        let lock = processes::lock(&instance)?;
        // Roles that outlived a killed supervisor are replaced; their pods stay.
        for role in roles(&instance) {
            if let Some(pid) = processes::find(&instance, &role) {
                processes::end(pid, Duration::from_secs(1));
            }
        }
        pki::prepare(&instance)?;
        fabric(&instance)?.up(instance.nodes)?;
        let mut keepers = JoinSet::new();
        for role in roles(&instance) {
            keepers.spawn(keep(instance.clone(), role));
        }
        Ok(Self { instance, keepers, _lock: lock })
    }

    /// Takes everything down; the data stays.
    ///
    /// # Errors
    /// When something does not let itself be removed.
    pub async fn end(mut self) -> Result<(), SuperviseError> {
        // Nothing may be started again from here on.
        self.keepers.shutdown().await;
        let instance = self.instance.clone();
        let taken = tokio::task::spawn_blocking(move || take_down(&instance)).await;
        taken.unwrap_or(Ok(()))
    }
}

/// Keeps one process running, unless a fault says that it is meant to be dead.
async fn keep(instance: Instance, role: String) {
    let args: &[&str] = if role == "server" { &["server"] } else { &["node", "--name", &role] };
    let mut wait = RESTART_AFTER;
    loop {
        while instance.fault_file(&role).exists() {
            tokio::time::sleep(FAULT_POLL).await;
        }
        let started = Instant::now();
        match processes::start(&instance, &role, args) {
            Ok(mut child) => match child.wait().await {
                Ok(status) => tracing::warn!(%role, %status, "process ended; it will be started again"),
                Err(error) => tracing::error!(%role, %error, "cannot watch the process"),
            },
            Err(error) => tracing::error!(%role, %error, "cannot start the process; trying again"),
        }
        wait = if started.elapsed() > WELL_AFTER { RESTART_AFTER } else { (wait * 2).min(RESTART_AFTER_MAX) };
        tokio::time::sleep(wait).await;
    }
}

fn roles(instance: &Instance) -> Vec<String> {
    std::iter::once("server".to_owned()).chain(instance.node_names().map(|(_, name)| name)).collect()
}

/// Ends all processes and pods of an instance and removes its network and cgroups. May be repeated.
///
/// # Errors
/// When something does not let itself be removed.
pub fn take_down(instance: &Instance) -> Result<(), SuperviseError> {
    let cgroups = Cgroups::detect()?;
    shut_down_nodes(instance);
    // Agents first, so that nobody restarts a pod that ends; then the pods' programs, politely.
    for role in roles(instance).iter().rev() {
        if role != "server" {
            let _ = cgroups.node(&instance.id(), role).freeze(false);
        }
        if let Some(pid) = processes::find(instance, role) {
            processes::end(pid, Duration::from_secs(2));
        }
    }
    end_pods(instance, &cgroups);
    for (_, name) in instance.node_names() {
        cgroups.node(&instance.id(), &name).kill()?;
    }
    // Volumes in memory are mounted on the machine; nobody uses them any more.
    mainstay_runtime::mounts::unmount_below(&instance.data_dir.join("nodes"));
    fabric(instance)?.down()?;
    cgroups.remove_instance(&instance.id())?;
    for role in roles(instance) {
        let _ = std::fs::remove_file(instance.fault_file(&role));
    }
    for role in roles(instance).iter().map(String::as_str).chain(["supervisor"]) {
        let _ = std::fs::remove_file(instance.pid_file(role));
    }
    Ok(())
}

/// Lets the agents end their pods themselves, if that was asked for: all at the same time.
fn shut_down_nodes(instance: &Instance) {
    let grace = instance.node.grace();
    if grace.is_zero() {
        return;
    }
    let find = |name: &str| processes::find(instance, name).filter(|_| !instance.fault_file(name).exists());
    let names: Vec<_> = instance.node_names().map(|(_, name)| name).collect();
    for pid in names.iter().filter_map(|name| find(name)) {
        let _ = kill(pid, Signal::SIGPWR);
    }
    let since = Instant::now();
    while since.elapsed() < grace + AGENT_ENDS && names.iter().any(|name| find(name).is_some()) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// SIGTERM to the pods' programs, and some time to heed it.
fn end_pods(instance: &Instance, cgroups: &Cgroups) {
    let programs = || -> Vec<i32> {
        let nodes = instance.node_names().map(|(_, name)| cgroups.node(&instance.id(), &name));
        nodes.flat_map(|node| node.processes()).filter(|pid| !is_shim(*pid)).collect()
    };
    for pid in programs() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    let since = Instant::now();
    while !programs().is_empty() && since.elapsed() < PODS_END {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_shim(pid: i32) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|byte| *byte == 0).nth(1) == Some(b"shim")
}
