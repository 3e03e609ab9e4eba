//! The store in one file, on `redb`.
//!
//! Layout: `current` maps a key to the revisions that created and last wrote it; `history` holds every value by key and
//! revision (first byte: 1 written, 0 deleted); `log` maps a revision to its key; `meta` holds the counters.
//!
//! Flow of a write: queue → one writer thread takes all that wait → one redb transaction, each write judged against the
//! state with the earlier ones → one fsync → answers, then events. So under load many writes share one fsync.

mod read;
mod tables;
mod writer;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use redb::{Database, DatabaseError};
use tokio::sync::{mpsc, oneshot};

use crate::watch::{Hub, watcher};
use crate::{Durability, Entry, Event, Expect, Range, Revision, Store, StoreError, Watcher};
use writer::{Change, Job};

/// Writes that may wait for the writer thread.
const QUEUE: usize = 16_384;

/// How the embedded store behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Memory for cached pages, in bytes.
    pub cache_bytes: usize,
    /// How long past revisions can be read.
    pub keep: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { cache_bytes: 8 * 1024 * 1024, keep: Duration::from_secs(600) }
    }
}

/// Why the file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory could not be made.
    #[error("cannot create the directory {path}: {source}")]
    Directory {
        /// The directory.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another server has it.
    #[error("the data directory {path} is in use by another mainstay server; stop that one first")]
    InUse {
        /// The directory.
        path: String,
    },
    /// The file is damaged or not a store.
    #[error("cannot open {path}: {reason}; restore it from a snapshot, or move it away to start empty")]
    Damaged {
        /// The file.
        path: String,
        /// What redb said.
        reason: String,
    },
    /// The writer thread could not be started.
    #[error("cannot start the writer thread: {0}")]
    Thread(std::io::Error),
}

/// The embedded store; dropping it ends its thread after what is queued.
pub struct Embedded {
    db: Arc<Database>,
    hub: Arc<Hub>,
    jobs: mpsc::Sender<Job>,
}

impl Embedded {
    /// Opens or creates the store in `directory`.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(directory: &Path, settings: &Settings) -> Result<Self, OpenError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let shown = directory.display().to_string();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| OpenError::Directory { path: shown.clone(), source })?;
        let file = directory.join("store.redb");
        let damaged = |reason: String| OpenError::Damaged { path: file.display().to_string(), reason };
        let db =
            Database::builder().set_cache_size(settings.cache_bytes).create(&file).map_err(|error| match error {
                DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path: shown.clone() },
                error => damaged(error.to_string()),
            })?;
        let revision = tables::prepare(&db).map_err(|error| damaged(error.to_string()))?;
        let (db, hub) = (Arc::new(db), Arc::new(Hub::new(revision)));
        let (jobs, queue) = mpsc::channel(QUEUE);
        let writer = writer::Writer::new(db.clone(), hub.clone(), revision, settings.keep);
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(OpenError::Thread)?;
        Ok(Self { db, hub, jobs })
    }

    /// Queues a change and waits for its outcome.
    async fn submit(
        &self,
        key: Arc<str>,
        change: Change,
        expect: Expect,
        durability: Durability,
    ) -> Result<Entry, StoreError> {
        let (answer, outcome) = oneshot::channel();
        self.jobs.try_send(Job::Write { key, change, expect, durability, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy,
            mpsc::error::TrySendError::Closed(_) => StoreError::Closed,
        })?;
        outcome.await.map_err(|_| StoreError::Closed)?
    }

    fn open_watch(&self, prefix: &str, from: Revision) -> Result<Watcher, StoreError> {
        // Listen first: what is told from now on arrives in the buffer, what was told before is in the log.
        let (events, told) = self.hub.listen(prefix);
        if from > told {
            return Err(StoreError::Future { asked: from, current: told });
        }
        let backlog: VecDeque<Arc<Event>> = if from < told {
            read::events(&self.db, prefix, from, told)?.into_iter().map(Arc::new).collect()
        } else {
            VecDeque::new()
        };
        Ok(watcher(backlog, events))
    }
}

impl Store for Embedded {
    fn get<'a>(
        &'a self,
        key: &'a str,
        at: Option<Revision>,
    ) -> BoxFuture<'a, Result<(Option<Entry>, Revision), StoreError>> {
        async move { read::get(&self.db, key, at) }.boxed()
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        start_after: Option<&'a str>,
        limit: Option<usize>,
        at: Option<Revision>,
    ) -> BoxFuture<'a, Result<Range, StoreError>> {
        async move { read::range(&self.db, prefix, start_after, limit, at) }.boxed()
    }

    fn put(
        &self,
        key: Arc<str>,
        value: Bytes,
        expect: Expect,
        durability: Durability,
    ) -> BoxFuture<'_, Result<Entry, StoreError>> {
        self.submit(key, Change::Put(value), expect, durability).boxed()
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<Entry, StoreError>> {
        self.submit(Arc::from(key), Change::Delete, expect, Durability::Full).boxed()
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Watcher, StoreError>> {
        async move { self.open_watch(prefix, from) }.boxed()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let (answer, outcome) = oneshot::channel();
            self.jobs.send(Job::Compact { revision, answer }).await.map_err(|_| StoreError::Closed)?;
            outcome.await.map_err(|_| StoreError::Closed)?
        }
        .boxed()
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        async move { read::revision(&self.db) }.boxed()
    }
}
