//! What all parts of one agent share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use mainstay_informer::Cache;
use mainstay_model::quantity::Quantity;
use tokio::sync::{mpsc, watch};

use crate::addresses::Addresses;
use crate::config::NodeConfig;
use crate::env::PodFacts;
use crate::events::Events;
use crate::images::Images;
use crate::pod::clock::Clock;
use crate::pod::io::Input;
use crate::pod::prepare::Objects;
use crate::registration::{Machine, Vitals};
use crate::services::ServiceNetwork;
use crate::stats::Stats;

/// What all parts of one agent share.
pub struct Context {
    /// How the agent was configured.
    pub config: NodeConfig,
    /// What the machine has.
    pub machine: Machine,
    /// The time of pod life.
    pub clock: Clock,
    /// The pods bound to this node.
    pub pods: Cache<Pod>,
    /// Services and their endpoints.
    pub network: ServiceNetwork,
    /// Where events are told.
    pub events: Events,
    /// The pods' addresses.
    pub addresses: Mutex<Addresses>,
    /// The objects that pods refer to.
    pub objects: Objects,
    /// The images that containers run on.
    pub images: Images,
    /// What the pods use.
    pub stats: Stats,
    /// How the node is, as its Node object is to say.
    pub vitals: watch::Sender<Vitals>,
    /// The pods that files of the node stand for.
    pub static_pods: watch::Sender<Vec<Arc<Pod>>>,
    /// Where pods are told what others want of them, by uid.
    pub doors: Mutex<HashMap<String, mpsc::Sender<Input>>>,
    /// The pods as the agent's server sees them, by uid.
    pub views: Mutex<HashMap<String, PodView>>,
}

/// Wishes of others that may wait for a pod.
const DOOR_MAX: usize = 8;

/// A pod as the agent's server sees it.
#[derive(Debug, Clone)]
pub struct PodView {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its containers by name.
    pub containers: HashMap<String, ContainerView>,
    /// The process whose network namespace is the pod's, while there is a sandbox.
    pub sandbox: Option<u32>,
}

/// A container as the agent's server sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerView {
    /// How often it was restarted.
    pub attempt: u32,
    /// Its id, while it runs.
    pub running: Option<String>,
    /// Since when it runs.
    pub since: Option<Timestamp>,
    /// It ran at least once, so that there may be a log.
    pub has_run: bool,
    /// It has a standard input.
    pub stdin: bool,
    /// Why it does not run, if it waits.
    pub waiting: Option<&'static str>,
}

impl Context {
    /// What a pod's fields may refer to.
    pub fn facts(&self, pod_ip: Option<String>) -> PodFacts {
        PodFacts {
            node_name: self.config.name.clone(),
            host_ip: self.config.address.to_string(),
            pod_ip,
            node_cpu_milli: self.machine.cpus as i64 * 1000,
            node_memory_bytes: self.machine.memory_bytes,
            pids_max: self.config.pids_max,
        }
    }

    /// What the node has for its pods: CPU in thousandths, memory in bytes.
    pub fn capacity(&self) -> (i64, i64) {
        let own = |name: &str| self.config.capacity.get(name).and_then(|text| text.parse::<Quantity>().ok());
        let cpu = own("cpu").map_or(self.machine.cpus as i64 * 1000, Quantity::milli_value);
        (cpu, own("memory").map_or(self.machine.memory_bytes, Quantity::value))
    }

    /// Opens a pod's door: from now on it can be told things.
    pub fn open_door(&self, uid: &str) -> mpsc::Receiver<Input> {
        let (sender, receiver) = mpsc::channel(DOOR_MAX);
        self.doors.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), sender);
        receiver
    }

    /// Closes a pod's door.
    pub fn close_door(&self, uid: &str) {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Tells a pod something; one that is gone, or has not listened for long, is not told.
    pub fn tell(&self, uid: &str, input: Input) {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        if doors.get(uid).is_none_or(|door| door.try_send(input).is_err()) {
            tracing::debug!(pod = uid, "nobody is there to be told");
        }
    }

    /// Works with the pods' addresses.
    pub fn with_addresses<T>(&self, work: impl FnOnce(&mut Addresses) -> T) -> T {
        work(&mut self.addresses.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Works with the views of all pods.
    pub fn with_views<T>(&self, work: impl FnOnce(&mut HashMap<String, PodView>) -> T) -> T {
        work(&mut self.views.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The view of a pod by name.
    pub fn view(&self, namespace: &str, name: &str) -> Option<PodView> {
        let is_it = |view: &&PodView| {
            let meta = &view.pod.metadata;
            meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
        };
        self.with_views(|views| views.values().find(is_it).cloned())
    }
}
