//! What the watchers of one change share: the object as it is read, and the line that tells of it.
//!
//! Role: a change is read and written once, however many watch it; five thousand agents that each ask for the pods of
//! their node would decode every pod five thousand times.
//!
//! Guarantees: bounded by [`SLOTS`] changes of at most [`LARGEST`] bytes; what does not fit is made for each watcher.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use serde_json::Value;

use crate::registry::Served;
use crate::rest::decode;
use crate::rest::text::{self, Shape};

/// How many changes are remembered: those that the slower watchers have still to see.
const SLOTS: usize = 64;
/// Changes of larger objects, in bytes as stored, are not remembered.
const LARGEST: usize = 64 * 1024;
/// What a watch can say of an object.
const KINDS: [&str; 3] = ["ADDED", "MODIFIED", "DELETED"];
/// Of an object, and of its metadata.
const LINES: usize = KINDS.len() * 2;

/// The latest changes, by revision.
pub(crate) struct Seen {
    slots: [Mutex<Option<Arc<View>>>; SLOTS],
}

impl Default for Seen {
    fn default() -> Self {
        Self { slots: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl Seen {
    /// The shared view of the change at a revision, as a kind of this version.
    pub(crate) fn view(&self, resource: &Served, revision: u64, size: usize) -> Arc<View> {
        let new = || Arc::new(View::of(resource, revision));
        if size > LARGEST {
            return new();
        }
        let place = usize::try_from(revision % SLOTS as u64).unwrap_or_default();
        let mut slot = self.slots[place].lock().unwrap_or_else(PoisonError::into_inner);
        let known = slot.as_ref().filter(|view| view.revision == revision && view.version == resource.api_version());
        // A watcher far behind must not push out what all others are looking at.
        let is_late = slot.as_ref().is_some_and(|view| view.revision > revision);
        match known {
            Some(view) => view.clone(),
            None if is_late => new(),
            None => slot.insert(new()).clone(),
        }
    }
}

/// One change, as objects of one version.
pub(crate) struct View {
    revision: u64,
    version: String,
    after: OnceLock<Value>,
    before: OnceLock<Value>,
    lines: [OnceLock<Bytes>; LINES],
}

impl View {
    fn of(resource: &Served, revision: u64) -> Self {
        let (after, before) = (OnceLock::new(), OnceLock::new());
        Self { revision, version: resource.api_version(), after, before, lines: Default::default() }
    }

    /// The object that was put.
    pub(crate) fn after(&self, resource: &Served, stored: &[u8]) -> &Value {
        self.after.get_or_init(|| decode(resource, stored, self.revision))
    }

    /// The object that was there before, for filters.
    pub(crate) fn before(&self, resource: &Served, stored: &[u8]) -> &Value {
        self.before.get_or_init(|| decode(resource, stored, self.revision))
    }

    /// The line that says `kind` of the object stored as `stored`. For one change and kind that is always the same.
    pub(crate) fn line(&self, kind: &'static str, resource: &Served, stored: &[u8], shape: Shape) -> Bytes {
        let make = || line(kind, resource, stored, self.revision, shape);
        let of_metadata = if shape == Shape::Metadata { KINDS.len() } else { 0 };
        match KINDS.iter().position(|known| *known == kind) {
            Some(place) => self.lines[place + of_metadata].get_or_init(make).clone(),
            None => make(),
        }
    }
}

/// A line of a watch: what happened, and the object.
pub(crate) fn line(kind: &str, resource: &Served, stored: &[u8], revision: u64, shape: Shape) -> Bytes {
    let mut line = Vec::with_capacity(stored.len() + 96);
    line.extend_from_slice(format!("{{\"type\":\"{kind}\",\"object\":").as_bytes());
    text::append(&mut line, resource, stored, revision, shape);
    line.extend_from_slice(b"}\n");
    Bytes::from(line)
}
