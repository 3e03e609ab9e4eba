//! The arithmetic of who has all acknowledged writes, and how that changes safely while writes go on.
//!
//! Two things change separately, and either may be in force while the other still is to come: the record in the Lease (voters
//! and quorum, which elections use) and the primary's setting (whose answers a commit waits for). The rule that holds all the
//! time: *every acknowledged write has at least `voters - quorum + 1` copies among the voters*. [`next`] takes one step towards what
//! is wanted, and every step keeps the rule: it changes the setting when the record allows it, the record when the setting (in
//! force, and caught up with everything older) warrants it, and otherwise goes by way of the union of old and new voters.

use std::collections::{BTreeMap, BTreeSet};

use super::record::Record;
use super::types::MemberId;
use super::view::Policy;
use crate::engine::{Standby, Synchronous};

/// What the primary knows of its replicas.
#[derive(Debug, Clone, Copy)]
pub struct Copies<'a> {
    /// The Lease's record.
    pub record: &'a Record,
    /// The primary itself.
    pub me: &'a MemberId,
    /// What commits wait for.
    pub synchronous: &'a Synchronous,
    /// What the primary had when that came into force.
    pub since: u64,
    /// Its replicas.
    pub standbys: &'a [Standby],
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// All is as it should be.
    Stay,
    /// The replicas must first have everything that was written under the old setting.
    CatchUp,
    /// Change what commits wait for.
    Configure(Synchronous),
    /// Change who may be elected.
    Record(BTreeSet<MemberId>, usize),
}

/// How many of the voters have each acknowledged write, at least, by the record alone. 0: the record says nothing.
pub fn required(record: &Record) -> usize {
    if record.quorum == 0 { 0 } else { (record.voters.len() + 1).saturating_sub(record.quorum) }
}

/// Whether each write acknowledged under this setting has the copies that the record demands.
pub fn allows(record: &Record, synchronous: &Synchronous) -> bool {
    later(synchronous, &record.voters) >= required(record)
}

/// What a new primary's commits wait for, before it knows its replicas: what the record demands.
pub fn first(record: &Record, me: &MemberId, others: impl Iterator<Item = MemberId>, policy: &Policy) -> Synchronous {
    if policy.synchronous == 0 && record.quorum == 0 {
        return Synchronous::default();
    }
    let count = required(record).saturating_sub(1);
    if count > 0 {
        let standbys = record.voters.iter().filter(|id| *id != me).cloned().collect();
        return Synchronous { standbys, count };
    }
    if !policy.strict || policy.synchronous == 0 {
        return Synchronous::default();
    }
    Synchronous { standbys: others.filter(|id| id != me).collect(), count: policy.synchronous }
}

/// The step to take, given the replicas that are healthy enough to count and those that must be made anew.
pub fn next(copies: Copies<'_>, healthy: &BTreeSet<MemberId>, diverged: &BTreeSet<MemberId>, policy: &Policy) -> Step {
    let Copies { record, me, synchronous, .. } = copies;
    // Who must be made anew is dropped first: until then it may still be needed, and must keep its files.
    if record.quorum > 0 && !record.voters.is_disjoint(diverged) {
        let voters: BTreeSet<_> = record.voters.difference(diverged).cloned().collect();
        let quorum = voters.len() + 1 - copies.among(&voters);
        return Step::Record(voters, quorum);
    }
    if policy.synchronous == 0 {
        return asynchronous(record, me, healthy, synchronous);
    }
    if healthy.is_empty() && policy.strict {
        return Step::Stay;
    }
    let count = policy.synchronous.min(healthy.len());
    let wanted = Synchronous { standbys: healthy.clone(), count };
    let voters: BTreeSet<_> = healthy.iter().chain([me]).cloned().collect();
    if *synchronous == wanted {
        let quorum = voters.len() + 1 - copies.among(&voters);
        return match () {
            () if record.voters == voters && record.quorum == quorum => Step::Stay,
            () if quorum == voters.len() - count => Step::Record(voters, quorum),
            () => Step::CatchUp,
        };
    }
    if allows(record, &wanted) {
        return Step::Configure(wanted);
    }
    let union: BTreeSet<_> = record.voters.union(&voters).cloned().collect();
    let quorum = union.len() + 1 - copies.among(&union).min(1 + count);
    Step::Record(union, quorum)
}

