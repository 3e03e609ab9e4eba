//! One decision: the facts the rows ask for, and the action a row comes to.

use std::collections::BTreeSet;

use super::election::{Refusal, stand};
use super::quorum::{self, Copies, Step};
use super::record::{Lineage, Record};
use super::table::{Action, Row, Stage, TABLE, Tenure, Verb};
use super::types::{MemberId, Position, Promise};
use super::view::{Server, Standing, View};
use crate::engine::{Rebuild, Synchronous};

/// A replica that receives nothing for so long, with a primary there, needs its files made anew.
const STARVED_MS: u64 = 10_000;

/// For so long a member that gave up the Lease leaves the election to others.
const LEAVE_MS: u64 = 400;

/// What was decided.
pub struct Plan {
    /// Where the member is.
    pub stage: Stage,
    /// How the Lease looks to it.
    pub tenure: Tenure,
    /// The row that matched.
    pub row: &'static Row,
    /// What to do about the server or the Lease.
    pub action: Action,
    /// Why it does not stand, where it could.
    pub refusal: Option<Refusal>,
    /// What to write to the Lease, only to keep it.
    pub renew: Option<Record>,
}

/// Decides.
pub fn decide(view: &View<'_>) -> Plan {
    let (stage, tenure) = (stage(view), tenure(view));
    let applies = |row: &&Row| {
        row.from.contains(&stage) && (row.tenure.is_empty() || row.tenure.contains(&tenure)) && (row.when)(view)
    };
    // The last row of each stage takes what is left; without any, waiting is always safe but for a primary, whose rows are complete.
    let row = TABLE.iter().find(applies).unwrap_or(&TABLE[TABLE.len() - 1]);
    let (action, refusal) = match act(view, row.verb) {
        Ok(action) => (action, None),
        Err(refusal) => (Action::Wait, Some(refusal)),
    };
    let action = if possible(view, &action) { action } else { Action::Wait };
    let renew = (tenure == Tenure::Mine && !matches!(action, Action::Write(_))).then(|| renewal(view)).flatten();
    Plan { stage, tenure, row, action, refusal, renew }
}

/// What a member says of itself. Its promise may only be told with a position that was taken afterwards; the view has them so.
/// And a position means something only to one who knows the epochs: after a restart a member is silent of its promise until it has
/// seen the Lease as it was then, or later.
pub fn standing(view: &View<'_>) -> Standing {
    let record = view.lease.record.as_ref();
    let knows = |promise: &Promise| record.is_some_and(|record| record.renewal >= promise.renewal);
    Standing {
        priority: if view.me.full || view.me.failed { 0 } else { view.me.priority },
        position: view.position(),
        promise: view.me.promise.filter(knows),
        follows: match view.me.server {
            Server::Replica { follows, .. } => follows,
            _ => None,
        },
        primary: record.filter(|_| stage(view) == Stage::Primary).map(|record| record.epoch),
        diverged: tenure(view) == Tenure::Open && diverged(view),
    }
}

/// Whether a holder may count on this member for now: it knows the same holder and has promised nothing against it. If so, the
/// member must stay out of elections for a ttl from now.
pub fn confirms(view: &View<'_>, holder: &MemberId, epoch: u64) -> bool {
    let known = view.lease.record.as_ref();
    known.is_some_and(|record| record.holder.as_ref() == Some(holder) && record.epoch == epoch) && !view.promised()
}

fn stage(view: &View<'_>) -> Stage {
    match &view.me.server {
        Server::Empty => Stage::Empty,
        Server::Stopped => Stage::Stopped,
        Server::Starting => Stage::Starting,
        Server::Replica { follows: None, .. } => Stage::Still,
        Server::Replica { .. } => Stage::Following,
        Server::Primary { .. } => Stage::Primary,
    }
}

