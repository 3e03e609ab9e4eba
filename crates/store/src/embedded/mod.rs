//! The store in one file of this machine, over `redb` (<https://docs.rs/redb>).
//!
//! # Flow
//!
//! Reads open a snapshot of the file and never wait for writes. Writes go through a bounded queue to one thread
//! ([`writer`]) that commits them in groups and hands their events to the [`hub`], from where they reach the watchers.
//! The layout of the file is in [`tables`].
//!
//! # Guarantees
//!
//! Those of [`crate`]; after a crash redb rolls back to the last durable commit. A repair after a crash reads the whole
//! file: on the order of a second for every gigabyte.
//!
//! # Memory
//!
//! Three things, each with a limit: pages of the file ([`Settings::cache_bytes`]), the present values
//! ([`Settings::values_bytes`]), and what waits to be written or watched. Keys are not held in memory.

mod apply;
mod file;

mod tables;
mod values;
mod watcher;
mod writer;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use redb::{Database, ReadableDatabase};
use tokio::sync::oneshot;

use self::apply::Resumed;
use self::file::Directory;
use self::tables::{ReadFailure, Snapshot};
use self::values::Values;
use self::writer::{Operation, Request, Writer};
use crate::hub::Hub;
use crate::{
    Change, Defragmented, Deleted, Durability, Entry, Error, Event, Expect, KEY_BYTES_MAX, Range, Result, Revision,
    Store, Watcher,
};

/// The limits of an [`EmbeddedStore`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// How much of the file is kept in memory, in bytes.
    pub cache_bytes: usize,
    /// How many of the present values are kept in memory, in bytes.
    pub values_bytes: usize,
    /// The largest value, in bytes.
    pub value_bytes_max: usize,
    /// How many writes may wait for the disk before more are refused as [`Error::Busy`].
    pub queue_max: usize,
    /// How many bytes of values may wait for the disk before more are refused as [`Error::Busy`].
    pub queue_bytes_max: usize,
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
            values_bytes: 32 << 20,
            value_bytes_max: 3 << 19,
            queue_max: 4096,
            queue_bytes_max: 64 << 20,
            watch_buffer_max: 4096,
            keep_for: Duration::from_secs(600),
            keep_revisions: 100_000,
        }
    }
}

/// The state of the file.
#[derive(Debug)]
enum File {
    Open(Database),
    /// It could not be opened again after an error; the writer keeps trying.
    Broken,
    Closed,
}

/// What readers, watchers and the writer share.
#[derive(Debug)]
struct Core {
    /// The writer holds the lock shared, as readers do, and alone only to close or open the file.
    database: RwLock<File>,
    hub: Arc<Hub>,
    values: Values,
    /// `None` for a store in memory.
    directory: Option<Directory>,
    queued_bytes: AtomicUsize,
}

impl Core {
    /// Reads a snapshot; `step` is what an error says was being done.
    fn read<T, F: Into<ReadFailure>>(
        &self,
        step: &'static str,
        read: impl FnOnce(&Snapshot<'_>) -> std::result::Result<T, F>,
    ) -> Result<T> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = match &*database {
            File::Open(database) => database,
            File::Broken => return Err(broken(step)),
            File::Closed => return Err(Error::Closed),
        };
        let transaction = database.begin_read().map_err(storage(step))?;
        read(&Snapshot::new(transaction, &self.values)).map_err(|failure| match failure.into() {
            ReadFailure::Refused(error) => error,
            ReadFailure::Storage(error) => storage(step)(error),
        })
    }
}

impl Core {
    /// Moves what is in use to the front of the file and cuts the rest off; reads and writes wait.
    fn defragment(&self) -> Result<Defragmented> {
        let step = "defragment the file";
        let size = || self.directory.as_ref().map_or(0, Directory::file_bytes);
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let database = match &mut *database {
            File::Open(database) => database,
            File::Broken => return Err(broken(step)),
            File::Closed => return Err(Error::Closed),
        };
        let before_bytes = size();
        // An error leaves the file as it was, or as far as it came.
        while database.compact().map_err(storage(step))? {}
        Ok(Defragmented { before_bytes, after_bytes: size() })
    }
}

/// Says in which step redb failed.
fn storage<E: Into<redb::Error>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Storage { step, source: Arc::new(source.into()) }
}

/// Says that the file is not open, though it should be.
fn broken(step: &'static str) -> Error {
    storage(step)(std::io::Error::other("the file failed and cannot be opened again yet"))
}

/// A [`Store`] in the file `store.redb` of a directory that belongs to this process alone.
///
/// Dropping it persists everything and closes the file; that takes as long as a write.
#[derive(Debug)]
pub struct EmbeddedStore {
    core: Arc<Core>,
    settings: Settings,
    /// `None` only while dropping.
    queue: Option<SyncSender<Request>>,
    writer: Option<JoinHandle<()>>,
}

impl EmbeddedStore {
    /// Opens the store in `directory`, making both (0700, 0600) if they do not exist.
    ///
    /// This blocks on the disk: after a crash for as long as it takes to read the whole file. Errors: [`Error::Open`],
    /// [`Error::InUse`], [`Error::Unusable`], [`Error::DiskFull`].
    pub fn open(directory: &Path, settings: Settings) -> Result<Self> {
        let directory = Directory::open(directory)?;
        let (database, resumed) = directory.database(settings.cache_bytes)?;
        Self::start(database, resumed, Some(directory), settings)
    }

    /// A store without a file, gone when dropped: for tests.
    pub fn in_memory(settings: Settings) -> Result<Self> {
        let (database, resumed) = file::in_memory(settings.cache_bytes).map_err(storage("make a store in memory"))?;
        Self::start(database, resumed, None, settings)
    }

