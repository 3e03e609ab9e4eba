//! Control groups: where processes are counted, limited, frozen and killed.
//!
//! Three arrangements exist: version 2 alone at `/sys/fs/cgroup`; "hybrid", with the controllers in version 1 and an empty
//! version 2 hierarchy at `/sys/fs/cgroup/unified`; version 1 alone, which is refused because only version 2 can freeze and
//! kill a whole group at once.
//!
//! Layout: `/mainstay/<instance>/<node>/pod<uid>/<container>` everywhere. In version 2 a group with children holds no
//! processes, so the agent sits in `<node>/agent` and the shim, with what it starts, in `<node>/pod<uid>/shim`.
//!
//! Source: <https://docs.kernel.org/admin-guide/cgroup-v2.html>.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where cgroups are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// How long killed processes may take to vanish.
const VANISH: Duration = Duration::from_secs(5);

/// Why cgroups cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup file system, or only version 1.
    #[error(
        "this machine has no cgroup version 2 at {ROOT} or {ROOT}/unified; boot a kernel with cgroups and mount them (`mount -t cgroup2 cgroup2 {ROOT}`)"
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

/// The hierarchies of this machine.
#[derive(Debug, Clone)]
pub struct Cgroups {
    /// The version 2 hierarchy.
    unified: PathBuf,
    /// Version 1 hierarchies, where there are any.
    legacy: Vec<PathBuf>,
}

impl Cgroups {
    /// Finds the hierarchies.
    ///
    /// # Errors
    /// [`CgroupError::Missing`] without version 2.
    pub fn detect() -> Result<Self, CgroupError> {
        let root = Path::new(ROOT);
        if root.join("cgroup.controllers").exists() {
            return Ok(Self { unified: root.to_owned(), legacy: Vec::new() });
        }
        let unified = root.join("unified");
        if !unified.join("cgroup.controllers").exists() {
            return Err(CgroupError::Missing);
        }
        let entries = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        let legacy = entries.filter(|path| *path != unified && path.join("cgroup.procs").exists()).collect();
        Ok(Self { unified, legacy })
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
        for root in self.legacy.iter().chain([&self.unified]) {
            let _ = fs::remove_dir(root.join("mainstay"));
        }
        Ok(())
    }

    fn group(&self, path: PathBuf) -> Group {
        Group { cgroups: self.clone(), path }
    }
}

/// One group, the same path in every hierarchy.
#[derive(Debug, Clone)]
struct Group {
    cgroups: Cgroups,
    path: PathBuf,
}

impl Group {
    fn child(&self, name: &str) -> Self {
        Self { cgroups: self.cgroups.clone(), path: self.path.join(name) }
    }

    fn unified(&self) -> PathBuf {
        self.cgroups.unified.join(&self.path)
    }

    /// Moves a process into the version 2 group; in version 1 the containers have their own, the rest is not limited.
    fn enter(&self, pid: u32) -> Result<(), CgroupError> {
        let path = self.unified();
        fs::create_dir_all(&path).map_err(|source| CgroupError::Access {
            doing: "create",
            path: path.clone(),
            source,
        })?;
        write(&path.join("cgroup.procs"), &pid.to_string())
    }

    /// Writes to a control file; a group that does not exist has nothing to control.
    fn control(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.unified().join(file);
        if path.exists() { write(&path, value) } else { Ok(()) }
    }

    fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        walk(&self.unified(), &mut |group| {
            let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        });
        found
    }

    /// Kills everything and waits until it is gone.
    fn kill(&self) -> Result<(), CgroupError> {
        // A frozen group dies only when it is thawed, on kernels before 5.14 at least.
        self.control("cgroup.freeze", "0")?;
        self.control("cgroup.kill", "1")?;
        let since = Instant::now();
        while !self.processes().is_empty() {
            if since.elapsed() > VANISH {
                return Err(CgroupError::Stuck(self.unified()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Removes the group and those below it in every hierarchy.
    fn remove(&self) -> Result<(), CgroupError> {
        for root in self.cgroups.legacy.iter().chain([&self.cgroups.unified]) {
            let top = root.join(&self.path);
            let since = Instant::now();
            // Killed processes leave their groups a moment after they are gone.
            while let Err(source) = remove_tree(&top) {
                if since.elapsed() > VANISH {
                    return Err(CgroupError::Access { doing: "remove", path: top, source });
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
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

    /// Freezes or thaws everything.
    ///
    /// # Errors
    /// When the group cannot be written.
    pub fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        self.0.control("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// All processes of the node.
    pub fn processes(&self) -> Vec<i32> {
        self.0.processes()
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

    /// The group of one command run in the pod, named after its helper process.
    pub(crate) fn command(&self, helper: u32) -> CommandCgroup {
        CommandCgroup(self.0.child(&format!("exec{helper}")))
    }

    /// Kills shim and containers, and waits until they are gone.
    ///
    /// # Errors
    /// When something does not die.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.0.kill()
    }

    /// Kills the containers but not the shim: every process that is not a shim.
    ///
    /// # Errors
    /// None today; processes that are gone already are fine.
    pub fn kill_containers(&self) -> Result<(), CgroupError> {
        for pid in self.0.processes() {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = command.split(|byte| *byte == 0).skip(1);
            if words.next() != Some(b"shim".as_slice()) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
        Ok(())
    }

    /// Freezes or thaws everything.
    ///
    /// # Errors
    /// When the group cannot be written.
    pub fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        self.0.control("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// All processes of the pod.
    pub fn processes(&self) -> Vec<i32> {
        self.0.processes()
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
        let path = self.0.child(container).path;
        let count = |file: PathBuf, field: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let value = text.lines().find_map(|line| line.strip_prefix(field)?.trim().parse().ok());
            value.unwrap_or(0)
        };
        let unified = count(self.0.cgroups.unified.join(&path).join("memory.events"), "oom_kill ");
        let legacy = self.0.cgroups.legacy.iter().find(|root| root.ends_with("memory"));
        legacy.map_or(unified, |root| unified.max(count(root.join(&path).join("memory.oom_control"), "oom_kill ")))
    }
}

/// The group of one command run in a pod: its helper and the command, killed together.
#[derive(Debug, Clone)]
pub(crate) struct CommandCgroup(Group);

impl CommandCgroup {
    /// Puts the calling process, the helper, into the group.
    pub(crate) fn enter(&self) -> Result<(), CgroupError> {
        self.0.enter(std::process::id())
    }

    /// Kills what is left, without waiting.
    pub(crate) fn kill(&self) {
        // A group that is gone has nobody left in it.
        let _ = self.0.control("cgroup.kill", "1");
    }

    /// Removes the group; false while a process is still leaving it.
    pub(crate) fn try_remove(&self) -> bool {
        remove_tree(&self.0.unified()).is_ok()
    }
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(|source| CgroupError::Access { doing: "write", path: path.to_owned(), source })
}

fn walk(group: &Path, visit: &mut impl FnMut(&Path)) {
    visit(group);
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
}

/// Removes a group, deepest first. Its files are the kernel's and go with it.
fn remove_tree(group: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
