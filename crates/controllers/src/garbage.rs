//! Garbage collection: objects go when their owners are gone.
//!
//! Flow, per object:
//! - being deleted with finalizer `orphan`: its dependants lose their reference to it, then it may go;
//! - with `foregroundDeletion`: its dependants are deleted, and it goes when none is left that blocks it;
//! - not being deleted, and every owner gone: it is deleted; some owners gone: the references to those are removed.
//!
//! Guarantees: before anything is deleted for want of an owner, the API server is asked whether the owner is really gone; the
//! caches of two kinds may be of different age. The deletion holds only for the object as it was seen.
//!
//! Deliberately absent: Events and Leases are not collected; an owner of a kind that is not served is taken to exist.
//!
//! Source: <https://kubernetes.io/docs/concepts/architecture/garbage-collection/>.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use mainstay_informer::ObjectKey;
use mainstay_model::resource::{self, Resource};
use serde_json::json;

use crate::action::{Action, Attempt, Now, Plan, Propagation, Target};
use crate::caches::{Caches, Dependent, MetaChange};
use crate::driver::{Controller, Wiring};
use crate::others::KindName;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// An object of any kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Item {
    pub(crate) kind: KindName,
    pub(crate) key: ObjectKey,
}

impl Item {
    fn meta(&self, caches: &Caches) -> Option<ObjectMeta> {
        if Caches::is_cached(self.kind) {
            return caches.meta(self.kind, &self.key);
        }
        caches.others.meta(self.kind, &self.key).map(|meta| ObjectMeta::clone(&meta))
    }

    fn resource(&self, caches: &Caches) -> Option<&'static Resource> {
        if Caches::is_cached(self.kind) { Some(resource::known(self.kind)) } else { caches.others.resource(self.kind) }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.key)
    }
}

/// What one look needs to see.
pub(crate) struct View {
    pub(crate) target: Target,
    pub(crate) meta: ObjectMeta,
    /// Owners that are not there though all objects of their kind are known.
    pub(crate) missing: Vec<(OwnerReference, Target)>,
    /// Only looked up while the object is being deleted.
    pub(crate) dependents: Vec<Dependent>,
}

/// Decides about one object.
pub(crate) fn reconcile(view: &View) -> Plan {
    let finalizers = view.meta.finalizers.as_deref().unwrap_or_default();
    let has = |finalizer: &str| finalizers.iter().any(|own| own == finalizer);
    match (view.meta.deletion_timestamp.is_some(), has(ORPHAN), has(FOREGROUND)) {
        (true, true, _) => orphan(view),
        (true, false, true) => foreground(view),
        (true, false, false) => Plan::nothing("it is being deleted"),
        (false, ..) => ownerless(view),
    }
}

fn orphan(view: &View) -> Plan {
    let mut plan = Plan::nothing("its dependants become orphans");
    for dependent in &view.dependents {
        let mut owners = dependent.meta.owner_references.clone().unwrap_or_default();
        owners.retain(|owner| Some(&owner.uid) != view.target.uid.as_ref());
        plan.push(owners_patch(&dependent.target, &dependent.meta, &owners));
    }
    plan.push(without_finalizer(view, ORPHAN));
    plan
}

fn foreground(view: &View) -> Plan {
    let blocking = view.dependents.iter().filter(|dependent| dependent.blocks).count();
    let mut plan = Plan::nothing(format!("{blocking} dependants block its deletion"));
    for dependent in view.dependents.iter().filter(|dependent| dependent.meta.deletion_timestamp.is_none()) {
        plan.push(Action::Delete {
            target: dependent.target.clone(),
            grace_seconds: None,
            // Those below go first as well, if anything can be below.
            propagation: if may_own(dependent.target.resource) {
                Propagation::Foreground
            } else {
                Propagation::Background
            },
        });
    }
    if blocking == 0 {
        plan.push(without_finalizer(view, FOREGROUND));
    }
    plan
}

fn may_own(resource: &Resource) -> bool {
    !matches!(resource.kind.as_str(), "Pod" | "EndpointSlice")
}

fn ownerless(view: &View) -> Plan {
    let owners = view.meta.owner_references.clone().unwrap_or_default();
    if view.missing.is_empty() {
        return Plan::nothing("its owners are there");
    }
    let mut plan = Plan::nothing("owners of it are gone");
    plan.actions.extend(view.missing.iter().map(|(_, target)| Action::ExpectGone(target.clone())));
    if view.missing.len() == owners.len() {
        // Somebody may just be giving it another owner.
        let revision = view.meta.resource_version.clone().unwrap_or_default();
        plan.push(Action::DeleteSame(view.target.clone(), revision));
    } else {
        let gone = |owner: &OwnerReference| view.missing.iter().any(|(missing, _)| missing.uid == owner.uid);
        let left: Vec<_> = owners.into_iter().filter(|owner| !gone(owner)).collect();
        plan.push(owners_patch(&view.target, &view.meta, &left));
    }
    plan
}

/// The revision guards it, because a list in a merge patch replaces the whole list.
fn owners_patch(target: &Target, meta: &ObjectMeta, owners: &[OwnerReference]) -> Action {
    let meta = json!({"uid": meta.uid, "resourceVersion": meta.resource_version, "ownerReferences": owners});
    Action::Patch(target.clone(), json!({"metadata": meta}))
}

fn without_finalizer(view: &View, finalizer: &str) -> Action {
    let mut finalizers = view.meta.finalizers.clone().unwrap_or_default();
    finalizers.retain(|own| own != finalizer);
    let (uid, revision) = (&view.meta.uid, &view.meta.resource_version);
    let meta = json!({"uid": uid, "resourceVersion": revision, "finalizers": finalizers});
    Action::Patch(view.target.clone(), json!({"metadata": meta}))
}

