//! What is computed once and then kept up to date pod by pod: which nodes satisfy which demands, and how many pods of
//! which set are in which domain.
//!
//! Everything here follows from the nodes and the placed pods; it is thrown away when a node's labels or taints change
//! and built again as it is needed.
//!
//! Words: a *set* is "the pods chosen by these selectors"; a *tally* counts a set per *domain* (value of a topology
//! label) over the nodes in a *scope*; a *holder* counts, per domain, the pods that refuse to be with a set.

use std::collections::HashMap;
use std::sync::Arc;

use mainstay_model::selector::LabelSelector;

use super::Node;
use super::facts::{Demands, Namespaces, NodeFacts, PodFacts, PodSet, Spread, Term};
use crate::selector::{Labels, NodeTerm, compile, selects};

/// No domain: the node does not have the label.
pub(super) const NOWHERE: u32 = u32::MAX;

/// Why a node never does, as bits.
pub(super) const UNSCHEDULABLE: u8 = 1;
pub(super) const TAINTED: u8 = 2;
pub(super) const MISMATCH: u8 = 4;
pub(super) const OUT_OF_REACH: u8 = 8;
pub(super) const NOT_FOUND: u8 = 16;

/// How every node satisfies one set of demands.
pub(super) struct Shape {
    /// Per node: zero, or why it never does.
    pub(super) verdicts: Vec<u8>,
    /// Per node: weight of the preferred terms it satisfies, and `PreferNoSchedule` taints that are not tolerated.
    pub(super) wishes: Vec<(i64, i64)>,
    /// Whether any node differs in its wishes; mostly none does.
    pub(super) has_wishes: bool,
    is_free: bool,
}

pub(super) struct Topology {
    key: String,
    /// Per node: its domain.
    pub(super) domains: Vec<u32>,
    count: usize,
}

/// Which nodes count.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Scope {
    affinity: Option<usize>,
    taints: Option<usize>,
    /// Topologies whose label a node must have.
    keys: Vec<usize>,
}

pub(super) struct Tally {
    pub(super) topology: usize,
    set: usize,
    scope: Scope,
    /// Pods per domain.
    pub(super) counts: Vec<i64>,
    /// Nodes in scope per domain.
    nodes: Vec<u32>,
}

impl Tally {
    /// The smallest count of a domain in scope, and how many such domains there are.
    pub(super) fn minimum(&self) -> (i64, i64) {
        let there = self.counts.iter().zip(&self.nodes).filter(|(_, nodes)| **nodes > 0);
        there.fold((i64::MAX, 0), |(least, domains), (count, _)| (least.min(*count), domains + 1))
    }
}

struct Holder {
    topology: usize,
    counts: Vec<i64>,
    total: i64,
}

struct LabelSet {
    namespace: String,
    labels: Labels,
    owner: Option<String>,
    terminating: bool,
    /// The sets it belongs to.
    sets: Vec<usize>,
}

type LabelKey = (String, Vec<(String, String)>, Option<String>, bool);

struct Set {
    spec: PodSet,
    selectors: Vec<LabelSelector>,
    tallies: Vec<usize>,
    holders: Vec<usize>,
    /// Pods that would rather be with this set, or apart from it, by weight.
    wishers: Vec<usize>,
}

#[derive(Default)]
pub(super) struct Derived {
    shapes: Vec<Shape>,
    shape_ids: HashMap<Demands, usize>,
    topologies: Vec<Topology>,
    topology_ids: HashMap<String, usize>,
    label_sets: Vec<LabelSet>,
    label_set_ids: HashMap<LabelKey, usize>,
    sets: Vec<Set>,
    set_ids: HashMap<PodSet, usize>,
    tallies: Vec<Tally>,
    tally_ids: HashMap<(usize, usize, Scope), usize>,
    holders: Vec<Holder>,
    holder_ids: HashMap<(usize, usize), usize>,
    wishers: Vec<Holder>,
    wisher_ids: HashMap<(usize, usize), usize>,
    /// Labels of the namespaces.
    namespaces: Arc<HashMap<String, Labels>>,
    /// For each image, how many nodes have it.
    images: HashMap<String, usize>,
    cells: usize,
}

