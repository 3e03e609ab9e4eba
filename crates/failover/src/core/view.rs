//! All that a decision may look at.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::quorum::confirmed_since;
use super::record::{Lineage, Record};
use super::timing::Timing;
use super::types::{MemberId, Position, Promise};
use crate::engine::{Rebuild, Standby, Synchronous};

/// What the people who run the database want.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The times.
    pub timing: Timing,
    /// On how many replicas a write must be before it is acknowledged; 0 is asynchronous replication.
    pub synchronous: usize,
    /// Refuse writes rather than acknowledge them with fewer replicas than that (at least one).
    pub strict: bool,
    /// Every member votes, well or not: for engines whose acknowledgements may come from any of them, whatever was agreed.
    pub all_vote: bool,
    /// Asynchronous: who is further behind than this is not elected.
    pub lag_max: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self { timing: Timing::default(), synchronous: 1, strict: true, all_vote: false, lag_max: 1 << 20 }
    }
}

/// What one member knows at one moment.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// Its monotonic clock.
    pub now_ms: u64,
    /// What is wanted.
    pub policy: &'a Policy,
    /// Itself.
    pub me: Local,
    /// The Lease as it knows it.
    pub lease: LeaseView,
    /// All other members.
    pub peers: &'a BTreeMap<MemberId, Peer>,
    /// Somebody asked for another primary.
    pub handover: Option<Handover>,
}

/// A request to move the primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// To whom; `None`: the best.
    pub to: Option<MemberId>,
}

/// The member itself.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools)] // each is a fact of its own
pub struct Local {
    /// Its name.
    pub id: MemberId,
    /// Higher is elected first among equals; 0 never.
    pub priority: u32,
    /// Its server.
    pub server: Server,
    /// Whose writes its files are a beginning of.
    pub lineage: Lineage,
    /// Its last promise.
    pub promise: Option<Promise>,
    /// What its files had when it was promoted in the epoch it holds.
    pub began: Option<Position>,
    /// Since when its server has not answered.
    pub silent_since_ms: Option<u64>,
    /// Its server was stopped because its files must be made anew.
    pub rebuild: Option<Rebuild>,
    /// Since when it follows, but receives nothing.
    pub starved_since_ms: Option<u64>,
    /// The server is being made a primary, or started as one.
    pub rising: bool,
    /// Its disk is full, or nearly so.
    pub full: bool,
    /// It was elected a moment ago, and could not be promoted.
    pub failed: bool,
    /// The identity of its data.
    pub system: Option<String>,
    /// An action on the server is under way.
    pub busy: bool,
    /// When this steward began.
    pub started_ms: u64,
}

/// The server, as its steward sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// There is no data.
    Empty,
    /// There is data, and no process.
    Stopped,
    /// There is a process that has not answered yet.
    Starting,
    /// It accepts no writes.
    Replica {
        /// What it has.
        offset: u64,
        /// The epoch it was told to follow; `None`: it receives nothing.
        follows: Option<u64>,
    },
    /// It accepts writes.
    Primary {
        /// What it has.
        offset: u64,
        /// Its replicas.
        standbys: Vec<Standby>,
        /// What commits wait for.
        synchronous: Synchronous,
        /// What it had when that came into force.
        since: u64,
    },
}

/// The Lease, as this member knows it.
#[derive(Debug, Clone, Default)]
pub struct LeaseView {
    /// The newest seen. `None`: there is none, or it was never read.
    pub record: Option<Record>,
    /// When that was first seen.
    pub changed_ms: u64,
    /// When the newest answered look at it was **asked** for; `None`: never.
    pub read_ms: Option<u64>,
    /// When the newest acknowledged write of it by this member was **sent**.
    pub written_ms: Option<u64>,
    /// Writes of it by this member of which nobody knows whether they were done.
    pub doubtful: Vec<Record>,
    /// When peers were asked that confirmed this member's epoch.
    pub confirmed: BTreeMap<MemberId, u64>,
    /// Until when this member gave its word to the holder to stay out of an election.
    pub pledged_until_ms: u64,
    /// A write is under way.
    pub writing: bool,
    /// When the last write was begun, acknowledged or not.
    pub attempted_ms: Option<u64>,
}

/// Another member.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// What it said last.
    pub standing: Option<Standing>,
    /// When it was asked that.
    pub heard_ms: u64,
}

/// What a member says of itself to those who ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Its priority; 0 while its disk is full, and for a while after a promotion that failed.
    pub priority: u32,
    /// What it has, if its server runs; taken after `promise` was given.
    pub position: Option<Position>,
    /// Its last promise.
    pub promise: Option<Promise>,
    /// The epoch it follows.
    pub follows: Option<u64>,
    /// It is the primary of this epoch.
    pub primary: Option<u64>,
    /// It must be made anew, and waits to be dropped from the voters.
    pub diverged: bool,
}

