//! Filling an empty root with the entries of a snapshot.
//!
//! # Flow
//!
//! A record beside the keys says that a restore has begun, and shifts our revisions beyond all that the snapshot's time can
//! have seen → the entries are written → the record says that it is done. Until then no server starts on that root.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::channel::{Channel, Repeat};
use super::errors::explain;
use super::messages::{RANGE, RangeRequest, RangeResponse};
use super::place::{self, Place, Record};
use super::{EtcdSettings, EtcdStore};
use crate::{Error, Expect, Result, Revision, Store as _};

/// How many entries are written at the same time.
const AT_ONCE: usize = 64;

/// Writes `entries` (key, value) as new, with revisions after `after`.
///
/// Errors: [`Error::NotEmpty`] and those of writing. A restore that failed halfway is begun anew after deleting what is
/// there.
pub(crate) async fn restore(
    settings: EtcdSettings,
    after: Revision,
    entries: impl Iterator<Item = Result<(String, Bytes)>> + Send,
) -> Result<()> {
    let channel = Arc::new(Channel::new(settings.endpoints()?, settings.tls()?));
    let place = Place::new(&settings.root, 0);
    let (key, range_end) = place.range("", None);
    let read = RangeRequest { key, range_end, count_only: true, ..RangeRequest::default() };
    let found: RangeResponse = channel.call(RANGE, &read, Repeat::Harmless).await.map_err(explain("read"))?;
    if found.count > 0 {
        return Err(Error::NotEmpty { place: format!("{} in etcd", settings.root) });
    }
    let (record, revision) = place::read_record(&channel, &place).await?;
    let known = place.to_ours(revision) + record.revision_offset;
    let revision_offset = record.revision_offset + after.saturating_sub(known);
    let record = Record { revision_offset, restoring: true };
    place::write_record(&channel, &place, &record).await?;
    {
        let place = Place::new(&settings.root, revision_offset);
        let from = place.to_ours(revision);
        let store = EtcdStore::start(Arc::clone(&channel), settings, place, from);
        let store = &store;
        let write =
            |(key, value): (String, Bytes)| async move { store.put(&key, value, Expect::Absent).await.map(drop) };
        stream::iter(entries)
            .map(|entry| async move { write(entry?).await })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        // Who watched or read before the restore lists again.
        store.compact(store.revision().await?).await?;
    }
    place::write_record(&channel, &place, &Record { restoring: false, ..record }).await
}
