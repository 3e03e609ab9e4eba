//! The layout of the file, and reading it.
//!
//! | table | key | value | says |
//! |---|---|---|---|
//! | `keys` | key | created, changed | what exists now; small, so that lists and counts walk few pages |
//! | `log` | revision | the change, with the value | every change still needed, appended in order |
//! | `history` | key, revision | the revision that ended it | which past states of a key are still readable |
//! | `meta` | name | number | see [`Meta`] |
//! | `lost` | start | end | revisions strictly between these were given out and died in a crash |
//!
//! A state written at revision *m* and superseded at *e* is what a read at revision *r* sees if *m* ≤ *r* < *e*. A create
//! touches `keys` and `log`; an update or a delete `history` too. Values are written once and never move.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use redb::{ReadTransaction, ReadableTable, TableDefinition};

use super::values::{Value, Values};
use crate::{Change, Entry, Error, Event, Range, Revision};

/// One change: created at, previous revision (0: none), is a deletion, key, value.
pub(super) type Record = (u64, u64, bool, &'static str, &'static [u8]);

pub(super) const KEYS: TableDefinition<&str, (u64, u64)> = TableDefinition::new("keys");
pub(super) const LOG: TableDefinition<u64, Record> = TableDefinition::new("log");
pub(super) const HISTORY: TableDefinition<(&str, u64), u64> = TableDefinition::new("history");
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
pub(super) const LOST: TableDefinition<u64, u64> = TableDefinition::new("lost");

/// The version of this layout.
pub(super) const FORMAT: u64 = 1;

/// What redb says, before the caller learns in which step.
pub(super) type Stored<T> = Result<T, redb::Error>;

/// The numbers in `meta`; an absent one is 0.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meta {
    /// The version of the layout.
    Format,
    /// A lower bound of the present revision, for when the log's last record does not say it.
    Floor,
    /// Reads and watches reach back to this revision.
    Compacted,
    /// What compaction left is removed from the tables up to this revision.
    Scavenged,
    /// Relaxed writes get revisions below this only; after a crash counting goes on from here.
    Reserved,
}

impl Meta {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Floor => "floor",
            Self::Compacted => "compacted",
            Self::Scavenged => "scavenged",
            Self::Reserved => "reserved",
        }
    }

    pub(super) fn read(self, meta: &impl ReadableTable<&'static str, u64>) -> Stored<u64> {
        Ok(meta.get(self.name())?.map_or(0, |value| value.value()))
    }
}

/// The last revision that these tables know of.
pub(super) fn last_revision(
    log: &impl ReadableTable<u64, Record>,
    meta: &impl ReadableTable<&'static str, u64>,
) -> Stored<Revision> {
    let logged = log.last()?.map_or(0, |(revision, _)| revision.value());
    Ok(logged.max(Meta::Floor.read(meta)?))
}

/// The state that the record at `revision` wrote; `None` if there is no such record or it is a deletion.
pub(super) fn entry(
    log: &impl ReadableTable<u64, Record>,
    revision: Revision,
    known_key: Option<&Arc<str>>,
) -> Stored<Option<Entry>> {
    let Some(record) = log.get(revision)? else { return Ok(None) };
    let (create_revision, _, deletion, key, value) = record.value();
    Ok((!deletion).then(|| Entry {
        key: known_key.map_or_else(|| Arc::from(key), Arc::clone),
        value: Bytes::copy_from_slice(value),
        create_revision,
        mod_revision: revision,
    }))
}

/// The present state of a key, last written at `revision`: from memory, else from the log.
pub(super) fn present(
    log: &impl ReadableTable<u64, Record>,
    values: &Values,
    revision: Revision,
    key: &Arc<str>,
) -> Stored<Option<Entry>> {
    let kept = values.lock().get(revision);
    match kept {
        Some(Value { create_revision, bytes }) => {
            Ok(Some(Entry { key: Arc::clone(key), value: bytes, create_revision, mod_revision: revision }))
        }
        None => entry(log, revision, Some(key)),
    }
}

/// A consistent view of all tables at one moment.
pub(super) struct Snapshot<'v> {
    transaction: ReadTransaction,
    values: &'v Values,
}

/// What one step of reading past events found.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    /// The events of the prefix.
    pub(super) events: Vec<Arc<Event>>,
    /// All events up to this revision were looked at.
    pub(super) through: Revision,
}

