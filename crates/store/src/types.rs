//! The words of the store: entries, events and conditions.

use std::sync::Arc;

use bytes::Bytes;

/// The store's one global counter: every put and every delete advances it by one.
///
/// It starts at 1 on an empty store (the first write gets 2, as in etcd), never goes back, and may skip numbers after a
/// crash. 0 is never the revision of anything.
pub type Revision = u64;

/// A key with its value, as it was at some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key, at most 1,024 bytes, not empty.
    pub key: Arc<str>,
    /// The value: opaque bytes, shared and never copied once read.
    pub value: Bytes,
    /// The revision that created the key (after its last deletion, if there was one).
    pub create_revision: Revision,
    /// The revision that last changed the key.
    pub mod_revision: Revision,
}

/// What a write requires of the key's present state; if it does not hold, the write fails with
/// [`Error::Conflict`](crate::Error::Conflict) and changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist: a create.
    Absent,
    /// The key exists and was last changed by this revision: a compare-and-swap.
    Revision(Revision),
    /// No condition on a put; on a delete: the key exists.
    Any,
}

/// When a write may be acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// After it is on disk. The default, and right for everything that somebody would miss.
    #[default]
    Immediate,
    /// As soon as it is visible to reads and watches; it reaches the disk with the next durable write, or by itself
    /// within a second. For values that are renewed all the time and worth nothing after a restart, such as the
    /// heartbeat Leases of nodes.
    ///
    /// If the machine or the process dies before that, the value of before is back. Its revision is not given out again,
    /// and whoever saw it and asks to read or watch from it is told
    /// [`Compacted`](crate::Error::Compacted), so that it lists again instead of believing in what is gone.
    Relaxed,
}

/// The answer to a delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// The entry as it was last.
    pub entry: Entry,
    /// The revision of the deletion itself.
    pub revision: Revision,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The revision of the change. No two events have the same.
    pub revision: Revision,
    /// What changed.
    pub change: Change,
}

/// What an [`Event`] says about its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key got a value.
    Put {
        /// The new state.
        entry: Entry,
        /// The state before; `None` if this created the key. Filters need it: an object that stops matching a selector
        /// is a deletion to whoever watches by that selector.
        previous: Option<Entry>,
    },
    /// The key was removed.
    Delete {
        /// The state before.
        previous: Entry,
    },
}

impl Event {
    /// The key this event is about.
    pub fn key(&self) -> &Arc<str> {
        match &self.change {
            Change::Put { entry, .. } => &entry.key,
            Change::Delete { previous } => &previous.key,
        }
    }
}

/// The answer to a range read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The entries in ascending byte order of their keys.
    pub entries: Vec<Entry>,
    /// The revision these entries show: the one asked for, else the store's present one. Watching from it (exclusive)
    /// continues this list without gap or duplicate; reading at it gives the next page of the same state.
    pub revision: Revision,
    /// How many more entries follow beyond the limit; 0 when no limit was given or reached.
    pub remaining: u64,
}

impl Range {
    /// Whether the limit cut the answer short.
    pub fn more(&self) -> bool {
        self.remaining > 0
    }
}

/// The answer to defragmentation: how much disk the store took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defragmented {
    /// Before, in bytes; of all members of an etcd together.
    pub before_bytes: u64,
    /// After, in bytes.
    pub after_bytes: u64,
}
