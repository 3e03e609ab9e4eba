//! A disk for one member alone, small enough to be filled.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use crate::cluster::{Cluster, text};

/// Enough for a small server and its log.
const SIZE: &str = "size=448m";

/// A file system of its own in the place of a claim's volume; gone when this is dropped.
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// For the volume of this claim, which is made here: its name decides who gets it.
    pub fn of_claim(cluster: &Cluster, claim: &str) -> Self {
        cluster.apply(&format!(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {claim}}}\n\
             spec:\n  accessModes: [ReadWriteOnce]\n  resources: {{requests: {{storage: 400Mi}}}}\n"
        ));
        let uid = cluster.get(&["pvc", claim])["metadata"]["uid"].as_str().unwrap().to_owned();
        let path = cluster.dir().join("volumes").join(format!("pvc-{uid}"));
        fs::create_dir_all(&path).unwrap();
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(&path).output().unwrap();
        assert!(output.status.success(), "mount: {}", text(&output));
        Self { path }
    }

    /// Whether somebody keeps data on it.
    pub fn is_used(&self) -> bool {
        fs::read_dir(&self.path).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// Writes until nothing fits any more.
    pub fn fill(&self) {
        let mut file = File::create(self.path.join("filler")).unwrap();
        for size in [1 << 20, 1 << 10] {
            let block = vec![b'x'; size];
            while file.write_all(&block).is_ok() {}
        }
    }

    /// Takes away what filled it.
    pub fn clear(&self) {
        let _ = fs::remove_file(self.path.join("filler"));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: somebody may still be ending.
        let _ = Command::new("umount").arg("-l").arg(&self.path).output();
    }
}
