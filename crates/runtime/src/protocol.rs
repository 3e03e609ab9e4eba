//! What agent and shim say to each other: one JSON object per line.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::image::ImageRef;

/// The longest line either side accepts, in bytes.
pub const LINE_BYTES_MAX: usize = 1024 * 1024;

/// How a pod's sandbox is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// The pod's own directory, absolute; everything lies below it.
    pub dir: PathBuf,
    /// The pod's UID.
    pub uid: String,
    /// Host name seen by its programs.
    pub hostname: String,
    /// Use the node's network instead of an own one.
    pub host_network: bool,
    /// The instance the node belongs to; names the cgroups.
    pub instance: String,
    /// The node's name; names the cgroups.
    pub node: String,
    /// The mainstay program, which becomes the shim.
    pub exe: PathBuf,
    /// Directories of this machine that no container may see, such as Mainstay's own data.
    pub hidden: Vec<PathBuf>,
    /// Kernel settings of the sandbox's namespaces, for example `net.core.somaxconn`.
    #[serde(default)]
    pub sysctls: Vec<(String, String)>,
    /// Set for a pod that must not run twice: the shim stops it when the node is cut off.
    #[serde(default)]
    pub fence: Option<crate::fence::FenceConfig>,
}

/// What kind of thing is mounted into a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A file or directory of the machine.
    Bind,
    /// Fresh memory; `source` is its size in bytes, or empty for no limit.
    Tmpfs,
}

/// Something mounted into a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What.
    pub source: PathBuf,
    /// Where in the container.
    pub destination: PathBuf,
    /// Whether the container may only read it.
    pub read_only: bool,
    /// What kind.
    pub kind: MountKind,
}

/// How a container is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools)]
pub struct ContainerConfig {
    /// Unique on this machine.
    pub id: String,
    /// The container's name in the pod.
    pub name: String,
    /// What it runs on.
    pub image: ImageRef,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Working directory; `/` if empty.
    pub working_dir: String,
    /// Volumes and files.
    pub mounts: Vec<Mount>,
    /// CPU share, in thousandths of a core.
    pub cpu_request_milli: Option<u64>,
    /// CPU limit, in thousandths of a core.
    pub cpu_limit_milli: Option<u64>,
    /// Memory limit, in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Most processes and threads.
    pub pids_limit: Option<u64>,
    /// User id.
    pub user: u32,
    /// Group id.
    pub group: u32,
    /// Further groups.
    pub supplementary_groups: Vec<u32>,
    /// The root file system cannot be written.
    pub read_only_root: bool,
    /// All capabilities and devices.
    pub privileged: bool,
    /// Capabilities beyond the default ones, without `CAP_`.
    pub capabilities_add: Vec<String>,
    /// Capabilities to take away, without `CAP_`; `ALL` takes all.
    pub capabilities_drop: Vec<String>,
    /// Programs cannot gain privileges by setuid files.
    pub no_new_privileges: bool,
    /// How readily the kernel kills it when memory runs out, −1000 to 1000.
    pub oom_score_adj: i32,
    /// Where its output goes, in CRI format.
    pub log_path: PathBuf,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Its process runs.
    Running,
    /// Its process ended.
    Exited {
        /// Exit code; 128 + signal if a signal ended it.
        code: i32,
        /// The signal that ended it.
        signal: Option<i32>,
        /// The kernel killed it because the memory limit was reached.
        oom_killed: bool,
    },
}

/// A container as the shim knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its id.
    pub id: String,
    /// Its name in the pod.
    pub name: String,
    /// Its first process, in the machine's numbering.
    pub pid: i32,
    /// Running or not.
    pub state: ContainerState,
    /// Since when it ran.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// A wish of the agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Wish {
    Start(Box<ContainerConfig>),
    Signal { id: String, signal: i32 },
    Remove { id: String },
    Statuses,
    Stop,
}

/// A wish with a number by which the answer is recognised.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) number: u64,
    pub(crate) wish: Wish,
}

/// What the shim says: an answer to a request, or news.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Message {
    /// First, on every connection.
    Hello {
        pid: u32,
    },
    Answer {
        number: u64,
        result: Result<Vec<ContainerStatus>, String>,
    },
    Changed(ContainerStatus),
}