fn tenure(view: &View<'_>) -> Tenure {
    let Some(record) = &view.lease.record else {
        return if view.lease.read_ms.is_some() { Tenure::Absent } else { Tenure::Unknown };
    };
    if record.holder.as_ref() == Some(&view.me.id) {
        let held = view.hold_until_ms().is_some_and(|until| view.now_ms < until);
        return if held { Tenure::Mine } else { Tenure::Lapsed };
    }
    match () {
        () if view.vacant() => Tenure::Vacant,
        () if record.opened() => Tenure::Open,
        () => Tenure::Closed,
    }
}

/// Nothing is begun twice. Killing waits for nothing.
fn possible(view: &View<'_>, action: &Action) -> bool {
    match action {
        Action::Wait | Action::Fence => true,
        Action::Write(_) => !view.lease.writing && view.now_ms >= retry_at_ms(view),
        _ => !view.me.busy,
    }
}

/// A write that failed is tried again soon, not at once.
fn retry_at_ms(view: &View<'_>) -> u64 {
    let failed = view.lease.attempted_ms.filter(|at| view.lease.written_ms.is_none_or(|written| written < *at));
    failed.map_or(0, |at| at + view.policy.timing.renewal_ms / 3)
}

fn renewal(view: &View<'_>) -> Option<Record> {
    // On its way to its epoch's opening, which is such a write itself and must not have to wait for this one.
    let patience = if not_open(view) { 2 } else { 1 };
    let due = view.lease.attempted_ms.is_none_or(|at| view.now_ms >= at + patience * view.policy.timing.renewal_ms);
    let record = view.lease.record.as_ref().filter(|_| due && !view.lease.writing)?;
    Some(written(view, record.clone()))
}

/// A record as it is written next.
fn written(view: &View<'_>, mut record: Record) -> Record {
    record.renewal += 1;
    if let Server::Primary { offset, .. } = view.me.server {
        record.offset = offset;
    }
    record
}

fn act(view: &View<'_>, verb: Verb) -> Result<Action, Refusal> {
    let none = Record::default();
    let record = view.lease.record.as_ref().unwrap_or(&none);
    let me = &view.me.id;
    // What a new primary's commits wait for. A write in doubt may be what the Lease says: then its record must be satisfied, too.
    let doubtful = view.lease.doubtful.iter();
    let strictest = doubtful.chain([record]).max_by_key(|it| quorum::required(it)).unwrap_or(record);
    let first = quorum::first(strictest, me, view.peers.keys().cloned(), view.policy);
    let sure = certain(view, &first) && quorum::allows(record, &first);
    let followed = || record.holder.clone().zip(record.lineage());
    let stand_still = Promise { epoch: record.epoch, renewal: record.renewal };
    Ok(match verb {
        Verb::Wait => Action::Wait,
        Verb::Fence => Action::Fence,
        Verb::Initialise => Action::Initialise,
        Verb::StartReplica => Action::StartReplica,
        Verb::StartPrimary => {
            let own = record.lineage().unwrap_or(Lineage { epoch: record.epoch, from: Position::default() });
            if sure { Action::StartPrimary(first, own) } else { Action::Wait }
        }
        Verb::Promote => match view.position() {
            Some(from) if sure => Action::Promote(first, Lineage { epoch: record.epoch, from }),
            _ => Action::Wait,
        },
        Verb::StandStill => Action::StandStill(stand_still),
        Verb::Follow => followed().map_or(Action::Wait, |(holder, lineage)| Action::Follow(holder, lineage)),
        Verb::StopToRebuild => Action::StopToRebuild(if diverged(view) { Rebuild::Rewind } else { Rebuild::Clone }),
        Verb::Rebuild => {
            let how = view.me.rebuild.unwrap_or(Rebuild::Clone);
            followed().map_or(Action::Wait, |(holder, lineage)| Action::Rebuild(holder, lineage, how))
        }
        Verb::Stop => Action::Stop,
        Verb::Found => Action::Write(found(view, record)),
        Verb::Take => Action::Write(stand(view, record)?),
        Verb::Open => view.me.began.map_or(Action::Wait, |from| Action::Write(opened(view, record, from))),
        Verb::Keep => keep(view, record),
        Verb::Release => {
            let successor = successor(view);
            Action::Write(written(view, Record { holder: None, successor, ..record.clone() }))
        }
    })
}

