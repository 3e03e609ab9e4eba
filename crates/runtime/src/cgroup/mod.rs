//! Control groups: where processes are counted, limited, frozen and killed.
//!
//! Three arrangements exist: version 2 alone at `/sys/fs/cgroup`; "hybrid", with the controllers in version 1 and a version
//! 2 hierarchy without controllers at `/sys/fs/cgroup/unified`; version 1 alone. Freezing and killing whole groups is the
//! business of one hierarchy, here called the tree: version 2 where there is one, else version 1's freezer.
//!
//! Layout: `/mainstay/<instance>/<node>/pod<uid>/<container>` everywhere. In version 2 a group with children holds no
//! processes, so the agent sits in `<node>/agent` and the shim, with what it starts, in `<node>/pod<uid>/shim`; with
//! version 2 alone the containers have groups of their own beside it.
//!
//! Guarantees: what is killed or frozen includes every process below the group, also those just being started.
//!
//! Deliberately absent: first limits, and enabling controllers for that; `libcontainer` does both for each container.
//!
//! Sources: <https://docs.kernel.org/admin-guide/cgroup-v2.html>,
//! <https://docs.kernel.org/admin-guide/cgroup-v1/freezer-subsystem.html>.

mod disk;
mod group;
mod limits;
mod usage;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{AccessFlags, Pid, access};

pub use disk::Disk;
use group::Group;
pub use limits::Limits;
pub(crate) use limits::{CPU_PERIOD_US, cpu_quota_us, cpu_shares};
pub use usage::Usage;

/// Where cgroups are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// How often the rest of a container is looked for: processes may be started between a look and the kill.
const KILL_ROUNDS: u32 = 8;

/// Why cgroups cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup file system.
    #[error(
        "this machine has no cgroups at {ROOT}; boot a kernel with cgroups and mount them (`mount -t cgroup2 cgroup2 {ROOT}`)"
    )]
    Missing,
    /// A group's file could not be written or read.
    #[error("cannot {doing} {path}: {source}; are you root, and is {ROOT} mounted read-write?")]
    Access {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Processes did not die.
    #[error("processes in {0} do not die; they may hang in the kernel (state D in ps)")]
    Stuck(PathBuf),
}

/// The hierarchy that freezes and kills, by its mount point.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Tree {
    /// Version 2.
    Unified(PathBuf),
    /// Version 1's freezer.
    Freezer(PathBuf),
}

impl Tree {
    fn root(&self) -> &Path {
        match self {
            Self::Unified(root) | Self::Freezer(root) => root,
        }
    }
}

/// The hierarchies of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    tree: Tree,
    /// The other version 1 hierarchies, where there are any.
    legacy: Vec<PathBuf>,
}

impl Cgroups {
    /// Finds the hierarchies.
    ///
    /// # Errors
    /// [`CgroupError::Missing`] without any, [`CgroupError::Access`] when they cannot be written.
    pub fn detect() -> Result<Self, CgroupError> {
        let found = Self::detect_at(Path::new(ROOT)).ok_or(CgroupError::Missing)?;
        let root = found.tree.root();
        access(root, AccessFlags::W_OK).map_err(|error| CgroupError::Access {
            doing: "write to",
            path: root.to_owned(),
            source: error.into(),
        })?;
        Ok(found)
    }

    fn detect_at(root: &Path) -> Option<Self> {
        if root.join("cgroup.controllers").exists() {
            return Some(Self { tree: Tree::Unified(root.to_owned()), legacy: Vec::new() });
        }
        let (unified, freezer) = (root.join("unified"), root.join("freezer"));
        let tree = if unified.join("cgroup.controllers").exists() {
            Tree::Unified(unified)
        } else if freezer.join("cgroup.procs").exists() {
            Tree::Freezer(freezer)
        } else {
            return None;
        };
        let entries = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        let legacy = entries.filter(|path| path != tree.root() && path.join("cgroup.procs").exists()).collect();
        Some(Self { tree, legacy })
    }

