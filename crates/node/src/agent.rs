//! The agent: the journey from start to serving, and the manager of the pods' tasks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use mainstay_informer::{Cache, ObjectKey, Scope};
use mainstay_runtime::cgroup::Cgroups;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::addresses::Addresses;
use crate::config::{NodeConfig, NodeError};
use crate::context::Context;
use crate::events::Events;
use crate::images::{self, Images};
use crate::pod::clock::Clock;
use crate::pod::dir::{self, PodDir};
use crate::pod::prepare::Objects;
use crate::pod::worker::{Desired, Worker};
use crate::policy;
use crate::registration::{self, Machine};
use crate::server;
use crate::services::{Role, ServiceNetwork};
use crate::stats::{self, Stats};

/// Workers that ended are looked for at least this often.
const SWEEP: Duration = Duration::from_secs(10);

/// Runs a node's agent in the network namespace that the process is in. Returns only if it cannot run.
///
/// Runs on a `current_thread` runtime. To end the agent drop the future: pods go on, the next agent adopts them.
pub async fn run(config: NodeConfig) -> Result<(), NodeError> {
    // The agent's own cgroup first: shims and helpers start below it.
    let cgroups = Cgroups::detect().map_err(NodeError::Cgroup)?;
    cgroups.node(&config.instance, &config.name).enter_agent().map_err(NodeError::Cgroup)?;
    let pods = dir::pods(&config.data_dir);
    std::fs::create_dir_all(&pods).map_err(|source| NodeError::Directory { path: pods, source })?;

    // Caches and rules. They fill when the API server answers; nothing below waits for them to.
    let pods = Cache::new();
    let network = ServiceNetwork::start(&config.client, pods.clone());
    let context = Arc::new(Context {
        machine: Machine::read(),
        clock: Clock::start(),
        pods,
        network: network.clone(),
        events: Events::start(config.client.clone(), &config.name),
        addresses: Mutex::new(Addresses::new(config.pod_cidr)),
        views: Mutex::default(),
        objects: Objects::default(),
        stats: Stats::default(),
        images: Images::new(&config),
        config,
    });
    let config = &context.config;
    let scope = Scope { fields: Some(format!("spec.nodeName={}", config.name)), ..Scope::default() };
    tokio::spawn(context.pods.clone().run(config.client.clone(), scope));
    let role = Role::Node { name: config.name.clone(), address: config.address, pod_cidr: config.pod_cidr };
    let (instance, plan) = (config.instance.clone(), config.network);
    tokio::spawn(crate::dns::serve(network.clone(), plan.dns_service_address()));
    tokio::spawn(async move { network.serve(&instance, plan, role).await });

    // The server, so that logs and exec work as soon as there are pods.
    let (listener, acceptor) = server::bind(&context).await.map_err(NodeError::Server)?;
    tokio::spawn(server::serve(context.clone(), listener, acceptor));
    tokio::spawn(stats::sample(context.clone()));
    tokio::spawn(images::collect(context.clone()));
    tokio::spawn(policy::serve(context.clone()));

    // What a former agent left behind goes on, with or without an API server.
    let mut manager = Manager { context: context.clone(), workers: HashMap::new() };
    manager.adopt().await;

    // The node is announced only now: what is bound to it from here on finds everything in place.
    let announced = context.clone();
    tokio::spawn(async move {
        let node = registration::register(&announced.config, &announced.machine).await;
        tracing::info!(node = announced.config.name, "registered");
        let uid = node.metadata.uid.unwrap_or_default();
        registration::keep_lease(announced.config.clone(), announced.machine.clone(), uid).await;
    });
    manager.run().await;
    Ok(())
}

/// One pod's task and what it is told.
struct Handle {
    key: ObjectKey,
    desired: watch::Sender<Desired>,
    task: JoinHandle<()>,
}

/// Starts a task for every pod bound to this node and tells it what the API says. Level-triggered: every wake-up compares
/// all pods with all tasks.
struct Manager {
    context: Arc<Context>,
    workers: HashMap<String, Handle>,
}

impl Manager {
    /// Takes over the pods whose directories a former agent left.
    async fn adopt(&mut self) {
        let data_dir = self.context.config.data_dir.clone();
        for place in PodDir::list(&data_dir) {
            let (pod, record) = match place.load() {
                Ok(loaded) => loaded,
                Err(error) => {
                    // The agent ended between making the directory and the pod: nothing runs in it.
                    tracing::info!(pod = place.uid(), %error, "incomplete pod directory removed");
                    if let Err(error) = place.remove() {
                        tracing::warn!(pod = place.uid(), %error, "directory not removed");
                    }
                    continue;
                }
            };
            let (uid, pod) = (place.uid(), Arc::new(pod));
            let (desired, receiver) = watch::channel(Desired::Pod(pod.clone()));
            let key = ObjectKey::of(&*pod);
            let worker = Worker::adopt(self.context.clone(), place, pod, &record, receiver).await;
            self.workers.insert(uid, Handle { key, desired, task: tokio::spawn(worker.run()) });
        }
        if !self.workers.is_empty() {
            tracing::info!(pods = self.workers.len(), "pods of the former agent taken over");
        }
    }

    async fn run(&mut self) {
        let mut changes = self.context.pods.subscribe();
        self.context.pods.synced().await;
        loop {
            self.reconcile();
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(SWEEP) => {}
            }
        }
    }

    fn reconcile(&mut self) {
        self.workers.retain(|_, handle| !handle.task.is_finished());
        for pod in self.context.pods.list() {
            let Some(uid) = pod.metadata.uid.clone() else { continue };
            match self.workers.get(&uid) {
                Some(handle) => {
                    handle.desired.send_if_modified(|desired| {
                        let same = matches!(desired, Desired::Pod(known) if Arc::ptr_eq(known, &pod));
                        if !same {
                            *desired = Desired::Pod(pod.clone());
                        }
                        !same
                    });
                }
                None => self.begin(uid, pod),
            }
        }
        for (uid, handle) in &self.workers {
            let there = self.context.pods.get_key(&handle.key);
            if there.is_none_or(|pod| pod.metadata.uid.as_ref() != Some(uid)) {
                handle.desired.send_if_modified(|desired| {
                    let news = !matches!(desired, Desired::Gone);
                    *desired = Desired::Gone;
                    news
                });
            }
        }
    }

    fn begin(&mut self, uid: String, pod: Arc<Pod>) {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let ended = matches!(phase, Some("Succeeded" | "Failed"));
        // A pod that ended before this agent knew it is not run again; only its deletion is still of interest.
        if ended && pod.metadata.deletion_timestamp.is_none() {
            return;
        }
        let (desired, receiver) = watch::channel(Desired::Pod(pod.clone()));
        let key = ObjectKey::of(&*pod);
        let worker = Worker::new(self.context.clone(), pod, receiver);
        self.workers.insert(uid, Handle { key, desired, task: tokio::spawn(worker.run()) });
    }
}
