//! Other limits for a running container.
//!
//! Sources: <https://docs.kernel.org/admin-guide/cgroup-v2.html>, <https://docs.kernel.org/admin-guide/cgroup-v1/memory.html>;
//! the conversions are those with which containers are made.

use std::fs;
use std::path::{Path, PathBuf};

use super::{CgroupError, Cgroups};

/// Length of the scheduler period in which a CPU limit is enforced, in microseconds.
pub(crate) const CPU_PERIOD_US: u64 = 100_000;

/// What a container may use; none is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU share, in thousandths of a core.
    pub cpu_request_milli: Option<u64>,
    /// Most CPU, in thousandths of a core.
    pub cpu_limit_milli: Option<u64>,
    /// Most memory, in bytes.
    pub memory_limit_bytes: Option<u64>,
}

/// CPU shares of version 1: a whole core is 1024, and the kernel's smallest share is 2.
pub(crate) fn cpu_shares(request_milli: Option<u64>) -> u64 {
    request_milli.map_or(2, |milli| (milli * 1024 / 1000).clamp(2, 262_144))
}

/// The quota within [`CPU_PERIOD_US`], at least a millisecond.
pub(crate) fn cpu_quota_us(limit_milli: u64) -> u64 {
    (limit_milli * CPU_PERIOD_US / 1000).max(1000)
}

/// Sets the limits of the group at `path`.
///
/// # Errors
/// When the kernel refuses; for example a memory limit below what is used and cannot be reclaimed.
pub(super) fn set(cgroups: &Cgroups, path: &Path, limits: Limits) -> Result<(), CgroupError> {
    let place = |controller: &str| cgroups.controller(controller).map(|root| root.join(path));
    let quota = limits.cpu_limit_milli.map(cpu_quota_us);
    let shares = cpu_shares(limits.cpu_request_milli);
    let (cpu, memory) = (place("cpu"), place("memory"));
    if cgroups.is_unified() {
        // How `libcontainer` maps shares [2, 262144] to weights [1, 10000].
        let weight = 1 + (shares - 2) * 9999 / 262_142;
        let most = quota.map_or("max".to_owned(), |quota| quota.to_string());
        write(cpu.as_deref(), "cpu.weight", &weight.to_string())?;
        write(cpu.as_deref(), "cpu.max", &format!("{most} {CPU_PERIOD_US}"))?;
        let most = limits.memory_limit_bytes.map_or("max".to_owned(), |bytes| bytes.to_string());
        return write(memory.as_deref(), "memory.max", &most);
    }
    write(cpu.as_deref(), "cpu.shares", &shares.to_string())?;
    write(cpu.as_deref(), "cpu.cfs_quota_us", &quota.map_or("-1".to_owned(), |quota| quota.to_string()))?;
    let most = limits.memory_limit_bytes.map_or("-1".to_owned(), |bytes| bytes.to_string());
    // Memory with swap must never be less than memory alone, so the order depends on the direction: one of the two works.
    let swap = memory.as_deref().is_some_and(|memory| memory.join(WITH_SWAP).exists());
    let first = write(memory.as_deref(), "memory.limit_in_bytes", &most);
    if swap {
        write(memory.as_deref(), WITH_SWAP, &most)?;
    }
    first.or_else(|_| write(memory.as_deref(), "memory.limit_in_bytes", &most))
}

const WITH_SWAP: &str = "memory.memsw.limit_in_bytes";

fn write(group: Option<&Path>, file: &str, value: &str) -> Result<(), CgroupError> {
    // Without the controller there was no limit to begin with.
    let Some(path): Option<PathBuf> = group.map(|group| group.join(file)) else { return Ok(()) };
    fs::write(&path, value).map_err(|source| CgroupError::Access { doing: "write", path, source })
}
