//! Preemption: which pods of less priority would have to go so that one fits, and where that costs least.
//!
//! Flow, per node that could help: take away all pods of less priority → does the pod fit now? → give back as many as
//! possible, those guarded by a budget first, then the more important, then the older → who could not come back is a victim.
//! Of the nodes the one is chosen that violates fewest budgets, then whose most important victim is least important, then
//! with the smallest sum of priorities, the fewest victims, the youngest most important victim.
//!
//! Guarantees: nothing is changed but what is handed back as data; all filters are asked, because pods are really taken off
//! the model and put back.
//!
//! Source: <https://kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption/>.

use std::cmp::Reverse;
use std::sync::Arc;

use super::facts::PodFacts;
use super::{NoRoom, Refusal, Snapshot};
use crate::selector::{Clauses, compile, selects};

/// Nodes looked at, at most: a tenth, but at least this many.
const NODES_MIN: usize = 100;
/// The prefix of keys under which places are held.
pub(crate) const HELD: &str = "held:";

/// A disruption budget.
#[derive(Debug, Clone)]
pub struct Budget {
    /// Its namespace.
    pub namespace: String,
    /// Which pods it guards.
    pub selector: Clauses,
    /// Pods that may go now.
    pub allowed: i64,
}

/// Who has to go, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preemption {
    /// The node.
    pub node: String,
    /// Keys of the pods.
    pub victims: Vec<String>,
    /// How many of them a budget guards.
    pub violations: usize,
}

type Rank = (usize, i32, i64, usize, Reverse<i64>);

impl Snapshot {
    /// Who would have to go so that the refused pod fits; otherwise the refusal says on how many nodes that cannot help.
    pub fn preempt(&mut self, pod: &PodFacts, refusal: &mut Refusal, budgets: &[Budget]) -> Option<Preemption> {
        if !pod.may_preempt {
            refusal.preemption = Some(NoRoom::Never);
            return None;
        }
        let lifted = self.lift_nominations(pod);
        self.refresh();
        let prepared = self.prepare(pod);
        let helpful: Vec<usize> =
            self.by_name.values().copied().filter(|at| self.may_help(pod, &prepared, *at)).collect();
        refusal.preemption = Some(NoRoom::Hopeless(self.by_name.len() - helpful.len()));
        let mut order: Vec<(usize, Vec<Arc<PodFacts>>)> = helpful.into_iter().map(|at| (at, Vec::new())).collect();
        order.sort_by_key(|(at, _)| *at);
        let index: std::collections::HashMap<usize, usize> =
            order.iter().enumerate().map(|(i, (at, _))| (*at, i)).collect();
        for placed in self.pods.values().filter(|placed| placed.facts.priority < pod.priority) {
            if let Some(i) = placed.node.and_then(|node| index.get(&node)) {
                order[*i].1.push(placed.facts.clone());
            }
        }
        order.retain(|(_, lesser)| !lesser.is_empty());
        let enough = NODES_MIN.max(order.len() / 10);
        let mut best: Option<(Rank, Preemption)> = None;
        for (at, lesser) in order.into_iter().take(enough) {
            if let Some((rank, found)) = self.victims(pod, at, lesser, budgets)
                && best.as_ref().is_none_or(|(known, _)| rank < *known)
            {
                best = Some((rank, found));
            }
        }
        self.restore_nominations(lifted);
        best.map(|(_, found)| found)
    }

    /// Whether the node refuses for nothing that stays when pods go.
    fn may_help(&self, pod: &PodFacts, prepared: &super::Prepared, at: usize) -> bool {
        use super::Reason;
        let mut helps = true;
        self.examine(pod, prepared, at, &mut |reason| {
            helps &= !matches!(
                reason,
                Reason::Unschedulable
                    | Reason::Taint
                    | Reason::Affinity
                    | Reason::Volume
                    | Reason::NoVolume
                    | Reason::SpreadLabel
                    | Reason::PodAffinity
            );
            helps
        });
        // Nor would an empty node help that is too small.
        let is_large_enough = |facts| super::has_room(pod, facts, &super::Amounts::default(), &mut |_| false);
        helps && self.nodes[at].facts.as_ref().is_some_and(is_large_enough)
    }