    /// The group of a node.
    pub fn node(&self, instance: &str, node: &str) -> NodeCgroup {
        NodeCgroup(self.group(Path::new("mainstay").join(instance).join(node)))
    }

    /// Takes away all groups of an instance; their processes must have ended.
    ///
    /// # Errors
    /// When a group is still in use.
    pub fn remove_instance(&self, instance: &str) -> Result<(), CgroupError> {
        self.group(Path::new("mainstay").join(instance)).remove()?;
        // The parent goes with the last instance; another one may still need it.
        for root in self.hierarchies() {
            let _ = fs::remove_dir(root.join("mainstay"));
        }
        Ok(())
    }

    /// Where the groups of a controller, such as `memory`, are; `None` without it.
    pub(crate) fn controller(&self, name: &str) -> Option<PathBuf> {
        if !self.is_unified() {
            return self.hierarchies().find(|root| root.ends_with(name)).map(Path::to_owned);
        }
        let root = self.tree.root();
        let all = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        all.split_whitespace().any(|found| found == name).then(|| root.to_owned())
    }

    /// Whether there is version 2 alone.
    pub(crate) fn is_unified(&self) -> bool {
        matches!(&self.tree, Tree::Unified(root) if !root.ends_with("unified"))
    }

    fn hierarchies(&self) -> impl Iterator<Item = &Path> {
        self.legacy.iter().map(PathBuf::as_path).chain([self.tree.root()])
    }

    fn group(&self, path: PathBuf) -> Group {
        Group { cgroups: self.clone(), path }
    }
}

/// The group of one node: its agent and all its pods.
#[derive(Debug, Clone)]
pub struct NodeCgroup(Group);

impl NodeCgroup {
    /// Puts the calling process, an agent, into the node's group.
    ///
    /// # Errors
    /// When the group cannot be made or entered.
    pub fn enter_agent(&self) -> Result<(), CgroupError> {
        self.0.child("agent").enter(std::process::id())
    }

    /// The group of one of the node's pods.
    pub fn pod(&self, uid: &str) -> PodCgroup {
        PodCgroup(self.0.child(&format!("pod{uid}")))
    }

    /// Kills the agent and all pods, and waits until they are gone.
    ///
    /// # Errors
    /// When something does not die.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.0.kill()
    }

    /// Freezes or thaws everything. Answers when it is frozen, or after a second if something hangs in the kernel.
    ///
    /// # Errors
    /// When the group cannot be written.
    pub fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        self.0.freeze(frozen)
    }

    /// Whether everything stands still.
    pub fn is_frozen(&self) -> bool {
        self.0.is_frozen()
    }

    /// All processes of the node.
    pub fn processes(&self) -> Vec<i32> {
        self.0.processes()
    }

    /// Slows what the node's pods read from and write to a disk, or with `None` gives them its own speed again; answers with
    /// how many groups took it. Containers that are made later are not slowed on version 1.
    ///
    /// # Errors
    /// When the kernel refuses, or has no such controller.
    pub fn throttle(&self, disk: Disk, bytes_per_second: Option<u64>) -> Result<usize, CgroupError> {
        disk::throttle(&self.0, disk, bytes_per_second)
    }

    /// What the containers of the node use together; agent and shims are not counted on version 1.
    pub fn usage(&self) -> Usage {
        usage::read(&self.0.cgroups, &self.0.path)
    }

    /// Removes the node's groups; its processes must have ended.
    ///
    /// # Errors
    /// When a group is still in use.
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.0.remove()
    }
}

/// The group of one pod: its shim and its containers.
#[derive(Debug, Clone)]
pub struct PodCgroup(Group);

impl PodCgroup {
    /// Puts the calling process, a shim, into the pod's group.
    ///
    /// # Errors
    /// When the group cannot be made or entered.
    pub fn enter(&self) -> Result<(), CgroupError> {
        self.0.child("shim").enter(std::process::id())
    }

