//! The data directory: who has it, the file in it, and room to fall back on when the disk is full.
//!
//! | file | what |
//! |---|---|
//! | `store.lock` | locked (`flock(2)`) by the process that uses the directory |
//! | `store.redb` | the store; made under another name, so that a crash never leaves half a file under this one |
//! | `store.reserve` | [`RESERVE_BYTES`] of nothing: given up when the disk is full, so that the file can be repaired and read |

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, ReadableDatabase};

use super::apply::{Resumed, Tables};
use super::tables::{FORMAT, Meta, Stored};
use super::values::Values;
use crate::{Error, Expect, Result, Revision};

/// How much disk is held back for repairing the file when the disk is full.
const RESERVE_BYTES: i64 = 4 << 20;

/// How many entries a restore writes at a time, and how much of the file it keeps in memory, in bytes.
const RESTORE_BATCH: usize = 1000;
const RESTORE_CACHE_BYTES: usize = 16 << 20;

/// An open data directory. Dropping it, or [`Directory::leave`], lets another process have it.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    lock: File,
}

fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

impl Directory {
    /// Makes the directory if need be, and takes it for this process.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Open { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed(path))?;
        let lock_path = path.join("store.lock");
        let lock = create_private(&lock_path).map_err(failed(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), lock }),
            Err(TryLockError::WouldBlock) => Err(Error::InUse { directory: path.to_owned() }),
            Err(TryLockError::Error(source)) => Err(Error::Open { path: lock_path, source }),
        }
    }

    /// Lets another process have the directory. The file must be closed.
    pub(super) fn leave(&self) {
        let _ = self.lock.unlock();
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How much disk the file takes.
    pub(super) fn file_bytes(&self) -> u64 {
        // Blocks of 512 bytes, whatever the file system's: stat(2).
        fs::metadata(self.path.join("store.redb")).map_or(0, |metadata| metadata.blocks() * 512)
    }

    /// Opens the file, making it if need be, repairing it if the last process crashed.
    pub(super) fn database(&self, cache_bytes: usize) -> Result<(Database, Resumed)> {
        let path = self.path.join("store.redb");
        if path.exists() {
            return open(&path, cache_bytes).map_err(|error| self.explain(&path, error));
        }
        let unfinished = self.path.join("store.redb.new");
        let make = || -> Stored<(Database, Resumed)> {
            match fs::remove_file(&unfinished) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
            let opened = open(&unfinished, cache_bytes)?;
            fs::rename(&unfinished, &path)?;
            File::open(&self.path)?.sync_all()?;
            Ok(opened)
        };
        make().map_err(|error| self.explain(&path, error))
    }

    fn explain(&self, path: &Path, error: redb::Error) -> Error {
        if is_disk_full(&error) {
            return Error::DiskFull { directory: self.path.clone() };
        }
        let path = path.to_owned();
        match error {
            redb::Error::DatabaseAlreadyOpen => Error::InUse { directory: self.path.clone() },
            redb::Error::Io(source) if source.kind() != io::ErrorKind::InvalidData => Error::Open { path, source },
            redb::Error::Io(source) => Error::Unusable { path, reason: format!("it is not a store file ({source})") },
            other => Error::Unusable { path, reason: other.to_string() },
        }
    }

    /// Makes sure that there is something to fall back on. Errors when the disk is too full for that.
    pub(super) fn reserve(&self) -> io::Result<()> {
        let path = self.path.join("store.reserve");
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == RESERVE_BYTES as u64) {
            return Ok(());
        }
        let file = create_private(&path)?;
        nix::fcntl::posix_fallocate(&file, 0, RESERVE_BYTES).map_err(|error| {
            // Half a reserve on a full disk would only stand in the way.
            self.release();
            error.into()
        })
    }

    /// Gives up what [`Self::reserve`] took.
    pub(super) fn release(&self) {
        let _ = fs::remove_file(self.path.join("store.reserve"));
    }
}

