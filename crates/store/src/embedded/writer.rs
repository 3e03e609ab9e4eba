//! The one thread that changes the file: group commit.
//!
//! # Flow
//!
//! Take every write that waits → apply them in order in one transaction, each against what the earlier ones left → commit
//! (one fsync for all) → publish the events → answer. While the disk works, the next batch gathers: many writers share
//! the cost of one fsync, a single one waits for nothing.
//!
//! # Relaxed writes
//!
//! A batch of only relaxed writes is committed in memory, and to disk with the next durable batch or after
//! [`RELAXED_FOR_MAX`]. Its revisions must not be given to something else after a crash, so they are taken from a range
//! reserved on disk beforehand ([`Meta::Reserved`]); after a crash counting goes on behind that range.
//!
//! # Errors
//!
//! After an I/O error nobody knows what reached the disk. The file is closed and opened again (redb repairs it), and what
//! it then says is the truth: changes that did survive are published, revisions that were seen but did not survive end
//! all watches. Writes are refused until the disk has room for the reserve again; reads go on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use redb::Database;
use tokio::sync::oneshot;

use super::apply::{Attempt, Resumed, Tables};
use super::file::is_disk_full;
use super::tables::{Meta, Stored};
use super::{Core, File, Settings, broken, storage};
use crate::retention::Retention;
use crate::{Durability, Error, Event, Expect, Result, Revision};

/// A relaxed write is on disk after this long at the latest.
const RELAXED_FOR_MAX: Duration = Duration::from_secs(1);
/// How many revisions are reserved at a time for relaxed writes.
const RESERVE_REVISIONS: u64 = 1000;
/// How many writes share a commit.
const BATCH_WRITES_MAX: usize = 1024;
/// How many bytes of values share a commit, give or take one value.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// How many records one step of scavenging looks at, and how many must wait before a busy writer does a step.
const SCAVENGE_RECORDS: usize = 2 * BATCH_WRITES_MAX;
/// How long to wait before trying to open the file again.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);

/// What to do.
#[derive(Debug)]
pub(super) enum Operation {
    Put { key: Arc<str>, value: Bytes, expect: Expect, durability: Durability },
    Delete { key: Arc<str>, expect: Expect },
    Compact { revision: Revision },
}

impl Operation {
    /// The size of the values in it.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Put { value, .. } => value.len(),
            Self::Delete { .. } | Self::Compact { .. } => 0,
        }
    }
}

/// What to do, and whom to tell: the event of a write, nothing of a compaction.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) operation: Operation,
    pub(super) answer: oneshot::Sender<Result<Option<Arc<Event>>>>,
}

/// What became of the operations of a batch, in their order.
struct Applied {
    outcomes: Vec<Result<Option<Arc<Event>>>>,
    events: Vec<Arc<Event>>,
    durable: bool,
}

/// The thread's state.
pub(super) struct Writer {
    core: Arc<Core>,
    settings: Settings,
    queue: Receiver<Request>,
    retention: Retention,
    started: Instant,
    revision: Revision,
    compacted: Revision,
    /// Relaxed writes may have revisions below this.
    reserved: Revision,
    /// How many compacted revisions wait to be scavenged.
    unscavenged: u64,
    /// When the oldest commit was made that is not on disk.
    unpersisted_since: Option<Instant>,
    /// When the file was last tried to be opened again, while it could not.
    broken_since: Option<Instant>,
}

impl Writer {
    pub(super) fn new(core: Arc<Core>, settings: Settings, queue: Receiver<Request>, resumed: Resumed) -> Self {
        Self {
            core,
            queue,
            retention: Retention::new(settings.keep_for, settings.keep_revisions),
            settings,
            started: Instant::now(),
            revision: resumed.revision,
            compacted: resumed.compacted,
            reserved: 0,
            unscavenged: resumed.unscavenged,
            unpersisted_since: None,
            broken_since: None,
        }
    }

    /// Works until the store is closed. If redb panics (a damaged file can make it), the store is
    /// closed for everybody rather than silent.
    pub(super) fn run(self) {
        let core = Arc::clone(&self.core);
        if catch_unwind(AssertUnwindSafe(|| self.work())).is_err() {
            tracing::error!(
                "the store's writer panicked: the store is closed; start again, from a backup if it repeats"
            );
            core.hub.close();
        }
    }

