//! The whole content of a store in one file, and back.
//!
//! # Format, version 1 (numbers big-endian)
//!
//! ```text
//! "MSTSNAP\n"  version, 4 bytes  length of the header, 4 bytes  header in JSON: revision, count, time
//! per entry:   length of the key, 4 bytes  length of the value, 4 bytes  key  value
//! at the end:  0, 4 bytes  SHA-256 of everything before, 32 bytes
//! ```
//!
//! # Guarantees
//!
//! - A snapshot is the state at one revision, however many writes go on meanwhile.
//! - Cut off or changed, it is refused before anything is touched. A restore overwrites nothing.
//! - What is encrypted in the store is so in the snapshot: take it below [`Encrypted`](crate::Encrypted).
//! - A restored store counts on from [`REVISION_GAP`] after the snapshot's revision, and every entry is new there. So no
//!   revision that anybody saw of the old store is given out again, caches take the restored state for newer than what
//!   they hold, and whoever watched lists again. (etcd's `--bump-revision --mark-compacted`, with the same gap.)
//!
//! # Deliberately absent
//!
//! The past: only the present states are saved. Increments: control-plane state is small.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{Stream, StreamExt as _, stream};
use ring::digest::{self, SHA256};
use serde::{Deserialize, Serialize};

use crate::{EmbeddedStore, Entry, Error, EtcdSettings, KEY_BYTES_MAX, Result, Revision, Store, etcd};

const MAGIC: &[u8; 8] = b"MSTSNAP\n";
const VERSION: u32 = 1;
/// How many entries are read from the store at a time.
const PAGE: usize = 500;
/// Beyond what any store of ours takes: larger lengths are damage, not data.
const VALUE_BYTES_MAX: usize = 64 << 20;
const HEADER_BYTES_MAX: usize = 64 << 10;

/// How far a restored store counts on beyond the snapshot: more than a store can have written since, at ten thousand writes
/// a second for a day.
pub const REVISION_GAP: Revision = 1_000_000_000;

/// What a snapshot says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The revision it shows.
    pub revision: Revision,
    /// How many entries it has.
    pub count: u64,
    /// When it was begun, in seconds since 1970.
    pub created_unix_s: u64,
}

/// What a whole and unchanged snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The version of its format.
    pub version: u32,
    /// What it says about itself.
    #[serde(flatten)]
    pub header: Header,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
    /// Entries by the first two parts of their keys: group and resource.
    pub entries: BTreeMap<String, u64>,
    /// The names of the keys that values are encrypted with.
    pub encrypted_with: Vec<String>,
}

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is something else, or damaged.
    #[error("{} cannot be used: {reason}", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] Error),
}

/// The state of a stream that is being made.
struct Saving {
    store: Arc<dyn Store>,
    header: Header,
    digest: digest::Context,
    after: Option<Arc<str>>,
    written: u64,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Header,
    Entries,
    End,
}

/// The snapshot of `store` as it is now, piece by piece; `created_unix_s` is the time now. The store may be compacted no
/// further than its present revision until the last piece is taken.
///
/// Errors, before or as the last piece: those of reading. A stream that ends without one is whole.
pub async fn save(
    store: Arc<dyn Store>,
    created_unix_s: u64,
) -> Result<impl Stream<Item = Result<Bytes>> + Send + 'static> {
    let first = store.range("", None, Some(1), None).await?;
    let count = first.entries.len() as u64 + first.remaining;
    let header = Header { revision: first.revision, count, created_unix_s };
    let digest = digest::Context::new(&SHA256);
    let saving = Saving { store, header, digest, after: None, written: 0, stage: Stage::Header };
    Ok(stream::try_unfold(saving, |mut saving| async move {
        let piece = saving.next().await?;
        Ok(piece.map(|piece| (piece, saving)))
    })
    .boxed())
}

impl Saving {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let mut piece = BytesMut::new();
        match self.stage {
            Stage::Header => {
                // Numbers always serialise.
                let header = serde_json::to_vec(&self.header).unwrap_or_default();
                piece.put_slice(MAGIC);
                piece.put_u32(VERSION);
                piece.put_u32(header.len() as u32);
                piece.put_slice(&header);
                self.stage = Stage::Entries;
            }
            Stage::Entries => {
                let page = self.store.range("", self.after.as_deref(), Some(PAGE), Some(self.header.revision)).await?;
                for Entry { key, value, .. } in &page.entries {
                    piece.put_u32(key.len() as u32);
                    piece.put_u32(value.len() as u32);
                    piece.put_slice(key.as_bytes());
                    piece.put_slice(value);
                }
                self.written += page.entries.len() as u64;
                self.after = page.entries.last().map(|entry| Arc::clone(&entry.key)).or(self.after.take());
                if !page.more() {
                    piece.put_u32(0);
                    self.digest.update(&piece);
                    piece.put_slice(self.digest.clone().finish().as_ref());
                    self.stage = Stage::End;
                    return Ok(Some(piece.freeze()));
                }
            }
            Stage::End => return Ok(None),
        }
        self.digest.update(&piece);
        Ok(Some(piece.freeze()))
    }
}

/// A snapshot's file, read from its beginning.
struct Reading {
    path: PathBuf,
    file: BufReader<File>,
    digest: digest::Context,
    bytes: u64,
    header: Header,
    done: bool,
}

