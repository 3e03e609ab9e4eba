//! Changing the tables, within one write transaction.

use std::sync::Arc;

use bytes::Bytes;
use redb::{ReadableTable, Table, WriteTransaction};

use super::tables::{HISTORY, KEYS, LOG, LOST, META, Meta, Record, Stored, last_revision, present};
use super::values::Values;
use crate::{Change, Entry, Event, Expect, Revision};

/// The tables of a write transaction.
pub(super) struct Tables<'t> {
    keys: Table<'t, &'static str, (u64, u64)>,
    log: Table<'t, u64, Record>,
    history: Table<'t, (&'static str, u64), u64>,
    meta: Table<'t, &'static str, u64>,
    lost: Table<'t, u64, u64>,
}

/// The outcome of a conditional write: its event, or the state that did not meet the condition.
pub(super) type Attempt = Result<Arc<Event>, Option<Box<Entry>>>;

impl<'t> Tables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Stored<Self> {
        Ok(Self {
            keys: transaction.open_table(KEYS)?,
            log: transaction.open_table(LOG)?,
            history: transaction.open_table(HISTORY)?,
            meta: transaction.open_table(META)?,
            lost: transaction.open_table(LOST)?,
        })
    }

    /// The present state of a key.
    fn current(&self, values: &Values, key: &Arc<str>) -> Stored<Option<Entry>> {
        let written = self.keys.get(&**key)?.map(|state| state.value().1);
        written.map_or(Ok(None), |written| present(&self.log, values, written, key))
    }

    /// Makes a state of the past out of the present one.
    fn supersede(&mut self, previous: Option<&Entry>, revision: Revision) -> Stored<()> {
        if let Some(previous) = previous {
            self.history.insert((&*previous.key, previous.mod_revision), revision)?;
        }
        Ok(())
    }

    /// Writes `value` as `revision` if `expect` holds.
    pub(super) fn put(
        &mut self,
        values: &Values,
        revision: Revision,
        key: &Arc<str>,
        value: &Bytes,
        expect: Expect,
    ) -> Stored<Attempt> {
        let previous = self.current(values, key)?;
        if !holds(expect, previous.as_ref(), true) {
            return Ok(Err(previous.map(Box::new)));
        }
        let create_revision = previous.as_ref().map_or(revision, |previous| previous.create_revision);
        let replaced = previous.as_ref().map_or(0, |previous| previous.mod_revision);
        self.supersede(previous.as_ref(), revision)?;
        self.keys.insert(&**key, (create_revision, revision))?;
        self.log.insert(revision, (create_revision, replaced, false, &**key, &**value))?;
        let entry = Entry { key: Arc::clone(key), value: value.clone(), create_revision, mod_revision: revision };
        Ok(Ok(Arc::new(Event { revision, change: Change::Put { entry, previous } })))
    }

    /// Removes a key as `revision` if it exists and `expect` holds.
    pub(super) fn delete(
        &mut self,
        values: &Values,
        revision: Revision,
        key: &Arc<str>,
        expect: Expect,
    ) -> Stored<Attempt> {
        let previous = match self.current(values, key)? {
            Some(previous) if holds(expect, Some(&previous), false) => previous,
            other => return Ok(Err(other.map(Box::new))),
        };
        self.supersede(Some(&previous), revision)?;
        self.keys.remove(&**key)?;
        let record = (previous.create_revision, previous.mod_revision, true, &**key, &[][..]);
        self.log.insert(revision, record)?;
        Ok(Ok(Arc::new(Event { revision, change: Change::Delete { previous } })))
    }

    pub(super) fn get_meta(&self, name: Meta) -> Stored<u64> {
        name.read(&self.meta)
    }

    pub(super) fn set_meta(&mut self, name: Meta, value: u64) -> Stored<()> {
        self.meta.insert(name.name(), value)?;
        Ok(())
    }

    /// The last revision these tables know of.
    pub(super) fn last_revision(&self) -> Stored<Revision> {
        last_revision(&self.log, &self.meta)
    }

    /// Moves the oldest readable revision up to `revision`. What only older ones need stays until [`Self::scavenge`].
    pub(super) fn compact(&mut self, revision: Revision) -> Stored<()> {
        if revision <= self.get_meta(Meta::Compacted)? {
            return Ok(());
        }
        // The log's last record may be a deletion that scavenging removes: remember that its revision was used.
        let last = self.last_revision()?;
        self.set_meta(Meta::Floor, last)?;
        self.set_meta(Meta::Compacted, revision)?;
        self.lost.retain(|_, end| end > revision)?;
        Ok(())
    }

    /// Removes what compaction made unreachable, looking at no more than `records_max` records. Returns how many
    /// revisions are left to look at.
    pub(super) fn scavenge(&mut self, records_max: usize) -> Stored<u64> {
        let from = self.get_meta(Meta::Scavenged)?;
        let compacted = self.get_meta(Meta::Compacted)?;
        if from >= compacted {
            return Ok(0);
        }
        let mut through = compacted;
        let mut found = Vec::new();
        for (looked_at, record) in self.log.range(from + 1..=compacted)?.enumerate() {
            let (revision, record) = record?;
            if looked_at >= records_max {
                through = revision.value() - 1;
                break;
            }
            let (_, previous, deletion, key, _) = record.value();
            if deletion || previous != 0 {
                found.push((revision.value(), previous, deletion, Box::<str>::from(key)));
            }
        }
        for (revision, previous, deletion, key) in found {
            if previous != 0 {
                self.log.remove(previous)?;
                self.history.remove((&*key, previous))?;
            }
            if deletion {
                self.log.remove(revision)?;
            }
        }
        self.set_meta(Meta::Scavenged, through)?;
        Ok(compacted - through)
    }

    /// Makes the tables ready after opening the file.
    ///
    /// If relaxed writes may have died with the last process, counting goes on behind all revisions they can have had,
    /// and those are marked as lost.
    pub(super) fn resume(&mut self) -> Stored<Resumed> {
        let survived = self.last_revision()?.max(1);
        let reserved = self.get_meta(Meta::Reserved)?;
        let revision = survived.max(reserved);
        if reserved > survived + 1 {
            self.lost.insert(survived, reserved)?;
        }
        self.set_meta(Meta::Floor, revision)?;
        self.set_meta(Meta::Reserved, 0)?;
        let compacted = self.get_meta(Meta::Compacted)?;
        let unscavenged = compacted - self.get_meta(Meta::Scavenged)?.min(compacted);
        Ok(Resumed { revision, survived, compacted, unscavenged })
    }
}

/// Where a store just opened stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resumed {
    /// The present revision.
    pub(super) revision: Revision,
    /// The last revision whose content is there.
    pub(super) survived: Revision,
    /// The oldest revision that can be read at.
    pub(super) compacted: Revision,
    /// How many compacted revisions wait to be scavenged.
    pub(super) unscavenged: u64,
}

/// Whether a write may be made on the present state; `absent_is_fine` without any condition.
fn holds(expect: Expect, current: Option<&Entry>, absent_is_fine: bool) -> bool {
    match (expect, current) {
        (Expect::Any | Expect::Absent, None) => absent_is_fine,
        (Expect::Any, Some(_)) => true,
        (Expect::Absent, Some(_)) | (Expect::Revision(_), None) => false,
        (Expect::Revision(revision), Some(entry)) => entry.mod_revision == revision,
    }
}
