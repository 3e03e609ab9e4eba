//! Events: what people see under `kubectl describe`. Repeated ones are counted, floods are cut off.
//!
//! Flow: [`Events::tell`] puts an event into a bounded queue; a task aggregates ([`Aggregator`], pure) and writes.
//!
//! Guarantees: telling never waits. Deliberately absent: any promise that an event arrives.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;

use crate::pod::io::PodEvent;

/// Events waiting to be written; more are dropped.
const QUEUE_MAX: usize = 512;
/// Kinds of events remembered for counting.
const KNOWN_MAX: usize = 1024;
/// The kubelet's limits per object: a burst, then one in five minutes.
const BURST: f64 = 25.0;
const PER_SECOND: f64 = 1.0 / 300.0;

/// An event about a pod on its way.
#[derive(Debug, Clone)]
pub struct Told {
    /// The pod, and the container's field path.
    pub about: core::ObjectReference,
    /// What happened.
    pub event: PodEvent,
}

/// Where events are told.
#[derive(Clone)]
pub struct Events(mpsc::Sender<Told>);

impl Events {
    /// A queue, and the task that writes from it.
    pub fn start(client: kube::Client, node: &str) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(write(client, node.to_owned(), receiver));
        Self(sender)
    }

    /// Tells of an event about a pod; dropped if too many wait.
    pub fn tell(&self, pod: &core::Pod, event: PodEvent) {
        let field = event.container.as_ref().map(|name| format!("spec.containers{{{name}}}"));
        let about = core::ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: None,
            field_path: field,
        };
        let _ = self.0.try_send(Told { about, event });
    }
}

/// What to write for an event.
#[derive(Debug, PartialEq)]
pub enum Write {
    /// A new event of this name.
    Create(String),
    /// The event of this name happened again.
    Count(String, i32),
    /// Nothing: too many about this object.
    Drop,
}

struct Known {
    name: String,
    count: i32,
    last: Timestamp,
}

/// Counts repeated events and limits floods. Pure.
#[derive(Default)]
pub struct Aggregator {
    known: HashMap<(String, &'static str, String), Known>,
    /// Tokens left per object, and when that was.
    buckets: HashMap<String, (f64, Timestamp)>,
}

impl Aggregator {
    /// Decides about one event.
    pub fn note(&mut self, told: &Told, now: Timestamp) -> Write {
        let uid = told.about.uid.clone().unwrap_or_default();
        if !self.spend(&uid, now) {
            return Write::Drop;
        }
        let field = told.about.field_path.as_deref().unwrap_or_default();
        let key = (format!("{uid}{field}"), told.event.reason, told.event.message.clone());
        if let Some(known) = self.known.get_mut(&key) {
            (known.count, known.last) = (known.count.saturating_add(1), now);
            return Write::Count(known.name.clone(), known.count);
        }
        if self.known.len() >= KNOWN_MAX {
            self.forget(now);
        }
        // As the kubelet names them: the object's name and the time in nanoseconds, in hexadecimal.
        let serial = (now.as_nanosecond() as u64).wrapping_add(self.known.len() as u64);
        let name = format!("{}.{serial:x}", told.about.name.as_deref().unwrap_or_default());
        self.known.insert(key, Known { name: name.clone(), count: 1, last: now });
        Write::Create(name)
    }

    fn spend(&mut self, uid: &str, now: Timestamp) -> bool {
        let (tokens, since) = self.buckets.get(uid).copied().unwrap_or((BURST, now));
        let filled = (tokens + now.duration_since(since).as_secs_f64().max(0.0) * PER_SECOND).min(BURST);
        let enough = filled >= 1.0;
        self.buckets.insert(uid.to_owned(), (if enough { filled - 1.0 } else { filled }, now));
        enough
    }

    /// Drops what has not happened lately; all of it, if that is not enough.
    fn forget(&mut self, now: Timestamp) {
        let recent = |last: Timestamp| now.duration_since(last) < SignedDuration::from_mins(10);
        self.known.retain(|_, known| recent(known.last));
        self.buckets.retain(|_, (_, since)| recent(*since));
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
    }
}

async fn write(client: kube::Client, node: String, mut queue: mpsc::Receiver<Told>) {
    let mut aggregator = Aggregator::default();
    while let Some(told) = queue.recv().await {
        let now = Timestamp::now();
        let api: Api<core::Event> =
            Api::namespaced(client.clone(), told.about.namespace.as_deref().unwrap_or("default"));
        let result = match aggregator.note(&told, now) {
            Write::Drop => continue,
            Write::Create(name) => {
                let event = object(&told, name, &node, now);
                api.create(&PostParams::default(), &event).await.map(drop)
            }
            Write::Count(name, count) => {
                let last = crate::pod::status::time(now);
                let patch = json!({"count": count, "lastTimestamp": last, "message": told.event.message});
                api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, reason = told.event.reason, "event not written");
        }
    }
}

fn object(told: &Told, name: String, node: &str, now: Timestamp) -> core::Event {
    let time = crate::pod::status::time(now);
    let mut event = core::Event {
        involved_object: told.about.clone(),
        reason: Some(told.event.reason.to_owned()),
        message: Some(told.event.message.clone()),
        type_: Some(if told.event.warning { "Warning" } else { "Normal" }.to_owned()),
        count: Some(1),
        first_timestamp: Some(time.clone()),
        last_timestamp: Some(time),
        source: Some(core::EventSource { component: Some("kubelet".to_owned()), host: Some(node.to_owned()) }),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..core::Event::default()
    };
    event.metadata.name = Some(name);
    event.metadata.namespace.clone_from(&told.about.namespace);
    event
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn repeated_events_are_counted_and_floods_cut_off() {
        let mut aggregator = Aggregator::default();
        let about = core::ObjectReference {
            uid: Some("u".to_owned()),
            name: Some("web".to_owned()),
            ..core::ObjectReference::default()
        };
        let told = Told { about, event: PodEvent::warning("BackOff", "app", "again".to_owned()) };
        let now = Timestamp::UNIX_EPOCH;
        let Write::Create(name) = aggregator.note(&told, now) else { panic!("the first one is created") };
        assert_eq!(aggregator.note(&told, now), Write::Count(name.clone(), 2));
        let written = (0..100).filter(|_| aggregator.note(&told, now) != Write::Drop).count();
        assert_eq!(written, 23);
        let later = now.checked_add(SignedDuration::from_secs(301)).unwrap();
        assert_eq!(aggregator.note(&told, later), Write::Count(name, 26));
        assert_eq!(aggregator.note(&told, later), Write::Drop);
    }
}
