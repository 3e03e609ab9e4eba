//! Disks that are full or slow, for pods.
//!
//! *Full*: a file takes all room of the file system at a path in the pod. Only of one that is the pod's own, such as an `emptyDir`
//! in memory or a volume on a disk of its own: the others lie on the disk of this machine, and filling that would break more
//! than was asked for. *Slow*: the control groups of the pods get so many bytes a second of the disk that the instance lies on.
//!
//! The file stays while its volume does, so the undoing looks for it in every pod of the namespace: the pod's successor may have
//! the volume now.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

use crate::fault::{FaultError, Faults};

/// What takes the room.
const FILE: &str = ".mainstay-drill-full";
/// What is tried to be written, to see that there is none.
const LOOK: &str = ".mainstay-drill-look";
/// Written at once, the larger first.
const CHUNKS: [usize; 2] = [1 << 20, 4 << 10];
/// The most that is filled.
const FILL_BYTES_MAX: u64 = 8 << 30;

/// Why a disk was not filled.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The pod.
    #[error(transparent)]
    Pod(#[from] FaultError),
    /// None of its processes has the path.
    #[error("no running container of pod {pod} has a directory {path}; write the mountPath of one of its volumes")]
    Nowhere {
        /// Which pod.
        pod: String,
        /// Which path.
        path: PathBuf,
    },
    /// A file in it.
    #[error("cannot {doing} {path} of the pod: {source}")]
    File {
        /// The step.
        doing: &'static str,
        /// Where, as the pod sees it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others have it, too.
    #[error(
        "{0} of the pod is on the disk of this machine, so filling it would break everything else here; give the volume a file \
         system of its own, such as an emptyDir with medium: Memory and a sizeLimit"
    )]
    Shared(PathBuf),
    /// Too much room.
    #[error("{path} of the pod has {gib} GiB free, and at most 8 are filled; give the volume a smaller file system")]
    Large {
        /// Where.
        path: PathBuf,
        /// How much.
        gib: u64,
    },
    /// There is room still.
    #[error("{0} of the pod takes further files although it was filled")]
    NoEffect(PathBuf),
}

/// Fills the file system at a path in a pod; answers with what shows it. `data_dir` is where the instance lies.
///
/// # Errors
/// See [`DiskError`].
pub fn fill(faults: &Faults, data_dir: &Path, namespace: &str, pod: &str, path: &str) -> Result<String, DiskError> {
    let inside = PathBuf::from(path);
    let failed = |doing| {
        let path = inside.clone();
        move |source: io::Error| DiskError::File { doing, path, source }
    };
    let places = faults.pod_processes(namespace, pod)?.into_iter().map(|pid| within(pid, path));
    let places: Vec<PathBuf> = places.filter(|place| place.is_dir()).collect();
    if places.is_empty() {
        return Err(DiskError::Nowhere { pod: format!("{namespace}/{pod}"), path: inside });
    }
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    let of_machine = [data_dir, Path::new("/")].map(|path| device(path).ok());
    let is_own = |place: &PathBuf| {
        let layered = statfs(place).is_ok_and(|system| system.filesystem_type() == OVERLAYFS_SUPER_MAGIC);
        !layered && !of_machine.contains(&device(place).ok())
    };
    let directory = places.into_iter().find(is_own).ok_or_else(|| DiskError::Shared(inside.clone()))?;
    let system = statfs(&directory).map_err(|error| failed("look at")(error.into()))?;
    let free_bytes = system.blocks_available().saturating_mul(u64::try_from(system.block_size()).unwrap_or(u64::MAX));
    if free_bytes > FILL_BYTES_MAX {
        return Err(DiskError::Large { path: inside, gib: free_bytes >> 30 });
    }
    let written = take_all(&directory.join(FILE)).map_err(failed("fill"))?;
    let look = directory.join(LOOK);
    let took = fs::write(&look, [1; CHUNKS[1]]);
    let _ = fs::remove_file(&look);
    match took {
        Err(error) if is_full(&error) => Ok(format!("{path} of pod/{namespace}/{pod} is full: {written} bytes taken")),
        Err(error) => Err(failed("look at")(error)),
        Ok(()) => Err(DiskError::NoEffect(inside)),
    }
}

/// Gives the room back, whichever pod of the namespace has the volume now.
///
/// # Errors
/// When the file is there and cannot be removed.
pub fn empty(faults: &Faults, namespace: &str, path: &str) -> Result<(), DiskError> {
    for pid in faults.namespace_processes(namespace) {
        let file = within(pid, path).join(FILE);
        match fs::remove_file(&file) {
            // The process may have ended, its volume be another.
            Err(error) if file.exists() => {
                return Err(DiskError::File { doing: "empty", path: PathBuf::from(path), source: error });
            }
            _ => {}
        }
    }
    Ok(())
}

/// A path of a container, from outside.
fn within(pid: i32, path: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join("root").join(path.trim_start_matches('/'))
}

/// Writes until there is no room; answers with how much that was.
fn take_all(path: &Path) -> io::Result<u64> {
    let mut file =
        OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)?;
    for size in CHUNKS {
        let chunk = vec![0_u8; size];
        loop {
            match file.write_all(&chunk).and_then(|()| if size == CHUNKS[1] { file.sync_data() } else { Ok(()) }) {
                Ok(()) if file.metadata()?.len() <= FILL_BYTES_MAX => {}
                Ok(()) => return Err(io::Error::from(io::ErrorKind::FileTooLarge)),
                Err(error) if is_full(&error) => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(file.metadata()?.len())
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_a_container_stays_in_it() {
        assert_eq!(within(7, "/data"), Path::new("/proc/7/root/data"));
        assert_eq!(within(7, "data/x"), Path::new("/proc/7/root/data/x"));
    }
}
