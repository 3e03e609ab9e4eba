//! The agent: the journey from start to serving, and the manager of the pods' tasks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

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
use crate::pod::io::StopReason;
use crate::pod::prepare::Objects;
use crate::pod::status::time;
use crate::pod::worker::{Desired, Worker};
use crate::policy;
use crate::pressure;
use crate::registration::{self, Machine};
use crate::server;
use crate::services::{Role, ServiceNetwork, health};
use crate::shutdown;
use crate::static_pods::{self, Files};
use crate::stats::{self, Stats};

/// Runs a node's agent in the network namespace that the process is in. Returns only if it cannot run, or when the node has shut
/// down.
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
        machine: Machine::read(&config.data_dir),
        clock: Clock::start(),
        pods,
        network: network.clone(),
        events: Events::start(config.client.clone(), &config.name),
        addresses: Mutex::new(Addresses::new(config.pod_cidr)),
        views: Mutex::default(),
        objects: Objects::default(),
        stats: Stats::default(),
        images: Images::new(&config),
        vitals: watch::Sender::default(),
        doors: Mutex::default(),
        static_pods: watch::Sender::default(),
        config,
    });
    let config = &context.config;
    let scope = Scope { fields: Some(format!("spec.nodeName={}", config.name)), ..Scope::default() };
    tokio::spawn(context.pods.clone().run(config.client.clone(), scope));
    serve_network(config, network);

    // The server, so that logs and exec work as soon as there are pods.
    let (listener, acceptor) = server::bind(&context).await.map_err(NodeError::Server)?;
    tokio::spawn(server::serve(context.clone(), listener, acceptor));
    tokio::spawn(stats::sample(context.clone()));
    tokio::spawn(images::collect(context.clone()));
    tokio::spawn(policy::serve(context.clone()));
    tokio::spawn(pressure::serve(context.clone()));

    // What a former agent left behind goes on, with or without an API server.
    let mut manager =
        Manager { context: context.clone(), workers: HashMap::new(), files: Files::default(), merged: HashMap::new() };
    manager.adopt().await;

    // The node is announced only now: what is bound to it from here on finds everything in place.
    tokio::spawn(announce(context.clone()));
    tokio::spawn(static_pods::mirror(context.clone()));
    tokio::select! {
        () = manager.run() => {}
        () = async {
            shutdown::asked().await;
            shutdown::run(&context).await;
        } => {}
    }
    Ok(())
}

/// Rules, names and health-check ports of the node's network, for ever.
fn serve_network(config: &NodeConfig, network: ServiceNetwork) {
    let role = Role::Node {
        name: config.name.clone(),
        zone: config.zone.clone(),
        address: config.address,
        pod_cidr: config.pod_cidr,
    };
    let (instance, plan) = (config.instance.clone(), config.network);
    tokio::spawn(health::serve(network.clone(), config.name.clone(), config.address));
    tokio::spawn(crate::dns::serve(network.clone(), plan.dns_service_address()));
    tokio::spawn(async move { network.serve(&instance, plan, role).await });
}

