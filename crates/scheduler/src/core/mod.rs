//! The scheduler's model of a cluster: nodes, the pods on them, and the choice of a node for one more.
//!
//! Flow of [`Snapshot::schedule`]: *filter* the nodes (demands, host ports, resources, spread, affinity) → *score* those
//! left ([`score`]) → the best is taken and the pod counted there at once, so that the next choice sees it.
//!
//! Guarantees: no node is given more than it has; no hard constraint that the pod states is broken by the choice; the
//! same calls give the same choices.
//!
//! Cost: per pod one pass over nodes until enough of them fit (as kube-scheduler does: all up to 100, a tenth of 5,000);
//! each check is a comparison of integers, because sums per node and counts per domain are kept up to date
//! ([`derived`]).
//!
//! When no node fits, [`Snapshot::preempt`] says which pods of less priority would have to go, and where; such a place is
//! then [held](Snapshot::nominate) against pods of no more priority.
//!
//! Deliberately absent: claims of dynamic resources, limits on volumes per node.
//!
//! Source: <https://kubernetes.io/docs/concepts/scheduling-eviction/kube-scheduler/>.

mod amounts;
mod derived;
mod facts;
mod preempt;
mod rebalance;
mod refusal;
#[cfg(test)]
mod room_tests;
mod score;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

pub use amounts::Amounts;
pub use facts::{GROUP_LABEL, GROUP_SIZE, NodeFacts, PodFacts};
pub(crate) use preempt::HELD;
pub use preempt::{Budget, Preemption};
pub use refusal::{NoRoom, Reason, Refusal};
pub use score::Strategy;

use crate::selector::Labels;
use derived::{Derived, MISMATCH, NOT_FOUND, OUT_OF_REACH, TAINTED, UNSCHEDULABLE};
use facts::{HostPort, collide};

/// Nodes that fit beyond which the search for more may end.
const ENOUGH_MIN: usize = 100;
/// How much may be derived before it is all thrown away and built anew as needed: about 400 MB at the very most.
const CELLS_MAX: usize = 50_000_000;

/// A node with what runs there.
#[derive(Default)]
struct Node {
    /// `None` for a place whose node is gone.
    facts: Option<NodeFacts>,
    used: Amounts,
    guess: (i64, i64),
    ports: Vec<HostPort>,
}

struct Placed {
    facts: Arc<PodFacts>,
    /// Where, if the node is known.
    node: Option<usize>,
    label_set: usize,
}

/// A cluster as the scheduler sees it.
#[derive(Default)]
pub struct Snapshot {
    nodes: Vec<Node>,
    by_name: HashMap<String, usize>,
    pods: HashMap<String, Placed>,
    /// Pods whose node is not known, by its name.
    waiting: HashMap<String, BTreeSet<String>>,
    derived: Derived,
    /// Nodes changed: what is derived from them must be built anew.
    stale: bool,
    /// Where the last search ended, so that all nodes get their turn.
    start: usize,
    /// Places held for pods that wait for others to go, by the pod's key.
    nominated: HashMap<String, Arc<PodFacts>>,
    namespaces: Arc<HashMap<String, Labels>>,
    /// Whether full or empty nodes are better.
    pub strategy: Strategy,
}

/// What has to be looked up once per pod before nodes are checked.
struct Prepared {
    shape: usize,
    /// Tally, how many pods a domain may have, whether the pod itself counts.
    hard: Vec<(usize, i64)>,
    /// Tally of each soft constraint.
    soft: Vec<usize>,
    /// Tally; `true` when the pod may be the first of its set.
    affinity: Vec<(usize, bool)>,
    anti: Vec<usize>,
    refusers: Vec<usize>,
    /// Tally and weight of each preferred term.
    preferred: Vec<(usize, i64)>,
    wishers: Vec<usize>,
}

