//! What the scheduler needs to know of a pod and of a node, taken from the objects once.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod, PodAffinityTerm, PodSpec, Taint, Toleration, TopologySpreadConstraint};

use super::amounts::{self, Amounts};
use crate::selector::{Clauses, Labels, NodeTerm, clauses};

pub(super) const ZONE: &str = "topology.kubernetes.io/zone";
pub(super) const HOSTNAME: &str = "kubernetes.io/hostname";

/// A node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// What pods may use.
    pub allocatable: Amounts,
    pub(super) labels: Labels,
    pub(super) taints: Vec<(String, String, String)>,
    pub(super) unschedulable: bool,
    /// Images it has, by every name, with their sizes in bytes.
    pub(super) images: BTreeMap<String, i64>,
}

impl NodeFacts {
    /// From the object. A node that says it is not ready counts as tainted even before a controller has said so.
    pub fn of(node: &Node) -> Self {
        let spec = node.spec.clone().unwrap_or_default();
        let status = node.status.clone().unwrap_or_default();
        let name = node.metadata.name.clone().unwrap_or_default();
        let mut labels = node.metadata.labels.clone().unwrap_or_default();
        labels.entry(HOSTNAME.to_owned()).or_insert_with(|| name.clone());
        let mut taints: Vec<_> = spec.taints.iter().flatten().map(taint).collect();
        let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
        if let Some(ready) = ready.filter(|ready| ready.status != "True") {
            let key = if ready.status == "Unknown" { "unreachable" } else { "not-ready" };
            taints.push((format!("node.kubernetes.io/{key}"), String::new(), "NoSchedule".to_owned()));
        }
        let mut allocatable =
            Amounts::of(if status.allocatable.is_some() { &status.allocatable } else { &status.capacity });
        if allocatable.pods == 0 {
            allocatable.pods = 110;
        }
        let images = status.images.iter().flatten().flat_map(|image| {
            let size = image.size_bytes.unwrap_or(0);
            image.names.iter().flatten().map(move |name| (tagged(name), size))
        });
        let images = images.collect();
        Self { name, allocatable, labels, taints, unschedulable: spec.unschedulable.unwrap_or(false), images }
    }
}

/// An image's name with its tag; without one it is `latest`.
fn tagged(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

fn taint(taint: &Taint) -> (String, String, String) {
    (taint.key.clone(), taint.value.clone().unwrap_or_default(), taint.effect.clone())
}

/// What of a pod decides which nodes it can ever run on, whatever else runs there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Demands {
    pub(super) selector: BTreeMap<String, String>,
    /// Required node affinity: one of these; `None` when there is none.
    pub(super) required: Option<Vec<NodeTerm>>,
    /// Preferred node affinity.
    pub(super) preferred: Vec<(i32, NodeTerm)>,
    /// Key, operator, value, effect.
    pub(super) tolerations: Vec<(String, String, String, String)>,
    /// Where its volumes can be reached: for each of them, one of these must hold.
    pub(super) volumes: Vec<Vec<NodeTerm>>,
    /// Where volumes could be had for its claims that have none yet, in the same way.
    pub(super) findable: Vec<Vec<NodeTerm>>,
}

/// Which pods something is about: of these namespaces, chosen by these clauses; all of a list must hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PodSet {
    pub(super) all: Vec<(Namespaces, Clauses)>,
    /// Only those with this controller.
    pub(super) owner: Option<String>,
    /// Leaves out pods that are being deleted.
    pub(super) only_staying: bool,
}

/// Namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Namespaces {
    These(Vec<String>),
    /// Those with labels that match, and these.
    Chosen(Clauses, Vec<String>),
}

/// One topology spread constraint.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Spread {
    pub(super) max_skew: i64,
    pub(super) key: String,
    pub(super) hard: bool,
    pub(super) pods: PodSet,
    pub(super) min_domains: i64,
    /// Only domains of nodes the pod could run on by selector and affinity count.
    pub(super) honor_affinity: bool,
    /// Only domains of nodes whose taints the pod tolerates count.
    pub(super) honor_taints: bool,
}

/// One required term of pod affinity or anti-affinity.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Term {
    pub(super) key: String,
    pub(super) pods: PodSet,
}

/// A host port: address, protocol, number.
pub(super) type HostPort = (String, String, i32);