/// The first record of all.
fn found(view: &View<'_>, record: &Record) -> Record {
    let me = &view.me.id;
    let asynchronous = view.policy.synchronous == 0;
    Record {
        holder: Some(me.clone()),
        epoch: record.epoch + 1,
        renewal: record.renewal + 1,
        voters: [me.clone()].into(),
        quorum: usize::from(!asynchronous),
        ..Record::default()
    }
}

fn opened(view: &View<'_>, record: &Record, from: Position) -> Record {
    let mut record = written(view, record.clone());
    record.open(view.me.id.clone(), from);
    record.system = record.system.or_else(|| view.me.system.clone());
    record
}

/// A primary's everyday: who counts.
fn keep(view: &View<'_>, record: &Record) -> Action {
    let Server::Primary { standbys, synchronous, since, .. } = &view.me.server else { return Action::Wait };
    let may_stand =
        |id: &MemberId| view.peers.get(id).and_then(|it| it.standing.as_ref()).is_some_and(|it| it.priority > 0);
    let streaming = standbys.iter().filter(|it| it.streaming && may_stand(&it.member));
    let mut healthy: BTreeSet<MemberId> = streaming.map(|it| it.member.clone()).collect();
    let diverged: BTreeSet<MemberId> = view.alive().filter(|(_, it)| it.diverged).map(|(id, _)| id.clone()).collect();
    if view.policy.all_vote && !healthy.is_empty() {
        healthy.extend(view.peers.keys().filter(|id| !diverged.contains(*id)).cloned());
    }
    let copies = Copies { record, me: &view.me.id, synchronous, since: *since, standbys };
    match quorum::next(copies, &healthy, &diverged, view.policy) {
        Step::Stay | Step::CatchUp => Action::Wait,
        Step::Configure(synchronous) if !certain(view, &synchronous) => Action::Wait,
        Step::Configure(synchronous) => Action::Synchronise(synchronous),
        Step::Record(voters, quorum) => Action::Write(written(view, Record { voters, quorum, ..record.clone() })),
    }
}

/// Whether this setting satisfies each record that the Lease may say by now.
fn certain(view: &View<'_>, synchronous: &Synchronous) -> bool {
    view.lease.doubtful.iter().all(|record| quorum::allows(record, synchronous))
}

/// The member a primary proposes: asked for, or the furthest of those who follow it.
fn successor(view: &View<'_>) -> Option<MemberId> {
    let record = view.lease.record.as_ref()?;
    let able = view.alive().filter(|(id, it)| record.voters.contains(*id) && it.priority > 0 && it.follows.is_some());
    let asked = view.handover.as_ref().and_then(|it| it.to.clone());
    let best = |(id, it): &(&MemberId, &Standing)| {
        (asked.as_ref() == Some(*id), it.position, it.priority, std::cmp::Reverse((*id).clone()))
    };
    able.max_by_key(best).map(|(id, _)| id.clone())
}

// The facts the rows ask for.

pub(super) fn hung(view: &View<'_>) -> bool {
    view.me.silent_since_ms.is_some_and(|since| view.now_ms >= since + view.policy.timing.hung_ms)
}

/// It is on its way to accepting writes.
pub(super) fn rising(view: &View<'_>) -> bool {
    view.me.rising
}

pub(super) fn not_open(view: &View<'_>) -> bool {
    !view.lease.record.as_ref().is_some_and(Record::opened)
}

pub(super) fn new_database(view: &View<'_>) -> bool {
    view.lease.record.as_ref().is_some_and(|record| record.history.is_empty())
}

pub(super) fn promised(view: &View<'_>) -> bool {
    view.promised()
}

pub(super) fn fresh(view: &View<'_>) -> bool {
    view.me.lineage.epoch == 0
}