/// How much one step of reading past events may look at.
const CHUNK_RECORDS_MAX: usize = 1024;
/// How many bytes of values one step of reading past events may return, give or take one event.
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// A failed check of a revision, or a failed read.
pub(super) enum ReadFailure {
    Refused(Error),
    Storage(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for ReadFailure {
    fn from(error: E) -> Self {
        Self::Storage(error.into())
    }
}

impl<'v> Snapshot<'v> {
    pub(super) fn new(transaction: ReadTransaction, values: &'v Values) -> Self {
        Self { transaction, values }
    }

    /// The revision this view shows.
    pub(super) fn revision(&self) -> Stored<Revision> {
        last_revision(&self.transaction.open_table(LOG)?, &self.transaction.open_table(META)?)
    }

    /// Whether everything after `revision` is still known: that it is neither past, nor future, nor lost. Returns the
    /// present revision.
    pub(super) fn check(&self, revision: Revision) -> Result<Revision, ReadFailure> {
        let current = self.revision()?;
        let oldest = Meta::Compacted.read(&self.transaction.open_table(META)?)?;
        if revision > current {
            return Err(ReadFailure::Refused(Error::Future { current }));
        }
        if revision < oldest {
            return Err(ReadFailure::Refused(Error::Compacted { oldest }));
        }
        if let Some(range) = self.transaction.open_table(LOST)?.range(..revision)?.next_back() {
            let oldest = range?.1.value();
            if revision < oldest {
                return Err(ReadFailure::Refused(Error::Compacted { oldest }));
            }
        }
        Ok(current)
    }

    /// See [`crate::Store::get`].
    pub(super) fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<Entry>, Revision), ReadFailure> {
        let current = match at {
            Some(at) => self.check(at)?,
            None => self.revision()?,
        };
        let at = at.unwrap_or(current);
        let newest = self.transaction.open_table(KEYS)?.get(key)?.map(|state| state.value().1);
        let written = match newest {
            Some(written) if written <= at => Some(written),
            _ if at == current => None,
            _ => self.past(key, at)?,
        };
        let found = match written {
            Some(written) => present(&self.transaction.open_table(LOG)?, self.values, written, &Arc::from(key))?,
            None => None,
        };
        Ok((found, current))
    }

    /// The revision of the state, since superseded, that `key` had at `at`.
    fn past(&self, key: &str, at: Revision) -> Stored<Option<Revision>> {
        let history = self.transaction.open_table(HISTORY)?;
        let Some(state) = history.range((key, 0)..=(key, at))?.next_back() else { return Ok(None) };
        let (state, end) = state?;
        Ok((at < end.value()).then(|| state.value().1))
    }

    /// See [`crate::Store::range`].
    pub(super) fn range(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: Option<usize>,
        at: Option<Revision>,
    ) -> Result<Range, ReadFailure> {
        let current = match at {
            Some(at) => self.check(at)?,
            None => self.revision()?,
        };
        let revision = at.unwrap_or(current);
        let mut found: Vec<(Arc<str>, Revision)> = Vec::new();
        let mut remaining = 0;
        self.visible(prefix, start_after, (revision < current).then_some(revision), |key, written| {
            if limit.is_some_and(|limit| found.len() >= limit) {
                remaining += 1;
            } else {
                found.push((Arc::from(key), written));
            }
        })?;
        Ok(Range { entries: self.entries(found)?, revision, remaining })
    }

    /// The states of these keys that these revisions wrote, in the same order.
    fn entries(&self, found: Vec<(Arc<str>, Revision)>) -> Stored<Vec<Entry>> {
        let mut values: Vec<Option<Value>> = {
            let kept = self.values.lock();
            found.iter().map(|(_, written)| kept.get(*written)).collect()
        };
        // In the order of the log, so that each of its pages is read once.
        let mut missing: Vec<(Revision, usize)> = found
            .iter()
            .enumerate()
            .filter(|(i, _)| values[*i].is_none())
            .map(|(i, (_, written))| (*written, i))
            .collect();
        if !missing.is_empty() {
            missing.sort_unstable();
            let log = self.transaction.open_table(LOG)?;
            for (written, i) in &missing {
                let Some(record) = log.get(*written)? else { continue };
                let (create_revision, _, deletion, _, value) = record.value();
                values[*i] = (!deletion).then(|| Value { create_revision, bytes: Bytes::copy_from_slice(value) });
            }
            self.values.offer(missing.iter().filter_map(|(written, i)| Some((*written, values[*i].clone()?))));
        }
        let entry = |((key, mod_revision), value): ((Arc<str>, Revision), Option<Value>)| {
            let Value { create_revision, bytes } = value?;
            Some(Entry { key, value: bytes, create_revision, mod_revision })
        };
        Ok(found.into_iter().zip(values).filter_map(entry).collect())
    }

    /// See [`crate::Store::count`].
    pub(super) fn count(&self, prefix: &str) -> Stored<u64> {
        let mut count = 0;
        self.visible(prefix, None, None, |_, _| count += 1)?;
        Ok(count)
    }

    /// Visits every state that can be seen at `past` (the present if `None`), in order of the keys: the key and the
    /// revision that wrote the state.
    fn visible(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        past: Option<Revision>,
        mut visit: impl FnMut(&str, Revision),
    ) -> Stored<()> {
        let start = match start_after {
            Some(key) if key >= prefix => Bound::Excluded(key),
            _ => Bound::Included(prefix),
        };
        let superseded = match past {
            Some(at) => self.superseded(prefix, start, at)?,
            None => Vec::new(),
        };
        // Both lists are in order of the keys, and no key is in both: merge them.
        let mut superseded = superseded.iter().peekable();
        for state in self.transaction.open_table(KEYS)?.range::<&str>((start, Bound::Unbounded))? {
            let (key, state) = state?;
            let (key, (_, written)) = (key.value(), state.value());
            if !key.starts_with(prefix) {
                break;
            }
            while let Some((other, written)) = superseded.next_if(|(other, _)| &**other < key) {
                visit(other, *written);
            }
            if past.is_none_or(|at| written <= at) {
                visit(key, written);
            } else if let Some((_, written)) = superseded.next_if(|(other, _)| &**other == key) {
                visit(key, *written);
            }
        }
        superseded.for_each(|(key, written)| visit(key, *written));
        Ok(())
    }

    /// The states seen at `at` that something later ended.
    fn superseded(&self, prefix: &str, start: Bound<&str>, at: Revision) -> Stored<Vec<(Box<str>, Revision)>> {
        let start = match start {
            Bound::Excluded(key) => Bound::Excluded((key, u64::MAX)),
            Bound::Included(key) => Bound::Included((key, 0)),
            Bound::Unbounded => Bound::Unbounded,
        };
        let mut found = Vec::new();
        for state in self.transaction.open_table(HISTORY)?.range::<(&str, u64)>((start, Bound::Unbounded))? {
            let (state, end) = state?;
            let (key, written) = state.value();
            if !key.starts_with(prefix) {
                break;
            }
            if written <= at && at < end.value() {
                found.push((Box::from(key), written));
            }
        }
        Ok(found)
    }

    /// The events of `prefix` after `from`, up to `through` or as far as one step goes.
    pub(super) fn events(&self, prefix: &str, from: Revision, through: Revision) -> Result<Chunk, ReadFailure> {
        self.check(from)?;
        let log = self.transaction.open_table(LOG)?;
        let mut chunk = Chunk { events: Vec::new(), through };
        let mut bytes = 0;
        for (looked_at, record) in log.range(from + 1..=through)?.enumerate() {
            let (revision, record) = record?;
            let revision = revision.value();
            if looked_at >= CHUNK_RECORDS_MAX || bytes >= CHUNK_BYTES_MAX {
                chunk.through = revision - 1;
                break;
            }
            let (create_revision, previous, deletion, key, value) = record.value();
            if !key.starts_with(prefix) {
                continue;
            }
            let key = Arc::from(key);
            let previous = if previous == 0 { None } else { entry(&log, previous, Some(&key))? };
            let change = match previous {
                Some(previous) if deletion => Change::Delete { previous },
                previous => {
                    let value = Bytes::copy_from_slice(value);
                    let entry = Entry { key, value, create_revision, mod_revision: revision };
                    Change::Put { entry, previous }
                }
            };
            bytes += value.len();
            chunk.events.push(Arc::new(Event { revision, change }));
        }
        Ok(chunk)
    }
}
