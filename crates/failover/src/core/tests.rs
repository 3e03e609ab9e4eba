//! Single decisions, where the simulation once found a write lost.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::*;
use crate::engine::{Standby, Synchronous};

fn members(names: &str) -> std::collections::BTreeSet<MemberId> {
    names.chars().map(|name| MemberId::new(name.to_string())).collect()
}

/// Epoch 1 of `a`, open; held by `holder`, seen and written just now.
fn record(holder: &str, voters: &str, quorum: usize) -> Record {
    let mut record = Record { holder: Some(holder.into()), epoch: 1, renewal: 7, ..Record::default() };
    (record.voters, record.quorum) = (members(voters), quorum);
    record.open("a".into(), Position::default());
    record
}

fn local(id: &str, server: Server) -> Local {
    Local {
        id: id.into(),
        priority: 100,
        server,
        lineage: Lineage { epoch: 1, from: Position::default() },
        promise: None,
        began: None,
        silent_since_ms: None,
        rebuild: None,
        starved_since_ms: None,
        rising: false,
        full: false,
        failed: false,
        system: None,
        busy: false,
        started_ms: 1,
    }
}

fn lease(record: Record) -> LeaseView {
    let (read_ms, written_ms) = (Some(1000), Some(1000));
    LeaseView {
        record: Some(record),
        changed_ms: 1000,
        read_ms,
        written_ms,
        attempted_ms: Some(1000),
        ..LeaseView::default()
    }
}

fn view<'a>(me: Local, lease: LeaseView, policy: &'a Policy, peers: &'a BTreeMap<MemberId, Peer>) -> View<'a> {
    View { now_ms: 1010, policy, me, lease, peers, handover: None }
}

/// Its position would be compared without the epochs that are not known yet.
#[test]
fn after_a_restart_a_promise_is_told_only_once_the_lease_is_known() {
    let (policy, peers) = (Policy::default(), BTreeMap::new());
    let mut me = local("b", Server::Replica { offset: 100, follows: None });
    me.promise = Some(Promise { epoch: 1, renewal: 7 });
    assert_eq!(standing(&view(me.clone(), LeaseView::default(), &policy, &peers)).promise, None);
    let older = Record { renewal: 6, ..record("a", "abc", 2) };
    assert_eq!(standing(&view(me.clone(), lease(older), &policy, &peers)).promise, None);
    let known = standing(&view(me.clone(), lease(record("a", "abc", 2)), &policy, &peers));
    assert_eq!((known.promise, known.position), (me.promise, Some(Position { epoch: 1, offset: 100 })));
}

/// The answer to a write may be lost, and the write done.
#[test]
fn a_record_in_doubt_must_be_satisfied_too() {
    let policy = Policy::default();
    let standing =
        Standing { priority: 100, position: None, promise: None, follows: Some(1), primary: None, diverged: false };
    let peers =
        members("bc").into_iter().map(|id| (id, Peer { standing: Some(standing.clone()), heard_ms: 1000 })).collect();
    let standby = |member: MemberId| Standby { member, offset: 100, streaming: true };
    let me = local(
        "a",
        Server::Primary {
            offset: 100,
            standbys: members("c").into_iter().map(standby).collect(),
            synchronous: Synchronous { standbys: members("b"), count: 1 },
            since: 50,
        },
    );
    // By what is known the primary alone counts, so that another may take b's place at once; by what may have been written, a and b do.
    let mut known = lease(record("a", "ab", 2));
    assert!(matches!(decide(&view(me.clone(), known.clone(), &policy, &peers)).action, Action::Synchronise(_)));
    known.doubtful.push(Record { renewal: 8, ..record("a", "ab", 1) });
    assert_eq!(decide(&view(me, known, &policy, &peers)).action, Action::Wait);
}

/// Nobody has what it wrote then; it must not follow with it in its files.
#[test]
fn writes_of_an_epoch_that_never_opened_are_thrown_away() {
    let (policy, peers) = (Policy::default(), BTreeMap::new());
    let mut me = local("b", Server::Replica { offset: 120, follows: None });
    me.lineage = Lineage { epoch: 2, from: Position { epoch: 1, offset: 100 } };
    let mut now = record("c", "ac", 1);
    now.epoch = 3;
    now.open("c".into(), Position { epoch: 1, offset: 100 });
    let plan = decide(&view(me.clone(), lease(now.clone()), &policy, &peers));
    assert_eq!(plan.action, Action::StopToRebuild(crate::engine::Rebuild::Rewind));
    me.server = Server::Replica { offset: 100, follows: None };
    assert!(matches!(decide(&view(me, lease(now), &policy, &peers)).action, Action::Follow(..)), "without any");
}
