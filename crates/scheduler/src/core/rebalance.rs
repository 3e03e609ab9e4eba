//! Finding pods that stand in the way of their own spread, after a failed node has come back.
//!
//! A pod is misplaced when a domain has too many of its set against the emptiest, and the scheduler would now put it into
//! one with at least two fewer. Which pod goes, and when, is the driver's business.

use super::Snapshot;
use super::facts::PodFacts;

impl Snapshot {
    /// The key of a pod that would stand better elsewhere; the first by key.
    pub fn misplaced(&mut self) -> Option<String> {
        self.refresh();
        let movable = |placed: &&super::Placed| {
            let facts = &placed.facts;
            placed.node.is_some() && facts.owner.is_some() && !facts.terminating && !facts.spreads.is_empty()
        };
        let mut keys: Vec<String> = self.pods.values().filter(movable).map(|placed| placed.facts.key.clone()).collect();
        keys.sort();
        keys.into_iter().find(|key| self.is_misplaced(key))
    }

    fn is_misplaced(&mut self, key: &str) -> bool {
        let Some((facts, Some(at))) = self.pods.get(key).map(|placed| (placed.facts.clone(), placed.node)) else {
            return false;
        };
        if !self.is_crowded(&facts, at) {
            return false;
        }
        self.remove_pod(key);
        let start = self.start;
        let better = self.choose(&PodFacts { node: None, ..(*facts).clone() }, None);
        self.start = start;
        let better = better.ok().and_then(|name| self.by_name.get(&name).copied()).filter(|other| *other != at);
        let prepared = self.prepare(&facts);
        let tallies: Vec<usize> = prepared.hard.iter().map(|(tally, _)| *tally).chain(prepared.soft).collect();
        let helps = better.is_some_and(|other| {
            let fewer = |tally: &usize| match (self.derived.count(*tally, at), self.derived.count(*tally, other)) {
                (Some(here), Some(there)) => here - there,
                _ => 0,
            };
            tallies.iter().any(|tally| fewer(tally) > 0) && tallies.iter().all(|tally| fewer(tally) >= 0)
        });
        self.put_pod(facts);
        helps
    }

    /// Whether a domain of the pod has too many of its set.
    fn is_crowded(&mut self, facts: &PodFacts, at: usize) -> bool {
        let prepared = self.prepare(facts);
        let tallies = prepared.hard.iter().map(|(tally, _)| *tally).chain(prepared.soft);
        let mut tallies = tallies.map(|tally| (self.derived.count(tally, at), self.derived.tally(tally).minimum().0));
        tallies.any(|(here, least)| here.is_some_and(|here| here - least > 1))
    }
}
