//! Whether this member may take the Lease now, and if not, why not.

use std::cmp::Reverse;

use super::record::Record;
use super::types::{MemberId, Position};
use super::view::{Server, View, binds};

/// How long others wait for the one who was proposed, and asynchronous ones for everybody's position.
const GRACE_MS: u64 = 300;

/// Why a member does not take the vacant Lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Automatic failover is suspended.
    #[error("automatic failover is paused")]
    Paused,
    /// Set by the user.
    #[error("its priority is 0")]
    Never,
    /// It could not write.
    #[error("its disk is full")]
    Full,
    /// It was elected, and could not be promoted.
    #[error("its last promotion did not work; its log says why")]
    Failed,
    /// It may lack acknowledged writes.
    #[error("it is not one of those who certainly have every acknowledged write ({0})")]
    NotVoter(String),
    /// Its server does not run, or still receives.
    #[error("its own position is not known")]
    NoPosition,
    /// Not enough others stand still.
    #[error("{heard} of the {needed} members that are needed to be sure of every acknowledged write have answered")]
    Quorum {
        /// With itself.
        heard: usize,
        /// All of them.
        needed: usize,
    },
    /// Another has more.
    #[error("{0} has more of the log")]
    Behind(MemberId),
    /// Another has as much, and goes first.
    #[error("{0} has as much of the log and goes first")]
    After(MemberId),
    /// The old primary named another.
    #[error("{0} was proposed by the last primary")]
    Proposed(MemberId),
    /// Asynchronous, and too far behind.
    #[error("it is {lag} behind the last primary, and {lag_max} is allowed")]
    Lag {
        /// In units of the position.
        lag: u64,
        /// The limit.
        lag_max: u64,
    },
    /// Asynchronous: positions are still awaited.
    #[error("the positions of others are awaited")]
    Grace,
}

/// The record with which this member takes the vacant Lease that it promised to stand still for.
pub(crate) fn stand(view: &View<'_>, record: &Record) -> Result<Record, Refusal> {
    let me = &view.me.id;
    if record.paused {
        return Err(Refusal::Paused);
    }
    if view.me.priority == 0 {
        return Err(Refusal::Never);
    }
    if view.me.full {
        return Err(Refusal::Full);
    }
    if view.me.failed {
        return Err(Refusal::Failed);
    }
    if !record.voters.contains(me) {
        let voters: Vec<_> = record.voters.iter().map(MemberId::as_str).collect();
        return Err(Refusal::NotVoter(voters.join(", ")));
    }
    let detached = matches!(view.me.server, Server::Replica { follows: None, .. });
    let position = view.position().filter(|_| detached).ok_or(Refusal::NoPosition)?;
    let still: Vec<(&MemberId, Position, u32)> = still(view, record).collect();
    let needed = record.quorum.max(1);
    if still.len() + 1 < needed {
        return Err(Refusal::Quorum { heard: still.len() + 1, needed });
    }
    // Whoever may not stand still counts here: what it has may have been acknowledged.
    if let Some((id, ..)) = still.iter().max_by_key(|it| it.1).filter(|it| it.1 > position) {
        return Err(Refusal::Behind((*id).clone()));
    }
    let successor = record.successor.as_ref();
    let rank = |id: &MemberId, priority: u32| (successor != Some(id), Reverse(priority), id.clone());
    let equals = still.iter().filter(|it| it.1 == position && it.2 > 0);
    let mine = rank(me, view.me.priority);
    let early = view.now_ms < vacant_since_ms(view, record) + GRACE_MS;
    if let Some((id, ..)) =
        equals.filter(|it| rank(it.0, it.2) < mine).min_by_key(|it| rank(it.0, it.2)).filter(|_| early)
    {
        return Err(Refusal::After((*id).clone()));
    }
    let proposed = successor.filter(|other| *other != me && early && record.voters.contains(*other));
    if let Some(other) = proposed.filter(|other| !still.iter().any(|it| it.0 == *other && it.1 < position)) {
        return Err(Refusal::Proposed(other.clone()));
    }
    if record.quorum == 0 {
        asynchronous(view, record, position, still.len(), early)?;
    }
    Ok(taken(record, me, position))
}

/// Without synchronous replication: everybody who is there should be heard, and the loss must be within the limit.
fn asynchronous(
    view: &View<'_>,
    record: &Record,
    position: Position,
    still: usize,
    early: bool,
) -> Result<(), Refusal> {
    let lag = record.offset.saturating_sub(position.offset);
    let lag_max = view.policy.lag_max;
    if lag > lag_max {
        return Err(Refusal::Lag { lag, lag_max });
    }
    let voters = view.alive().filter(|(id, _)| record.voters.contains(*id)).count();
    if early && still < voters { Err(Refusal::Grace) } else { Ok(()) }
}

/// The other voters that stand still for exactly this Lease, with what they have. What they said then stays true as long as
/// the Lease stays the same, so it does not matter how long ago it was.
fn still<'a>(view: &'a View<'_>, record: &'a Record) -> impl Iterator<Item = (&'a MemberId, Position, u32)> {
    view.peers.iter().filter(|(id, _)| record.voters.contains(*id)).filter_map(move |(id, peer)| {
        let standing = peer.standing.as_ref()?;
        standing.promise.filter(|promise| binds(*promise, record))?;
        Some((id, standing.position?, standing.priority))
    })
}

fn vacant_since_ms(view: &View<'_>, record: &Record) -> u64 {
    let ttl_ms = if record.holder.is_some() { view.policy.timing.ttl_ms } else { 0 };
    view.lease.changed_ms + ttl_ms
}

/// A new epoch; who has all acknowledged writes is as before.
fn taken(record: &Record, me: &MemberId, position: Position) -> Record {
    Record {
        holder: Some(me.clone()),
        epoch: record.epoch + 1,
        renewal: record.renewal + 1,
        successor: None,
        offset: position.offset,
        ..record.clone()
    }
}
