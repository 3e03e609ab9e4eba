//! What is to run, and where it runs: manifests and a topology made into pods on nodes, volumes, services and their needs.
//!
//! # Flow
//! workloads → pods → placed one after the other by the real scheduler (pods of a running cluster stay where they are) →
//! volumes settle where their first pod is → services, budgets, dependencies.
//!
//! # Guarantees
//! The same input gives the same model. A pod for which there is no node stays without one, with the scheduler's reason.
//!
//! # Assumptions
//! Pods are placed in the order DaemonSets, priority, order of the manifests. One run of each Job and CronJob is counted. Of
//! an autoscaled workload the fewest replicas are.

pub mod dependency;
mod place;
pub mod quorum;
pub mod service;
pub mod volume;
pub mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mainstay_model::meta;
use mainstay_scheduler::core::PodFacts;
use serde_json::Value;

use crate::engine::Engine;
use crate::manifest::Object;
use crate::topology::Topology;
use dependency::Dependency;
pub use place::{DISRUPTIONS_MAX, Landscape};
pub use service::{BudgetModel, Service};
pub use volume::{Reach, Volume};
pub use workload::{Kind, Workload};

/// One pod.
#[derive(Debug, Clone)]
pub struct PodModel {
    /// `namespace/name`.
    pub key: String,
    /// Its workload.
    pub workload: usize,
    /// Its number within the workload.
    pub ordinal: usize,
    /// What the scheduler needs to know.
    pub facts: Arc<PodFacts>,
    /// The volumes it mounts.
    pub volumes: Vec<usize>,
    /// Its node.
    pub node: Option<usize>,
    /// Why it has none.
    pub refusal: Option<String>,
}

/// What is to run, and where it runs.
#[derive(Debug)]
pub struct Model {
    /// All objects.
    pub objects: Vec<Object>,
    /// What makes pods.
    pub workloads: Vec<Workload>,
    /// Pods.
    pub pods: Vec<PodModel>,
    /// Per pod: the scheduler's facts with its node.
    pub(crate) placed: Vec<Arc<PodFacts>>,
    /// Claimed volumes.
    pub volumes: Vec<Volume>,
    /// What must go on.
    pub services: Vec<Service>,
    /// Disruption budgets.
    pub budgets: Vec<BudgetModel>,
    /// Per workload: what it needs.
    pub dependencies: Vec<Vec<Dependency>>,
    /// Where it runs.
    pub topology: Topology,
    /// How fast the platform is.
    pub engine: Engine,
    /// What had to be assumed, for people.
    pub assumptions: Vec<String>,
}

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Nothing makes pods.
    #[error(
        "there is nothing to check: no object makes pods (Deployment, StatefulSet, DaemonSet, ReplicaSet, Job, CronJob, Pod)"
    )]
    Empty,
    /// Too many pods.
    #[error("{0} pods; up to {max} are checked", max = workload::PODS_MAX)]
    Many(usize),
}

impl Model {
    /// Builds it. `program_s` is how long a program needs to start where nothing says so.
    ///
    /// # Errors
    /// When there are no pods, or too many.
    pub fn build(objects: Vec<Object>, topology: Topology, engine: Engine, program_s: f64) -> Result<Self, ModelError> {
        let of = |(at, object): (usize, &Object)| Workload::of(at, object, &engine, program_s);
        let mut workloads: Vec<Workload> = objects.iter().enumerate().filter_map(of).collect();
        workloads.extend(foreign(&objects, &engine, program_s));
        autoscaled(&objects, &mut workloads);
        let expected: usize = workloads.iter().map(|workload| workload.replicas).sum();
        if expected > workload::PODS_MAX {
            return Err(ModelError::Many(expected));
        }
        let (pods, volumes) = place::pods(&objects, &mut workloads, &topology, &engine);
        if pods.is_empty() {
            return Err(ModelError::Empty);
        }
        let budgets = service::budgets(&objects, &workloads, &pods);
        let mut services = service::services(&objects, &workloads, &pods, &budgets);
        let names: BTreeSet<String> = services.iter().filter(|service| service.is_service).map(Service::key).collect();
        let needs = |workload: &Workload| dependency::of(workload, &objects[workload.object], &objects, &names);
        let dependencies: Vec<Vec<Dependency>> = workloads.iter().map(needs).collect();
        link(&mut services, &dependencies);
        let assumptions = assumptions(&workloads, &volumes, &engine, program_s);
        let placed = Vec::new();
        let mut model = Self {
            objects,
            workloads,
            pods,
            placed,
            volumes,
            services,
            budgets,
            dependencies,
            topology,
            engine,
            assumptions,
        };
        model.place();
        Ok(model)
    }

    /// The place of a service in [`Self::services`].
    pub fn service(&self, key: &str) -> Option<usize> {
        self.services.iter().position(|service| service.key() == key)
    }

    /// The object of a workload.
    pub fn object_of(&self, workload: &Workload) -> &Object {
        &self.objects[workload.object]
    }

    /// Nodes of a zone.
    pub fn nodes_of(&self, zone: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.topology.nodes.len()).filter(move |node| self.topology.nodes[*node].zone == zone)
    }
}