/// The first member of all died before it had made the database, and this is it.
pub(super) fn begins_again(view: &View<'_>) -> bool {
    new_database(view) && view.lease.record.as_ref().is_some_and(|record| record.voters.contains(&view.me.id))
}

/// There never was a database, and everybody who goes before this member had time to begin.
pub(super) fn first_turn(view: &View<'_>) -> bool {
    let before = view.peers.keys().filter(|id| **id < view.me.id).count() as u64;
    let patience_ms = before * 2 * view.policy.timing.ttl_ms;
    let others_have_data = view.alive().any(|(_, it)| it.position.is_some());
    fresh(view) && !others_have_data && view.me.priority > 0 && view.now_ms >= view.me.started_ms + patience_ms
}

/// It gave up the Lease to others that can take over. Until they had a moment for it, its own server would only be in their way.
pub(super) fn just_left(view: &View<'_>) -> bool {
    let last = |record: &Record| record.history.last().is_some_and(|it| it.primary == view.me.id);
    let left = view.lease.record.as_ref().filter(|record| record.successor.is_some() || record.holder.is_some());
    left.is_some_and(last) && view.now_ms < view.lease.changed_ms + LEAVE_MS
}

pub(super) fn diverged(view: &View<'_>) -> bool {
    let Some((record, position)) = view.lease.record.as_ref().zip(view.position()) else { return false };
    // What it wrote as primary of an epoch that never opened counts for nothing in an election, but it is in its files.
    let surplus = view.offset().is_some_and(|offset| offset > position.offset);
    surplus || !record.continues(position)
}

/// Its answer may be the only one that has some acknowledged write.
pub(super) fn counted(view: &View<'_>) -> bool {
    view.lease.record.as_ref().is_some_and(|record| record.quorum > 0 && record.voters.contains(&view.me.id))
}

pub(super) fn rebuilding(view: &View<'_>) -> bool {
    view.me.rebuild.is_some() && !counted(view)
}

pub(super) fn starved(view: &View<'_>) -> bool {
    view.me.starved_since_ms.is_some_and(|since| view.now_ms >= since + STARVED_MS)
}

pub(super) fn follows_epoch(view: &View<'_>) -> bool {
    let epoch = view.lease.record.as_ref().map(|record| record.epoch);
    matches!(view.me.server, Server::Replica { follows, .. } if follows == epoch)
}

pub(super) fn follows_holder(view: &View<'_>) -> bool {
    follows_epoch(view) && !starved(view)
}

pub(super) fn api_answers(view: &View<'_>) -> bool {
    view.lease.read_ms.is_some_and(|read| view.now_ms < read + view.policy.timing.ttl_ms)
}

/// Enough others are there for an election without this member.
pub(super) fn can_hand_over(view: &View<'_>) -> bool {
    let Some(record) = view.lease.record.as_ref().filter(|record| record.opened() && !record.paused) else {
        return false;
    };
    let able = view.alive().filter(|(id, it)| record.voters.contains(*id) && it.follows == Some(record.epoch));
    able.count() >= record.quorum.max(1) && successor(view).is_some()
}

pub(super) fn handover_ready(view: &View<'_>) -> bool {
    view.handover.as_ref().is_some_and(|handover| can_move(view, handover.to.as_ref()))
}

/// It holds the Lease, and cannot become what it was elected for.
pub(super) fn failed(view: &View<'_>) -> bool {
    view.me.failed && not_open(view)
}

/// It cannot write, or not for long, and another can.
pub(super) fn full(view: &View<'_>) -> bool {
    view.me.full && can_move(view, None)
}

/// The primary can be moved in order: to this member, or to the best.
fn can_move(view: &View<'_>, to: Option<&MemberId>) -> bool {
    let streaming = |id: &MemberId| matches!(&view.me.server, Server::Primary { standbys, .. } if standbys.iter().any(|it| it.streaming && it.member == *id));
    let chosen = successor(view).filter(|id| to.is_none_or(|to| to == id));
    can_hand_over(view) && chosen.is_some_and(|id| streaming(&id))
}
