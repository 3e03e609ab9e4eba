//! Keeps the kernel's service rules of one network namespace: [`rules`] decides, [`ServiceNetwork::serve`] does.
//!
//! Flow: Services and EndpointSlices are cached; a change wakes the loop, which waits 5 ms for more of the same, plans
//! all rules anew and applies them in one transaction.
//!
//! Guarantees: nothing is applied before both lists have arrived, so that a restart never takes rules away; a failed
//! transaction leaves the former rules and is tried again.

pub mod health;
pub mod rules;

use std::net::Ipv4Addr;
use std::time::Duration;

use self::rules::Place;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use mainstay_informer::{Cache, Scope};
use mainstay_net::plan::{Cidr, Network};
use mainstay_net::services::{ServicePort, ServiceRules, ServiceTable};

/// Changes come in groups: a rollout touches the slice and often the service.
const GATHER: Duration = Duration::from_millis(5);
/// The wait after a transaction that failed.
const RETRY: Duration = Duration::from_secs(1);

/// Whose namespace the rules are for.
#[derive(Debug, Clone)]
pub enum Role {
    /// The machine's own: it reaches services and hides pods that leave the cluster network behind its address.
    Host,
    /// A node's.
    Node {
        /// The node's name.
        name: String,
        /// The node's zone.
        zone: String,
        /// The node's address, where node ports answer.
        address: Ipv4Addr,
        /// The node's pods.
        pod_cidr: Cidr,
    },
}

/// Services and who answers them, as the API server has them.
#[derive(Clone)]
pub struct ServiceNetwork {
    /// All services.
    pub services: Cache<Service>,
    /// All endpoint slices.
    pub slices: Cache<EndpointSlice>,
    /// The pods of the node whose network this is; nothing fills it elsewhere.
    pub pods: Cache<Pod>,
}

impl ServiceNetwork {
    /// Caches that fill themselves from the API server, as long as the runtime lives; `pods` is filled by whoever gives it.
    pub fn start(client: &Client, pods: Cache<Pod>) -> Self {
        let network = Self { services: Cache::new(), slices: Cache::new(), pods };
        tokio::spawn(network.services.clone().run(client.clone(), Scope::default()));
        tokio::spawn(network.slices.clone().run(client.clone(), Scope::default()));
        network
    }

    /// Keeps the rules of the calling process's network namespace, for ever.
    pub async fn serve(&self, instance: &str, network: Network, role: Role) {
        let (mut services, mut slices, mut pods) =
            (self.services.subscribe(), self.slices.subscribe(), self.pods.subscribe());
        self.services.synced().await;
        self.slices.synced().await;
        let mut table = Some(ServiceTable::new(instance));
        let (mut stale, mut failed) = (true, false);
        let (mut planned, mut of_pods) = (Vec::new(), Vec::new());
        loop {
            tokio::select! {
                _ = services.changed() => stale = true,
                _ = slices.changed() => stale = true,
                _ = pods.changed() => {}
                () = tokio::time::sleep(RETRY), if failed => {}
            }
            tokio::time::sleep(GATHER).await;
            stale |= !services.take().is_empty() | !slices.take().is_empty();
            pods.take();
            // Of pods only their host ports count; hundreds of them start without one.
            let host_ports = rules::host_ports(self.pods.list().iter().map(|pod| &**pod));
            if !(stale || failed) && host_ports == of_pods {
                continue;
            }
            if std::mem::take(&mut stale) {
                planned = self.planned(&role);
            }
            of_pods = host_ports;
            let rules = rules_of(network, &role, &of_pods, &planned);
            let mut taken = table.take().unwrap_or_else(|| ServiceTable::new(instance));
            // Thousands of services take the kernel tens of milliseconds.
            let applied = tokio::task::spawn_blocking(move || (taken.apply(&rules), taken)).await;
            failed = match applied {
                Ok((result, back)) => {
                    table = Some(back);
                    result
                        .inspect_err(|error| tracing::warn!(%error, "service rules not applied; the former ones stand"))
                        .is_err()
                }
                Err(_) => true,
            };
        }
    }

    fn planned(&self, role: &Role) -> Vec<ServicePort> {
        let place = match role {
            Role::Host => None,
            Role::Node { name, zone, .. } => Some(Place { node: name, zone }),
        };
        let (services, slices) = (self.services.list(), self.slices.list());
        rules::plan(services.iter().map(|s| &**s), slices.iter().map(|s| &**s), place)
    }
}

fn rules_of(network: Network, role: &Role, of_pods: &[ServicePort], planned: &[ServicePort]) -> ServiceRules {
    let (node_addresses, pod_cidr) = match role {
        Role::Host => (Vec::new(), None),
        Role::Node { address, pod_cidr, .. } => (vec![*address], Some(*pod_cidr)),
    };
    ServiceRules {
        network,
        node_addresses,
        pod_cidr,
        masquerade_outbound: matches!(role, Role::Host),
        services: of_pods.iter().chain(planned).cloned().collect(),
    }
}

/// Caches services and keeps the rules of the calling process's network namespace, for ever: what the server process
/// runs for the machine's own namespace.
pub async fn serve_services(client: Client, instance: String, network: Network, role: Role) {
    ServiceNetwork::start(&client, Cache::new()).serve(&instance, network, role).await;
}
