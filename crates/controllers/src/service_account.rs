//! ServiceAccount: every namespace has one named `default`, which pods get that ask for none.
//!
//! Source: <https://kubernetes.io/docs/concepts/security/service-accounts/#default-service-accounts>.

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_informer::ObjectKey;

use crate::action::{Action, Attempt, Now, Object, Plan};
use crate::caches::Caches;
use crate::driver::{Controller, Wiring};
use crate::object::{is_terminating, name};

const DEFAULT: &str = "default";

/// Decides about one namespace.
pub(crate) fn reconcile(namespace: &Namespace, has_account: bool) -> Plan {
    if has_account || is_terminating(namespace) {
        return Plan::nothing("it has its account");
    }
    let metadata = ObjectMeta {
        name: Some(DEFAULT.to_owned()),
        namespace: Some(name(namespace).to_owned()),
        ..ObjectMeta::default()
    };
    let mut plan = Plan::nothing("it has no default account");
    plan.push(Action::Create(Object::of(&ServiceAccount { metadata, ..ServiceAccount::default() })));
    plan
}

/// The controller of service accounts.
pub(crate) struct ServiceAccounts;

impl Controller for ServiceAccounts {
    type Key = ObjectKey;
    const NAME: &'static str = "serviceaccount-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.namespaces, |change, _| vec![change.key.clone()]);
        wiring.on(&caches.service_accounts, |change, _| {
            let lost = change.after.is_none() && change.key.name == DEFAULT;
            lost.then(|| ObjectKey::new("", &change.key.namespace)).into_iter().collect()
        });
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, _: Now) -> Plan {
        let Some(namespace) = caches.namespaces.get_key(key) else { return Plan::nothing("it is gone") };
        reconcile(&namespace, caches.service_accounts.get(&key.name, DEFAULT).is_some())
    }
}