impl Snapshot {
    /// Takes in a node as it is now; says whether anything changed that matters for scheduling.
    pub fn put_node(&mut self, facts: NodeFacts) -> bool {
        if let Some(at) = self.by_name.get(&facts.name).copied() {
            let node = &mut self.nodes[at];
            if node.facts.as_ref() == Some(&facts) {
                return false;
            }
            let same = node.facts.as_ref().is_some_and(|old| {
                old.labels == facts.labels && old.taints == facts.taints && old.unschedulable == facts.unschedulable
            });
            self.stale |= !same;
            node.facts = Some(facts);
            return true;
        }
        self.stale = true;
        let name = facts.name.clone();
        let free = self.nodes.iter().position(|node| node.facts.is_none());
        let at = free.filter(|_| self.by_name.len() < self.nodes.len()).unwrap_or(self.nodes.len());
        let node = Node { facts: Some(facts), ..Node::default() };
        if at == self.nodes.len() {
            self.nodes.push(node);
        } else {
            self.nodes[at] = node;
        }
        self.by_name.insert(name.clone(), at);
        for key in self.waiting.remove(&name).unwrap_or_default() {
            if let Some(placed) = self.pods.get_mut(&key) {
                placed.node = Some(at);
                let facts = placed.facts.clone();
                occupy(&mut self.nodes[at], &facts, 1);
            }
        }
        true
    }

    /// The node is gone; its pods stay known until they are removed.
    pub fn remove_node(&mut self, name: &str) {
        let Some(at) = self.by_name.remove(name) else { return };
        self.stale = true;
        self.nodes[at] = Node::default();
        for (key, placed) in self.pods.iter_mut().filter(|(_, placed)| placed.node == Some(at)) {
            placed.node = None;
            self.waiting.entry(name.to_owned()).or_default().insert(key.clone());
        }
    }

    /// Takes in a bound pod as it is now; one that is not bound, or has ended, is [removed](Self::remove_pod) instead.
    pub fn put_pod(&mut self, facts: Arc<PodFacts>) {
        self.remove_pod(&facts.key);
        let Some(name) = facts.node.clone() else { return };
        let node = self.by_name.get(&name).copied();
        let label_set = if self.stale { 0 } else { self.derived.label_set_of(&facts) };
        match node {
            Some(at) => {
                occupy(&mut self.nodes[at], &facts, 1);
                if !self.stale {
                    self.derived.place(&facts, label_set, at, 1, &self.nodes);
                }
            }
            None => drop(self.waiting.entry(name).or_default().insert(facts.key.clone())),
        }
        self.pods.insert(facts.key.clone(), Placed { facts, node, label_set });
    }

    /// The pod runs no more, or was not bound after all.
    pub fn remove_pod(&mut self, key: &str) {
        let Some(placed) = self.pods.remove(key) else { return };
        if let Some(at) = placed.node {
            occupy(&mut self.nodes[at], &placed.facts, -1);
            if !self.stale {
                self.derived.place(&placed.facts, placed.label_set, at, -1, &self.nodes);
            }
            return;
        }
        let name = placed.facts.node.as_deref().unwrap_or_default();
        if let Some(waiting) = self.waiting.get_mut(name) {
            waiting.remove(key);
            if waiting.is_empty() {
                self.waiting.remove(name);
            }
        }
    }

    /// The facts of a placed pod.
    pub fn pod(&self, key: &str) -> Option<&Arc<PodFacts>> {
        self.pods.get(key).map(|placed| &placed.facts)
    }

    /// Number of nodes.
    pub fn node_count(&self) -> usize {
        self.by_name.len()
    }

    /// Takes in a namespace's labels; `None` when it is gone.
    pub fn put_namespace(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) {
        if self.namespaces.get(name) == labels.as_ref() {
            return;
        }
        let all = Arc::make_mut(&mut self.namespaces);
        match labels {
            Some(labels) => drop(all.insert(name.to_owned(), labels)),
            None => drop(all.remove(name)),
        }
        self.stale = true;
    }

    /// Placed pods of a group.
    pub fn group_count(&self, group: &str) -> usize {
        let is_member = |placed: &&Placed| placed.facts.group.as_ref().is_some_and(|(name, _)| name == group);
        self.pods.values().filter(is_member).count()
    }

    /// Chooses a node for a pod and counts the pod there.
    ///
    /// # Errors
    /// Why no node would do.
    pub fn schedule(&mut self, pod: &PodFacts) -> Result<String, Refusal> {
        let held = self.nominated.get(&pod.key).and_then(|held| held.node.clone());
        let lifted = self.lift_nominations(pod);
        let chosen = self.choose(pod, held.as_deref());
        self.restore_nominations(lifted);
        let name = chosen?;
        self.drop_nomination(&pod.key);
        self.put_pod(Arc::new(PodFacts { node: Some(name.clone()), ..pod.clone() }));
        Ok(name)
    }

