//! The words of the decision: who, how far, in which role.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The name of a member: the name of its pod. Names are ordered with numbers as numbers, so `db-2` is before `db-10`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberId(String);

impl MemberId {
    /// A member of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name without the number at its end, and that number: what ids are ordered by.
    fn key(&self) -> (&str, u64, &str) {
        let stem = self.0.trim_end_matches(|c: char| c.is_ascii_digit());
        (stem, self.0[stem.len()..].parse().unwrap_or(0), &self.0)
    }
}

impl PartialOrd for MemberId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for MemberId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for MemberId {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

/// What a server does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It accepts writes.
    Primary,
    /// It only receives, or waits to.
    Replica,
}

impl Role {
    /// The word in labels and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
        }
    }
}

/// How much of the log of writes a member has. Later epochs come after earlier ones whatever the offset: the first write of a
/// primary stands upon everything that was acknowledged before it (as in Raft, section 5.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    /// The epoch in which the newest write it has was made.
    pub epoch: u64,
    /// Where that write ends: bytes of log (PostgreSQL's LSN, Redis' offset) or number of transactions (GTID). A restart or a
    /// change of primary never lowers it for writes that are kept.
    pub offset: u64,
}

/// A member's word: it no longer receives from the primary of `epoch`, and will not again unless it sees a renewal of the Lease
/// later than `renewal`. Kept on disk before it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Promise {
    /// The epoch given up.
    pub epoch: u64,
    /// The Lease as it was seen: [`super::Record::renewal`].
    pub renewal: u64,
}
