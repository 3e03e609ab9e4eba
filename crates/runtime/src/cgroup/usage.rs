//! What a group uses: memory and processor time.
//!
//! Source: <https://docs.kernel.org/admin-guide/cgroup-v2.html>; the working set is what the kubelet reports.

use std::fs;
use std::path::{Path, PathBuf};

use super::Cgroups;

/// What the processes of a group use; zero where the kernel does not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Working set: memory in use without the file pages that the kernel can drop at once, in bytes.
    pub memory_bytes: u64,
    /// Memory in use with all file pages, in bytes.
    pub memory_usage_bytes: u64,
    /// Memory of the processes themselves, in bytes.
    pub memory_rss_bytes: u64,
    /// Page faults, and those of them that had to read from disk.
    pub page_faults: (u64, u64),
    /// Processor time used since the group was made, in nanoseconds.
    pub cpu_usage_ns: u64,
}

/// Reads the usage of the group at `path`, with all groups below it.
pub(super) fn read(cgroups: &Cgroups, path: &Path) -> Usage {
    let place = |controller: &str| Some(cgroups.controller(controller)?.join(path));
    let memory = place("memory");
    let text = memory.as_ref().and_then(|group| fs::read_to_string(group.join("memory.stat")).ok()).unwrap_or_default();
    let (names, used, nanoseconds) = if cgroups.is_unified() {
        let microseconds = field(place("cpu"), "cpu.stat", "usage_usec");
        (["inactive_file", "anon", "pgfault", "pgmajfault"], number(memory, "memory.current"), microseconds * 1000)
    } else {
        let names = ["total_inactive_file", "total_rss", "total_pgfault", "total_pgmajfault"];
        (names, number(memory, "memory.usage_in_bytes"), number(place("cpuacct"), "cpuacct.usage"))
    };
    let [inactive, rss, faults, major] = names.map(|name| line(&text, name));
    Usage {
        memory_bytes: used.saturating_sub(inactive),
        memory_usage_bytes: used,
        memory_rss_bytes: rss,
        page_faults: (faults, major),
        cpu_usage_ns: nanoseconds,
    }
}

/// How often the kernel killed processes of a group because memory ran out.
pub(super) fn oom_kills(cgroups: &Cgroups, path: &Path) -> u64 {
    let group = cgroups.controller("memory").map(|root| root.join(path));
    let file = if cgroups.is_unified() { "memory.events" } else { "memory.oom_control" };
    field(group, file, "oom_kill")
}

fn number(group: Option<PathBuf>, file: &str) -> u64 {
    let text = group.and_then(|group| fs::read_to_string(group.join(file)).ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn field(group: Option<PathBuf>, file: &str, name: &str) -> u64 {
    line(&group.and_then(|group| fs::read_to_string(group.join(file)).ok()).unwrap_or_default(), name)
}

fn line(text: &str, name: &str) -> u64 {
    let mut fields = text.lines().filter_map(|line| line.split_once(' '));
    fields.find(|(found, _)| *found == name).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}
