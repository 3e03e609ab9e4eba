//! Root CA: every namespace has a ConfigMap `kube-root-ca.crt`, by which pods know the API server.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/>.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_informer::ObjectKey;

use crate::action::{Action, Attempt, Now, Object, Plan};
use crate::caches::{Caches, ROOT_CA};
use crate::driver::{Controller, Wiring};
use crate::object::{is_terminating, name};

const FILE: &str = "ca.crt";

/// Decides about one namespace.
pub(crate) fn reconcile(namespace: &Namespace, held: Option<&ConfigMap>, certificate: &str) -> Plan {
    if is_terminating(namespace) {
        return Plan::nothing("it is being deleted");
    }
    let data: BTreeMap<String, String> = [(FILE.to_owned(), certificate.to_owned())].into();
    let mut plan = Plan::nothing("it has the certificate");
    match held {
        Some(held) if held.data.as_ref() == Some(&data) => return plan,
        Some(held) => plan.push(Action::Replace(Object::of(&ConfigMap { data: Some(data), ..held.clone() }))),
        None => {
            let metadata = ObjectMeta {
                name: Some(ROOT_CA.to_owned()),
                namespace: Some(name(namespace).to_owned()),
                annotations: Some(
                    [(
                        "kubernetes.io/description".to_owned(),
                        "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints \
                         such as the internal service IP or kubernetes.default.svc."
                            .to_owned(),
                    )]
                    .into(),
                ),
                ..ObjectMeta::default()
            };
            plan.push(Action::Create(Object::of(&ConfigMap { metadata, data: Some(data), ..ConfigMap::default() })));
        }
    }
    "it has not the certificate".clone_into(&mut plan.why);
    plan
}

/// The controller of the root CA's ConfigMaps.
pub(crate) struct RootCa {
    /// PEM.
    pub(crate) certificate: Arc<str>,
}

impl Controller for RootCa {
    type Key = ObjectKey;
    const NAME: &'static str = "root-ca-certificate-publisher-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.namespaces, |change, _| vec![change.key.clone()]);
        wiring.on(&caches.root_cas, |change, _| vec![ObjectKey::new("", &change.key.namespace)]);
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, _: Now) -> Plan {
        let Some(namespace) = caches.namespaces.get_key(key) else { return Plan::nothing("it is gone") };
        reconcile(&namespace, caches.root_cas.get(&key.name, ROOT_CA).as_deref(), &self.certificate)
    }
}
