//! The classes of the built-in provisioner, and the claims of ephemeral volumes.
//!
//! `local`, the default: a directory of the node the first pod runs on. `shared`: a directory that all nodes have, so that
//! a pod finds its data again on another node. They are made when the controllers start; whoever wants another default
//! changes the annotation, and that stays.

use std::sync::Mutex;
use std::sync::PoisonError;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_informer::ObjectKey;

use super::{LOCAL, SHARED};
use crate::action::{Action, Attempt, Now, Object, Plan};
use crate::caches::Caches;
use crate::driver::{Controller, Wiring};
use crate::object::{controller_reference, is_finished, is_terminating, name, namespace};

/// The two classes.
fn classes() -> [StorageClass; 2] {
    let class = |own_name: &str, provisioner: &str, mode: &str, is_default: bool| StorageClass {
        metadata: ObjectMeta {
            name: Some(own_name.to_owned()),
            annotations: is_default
                .then(|| [("storageclass.kubernetes.io/is-default-class".to_owned(), "true".to_owned())].into()),
            ..ObjectMeta::default()
        },
        provisioner: provisioner.to_owned(),
        reclaim_policy: Some("Delete".to_owned()),
        volume_binding_mode: Some(mode.to_owned()),
        allow_volume_expansion: Some(true),
        ..StorageClass::default()
    };
    [class("local", LOCAL, "WaitForFirstConsumer", true), class("shared", SHARED, "Immediate", false)]
}

/// The controller that makes the classes, once per start.
#[derive(Default)]
pub(crate) struct Classes {
    made: Mutex<bool>,
}

impl Controller for Classes {
    type Key = &'static str;
    const NAME: &'static str = "storageclass-controller";

    fn wire(&self, wiring: &mut Wiring<&'static str>) {
        wiring.inbox.add(["classes"]);
    }

    fn plan(&self, caches: &Caches, _: &&'static str, _: &Attempt, _: Now) -> Plan {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let mut plan = Plan::nothing("the classes are there");
        if !*made {
            let missing = classes().into_iter().filter(|class| caches.storage_classes.get("", name(class)).is_none());
            plan.actions.extend(missing.map(|class| Action::Create(Object::of(&class))));
            *made = plan.actions.is_empty();
            // Until they are seen: a refused creation is tried again.
            if !*made {
                plan.look_again(std::time::Duration::from_millis(100));
            }
        }
        plan
    }
}

/// The claims a pod's ephemeral volumes need and do not have.
///
/// Source: <https://kubernetes.io/docs/concepts/storage/ephemeral-volumes/#generic-ephemeral-volumes>.
pub(crate) fn reconcile_ephemeral(pod: &Pod, has_claim: impl Fn(&str) -> bool) -> Plan {
    let mut plan = Plan::nothing("its claims are there");
    if is_terminating(pod) || is_finished(pod) {
        return plan;
    }
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    for volume in volumes {
        let template = volume.ephemeral.as_ref().and_then(|ephemeral| ephemeral.volume_claim_template.as_ref());
        let Some(template) = template else { continue };
        let claim_name = format!("{}-{}", name(pod), volume.name);
        if has_claim(&claim_name) {
            continue;
        }
        let mut metadata = template.metadata.clone().unwrap_or_default();
        metadata.name = Some(claim_name);
        metadata.namespace = Some(namespace(pod).to_owned());
        metadata.owner_references = Some(vec![controller_reference(pod)]);
        let claim = PersistentVolumeClaim { metadata, spec: Some(template.spec.clone()), status: None };
        plan.push(Action::Create(Object::of(&claim)));
    }
    plan
}

/// The controller of ephemeral volumes.
pub(crate) struct EphemeralVolumes;

impl Controller for EphemeralVolumes {
    type Key = ObjectKey;
    const NAME: &'static str = "ephemeral-volume-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.pods, |change, _| {
            let has = |pod: &Pod| {
                pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| volume.ephemeral.is_some())
            };
            if change.after.as_ref().is_some_and(|pod| has(pod)) { vec![change.key.clone()] } else { Vec::new() }
        });
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, _: Now) -> Plan {
        let Some(pod) = caches.pods.get_key(key) else { return Plan::nothing("it is gone") };
        reconcile_ephemeral(&pod, |claim| caches.claims.get(&key.namespace, claim).is_some())
    }
}
