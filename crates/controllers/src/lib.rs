//! The controllers of the embedded engine.
//!
//! Role: each controller makes one kind of object come true. [`run`] starts all of them over one `kube::Client`.
//!
//! Flow: one shared set of caches; per controller one driver loop that is woken by changes and timers, asks the controller's
//! pure `reconcile(view, now)` for a [`Plan`](action::Plan) and carries it out.
//!
//! Guarantees: crash-only — everything a controller knows is in the API or is learnt again; a controller sees its own
//! writes; a conflict is tried again at once with the fresh object, other failures after 5 ms to 30 s.

pub mod action;
mod autoscaler;
mod caches;
mod certificate;
mod claim;
mod cluster_role;
mod cron_job;
mod daemon_set;
mod deployment;
mod disruption_budget;
mod driver;
mod endpoint_hints;
mod endpoint_mirror;
mod endpoint_slice;
mod endpoints;
mod execute;
mod garbage;
mod job;
mod load_balancer;
mod namespace;
mod node_lifecycle;
mod object;
mod others;
mod placement;
mod pod_gc;
mod queue;
mod replica_set;
mod resource_quota;
mod revisions;
mod root_ca;
mod service_account;
mod settings;
#[cfg(test)]
mod simulation;
mod stateful_set;
mod storage;
#[cfg(test)]
mod testing;
mod ttl;

use kube::Client;
use mainstay_informer::leader;
use tokio::task::JoinSet;

pub use node_lifecycle::HOLLOW;
pub use settings::{HeartbeatSettings, Settings, Signer};

use crate::caches::Caches;
use crate::driver::{Clock, Controller, drive};

/// Runs all controllers until the future is dropped; with [`Settings::leader`], while this process leads.
pub async fn run(client: Client, settings: Settings) {
    match settings.leader.clone() {
        Some(leader) => leader::lead(client.clone(), leader, || work(client.clone(), settings.clone())).await,
        None => work(client, settings).await,
    }
}

async fn work(client: Client, settings: Settings) {
    let (caches, clock) = (Caches { pods: settings.pods, ..Caches::default() }, Clock::start());
    let mut tasks = JoinSet::new();
    caches.start(&client, &mut tasks);
    // A controller that saw only half the world would take the other half for gone.
    caches.synced().await;
    let mut starter = Starter { client, caches, clock, tasks };
    starter.start(deployment::Deployments);
    starter.start(replica_set::ReplicaSets);
    starter.start(stateful_set::StatefulSets);
    starter.start(daemon_set::DaemonSets::default());
    starter.start(job::Jobs);
    starter.start(cron_job::CronJobs);
    starter.start(ttl::TtlAfterFinished);
    starter.start(endpoint_slice::EndpointSlices);
    starter.start(endpoints::EndpointsOfServices);
    starter.start(endpoint_mirror::EndpointMirror);
    starter.start(namespace::Namespaces);
    starter.start(service_account::ServiceAccounts);
    if let Some(certificate) = settings.root_ca {
        starter.start(root_ca::RootCa { certificate: certificate.into() });
    }
    if let Some(signer) = settings.signer {
        starter.start(certificate::Certificates { signer });
    }
    if settings.volumes.is_some() {
        starter.start(storage::class::Classes::default());
    }
    starter.start(storage::claim::Claims::new(settings.volumes));
    starter.start(storage::volume::Volumes);
    starter.start(storage::protection::ClaimProtection);
    starter.start(storage::protection::VolumeProtection);
    starter.start(storage::class::EphemeralVolumes);
    starter.start(autoscaler::Autoscalers::default());
    starter.start(cluster_role::ClusterRoles);
    starter.start(resource_quota::ResourceQuotas::default());
    starter.start(garbage::Garbage::default());
    starter.start(node_lifecycle::NodeLifecycle::new(settings.heartbeat, clock));
    starter.start(pod_gc::PodGc::default());
    starter.start(load_balancer::LoadBalancers { range: settings.load_balancer_range });
    starter.start(disruption_budget::DisruptionBudgets);
    while let Some(ended) = starter.tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a controller failed and is not running any more");
        }
    }
}

struct Starter {
    client: Client,
    caches: Caches,
    clock: Clock,
    tasks: JoinSet<()>,
}

impl Starter {
    fn start<C: Controller>(&mut self, controller: C) {
        self.tasks.spawn(drive(controller, self.client.clone(), self.caches.clone(), self.clock));
    }
}
