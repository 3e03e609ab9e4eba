//! What the tests may leave behind on the machine, listed before and after.
//!
//! # Guarantees
//! Only what is new counts, so a Mainstay that was running before is no leak. What is on its way out gets
//! [`GRACE`] to be gone. Zombies do not count: reaping them is the duty of this machine's init.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::{Failure, Outcome, counted, find_program, output};

/// How long after the last test something may still be going away.
const GRACE: Duration = Duration::from_secs(10);
/// How deep the control group tree is searched.
const CGROUP_DEPTH_MAX: usize = 6;

/// One line per thing, such as `link ms1a2b3c4dn1`.
pub(crate) struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Lists what is there now.
    pub(crate) fn take() -> Outcome<Self> {
        let mut found = BTreeSet::new();
        processes(&mut found);
        names_in(Path::new("/run/netns"), "network namespace", |_| true, &mut found);
        names_in(Path::new("/sys/class/net"), "link", |name| name.starts_with("ms"), &mut found);
        mounts(&mut found);
        cgroups(Path::new("/sys/fs/cgroup"), CGROUP_DEPTH_MAX, &mut found);
        nftables(&mut found)?;
        Ok(Self(found))
    }

    /// Fails, naming them, if things are there that were not there before.
    pub(crate) fn check(&self) -> Outcome {
        let deadline = Instant::now() + GRACE;
        loop {
            let now = Self::take()?;
            let new: Vec<&String> = now.0.difference(&self.0).collect();
            if new.is_empty() {
                println!("no process, namespace, mount, control group, link or table left behind");
                return Ok(());
            }
            if Instant::now() > deadline {
                for thing in &new {
                    println!("left behind: {thing}");
                }
                return Err(Failure::Found(counted(new.len(), "thing") + " left behind by the tests"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Running processes of our binary, whatever they were renamed to.
fn processes(found: &mut BTreeSet<String>) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let folder = entry.path();
        let Ok(exe) = fs::read_link(folder.join("exe")) else { continue }; // no process, a kernel thread or a zombie
        // The kernel appends " (deleted)" once cargo has replaced the binary.
        let name = exe.file_name().unwrap_or_default().to_string_lossy();
        if name.trim_end_matches(" (deleted)") == "mainstay" {
            let words = fs::read_to_string(folder.join("cmdline")).unwrap_or_default().replace('\0', " ");
            found.insert(format!("process {} {}", entry.file_name().to_string_lossy(), words.trim()));
        }
    }
}

/// The entries of a folder, as `what NAME`.
fn names_in(folder: &Path, what: &str, wanted: impl Fn(&str) -> bool, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if wanted(&name) {
            found.insert(format!("{what} {name}"));
        }
    }
}

/// All mount points of this namespace, by type. Fields: `man 5 proc_pid_mountinfo`.
fn mounts(found: &mut BTreeSet<String>) {
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
        let point = line.split(' ').nth(4).unwrap_or_default();
        let kind = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        found.insert(format!("mount {point} ({kind})"));
    }
}

/// Control groups with our name in theirs; what is inside one is not listed again.
fn cgroups(folder: &Path, depth_left: usize, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|it| it.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().contains("mainstay") {
            found.insert(format!("control group {}", entry.path().display()));
        } else if depth_left > 0 {
            cgroups(&entry.path(), depth_left - 1, found);
        }
    }
}

/// All nftables tables of this network namespace, if there is an `nft` to ask.
fn nftables(found: &mut BTreeSet<String>) -> Outcome {
    if let Some(nft) = find_program("nft") {
        let tables = output(Command::new(nft).args(["list", "tables"]))?;
        found.extend(tables.lines().map(|line| format!("nftables {line}")));
    }
    Ok(())
}