/// Running pods made by something that is not among the kinds known here: each taken for a copy that its maker replaces.
fn foreign(objects: &[Object], engine: &Engine, program_s: f64) -> Vec<Workload> {
    let is_foreign = |object: &&Object| {
        let known = |owner: &Value| {
            let kinds = ["ReplicaSet", "StatefulSet", "DaemonSet", "Job", "ReplicationController"];
            owner["kind"].as_str().is_some_and(|kind| kinds.contains(&kind))
        };
        object.kind() == "Pod" && object.is_live() && meta::controller_of(&object.written).is_some_and(|o| !known(o))
    };
    let made = objects.iter().enumerate().filter(|(_, object)| is_foreign(object)).filter_map(|(at, object)| {
        let mut free = object.clone();
        meta::set_metadata(&mut free.written, "ownerReferences", Value::Null);
        let mut workload = Workload::of(at, &free, engine, program_s)?;
        workload.is_replaced = true;
        Some(workload)
    });
    made.collect()
}

/// An autoscaled workload has as few replicas as the autoscaler may make of it.
fn autoscaled(objects: &[Object], workloads: &mut [Workload]) {
    for object in objects.iter().filter(|object| object.kind() == "HorizontalPodAutoscaler") {
        let target = &object.written["spec"]["scaleTargetRef"];
        let least = object.written["spec"]["minReplicas"].as_u64().unwrap_or(1);
        let is_target = |workload: &&mut Workload| {
            workload.namespace == object.namespace()
                && target["name"] == workload.name.as_str()
                && target["kind"] == objects[workload.object].kind()
        };
        if let Some(workload) = workloads.iter_mut().find(is_target) {
            workload.replicas = usize::try_from(least).unwrap_or(1).min(workload::PODS_MAX);
        }
    }
}

/// Needs of workloads made needs of the services they stand behind.
fn link(services: &mut [Service], dependencies: &[Vec<Dependency>]) {
    let by_key: BTreeMap<String, usize> =
        services.iter().enumerate().filter(|(_, s)| s.is_service).map(|(at, service)| (service.key(), at)).collect();
    for (at, service) in services.iter_mut().enumerate() {
        let mut needs: BTreeMap<usize, dependency::Need> = BTreeMap::new();
        for dependency in service.workloads.iter().flat_map(|workload| &dependencies[*workload]) {
            if let Some(other) = by_key.get(&dependency.service).filter(|other| **other != at) {
                let need = needs.entry(*other).or_insert(dependency.need);
                *need = (*need).max(dependency.need);
            }
        }
        service.needs = needs.into_iter().collect();
    }
    // A headless service beside the one that people call leads to the same pods: they do not need each other.
    let same: Vec<Vec<usize>> = services.iter().map(|service| service.pods.clone()).collect();
    for (at, service) in services.iter_mut().enumerate() {
        service.needs.retain(|(other, _)| same[*other] != same[at]);
    }
}

fn assumptions(workloads: &[Workload], volumes: &[Volume], engine: &Engine, program_s: f64) -> Vec<String> {
    let mut all = vec![
        format!(
            "platform {}: a silent node's pods leave the endpoints after {} s and are replaced after {} s; a container starts in {} s",
            engine.name,
            engine.suspect_s,
            engine.dead_s + engine.toleration_s,
            engine.start_s
        ),
        format!("programs need {program_s} s to start (annotation {} or --start-seconds)", workload::START),
        "what dies stays dead until the platform or a person acts; images are at hand; nothing else happens meanwhile"
            .to_owned(),
    ];
    for workload in workloads {
        if let Some(quorum) = workload.quorum.as_ref().filter(|quorum| !quorum.source.starts_with("annotation")) {
            let (key, shown) = (workload.key(), quorum.rule.shown(workload.replicas));
            all.push(format!("{key} needs {shown}: {} (annotation {})", quorum.source, quorum::QUORUM));
        }
    }
    let assumed = volumes.iter().filter(|volume| volume.why.starts_with("assumed"));
    for volume in assumed.take(10) {
        all.push(format!(
            "volume {} is {} (annotation {})",
            volume.key,
            &volume.why["assumed: ".len()..],
            volume::REACH
        ));
    }
    all
}

/// The priority that a pod template asks for, and whether it may make others go.
pub(crate) fn priority<'o>(objects: &'o [Object], spec: &Value) -> (i64, &'o str) {
    const PREEMPTS: &str = "PreemptLowerPriority";
    let name = spec["priorityClassName"].as_str().unwrap_or_default();
    let builtin = match name {
        "system-node-critical" => Some(2_000_001_000),
        "system-cluster-critical" => Some(2_000_000_000),
        _ => None,
    };
    if let Some(value) = builtin {
        return (value, PREEMPTS);
    }
    let mut classes = objects.iter().filter(|object| object.kind() == "PriorityClass");
    let is_it = |class: &&Object| {
        if name.is_empty() { meta::bool_at(&class.written, "globalDefault") } else { class.name() == name }
    };
    classes.find(is_it).map_or((0, PREEMPTS), |class| {
        let policy = class.written["preemptionPolicy"].as_str().unwrap_or(PREEMPTS);
        (class.written["value"].as_i64().unwrap_or(0), policy)
    })
}
