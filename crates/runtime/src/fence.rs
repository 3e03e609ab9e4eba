//! The node's side of fencing: when the agent has last been acknowledged, and what a shim does when that is too long ago.
//!
//! Flow: the agent notes the time at which it sent each renewal that was acknowledged ([`note`]) in one file per node; the
//! shim of a pod that must not run twice reads it ten times a second and, once [`Fence`] says so, kills everything in the
//! pod but itself and leaves a [mark](is_fenced). From then on nothing is started in the pod any more.
//!
//! Guarantees: the shim needs nobody for it: the agent, the network and the disk may be dead or stuck (the file lies in
//! memory once it was read or written). A file that is missing or damaged counts as never acknowledged.
//!
//! Time is `CLOCK_BOOTTIME`, which goes on while the machine sleeps. Why it is safe: [`mainstay_model::fencing`].

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mainstay_model::fencing::Fence;
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroups;
use crate::protocol::SandboxConfig;

/// The mark in a pod's directory that its shim has stopped it.
const MARK: &str = "fenced";
/// Passes over the pod's processes: one that forks while it is killed is met by the next.
const PASSES: usize = 8;

/// What a shim is told about its node's promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceConfig {
    /// The node's file.
    pub file: PathBuf,
    /// `stop_after` of the promise, in milliseconds.
    pub stop_after_ms: u64,
}

/// The time since boot.
pub fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from)
}

/// Notes the time at which a renewal was sent that has been acknowledged now.
///
/// # Errors
/// When the file cannot be written.
pub fn note(file: &Path, sent: Duration) -> io::Result<()> {
    let millis = u64::try_from(sent.as_millis()).unwrap_or(0);
    let mut text = [0; 16];
    text[..8].copy_from_slice(&millis.to_le_bytes());
    text[8..].copy_from_slice(&(!millis).to_le_bytes());
    let opened = OpenOptions::new().write(true).create(true).truncate(false).open(file)?;
    opened.write_all_at(&text, 0)
}

fn read(file: &Path) -> Option<Duration> {
    let mut text = [0; 16];
    File::open(file).ok()?.read_exact_at(&mut text, 0).ok()?;
    let half = |from: usize| <[u8; 8]>::try_from(&text[from..from + 8]).map(u64::from_le_bytes).ok();
    let (millis, check) = (half(0)?, half(8)?);
    (millis == !check).then(|| Duration::from_millis(millis))
}

impl FenceConfig {
    /// Whether the node must not run the pod: what was acknowledged last was sent too long ago, or never.
    pub fn is_over(&self) -> bool {
        let fence = Fence { stop_after: Duration::from_millis(self.stop_after_ms) };
        read(&self.file).is_none_or(|sent| fence.is_over(now().saturating_sub(sent)))
    }
}

/// Whether a pod's shim has stopped it for good.
pub fn is_fenced(dir: &Path) -> bool {
    dir.join(MARK).exists()
}

/// Kills everything in the pod but the calling shim, and leaves the mark.
pub(crate) fn stop(config: &SandboxConfig) {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    for _ in 0..PASSES {
        let group = Cgroups::detect().map(|groups| groups.node(&config.instance, &config.node).pod(&config.uid));
        let others: Vec<i32> = group.map(|group| group.processes()).unwrap_or_default();
        let others: Vec<i32> = others.into_iter().filter(|pid| *pid != own).collect();
        if others.is_empty() {
            break;
        }
        for pid in others {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    let _ = fs::write(config.dir.join(MARK), b"");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_missing_damaged_or_old_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let fence = FenceConfig { file: dir.path().join("fence"), stop_after_ms: 60_000 };
        assert!(fence.is_over(), "never acknowledged");
        note(&fence.file, now()).unwrap();
        assert!(!fence.is_over());
        note(&fence.file, now().saturating_sub(Duration::from_secs(61))).unwrap();
        assert!(fence.is_over(), "a minute ago");
        fs::write(&fence.file, b"0123456789abcdef").unwrap();
        assert!(fence.is_over(), "damaged");
        assert!(!is_fenced(dir.path()));
    }
}