/// Which objects name an owner, by the owner's uid.
type Dependants = HashMap<String, HashSet<Item>>;

/// The garbage collector.
#[derive(Default)]
pub(crate) struct Garbage {
    dependants: Arc<Mutex<Dependants>>,
}

impl Controller for Garbage {
    type Key = Item;
    const NAME: &'static str = "garbage-collector";

    fn wire(&self, wiring: &mut Wiring<Item>) {
        let (caches, index) = (wiring.caches.clone(), self.dependants.clone());
        let held = caches.clone();
        let mut heard = caches.others.listen();
        let (inbox, shared, all) = (wiring.inbox.clone(), index.clone(), held.clone());
        wiring.tasks.spawn(async move {
            while let Some(changed) = heard.recv().await {
                let change = MetaChange {
                    kind: changed.kind,
                    key: &changed.key,
                    before: changed.before.as_deref(),
                    after: changed.after.as_deref(),
                };
                let items = concerned(&mut shared.lock().unwrap_or_else(PoisonError::into_inner), &all, &change);
                inbox.add(items);
            }
        });
        caches.on_every(wiring, move |change, _| {
            let mut index = index.lock().unwrap_or_else(PoisonError::into_inner);
            concerned(&mut index, &held, &change)
        });
    }

    fn plan(&self, caches: &Caches, item: &Item, _: &Attempt, _: Now) -> Plan {
        let (Some(meta), Some(resource)) = (item.meta(caches), item.resource(caches)) else {
            return Plan::nothing("it is gone");
        };
        let target = Target { resource, key: item.key.clone(), uid: meta.uid.clone() };
        let missing = meta.owner_references.iter().flatten();
        let missing = missing.filter_map(|owner| Some((owner.clone(), missing_owner(caches, item, owner)?))).collect();
        let dependents = match (&meta.deletion_timestamp, &meta.uid) {
            (Some(_), Some(uid)) => dependents(caches, uid),
            _ => Vec::new(),
        };
        reconcile(&View { target, meta, missing, dependents })
    }
}

/// Keeps the index and says which objects a change concerns: itself, the dependants of what is gone, and the owners that
/// may have waited for it.
fn concerned(index: &mut Dependants, caches: &Caches, change: &MetaChange<'_>) -> Vec<Item> {
    let item = Item { kind: change.kind, key: change.key.clone() };
    let owners = |meta: Option<&ObjectMeta>| meta.and_then(|meta| meta.owner_references.clone()).unwrap_or_default();
    let (before, after) = (owners(change.before), owners(change.after));
    for owner in &before {
        if let Some(all) = index.get_mut(&owner.uid) {
            all.remove(&item);
            if all.is_empty() {
                index.remove(&owner.uid);
            }
        }
    }
    for owner in &after {
        index.entry(owner.uid.clone()).or_default().insert(item.clone());
    }
    let mut items = Vec::new();
    let same_uid = change.before.and_then(|m| m.uid.as_ref()) == change.after.and_then(|m| m.uid.as_ref());
    if let Some(uid) = change.before.and_then(|meta| meta.uid.as_ref()).filter(|_| !same_uid) {
        items.extend(index.get(uid).into_iter().flatten().cloned());
        // Who waits for its dependants to go is looked at when one has gone.
        items.extend(before.iter().filter_map(|owner| {
            let owner = owner_item(caches, &item, owner)?;
            owner.meta(caches)?.deletion_timestamp.is_some().then_some(owner)
        }));
    }
    let deleting = change.after.is_some_and(|meta| meta.deletion_timestamp.is_some());
    if !after.is_empty() || deleting {
        items.push(item);
    }
    items
}

/// Every object that names `uid` as an owner.
fn dependents(caches: &Caches, uid: &str) -> Vec<Dependent> {
    let mut all = caches.dependents(uid);
    all.extend(caches.others.dependents(uid).into_iter().map(|(resource, key, meta)| {
        let mut owners = meta.owner_references.iter().flatten();
        let blocks = owners.any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true));
        let target = Target { resource, key, uid: meta.uid.clone() };
        Dependent { target, meta: ObjectMeta::clone(&meta), blocks }
    }));
    all.sort_by_cached_key(|dependent| (dependent.target.resource.kind.clone(), dependent.target.key.clone()));
    all
}

/// The object an owner reference points to, when all objects of its kind are known.
fn owner_item(caches: &Caches, item: &Item, owner: &OwnerReference) -> Option<Item> {
    let built_in = resource::find_kind(&owner.api_version, &owner.kind).filter(|row| Caches::is_cached(&row.kind));
    let (kind, resource): (KindName, &Resource) = match built_in {
        Some(row) => (row.kind.as_str(), row),
        None => caches.others.find(&owner.api_version, &owner.kind)?,
    };
    let namespace = if resource.namespaced { item.key.namespace.as_str() } else { "" };
    Some(Item { kind, key: ObjectKey::new(namespace, &owner.name) })
}

/// The owner, if its kind is known and it is not there.
fn missing_owner(caches: &Caches, item: &Item, owner: &OwnerReference) -> Option<Target> {
    let wanted = owner_item(caches, item, owner)?;
    let resource = wanted.resource(caches)?;
    let found = wanted.meta(caches).is_some_and(|meta| meta.uid.as_deref() == Some(owner.uid.as_str()));
    (!found).then(|| Target { resource, key: wanted.key, uid: Some(owner.uid.clone()) })
}