/// A pod.
#[derive(Debug, Clone, PartialEq)]
pub struct PodFacts {
    /// `namespace/name`; what the snapshot knows it by.
    pub key: String,
    /// What it needs.
    pub requests: Amounts,
    pub(super) guess: (i64, i64),
    pub(super) namespace: String,
    pub(super) labels: Labels,
    pub(super) owner: Option<String>,
    pub(super) terminating: bool,
    pub(super) demands: Demands,
    pub(super) spreads: Vec<Spread>,
    pub(super) affinity: Vec<Term>,
    pub(super) anti_affinity: Vec<Term>,
    /// Preferred affinity (weight above zero) and anti-affinity (below).
    pub(super) preferred: Vec<(i64, Term)>,
    /// Images of its containers.
    pub(super) images: Vec<String>,
    /// Importance; a pod of less makes room for it.
    pub priority: i32,
    /// Whether it may make others go.
    pub may_preempt: bool,
    /// When it was made or started, in seconds; among equals the younger goes.
    pub(super) since: i64,
    /// The group it only runs together with, and how many of it there must be.
    pub group: Option<(String, usize)>,
    pub(super) ports: Vec<HostPort>,
    /// The node it is bound to.
    pub node: Option<String>,
}

impl PodFacts {
    /// From the object.
    pub fn of(pod: &Pod) -> Self {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let meta = &pod.metadata;
        let namespace = meta.namespace.clone().unwrap_or_default();
        let labels = meta.labels.clone().unwrap_or_default();
        let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let owner = owner.map(|owner| owner.uid.clone());
        let (requests, guess) = amounts::of_pod(spec);
        let affinity = spec.affinity.as_ref();
        let with = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
        let with = with.and_then(|with| with.required_during_scheduling_ignored_during_execution.as_deref());
        let against = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let against =
            against.and_then(|against| against.required_during_scheduling_ignored_during_execution.as_deref());
        Self {
            key: format!("{namespace}/{}", meta.name.as_deref().unwrap_or_default()),
            requests,
            guess,
            spreads: spreads(spec, &namespace, &labels, owner.as_deref()),
            affinity: together(terms(with.unwrap_or_default(), &namespace, &labels)),
            anti_affinity: terms(against.unwrap_or_default(), &namespace, &labels),
            preferred: preferred(spec, &namespace, &labels),
            images: spec.containers.iter().filter_map(|container| Some(tagged(container.image.as_ref()?))).collect(),
            priority: spec.priority.unwrap_or(0),
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
            since: since(pod),
            group: group(pod),
            namespace,
            labels,
            owner,
            terminating: meta.deletion_timestamp.is_some(),
            demands: demands(spec),
            ports: ports(spec),
            node: spec.node_name.clone().filter(|node| !node.is_empty()),
        }
    }
}

/// The label that names a pod's group, and the annotation that says how many pods of it must run together.
pub const GROUP_LABEL: &str = "scheduling.mainstay.dev/group";
/// See [`GROUP_LABEL`].
pub const GROUP_SIZE: &str = "scheduling.mainstay.dev/group-size";

fn group(pod: &Pod) -> Option<(String, usize)> {
    let name = pod.metadata.labels.as_ref()?.get(GROUP_LABEL)?;
    let size = pod.metadata.annotations.as_ref().and_then(|all| all.get(GROUP_SIZE)?.parse().ok()).unwrap_or(1);
    Some((format!("{}/{name}", pod.metadata.namespace.as_deref().unwrap_or_default()), size))
}

fn since(pod: &Pod) -> i64 {
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    started.or(pod.metadata.creation_timestamp.as_ref()).map_or(0, |time| time.0.as_second())
}

/// Preferred terms; those of anti-affinity with their weight below zero.
fn preferred(spec: &PodSpec, namespace: &str, labels: &Labels) -> Vec<(i64, Term)> {
    let Some(affinity) = &spec.affinity else { return Vec::new() };
    let with =
        affinity.pod_affinity.as_ref().and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let apart = affinity
        .pod_anti_affinity
        .as_ref()
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let all = with.into_iter().flatten().map(|w| (1, w)).chain(apart.into_iter().flatten().map(|w| (-1, w)));
    let weighted = all.flat_map(|(sign, written)| {
        let own = terms(std::slice::from_ref(&written.pod_affinity_term), namespace, labels);
        own.into_iter().map(move |term| (sign * i64::from(written.weight), term))
    });
    weighted.collect()
}

impl PodFacts {
    /// The pod with what its volumes demand of a node: for each volume, terms of which one must hold.
    #[must_use]
    pub fn with_volumes(mut self, volumes: Vec<Vec<NodeTerm>>) -> Self {
        self.demands.volumes = volumes;
        self
    }

    /// The pod with where volumes could be had for its claims that have none yet: for each, terms of which one must hold.
    #[must_use]
    pub fn with_findable(mut self, volumes: Vec<Vec<NodeTerm>>) -> Self {
        self.demands.findable = volumes;
        self
    }
}

fn demands(spec: &PodSpec) -> Demands {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let preferred = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let toleration = |t: &Toleration| (text(&t.key), text(&t.operator), text(&t.value), text(&t.effect));
    Demands {
        selector: spec.node_selector.clone().unwrap_or_default(),
        required: required.map(|required| required.node_selector_terms.iter().map(NodeTerm::of).collect()),
        preferred: preferred.unwrap_or_default().iter().map(|p| (p.weight, NodeTerm::of(&p.preference))).collect(),
        tolerations: spec.tolerations.iter().flatten().map(toleration).collect(),
        volumes: Vec::new(),
        findable: Vec::new(),
    }
}

