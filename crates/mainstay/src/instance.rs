//! One Mainstay on this machine: where its files lie and how it was asked to be.
//!
//! Everything lies under the data directory, so that every command finds the running instance by that directory alone:
//!
//! ```text
//! instance.json        how it was started (addresses, nodes, zones)
//! kubeconfig           for people, mode 0600
//! pki/                 authority, certificates, keys
//! store/               the control plane's state
//! encryption.yaml      what of it is encrypted, and the keys, mode 0600
//! nodes/node-1/        one node's pods
//! logs/                server.log, node-1.log, supervisor.log
//! run/                 process ids and locks; faults in force
//! ```

use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

use mainstay_net::plan::{self, Network, PlanError};
use serde::{Deserialize, Serialize};

use crate::node_tuning::NodeTuning;
use crate::tuning::Tuning;

/// Where the data directory is unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/mainstay";

/// The network of nodes, pods and services unless told otherwise.
pub const DEFAULT_NETWORK: &str = "10.90.0.0/16";

/// Why the data directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// Reading or writing below the data directory failed.
    #[error("cannot {doing} {path}: {source}")]
    File {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Nothing was ever started there.
    #[error("there is no mainstay in {0}; start one with `mainstay up`, or name its directory with --data-dir")]
    Missing(PathBuf),
    /// The file that describes the instance is not readable JSON.
    #[error("{path} is damaged ({source}); delete it and run `mainstay up` again, the data stays")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The address plan does not work out.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// How an instance was started; kept in `instance.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The data directory, absolute.
    #[serde(skip)]
    pub data_dir: PathBuf,
    /// Where people reach the API.
    pub api: SocketAddrV4,
    /// The /16 that nodes, pods and services share.
    pub network: String,
    /// How many nodes run on this machine.
    pub nodes: u32,
    /// Over how many zones they are spread.
    pub zones: u32,
    /// How many nodes only pretend to be, for work at scale.
    #[serde(default)]
    pub hollow_nodes: u32,
    /// Where the audit log goes, if anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditSettings>,
    /// What its control plane is told about scheduling and silent nodes.
    #[serde(default)]
    pub tuning: Tuning,
    /// What its nodes are told.
    #[serde(default)]
    pub node: NodeTuning,
}

/// The audit log of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditSettings {
    /// Its file.
    pub log: PathBuf,
    /// Its policy, `audit.k8s.io/v1`; without it a sensible default applies.
    pub policy: Option<PathBuf>,
}

