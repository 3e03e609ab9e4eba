//! How fast a group may read from and write to a disk.
//!
//! Version 1 limits every group by itself, so each container's is written; version 2 limits a group with all below it. What goes
//! through the page cache is slowed where it is synced (`fsync`), not where it is written.
//!
//! Sources: <https://docs.kernel.org/admin-guide/cgroup-v1/blkio-controller.html>, `io.max` in
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html>.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::CgroupError;
use super::group::Group;

/// Files of version 1.
const LEGACY: [&str; 2] = ["blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device"];
/// The file of version 2.
const UNIFIED: &str = "io.max";
/// The prefix of a pod's group.
const POD: &str = "pod";

/// A disk, as the kernel numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    major: u64,
    minor: u64,
}

impl Disk {
    /// The whole disk that a file lies on; limits are not taken for a part of it.
    ///
    /// # Errors
    /// When the file is not there, or its file system is not on a disk of its own that the kernel knows (overlay, memory).
    pub fn of(path: &Path) -> Result<Self, CgroupError> {
        let failed = |source| CgroupError::Access { doing: "find the disk of", path: path.to_owned(), source };
        let device = fs::metadata(path).map_err(failed)?.dev();
        let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        let node = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).map_err(failed)?;
        let whole = if node.join("partition").exists() { node.parent().unwrap_or(&node) } else { &node };
        let text = fs::read_to_string(whole.join("dev")).map_err(failed)?;
        let number = |text: &str| text.trim().parse().ok();
        let found = text.split_once(':').and_then(|(major, minor)| Some((number(major)?, number(minor)?)));
        let (major, minor) = found.ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidData)))?;
        Ok(Self { major, minor })
    }
}

/// Slows the groups of the pods at and below `group`, or with `None` gives them the disk's own speed again; answers with how
/// many groups took it.
///
/// # Errors
/// When the kernel refuses, or has no such controller.
pub(super) fn throttle(group: &Group, disk: Disk, bytes_per_second: Option<u64>) -> Result<usize, CgroupError> {
    let cgroups = &group.cgroups;
    let (controller, word) = if cgroups.is_unified() { ("io", "max") } else { ("blkio", "0") };
    let speed = bytes_per_second.map_or(word.to_owned(), |bytes| bytes.to_string());
    let missing = |path: PathBuf| CgroupError::Access {
        doing: "slow the disk in",
        path,
        source: io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this kernel has no cgroup controller {controller}"),
        ),
    };
    let root = cgroups.controller(controller).ok_or_else(|| missing(group.path.clone()))?;
    let top = root.join(&group.path);
    let Disk { major, minor } = disk;
    let mut count = 0;
    for path in groups(&top, cgroups.is_unified()) {
        if cgroups.is_unified() {
            write(&path.join(UNIFIED), &format!("{major}:{minor} rbps={speed} wbps={speed}"))?;
        } else {
            for file in LEGACY {
                write(&path.join(file), &format!("{major}:{minor} {speed}"))?;
            }
        }
        count += 1;
    }
    Ok(count)
}

/// Which groups are limited: with version 2 the pods, else everything in them, as no limit is handed down.
fn groups(top: &Path, unified: bool) -> Vec<PathBuf> {
    let name = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(POD));
    let mut found = Vec::new();
    let mut open = vec![(top.to_owned(), name(top))];
    while let Some((path, in_pod)) = open.pop() {
        if !path.is_dir() {
            continue;
        }
        if in_pod {
            found.push(path.clone());
            if unified {
                continue;
            }
        }
        let below = fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path());
        open.extend(below.map(|path| (path.clone(), in_pod || name(&path))));
    }
    found
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    let written = fs::write(path, value);
    written.map_err(|source| CgroupError::Access { doing: "slow the disk in", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pods_are_limited_and_what_is_in_them_where_nothing_is_handed_down() {
        let directory = tempfile::tempdir().unwrap();
        for path in ["agent", "pod1/shim", "pod1/web", "pod2/db"] {
            fs::create_dir_all(directory.path().join(path)).unwrap();
        }
        let names = |top: &Path, unified| {
            let mut names: Vec<String> = groups(top, unified)
                .iter()
                .map(|path| path.strip_prefix(directory.path()).unwrap().to_string_lossy().into_owned())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(directory.path(), true), ["pod1", "pod2"]);
        assert_eq!(names(directory.path(), false), ["pod1", "pod1/shim", "pod1/web", "pod2", "pod2/db"]);
        assert_eq!(names(&directory.path().join("pod2"), false), ["pod2", "pod2/db"]);
    }
}