/// Makes the node known, and keeps it known.
async fn announce(context: Arc<Context>) {
    let mut vitals = context.vitals.subscribe();
    let now = vitals.borrow_and_update().clone();
    let node = registration::register(&context.config, &context.machine, &now).await;
    tracing::info!(node = context.config.name, "registered");
    let uid = node.metadata.uid.unwrap_or_default();
    registration::keep_lease(context.config.clone(), context.machine.clone(), uid, vitals).await;
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
    files: Files,
    /// The pods from files as their workers know them, by uid, each with the copy in the API that it was made with.
    merged: HashMap<String, (Option<Arc<Pod>>, Arc<Pod>)>,
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
        loop {
            self.reconcile();
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(static_pods::LOOK) => {}
            }
        }
    }

    /// The pods that files stand for, with what the API says of their copies.
    fn read_files(&mut self) -> Vec<Arc<Pod>> {
        let config = &self.context.config;
        let own = self.files.read(&Files::directory(&config.data_dir), &config.name);
        self.context.static_pods.send_if_modified(|known| {
            let same = known.len() == own.len() && known.iter().zip(&own).all(|(a, b)| Arc::ptr_eq(a, b));
            if !same {
                known.clone_from(&own);
            }
            !same
        });
        let mut merged = HashMap::new();
        for pod in &own {
            let Some(uid) = pod.metadata.uid.clone() else { continue };
            let mirror = self.context.pods.get_key(&ObjectKey::of(&**pod));
            let known = self.merged.remove(&uid).filter(|(before, _)| match (before, &mirror) {
                (Some(before), Some(now)) => Arc::ptr_eq(before, now),
                (before, now) => before.is_none() && now.is_none(),
            });
            let new = || (mirror.clone(), Arc::new(static_pods::of_mirror(pod, mirror.as_deref())));
            merged.insert(uid, known.unwrap_or_else(new));
        }
        self.merged = merged;
        self.merged.values().map(|(_, pod)| pod.clone()).collect()
    }

    fn reconcile(&mut self) {
        self.workers.retain(|_, handle| !handle.task.is_finished());
        let mut wanted = self.read_files();
        // Before the API was heard nothing is known of its pods.
        let synced = self.context.pods.is_synced();
        if synced {
            wanted.extend(self.context.pods.list().into_iter().filter(|pod| !static_pods::is_mirror(pod)));
        }
        for pod in wanted {
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
            if let Desired::Pod(pod) = &*handle.desired.borrow()
                && static_pods::is_static(pod)
            {
                continue;
            }
            let there = self.context.pods.get_key(&handle.key);
            if synced && there.is_none_or(|pod| pod.metadata.uid.as_ref() != Some(uid)) {
                handle.desired.send_if_modified(|desired| {
                    let news = !matches!(desired, Desired::Gone);
                    *desired = Desired::Gone;
                    news
                });
            }
        }
        self.end_static();
    }

    /// Ends the pods whose files are gone, with all the time they are given.
    fn end_static(&self) {
        for (uid, handle) in self.workers.iter().filter(|(uid, _)| !self.merged.contains_key(*uid)) {
            handle.desired.send_if_modified(|desired| {
                let Desired::Pod(pod) = desired else { return false };
                let news = static_pods::is_static(pod) && pod.metadata.deletion_timestamp.is_none();
                if news {
                    tracing::info!(pod = uid, "its file is gone or says something else: the static pod ends");
                    let mut ending = Pod::clone(pod);
                    ending.metadata.deletion_timestamp = Some(time(self.context.clock.now()));
                    *desired = Desired::Pod(Arc::new(ending));
                }
                news
            });
        }
    }

    fn begin(&mut self, uid: String, pod: Arc<Pod>) {
        // A changed file is another pod of the same name: one after the other.
        if static_pods::is_static(&pod) && self.workers.values().any(|handle| handle.key == ObjectKey::of(&*pod)) {
            return;
        }
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let ended = matches!(phase, Some("Succeeded" | "Failed")) && !static_pods::is_static(&pod);
        // A pod that ended before this agent knew it is not run again; only its deletion is still of interest.
        if ended && pod.metadata.deletion_timestamp.is_none() {
            return;
        }
        let (desired, receiver) = watch::channel(Desired::Pod(pod.clone()));
        let key = ObjectKey::of(&*pod);
        let refusal = if self.context.vitals.borrow().shutting_down {
            Some((StopReason::RefusedAtShutdown, "Pod was rejected as the node is shutting down.".to_owned()))
        } else {
            let message = pressure::refusal(&pod, self.context.vitals.borrow().pressures);
            message.map(|message| (StopReason::Refused, message))
        };
        let refusal = refusal.filter(|_| pod.metadata.deletion_timestamp.is_none());
        let mut worker = Worker::new(self.context.clone(), pod, receiver);
        if let Some((reason, message)) = refusal {
            worker.refuse(reason, message);
        }
        self.workers.insert(uid, Handle { key, desired, task: tokio::spawn(worker.run()) });
    }
}
