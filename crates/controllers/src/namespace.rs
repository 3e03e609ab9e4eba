//! Namespace: empties a namespace that is being deleted, then lets it go.
//!
//! Flow: delete everything of every namespaced kind → wait until nothing is left (pods take their time to stop) → take the
//! finalizer `kubernetes` away through `finalize`, upon which the API server drops the object.
//!
//! Source: <https://kubernetes.io/docs/tasks/administer-cluster/namespaces/>.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use mainstay_informer::ObjectKey;
use mainstay_model::resource::{self, BUILT_IN, Resource};

use crate::action::{Action, Attempt, Now, Object, Plan};
use crate::caches::Caches;
use crate::driver::{Controller, Wiring};
use crate::object::{is_terminating, name};

/// Decides about one namespace.
///
/// `custom` are the rows of custom kinds that live in namespaces.
pub(crate) fn reconcile(namespace: &Arc<Namespace>, custom: &[&'static Resource]) -> Plan {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_deref()).unwrap_or_default();
    if !is_terminating(&**namespace) || finalizers.is_empty() {
        return Plan::nothing("it is in use");
    }
    let mut plan = Plan::nothing("it is being deleted");
    let built_in =
        || BUILT_IN.iter().map(|row| &**row).filter(|row| row.namespaced && row.has_verb("deletecollection"));
    let kinds = || built_in().chain(custom.iter().copied());
    plan.actions.extend(kinds().map(|resource| Action::DeleteAll(resource, name(&**namespace).to_owned())));
    plan.actions.extend(kinds().map(|resource| Action::ExpectNone(resource, name(&**namespace).to_owned())));
    let mut empty = Namespace::clone(namespace);
    empty.spec.get_or_insert_default().finalizers = Some(Vec::new());
    plan.push(Action::Finalize(Object::of(&empty)));
    plan
}

/// The controller of namespaces.
pub(crate) struct Namespaces;

impl Controller for Namespaces {
    type Key = ObjectKey;
    const NAME: &'static str = "namespace-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.namespaces, |change, _| vec![change.key.clone()]);
        // The last pod's end is what a deletion waits for.
        wiring.on(&caches.pods, |change, caches| {
            let key = ObjectKey::new("", &change.key.namespace);
            let waits =
                change.after.is_none() && caches.namespaces.get_key(&key).is_some_and(|ns| is_terminating(&*ns));
            waits.then_some(key).into_iter().collect()
        });
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, _: Now) -> Plan {
        let Some(namespace) = caches.namespaces.get_key(key) else { return Plan::nothing("it is gone") };
        let mut custom = caches.others.namespaced();
        custom.retain(|row| resource::find_kind(&row.api_version(), &row.kind).is_none());
        reconcile(&namespace, &custom)
    }
}
