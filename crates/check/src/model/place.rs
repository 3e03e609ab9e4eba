//! Pods made from workloads, and given nodes by the real scheduler.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use mainstay_model::{meta, workload as pod_rules};
use mainstay_scheduler::core::{Budget, PodFacts, Snapshot};
use mainstay_scheduler::selector::clauses;
use serde_json::{Value, json};

use super::volume::Storage;
use super::{Kind, Model, PodModel, Volume, Workload, priority};
use crate::engine::Engine;
use crate::manifest::Object;
use crate::topology::Topology;

/// Most pods that make room for others after one failure.
pub const DISRUPTIONS_MAX: usize = 1_000;

/// The pods of all workloads, not placed unless they run already, and their volumes.
pub(super) fn pods(
    objects: &[Object],
    workloads: &mut [Workload],
    topology: &Topology,
    engine: &Engine,
) -> (Vec<PodModel>, Vec<Volume>) {
    let storage = Storage::of(objects, engine);
    let running = running(objects);
    let (mut pods, mut volumes) = (Vec::new(), Vec::new());
    let mut by_claim: BTreeMap<String, usize> = BTreeMap::new();
    for (at, workload) in workloads.iter_mut().enumerate() {
        let object = &objects[workload.object];
        let priority = priority(objects, workload.spec());
        let live = running.get(&(object.kind(), object.namespace(), object.name())).filter(|_| object.is_live());
        let made: Vec<(String, Option<String>)> = match workload.kind {
            Kind::DaemonSet => topology
                .nodes
                .iter()
                .map(|node| (format!("{}-{}", workload.name, node.name), Some(node.name.clone())))
                .collect(),
            Kind::Pod => {
                let node = meta::str_at(&object.written, "spec.nodeName").map(str::to_owned);
                vec![(workload.name.clone(), node)]
            }
            _ => names(workload, live),
        };
        let mut own = Vec::new();
        for (ordinal, (name, node)) in made.into_iter().enumerate() {
            let mut written = workload.pod(&name, priority);
            let home = node.as_deref().and_then(|node| topology.node(node));
            if let (Kind::DaemonSet, Some(node)) = (workload.kind, &node) {
                pin(&mut written, node);
            }
            meta::set_at(&mut written, "spec.nodeName", Value::Null);
            let pod: Pod = serde_json::from_value(written).unwrap_or_default();
            let index = pods.len();
            let mut mounted = Vec::new();
            for (key, object, claim) in storage.claims_of(workload, &name) {
                let volume = *by_claim.entry(key.clone()).or_insert_with(|| {
                    volumes.push(storage.volume(key, object, claim));
                    volumes.len() - 1
                });
                let of: &mut Volume = &mut volumes[volume];
                of.pods.push(index);
                mounted.push(volume);
            }
            pods.push(PodModel {
                key: format!("{}/{name}", workload.namespace),
                workload: at,
                ordinal,
                facts: Arc::new(PodFacts::of(&pod)),
                volumes: mounted,
                // A DaemonSet's pod is for one node, but has to fit there.
                node: home.filter(|_| workload.kind != Kind::DaemonSet),
                refusal: None,
            });
            own.push(index);
        }
        workload.pods = own;
    }
    (pods, volumes)
}

/// Names of a workload's pods, those that run first, with their nodes.
fn names(workload: &Workload, live: Option<&Vec<(String, String)>>) -> Vec<(String, Option<String>)> {
    let live = live.into_iter().flatten().map(|(name, node)| (name.clone(), Some(node.clone())));
    let mut all: Vec<(String, Option<String>)> = live.collect();
    let taken: BTreeSet<String> = all.iter().map(|(name, _)| name.clone()).collect();
    let first = usize::from(workload.kind != Kind::StatefulSet);
    let mut made = (first..).map(|ordinal| format!("{}-{ordinal}", workload.name)).filter(|name| !taken.contains(name));
    while all.len() < workload.replicas {
        let Some(name) = made.next() else { break };
        all.push((name, None));
    }
    all.sort_by_key(|(name, _)| (name.len(), name.clone()));
    all
}