fn asynchronous(record: &Record, me: &MemberId, healthy: &BTreeSet<MemberId>, now: &Synchronous) -> Step {
    // Nobody is dropped for being away: who is elected is judged by its lag.
    let voters: BTreeSet<_> = record.voters.iter().chain(healthy).chain([me]).cloned().collect();
    match () {
        () if record.quorum != 0 || record.voters != voters => Step::Record(voters, 0),
        () if *now != Synchronous::default() => Step::Configure(Synchronous::default()),
        () => Step::Stay,
    }
}

impl Copies<'_> {
    /// Copies of every acknowledged write, past and to come, that are certainly among `voters` (which include the primary).
    fn among(&self, voters: &BTreeSet<MemberId>) -> usize {
        let dropped = self.record.voters.difference(voters).count();
        let by_record = required(self.record).saturating_sub(dropped).max(1);
        let caught_up = |it: &&Standby| it.offset >= self.since && voters.contains(&it.member);
        let counted = self.standbys.iter().filter(|it| self.synchronous.standbys.contains(&it.member));
        let by_sight = 1 + counted.filter(caught_up).count();
        by_record.max(by_sight).min(later(self.synchronous, voters))
    }
}

/// Copies among `voters` of a write acknowledged under this setting, at least: the primary's own, and the answers that cannot
/// all have come from elsewhere.
fn later(synchronous: &Synchronous, voters: &BTreeSet<MemberId>) -> usize {
    let elsewhere = synchronous.standbys.difference(voters).count();
    let count = synchronous.count.min(synchronous.standbys.len());
    1 + count.saturating_sub(elsewhere)
}

