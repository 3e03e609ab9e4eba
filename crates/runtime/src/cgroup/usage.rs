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
    /// Processor time used since the group was made, in nanoseconds.
    pub cpu_usage_ns: u64,
}

/// Reads the usage of the group at `path`, with all groups below it.
pub(super) fn read(cgroups: &Cgroups, path: &Path) -> Usage {
    let place = |controller: &str| Some(cgroups.controller(controller)?.join(path));
    let (used, inactive, nanoseconds) = if cgroups.is_unified() {
        let (memory, cpu) = (place("memory"), place("cpu"));
        let microseconds = field(cpu, "cpu.stat", "usage_usec");
        (number(memory.clone(), "memory.current"), field(memory, "memory.stat", "inactive_file"), microseconds * 1000)
    } else {
        let memory = place("memory");
        let inactive = field(memory.clone(), "memory.stat", "total_inactive_file");
        (number(memory, "memory.usage_in_bytes"), inactive, number(place("cpuacct"), "cpuacct.usage"))
    };
    Usage { memory_bytes: used.saturating_sub(inactive), cpu_usage_ns: nanoseconds }
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
    let text = group.and_then(|group| fs::read_to_string(group.join(file)).ok()).unwrap_or_default();
    let mut fields = text.lines().filter_map(|line| line.split_once(' '));
    fields.find(|(found, _)| *found == name).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}