impl Derived {
    /// Nothing derived yet, over these namespaces and nodes.
    pub(super) fn new(namespaces: Arc<HashMap<String, Labels>>, nodes: &[Node]) -> Self {
        let mut images = HashMap::new();
        for image in nodes.iter().filter_map(|node| node.facts.as_ref()).flat_map(|facts| facts.images.keys()) {
            *images.entry(image.clone()).or_insert(0) += 1;
        }
        Self { namespaces, images, ..Self::default() }
    }

    /// How many nodes have an image.
    pub(super) fn nodes_with(&self, image: &str) -> usize {
        self.images.get(image).copied().unwrap_or(0)
    }

    /// How much is held, in numbers of a few bytes, to bound it.
    pub(super) fn cells(&self) -> usize {
        self.cells + 64 * (self.label_sets.len() + self.sets.len())
    }

    pub(super) fn shape(&self, id: usize) -> &Shape {
        &self.shapes[id]
    }

    pub(super) fn tally(&self, id: usize) -> &Tally {
        &self.tallies[id]
    }

    /// The count of a tally in a node's domain; `None` when the node has no such label.
    pub(super) fn count(&self, tally: usize, node: usize) -> Option<i64> {
        let tally = &self.tallies[tally];
        let domain = self.topologies[tally.topology].domains[node];
        (domain != NOWHERE).then(|| tally.counts[domain as usize])
    }

    /// The demands' shape over all nodes.
    pub(super) fn shape_of(&mut self, demands: &Demands, nodes: &[Node]) -> usize {
        if let Some(id) = self.shape_ids.get(demands) {
            return *id;
        }
        let verdicts = nodes.iter().map(|node| node.facts.as_ref().map_or(MISMATCH, |f| verdict(demands, f))).collect();
        let wish = |node: &Node| node.facts.as_ref().map_or((0, 0), |facts| wish(demands, facts));
        let wishes: Vec<_> = nodes.iter().map(wish).collect();
        let has_wishes = wishes.iter().any(|wish| *wish != (0, 0));
        let is_free = demands.selector.is_empty() && demands.required.is_none();
        self.cells += 4 * nodes.len();
        self.shapes.push(Shape { verdicts, wishes, has_wishes, is_free });
        self.shape_ids.insert(demands.clone(), self.shapes.len() - 1);
        self.shapes.len() - 1
    }

    fn topology_of(&mut self, key: &str, nodes: &[Node]) -> usize {
        if let Some(id) = self.topology_ids.get(key) {
            return *id;
        }
        let mut ids: HashMap<&str, u32> = HashMap::new();
        let mut domains = Vec::with_capacity(nodes.len());
        for node in nodes {
            domains.push(match domain_of(node, key) {
                None => NOWHERE,
                Some(value) => {
                    let next = u32::try_from(ids.len()).unwrap_or(NOWHERE);
                    *ids.entry(value).or_insert(next)
                }
            });
        }
        self.topologies.push(Topology { key: key.to_owned(), domains, count: ids.len() });
        let id = self.topologies.len() - 1;
        self.topology_ids.insert(self.topologies[id].key.clone(), id);
        id
    }

    /// The pod's labels, interned with the sets they belong to.
    pub(super) fn label_set_of(&mut self, pod: &PodFacts) -> usize {
        let labels = pod.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let key = (pod.namespace.clone(), labels, pod.owner.clone(), pod.terminating);
        if let Some(id) = self.label_set_ids.get(&key) {
            return *id;
        }
        let (namespace, labels) = (pod.namespace.clone(), pod.labels.clone());
        let mut own =
            LabelSet { namespace, labels, owner: pod.owner.clone(), terminating: pod.terminating, sets: Vec::new() };
        own.sets = (0..self.sets.len()).filter(|id| belongs(&own, &self.sets[*id], &self.namespaces)).collect();
        self.label_sets.push(own);
        self.label_set_ids.insert(key, self.label_sets.len() - 1);
        self.label_sets.len() - 1
    }