    /// Who has to go from one node, with how bad that is; `None` when it would not help.
    fn victims(
        &mut self,
        pod: &PodFacts,
        at: usize,
        mut lesser: Vec<Arc<PodFacts>>,
        budgets: &[Budget],
    ) -> Option<(Rank, Preemption)> {
        for one in &lesser {
            self.remove_pod(&one.key);
        }
        let mut left: Vec<i64> = budgets.iter().map(|budget| budget.allowed).collect();
        // Whom a budget guards is given back first, then the more important, then the older.
        lesser.sort_by_key(|one| (Reverse(one.priority), one.since, one.key.clone()));
        let (mut guarded, mut others) = (Vec::new(), Vec::new());
        for one in &lesser {
            let mut is_guarded = false;
            for (budget, left) in budgets.iter().zip(&mut left).filter(|(budget, _)| budget.guards(one)) {
                let _ = budget;
                *left -= 1;
                is_guarded |= *left < 0;
            }
            if is_guarded { guarded.push(one.clone()) } else { others.push(one.clone()) }
        }
        let is_violation = |one: &Arc<PodFacts>| guarded.iter().any(|other| other.key == one.key);
        let fits_without = self.fits_now(pod, at);
        let mut victims = Vec::new();
        for one in guarded.iter().chain(&others) {
            self.put_pod(one.clone());
            if fits_without && !self.fits_now(pod, at) {
                self.remove_pod(&one.key);
                victims.push(one.clone());
            }
        }
        for one in &victims {
            self.put_pod(one.clone());
        }
        if !fits_without || victims.is_empty() {
            return None;
        }
        victims.sort_by_key(|one| (Reverse(one.priority), one.since));
        let top = victims[0].priority;
        let oldest = victims.iter().filter(|one| one.priority == top).map(|one| one.since).min().unwrap_or(0);
        let sum = victims.iter().map(|one| i64::from(one.priority) + i64::from(i32::MAX) + 1).sum();
        let violations = victims.iter().filter(|one| is_violation(one)).count();
        let rank = (violations, top, sum, victims.len(), Reverse(oldest));
        // A place that is only held is given up by dropping it, not by deleting a pod.
        let keys = victims.iter().map(|one| one.key.clone()).collect();
        Some((rank, Preemption { node: self.name_of(at), victims: keys, violations }))
    }

    fn fits_now(&mut self, pod: &PodFacts, at: usize) -> bool {
        self.refresh();
        let prepared = self.prepare(pod);
        self.fits(pod, &prepared, at)
    }

    /// Holds a place for a pod that waits until others have gone.
    pub fn nominate(&mut self, pod: &PodFacts, node: &str) {
        self.drop_nomination(&pod.key);
        let held =
            PodFacts { key: format!("{HELD}{}", pod.key), node: Some(node.to_owned()), group: None, ..pod.clone() };
        let held = Arc::new(held);
        self.nominated.insert(pod.key.clone(), held.clone());
        self.put_pod(held);
    }

    /// The pod needs its place no more, or gets it now.
    pub fn drop_nomination(&mut self, key: &str) {
        if self.nominated.remove(key).is_some() {
            self.remove_pod(&format!("{HELD}{key}"));
        }
    }

    /// The node where a place is held for a pod.
    pub fn nomination(&self, key: &str) -> Option<&str> {
        self.nominated.get(key)?.node.as_deref()
    }

    /// Takes away the places that do not count against a pod: its own, and those of less important pods.
    pub(super) fn lift_nominations(&mut self, pod: &PodFacts) -> Vec<Arc<PodFacts>> {
        let is_lifted = |(key, held): &(&String, &Arc<PodFacts>)| **key == pod.key || held.priority < pod.priority;
        let lifted: Vec<_> = self.nominated.iter().filter(is_lifted).map(|(_, held)| held.clone()).collect();
        for held in &lifted {
            self.remove_pod(&held.key);
        }
        lifted
    }

    pub(super) fn restore_nominations(&mut self, lifted: Vec<Arc<PodFacts>>) {
        for held in lifted {
            self.put_pod(held);
        }
    }
}

impl Budget {
    fn guards(&self, pod: &PodFacts) -> bool {
        pod.namespace == self.namespace && selects(&compile(&self.selector), &pod.labels)
    }
}
