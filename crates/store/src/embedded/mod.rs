//! The store in one file of this machine.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::{Deleted, Durability, Entry, Error, Expect, Range, Result, Revision, Store, Watcher};

/// The limits of an [`EmbeddedStore`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// How much of the file is kept in memory, in bytes.
    pub cache_bytes: usize,
    /// The largest value, in bytes.
    pub value_bytes_max: usize,
    /// How many writes may wait for the disk before more are refused as [`Error::Busy`].
    pub queue_max: usize,
    /// How many events a watcher may be behind before its watch is ended.
    pub watch_buffer_max: usize,
    /// How long past revisions are kept.
    pub keep_for: Duration,
    /// How many past revisions are kept, if that is less.
    pub keep_revisions: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cache_bytes: 16 << 20,
            value_bytes_max: 3 << 19,
            queue_max: 4096,
            watch_buffer_max: 4096,
            keep_for: Duration::from_secs(600),
            keep_revisions: 100_000,
        }
    }
}

/// A [`Store`] in the file `store.redb` of a directory.
#[derive(Debug)]
pub struct EmbeddedStore;

impl EmbeddedStore {
    /// Opens the store in `directory`, making both if they do not exist.
    pub fn open(_directory: &Path, _settings: Settings) -> Result<Self> {
        Err(Error::Closed)
    }

    /// A store without a file, gone when dropped: for tests.
    pub fn in_memory(_settings: Settings) -> Result<Self> {
        Err(Error::Closed)
    }
}

impl Store for EmbeddedStore {
    fn get<'a>(&'a self, _: &'a str, _: Option<Revision>) -> BoxFuture<'a, Result<(Option<Entry>, Revision)>> {
        Box::pin(async { Err(Error::Closed) })
    }
    fn range<'a>(
        &'a self,
        _: &'a str,
        _: Option<&'a str>,
        _: Option<usize>,
        _: Option<Revision>,
    ) -> BoxFuture<'a, Result<Range>> {
        Box::pin(async { Err(Error::Closed) })
    }
    fn count<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<u64>> {
        Box::pin(async { Err(Error::Closed) })
    }
    fn put_with<'a>(&'a self, _: &'a str, _: Bytes, _: Expect, _: Durability) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(async { Err(Error::Closed) })
    }
    fn delete<'a>(&'a self, _: &'a str, _: Expect) -> BoxFuture<'a, Result<Deleted>> {
        Box::pin(async { Err(Error::Closed) })
    }
    fn watch<'a>(&'a self, _: &'a str, _: Revision) -> BoxFuture<'a, Result<Watcher>> {
        Box::pin(async { Err(Error::Closed) })
    }
    fn compact(&self, _: Revision) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Err(Error::Closed) })
    }
    fn revision(&self) -> BoxFuture<'_, Result<Revision>> {
        Box::pin(async { Err(Error::Closed) })
    }
}