    fn work(mut self) {
        loop {
            match self.queue.recv_timeout(self.patience()) {
                Ok(first) => {
                    let batch = self.gather(first);
                    self.serve(batch);
                    self.keep_up(false);
                }
                Err(RecvTimeoutError::Timeout) => self.keep_up(true),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.close();
    }

    /// How long there is nothing to do by itself.
    fn patience(&self) -> Duration {
        if self.broken_since.is_some() {
            return REOPEN_INTERVAL;
        }
        if self.unscavenged > 0 {
            return Duration::ZERO;
        }
        match self.unpersisted_since {
            Some(since) => RELAXED_FOR_MAX.saturating_sub(since.elapsed()),
            None => self.retention.interval(),
        }
    }

    fn gather(&self, first: Request) -> Vec<Request> {
        let mut bytes = first.operation.bytes();
        let mut batch = vec![first];
        while batch.len() < BATCH_WRITES_MAX && bytes < BATCH_BYTES_MAX {
            let Ok(request) = self.queue.try_recv() else { break };
            bytes += request.operation.bytes();
            batch.push(request);
        }
        self.core.queued_bytes.fetch_sub(bytes, std::sync::atomic::Ordering::Relaxed);
        batch
    }

    /// Makes the writes of a batch and answers them.
    fn serve(&mut self, batch: Vec<Request>) {
        match self.ready().and_then(|()| self.commit(&batch)) {
            Ok(applied) => {
                self.core.values.learn(applied.events.iter().map(|event| &**event));
                self.core.hub.publish(&applied.events);
                for (request, outcome) in batch.into_iter().zip(applied.outcomes) {
                    // A caller that went away does not want to know.
                    let _ = request.answer.send(outcome);
                }
            }
            Err(error) => {
                for request in batch {
                    let _ = request.answer.send(Err(error.again()));
                }
            }
        }
    }

    /// Whether writes can be taken at all.
    fn ready(&mut self) -> Result<()> {
        if let Some(since) = self.broken_since
            && since.elapsed() >= REOPEN_INTERVAL
        {
            self.reopen();
        }
        let Some(directory) = &self.core.directory else { return Ok(()) };
        if self.broken_since.is_some() {
            return Err(broken("write"));
        }
        directory.reserve().map_err(|_| Error::DiskFull { directory: directory.path().to_owned() })
    }

    fn commit(&mut self, batch: &[Request]) -> Result<Applied> {
        let outcome = self.with_database(|writer, database| writer.transact(database, batch));
        match outcome {
            Ok(applied) => {
                if let Some(last) = applied.events.last() {
                    self.revision = last.revision;
                }
                self.committed(applied.durable);
                Ok(applied)
            }
            Err(failure) => Err(self.recover(failure)),
        }
    }

    fn with_database<T>(&mut self, work: impl FnOnce(&mut Self, &Database) -> Stored<T>) -> Stored<T> {
        let core = Arc::clone(&self.core);
        let database = core.database.read().unwrap_or_else(PoisonError::into_inner);
        match &*database {
            File::Open(database) => work(self, database),
            File::Broken | File::Closed => Err(redb::Error::DatabaseClosed),
        }
    }

    fn committed(&mut self, durable: bool) {
        self.unpersisted_since = if durable { None } else { self.unpersisted_since.or_else(|| Some(Instant::now())) };
    }

    /// One transaction: every operation against what the earlier ones left.
    fn transact(&mut self, database: &Database, batch: &[Request]) -> Stored<Applied> {
        let transaction = database.begin_write()?;
        let mut applied = Applied { outcomes: Vec::with_capacity(batch.len()), events: Vec::new(), durable: false };
        let mut changed = false;
        let (mut compacted, mut reserved) = (self.compacted, self.reserved);
        {
            let mut tables = Tables::open(&transaction)?;
            let mut next = self.revision + 1;
            for request in batch {
                let attempt = match &request.operation {
                    Operation::Put { key, value, expect, durability } => {
                        let attempt = tables.put(&self.core.values, next, key, value, *expect)?;
                        applied.durable |= attempt.is_ok() && *durability == Durability::Immediate;
                        attempt
                    }
                    Operation::Delete { key, expect } => {
                        let attempt = tables.delete(&self.core.values, next, key, *expect)?;
                        applied.durable |= attempt.is_ok();
                        attempt
                    }
                    Operation::Compact { revision } if *revision >= next => {
                        applied.outcomes.push(Err(Error::Future { current: next - 1 }));
                        continue;
                    }
                    Operation::Compact { revision } => {
                        tables.compact(*revision)?;
                        compacted = compacted.max(*revision);
                        (changed, applied.durable) = (true, true);
                        applied.outcomes.push(Ok(None));
                        continue;
                    }
                };
                if let Ok(event) = &attempt {
                    applied.events.push(Arc::clone(event));
                    next += 1;
                }
                applied.outcomes.push(outcome(attempt));
            }
            changed |= !applied.events.is_empty();
            // A relaxed commit needs its revisions reserved on disk; if they are not, it becomes durable and does that.
            if changed && !applied.durable && next > reserved {
                reserved = next + RESERVE_REVISIONS;
                tables.set_meta(Meta::Reserved, reserved)?;
                applied.durable = true;
            }
        }
        if changed {
            finish(transaction, applied.durable)?;
        } else {
            transaction.abort()?;
            applied.durable = self.unpersisted_since.is_none();
        }
        self.unscavenged += compacted - self.compacted;
        (self.compacted, self.reserved) = (compacted, reserved);
        Ok(applied)
    }

    /// What is due by itself: compaction by age and number, removing what compaction left, persisting relaxed writes.
    fn keep_up(&mut self, idle: bool) {
        if self.broken_since.is_some() {
            if idle {
                self.reopen();
            }
            return;
        }
        let target = self.retention.target(self.started.elapsed(), self.revision);
        let compact = target > self.compacted && (idle || target - self.compacted >= SCAVENGE_RECORDS as u64);
        let scavenge = self.unscavenged > 0 && (idle || self.unscavenged >= SCAVENGE_RECORDS as u64);
        let persist = self.unpersisted_since.is_some_and(|since| since.elapsed() >= RELAXED_FOR_MAX);
        if !(compact || scavenge || persist) {
            return;
        }
        let done = self.with_database(|writer, database| {
            let transaction = database.begin_write()?;
            let mut tables = Tables::open(&transaction)?;
            if compact {
                tables.compact(target)?;
                writer.compacted = target;
            }
            writer.unscavenged = tables.scavenge(SCAVENGE_RECORDS)?;
            drop(tables);
            finish(transaction, persist)
        });
        match done {
            Ok(()) => self.committed(persist),
            Err(failure) => {
                self.recover(failure);
            }
        }
    }

    /// After an error: makes the file usable again, and says what to tell those whose writes failed.
    fn recover(&mut self, failure: redb::Error) -> Error {
        let full = is_disk_full(&failure);
        tracing::error!(error = %failure, "the store's file failed; opening it again");
        if !matches!(failure, redb::Error::DatabaseClosed) {
            self.reopen();
        }
        match &self.core.directory {
            Some(directory) if full => Error::DiskFull { directory: directory.path().to_owned() },
            _ => storage("write")(failure),
        }
    }

    /// Closes the file and opens it again; what it then says is the truth.
    fn reopen(&mut self) {
        let core = Arc::clone(&self.core);
        let Some(directory) = &core.directory else { return };
        let mut place = core.database.write().unwrap_or_else(PoisonError::into_inner);
        *place = File::Broken;
        self.core.values.clear();
        // A repair may need room.
        directory.release();
        match directory.database(self.settings.cache_bytes) {
            Ok((database, resumed)) => {
                *place = File::Open(database);
                drop(place);
                self.broken_since = None;
                self.resume(resumed);
            }
            Err(error) => {
                tracing::error!(error = %error, "the store's file cannot be opened again; trying every second");
                self.broken_since = Some(Instant::now());
            }
        }
    }

    /// Makes this thread's and the watchers' view agree with the file.
    fn resume(&mut self, resumed: Resumed) {
        (self.revision, self.compacted, self.reserved) = (resumed.revision, resumed.compacted, 0);
        self.unscavenged = resumed.unscavenged;
        self.unpersisted_since = None;
        let published = self.core.hub.published();
        if resumed.survived < published {
            self.core.hub.compacted(resumed.revision);
        }
        let mut from = published;
        while from < resumed.survived {
            // Writes that were answered with an error but did reach the disk.
            let read = self.core.read("read what survived", |snapshot| snapshot.events("", from, resumed.survived));
            let Ok(chunk) = read else {
                self.core.hub.compacted(resumed.revision);
                break;
            };
            self.core.hub.publish(&chunk.events);
            from = chunk.through;
        }
        self.core.hub.advance(resumed.revision);
    }

    /// Persists what is not, gives back the reserved revisions, and ends the watches. (Who owns the store closes the file.)
    fn close(&mut self) {
        if self.unpersisted_since.is_some() || self.reserved > 0 {
            let done = self.with_database(|_, database| {
                let transaction = database.begin_write()?;
                Tables::open(&transaction)?.set_meta(Meta::Reserved, 0)?;
                finish(transaction, true)
            });
            if let Err(error) = done {
                tracing::error!(error = %error, "the store's last relaxed writes could not be persisted");
            }
        }
        self.core.hub.close();
    }
}

/// Answers a caller: the state that was in the way is a conflict.
fn outcome(attempt: Attempt) -> Result<Option<Arc<Event>>> {
    attempt.map(Some).map_err(|current| Error::Conflict { current })
}

fn finish(mut transaction: redb::WriteTransaction, durable: bool) -> Stored<()> {
    if !durable {
        transaction.set_durability(redb::Durability::None)?;
    }
    transaction.commit()?;
    Ok(())
}
