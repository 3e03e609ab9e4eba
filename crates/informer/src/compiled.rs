//! Generic code for the kinds that everybody reads, compiled here once for all crates above.
//!
//! rustc compiles a generic function in each crate that calls it, unless a crate below has compiled it for the same types
//! (`share-generics`, which is on at the optimisation level of our releases). Pods alone are read in six crates, in four ways
//! each; what that took was the greatest single part of the program and of the time to build it.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use kube::api::ObjectList;
use kube::core::WatchEvent;
use serde_json::{Error, Value};

use crate::{Cache, Scope};

/// Uses everything that is to be compiled here. Nobody calls it: what counts is that it could be called.
#[doc(hidden)]
pub fn compiled(client: &Client, text: &str, value: &Value) -> Result<Vec<BoxFuture<'static, ()>>, Error> {
    let mut all = Vec::new();
    macro_rules! compile {
        ($($kind:ident),+ $(,)?) => {$(
            drop(serde_json::from_str::<ObjectList<$kind>>(text)?);
            drop(serde_json::from_str::<WatchEvent<$kind>>(text)?);
            drop(serde_json::from_slice::<$kind>(text.as_bytes())?);
            let object = serde_json::from_str::<$kind>(text)?.clone();
            drop((serde_json::to_vec(&object)?, serde_json::to_value(&object)?, serde_json::from_value::<$kind>(value.clone())?));
            all.push(Cache::<$kind>::new().run(client.clone(), Scope::default()).boxed());
        )+};
    }
    compile!(Pod, Node, Service, EndpointSlice, Namespace, Lease, Deployment, ReplicaSet, StatefulSet, DaemonSet);
    compile!(ConfigMap, Secret, Event, PersistentVolume, PersistentVolumeClaim, PodDisruptionBudget, StorageClass);
    Ok(all)
}
