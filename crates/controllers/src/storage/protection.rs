//! Protection: a claim does not go while a pod uses it, nor a volume while it is bound.
//!
//! Source: <https://kubernetes.io/docs/concepts/storage/persistent-volumes/#storage-object-in-use-protection>.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use mainstay_informer::{Change, Kind, ObjectKey};
use serde_json::json;

use crate::action::{Action, Attempt, Now, Plan, Target};
use crate::caches::Caches;
use crate::driver::{Controller, Wiring};
use crate::object::{is_terminating, name, node_of};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

/// Puts the finalizer on what lives, and takes it off what is being deleted and not in use.
fn protect<K: Kind>(object: &K, finalizer: &str, in_use: bool) -> Plan {
    let meta = object.meta();
    let mut finalizers = meta.finalizers.clone().unwrap_or_default();
    let has = finalizers.iter().any(|own| own == finalizer);
    let mut plan = Plan::nothing(if in_use { "in use" } else { "not in use" });
    match (is_terminating(object), has) {
        (false, false) => finalizers.push(finalizer.to_owned()),
        (true, true) if !in_use => finalizers.retain(|own| own != finalizer),
        _ => return plan,
    }
    let meta = json!({"uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": finalizers});
    plan.push(Action::Patch(Target::of(object), json!({"metadata": meta})));
    plan
}

/// Decides about one claim, given the pods of its namespace.
pub(crate) fn reconcile_claim(claim: &PersistentVolumeClaim, pods: &[Arc<Pod>]) -> Plan {
    // A pod without a node has mounted nothing, and will not be let to.
    let uses = |pod: &Arc<Pod>| {
        let stopped = is_terminating(&**pod) && pod.metadata.deletion_grace_period_seconds == Some(0);
        !node_of(pod).is_empty() && !stopped && claims_of(pod).any(|own| own == name(claim))
    };
    protect(claim, CLAIM, pods.iter().any(uses))
}

/// Decides about one volume.
pub(crate) fn reconcile_volume(volume: &PersistentVolume) -> Plan {
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    protect(volume, VOLUME, phase == Some("Bound"))
}

/// The names of the claims a pod mounts, its ephemeral ones too.
pub(crate) fn claims_of(pod: &Pod) -> impl Iterator<Item = String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(move |volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", name(pod), volume.name)),
        _ => None,
    })
}

/// The controller that protects claims.
pub(crate) struct ClaimProtection;

impl Controller for ClaimProtection {
    type Key = ObjectKey;
    const NAME: &'static str = "pvc-protection-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.claims, |change, _| vec![change.key.clone()]);
        wiring.on(&caches.pods, |change: &Change<Pod>, _| {
            let claims = change.versions().flat_map(|pod| claims_of(pod));
            claims.map(|claim| ObjectKey::new(&change.key.namespace, claim)).collect()
        });
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, _: Now) -> Plan {
        let Some(claim) = caches.claims.get_key(key) else { return Plan::nothing("it is gone") };
        let pods =
            if is_terminating(&*claim) { caches.pods.in_namespace(&key.namespace, |_| true) } else { Vec::new() };
        reconcile_claim(&claim, &pods)
    }
}

/// The controller that protects volumes.
pub(crate) struct VolumeProtection;

impl Controller for VolumeProtection {
    type Key = ObjectKey;
    const NAME: &'static str = "pv-protection-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.volumes, |change, _| vec![change.key.clone()]);
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, _: Now) -> Plan {
        caches.volumes.get_key(key).map_or_else(|| Plan::nothing("it is gone"), |volume| reconcile_volume(&volume))
    }
}
