//! PersistentVolume: free, bound, released, and taken back as its reclaim policy says.
//!
//! Source: <https://kubernetes.io/docs/concepts/storage/persistent-volumes/#reclaiming>.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeStatus};
use mainstay_informer::ObjectKey;
use mainstay_model::resource;

use super::{LOCAL, PROVISIONED_BY, SHARED};
use crate::action::{Action, Attempt, Now, Object, Plan, Target};
use crate::caches::Caches;
use crate::driver::{Controller, Wiring};
use crate::object::{annotation, is_terminating, time, uid};

/// Decides about one volume; `claim` is the one of the name in its `claimRef`.
pub(crate) fn reconcile(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>, now: Timestamp) -> Plan {
    let spec = volume.spec.clone().unwrap_or_default();
    let wanted = spec.claim_ref.as_ref().and_then(|reference| reference.uid.as_deref()).filter(|own| !own.is_empty());
    let has_claim = claim.is_some_and(|claim| Some(uid(claim)) == wanted);
    let phase = match wanted {
        // Meant for a claim that has not come, or for none.
        None => "Available",
        Some(_) if has_claim => "Bound",
        Some(_) => "Released",
    };
    let mut plan = Plan::nothing(phase);
    if is_terminating(volume) {
        return plan;
    }
    if phase == "Released" {
        // The claims' cache may lag behind the volumes': the API server is asked before anything is given up.
        let reference = spec.claim_ref.clone().unwrap_or_default();
        plan.push(Action::ExpectGone(Target {
            resource: resource::known("PersistentVolumeClaim"),
            key: ObjectKey::new(reference.namespace.unwrap_or_default(), reference.name.unwrap_or_default()),
            uid: reference.uid,
        }));
    }
    let old = volume.status.clone().unwrap_or_default();
    if old.phase.as_deref() != Some(phase) {
        let status = PersistentVolumeStatus {
            phase: Some(phase.to_owned()),
            last_phase_transition_time: Some(time(now)),
            message: None,
            reason: None,
        };
        plan.push(Action::ReplaceStatus(Object::of(&PersistentVolume { status: Some(status), ..volume.clone() })));
    } else if phase == "Released" && spec.persistent_volume_reclaim_policy.as_deref() != Some("Delete") {
        // Retained, and said so already.
        return Plan::nothing("it is kept");
    }
    let ours = matches!(annotation(volume, PROVISIONED_BY), Some(LOCAL | SHARED));
    if phase == "Released" && spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete") && ours {
        plan.push(Action::delete(Target::of(volume)));
    }
    plan
}

/// The controller of volumes.
pub(crate) struct Volumes;

impl Controller for Volumes {
    type Key = ObjectKey;
    const NAME: &'static str = "persistentvolume-binder";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.volumes, |change, _| vec![change.key.clone()]);
        wiring.on(&caches.claims, |change, _| {
            let named = change.versions().filter_map(|claim: &Arc<PersistentVolumeClaim>| {
                claim.spec.as_ref()?.volume_name.clone().filter(|name| !name.is_empty())
            });
            named.map(|name| ObjectKey::new("", name)).collect()
        });
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, now: Now) -> Plan {
        let Some(volume) = caches.volumes.get_key(key) else { return Plan::nothing("it is gone") };
        let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone()).unwrap_or_default();
        let (space, name) = (reference.namespace.unwrap_or_default(), reference.name.unwrap_or_default());
        reconcile(&volume, caches.claims.get(&space, &name).as_deref(), now.wall)
    }
}