    fn choose(&mut self, pod: &PodFacts, held: Option<&str>) -> Result<String, Refusal> {
        self.refresh();
        let prepared = self.prepare(pod);
        // The place that others were made to leave.
        if let Some(at) = held.and_then(|held| self.by_name.get(held)).filter(|at| self.fits(pod, &prepared, **at)) {
            return Ok(self.name_of(*at));
        }
        let candidates = self.candidates(pod, &prepared);
        let Some(best) = self.best(pod, &prepared, &candidates) else { return Err(self.refusal(pod, &prepared)) };
        Ok(self.name_of(best))
    }

    fn name_of(&self, at: usize) -> String {
        self.nodes[at].facts.as_ref().map(|facts| facts.name.clone()).unwrap_or_default()
    }

    /// Builds anew what is out of date or has grown too much.
    fn refresh(&mut self) {
        if !self.stale && self.derived.cells() <= CELLS_MAX {
            return;
        }
        self.derived = Derived::new(self.namespaces.clone(), &self.nodes);
        self.stale = false;
        for placed in self.pods.values_mut() {
            placed.label_set = self.derived.label_set_of(&placed.facts);
            if let Some(at) = placed.node {
                self.derived.place(&placed.facts, placed.label_set, at, 1, &self.nodes);
            }
        }
    }

    fn prepare(&mut self, pod: &PodFacts) -> Prepared {
        let Self { derived, nodes, pods, .. } = self;
        let placed = || pods.values().filter_map(|placed| Some((placed.label_set, placed.node?)));
        let label_set = derived.label_set_of(pod);
        let shape = derived.shape_of(&pod.demands, nodes);
        let keys: Vec<&str> =
            pod.spreads.iter().filter(|spread| spread.hard).map(|spread| spread.key.as_str()).collect();
        let (mut hard, mut soft) = (Vec::new(), Vec::new());
        for spread in &pod.spreads {
            let tally = derived.spread_tally(spread, shape, if spread.hard { &keys } else { &[] }, nodes, placed());
            if !spread.hard {
                soft.push(tally);
                continue;
            }
            let (least, domains) = derived.tally(tally).minimum();
            let least = if domains < spread.min_domains.max(1) { 0 } else { least };
            let own = i64::from(derived.is_counted(label_set, tally));
            hard.push((tally, least + spread.max_skew - own));
        }
        let mut tallies = |terms: &[facts::Term]| -> Vec<usize> {
            terms.iter().map(|term| derived.term_tally(term, nodes, placed())).collect()
        };
        let (with, anti) = (tallies(&pod.affinity), tallies(&pod.anti_affinity));
        let preferred = pod.preferred.iter().map(|(weight, term)| (tallies(std::slice::from_ref(term))[0], *weight));
        let preferred: Vec<_> = preferred.collect();
        // The first of a group that wants to be together has nobody to join.
        let is_first = |tally: usize| derived.tally(tally).counts.iter().all(|count| *count == 0);
        let may_start = with.iter().all(|tally| is_first(*tally) && derived.is_counted(label_set, *tally));
        let affinity = with.into_iter().map(|tally| (tally, may_start)).collect();
        let (refusers, wishers) = (derived.refusers(label_set), derived.wishers(label_set));
        Prepared { shape, hard, soft, affinity, anti, refusers, preferred, wishers }
    }

    /// Nodes that do, until there are enough to choose from.
    fn candidates(&mut self, pod: &PodFacts, prepared: &Prepared) -> Vec<usize> {
        let total = self.nodes.len();
        let percent = 50usize.saturating_sub(total / 125).max(5);
        let enough = if total <= ENOUGH_MIN { total } else { (total * percent / 100).max(ENOUGH_MIN) };
        let mut found = Vec::with_capacity(enough);
        let mut looked = 0;
        while looked < total && found.len() < enough {
            let at = (self.start + looked) % total;
            looked += 1;
            if self.fits(pod, prepared, at) {
                found.push(at);
            }
        }
        if total > ENOUGH_MIN {
            self.start = (self.start + looked) % total;
        }
        found
    }

    fn fits(&self, pod: &PodFacts, prepared: &Prepared, at: usize) -> bool {
        let mut fits = true;
        self.examine(pod, prepared, at, &mut |_| {
            fits = false;
            false
        });
        fits
    }

