//! The revisioned key-value store under the API server.
//!
//! Role: one trait, [`Store`], with the semantics of etcd (<https://etcd.io/docs/v3.5/learning/api/>): one global revision
//! counts every change, a write may demand the revision it replaces, reads and watches may start at a past revision until
//! it is compacted. [`Embedded`] implements it in one file with `redb`; etcd itself fits behind the same trait.
//!
//! Guarantees:
//! - *Durable before answered.* A write with [`Durability::Full`] is answered after it is on disk.
//! - *Revisions never go back*, also over a crash, and a revision that somebody saw is never given to another change.
//! - *Watches have neither gap nor duplicate*; one that falls behind its bounded buffer ends with [`WatchError::Slow`].
//! - *Bounded.* Waiting writes and watch buffers have limits; over them the answer is [`StoreError::Busy`].
//!
//! Deliberately absent: transactions over several keys, and leases on keys: the API server needs neither.

mod embedded;
mod watch;

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

pub use embedded::{Embedded, OpenError, Settings};
pub use watch::{WatchError, Watcher};

/// A number of the global change counter; the first change has revision 1.
pub type Revision = u64;

/// A key's value at some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key, for example `/core/pods/shop/front-1`.
    pub key: Arc<str>,
    /// The value as it was written.
    pub value: Bytes,
    /// The revision that created the key, since it last did not exist.
    pub create_revision: Revision,
    /// The revision that wrote this value.
    pub mod_revision: Revision,
}

/// What a write demands of the key's present state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key's value was written by this revision.
    Revision(Revision),
    /// Nothing.
    Any,
}

/// How safe a write is when it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// On disk.
    Full,
    /// Visible to everybody, on disk with the next full write and after a second at the latest: for heartbeats, whose
    /// loss in a crash does not matter.
    Relaxed,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The key that changed.
    pub key: Arc<str>,
    /// The change's revision.
    pub revision: Revision,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// It was written.
    Put {
        /// The value now.
        entry: Entry,
        /// The value before, if there was one and it is not compacted.
        previous: Option<Entry>,
    },
    /// It was deleted.
    Delete {
        /// The last value.
        previous: Entry,
    },
}

/// Part of a range read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// In key order.
    pub entries: Vec<Entry>,
    /// The revision of the reading.
    pub revision: Revision,
    /// Whether the limit cut the range short.
    pub more: bool,
    /// How many entries follow; 0 unless `more`.
    pub remaining: usize,
}

/// Why the store did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The key is not in the state that the write demanded.
    #[error("the key is not in the expected state")]
    Conflict {
        /// The key's entry, if it exists.
        current: Option<Entry>,
    },
    /// The revision is no longer kept.
    #[error("the revision is compacted; the oldest kept is {oldest}")]
    Compacted {
        /// The oldest revision that can be read.
        oldest: Revision,
    },
    /// The revision does not exist yet.
    #[error("revision {asked} does not exist yet; the current one is {current}")]
    Future {
        /// What was asked for.
        asked: Revision,
        /// What there is.
        current: Revision,
    },
    /// Too many writes are waiting.
    #[error("too many writes are waiting")]
    Busy,
    /// The disk did not take the write; nothing of it is stored.
    #[error("the write could not be stored (is the disk full?): {0}")]
    Write(String),
    /// The file could not be read.
    #[error("the store could not be read: {0}")]
    Read(String),
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

/// The revisioned store. All methods may be called from any task or thread.
pub trait Store: Send + Sync + 'static {
    /// The entry of a key, now or at a revision, and the revision of the reading.
    fn get<'a>(
        &'a self,
        key: &'a str,
        at: Option<Revision>,
    ) -> BoxFuture<'a, Result<(Option<Entry>, Revision), StoreError>>;

    /// The entries whose keys start with `prefix` and come after `start_after`, at most `limit`.
    fn range<'a>(
        &'a self,
        prefix: &'a str,
        start_after: Option<&'a str>,
        limit: Option<usize>,
        at: Option<Revision>,
    ) -> BoxFuture<'a, Result<Range, StoreError>>;

    /// Writes a key.
    fn put(
        &self,
        key: Arc<str>,
        value: Bytes,
        expect: Expect,
        durability: Durability,
    ) -> BoxFuture<'_, Result<Entry, StoreError>>;

    /// Deletes a key; answers its last value with the deletion's revision as `mod_revision`.
    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<Entry, StoreError>>;

    /// The changes of keys that start with `prefix`, after revision `from`.
    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Watcher, StoreError>>;

    /// Forgets what was before `revision`, except for what is still current.
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The current revision.
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>>;
}
