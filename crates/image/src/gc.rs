//! Takes away images that nobody uses when the disk fills.
//!
//! As the kubelet does: from 85 % full on, until 80 %, those first whose last use is longest ago.
//!
//! Source: <https://kubernetes.io/docs/concepts/architecture/garbage-collection/#container-image-lifecycle>.

use std::time::SystemTime;

use rustix::fs::statvfs;

use crate::digest::Digest;
use crate::store::{Image, Store, StoreError};

/// `imageGCHighThresholdPercent`.
pub const HIGH_PERCENT: u64 = 85;
/// `imageGCLowThresholdPercent`.
pub const LOW_PERCENT: u64 = 80;

/// How full a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// All of it, in bytes.
    pub capacity: u64,
    /// What is free for everybody, in bytes.
    pub available: u64,
}

impl Disk {
    /// The disk that a directory lies on.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn of(path: &std::path::Path) -> std::io::Result<Self> {
        let found = statvfs(path)?;
        Ok(Self { capacity: found.f_blocks * found.f_frsize, available: found.f_bavail * found.f_frsize })
    }

    /// How many bytes have to go before the disk is as empty as it should be; none below the high mark.
    pub fn to_free(self) -> u64 {
        let used = self.capacity.saturating_sub(self.available);
        if used < self.capacity / 100 * HIGH_PERCENT { 0 } else { used - self.capacity / 100 * LOW_PERCENT }
    }
}

/// The images to remove, by the digests of their configurations: the longest unused first, until `to_free` bytes are free.
/// Pure.
pub fn plan(images: &[(Digest, u64, SystemTime, usize)], to_free: u64) -> Vec<Digest> {
    let mut unused: Vec<_> = images.iter().filter(|(.., users)| *users == 0).collect();
    unused.sort_by_key(|(_, _, used, _)| *used);
    let mut freed = 0;
    let needed = unused.into_iter().take_while(|(_, size, ..)| {
        let more = freed < to_free;
        freed += size;
        more
    });
    needed.map(|(digest, ..)| digest.clone()).collect()
}

/// Removes what has to go; answers the names. Blocking.
///
/// # Errors
/// Of the store.
pub fn collect(store: &Store, to_free: u64) -> Result<Vec<String>, StoreError> {
    if to_free == 0 {
        return Ok(Vec::new());
    }
    // Somebody pulls: the disk is looked at again soon.
    let Some(_lock) = store.own()? else { return Ok(Vec::new()) };
    let images = store.list();
    let facts = |image: &Image| {
        let config = image.record.config.clone();
        let users = store.users(&config);
        (config, image.record.size, image.used, users)
    };
    let facts: Vec<_> = images.iter().map(facts).collect();
    let mut removed = Vec::new();
    for digest in plan(&facts, to_free) {
        for image in images.iter().filter(|image| image.record.config == digest) {
            store.remove(image)?;
            removed.push(image.record.name.clone());
        }
    }
    store.sweep()?;
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_longest_unused_go_first_and_only_as_many_as_needed() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let digest = |name: &str| Digest::of(name.as_bytes());
        let images = [
            (digest("new"), 10, at(3), 0),
            (digest("old"), 10, at(1), 0),
            (digest("used"), 10, at(0), 1),
            (digest("middle"), 10, at(2), 0),
        ];
        assert_eq!(plan(&images, 15), [digest("old"), digest("middle")]);
        assert_eq!(plan(&images, 0), []);
        assert_eq!(plan(&images, 1000).len(), 3);
        assert_eq!(Disk { capacity: 1000, available: 200 }.to_free(), 0);
        assert_eq!(Disk { capacity: 1000, available: 100 }.to_free(), 100);
    }
}
