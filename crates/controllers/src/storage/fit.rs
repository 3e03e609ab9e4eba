//! Which volume suits a claim.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use mainstay_model::quantity::Quantity;

use crate::object::{annotation, is_terminating, name, namespace, selector, selects, uid};
use crate::placement::chooses;

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// The class a claim asks for; `Some("")` asks for volumes without one, `None` for the default.
pub(super) fn class_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    annotation(claim, CLASS_ANNOTATION).or_else(|| claim.spec.as_ref()?.storage_class_name.as_deref())
}

/// How much storage a claim asks for.
pub(super) fn request(claim: &PersistentVolumeClaim) -> Quantity {
    let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    requests.and_then(|all| all.get("storage")?.0.parse().ok()).unwrap_or(Quantity::ZERO)
}

/// How much a volume holds.
pub(super) fn capacity(volume: &PersistentVolume) -> Quantity {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
    capacity.and_then(|all| all.get("storage")?.0.parse().ok()).unwrap_or(Quantity::ZERO)
}

/// Whether a volume is meant for this very claim.
pub(super) fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|reference| {
        reference.name.as_deref() == Some(name(claim))
            && reference.namespace.as_deref() == Some(namespace(claim))
            && reference.uid.as_deref().is_none_or(|own| own.is_empty() || own == uid(claim))
    })
}

/// Whether a volume is nobody's.
fn is_free(volume: &PersistentVolume) -> bool {
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    reference.is_none() && !is_terminating(volume) && matches!(phase, "Pending" | "Available")
}

/// Whether a volume can be what the claim asks for.
fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(offer), Some(asked)) = (&volume.spec, &claim.spec) else { return false };
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
    let offered = offer.access_modes.as_deref().unwrap_or_default();
    offer.storage_class_name.as_deref().unwrap_or_default() == class_of(claim).unwrap_or_default()
        && asked.access_modes.iter().flatten().all(|wanted| offered.contains(wanted))
        && mode(&offer.volume_mode) == mode(&asked.volume_mode)
        && capacity(volume) >= request(claim)
        && asked.selector.as_ref().is_none_or(|one| selects(&selector(Some(one)), volume.metadata.labels.as_ref()))
}

/// Whether a node may use a volume.
pub(super) fn reaches(node: &Node, volume: &PersistentVolume) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    affinity.and_then(|affinity| affinity.required.as_ref()).is_none_or(|required| chooses(required, node))
}

/// The volume for a claim: one that is meant for it, or the smallest that suits, on a node when that is given.
pub(super) fn find<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &'a [Arc<PersistentVolume>],
    node: Option<&Node>,
) -> Option<&'a Arc<PersistentVolume>> {
    let meant = volumes.iter().find(|volume| is_for(volume, claim) && !is_terminating(&***volume));
    meant.or_else(|| {
        let suiting = volumes
            .iter()
            .filter(|volume| is_free(volume) && suits(volume, claim) && node.is_none_or(|node| reaches(node, volume)));
        suiting.min_by_key(|volume| (capacity(volume), name(&***volume).to_owned()))
    })
}