    /// The group of one command run in a container, named after its helper process.
    pub(crate) fn command(&self, container: &str, helper: u32) -> CommandCgroup {
        CommandCgroup(self.0.child(container).child(&format!("exec{helper}")))
    }

    /// Kills shim and containers, and waits until they are gone.
    ///
    /// # Errors
    /// When something does not die.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.0.kill()
    }

    /// Kills the containers but not the shim: every process that lives in another process namespace than the caller.
    ///
    /// # Errors
    /// None today; processes that are gone already are fine.
    pub fn kill_containers(&self) -> Result<(), CgroupError> {
        for pid in self.container_processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        Ok(())
    }

    /// The processes of the containers: those that live in another process namespace than the caller.
    pub fn container_processes(&self) -> Vec<i32> {
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/pid")).ok();
        let own = namespace("self");
        let mut processes = self.0.processes();
        processes.retain(|pid| namespace(&pid.to_string()).is_some_and(|other| Some(other) != own));
        processes
    }

    /// Whether everything stands still.
    pub fn is_frozen(&self) -> bool {
        self.0.is_frozen()
    }

    /// Freezes or thaws everything. Answers when it is frozen, or after a second if something hangs in the kernel.
    ///
    /// # Errors
    /// When the group cannot be written.
    pub fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        self.0.freeze(frozen)
    }

    /// All processes of the pod.
    pub fn processes(&self) -> Vec<i32> {
        self.0.processes()
    }

    /// As [`NodeCgroup::throttle`], of one pod.
    ///
    /// # Errors
    /// When the kernel refuses, or has no such controller.
    pub fn throttle(&self, disk: Disk, bytes_per_second: Option<u64>) -> Result<usize, CgroupError> {
        disk::throttle(&self.0, disk, bytes_per_second)
    }

    /// What the containers of the pod use together; the shim is not counted on version 1.
    pub fn usage(&self) -> Usage {
        usage::read(&self.0.cgroups, &self.0.path)
    }

    /// What one container uses.
    pub fn container_usage(&self, container: &str) -> Usage {
        usage::read(&self.0.cgroups, &self.0.child(container).path)
    }

    /// Changes what a running container may use.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn resize(&self, container: &str, limits: Limits) -> Result<(), CgroupError> {
        limits::set(&self.0.cgroups, &self.0.child(container).path, limits)
    }

    /// Removes the pod's groups; its processes must have ended.
    ///
    /// # Errors
    /// When a group is still in use.
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.0.remove()
    }

    /// How often the kernel killed processes of a container because memory ran out.
    pub(crate) fn oom_kills(&self, container: &str) -> u64 {
        usage::oom_kills(&self.0.cgroups, &self.0.child(container).path)
    }

    /// Kills what is left in the groups of one container. Where the hierarchy that kills has none for it, the processes are
    /// those that a hierarchy with limits counts as the container's.
    pub(crate) fn kill_container(&self, container: &str) {
        let group = self.0.child(container);
        let limits = ["pids", "memory", "cpu"].iter().find_map(|name| self.0.cgroups.controller(name));
        for _ in 0..KILL_ROUNDS {
            let mut left = group.processes();
            left.extend(limits.iter().flat_map(|root| group::processes_below(&root.join(&group.path))));
            if left.is_empty() {
                return;
            }
            for pid in left {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }

    /// Removes the groups of one container whose processes have ended; what is still in use stays for [`Self::remove`].
    pub(crate) fn forget_container(&self, container: &str) {
        self.0.child(container).try_remove();
    }
}

/// The group of one command run in a container: its helper and the command with all it starts, killed together.
#[derive(Debug, Clone)]
pub(crate) struct CommandCgroup(Group);

impl CommandCgroup {
    /// Puts the calling process, the helper, into the group.
    pub(crate) fn enter(&self) -> Result<(), CgroupError> {
        self.0.enter(std::process::id())
    }

    /// The group's path below the container's, where containers have groups of their own in the hierarchy that kills.
    pub(crate) fn below_container(&self) -> Option<String> {
        let hybrid = !self.0.cgroups.legacy.is_empty() && matches!(self.0.cgroups.tree, Tree::Unified(_));
        let name = self.0.path.file_name()?.to_str()?;
        (!hybrid).then(|| name.to_owned())
    }

    /// Kills what is left, without waiting.
    pub(crate) fn kill(&self) {
        // A group that is gone has nobody left in it.
        let _ = self.0.strike();
    }

    /// Lets what the command left running go on as the container's; false if something could not be moved.
    pub(crate) fn dissolve(&self) -> bool {
        self.0.dissolve()
    }

    /// Removes the group; false while a process is still leaving it.
    pub(crate) fn try_remove(&self) -> bool {
        self.0.try_remove()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "cpu memory\n").unwrap();
        }
        root
    }

    #[test]
    fn every_arrangement_is_recognised() {
        let unified = tree(&["cgroup.controllers", "cgroup.procs"]);
        let found = Cgroups::detect_at(unified.path()).unwrap();
        assert!(found.is_unified() && found.legacy.is_empty());
        assert_eq!(found.controller("memory").as_deref(), Some(unified.path()));
        assert_eq!(found.controller("pids"), None);
        let hybrid = tree(&[
            "memory/cgroup.procs",
            "freezer/cgroup.procs",
            "unified/cgroup.controllers",
            "unified/cgroup.procs",
        ]);
        let found = Cgroups::detect_at(hybrid.path()).unwrap();
        assert!(!found.is_unified() && found.legacy.len() == 2);
        assert_eq!(found.tree, Tree::Unified(hybrid.path().join("unified")));
        assert_eq!(found.controller("memory"), Some(hybrid.path().join("memory")));
        let legacy = tree(&["memory/cgroup.procs", "freezer/cgroup.procs"]);
        let found = Cgroups::detect_at(legacy.path()).unwrap();
        assert_eq!(found.tree, Tree::Freezer(legacy.path().join("freezer")));
        assert_eq!(found.legacy, [legacy.path().join("memory")]);
        assert_eq!(Cgroups::detect_at(tree(&[]).path()), None);
    }

    #[test]
    fn usage_is_read_from_both_versions() {
        let root = tree(&["cgroup.controllers"]);
        fs::create_dir(root.path().join("g")).unwrap();
        fs::write(root.path().join("g/memory.current"), "5000\n").unwrap();
        fs::write(root.path().join("g/memory.stat"), "anon 1\ninactive_file 1000\n").unwrap();
        fs::write(root.path().join("g/cpu.stat"), "usage_usec 7\nuser_usec 3\n").unwrap();
        fs::write(root.path().join("g/memory.events"), "oom 2\noom_kill 1\n").unwrap();
        let cgroups = Cgroups::detect_at(root.path()).unwrap();
        assert_eq!(
            usage::read(&cgroups, Path::new("g")),
            Usage {
                memory_bytes: 4000,
                memory_usage_bytes: 5000,
                memory_rss_bytes: 1,
                page_faults: (0, 0),
                cpu_usage_ns: 7000,
            }
        );
        assert_eq!(usage::oom_kills(&cgroups, Path::new("g")), 1);
        let root = tree(&["memory/cgroup.procs", "cpuacct/cgroup.procs", "freezer/cgroup.procs"]);
        for group in ["memory/g", "cpuacct/g"] {
            fs::create_dir(root.path().join(group)).unwrap();
        }
        fs::write(root.path().join("memory/g/memory.usage_in_bytes"), "5000\n").unwrap();
        fs::write(root.path().join("cpuacct/g/cpuacct.usage"), "9\n").unwrap();
        let cgroups = Cgroups::detect_at(root.path()).unwrap();
        assert_eq!(
            usage::read(&cgroups, Path::new("g")),
            Usage { memory_bytes: 5000, memory_usage_bytes: 5000, cpu_usage_ns: 9, ..Usage::default() }
        );
        assert_eq!(usage::read(&cgroups, Path::new("none")), Usage::default());
    }
}
