//! Root file systems, containers, cgroups and the shim.
//!
//! Role: the hands of the node agent. The agent speaks to one [`shim`] process per pod through a [`sandbox::Sandbox`];
//! the shim makes and watches the containers with `libcontainer`.
//!
//! Flow: [`sandbox::Sandbox::create`] starts a shim, which becomes the pod's sandbox (network, IPC, host name and mount
//! namespaces, cgroup); each [`protocol::ContainerConfig`] sent to it becomes an OCI specification ([`spec`]) over a root
//! file system ([`image`]) and then a process; its output goes to a log file, its end into a record and to the agent.
//!
//! Guarantees: containers outlive the agent; an exit is recorded on disk before it is told; everything a pod has — mounts,
//! processes, cgroups, files — goes with [`sandbox::Sandbox::stop`] or [`sandbox::clean_up`].
//!
//! Deliberately absent: pulling images.

pub mod cgroup;
pub mod exec;
pub mod fence;
pub mod image;
pub mod init;
pub mod memory;
pub mod mounts;
pub mod protocol;
pub mod sandbox;
pub mod seccomp;
pub mod shim;
mod spec;
mod workload;
