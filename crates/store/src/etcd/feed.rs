//! The feed: one watch of everything under the root, from which all watchers of this process are served.
//!
//! # Flow
//!
//! Begin a little in the past → every change goes to [`Recent`] and then to the hub, in order → writers that wait to see
//! their own change are woken. When the connection ends, a new watch goes on behind the last change that came, so nobody
//! notices but by the delay.
//!
//! # Errors
//!
//! Where a gap cannot be avoided, the watches that want what is in it end with [`WatchError::Compacted`](crate::WatchError::Compacted), and whoever
//! watches lists again: etcd compacted what was to come next, or the state before a change; or etcd's revisions went back,
//! because somebody put an older copy of it in its place.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Core;
use super::channel::Channel;
use super::grpc::CallError;
use super::messages::{self, KeyValue, WATCH, WatchCreateRequest, WatchRequest, WatchResponse};
use crate::{Change, Entry, Event, Revision};

/// Between two tries to watch again: the first, and the longest.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(2);

/// How a watch ended.
enum Ended {
    /// What comes after this revision is the first that is still kept.
    Compacted(Revision),
    Failed(CallError),
}

/// Watches for as long as the store lives.
pub(super) async fn run(core: Arc<Core>, channel: Arc<Channel>, from: Revision) {
    let mut from = from;
    let mut wait = RETRY_FIRST;
    loop {
        let began = from;
        match watch(&core, &channel, &mut from).await {
            Ended::Compacted(oldest) => {
                tracing::warn!(from, oldest, "etcd has compacted what was to be watched next; watches begin anew");
                begin_anew(&core, oldest);
                from = oldest;
            }
            Ended::Failed(error) => {
                tracing::warn!(%error, "the watch of etcd ended; watching again");
                wait = if from > began { RETRY_FIRST } else { (wait * 2).min(RETRY_LAST) };
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// Ends the watches that want to know what was before `oldest`: nobody can tell them.
fn begin_anew(core: &Core, oldest: Revision) {
    core.recent.lock().unwrap_or_else(PoisonError::into_inner).reset(oldest);
    core.hub.compacted(oldest);
    core.hub.advance(oldest);
    core.arrived();
}

/// One watch, until it ends; `from` moves with what came.
async fn watch(core: &Core, channel: &Channel, from: &mut Revision) -> Ended {
    let (key, range_end) = core.place.range("/", None);
    let start_revision = core.place.to_etcd(*from + 1);
    let create = WatchCreateRequest { key, range_end, start_revision, progress_notify: true, prev_kv: true };
    let opened = channel.stream(WATCH, &WatchRequest { create_request: Some(create) }).await;
    let (_connection, mut answers) = match opened {
        Ok(opened) => opened,
        Err(error) => return Ended::Failed(error),
    };
    loop {
        let answer: WatchResponse = match answers.next().await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ended::Failed(CallError::Interrupted("etcd ended the stream".to_owned())),
            Err(error) => return Ended::Failed(error),
        };
        let current = answer.header.as_ref().map_or(0, |header| core.place.to_ours(header.revision));
        if answer.compact_revision > 0 {
            return Ended::Compacted(core.place.to_ours(answer.compact_revision));
        }
        if answer.canceled {
            return Ended::Failed(CallError::Interrupted(format!("cancelled: {}", answer.cancel_reason)));
        }
        if answer.created && current < *from {
            tracing::error!(current, seen = *from, "etcd's revisions went back: is it a copy of an older state?");
            return Ended::Compacted(current);
        }
        for event in &answer.events {
            match translate(core, event) {
                Some(Ok(event)) => {
                    *from = event.revision;
                    publish(core, event);
                }
                // The state before is gone, and with it what filters need.
                Some(Err(revision)) => {
                    begin_anew(core, revision);
                    *from = revision;
                }
                None => {}
            }
        }
        // An answer without events says how far there are none.
        if answer.events.is_empty() && !answer.created && current > *from {
            *from = current;
            core.hub.advance(current);
            core.arrived();
        }
    }
}

fn publish(core: &Core, event: Event) {
    let event = Arc::new(event);
    core.recent.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&event));
    core.hub.publish(&[event]);
    core.arrived();
}

/// An event in our words; `None` for what is not ours, the revision where the state before is compacted.
fn translate(core: &Core, event: &messages::Event) -> Option<Result<Event, Revision>> {
    let kv = event.kv.as_ref()?;
    let entry = core.place.entry(kv)?;
    let revision = entry.mod_revision;
    let previous: Option<Entry> = event.prev_kv.as_ref().and_then(|kv: &KeyValue| core.place.entry(kv));
    let change = match (event.r#type, previous) {
        (0, None) if entry.create_revision != revision => return Some(Err(revision)),
        (0, previous) => Change::Put { entry, previous },
        (_, Some(previous)) => Change::Delete { previous },
        (_, None) => return Some(Err(revision)),
    };
    Some(Ok(Event { revision, change }))
}
