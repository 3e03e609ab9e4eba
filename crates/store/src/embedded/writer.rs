//! The writer thread: the only one that changes the file.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use redb::{Database, ReadableTable, Table, WriteTransaction};
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};

use super::read::{self, failed};
use super::tables::{COMPACTED, CURRENT, DELETED, HISTORY, LOG, META, PUT, RESERVED, REVISION};
use crate::watch::Hub;
use crate::{Durability, Entry, Event, EventKind, Expect, Revision, StoreError};

/// Writes that share one transaction at most: bounds how long the first of them waits.
const BATCH: usize = 2048;
/// How many revisions are reserved ahead of relaxed writes.
const RESERVE: u64 = 100_000;
/// How long a relaxed write may be missing on disk.
const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// How often old revisions are forgotten.
const COMPACT_EVERY: Duration = Duration::from_secs(30);
/// Revisions forgotten in one transaction, so that writers do not wait long.
const COMPACT_STEP: u64 = 5_000;

pub(super) enum Change {
    Put(Bytes),
    Delete,
}

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Job {
    Write { key: Arc<str>, change: Change, expect: Expect, durability: Durability, answer: Answer<Entry> },
    Compact { revision: Revision, answer: Answer<()> },
}

pub(super) struct Writer {
    db: Arc<Database>,
    hub: Arc<Hub>,
    revision: Revision,
    reserved: Revision,
    /// Since when relaxed writes are not on disk.
    unflushed: Option<Instant>,
    keep: Duration,
    /// Which revision was current when; the oldest tells what may be forgotten.
    marks: VecDeque<(Instant, Revision)>,
}

/// What a batch has come to before it is committed.
struct Outcome {
    answers: Vec<(Answer<Entry>, Result<Entry, StoreError>)>,
    events: Vec<Event>,
}

struct Tables<'t> {
    current: Table<'t, &'static str, (u64, u64)>,
    history: Table<'t, (&'static str, u64), &'static [u8]>,
    log: Table<'t, u64, &'static str>,
}

impl Writer {
    pub(super) fn new(db: Arc<Database>, hub: Arc<Hub>, revision: Revision, keep: Duration) -> Self {
        Self { db, hub, revision, reserved: revision, unflushed: None, keep, marks: VecDeque::new() }
    }