impl Instance {
    /// Reads the instance of a data directory.
    ///
    /// # Errors
    /// When there is none or its file is damaged.
    pub fn load(data_dir: &Path) -> Result<Self, InstanceError> {
        let data_dir = absolute(data_dir)?;
        let path = data_dir.join("instance.json");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(InstanceError::Missing(data_dir)),
            read => read.map_err(|source| InstanceError::File { doing: "read", path: path.clone(), source })?,
        };
        let instance: Self = serde_json::from_str(&text).map_err(|source| InstanceError::Damaged { path, source })?;
        Ok(Self { data_dir, ..instance })
    }

    /// Writes `instance.json` and makes the directories.
    ///
    /// # Errors
    /// When the directories or the file cannot be written.
    pub fn save(&self) -> Result<(), InstanceError> {
        for directory in ["logs", "pki", "run/faults", "nodes"] {
            make_private_dir(&self.data_dir.join(directory))?;
        }
        write_private(&self.data_dir.join("instance.json"), &serde_json::to_vec_pretty(self).unwrap_or_default())
    }

    /// The address plan.
    ///
    /// # Errors
    /// When the network is not a usable /16.
    pub fn plan(&self) -> Result<Network, PlanError> {
        Network::parse(&self.network)
    }

    /// Four characters that tell this instance's links, namespaces and tables from another's.
    pub fn id(&self) -> String {
        plan::instance_id(&self.data_dir)
    }

    /// Names of all nodes with their numbers, from 1.
    pub fn node_names(&self) -> impl Iterator<Item = (u32, String)> + use<> {
        (1..=self.nodes).map(|number| (number, node_name(number)))
    }

    /// The zone of a node: nodes go round the zones.
    pub fn zone_of(&self, node: u32) -> String {
        zone_name((node - 1) % self.zones.max(1))
    }

    /// Where nodes and pods reach the API: the bridge's address, same port.
    ///
    /// # Errors
    /// When the network is not a usable /16.
    pub fn inner_api(&self) -> Result<SocketAddrV4, PlanError> {
        Ok(SocketAddrV4::new(self.plan()?.host_address(), self.api.port()))
    }

    /// The kubeconfig for people.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir.join("kubeconfig")
    }

    /// The directory of keys and certificates.
    pub fn pki(&self) -> PathBuf {
        self.data_dir.join("pki")
    }

    /// The images that all nodes share.
    pub fn images(&self) -> PathBuf {
        self.data_dir.join("images")
    }

    /// A node's own directory.
    pub fn node_dir(&self, name: &str) -> PathBuf {
        self.data_dir.join("nodes").join(name)
    }

    /// The log of one of this instance's processes.
    pub fn log(&self, role: &str) -> PathBuf {
        self.data_dir.join("logs").join(format!("{role}.log"))
    }

    /// The file that holds a role's process id.
    pub fn pid_file(&self, role: &str) -> PathBuf {
        self.data_dir.join("run").join(format!("{role}.pid"))
    }

    /// The file that says that a node is meant to be dead.
    pub fn fault_file(&self, node: &str) -> PathBuf {
        self.data_dir.join("run/faults").join(node)
    }
}

/// `node-1` for 1.
pub fn node_name(number: u32) -> String {
    format!("node-{number}")
}

/// The number of `node-1`.
pub fn node_number(name: &str) -> Option<u32> {
    name.strip_prefix("node-")?.parse().ok().filter(|number| *number > 0)
}

/// `zone-a` for 0.
fn zone_name(index: u32) -> String {
    match u8::try_from(index) {
        Ok(index) if index < 26 => format!("zone-{}", char::from(b'a' + index)),
        _ => format!("zone-{index}"),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, InstanceError> {
    std::path::absolute(path).map_err(|source| InstanceError::File { doing: "find", path: path.to_owned(), source })
}

/// Makes the data directory's path absolute, as every name is derived from it.
///
/// # Errors
/// When there is no current directory to start from.
pub fn data_dir(path: &Path) -> Result<PathBuf, InstanceError> {
    absolute(path)
}

/// Makes a directory that only its owner can enter.
///
/// # Errors
/// When the system refuses.
pub fn make_private_dir(path: &Path) -> Result<(), InstanceError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| InstanceError::File { doing: "create", path: path.to_owned(), source })
}

/// Writes a file that only its owner can read, whole or not at all.
///
/// # Errors
/// When the system refuses.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), InstanceError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let failed = |source| InstanceError::File { doing: "write", path: path.to_owned(), source };
    let draft = path.with_extension("new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft).map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    fs::rename(&draft, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_instance_is_found_again_by_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        let instance = Instance {
            data_dir: directory.path().to_owned(),
            api: "127.0.0.1:6443".parse().unwrap(),
            network: "10.90.0.0/16".to_owned(),
            nodes: 3,
            zones: 2,
            hollow_nodes: 0,
            audit: None,
            tuning: Tuning::default(),
            node: NodeTuning::default(),
        };
        assert!(matches!(Instance::load(directory.path()), Err(InstanceError::Missing(_))));
        instance.save().unwrap();
        assert_eq!(Instance::load(directory.path()).unwrap(), instance);
        assert_eq!(
            instance.node_names().map(|(n, _)| instance.zone_of(n)).collect::<Vec<_>>(),
            ["zone-a", "zone-b", "zone-a"]
        );
    }

    #[test]
    fn node_names_and_numbers() {
        assert_eq!(
            (node_name(2).as_str(), node_number("node-2"), node_number("node-0"), node_number("x")),
            ("node-2", Some(2), None, None)
        );
    }
}
