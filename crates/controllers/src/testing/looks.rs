//! A process of controllers in a golden conversation: which line is whose business.
//!
//! | line | controller |
//! |---|---|
//! | `Deployment`, `ReplicaSet`, `StatefulSet`, `DaemonSet`, `Job`, `CronJob`, `Namespace`, `ResourceQuota`, `ClusterRole` | of that kind |
//! | `Service NAME` | its EndpointSlices |
//! | `LoadBalancer services` | addresses of all services |
//! | `PodDisruptionBudget`, `HorizontalPodAutoscaler`, `CertificateSigningRequest` | of that kind |
//! | `Node NAME` | node lifecycle |
//! | `Claim`, `Volume`, `Protect`, `Ttl`, `PodGc`, `RootCa`, `ServiceAccounts` | storage, protection, TTL after finished, pods without node, per namespace |
//! | `garbage KIND NAME` | the garbage collector |

use std::collections::BTreeMap;
use std::time::Duration;

use mainstay_informer::ObjectKey;

use super::golden::target;
use super::{Look, World, note};
use crate::action::Attempt;
use crate::caches::Caches;
use crate::driver::{Clock, Controller};
use crate::node_lifecycle::{NodeLifecycle, renewals};
use crate::settings::{HeartbeatSettings, Signer};
use crate::{autoscaler, garbage, pod_gc, resource_quota, storage};

/// What one process knows that is in no object.
pub(super) struct Process {
    attempts: BTreeMap<String, Attempt>,
    lifecycle: NodeLifecycle,
    quotas: resource_quota::ResourceQuotas,
    pod_gc: pod_gc::PodGc,
    autoscalers: autoscaler::Autoscalers,
}

impl Default for Process {
    fn default() -> Self {
        Self {
            attempts: BTreeMap::new(),
            lifecycle: NodeLifecycle::new(HeartbeatSettings::default(), Clock::start()),
            quotas: resource_quota::ResourceQuotas::default(),
            pod_gc: pod_gc::PodGc::default(),
            autoscalers: autoscaler::Autoscalers::default(),
        }
    }
}

impl Process {
    /// Asks the judge of nodes.
    pub(super) fn judge(&self, now: Duration, caches: &Caches) {
        self.lifecycle.judge.lock().unwrap().judge(now, &renewals(caches));
    }

    /// What an autoscaler is told of its pods.
    pub(super) fn measure(&self, world: &World, name: &str, figures: &[&str]) {
        let key = ObjectKey::new("shop", name);
        let pods: Vec<String> = world.pods().iter().filter_map(|pod| pod.metadata.name.clone()).collect();
        self.autoscalers.told(&key, autoscaler::tests::observed(world.caches(), &key, &pods, figures));
    }

    /// One look at what a line names.
    pub(super) fn look(&mut self, world: &mut World, process: usize, words: &[&str]) -> Look {
        let attempt = self.attempts.entry(words.join(" ")).or_default();
        let (kind, name) = (words[0], *words.last().unwrap());
        let (mut key, wide) = (ObjectKey::new("shop", name), ObjectKey::new("", name));
        // Its name has a hash in it; the beginning will do.
        if kind == "ReplicaSet" {
            key = target(world, kind, name).key;
        }
        let mut looker = Looker { world, process, attempt };
        let look = match kind {
            "Deployment" => looker.look(&crate::deployment::Deployments, &key),
            "ReplicaSet" => looker.look(&crate::replica_set::ReplicaSets, &key),
            "StatefulSet" => looker.look(&crate::stateful_set::StatefulSets, &key),
            "DaemonSet" => looker.look(&crate::daemon_set::DaemonSets::default(), &key),
            "Job" => looker.look(&crate::job::Jobs, &key),
            "CronJob" => looker.look(&crate::cron_job::CronJobs, &key),
            "Service" => looker.look(&crate::endpoint_slice::EndpointSlices, &key),
            "Endpoints" => looker.look(&crate::endpoints::EndpointsOfServices, &key),
            "Mirror" => looker.look(&crate::endpoint_mirror::EndpointMirror, &key),
            "PodDisruptionBudget" => looker.look(&crate::disruption_budget::DisruptionBudgets, &key),
            "HorizontalPodAutoscaler" => looker.look(&self.autoscalers, &key),
            "ResourceQuota" => looker.look(&self.quotas, &key),
            "Namespace" => looker.look(&crate::namespace::Namespaces, &wide),
            "ClusterRole" => looker.look(&crate::cluster_role::ClusterRoles, &wide),
            "CertificateSigningRequest" => looker.look(&crate::certificate::Certificates { signer: signer() }, &wide),
            "Node" => looker.look(&self.lifecycle, &wide),
            "LoadBalancer" => {
                let range = Some(([10, 0, 0, 1].into(), [10, 0, 0, 2].into()));
                looker.look(&crate::load_balancer::LoadBalancers { range }, &"services")
            }
            "Claim" => looker.look(&storage::claim::Claims::new(Some("/volumes".into())), &key),
            "Volume" => looker.look(&storage::volume::Volumes, &wide),
            "Protect" => looker.look(&storage::protection::ClaimProtection, &key),
            "Ttl" => looker.look(&crate::ttl::TtlAfterFinished, &key),
            "PodGc" => looker.look(&self.pod_gc, &key),
            "RootCa" => looker.look(&crate::root_ca::RootCa { certificate: "PEM".into() }, &wide),
            "ServiceAccounts" => looker.look(&crate::service_account::ServiceAccounts, &wide),
            "garbage" => {
                let target = target(looker.world, words[1], name);
                let item = garbage::Item { kind: &target.resource.kind, key: target.key };
                looker.look(&garbage::Garbage::default(), &item)
            }
            other => panic!("no controller of {other}"),
        };
        note(attempt, look.stopped.as_ref());
        look
    }
}

struct Looker<'a> {
    world: &'a mut World,
    process: usize,
    attempt: &'a Attempt,
}

impl Looker<'_> {
    fn look<C: Controller>(&mut self, controller: &C, key: &C::Key) -> Look {
        self.world.look_as(self.process, controller, key, self.attempt)
    }
}

/// An authority, made for the moment.
fn signer() -> Signer {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::default();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = parameters.self_signed(&key).unwrap().pem();
    Signer { certificate, key: key.serialize_pem() }
}