    /// Gives each reason against a node to `against`, until it has heard enough (`false`). As in kube-scheduler the first
    /// filter that fails ends the examination, after all the reasons it has itself.
    fn examine(&self, pod: &PodFacts, prepared: &Prepared, at: usize, against: &mut dyn FnMut(Reason) -> bool) {
        let node = &self.nodes[at];
        let Some(facts) = &node.facts else {
            against(Reason::Affinity);
            return;
        };
        let verdict = self.derived.shape(prepared.shape).verdicts[at];
        let is_against =
            |bits: &[(u8, Reason)]| bits.iter().find(|(why, _)| verdict & why != 0).map(|(_, r)| r.clone());
        let first = [(UNSCHEDULABLE, Reason::Unschedulable), (TAINTED, Reason::Taint), (MISMATCH, Reason::Affinity)];
        if let Some(reason) = is_against(&first) {
            against(reason);
            return;
        }
        if pod.ports.iter().any(|port| node.ports.iter().any(|taken| collide(port, taken))) {
            against(Reason::Ports);
            return;
        }
        if !has_room(pod, facts, &node.used, against) {
            return;
        }
        // Both are reasons of one filter.
        let mut reaches = true;
        for (_, reason) in [(OUT_OF_REACH, Reason::Volume), (NOT_FOUND, Reason::NoVolume)]
            .into_iter()
            .filter(|(why, _)| verdict & why != 0)
        {
            reaches = false;
            if !against(reason) {
                return;
            }
        }
        if !reaches {
            return;
        }
        for (tally, most) in &prepared.hard {
            match self.derived.count(*tally, at) {
                None => {
                    against(Reason::SpreadLabel);
                    return;
                }
                Some(count) if count > *most => {
                    against(Reason::Spread);
                    return;
                }
                Some(_) => {}
            }
        }
        let is_apart = |(tally, may_start): &(usize, bool)| match self.derived.count(*tally, at) {
            None => true,
            Some(count) => count <= 0 && !may_start,
        };
        if prepared.affinity.iter().any(is_apart) {
            against(Reason::PodAffinity);
        } else if prepared.anti.iter().any(|tally| self.derived.count(*tally, at).is_some_and(|count| count > 0)) {
            against(Reason::PodAntiAffinity);
        } else if prepared.refusers.iter().any(|holder| self.derived.refuses(*holder, at)) {
            against(Reason::ExistingAntiAffinity);
        }
    }

    fn refusal(&self, pod: &PodFacts, prepared: &Prepared) -> Refusal {
        let mut refusal = Refusal { nodes: self.by_name.len(), ..Refusal::default() };
        for at in self.by_name.values() {
            self.examine(pod, prepared, *at, &mut |reason| {
                *refusal.reasons.entry(reason).or_insert(0) += 1;
                true
            });
        }
        refusal
    }
}

/// Whether the node has what the pod asks for; otherwise says of what there is too little.
fn has_room(pod: &PodFacts, node: &NodeFacts, used: &Amounts, against: &mut dyn FnMut(Reason) -> bool) -> bool {
    let (asked, total) = (&pod.requests, &node.allocatable);
    let lacks = |asked: i64, used: i64, total: i64| asked > 0 && used + asked > total;
    let mut fits = true;
    let mut say = |is_lacking: bool, reason: &dyn Fn() -> Reason| {
        if is_lacking {
            fits = false;
            return against(reason());
        }
        true
    };
    let insufficient = |name: &str| Reason::Insufficient(name.to_owned());
    let go_on = say(lacks(1, used.pods, total.pods), &|| Reason::Pods)
        && say(lacks(asked.cpu_milli, used.cpu_milli, total.cpu_milli), &|| insufficient("cpu"))
        && say(lacks(asked.memory_bytes, used.memory_bytes, total.memory_bytes), &|| insufficient("memory"))
        && say(lacks(asked.storage_bytes, used.storage_bytes, total.storage_bytes), &|| {
            insufficient("ephemeral-storage")
        });
    if go_on {
        let of = |amounts: &Amounts, name: &String| amounts.extended.get(name).copied().unwrap_or(0);
        for (name, asked) in &asked.extended {
            if !say(lacks(*asked, of(used, name), of(total, name)), &|| insufficient(name)) {
                break;
            }
        }
    }
    fits
}

/// Books a pod on a node (`sign` 1) or off it (-1).
fn occupy(node: &mut Node, pod: &PodFacts, sign: i64) {
    node.used.add(&pod.requests, sign);
    node.guess.0 += sign * pod.guess.0;
    node.guess.1 += sign * pod.guess.1;
    for port in &pod.ports {
        if sign > 0 {
            node.ports.push(port.clone());
        } else if let Some(at) = node.ports.iter().position(|taken| taken == port) {
            node.ports.swap_remove(at);
        }
    }
}
