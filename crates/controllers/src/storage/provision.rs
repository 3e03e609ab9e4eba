//! The built-in provisioner: a volume is a directory, of one node (`mainstay.dev/local`) or of all (`mainstay.dev/shared`).
//!
//! The node makes the directory when a pod first mounts it, and removes it when the volume is deleted.

use std::path::Path;

use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume,
    PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{DATA_FINALIZER, LOCAL, PROVISIONED_BY, fit};
use crate::object::{name, reference, uid};

const HOSTNAME: &str = "kubernetes.io/hostname";

/// The volume for a claim. The error says why there can be none.
pub(super) fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: Option<&Node>,
    directory: &Path,
) -> Result<PersistentVolume, String> {
    let spec = claim.spec.clone().unwrap_or_default();
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(format!("{} makes no block volumes; use volumeMode Filesystem", class.provisioner));
    }
    if spec.selector.is_some() {
        return Err("claim.Spec.Selector is not supported".to_owned());
    }
    let own_name = format!("pvc-{}", uid(claim));
    let node_affinity = match (class.provisioner.as_str(), node) {
        (LOCAL, None) => {
            return Err(format!("storage class {} needs volumeBindingMode WaitForFirstConsumer", name(class)));
        }
        (LOCAL, Some(node)) => Some(pinned_to(node)),
        _ => None,
    };
    let source = HostPathVolumeSource {
        path: directory.join(&own_name).to_string_lossy().into_owned(),
        type_: Some("DirectoryOrCreate".to_owned()),
    };
    Ok(PersistentVolume {
        metadata: ObjectMeta {
            name: Some(own_name),
            annotations: Some([(PROVISIONED_BY.to_owned(), class.provisioner.clone())].into()),
            finalizers: Some(vec![DATA_FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: Some([("storage".to_owned(), Written(fit::request(claim).to_string()))].into()),
            claim_ref: Some(reference(claim)),
            host_path: Some(source),
            mount_options: class.mount_options.clone(),
            node_affinity,
            persistent_volume_reclaim_policy: Some(class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned())),
            storage_class_name: Some(name(class).to_owned()),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    })
}

fn pinned_to(node: &Node) -> VolumeNodeAffinity {
    let host = node.metadata.labels.as_ref().and_then(|labels| labels.get(HOSTNAME));
    let hostname = NodeSelectorRequirement {
        key: HOSTNAME.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![host.cloned().unwrap_or_else(|| name(node).to_owned())]),
    };
    let term = NodeSelectorTerm { match_expressions: Some(vec![hostname]), match_fields: None };
    VolumeNodeAffinity { required: Some(NodeSelector { node_selector_terms: vec![term] }) }
}
