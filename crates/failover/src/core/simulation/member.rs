//! One member: what is on its disk, what its server does, what its steward knows.

use std::collections::BTreeMap;

use super::ledger::Entry;
use crate::core::{Action, LeaseView, Lineage, Local, MemberId, Peer, Policy, Position, Promise, Record, Server, View};
use crate::engine::{Rebuild, Standby, Synchronous};

/// A primary's replica: when it was heard last, and what it has on disk.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) offset: u64,
    pub(super) at: u64,
}

/// The server's process.
#[derive(Debug, Clone)]
pub(super) enum Process {
    None,
    Replica { source: Option<(MemberId, u64)>, connection: u64 },
    Primary { epoch: u64, synchronous: Synchronous, since: u64, seen: BTreeMap<MemberId, Seen>, acknowledged: u64 },
}

pub(super) struct Member {
    pub(super) id: MemberId,
    // On disk.
    pub(super) log: Option<Vec<Entry>>,
    pub(super) lineage: Lineage,
    pub(super) promise: Option<Promise>,
    // The server.
    pub(super) process: Process,
    // The steward.
    pub(super) up: bool,
    pub(super) paused_until: u64,
    pub(super) server_paused_until: u64,
    pub(super) lease: LeaseView,
    /// The last write of it.
    pub(super) sent: Record,
    pub(super) peers: BTreeMap<MemberId, Peer>,
    pub(super) job: Option<(u64, Action)>,
    pub(super) rebuild: Option<Rebuild>,
    pub(super) began: Option<Position>,
    pub(super) started_ms: u64,
    pub(super) asked_ms: u64,
    pub(super) read_ms: u64,
    pub(super) confirmed_ms: u64,
    pub(super) silent_since_ms: Option<u64>,
    /// Its clock: an offset, and its rate in thousandths.
    pub(super) clock: (u64, u64),
}

impl Member {
    /// Writes of the primary arrived, from place `at` of its log on.
    pub(super) fn pushed(&mut self, connection: u64, at: u64, entries: Vec<Entry>) {
        if let (Process::Replica { connection: open, .. }, Some(log)) = (&self.process, &mut self.log)
            && *open == connection
            && log.len() as u64 >= at
        {
            let known = (log.len() as u64 - at) as usize;
            log.extend(entries.into_iter().skip(known));
        }
    }

    pub(super) fn new(id: MemberId, clock: (u64, u64)) -> Self {
        Self {
            id,
            log: None,
            lineage: Lineage::default(),
            promise: None,
            process: Process::None,
            up: true,
            paused_until: 0,
            server_paused_until: 0,
            lease: LeaseView::default(),
            sent: Record::default(),
            peers: BTreeMap::new(),
            job: None,
            rebuild: None,
            began: None,
            started_ms: clock.0,
            asked_ms: 0,
            read_ms: 0,
            confirmed_ms: 0,
            silent_since_ms: None,
            clock,
        }
    }

    /// What its clock shows at this true time.
    pub(super) fn clock(&self, now: u64) -> u64 {
        self.clock.0 + now * self.clock.1 / 1000
    }

    /// The machine dies: only the disk stays.
    pub(super) fn crash(&mut self) {
        self.process = Process::None;
        self.up = false;
        self.lease = LeaseView::default();
        self.peers.values_mut().for_each(|peer| *peer = Peer::default());
        self.job = None;
        self.rebuild = None;
        self.began = None;
        self.silent_since_ms = None;
        self.paused_until = 0;
        self.server_paused_until = 0;
    }

    pub(super) fn start(&mut self, now: u64) {
        self.up = true;
        self.started_ms = self.clock(now);
    }

    pub(super) fn length(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| log.len() as u64)
    }

    pub(super) fn writable(&self) -> bool {
        matches!(self.process, Process::Primary { .. })
    }

    pub(super) fn view<'a>(&'a self, policy: &'a Policy, now: u64) -> View<'a> {
        let now_ms = self.clock(now);
        let offset = self.length();
        let begins = matches!(self.job, Some((_, Action::StartPrimary(..) | Action::StartReplica)));
        let server = match (&self.process, &self.log) {
            (Process::None, Some(_)) if begins => Server::Starting,
            (Process::None, None) => Server::Empty,
            (Process::None, Some(_)) => Server::Stopped,
            (Process::Replica { source, .. }, _) => Server::Replica { offset, follows: source.as_ref().map(|it| it.1) },
            (Process::Primary { synchronous, since, seen, .. }, _) => Server::Primary {
                offset,
                standbys: seen.iter().map(|(id, seen)| standby(id, seen, policy, now)).collect(),
                synchronous: synchronous.clone(),
                since: *since,
            },
        };
        let rising = matches!(self.job, Some((_, Action::Promote(..) | Action::StartPrimary(..))));
        let me = Local {
            id: self.id.clone(),
            priority: 100,
            server,
            lineage: self.lineage,
            promise: self.promise,
            began: self.began,
            silent_since_ms: self.silent_since_ms,
            rebuild: self.rebuild,
            starved_since_ms: None,
            rising,
            full: false,
            failed: false,
            system: Some("system".to_owned()),
            busy: self.job.is_some(),
            started_ms: self.started_ms,
        };
        View { now_ms, policy, me, lease: self.lease.clone(), peers: &self.peers, handover: None }
    }
}

fn standby(id: &MemberId, seen: &Seen, policy: &Policy, now: u64) -> Standby {
    let streaming = now < seen.at + policy.timing.unhealthy_ms;
    Standby { member: id.clone(), offset: seen.offset, streaming }
}