    fn set_of(&mut self, spec: &PodSet) -> usize {
        if let Some(id) = self.set_ids.get(spec) {
            return *id;
        }
        let selectors = spec.all.iter().map(|(_, clauses)| compile(clauses)).collect();
        let (tallies, holders, wishers) = (Vec::new(), Vec::new(), Vec::new());
        let set = Set { spec: spec.clone(), selectors, tallies, holders, wishers };
        let id = self.sets.len();
        for own in &mut self.label_sets {
            if belongs(own, &set, &self.namespaces) {
                own.sets.push(id);
            }
        }
        self.sets.push(set);
        self.set_ids.insert(spec.clone(), id);
        id
    }

    /// Whether pods with these labels belong to a tally's set.
    pub(super) fn is_counted(&self, label_set: usize, tally: usize) -> bool {
        self.label_sets[label_set].sets.contains(&self.tallies[tally].set)
    }

    /// The tally of a spread constraint; `shape` is the pod's own, `keys` those of all its hard constraints.
    pub(super) fn spread_tally<'a>(
        &mut self,
        spread: &Spread,
        shape: usize,
        keys: &[&str],
        nodes: &[Node],
        placed: impl Iterator<Item = (usize, usize)> + 'a,
    ) -> usize {
        let affinity = (spread.honor_affinity && !self.shapes[shape].is_free).then_some(shape);
        let mut keys: Vec<_> = keys.iter().map(|key| self.topology_of(key, nodes)).collect();
        keys.sort_unstable();
        keys.dedup();
        let scope = Scope { affinity, taints: spread.honor_taints.then_some(shape), keys };
        self.tally_of(&spread.pods, &spread.key, scope, nodes, placed)
    }

    /// The tally of a term of pod affinity or anti-affinity, over all nodes.
    pub(super) fn term_tally<'a>(
        &mut self,
        term: &Term,
        nodes: &[Node],
        placed: impl Iterator<Item = (usize, usize)> + 'a,
    ) -> usize {
        let scope = Scope { affinity: None, taints: None, keys: Vec::new() };
        self.tally_of(&term.pods, &term.key, scope, nodes, placed)
    }

    /// `placed` gives label set and node of every placed pod.
    fn tally_of<'a>(
        &mut self,
        pods: &PodSet,
        key: &str,
        scope: Scope,
        nodes: &[Node],
        placed: impl Iterator<Item = (usize, usize)> + 'a,
    ) -> usize {
        let (set, topology) = (self.set_of(pods), self.topology_of(key, nodes));
        let id = (set, topology, scope);
        if let Some(id) = self.tally_ids.get(&id) {
            return *id;
        }
        let domains = self.topologies[topology].count;
        let scope = id.2.clone();
        let mut tally = Tally { topology, set, scope, counts: vec![0; domains], nodes: vec![0; domains] };
        for (node, domain) in self.topologies[topology].domains.iter().enumerate() {
            if *domain != NOWHERE && nodes[node].facts.is_some() && self.is_in(&tally.scope, node) {
                tally.nodes[*domain as usize] += 1;
            }
        }
        for (label_set, node) in placed {
            let domain = self.topologies[topology].domains[node];
            if domain != NOWHERE && self.label_sets[label_set].sets.contains(&set) && self.is_in(&tally.scope, node) {
                tally.counts[domain as usize] += 1;
            }
        }
        self.cells += 2 * domains;
        self.tallies.push(tally);
        self.sets[set].tallies.push(self.tallies.len() - 1);
        self.tally_ids.insert(id, self.tallies.len() - 1);
        self.tallies.len() - 1
    }

    fn is_in(&self, scope: &Scope, node: usize) -> bool {
        let is_matched = |shape: &usize, why: u8| self.shapes[*shape].verdicts[node] & why == 0;
        scope.affinity.as_ref().is_none_or(|shape| is_matched(shape, MISMATCH))
            && scope.taints.as_ref().is_none_or(|shape| is_matched(shape, TAINTED | UNSCHEDULABLE))
            && scope.keys.iter().all(|key| self.topologies[*key].domains[node] != NOWHERE)
    }

    /// Counts a pod in (`sign` 1) or out (-1).
    pub(super) fn place(&mut self, pod: &PodFacts, label_set: usize, node: usize, sign: i64, nodes: &[Node]) {
        for term in &pod.anti_affinity {
            let id = self.holder_of(term, nodes);
            let holder = &mut self.holders[id];
            let domain = self.topologies[holder.topology].domains[node];
            if domain != NOWHERE {
                holder.counts[domain as usize] += sign;
                holder.total += sign;
            }
        }
        // Whoever needs company is a little glad of more of it, as in kube-scheduler.
        let needed = pod.affinity.iter().map(|term| (1, term));
        for (weight, term) in pod.preferred.iter().map(|(weight, term)| (*weight, term)).chain(needed) {
            let id = self.wisher_of(term, nodes);
            let wisher = &mut self.wishers[id];
            let domain = self.topologies[wisher.topology].domains[node];
            if domain != NOWHERE {
                wisher.counts[domain as usize] += sign * weight;
                wisher.total += sign;
            }
        }
        for set in 0..self.label_sets[label_set].sets.len() {
            let set = self.label_sets[label_set].sets[set];
            for tally in 0..self.sets[set].tallies.len() {
                let id = self.sets[set].tallies[tally];
                let domain = self.topologies[self.tallies[id].topology].domains[node];
                if domain != NOWHERE && self.is_in(&self.tallies[id].scope, node) {
                    self.tallies[id].counts[domain as usize] += sign;
                }
            }
        }
    }

    fn holder_of(&mut self, term: &Term, nodes: &[Node]) -> usize {
        let id = (self.set_of(&term.pods), self.topology_of(&term.key, nodes));
        if let Some(id) = self.holder_ids.get(&id) {
            return *id;
        }
        let counts = vec![0; self.topologies[id.1].count];
        self.cells += counts.len();
        self.holders.push(Holder { topology: id.1, counts, total: 0 });
        self.sets[id.0].holders.push(self.holders.len() - 1);
        self.holder_ids.insert(id, self.holders.len() - 1);
        self.holders.len() - 1
    }

    fn wisher_of(&mut self, term: &Term, nodes: &[Node]) -> usize {
        let id = (self.set_of(&term.pods), self.topology_of(&term.key, nodes));
        if let Some(id) = self.wisher_ids.get(&id) {
            return *id;
        }
        let counts = vec![0; self.topologies[id.1].count];
        self.cells += counts.len();
        self.wishers.push(Holder { topology: id.1, counts, total: 0 });
        self.sets[id.0].wishers.push(self.wishers.len() - 1);
        self.wisher_ids.insert(id, self.wishers.len() - 1);
        self.wishers.len() - 1
    }

    /// The wishers that would have pods with these labels near them, or far from them.
    pub(super) fn wishers(&self, label_set: usize) -> Vec<usize> {
        let sets = self.label_sets[label_set].sets.iter();
        let wishers = sets.flat_map(|set| self.sets[*set].wishers.iter().copied());
        wishers.filter(|wisher| self.wishers[*wisher].total > 0).collect()
    }

    /// The weight of a wisher's pods in a node's domain.
    pub(super) fn wish(&self, wisher: usize, node: usize) -> i64 {
        let wisher = &self.wishers[wisher];
        let domain = self.topologies[wisher.topology].domains[node];
        if domain == NOWHERE { 0 } else { wisher.counts[domain as usize] }
    }

    /// The holders that refuse pods with these labels somewhere.
    pub(super) fn refusers(&self, label_set: usize) -> Vec<usize> {
        let sets = self.label_sets[label_set].sets.iter();
        let holders = sets.flat_map(|set| self.sets[*set].holders.iter().copied());
        holders.filter(|holder| self.holders[*holder].total > 0).collect()
    }

    /// Whether a holder refuses on this node.
    pub(super) fn refuses(&self, holder: usize, node: usize) -> bool {
        let holder = &self.holders[holder];
        let domain = self.topologies[holder.topology].domains[node];
        domain != NOWHERE && holder.counts[domain as usize] > 0
    }
}

