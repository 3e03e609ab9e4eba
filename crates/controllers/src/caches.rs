//! The caches all controllers share: one watch per kind, however many controllers read it.

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ResourceQuota, Service,
    ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Client;
use mainstay_informer::{Cache, Kind, ObjectKey, Scope};
use mainstay_model::meta;
use mainstay_model::resource::{self, Resource};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::action::Target;
use crate::driver::{Key, Wiring};
use crate::others::Others;

/// The namespace of the nodes' heartbeats.
pub(crate) const LEASE_NAMESPACE: &str = "kube-node-lease";
/// The ConfigMap of every namespace by which pods know the API server.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";
/// Kinds of which only some objects are cached.
const PARTIAL: &[&str] = &["ConfigMap", "Lease"];

macro_rules! caches {
    ($($(#[$doc:meta])* $field:ident: $kind:ident $(in $namespace:expr)? $(; only $fields:expr)?),+ $(,)?) => {
        /// One cache per kind that a controller reads.
        #[derive(Clone, Default)]
        pub(crate) struct Caches {
            $($(#[$doc])* pub(crate) $field: Cache<$kind>,)+
            /// Metadata of all other kinds.
            pub(crate) others: Others,
        }

        impl Caches {
            /// Starts to list and watch every kind.
            pub(crate) fn start(&self, client: &Client, tasks: &mut JoinSet<()>) {
                $({
                    #[allow(unused_mut)]
                    let mut scope = Scope::default();
                    $(scope.namespace = Some($namespace.to_owned());)?
                    $(scope.fields = Some($fields);)?
                    tasks.spawn(self.$field.clone().run(client.clone(), scope));
                })+
                tasks.spawn(self.others.clone().run(client.clone()));
            }

            /// Waits until every cache has been filled once.
            pub(crate) async fn synced(&self) {
                $(self.$field.synced().await;)+
            }

            /// Takes in an object as the API server answered it; kinds without a cache are passed over.
            pub(crate) fn observe(&self, kind: &str, value: Value) {
                if kind == "ConfigMap" && meta::name(&value) != ROOT_CA {
                    return;
                }
                match kind {
                    $(stringify!($kind) => observe(&self.$field, value),)+
                    _ => {}
                }
            }

            /// The metadata of an object of a kind that has a cache.
            pub(crate) fn meta(&self, kind: &str, key: &ObjectKey) -> Option<ObjectMeta> {
                match kind {
                    $(stringify!($kind) => self.$field.get_key(key).map(|object| object.metadata.clone()),)+
                    _ => None,
                }
            }

            /// Every cached object that names `uid` as an owner, with that reference.
            pub(crate) fn dependents(&self, uid: &str) -> Vec<Dependent> {
                let mut all = Vec::new();
                $(for object in self.$field.filter(|object| owner(&object.metadata, uid).is_some()) {
                    all.extend(owner(&object.metadata, uid).map(|owner| Dependent {
                        target: Target::of(&*object),
                        meta: object.metadata.clone(),
                        blocks: owner.block_owner_deletion == Some(true),
                    }));
                })+
                all
            }

            /// Whether all objects of a kind are held here.
            pub(crate) fn is_cached(kind: &str) -> bool {
                [$(stringify!($kind)),+].contains(&kind) && !PARTIAL.contains(&kind)
            }

            /// Takes in that an object was deleted at a revision.
            #[cfg(test)]
            pub(crate) fn observe_deleted_at(&self, kind: &str, key: &ObjectKey, revision: u64) {
                match kind {
                    $(stringify!($kind) => self.$field.observe_deleted(key, revision),)+
                    _ => {}
                }
            }

            /// Objects of a kind in a namespace; `None` while that is not known.
            pub(crate) fn count(&self, resource: &Resource, namespace: &str) -> Option<usize> {
                if !Self::is_cached(&resource.kind) || resource::known(&resource.kind).group != resource.group {
                    return self.others.count(resource, namespace);
                }
                match resource.kind.as_str() {
                    $(stringify!($kind) => Some(
                        self.$field.in_namespace(namespace, |_| true).len(),
                    ),)+
                    _ => None,
                }
            }

            /// Wakes `wiring`'s keys on every change of every kind that is held whole.
            pub(crate) fn on_every<Q: Key>(
                &self,
                wiring: &mut Wiring<Q>,
                map: impl Fn(MetaChange<'_>, &Caches) -> Vec<Q> + Clone + Send + 'static,
            ) {
                $(if !PARTIAL.contains(&stringify!($kind)) {
                    let map = map.clone();
                    wiring.on(&self.$field, move |change, caches| map(MetaChange {
                        kind: stringify!($kind),
                        key: &change.key,
                        before: change.before.as_ref().map(|object| &object.metadata),
                        after: change.after.as_ref().map(|object| &object.metadata),
                    }, caches));
                })+
            }

            /// Takes in that an object is gone.
            pub(crate) fn observe_deleted(&self, kind: &str, key: &ObjectKey) {
                match kind {
                    $(stringify!($kind) => bury(&self.$field, key),)+
                    _ => {}
                }
            }
        }
    };
}

caches! {
    /// `Deployment`.
    deployments: Deployment,
    /// `ReplicaSet`.
    replica_sets: ReplicaSet,
    /// `StatefulSet`.
    stateful_sets: StatefulSet,
    /// `DaemonSet`.
    daemon_sets: DaemonSet,
    /// `ControllerRevision`.
    revisions: ControllerRevision,
    /// `Job`.
    jobs: Job,
    /// `CronJob`.
    cron_jobs: CronJob,
    /// `PersistentVolumeClaim`.
    claims: PersistentVolumeClaim,
    /// `PersistentVolume`.
    volumes: PersistentVolume,
    /// `StorageClass`.
    storage_classes: StorageClass,
    /// `ResourceQuota`.
    quotas: ResourceQuota,
    /// `HorizontalPodAutoscaler`.
    autoscalers: HorizontalPodAutoscaler,
    /// `ClusterRole`.
    cluster_roles: ClusterRole,
    /// `CertificateSigningRequest`.
    signing_requests: CertificateSigningRequest,
    /// The ConfigMaps named [`ROOT_CA`].
    root_cas: ConfigMap; only format!("metadata.name={ROOT_CA}"),
    /// `Pod`.
    pods: Pod,
    /// `Node`.
    nodes: Node,
    /// `Service`.
    services: Service,
    /// `Endpoints`.
    endpoints: Endpoints,
    /// `EndpointSlice`.
    endpoint_slices: EndpointSlice,
    /// `Namespace`.
    namespaces: Namespace,
    /// `ServiceAccount`.
    service_accounts: ServiceAccount,
    /// `PodDisruptionBudget`.
    disruption_budgets: PodDisruptionBudget,
    /// The nodes' heartbeats.
    leases: Lease in LEASE_NAMESPACE,
}

/// An object that names another as its owner.
pub(crate) struct Dependent {
    pub(crate) target: Target,
    pub(crate) meta: ObjectMeta,
    /// Whether the owner's foreground deletion waits for it.
    pub(crate) blocks: bool,
}

/// A change of an object of any kind.
pub(crate) struct MetaChange<'a> {
    pub(crate) kind: &'static str,
    pub(crate) key: &'a ObjectKey,
    pub(crate) before: Option<&'a ObjectMeta>,
    pub(crate) after: Option<&'a ObjectMeta>,
}

fn owner<'a>(meta: &'a ObjectMeta, uid: &str) -> Option<&'a OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.uid == uid)
}

fn observe<K: Kind>(cache: &Cache<K>, value: Value) {
    match serde_json::from_value(value) {
        Ok(object) => cache.observe(object),
        Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "the API server's answer is not of its kind"),
    }
}

/// The answer to a deletion carries no revision; the one held is the newest known before it.
fn bury<K: Kind>(cache: &Cache<K>, key: &ObjectKey) {
    if let Some(object) = cache.get_key(key) {
        let revision = object.meta().resource_version.as_deref().and_then(|text| text.parse().ok());
        cache.observe_deleted(key, revision.unwrap_or(0));
    }
}