impl View<'_> {
    /// How much is in the files of the member's server, if it runs.
    pub fn offset(&self) -> Option<u64> {
        match &self.me.server {
            Server::Replica { offset, .. } | Server::Primary { offset, .. } => Some(*offset),
            Server::Empty | Server::Stopped | Server::Starting => None,
        }
    }

    /// The member's own position, if its server runs.
    pub fn position(&self) -> Option<Position> {
        let offset = self.offset()?;
        let place = |record: &Record| record.place(self.me.lineage, offset);
        Some(self.lease.record.as_ref().map_or(Position { epoch: 0, offset }, place))
    }

    /// Until when this member may let its server accept writes, if it is the holder.
    pub fn hold_until_ms(&self) -> Option<u64> {
        let record = self.lease.record.as_ref()?;
        // It may have given up the Lease, or taken it anew.
        if self.lease.doubtful.iter().any(|it| it.holder != record.holder || it.epoch != record.epoch) {
            return None;
        }
        // A write in doubt may have changed who can be elected: then that must be impossible both ways.
        let records = self.lease.doubtful.iter().chain([record]);
        let since = records.map(|record| confirmed_since(record, &self.me.id, &self.lease.confirmed)).min();
        let confirmed = since.flatten().unwrap_or(0);
        Some(self.lease.written_ms?.max(confirmed).saturating_add(self.policy.timing.hold_ms()))
    }

    /// Whether the Lease can be taken: given up, or run out as of an answer from the API.
    pub fn vacant(&self) -> bool {
        let Some(record) = &self.lease.record else { return false };
        if record.holder.is_none() {
            return true;
        }
        let silent = self.lease.read_ms.is_some_and(|read| read >= self.lease.changed_ms + self.policy.timing.ttl_ms);
        silent && self.now_ms >= self.lease.pledged_until_ms
    }

    /// Whether this member promised to stand still for exactly the Lease as it is.
    pub fn promised(&self) -> bool {
        let record = self.lease.record.as_ref();
        record.zip(self.me.promise).is_some_and(|(record, promise)| binds(promise, record))
    }

    /// Peers that were heard of within the time of unhealthiness.
    pub fn alive(&self) -> impl Iterator<Item = (&MemberId, &Standing)> {
        let oldest = self.now_ms.saturating_sub(self.policy.timing.unhealthy_ms);
        self.peers.iter().filter_map(move |(id, peer)| {
            let standing = peer.standing.as_ref().filter(|_| peer.heard_ms >= oldest)?;
            Some((id, standing))
        })
    }
}

/// How a write to the Lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It is done.
    Done,
    /// Another was faster.
    Conflict,
    /// Nobody knows.
    Unknown,
}

impl LeaseView {
    /// The Lease was seen.
    pub fn saw(&mut self, record: Record, now_ms: u64) {
        if let Some(known) = &self.record {
            if record.renewal <= known.renewal {
                return;
            }
            if record.holder != known.holder || record.epoch != known.epoch {
                self.confirmed.clear();
                self.written_ms = None;
            }
        }
        self.doubtful.retain(|it| it.renewal > record.renewal);
        self.record = Some(record);
        self.changed_ms = now_ms;
    }

    /// The API answered a look at the Lease that was asked for at this time. Whether it exists or not.
    pub fn answered(&mut self, asked_ms: u64) {
        self.read_ms = self.read_ms.max(Some(asked_ms));
    }

    /// A write is sent.
    pub fn begin(&mut self, record: Record, now_ms: u64) {
        self.writing = true;
        self.attempted_ms = Some(now_ms);
        let alike = |it: &Record| Record { renewal: 0, offset: 0, ..it.clone() };
        // Of many that only keep the Lease, the newest says it all.
        self.doubtful.retain(|it| alike(it) != alike(&record));
        self.doubtful.push(record);
    }

    /// The write that was sent at `sent_ms` has ended.
    pub fn end(&mut self, record: Record, sent_ms: u64, written: Written, now_ms: u64) {
        self.writing = false;
        match written {
            Written::Done => {
                self.saw(record, now_ms);
                self.written_ms = Some(sent_ms);
            }
            Written::Conflict => self.doubtful.retain(|it| it.renewal != record.renewal || *it != record),
            Written::Unknown => {}
        }
    }
}

/// Whether a promise forbids to receive from the holder of this record.
pub(crate) fn binds(promise: Promise, record: &Record) -> bool {
    promise.renewal >= record.renewal
}