type Running<'o> = BTreeMap<(&'o str, &'o str, &'o str), Vec<(String, String)>>;

/// Pods of a running cluster by what made them: the Deployment rather than its ReplicaSet.
fn running(objects: &[Object]) -> Running<'_> {
    let of_set = |namespace: &str, name: &str| {
        let is_it = |object: &&Object| {
            object.kind() == "ReplicaSet" && object.namespace() == namespace && object.name() == name
        };
        objects.iter().find(is_it).and_then(|set| meta::controller_of(&set.written))
    };
    let mut all = Running::new();
    for pod in objects.iter().filter(|object| object.kind() == "Pod" && object.is_live()) {
        let (Some(owner), Some(node)) =
            (meta::controller_of(&pod.written), meta::str_at(&pod.written, "spec.nodeName"))
        else {
            continue;
        };
        if pod_rules::is_pod_finished(&pod.written) || meta::is_being_deleted(&pod.written) {
            continue;
        }
        let name = owner["name"].as_str().unwrap_or_default();
        let top = (owner["kind"] == "ReplicaSet").then(|| of_set(pod.namespace(), name)).flatten().unwrap_or(owner);
        let (kind, name) = (top["kind"].as_str().unwrap_or_default(), top["name"].as_str().unwrap_or_default());
        all.entry((kind, pod.namespace(), name)).or_default().push((pod.name().to_owned(), node.to_owned()));
    }
    all
}

/// Ties a DaemonSet's pod to its node, and lets it tolerate what the controller would.
fn pin(pod: &mut Value, node: &str) {
    const TERMS: &str = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let fields = json!([{"key": "metadata.name", "operator": "In", "values": [node]}]);
    let mut terms = meta::list_at(pod, TERMS).to_vec();
    if terms.is_empty() {
        terms.push(json!({}));
    }
    for term in &mut terms {
        term["matchFields"] = fields.clone();
    }
    meta::set_at(pod, TERMS, json!(terms));
    let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    for key in ["not-ready", "unreachable", "disk-pressure", "memory-pressure", "pid-pressure", "unschedulable"] {
        tolerations.push(json!({"key": format!("node.kubernetes.io/{key}"), "operator": "Exists"}));
    }
    pod["spec"]["tolerations"] = json!(tolerations);
}

/// The scheduler's view of the cluster at one moment.
pub struct Landscape<'m> {
    model: &'m Model,
    snapshot: Snapshot,
    budgets: Vec<Budget>,
}

impl<'m> Landscape<'m> {
    /// With these nodes dead (there, but tainted), and the pods that `stays` keeps.
    pub fn new(model: &'m Model, is_dead: &dyn Fn(usize) -> bool, stays: &dyn Fn(usize) -> bool) -> Self {
        let mut snapshot = Snapshot::default();
        for (at, node) in model.topology.nodes.iter().enumerate() {
            snapshot.put_node(if is_dead(at) { node.dead_facts.clone() } else { node.facts.clone() });
        }
        for object in model.objects.iter().filter(|object| object.kind() == "Namespace") {
            let labels = meta::labels(&object.written).into_iter().flatten();
            let labels = labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
            let mut labels: BTreeMap<String, String> = labels.collect();
            labels.insert("kubernetes.io/metadata.name".to_owned(), object.name().to_owned());
            snapshot.put_namespace(object.name(), Some(labels));
        }
        for (at, pod) in model.pods.iter().enumerate().filter(|(at, _)| stays(*at)) {
            if pod.node.is_some() {
                snapshot.put_pod(model.placed[at].clone());
            }
        }
        Self { model, snapshot, budgets: budgets(model) }
    }

