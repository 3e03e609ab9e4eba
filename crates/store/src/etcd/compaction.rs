//! How far back etcd reaches, and compaction as time goes by.
//!
//! Every server compacts to what it saw long enough ago. Where several do, each keeps at least as much as the others ask
//! for, and compacting twice is harmless; so they need not agree on who does it. Compaction is of the whole etcd: who
//! shares one and compacts by other rules switches ours off (`keep_for` of zero).

use std::sync::Arc;
use std::time::Instant;

use super::Core;
use super::channel::{Channel, Repeat};
use super::errors::is_compacted;
use super::grpc::CallError;
use super::messages::{
    COMPACT, CompactionRequest, Empty, RANGE, RangeRequest, RangeResponse, WATCH, WatchCreateRequest, WatchRequest,
    WatchResponse,
};
use super::place::Place;
use super::settings::EtcdSettings;
use crate::Revision;
use crate::retention::Retention;

/// Within the time that revisions are kept, this often is compacted: it walks all keys of etcd.
const PER_RETENTION: u32 = 2;

/// Compacts for as long as the store lives.
pub(super) async fn run(core: Arc<Core>, channel: Arc<Channel>, settings: EtcdSettings) {
    if settings.keep_for.is_zero() {
        return;
    }
    let mut retention = Retention::new(settings.keep_for, settings.keep_revisions);
    let began = Instant::now();
    let (mut last, mut compacted) = (began, 0);
    loop {
        tokio::time::sleep(retention.interval()).await;
        let Ok(revision) = current(&core.place, &channel).await else { continue };
        let target = retention.target(began.elapsed(), revision);
        let many = target > compacted + settings.keep_revisions / u64::from(PER_RETENTION);
        if target <= compacted.max(core.place.offset())
            || !(many || last.elapsed() >= settings.keep_for / PER_RETENTION)
        {
            continue;
        }
        let request = CompactionRequest { revision: core.place.to_etcd(target) };
        // Refused because it is compacted already, or unreachable: the next time is soon enough.
        if channel.call::<Empty>(COMPACT, &request, Repeat::Harmless).await.is_ok() {
            core.forget(target);
        }
        (last, compacted) = (Instant::now(), target);
    }
}

async fn current(place: &Place, channel: &Channel) -> Result<Revision, CallError> {
    let read = RangeRequest { key: place.record_key(), count_only: true, ..RangeRequest::default() };
    let answer: RangeResponse = channel.call(RANGE, &read, Repeat::Harmless).await?;
    Ok(answer.header.map_or(0, |header| place.to_ours(header.revision)))
}

/// The oldest revision that can be read at: if not the very first, etcd says which to a watch that asks for the first.
pub(super) async fn compacted(place: &Place, channel: &Channel) -> Result<Revision, CallError> {
    let first = RangeRequest { key: place.record_key(), revision: 1, count_only: true, ..RangeRequest::default() };
    match channel.call::<RangeResponse>(RANGE, &first, Repeat::Harmless).await {
        Ok(_) => return Ok(place.to_ours(0)),
        Err(error) if !is_compacted(&error) => return Err(error),
        Err(_) => {}
    }
    let create = WatchCreateRequest { key: place.record_key(), start_revision: 1, ..WatchCreateRequest::default() };
    let request = WatchRequest { create_request: Some(create) };
    let (_connection, mut answers) = channel.stream(WATCH, &request).await?;
    while let Some(answer) = answers.next::<WatchResponse>().await? {
        if answer.compact_revision > 0 {
            return Ok(place.to_ours(answer.compact_revision));
        }
    }
    Err(CallError::Malformed("a watch of what is compacted was not refused".to_owned()))
}
