//! What agent and shim say to each other: one JSON object per line.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::image::ImageRef;

/// The longest line either side accepts, in bytes.
pub const LINE_BYTES_MAX: usize = 1024 * 1024;

/// How a pod's sandbox is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools)] // Independent wishes of a pod's specification.
pub struct SandboxConfig {
    /// The pod's own directory, absolute; everything lies below it.
    pub dir: PathBuf,
    /// The pod's UID.
    pub uid: String,
    /// Host name seen by its programs.
    pub hostname: String,
    /// Use the node's network instead of an own one.
    pub host_network: bool,
    /// Use the machine's process ids: containers see every process of it.
    #[serde(default)]
    pub host_pid: bool,
    /// Use the machine's System V and POSIX interprocess communication.
    #[serde(default)]
    pub host_ipc: bool,
    /// All containers share one process namespace (`shareProcessNamespace`).
    #[serde(default)]
    pub share_pid: bool,
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
    /// Volumes in memory, shared by the pod's containers.
    #[serde(default)]
    pub memory_volumes: Vec<MemoryVolume>,
    /// Set for a pod that must not run twice: the shim stops it when the node is cut off.
    #[serde(default)]
    pub fence: Option<crate::fence::FenceConfig>,
}

/// A directory in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryVolume {
    /// Where, absolute.
    pub path: PathBuf,
    /// How much it may hold, in bytes; none for what the kernel allows.
    pub size_bytes: Option<u64>,
    /// The group that may write to it, besides root; none lets everybody.
    pub group: Option<u32>,
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
    /// Which later mounts below it are seen on the other side; none.
    #[serde(default)]
    pub propagation: Option<Propagation>,
}

/// Which mounts made later, below a mount, are seen on the other side (`mountPropagation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Those of the machine in the container.
    FromMachine,
    /// Both ways.
    Both,
}

impl Propagation {
    /// As a mount option.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::FromMachine => "rslave",
            Self::Both => "rshared",
        }
    }
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
    /// The system calls that its programs may use.
    #[serde(default)]
    pub seccomp: crate::seccomp::Seccomp,
    /// Programs cannot gain privileges by setuid files.
    pub no_new_privileges: bool,
    /// How readily the kernel kills it when memory runs out, −1000 to 1000.
    pub oom_score_adj: i32,
    /// Where its output goes, in CRI format.
    pub log_path: PathBuf,
    /// It has a standard input, which whoever attaches may write to.
    #[serde(default)]
    pub stdin: bool,
    /// Its standard input ends when the first one who attached to it is gone.
    #[serde(default)]
    pub stdin_once: bool,
    /// Its standard streams are one terminal.
    #[serde(default)]
    pub tty: bool,
    /// A process of ours stays as the program's parent: it forwards signals and reaps orphans.
    #[serde(default)]
    pub init: bool,
    /// The container of this pod, by id, whose process namespace it joins: for debugging containers.
    #[serde(default)]
    pub pid_of: Option<String>,
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
    Signal {
        id: String,
        signal: i32,
    },
    Remove {
        id: String,
    },
    /// From the answer on, the connection carries [`Frame`]s.
    Attach {
        id: String,
        stdin: bool,
    },
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

/// What goes over a connection that is attached to a container's streams: a byte that says what it is, the length as a
/// big-endian `u32`, the bytes.
pub(crate) mod frame {
    /// To the container: input.
    pub(crate) const STDIN: u8 = 0;
    /// From the container: output; with a terminal, all of it.
    pub(crate) const STDOUT: u8 = 1;
    /// From the container: error output.
    pub(crate) const STDERR: u8 = 2;
    /// To the container: the terminal's columns and rows, two big-endian `u16`.
    pub(crate) const RESIZE: u8 = 4;
    /// To the container: there is no more input.
    pub(crate) const STDIN_END: u8 = 5;
    /// The longest frame's bytes.
    pub(crate) const BYTES_MAX: usize = 64 * 1024;

    /// A frame's head.
    pub(crate) fn head(kind: u8, length: usize) -> [u8; 5] {
        let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        [kind, length[0], length[1], length[2], length[3]]
    }

    /// Takes the first whole frame off `bytes`; `Err` when it is longer than any may be.
    pub(crate) fn take(bytes: &mut Vec<u8>) -> Result<Option<(u8, Vec<u8>)>, ()> {
        let Some((&[kind, a, b, c, d], _)) = bytes.split_first_chunk::<5>() else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > BYTES_MAX {
            return Err(());
        }
        if bytes.len() < 5 + length {
            return Ok(None);
        }
        let body = bytes[5..5 + length].to_vec();
        bytes.drain(..5 + length);
        Ok(Some((kind, body)))
    }

    #[cfg(test)]
    mod tests {
        use super::{BYTES_MAX, STDIN, head, take};

        #[test]
        fn frames_are_taken_when_they_are_whole() {
            let mut bytes = head(STDIN, 3).to_vec();
            assert_eq!(take(&mut bytes), Ok(None));
            bytes.extend_from_slice(b"abcx");
            assert_eq!(take(&mut bytes), Ok(Some((STDIN, b"abc".to_vec()))));
            assert_eq!(bytes, b"x");
            assert_eq!(take(&mut head(STDIN, BYTES_MAX + 1).to_vec()), Err(()));
        }
    }
}