    /// Gives a pod a node. If others of less priority have to go for it, they are named; they are gone then.
    ///
    /// # Errors
    /// The scheduler's reason why there is none.
    pub fn place(&mut self, pod: usize) -> Result<(usize, Vec<usize>), String> {
        let model = self.model;
        let facts = with_volumes(model, pod);
        let mut refusal = match self.snapshot.schedule(&facts) {
            Ok(node) => return model.topology.node(&node).map(|node| (node, Vec::new())).ok_or_else(String::new),
            Err(refusal) => refusal,
        };
        let victims = self.snapshot.preempt(&facts, &mut refusal, &self.budgets);
        let Some(preemption) = victims else { return Err(refusal.to_string()) };
        for key in &preemption.victims {
            self.snapshot.remove_pod(key);
        }
        let node = self.snapshot.schedule(&facts).map_err(|refusal| refusal.to_string())?;
        let index = |key: &String| model.pods.iter().position(|pod| pod.key == *key);
        let victims = preemption.victims.iter().filter_map(index).collect();
        Ok((model.topology.node(&node).unwrap_or(0), victims))
    }
}

fn budgets(model: &Model) -> Vec<Budget> {
    let budget = |budget: &super::BudgetModel| {
        let object = &model.objects[budget.object];
        let selector = serde_json::from_value(object.written["spec"]["selector"].clone()).ok();
        let allowed = budget.pods.len() as i64 - budget.minimum as i64;
        Some(Budget { namespace: object.namespace().to_owned(), selector: clauses(selector.as_ref())?, allowed })
    };
    model.budgets.iter().filter_map(budget).collect()
}

fn with_volumes(model: &Model, pod: usize) -> Arc<PodFacts> {
    let pod = &model.pods[pod];
    let terms: Vec<_> = pod.volumes.iter().flat_map(|volume| model.volumes[*volume].terms.clone()).collect();
    if terms.is_empty() { pod.facts.clone() } else { Arc::new(PodFacts::clone(&pod.facts).with_volumes(terms)) }
}

impl Model {
    /// Gives every pod that has none a node, and settles volumes.
    pub(super) fn place(&mut self) {
        self.placed = self.pods.iter().map(|pod| bound(pod, &self.topology)).collect();
        for at in 0..self.pods.len() {
            self.settle(at);
        }
        let is_daemon = |pod: &PodModel| self.workloads[pod.workload].kind == Kind::DaemonSet;
        let mut order: Vec<usize> = (0..self.pods.len()).filter(|pod| self.pods[*pod].node.is_none()).collect();
        order.sort_by_key(|pod| {
            let pod = &self.pods[*pod];
            (!is_daemon(pod), -i64::from(pod.facts.priority))
        });
        self.place_all(&order);
    }

    fn place_all(&mut self, pods: &[usize]) {
        let mut snapshot = Landscape::new(self, &|_| false, &|_| true).snapshot;
        for pod in pods.iter().copied() {
            let facts = with_volumes(self, pod);
            match snapshot.schedule(&facts) {
                Ok(node) => self.pods[pod].node = self.topology.node(&node),
                Err(refusal) => self.pods[pod].refusal = Some(refusal.to_string()),
            }
            self.placed[pod] = bound(&self.pods[pod], &self.topology);
            self.settle(pod);
        }
    }

    fn settle(&mut self, pod: usize) {
        let Some(node) = self.pods[pod].node else { return };
        for volume in self.pods[pod].volumes.clone() {
            self.volumes[volume].settle(&self.topology.nodes[node], &self.topology);
        }
    }
}

/// The facts of a pod where it is.
fn bound(pod: &PodModel, topology: &Topology) -> Arc<PodFacts> {
    match pod.node {
        None => pod.facts.clone(),
        Some(node) => {
            let mut facts = PodFacts::clone(&pod.facts);
            facts.node = Some(topology.nodes[node].name.clone());
            Arc::new(facts)
        }
    }
}
