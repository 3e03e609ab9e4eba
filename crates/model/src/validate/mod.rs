//! Whether an object may be stored: the rules of the Kubernetes API server, with its wording.
//!
//! Flow: types and required fields first, from the schema ([`crate::schema::check`]); with a wrong type nothing further
//! is looked at, so every rule below may take types for granted. Then the rules of metadata, then those of the kind.
//! Objects have their defaults already.
//!
//! Guarantees: never a panic, whatever the object holds; kinds without rules of their own get those of metadata.
//! Deliberately absent: what needs other objects (whether a class or a service account exists) and admission plugins.
//!
//! Source: <https://kubernetes.io/docs/reference/kubernetes-api/> and the observable answers of kube-apiserver.

mod access;
mod admission;
mod bounds;
mod config;
mod container;
mod faults;
mod metadata;
mod network;
mod pod;
mod pod_update;
mod probe;
mod scheduling;
mod storage;
mod subresource;
mod volume;
mod workloads;

use serde_json::Value;

pub use network::NODE_PORTS;

use crate::schema;
use crate::status::{FieldError, FieldErrorKind};
use faults::Faults;

/// The message of every field that cannot be changed.
pub(crate) const IMMUTABLE: &str = "field is immutable";

/// The faults of a new object of `kind`, empty when it may be stored.
pub fn validate_create(kind: &str, object: &Value) -> Vec<FieldError> {
    let mut faults = match typed(kind, object) {
        Ok(faults) => faults,
        Err(errors) => return errors,
    };
    metadata::check(&mut faults, kind, object);
    check_kind(&mut faults, kind, object);
    if kind == "Pod" {
        pod::check_new(&mut faults, object);
    }
    faults.list
}

/// The faults of changing `old` into `new`, both of `kind`, empty when the change may be stored.
pub fn validate_update(kind: &str, old: &Value, new: &Value) -> Vec<FieldError> {
    let mut faults = match typed(kind, new) {
        Ok(faults) => faults,
        Err(errors) => return errors,
    };
    metadata::check(&mut faults, kind, new);
    metadata::check_update(&mut faults, old, new);
    check_kind(&mut faults, kind, new);
    check_kind_update(&mut faults, kind, old, new);
    faults.list
}

/// The faults of a change through the `status` subresource: types and metadata only.
pub fn validate_status_update(kind: &str, old: &Value, new: &Value) -> Vec<FieldError> {
    let mut faults = match typed(kind, new) {
        Ok(faults) => faults,
        Err(errors) => return errors,
    };
    metadata::check_update(&mut faults, old, new);
    faults.list
}

/// The faults of a change of a part of `spec` through another subresource, for example `resize` of a pod.
pub fn validate_subresource_update(kind: &str, subresource: &str, old: &Value, new: &Value) -> Vec<FieldError> {
    let mut faults = match typed(kind, new) {
        Ok(faults) => faults,
        Err(errors) => return errors,
    };
    check_kind(&mut faults, kind, new);
    subresource::check(&mut faults, subresource, old, new);
    faults.list
}

/// Faults of type, or the missing fields to go on with.
fn typed(kind: &str, object: &Value) -> Result<Faults, Vec<FieldError>> {
    if !object.is_object() {
        return Err(vec![FieldError::new("", FieldErrorKind::TypeInvalid, "must be an object")]);
    }
    let list = schema::check(kind, object);
    if list.iter().any(|error| error.kind == FieldErrorKind::TypeInvalid) { Err(list) } else { Ok(Faults { list }) }
}

fn check_kind(faults: &mut Faults, kind: &str, object: &Value) {
    match kind {
        "Pod" => pod::check(faults, object),
        "Deployment" => workloads::deployment(faults, object),
        "ReplicaSet" => workloads::replica_set(faults, object),
        "StatefulSet" => workloads::stateful_set(faults, object),
        "DaemonSet" => workloads::daemon_set(faults, object),
        "Job" => workloads::job(faults, object),
        "CronJob" => workloads::cron_job(faults, object),
        "HorizontalPodAutoscaler" => workloads::autoscaler(faults, object),
        "PodDisruptionBudget" => workloads::disruption_budget(faults, object),
        "Service" => network::service(faults, object),
        "EndpointSlice" => network::endpoint_slice(faults, object),
        "Ingress" => network::ingress(faults, object),
        "NetworkPolicy" => network::policy(faults, object),
        "ConfigMap" => config::config_map(faults, object),
        "Secret" => config::secret(faults, object),
        "Lease" => config::lease(faults, object),
        "Node" => config::node(faults, object),
        "PersistentVolumeClaim" => storage::claim(faults, object),
        "PersistentVolume" => storage::volume(faults, object),
        "StorageClass" => storage::class(faults, object),
        "Role" | "ClusterRole" => access::role(faults, object),
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => admission::webhooks(faults, object),
        "CertificateSigningRequest" => admission::signing_request(faults, object),
        "PriorityClass" => bounds::priority_class(faults, object),
        "LimitRange" => bounds::limit_range(faults, object),
        "ResourceQuota" => bounds::resource_quota(faults, object),
        "RuntimeClass" => bounds::runtime_class(faults, object),
        "IngressClass" => network::ingress_class(faults, object),
        "Endpoints" => network::endpoints(faults, object),
        "ReplicationController" => workloads::replication_controller(faults, object),
        "RoleBinding" | "ClusterRoleBinding" => access::binding(faults, kind, object),
        _ => {}
    }
}

fn check_kind_update(faults: &mut Faults, kind: &str, old: &Value, new: &Value) {
    match kind {
        "Pod" => pod_update::check(faults, old, new),
        "Deployment" | "ReplicaSet" | "DaemonSet" => faults.unchanged(old, new, "spec.selector", IMMUTABLE),
        "StatefulSet" => workloads::stateful_set_update(faults, old, new),
        "Job" => workloads::job_update(faults, old, new),
        "Service" => network::service_update(faults, old, new),
        "EndpointSlice" => faults.unchanged(old, new, "addressType", IMMUTABLE),
        "ConfigMap" | "Secret" => config::data_update(faults, kind, old, new),
        "Node" => config::node_update(faults, old, new),
        "PersistentVolumeClaim" => storage::claim_update(faults, old, new),
        "StorageClass" => storage::class_update(faults, old, new),
        "RoleBinding" | "ClusterRoleBinding" => faults.unchanged(old, new, "roleRef", "cannot change roleRef"),
        "PriorityClass" => bounds::priority_class_update(faults, old, new),
        "ResourceQuota" => bounds::resource_quota_update(faults, old, new),
        "RuntimeClass" => faults.unchanged(old, new, "handler", IMMUTABLE),
        "IngressClass" => faults.unchanged(old, new, "spec.controller", IMMUTABLE),
        "CertificateSigningRequest" => admission::signing_request_update(faults, old, new),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
