//! The configuration of a gateway in a cluster: objects watched through the Kubernetes API, and what is said back about them.
//!
//! # Flow
//! `kinds` names what is read → `watch` keeps a copy of it in [`World`] → the control thread compiles it as it does files →
//! of all gateways of the cluster one leads, and [`lead`] writes what `report` computed: conditions of classes, gateways, routes
//! and policies, the address of Ingresses, and the ports of the Service in front.
//!
//! # Guarantees
//! - The gateway goes on with what it knows while the API does not answer.
//! - A kind that the cluster does not have is no error; it is looked for again.
//! - Statuses are written with the revision they were computed from, so that no newer one is overwritten.
//!
//! # Deliberately absent
//! One address for each Gateway: all Gateways of a cluster share the gateways' addresses, so that two of them cannot have the
//! same port and hostname; the older one has it, and the younger one's conditions say so.

mod kinds;
mod lead;
mod report;
mod watch;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use kube::Client;
use serde_json::Value;
use tokio::sync::Notify;

use crate::api::Key;
use crate::config::source::Source;
pub(crate) use lead::lead;

/// Quiet time after a change before it is compiled: changes come in groups.
pub(crate) const SETTLE: Duration = Duration::from_millis(5);

/// How a gateway of a cluster is started.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How the API is reached.
    pub config: kube::Config,
    /// Namespace and name of the Service of type LoadBalancer in front of the gateways. Its addresses are said in statuses, and
    /// its ports are kept as the Gateways want them.
    pub service: Option<(String, String)>,
    /// Tells this gateway from the others.
    pub identity: String,
}

/// What is known of the cluster. Lives on the control thread.
pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) options: ClusterOptions,
    /// By kind (its place in the table) and key.
    objects: RefCell<BTreeMap<(usize, Key), Source>>,
    /// Kinds that have been listed, or are not there.
    listed: RefCell<Vec<bool>>,
    listed_one: Notify,
    /// Something changed that a configuration is made of.
    pub(crate) changed: Notify,
    /// Something changed that statuses are made of.
    pub(crate) reportable: Notify,
}

impl World {
    /// Begins to watch. Must be called on a local runtime.
    ///
    /// # Errors
    /// The configuration makes no client.
    pub(crate) fn start(options: ClusterOptions) -> kube::Result<std::rc::Rc<Self>> {
        let client = Client::try_from(options.config.clone())?;
        let world = std::rc::Rc::new(Self {
            client,
            options,
            objects: RefCell::default(),
            listed: RefCell::new(vec![false; kinds::KINDS.len()]),
            listed_one: Notify::new(),
            changed: Notify::new(),
            reportable: Notify::new(),
        });
        for index in 0..kinds::KINDS.len() {
            tokio::task::spawn_local(watch::follow(world.clone(), index));
        }
        Ok(world)
    }

    /// Waits until every kind has been listed once.
    pub(crate) async fn synced(&self) {
        while !self.listed.borrow().iter().all(|listed| *listed) {
            self.listed_one.notified().await;
        }
    }

    /// All objects, sorted by kind and name.
    pub(crate) fn sources(&self) -> Vec<Source> {
        self.objects.borrow().values().cloned().collect()
    }

    /// One object.
    fn object(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let index = kinds::KINDS.iter().position(|it| it.kind == kind)?;
        Some((*self.objects.borrow().get(&(index, Key::new(namespace, name)))?.value).clone())
    }

    /// The names that are switched on by hand for the whole cluster: the keys of the ConfigMap `mainstay-degraded` beside the
    /// gateways' Service.
    pub(crate) fn switched(&self) -> Vec<String> {
        let Some((namespace, _)) = &self.options.service else { return Vec::new() };
        let held = self.object("ConfigMap", namespace, crate::DEGRADED);
        let data = held.as_ref().and_then(|map| map["data"].as_object());
        data.into_iter().flat_map(|data| data.keys().cloned()).collect()
    }

    /// The addresses of the Service in front, as text.
    fn addresses(&self) -> Vec<String> {
        let Some((namespace, name)) = &self.options.service else { return Vec::new() };
        let service = self.object("Service", namespace, name).unwrap_or_default();
        let ingress = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
        let shown = ingress.iter().filter_map(|it| it["ip"].as_str().or(it["hostname"].as_str()));
        shown.map(str::to_owned).collect()
    }
}