impl Reading {
    fn open(path: &Path) -> Result<Self, SnapshotError> {
        let file = File::open(path).map_err(|source| SnapshotError::Read { path: path.to_owned(), source })?;
        let header = Header { revision: 0, count: 0, created_unix_s: 0 };
        let digest = digest::Context::new(&SHA256);
        let file = BufReader::with_capacity(1 << 20, file);
        let mut reading = Self { path: path.to_owned(), file, digest, bytes: 0, header, done: false };
        reading.begin()?;
        Ok(reading)
    }

    fn begin(&mut self) -> Result<(), SnapshotError> {
        if self.read(MAGIC.len()).is_ok_and(|magic| magic == MAGIC) {
            let version = self.number()?;
            if version != VERSION {
                return Err(self.unusable(format!("it has format {version}, this version of mainstay reads {VERSION}")));
            }
            let length = self.number()? as usize;
            if length <= HEADER_BYTES_MAX {
                let header = self.read(length)?;
                self.header = serde_json::from_slice(&header).map_err(|error| self.unusable(error.to_string()))?;
                return Ok(());
            }
        }
        Err(self.unusable("it is not a snapshot of mainstay".to_owned()))
    }

    fn unusable(&self, reason: String) -> SnapshotError {
        SnapshotError::Unusable { path: self.path.clone(), reason }
    }

    fn read(&mut self, length: usize) -> Result<Vec<u8>, SnapshotError> {
        let mut bytes = vec![0; length];
        self.file.read_exact(&mut bytes).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => self.unusable("it is cut off".to_owned()),
            _ => SnapshotError::Read { path: self.path.clone(), source },
        })?;
        self.digest.update(&bytes);
        self.bytes += length as u64;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u32, SnapshotError> {
        let bytes = self.read(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// The next entry; `None` behind the last one, where the digest must follow.
    fn entry(&mut self) -> Result<Option<(String, Bytes)>, SnapshotError> {
        let key_length = self.number()? as usize;
        if key_length == 0 {
            return Ok(None);
        }
        let value_length = self.number()? as usize;
        if key_length > KEY_BYTES_MAX || value_length > VALUE_BYTES_MAX {
            return Err(self.unusable("it is damaged: an entry has an impossible length".to_owned()));
        }
        let key = String::from_utf8(self.read(key_length)?);
        let key = key.map_err(|_| self.unusable("it is damaged: a key is not UTF-8".to_owned()))?;
        Ok(Some((key, self.read(value_length)?.into())))
    }
}

impl Iterator for Reading {
    type Item = Result<(String, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let entry = self.entry().transpose();
        self.done = !matches!(entry, Some(Ok(_)));
        entry.map(|entry| entry.map_err(|error| Error::Settings(error.to_string())))
    }
}

/// Reads a whole snapshot and checks it.
///
/// Errors: [`SnapshotError::Read`], [`SnapshotError::Unusable`].
pub fn verify(path: &Path) -> Result<Summary, SnapshotError> {
    let mut reading = Reading::open(path)?;
    let mut entries = BTreeMap::new();
    let mut encrypted_with = Vec::new();
    let mut found = 0;
    while let Some((key, value)) = reading.entry()? {
        found += 1;
        let kind = key.split('/').skip(1).take(2).collect::<Vec<_>>().join("/");
        *entries.entry(kind).or_default() += 1;
        if let Some(name) = crate::encryption::key_of(&value)
            && !encrypted_with.iter().any(|known| known == name)
        {
            encrypted_with.push(name.to_owned());
        }
    }
    let wanted = reading.digest.clone().finish();
    let digest = reading.read(wanted.as_ref().len())?;
    let header = reading.header.clone();
    if digest != wanted.as_ref() {
        return Err(reading.unusable("it is damaged: its checksum does not fit".to_owned()));
    }
    if found != header.count {
        return Err(reading.unusable(format!("it is damaged: {found} entries instead of {}", header.count)));
    }
    let at = reading.file.stream_position().unwrap_or(reading.bytes);
    let length = reading.file.get_ref().metadata().map_or(at, |metadata| metadata.len());
    if length != at {
        return Err(reading.unusable(format!("it is damaged: {} bytes too many", length.saturating_sub(at))));
    }
    encrypted_with.sort();
    let sha256 = wanted.as_ref().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    Ok(Summary { version: VERSION, header, bytes: length, sha256, entries, encrypted_with })
}

/// Makes a store in `directory` out of a snapshot; there must be none yet. Blocks on the disk.
///
/// Errors: those of [`verify`], [`Error::NotEmpty`], [`Error::InUse`], and those of writing; after any of them there is no
/// store.
pub fn restore_embedded(path: &Path, directory: &Path) -> Result<Summary, SnapshotError> {
    let summary = verify(path)?;
    EmbeddedStore::restore(directory, summary.header.revision + REVISION_GAP, Reading::open(path)?)?;
    Ok(summary)
}

/// Fills a root of an etcd out of a snapshot; nothing must be there yet, and no server may run on it.
///
/// Errors: those of [`verify`], [`Error::NotEmpty`], and those of writing, after which what is there must be deleted.
pub async fn restore_etcd(path: &Path, settings: EtcdSettings) -> Result<Summary, SnapshotError> {
    let summary = verify(path)?;
    etcd::restore(settings, summary.header.revision + REVISION_GAP, Reading::open(path)?).await?;
    Ok(summary)
}
