//! One group, the same path in every hierarchy of the machine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{CgroupError, Cgroups, Tree};

/// How long killed processes may take to vanish.
const VANISH: Duration = Duration::from_secs(5);
/// How long a group may take to be frozen; a process that hangs in the kernel never is.
const FREEZE: Duration = Duration::from_secs(1);
/// The wait between two looks.
const LOOK: Duration = Duration::from_millis(1);
/// How often a group that is dissolved is looked at for further processes.
const DISSOLVE_ROUNDS: u32 = 16;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) cgroups: Cgroups,
    pub(super) path: PathBuf,
}

impl Group {
    pub(super) fn child(&self, name: &str) -> Self {
        Self { cgroups: self.cgroups.clone(), path: self.path.join(name) }
    }

    /// The group in the hierarchy that freezes and kills.
    pub(super) fn tree(&self) -> PathBuf {
        self.cgroups.tree.root().join(&self.path)
    }

    /// Makes the group in the hierarchy that freezes and kills. The limiting ones are made by who sets limits.
    pub(super) fn make(&self) -> Result<(), CgroupError> {
        let path = self.tree();
        fs::create_dir_all(&path).map_err(|source| CgroupError::Access { doing: "create", path, source })
    }

    /// Moves a process into the group.
    pub(super) fn enter(&self, pid: u32) -> Result<(), CgroupError> {
        self.make()?;
        write(&self.tree().join("cgroup.procs"), &pid.to_string())
    }

    pub(super) fn processes(&self) -> Vec<i32> {
        processes_below(&self.tree())
    }

    /// Freezes or thaws; a group that does not exist has nothing to freeze.
    pub(super) fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        let (file, value) = match (&self.cgroups.tree, frozen) {
            (Tree::Unified(_), true) => ("cgroup.freeze", "1"),
            (Tree::Unified(_), false) => ("cgroup.freeze", "0"),
            (Tree::Freezer(_), true) => ("freezer.state", "FROZEN"),
            (Tree::Freezer(_), false) => ("freezer.state", "THAWED"),
        };
        let path = self.tree().join(file);
        if !path.exists() {
            return Ok(());
        }
        write(&path, value)?;
        let since = Instant::now();
        while frozen && !self.is_frozen() && since.elapsed() < FREEZE {
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Whether everything in it stands still.
    pub(super) fn is_frozen(&self) -> bool {
        let (file, line) = match &self.cgroups.tree {
            Tree::Unified(_) => ("cgroup.events", "frozen 1"),
            Tree::Freezer(_) => ("freezer.state", "FROZEN"),
        };
        fs::read_to_string(self.tree().join(file)).unwrap_or_default().lines().any(|found| found == line)
    }

    /// Kills everything, without waiting.
    pub(super) fn strike(&self) -> Result<(), CgroupError> {
        let all_at_once = self.tree().join("cgroup.kill");
        if all_at_once.exists() {
            // On some kernels a frozen group dies only when it is thawed.
            self.freeze(false)?;
            return write(&all_at_once, "1");
        }
        // Nothing in a frozen group can start a process that the signals miss; they take effect at the thaw.
        self.freeze(true)?;
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        self.freeze(false)
    }

    /// Kills everything and waits until it is gone.
    pub(super) fn kill(&self) -> Result<(), CgroupError> {
        let since = Instant::now();
        self.strike()?;
        while !self.processes().is_empty() {
            if since.elapsed() > VANISH {
                return Err(CgroupError::Stuck(self.tree()));
            }
            std::thread::sleep(LOOK);
            if matches!(self.cgroups.tree, Tree::Freezer(_)) {
                self.strike()?;
            }
        }
        Ok(())
    }

    /// Removes the group and those below it in every hierarchy.
    pub(super) fn remove(&self) -> Result<(), CgroupError> {
        for root in self.cgroups.hierarchies() {
            let top = root.join(&self.path);
            let since = Instant::now();
            // Killed processes leave their groups a moment after they are gone.
            while let Err(source) = remove_tree(&top) {
                if since.elapsed() > VANISH {
                    return Err(CgroupError::Access { doing: "remove", path: top, source });
                }
                std::thread::sleep(LOOK);
            }
        }
        Ok(())
    }

    /// Moves what runs in the group into the one around it, in every hierarchy that has the group, and removes it; false
    /// while something is left.
    pub(super) fn dissolve(&self) -> bool {
        for root in self.cgroups.hierarchies() {
            let group = root.join(&self.path);
            let Some(around) = group.parent() else { continue };
            // What is started between a look and the move is found by the next look.
            for _ in 0..DISSOLVE_ROUNDS {
                let processes = processes_below(&group);
                if processes.is_empty() {
                    break;
                }
                for pid in processes {
                    // It may have ended.
                    let _ = write(&around.join("cgroup.procs"), &pid.to_string());
                }
            }
        }
        self.try_remove()
    }

    /// Removes the group where nothing is left in it; false while something is.
    pub(super) fn try_remove(&self) -> bool {
        let mut gone = true;
        for root in self.cgroups.hierarchies() {
            gone &= remove_tree(&root.join(&self.path)).is_ok();
        }
        gone
    }
}

/// All processes of the group at `path` in one hierarchy, and of those below it.
pub(super) fn processes_below(path: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    walk(path, &mut |group| {
        let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    });
    found
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
    // Most often it has no children, or is gone already.
    match fs::remove_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(()) => return Ok(()),
        Err(_) => {}
    }
    for entry in fs::read_dir(group)? {
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