/// Since when so many voters stand by this holder that no election can succeed without them; each said so when asked at the
/// time given. `None`: not enough did.
pub fn confirmed_since(record: &Record, me: &MemberId, confirmed: &BTreeMap<MemberId, u64>) -> Option<u64> {
    // Asynchronously one is enough for an election, so all must stand by.
    let needed = if record.quorum == 0 { record.voters.len() } else { required(record) };
    let mut times: Vec<u64> = confirmed.iter().filter(|(id, _)| record.voters.contains(id)).map(|it| *it.1).collect();
    times.sort_unstable_by(|a, b| b.cmp(a));
    match needed.saturating_sub(usize::from(record.voters.contains(me))) {
        0 => Some(u64::MAX),
        others => times.get(others - 1).copied(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(names: &str) -> BTreeSet<MemberId> {
        names.chars().map(|name| MemberId::new(name.to_string())).collect()
    }

    fn record(voters: &str, quorum: usize) -> Record {
        Record { voters: set(voters), quorum, ..Record::default() }
    }

    fn step(record: &Record, standbys: &str, count: usize, caught_up: bool, healthy: &str) -> Step {
        let synchronous = Synchronous { standbys: set(standbys), count };
        let offset = if caught_up { 10 } else { 0 };
        let seen: Vec<_> = set("abcde").into_iter().map(|member| Standby { member, offset, streaming: true }).collect();
        let me = MemberId::new("p");
        let copies = Copies { record, me: &me, synchronous: &synchronous, since: 10, standbys: &seen };
        next(copies, &set(healthy), &BTreeSet::new(), &Policy::default())
    }

    #[test]
    fn a_dead_replica_is_dropped_after_the_other_has_everything() {
        let one = Synchronous { standbys: set("a"), count: 1 };
        assert_eq!(step(&record("abp", 2), "ab", 1, true, "a"), Step::Configure(one));
        assert_eq!(step(&record("abp", 2), "a", 1, false, "a"), Step::CatchUp);
        assert_eq!(step(&record("abp", 2), "a", 1, true, "a"), Step::Record(set("ap"), 1));
        assert_eq!(step(&record("ap", 1), "a", 1, true, "a"), Step::Stay);
    }

    #[test]
    fn a_new_replica_votes_before_its_answer_counts() {
        assert_eq!(step(&record("ap", 1), "a", 1, true, "ab"), Step::Record(set("abp"), 2));
        let both = Synchronous { standbys: set("ab"), count: 1 };
        assert_eq!(step(&record("abp", 2), "a", 1, true, "ab"), Step::Configure(both));
    }

    #[test]
    fn one_replica_takes_the_place_of_another_by_way_of_both() {
        assert_eq!(step(&record("ap", 1), "a", 1, true, "b"), Step::Record(set("abp"), 2));
    }

    #[test]
    fn with_all_replicas_away_nothing_changes() {
        assert_eq!(step(&record("abp", 2), "ab", 1, true, ""), Step::Stay);
    }

    #[test]
    fn who_is_needed_to_go_on_without_the_api() {
        let me = MemberId::new("p");
        let said =
            |text: &str| text.chars().zip([30, 20, 10]).map(|(c, t)| (MemberId::new(c.to_string()), t)).collect();
        assert_eq!(confirmed_since(&record("abp", 2), &me, &said("a")), Some(30));
        assert_eq!(confirmed_since(&record("abp", 2), &me, &said("x")), None);
        assert_eq!(confirmed_since(&record("abp", 1), &me, &said("ab")), Some(20));
        assert_eq!(confirmed_since(&record("abp", 0), &me, &said("ab")), Some(20));
        assert_eq!(confirmed_since(&record("abp", 0), &me, &said("a")), None);
        assert_eq!(confirmed_since(&record("p", 1), &me, &said("")), Some(u64::MAX), "nobody else can be elected");
    }

    proptest! {
        /// From any start, whatever replicas come and go: every acknowledged write stays within reach of every election.
        #[test]
        fn every_step_keeps_every_write_in_reach(
            changes in proptest::collection::vec((0_u8..32, 0_u8..32, any::<bool>()), 1..60),
            wanted in 1_usize..3, strict in any::<bool>(),
        ) {
            let policy = Policy { synchronous: wanted, strict, ..Policy::default() };
            let me = MemberId::new("p");
            let mut record = record("p", 1);
            let mut synchronous = first(&record, &me, set("abcde").into_iter(), &policy);
            // Each write acknowledged: who has it at least. The replicas' logs are prefixes, so a number says what each has.
            let (mut log, mut since) = (0_u64, 0_u64);
            let mut has: BTreeMap<MemberId, u64> = set("abcde").into_iter().map(|id| (id, 0)).collect();
            let mut acknowledged = 0_u64;
            for (healthy, answers, write) in changes {
                let chosen = |bits: u8| -> BTreeSet<_> { has.keys().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|it| it.1.clone()).collect() };
                let (healthy, answers) = (chosen(healthy), chosen(answers));
                if write {
                    log += 1;
                }
                for id in &answers {
                    has.insert(id.clone(), log);
                }
                if synchronous.standbys.iter().filter(|id| has[*id] == log).count() >= synchronous.count {
                    acknowledged = log;
                }
                let standbys: Vec<_> = has.iter().map(|(id, offset)| Standby { member: id.clone(), offset: *offset, streaming: true }).collect();
                match next(Copies { record: &record, me: &me, synchronous: &synchronous, since, standbys: &standbys }, &healthy, &BTreeSet::new(), &policy) {
                    Step::Configure(new) => { synchronous = new; since = log; }
                    Step::Record(voters, quorum) => { record.voters = voters; record.quorum = quorum; }
                    Step::Stay | Step::CatchUp => {}
                }
                let without = record.voters.iter().filter(|id| **id != me && has[*id] < acknowledged).count();
                prop_assert!(without < record.quorum, "{record:?} {has:?} {acknowledged}");
            }
        }
    }
}
