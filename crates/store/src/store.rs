//! The interface: one trait, usable as `Arc<dyn Store>`.

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::{Defragmented, Deleted, Durability, Entry, Expect, Range, Result, Revision, Watcher};

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;

/// A revisioned key-value store. All methods may be called at the same time from any number of tasks of a tokio runtime.
///
/// Keys begin with `/`, and so do prefixes; an empty prefix is every key.
///
/// A future that is dropped before it ends leaves a write's outcome open: it may still be made.
pub trait Store: Send + Sync + 'static {
    /// Reads one key, as of `at` (the present if `None`); the second value is the store's present revision.
    ///
    /// Errors: [`Compacted`](crate::Error::Compacted), [`Future`](crate::Error::Future).
    fn get<'a>(&'a self, key: &'a str, at: Option<Revision>) -> BoxFuture<'a, Result<(Option<Entry>, Revision)>>;

    /// Reads all keys that begin with `prefix`, in ascending order, as of `at` (the present if `None`): at most `limit` of
    /// those behind `start_after`. Pages of one list ask for the same `at`: the first page's revision.
    ///
    /// Errors: [`Compacted`](crate::Error::Compacted), [`Future`](crate::Error::Future).
    fn range<'a>(
        &'a self,
        prefix: &'a str,
        start_after: Option<&'a str>,
        limit: Option<usize>,
        at: Option<Revision>,
    ) -> BoxFuture<'a, Result<Range>>;

    /// Counts the keys that begin with `prefix`, at present.
    fn count<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<u64>>;

    /// Writes one key if `expect` holds, and answers when the write is durable.
    ///
    /// Errors: [`Conflict`](crate::Error::Conflict), [`Busy`](crate::Error::Busy), and those of size and storage.
    fn put<'a>(&'a self, key: &'a str, value: Bytes, expect: Expect) -> BoxFuture<'a, Result<Entry>> {
        self.put_with(key, value, expect, Durability::Immediate)
    }

    /// [`put`](Store::put), with a choice of when to answer. An implementation may always be durable.
    fn put_with<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expect: Expect,
        durability: Durability,
    ) -> BoxFuture<'a, Result<Entry>>;

    /// Removes one key if it exists and `expect` holds, and answers when that is durable.
    ///
    /// Errors: as for [`put`](Store::put); a key that does not exist is a [`Conflict`](crate::Error::Conflict) whose
    /// `current` is `None`.
    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<Deleted>>;

    /// Watches all keys that begin with `prefix`: every change after revision `from` (exclusive), then what comes.
    ///
    /// When this returns, the watch stands: it misses no later write. Errors: [`Compacted`](crate::Error::Compacted),
    /// [`Future`](crate::Error::Future).
    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Watcher>>;

    /// Gives up everything needed only for reads at, or watches from, revisions before `revision`.
    ///
    /// Space is freed in the background. A revision already compacted is no error.
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<()>>;

    /// Gives disk space that compaction and deletion have freed back to the file system. Everything waits meanwhile: about
    /// a second for every hundred megabytes in use.
    fn defragment(&self) -> BoxFuture<'_, Result<Defragmented>>;

    /// The present revision: at least that of every acknowledged write.
    fn revision(&self) -> BoxFuture<'_, Result<Revision>>;
}
