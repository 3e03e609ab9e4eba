//! Reads: of now, and of the past.

use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, ReadTransaction, ReadableDatabase as _, ReadableTable};

use super::tables::{COMPACTED, CURRENT, HISTORY, LOG, META, PUT, REVISION};
use crate::{Entry, Event, EventKind, Range, Revision, StoreError};

pub(super) fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Read(error.to_string())
}

fn counter(transaction: &ReadTransaction, name: &str) -> Result<u64, StoreError> {
    let meta = transaction.open_table(META).map_err(failed)?;
    Ok(meta.get(name).map_err(failed)?.map_or(0, |value| value.value()))
}

/// The revision now.
pub(super) fn revision(db: &Database) -> Result<Revision, StoreError> {
    counter(&db.begin_read().map_err(failed)?, REVISION)
}

/// Checks that `at` can be read; answers it, or now, and whether it is now.
fn reading(transaction: &ReadTransaction, at: Option<Revision>) -> Result<(Revision, bool), StoreError> {
    let current = counter(transaction, REVISION)?;
    let oldest = counter(transaction, COMPACTED)?;
    match at {
        None => Ok((current, true)),
        Some(at) if at > current => Err(StoreError::Future { asked: at, current }),
        Some(at) if at < oldest => Err(StoreError::Compacted { oldest }),
        Some(at) => Ok((at, at == current)),
    }
}

/// An entry from a row of the history; `None` for a deletion.
pub(super) fn entry(key: &str, create_revision: u64, mod_revision: u64, row: &[u8]) -> Option<Entry> {
    let (tag, value) = row.split_first()?;
    let value = Bytes::copy_from_slice(value);
    (*tag == PUT).then(|| Entry { key: Arc::from(key), value, create_revision, mod_revision })
}

/// The newest version of `key` at or before `at`. Its creation is the oldest version since the last deletion.
pub(super) fn version(
    history: &impl ReadableTable<(&'static str, u64), &'static [u8]>,
    key: &str,
    at: Revision,
) -> Result<Option<Entry>, StoreError> {
    let mut versions = history.range((key, 0)..=(key, at)).map_err(failed)?.rev();
    let Some(newest) = versions.next() else { return Ok(None) };
    let (place, row) = newest.map_err(failed)?;
    let mod_revision = place.value().1;
    let mut create_revision = mod_revision;
    for older in versions {
        let (place, row) = older.map_err(failed)?;
        if row.value().first() != Some(&PUT) {
            break;
        }
        create_revision = place.value().1;
    }
    Ok(entry(key, create_revision, mod_revision, row.value()))
}

pub(super) fn get(db: &Database, key: &str, at: Option<Revision>) -> Result<(Option<Entry>, Revision), StoreError> {
    let transaction = db.begin_read().map_err(failed)?;
    let (revision, now) = reading(&transaction, at)?;
    let history = transaction.open_table(HISTORY).map_err(failed)?;
    if !now {
        return Ok((version(&history, key, revision)?, revision));
    }
    let current = transaction.open_table(CURRENT).map_err(failed)?;
    let Some(place) = current.get(key).map_err(failed)? else { return Ok((None, revision)) };
    let (create, modified) = place.value();
    let row = history.get((key, modified)).map_err(failed)?;
    Ok((row.and_then(|row| entry(key, create, modified, row.value())), revision))
}

pub(super) fn range(
    db: &Database,
    prefix: &str,
    start_after: Option<&str>,
    limit: Option<usize>,
    at: Option<Revision>,
) -> Result<Range, StoreError> {
    let transaction = db.begin_read().map_err(failed)?;
    let (revision, now) = reading(&transaction, at)?;
    let limit = limit.unwrap_or(usize::MAX);
    if !now {
        return past_range(&transaction, prefix, start_after, limit, revision);
    }
    let current = transaction.open_table(CURRENT).map_err(failed)?;
    let history = transaction.open_table(HISTORY).map_err(failed)?;
    let mut found = Range { entries: Vec::new(), revision, more: false, remaining: 0 };
    for row in current.range(start_after.unwrap_or(prefix)..).map_err(failed)? {
        let (key, place) = row.map_err(failed)?;
        let key = key.value();
        if !key.starts_with(prefix) {
            break;
        }
        if start_after == Some(key) {
            continue;
        }
        if found.entries.len() >= limit {
            found.more = true;
            found.remaining += 1;
            continue;
        }
        let (create, modified) = place.value();
        let row = history.get((key, modified)).map_err(failed)?;
        found.entries.extend(row.and_then(|row| entry(key, create, modified, row.value())));
    }
    Ok(found)
}

/// As the keys were: walks all versions, which is slower but only happens for later pages of a long list.
fn past_range(
    transaction: &ReadTransaction,
    prefix: &str,
    start_after: Option<&str>,
    limit: usize,
    at: Revision,
) -> Result<Range, StoreError> {
    let history = transaction.open_table(HISTORY).map_err(failed)?;
    let mut found = Range { entries: Vec::new(), revision: at, more: false, remaining: 0 };
    let mut last: Option<String> = start_after.map(str::to_owned);
    for row in history.range((start_after.unwrap_or(prefix), 0)..).map_err(failed)? {
        let (place, _) = row.map_err(failed)?;
        let key = place.value().0;
        if !key.starts_with(prefix) {
            break;
        }
        if last.as_deref() == Some(key) {
            continue;
        }
        last = Some(key.to_owned());
        let Some(entry) = version(&history, key, at)? else { continue };
        if found.entries.len() < limit {
            found.entries.push(entry);
        } else {
            found.more = true;
            found.remaining += 1;
        }
    }
    Ok(found)
}

/// The changes of `prefix` after `from` up to `to`.
pub(super) fn events(db: &Database, prefix: &str, from: Revision, to: Revision) -> Result<Vec<Event>, StoreError> {
    let transaction = db.begin_read().map_err(failed)?;
    let oldest = counter(&transaction, COMPACTED)?;
    if from < oldest {
        return Err(StoreError::Compacted { oldest });
    }
    let log = transaction.open_table(LOG).map_err(failed)?;
    let history = transaction.open_table(HISTORY).map_err(failed)?;
    let mut events = Vec::new();
    for row in log.range(from + 1..=to).map_err(failed)? {
        let (revision, key) = row.map_err(failed)?;
        let (revision, key) = (revision.value(), key.value());
        if !key.starts_with(prefix) {
            continue;
        }
        let previous = version(&history, key, revision - 1)?;
        let kind = match (version(&history, key, revision)?, previous) {
            (Some(entry), previous) => EventKind::Put { entry, previous },
            (None, Some(previous)) => EventKind::Delete { previous },
            (None, None) => continue,
        };
        events.push(Event { key: Arc::from(key), revision, kind });
    }
    Ok(events)
}