impl Directory {
    /// Makes the file out of `entries` (key, value), all of them new, with revisions after `after`.
    pub(super) fn restore(
        &self,
        after: Revision,
        entries: impl Iterator<Item = Result<(String, Bytes)>>,
    ) -> Result<()> {
        let path = self.path.join("store.redb");
        if path.exists() {
            return Err(Error::NotEmpty { place: self.path.display().to_string() });
        }
        let unfinished = self.path.join("store.redb.restore");
        let explain = |error: redb::Error| self.explain(&unfinished, error);
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(explain(error.into())),
            _ => {}
        }
        let (database, _) = open(&unfinished, RESTORE_CACHE_BYTES).map_err(explain)?;
        let mut entries = entries.peekable();
        let mut last = after;
        while entries.peek().is_some() {
            let batch = entries.by_ref().take(RESTORE_BATCH).collect::<Result<Vec<_>>>()?;
            last = fill(&database, last, &batch).map_err(explain)?;
        }
        let finish = || -> Stored<()> {
            let transaction = database.begin_write()?;
            let mut tables = Tables::open(&transaction)?;
            tables.set_meta(Meta::Floor, last)?;
            tables.set_meta(Meta::Compacted, last)?;
            tables.set_meta(Meta::Scavenged, last)?;
            drop(tables);
            transaction.commit()?;
            Ok(())
        };
        finish().map_err(explain)?;
        drop(database);
        let publish = || -> Stored<()> {
            fs::rename(&unfinished, &path)?;
            Ok(File::open(&self.path)?.sync_all()?)
        };
        publish().map_err(explain)
    }
}

/// Writes `batch` with the revisions after `last`; returns the last of them.
fn fill(database: &Database, last: Revision, batch: &[(String, Bytes)]) -> Stored<Revision> {
    let transaction = database.begin_write()?;
    let mut tables = Tables::open(&transaction)?;
    let mut last = last;
    for (key, value) in batch {
        // Absent keys only: a snapshot has each once.
        if tables.put(&Values::new(0), last + 1, &Arc::from(&**key), value, Expect::Absent)?.is_ok() {
            last += 1;
        }
    }
    drop(tables);
    transaction.commit()?;
    Ok(last)
}

/// Opens a file and makes its tables ready.
fn open(path: &Path, cache_bytes: usize) -> Stored<(Database, Resumed)> {
    let database = redb::Builder::new().set_cache_size(cache_bytes).create_file(create_private(path)?)?;
    let resumed = prepare(&database)?;
    Ok((database, resumed))
}

/// Opens a store in memory.
pub(super) fn in_memory(cache_bytes: usize) -> Stored<(Database, Resumed)> {
    let backend = redb::backends::InMemoryBackend::new();
    let database = redb::Builder::new().set_cache_size(cache_bytes).create_with_backend(backend)?;
    let resumed = prepare(&database)?;
    Ok((database, resumed))
}

fn prepare(database: &Database) -> Stored<Resumed> {
    let foreign = database.begin_read()?.list_tables()?.next().is_some();
    let transaction = database.begin_write()?;
    let mut tables = Tables::open(&transaction)?;
    match tables.get_meta(Meta::Format)? {
        FORMAT => {}
        0 if !foreign => tables.set_meta(Meta::Format, FORMAT)?,
        0 => return Err(redb::Error::Corrupted("its tables are not those of a mainstay store".to_owned())),
        newer => {
            let reason = format!("it has format {newer}, this version of mainstay reads format {FORMAT}");
            return Err(redb::Error::Corrupted(reason));
        }
    }
    let resumed = tables.resume()?;
    drop(tables);
    transaction.commit()?;
    Ok(resumed)
}

/// Whether an error of redb says that there is no room.
pub(super) fn is_disk_full(error: &redb::Error) -> bool {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    matches!(error, redb::Error::Io(source) if full.contains(&source.kind()))
}
