//! Who owns what: adopting objects that match a selector, releasing those that no longer do.
//!
//! Every controller that owns objects by selector and `ownerReferences` does it here, in the same way.
//!
//! Guarantees: an object with another controller is never touched; an owner that is being deleted adopts nothing; every
//! change is guarded by the object's revision, so of two claimants one wins.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#non-template-pod-acquisitions>.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use mainstay_informer::{Cache, Change, Kind, ObjectKey};
use mainstay_model::selector::LabelSelector;
use serde_json::json;

use crate::action::{Action, Plan, Target};
use crate::object::{controller_of, controller_reference, is_terminating, name, namespace, selects, uid};

/// The candidates that are the owner's, after adopting and releasing.
pub(crate) fn claim<O: Kind, K: Kind>(
    owner: &O,
    selector: &LabelSelector,
    candidates: &[Arc<K>],
    plan: &mut Plan,
) -> Vec<Arc<K>> {
    let mut owned = Vec::new();
    for object in candidates {
        let matches = selects(selector, object.meta().labels.as_ref());
        let free_to_act = !is_terminating(owner) && !is_terminating(&**object);
        match controller_of(&**object) {
            Some(current) if current.uid != uid(owner) => {}
            Some(_) if matches => owned.push(object.clone()),
            Some(_) if free_to_act => plan.push(with_owners(&**object, &others(&**object, uid(owner)))),
            None if matches && free_to_act => {
                let mut owners = object.meta().owner_references.clone().unwrap_or_default();
                owners.push(controller_reference(owner));
                plan.push(with_owners(&**object, &owners));
                owned.push(object.clone());
            }
            _ => {}
        }
    }
    owned
}

/// The owners but one.
pub(crate) fn others<K: Kind>(object: &K, owner_uid: &str) -> Vec<OwnerReference> {
    let mut owners = object.meta().owner_references.clone().unwrap_or_default();
    owners.retain(|owner| owner.uid != owner_uid);
    owners
}

/// Writes the owners. The revision guards it, because a list in a merge patch replaces the whole list.
pub(crate) fn with_owners<K: Kind>(object: &K, owners: &[OwnerReference]) -> Action {
    let meta = object.meta();
    let meta = json!({"uid": meta.uid, "resourceVersion": meta.resource_version, "ownerReferences": owners});
    Action::Patch(Target::of(object), json!({"metadata": meta}))
}

/// Objects of the owner's namespace that it owns or could adopt, by name.
pub(crate) fn candidates<O: Kind, K: Kind>(cache: &Cache<K>, owner: &O, selector: &LabelSelector) -> Vec<Arc<K>> {
    let mut found = cache.controlled_by(namespace(owner), uid(owner));
    let free = cache.controlled_by(namespace(owner), "").into_iter();
    found.extend(free.filter(|object| selects(selector, object.meta().labels.as_ref())));
    found.sort_by(|a, b| name(&**a).cmp(name(&**b)));
    found
}

/// Which owners an object's change concerns: its controller, or every owner that could adopt it.
pub(crate) fn concerned<O: Kind, K: Kind>(
    change: &Change<K>,
    owners: &Cache<O>,
    selector: impl Fn(&O) -> LabelSelector,
) -> Vec<ObjectKey> {
    let mut keys = Vec::new();
    for object in change.versions() {
        match controller_of(&**object) {
            Some(owner) if owner.kind == O::kind(&()) => {
                keys.push(ObjectKey::new(namespace(&**object), &owner.name));
            }
            Some(_) => {}
            None => {
                let labels = object.meta().labels.as_ref();
                let adopts = |owner: &O| namespace(owner) == namespace(&**object) && selects(&selector(owner), labels);
                keys.extend(owners.filter(adopts).iter().map(|owner| ObjectKey::of(&**owner)));
            }
        }
    }
    keys
}