    /// Makes the store in `directory` out of `entries` (key, value), with revisions after `after`. Nobody can read or watch
    /// from before. Errors: [`Error::NotEmpty`] and those of [`EmbeddedStore::open`]; after any of them there is no store.
    pub(crate) fn restore(
        directory: &Path,
        after: Revision,
        entries: impl Iterator<Item = Result<(String, Bytes)>>,
    ) -> Result<()> {
        let directory = Directory::open(directory)?;
        let restored = directory.restore(after, entries);
        directory.leave();
        restored
    }

    fn start(database: Database, resumed: Resumed, directory: Option<Directory>, settings: Settings) -> Result<Self> {
        let hub = Arc::new(Hub::default());
        hub.advance(resumed.revision);
        let database = RwLock::new(File::Open(database));
        let core = Arc::new(Core {
            database,
            hub,
            values: Values::new(settings.values_bytes),
            directory,
            queued_bytes: AtomicUsize::new(0),
        });
        let (queue, requests) = sync_channel(settings.queue_max);
        let writer = Writer::new(Arc::clone(&core), settings.clone(), requests, resumed);
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| storage("start its thread")(redb::Error::Io(error)))?;
        Ok(Self { core, settings, queue: Some(queue), writer: Some(writer) })
    }

    /// Queues a change and waits for its outcome.
    async fn write(&self, operation: Operation) -> Result<Option<Arc<Event>>> {
        let queue = self.queue.as_ref().ok_or(Error::Closed)?;
        let bytes = operation.bytes();
        if self.core.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > self.settings.queue_bytes_max {
            self.core.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Error::Busy);
        }
        let (answer, outcome) = oneshot::channel();
        queue.try_send(Request { operation, answer }).map_err(|refused| {
            self.core.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            match refused {
                TrySendError::Full(_) => Error::Busy,
                TrySendError::Disconnected(_) => Error::Closed,
            }
        })?;
        outcome.await.unwrap_or(Err(Error::Closed))
    }

    /// Reads where blocking is allowed: what may take longer than a few microseconds.
    async fn read_apart<T: Send + 'static, F: Into<ReadFailure>>(
        &self,
        step: &'static str,
        read: impl FnOnce(&Snapshot<'_>) -> std::result::Result<T, F> + Send + 'static,
    ) -> Result<T> {
        let core = Arc::clone(&self.core);
        tokio::task::spawn_blocking(move || core.read(step, read)).await.unwrap_or(Err(Error::Closed))
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer had panicked");
        }
        // Watchers may outlive the store: they must not keep its file, nor the directory.
        *self.core.database.write().unwrap_or_else(PoisonError::into_inner) = File::Closed;
        if let Some(directory) = &self.core.directory {
            directory.leave();
        }
    }
}

fn checked_key(key: &str) -> Result<Arc<str>> {
    match key.len() {
        1..=KEY_BYTES_MAX => Ok(Arc::from(key)),
        bytes => Err(Error::KeyLength { bytes }),
    }
}

impl Store for EmbeddedStore {
    fn get<'a>(&'a self, key: &'a str, at: Option<Revision>) -> BoxFuture<'a, Result<(Option<Entry>, Revision)>> {
        Box::pin(async move { self.core.read("read a key", |snapshot| snapshot.get(key, at)) })
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        start_after: Option<&'a str>,
        limit: Option<usize>,
        at: Option<Revision>,
    ) -> BoxFuture<'a, Result<Range>> {
        let (prefix, start_after) = (prefix.to_owned(), start_after.map(str::to_owned));
        Box::pin(
            self.read_apart("read a range", move |snapshot| snapshot.range(&prefix, start_after.as_deref(), limit, at)),
        )
    }

    fn count<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<u64>> {
        let prefix = prefix.to_owned();
        Box::pin(self.read_apart("count keys", move |snapshot| snapshot.count(&prefix)))
    }

    fn put_with<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expect: Expect,
        durability: Durability,
    ) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(async move {
            let key = checked_key(key)?;
            let (bytes, max) = (value.len(), self.settings.value_bytes_max);
            if bytes > max {
                return Err(Error::ValueTooLarge { bytes, max });
            }
            match self.write(Operation::Put { key, value, expect, durability }).await?.as_deref() {
                Some(Event { change: Change::Put { entry, .. }, .. }) => Ok(entry.clone()),
                _ => Err(Error::Closed),
            }
        })
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<Deleted>> {
        Box::pin(async move {
            let key = checked_key(key)?;
            match self.write(Operation::Delete { key, expect }).await?.as_deref() {
                Some(Event { change: Change::Delete { previous }, revision }) => {
                    Ok(Deleted { entry: previous.clone(), revision: *revision })
                }
                _ => Err(Error::Closed),
            }
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Watcher>> {
        Box::pin(async move {
            // The subscription first: what is committed after the check then cannot be missed.
            let subscription = self.core.hub.subscribe(prefix, from, self.settings.watch_buffer_max);
            self.core.read("begin a watch", |snapshot| snapshot.check(from))?;
            Ok(Watcher::new(watcher::Source::new(Arc::clone(&self.core), subscription, from)))
        })
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.write(Operation::Compact { revision }).await.map(|_| ()) })
    }

    fn defragment(&self) -> BoxFuture<'_, Result<Defragmented>> {
        let core = Arc::clone(&self.core);
        Box::pin(
            async move { tokio::task::spawn_blocking(move || core.defragment()).await.unwrap_or(Err(Error::Closed)) },
        )
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision>> {
        Box::pin(async move {
            // A path to the method would be of one lifetime only.
            #[allow(clippy::redundant_closure_for_method_calls)]
            self.core.read("read the revision", |snapshot| snapshot.revision())
        })
    }
}
