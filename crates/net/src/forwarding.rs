//! The machine-wide switch `net.ipv4.ip_forward`: turned on while any cluster is up, put back by the last one to go.
//!
//! The former value is kept in a file that all clusters of a machine share, held under a lock (`flock`) while links are
//! made or removed, so that two clusters coming and going at once cannot lose it. No file means: nothing to put back.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use crate::sysctl;

const SETTING: &str = "ipv4/ip_forward";

/// The locked file. Dropping it releases the lock.
pub(crate) struct Forwarding {
    path: PathBuf,
    file: Flock<File>,
}

impl Forwarding {
    /// Waits for the lock. An empty file is created where there is none.
    pub(crate) fn lock(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        loop {
            let file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
            let file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))?;
            // Whoever held the lock may have deleted the file; then the lock is on nothing.
            if file.metadata()?.nlink() > 0 {
                return Ok(Self { path: path.to_owned(), file });
            }
        }
    }

    /// Turns forwarding on, remembering what it was unless somebody already did.
    pub(crate) fn enable(&mut self) -> io::Result<()> {
        if self.remembered()?.is_empty() {
            self.file.write_all(sysctl::read(SETTING)?.as_bytes())?;
        }
        sysctl::write(SETTING, "1")
    }

    /// Puts back what was remembered and deletes the file; while `others` use it, only lets go of the lock.
    pub(crate) fn restore(mut self, others: bool) -> io::Result<()> {
        if others {
            return Ok(());
        }
        let former = self.remembered()?;
        if !former.is_empty() {
            sysctl::write(SETTING, &former)?;
        }
        fs::remove_file(&self.path)
    }

    fn remembered(&mut self) -> io::Result<String> {
        let mut text = String::new();
        // Two bytes hold any value of the switch.
        Read::by_ref(&mut *self.file).take(16).read_to_string(&mut text)?;
        Ok(text.trim().to_owned())
    }
}
