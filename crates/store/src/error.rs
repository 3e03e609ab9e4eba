//! What can go wrong, in terms the caller can act on.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::{Entry, Revision};

/// The result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a store operation failed. Nothing was changed, except where [`Error::Storage`] says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key's present state is not what the write expected.
    #[error("the key was changed by someone else: it is now {}", .current.as_ref().map_or_else(|| "absent".to_owned(), |entry| format!("at revision {}", entry.mod_revision)))]
    Conflict {
        /// The present state, for the caller to merge with and try again; `None` if the key does not exist.
        current: Option<Box<Entry>>,
    },
    /// The revision asked for is no longer kept. List again.
    #[error("the revision asked for is compacted; the oldest kept is {oldest}: list again")]
    Compacted {
        /// The oldest revision that can be read at or watched from.
        oldest: Revision,
    },
    /// The revision asked for has not happened yet.
    #[error("the revision asked for is in the future; the present one is {current}")]
    Future {
        /// The present revision.
        current: Revision,
    },
    /// Too many writes are waiting. Try again later.
    #[error("too many writes are waiting for the disk; try again in a moment")]
    Busy,
    /// The key is empty or longer than [`KEY_BYTES_MAX`](crate::KEY_BYTES_MAX).
    #[error("a key must have 1 to 1024 bytes, this one has {bytes}")]
    KeyLength {
        /// The length of the key offered.
        bytes: usize,
    },
    /// The value is larger than the store takes.
    #[error("the value has {bytes} bytes, more than the {max} allowed")]
    ValueTooLarge {
        /// The size of the value offered.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The disk under the data directory is full. Reads go on; writes work again once there is room.
    #[error("no space left on the disk of {}: free some, then writes work again by themselves", .directory.display())]
    DiskFull {
        /// The data directory.
        directory: PathBuf,
    },
    /// etcd's quota is used up, which it calls an alarm. Reads go on.
    #[error(
        "etcd's database is full, and takes no more writes: compact and defragment it (mainstay snapshot defrag), then end its alarm (etcdctl alarm disarm), or raise its --quota-backend-bytes"
    )]
    EtcdFull,
    /// What the store was asked to be cannot be.
    #[error("{0}")]
    Settings(String),
    /// A value cannot be encrypted or decrypted.
    #[error("the value of {path} cannot be decrypted: {reason}")]
    Encryption {
        /// The key of the value.
        path: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// A restore into etcd was begun and did not end.
    #[error(
        "a restore into {root} of etcd has not ended: delete what is there (etcdctl del --prefix {root}) and restore again"
    )]
    HalfRestored {
        /// What the keys begin with.
        root: String,
    },
    /// A restore would overwrite what is there.
    #[error(
        "there is a store in {place} already: a restore does not overwrite it. Restore to another place, or move that one away"
    )]
    NotEmpty {
        /// The directory, or the root in etcd.
        place: String,
    },
    /// The storage failed. After a failed write it is unknown whether it was made: read the key again.
    #[error("the store failed to {step}")]
    Storage {
        /// What was being done.
        step: &'static str,
        /// What the storage said; shared by all writes that failed with it.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The data directory could not be made or its file not be opened.
    #[error("cannot open {}: {source}", .path.display())]
    Open {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process has the data directory open.
    #[error("the data directory {} is in use by another mainstay server: stop that one, or choose another directory with --data-dir", .directory.display())]
    InUse {
        /// The data directory.
        directory: PathBuf,
    },
    /// The file is damaged, or not one of ours, or of a newer version.
    #[error("{} cannot be used: {reason}. Move it away to start empty, or put a copy of it from a backup in its place", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// The same error for one more of several callers whose writes failed together.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::DiskFull { directory } => Self::DiskFull { directory: directory.clone() },
            Self::Storage { step, source } => Self::Storage { step, source: Arc::clone(source) },
            _ => Self::Closed,
        }
    }
}

/// Why a watch ended.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The watcher did not take its events fast enough and its buffer ran full. List again, then watch from there.
    #[error("the watcher fell behind by more than {buffered_max} events: list again")]
    Slow {
        /// How many events the buffer holds.
        buffered_max: usize,
    },
    /// The next event is no longer kept, or relaxed writes that this watcher saw were lost. List again.
    #[error("the next event is compacted; the oldest revision kept is {oldest}: list again")]
    Compacted {
        /// The oldest revision that can be watched from.
        oldest: Revision,
    },
    /// The past events could not be read.
    #[error("cannot read past events")]
    Read(#[source] Error),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}