    /// Serves the queue until it is closed.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        // A tiny runtime only for waiting with a time limit.
        let Ok(clock) = runtime::Builder::new_current_thread().enable_time().build() else { return };
        let mut batch = Vec::new();
        loop {
            let wait = self.unflushed.map_or(COMPACT_EVERY, |since| FLUSH_AFTER.saturating_sub(since.elapsed()));
            let got = clock.block_on(async { tokio::time::timeout(wait, queue.recv_many(&mut batch, BATCH)).await });
            match got {
                Ok(0) => break,
                Ok(_) => self.serve(&mut batch),
                Err(_) => self.flush(),
            }
            self.forget_old();
        }
        self.flush();
    }

    fn serve(&mut self, batch: &mut Vec<Job>) {
        let mut writes = Vec::new();
        for job in batch.drain(..) {
            match job {
                Job::Compact { revision, answer } => drop(answer.send(self.compact(revision))),
                Job::Write { .. } => writes.push(job),
            }
        }
        if writes.is_empty() {
            return;
        }
        let durable = writes.iter().any(|job| matches!(job, Job::Write { durability: Durability::Full, .. }));
        let before = self.revision;
        let mut outcome = Outcome { answers: Vec::with_capacity(writes.len()), events: Vec::new() };
        match self.commit(writes, durable, &mut outcome) {
            Ok(()) => {
                self.unflushed = if durable { None } else { self.unflushed.or_else(|| Some(Instant::now())) };
                // Events first: whoever has the answer may rely on the watch to be at least as far.
                self.hub.publish(outcome.events);
                for (answer, result) in outcome.answers {
                    let _ = answer.send(result);
                }
            }
            Err(error) => {
                tracing::error!(%error, "a batch of writes could not be stored");
                self.revision = before;
                for (answer, _) in outcome.answers {
                    let _ = answer.send(Err(StoreError::Write(error.to_string())));
                }
            }
        }
    }

    fn commit(&mut self, writes: Vec<Job>, durable: bool, outcome: &mut Outcome) -> Result<(), StoreError> {
        let mut transaction = self.db.begin_write().map_err(|error| {
            // Nobody may be left without an answer when not even the transaction begins.
            StoreError::Write(error.to_string())
        });
        if let Err(error) = &mut transaction {
            let text = error.to_string();
            for job in writes {
                if let Job::Write { answer, .. } = job {
                    outcome.answers.push((answer, Err(StoreError::Closed)));
                }
            }
            return Err(StoreError::Write(text));
        }
        let mut transaction = transaction?;
        let needs_reserve = self.revision + writes.len() as u64 > self.reserved;
        let level = if durable || needs_reserve { redb::Durability::Immediate } else { redb::Durability::None };
        transaction.set_durability(level).map_err(failed)?;
        let applied = self.apply(&transaction, writes, outcome);
        let reserved = if needs_reserve { self.revision + RESERVE } else { self.reserved };
        applied.and_then(|()| store_counters(&transaction, self.revision, reserved)).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        self.reserved = reserved;
        Ok(())
    }

    fn apply(
        &mut self,
        transaction: &WriteTransaction,
        writes: Vec<Job>,
        outcome: &mut Outcome,
    ) -> Result<(), StoreError> {
        let tables = || -> Result<Tables<'_>, redb::TableError> {
            Ok(Tables {
                current: transaction.open_table(CURRENT)?,
                history: transaction.open_table(HISTORY)?,
                log: transaction.open_table(LOG)?,
            })
        };
        let mut tables = tables().map_err(failed);
        let mut broken = None;
        for job in writes {
            let Job::Write { key, change, expect, answer, .. } = job else { continue };
            let result = match (&mut tables, &broken) {
                (Ok(tables), None) => self.write_one(tables, &key, change, expect, &mut outcome.events),
                _ => Err(StoreError::Closed),
            };
            if let Err(error @ (StoreError::Read(_) | StoreError::Write(_))) = &result {
                broken.get_or_insert_with(|| error.to_string());
            }
            outcome.answers.push((answer, result));
        }
        tables?;
        broken.map_or(Ok(()), |error| Err(StoreError::Write(error)))
    }

    fn write_one(
        &mut self,
        tables: &mut Tables<'_>,
        key: &Arc<str>,
        change: Change,
        expect: Expect,
        events: &mut Vec<Event>,
    ) -> Result<Entry, StoreError> {
        let place = tables.current.get(&**key).map_err(failed)?.map(|place| place.value());
        let previous = match place {
            Some((create, modified)) => {
                let row = tables.history.get((&**key, modified)).map_err(failed)?;
                row.and_then(|row| read::entry(key, create, modified, row.value()))
            }
            None => None,
        };
        let as_expected = match expect {
            Expect::Any => true,
            Expect::Absent => previous.is_none(),
            Expect::Revision(revision) => previous.as_ref().is_some_and(|entry| entry.mod_revision == revision),
        };
        if !as_expected {
            return Err(StoreError::Conflict { current: previous });
        }
        let revision = self.revision + 1;
        let (entry, kind) = match (change, previous) {
            (Change::Put(value), previous) => {
                let create = previous.as_ref().map_or(revision, |entry| entry.create_revision);
                let mut row = Vec::with_capacity(value.len() + 1);
                row.push(PUT);
                row.extend_from_slice(&value);
                tables.current.insert(&**key, (create, revision)).map_err(failed)?;
                tables.history.insert((&**key, revision), row.as_slice()).map_err(failed)?;
                let entry = Entry { key: key.clone(), value, create_revision: create, mod_revision: revision };
                (entry.clone(), EventKind::Put { entry, previous })
            }
            (Change::Delete, Some(previous)) => {
                tables.current.remove(&**key).map_err(failed)?;
                tables.history.insert((&**key, revision), [DELETED].as_slice()).map_err(failed)?;
                (Entry { mod_revision: revision, ..previous.clone() }, EventKind::Delete { previous })
            }
            (Change::Delete, None) => return Err(StoreError::Conflict { current: None }),
        };
        tables.log.insert(revision, &**key).map_err(failed)?;
        self.revision = revision;
        events.push(Event { key: key.clone(), revision, kind });
        Ok(entry)
    }

    /// Puts relaxed writes on disk.
    fn flush(&mut self) {
        if self.unflushed.is_none() {
            return;
        }
        let done = self.db.begin_write().map_err(failed).and_then(|t| t.commit().map_err(failed));
        match done {
            Ok(()) => self.unflushed = None,
            // Tried again after the next wait.
            Err(error) => {
                tracing::warn!(%error, "heartbeats could not be flushed");
                self.unflushed = Some(Instant::now());
            }
        }
    }

    fn forget_old(&mut self) {
        let now = Instant::now();
        if self.marks.back().is_none_or(|(when, _)| now.duration_since(*when) >= COMPACT_EVERY) {
            self.marks.push_back((now, self.revision));
        }
        while let Some((when, revision)) = self.marks.front().copied()
            && now.duration_since(when) >= self.keep
        {
            self.marks.pop_front();
            if let Err(error) = self.compact(revision) {
                tracing::warn!(%error, "old revisions could not be forgotten");
            }
        }
    }

    fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        let revision = revision.min(self.revision);
        loop {
            let transaction = self.db.begin_write().map_err(failed)?;
            let done = compact_step(&transaction, revision)?;
            transaction.commit().map_err(failed)?;
            self.unflushed = None;
            if done {
                return Ok(());
            }
        }
    }
}