fn domain_of<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.facts.as_ref()?.labels.get(key).map(String::as_str)
}

fn belongs(labels: &LabelSet, set: &Set, known: &HashMap<String, Labels>) -> bool {
    let is_owned = set.spec.owner.as_ref().is_none_or(|owner| labels.owner.as_ref() == Some(owner));
    let mut each = set.spec.all.iter().zip(&set.selectors);
    is_owned
        && !(set.spec.only_staying && labels.terminating)
        && each.all(|((namespaces, _), selector)| {
            let is_near = match namespaces {
                Namespaces::These(names) => names.contains(&labels.namespace),
                Namespaces::Chosen(clauses, names) => {
                    let none = Labels::new();
                    let own = known.get(&labels.namespace).unwrap_or(&none);
                    names.contains(&labels.namespace) || selects(&compile(clauses), own)
                }
            };
            is_near && selects(selector, &labels.labels)
        })
}

fn verdict(demands: &Demands, node: &NodeFacts) -> u8 {
    let mut verdict = 0;
    let cordon = ("node.kubernetes.io/unschedulable".to_owned(), String::new(), "NoSchedule".to_owned());
    if node.unschedulable && !demands.tolerations.iter().any(|toleration| tolerates(toleration, &cordon)) {
        verdict |= UNSCHEDULABLE;
    }
    let is_bad = |taint: &(String, String, String)| {
        matches!(taint.2.as_str(), "NoSchedule" | "NoExecute")
            && !demands.tolerations.iter().any(|toleration| tolerates(toleration, taint))
    };
    if node.taints.iter().any(is_bad) {
        verdict |= TAINTED;
    }
    let is_chosen = demands.selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
        && demands
            .required
            .as_ref()
            .is_none_or(|terms| terms.iter().any(|term| term.matches(&node.name, &node.labels)));
    if !is_chosen {
        verdict |= MISMATCH;
    }
    let reaches = |terms: &Vec<NodeTerm>| terms.iter().any(|term| term.matches(&node.name, &node.labels));
    if !demands.volumes.iter().all(reaches) {
        verdict |= OUT_OF_REACH;
    }
    if !demands.findable.iter().all(reaches) {
        verdict |= NOT_FOUND;
    }
    verdict
}

fn wish(demands: &Demands, node: &NodeFacts) -> (i64, i64) {
    let weight = demands.preferred.iter().filter(|(_, term)| term.matches(&node.name, &node.labels));
    let is_bad = |taint: &&(String, String, String)| {
        taint.2 == "PreferNoSchedule" && !demands.tolerations.iter().any(|toleration| tolerates(toleration, taint))
    };
    let bad = node.taints.iter().filter(is_bad).count();
    (weight.map(|(weight, _)| i64::from(*weight)).sum(), i64::try_from(bad).unwrap_or(0))
}

/// Whether a toleration (key, operator, value, effect) is for a taint (key, value, effect).
fn tolerates(toleration: &(String, String, String, String), taint: &(String, String, String)) -> bool {
    let (key, operator, value, effect) = toleration;
    let by_operator = match operator.as_str() {
        "Exists" => true,
        "" | "Equal" => !key.is_empty() && *value == taint.1,
        _ => false,
    };
    by_operator && (key.is_empty() || *key == taint.0) && (effect.is_empty() || *effect == taint.2)
}
