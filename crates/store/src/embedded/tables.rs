//! The tables and what must hold when the file is opened.

use redb::{Database, ReadableTable, TableDefinition};

use crate::Revision;

/// Key → (revision that created it, revision that last wrote it).
pub(super) const CURRENT: TableDefinition<&str, (u64, u64)> = TableDefinition::new("current");
/// (Key, revision) → tag byte and value.
pub(super) const HISTORY: TableDefinition<(&str, u64), &[u8]> = TableDefinition::new("history");
/// Revision → key.
pub(super) const LOG: TableDefinition<u64, &str> = TableDefinition::new("log");
/// Counters by name.
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// The last revision in the file.
pub(super) const REVISION: &str = "revision";
/// No revision above this one was ever given out: after a crash the counter goes on from here.
pub(super) const RESERVED: &str = "reserved";
/// Revisions below this one cannot be read.
pub(super) const COMPACTED: &str = "compacted";
/// The layout's version.
const LAYOUT: &str = "layout";
const LAYOUT_NOW: u64 = 1;

/// First byte of a value in [`HISTORY`]: it was written.
pub(super) const PUT: u8 = 1;
/// First byte of a value in [`HISTORY`]: it was deleted.
pub(super) const DELETED: u8 = 0;

/// Makes the tables, checks the layout, and answers the revision to go on from.
///
/// Relaxed writes may have been seen and lost in a crash; going on from `RESERVED` keeps their revisions from being given
/// to other changes.
pub(super) fn prepare(db: &Database) -> Result<Revision, Box<dyn std::error::Error>> {
    let transaction = db.begin_write()?;
    let revision;
    {
        transaction.open_table(CURRENT)?;
        transaction.open_table(HISTORY)?;
        transaction.open_table(LOG)?;
        let mut meta = transaction.open_table(META)?;
        let read = |name: &str| -> Result<Option<u64>, redb::StorageError> { Ok(meta.get(name)?.map(|v| v.value())) };
        let layout = read(LAYOUT)?.unwrap_or(LAYOUT_NOW);
        if layout != LAYOUT_NOW {
            return Err(format!("its layout is version {layout}, this program knows version {LAYOUT_NOW}").into());
        }
        revision = read(REVISION)?.unwrap_or(0).max(read(RESERVED)?.unwrap_or(0));
        meta.insert(LAYOUT, LAYOUT_NOW)?;
        meta.insert(REVISION, revision)?;
    }
    transaction.commit()?;
    Ok(revision)
}