/// The pod's own constraints; without any, kube-scheduler's defaults: softly over nodes and zones, among the pods of the
/// same controller. Source: <https://kubernetes.io/docs/concepts/scheduling-eviction/topology-spread-constraints/>.
fn spreads(spec: &PodSpec, namespace: &str, labels: &Labels, owner: Option<&str>) -> Vec<Spread> {
    let written = spec.topology_spread_constraints.as_deref().unwrap_or_default();
    if !written.is_empty() {
        return written.iter().map(|constraint| spread(constraint, namespace, labels)).collect();
    }
    let Some(owner) = owner else { return Vec::new() };
    let default = |key: &str, max_skew| Spread {
        max_skew,
        key: key.to_owned(),
        hard: false,
        pods: PodSet { all: Vec::new(), owner: Some(owner.to_owned()), only_staying: true },
        min_domains: 1,
        honor_affinity: true,
        honor_taints: false,
    };
    vec![default(HOSTNAME, 3), default(ZONE, 5)]
}

fn spread(constraint: &TopologySpreadConstraint, namespace: &str, labels: &Labels) -> Spread {
    let clauses = clauses(constraint.label_selector.as_ref());
    let keys = constraint.match_label_keys.as_deref().unwrap_or_default();
    Spread {
        max_skew: i64::from(constraint.max_skew.max(1)),
        key: constraint.topology_key.clone(),
        hard: constraint.when_unsatisfiable != "ScheduleAnyway",
        pods: PodSet {
            all: vec![(Namespaces::These(vec![namespace.to_owned()]), narrowed(clauses, keys, labels, "In"))],
            owner: None,
            only_staying: true,
        },
        min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
        honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
        honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
    }
}

/// A selector narrowed to pods that share (or do not share) the pod's own values of some labels. An absent selector
/// selects nothing, which a clause that cannot hold says.
fn narrowed(clauses: Option<Clauses>, keys: &[String], labels: &Labels, operator: &str) -> Clauses {
    let Some(mut clauses) = clauses else { return vec![(String::new(), "Never".to_owned(), Vec::new())] };
    let own = keys.iter().filter_map(|key| Some((key, labels.get(key)?)));
    clauses.extend(own.map(|(key, value)| (key.clone(), operator.to_owned(), vec![value.clone()])));
    clauses.sort();
    clauses
}

fn terms(written: &[PodAffinityTerm], namespace: &str, labels: &Labels) -> Vec<Term> {
    let term = |term: &PodAffinityTerm| {
        let same = term.match_label_keys.as_deref().unwrap_or_default();
        let other = term.mismatch_label_keys.as_deref().unwrap_or_default();
        let chosen = narrowed(clauses(term.label_selector.as_ref()), same, labels, "In");
        let chosen = narrowed(Some(chosen), other, labels, "NotIn");
        let mut names = term.namespaces.clone().unwrap_or_default();
        names.sort();
        let namespaces = match &term.namespace_selector {
            Some(selector) => Namespaces::Chosen(clauses(Some(selector)).unwrap_or_default(), names),
            None if names.is_empty() => Namespaces::These(vec![namespace.to_owned()]),
            None => Namespaces::These(names),
        };
        let pods = PodSet { all: vec![(namespaces, chosen)], owner: None, only_staying: false };
        Term { key: term.topology_key.clone(), pods }
    };
    written.iter().map(term).collect()
}

/// Affinity is to pods that match all terms at once.
fn together(terms: Vec<Term>) -> Vec<Term> {
    let all: Vec<_> = terms.iter().flat_map(|term| term.pods.all.clone()).collect();
    let pods = PodSet { all, owner: None, only_staying: false };
    terms.into_iter().map(|term| Term { pods: pods.clone(), ..term }).collect()
}

fn ports(spec: &PodSpec) -> Vec<HostPort> {
    let all = spec.containers.iter().chain(
        spec.init_containers.iter().flatten().filter(|container| container.restart_policy.as_deref() == Some("Always")),
    );
    let ports = all.flat_map(|container| container.ports.iter().flatten());
    let host = spec.host_network == Some(true);
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|port| *port > 0).or(host.then_some(port.container_port))?;
            let address = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
            Some((address, port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), number))
        })
        .collect()
}

/// Whether two host ports cannot be on one node.
pub(super) fn collide(a: &HostPort, b: &HostPort) -> bool {
    a.1 == b.1 && a.2 == b.2 && (a.0 == b.0 || a.0 == "0.0.0.0" || b.0 == "0.0.0.0")
}