fn store_counters(transaction: &WriteTransaction, revision: Revision, reserved: Revision) -> Result<(), StoreError> {
    let mut meta = transaction.open_table(META).map_err(failed)?;
    meta.insert(REVISION, revision).map_err(failed)?;
    meta.insert(RESERVED, reserved).map_err(failed)?;
    Ok(())
}

/// Forgets up to [`COMPACT_STEP`] log rows at or below `revision`; answers whether that was all.
fn compact_step(transaction: &WriteTransaction, revision: Revision) -> Result<bool, StoreError> {
    let mut log = transaction.open_table(LOG).map_err(failed)?;
    let mut history = transaction.open_table(HISTORY).map_err(failed)?;
    let mut meta = transaction.open_table(META).map_err(failed)?;
    let first = log.first().map_err(failed)?.map_or(revision + 1, |(first, _)| first.value());
    let end = revision.min(first.saturating_add(COMPACT_STEP));
    let mut stale = Vec::new();
    for row in log.range(first..=end).map_err(failed)? {
        let (at, key) = row.map_err(failed)?;
        stale.push((at.value(), key.value().to_owned()));
    }
    for (at, key) in &stale {
        log.remove(at).map_err(failed)?;
        // The newest version at or below the limit stays readable, unless it is a deletion; what it replaced goes.
        let mut gone = Vec::new();
        for older in history.range((key.as_str(), 0)..(key.as_str(), *at)).map_err(failed)? {
            gone.push(older.map_err(failed)?.0.value().1);
        }
        if history.get((key.as_str(), *at)).map_err(failed)?.is_some_and(|row| row.value().first() == Some(&DELETED)) {
            gone.push(*at);
        }
        for version in gone {
            history.remove((key.as_str(), version)).map_err(failed)?;
        }
    }
    let before = meta.get(COMPACTED).map_err(failed)?.map_or(0, |value| value.value());
    meta.insert(COMPACTED, before.max(end.min(revision))).map_err(failed)?;
    Ok(end >= revision)
}
