//! StorageObjectInUseProtection: claims and volumes that are in use outlive their deletion.
//!
//! Source: <https://kubernetes.io/docs/concepts/storage/persistent-volumes/#storage-object-in-use-protection>.

use mainstay_model::meta;
use serde_json::{Value, json};

pub(super) fn mutate(kind: &str, object: &mut Value) {
    let finalizer =
        if kind == "PersistentVolume" { "kubernetes.io/pv-protection" } else { "kubernetes.io/pvc-protection" };
    let mut all: Vec<String> = meta::finalizers(object).into_iter().map(str::to_owned).collect();
    if all.iter().all(|other| other != finalizer) {
        all.push(finalizer.to_owned());
        meta::set_metadata(object, "finalizers", json!(all));
    }
}
