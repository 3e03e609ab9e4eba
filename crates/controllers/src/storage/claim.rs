//! PersistentVolumeClaim: gets the volume it asks for.
//!
//! Flow: without a class it gets the default one → a claim that names a volume gets that or waits → the smallest free volume
//! that suits, unless its class waits for the first consumer and the scheduler has chosen no node yet → a new one from
//! the built-in provisioner, or word that another provisioner is waited for.
//!
//! Source: <https://kubernetes.io/docs/concepts/storage/persistent-volumes/#binding>.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus};
use k8s_openapi::api::storage::v1::StorageClass;
use mainstay_informer::ObjectKey;
use serde_json::{Value, json};

use super::fit::{self, class_of};
use super::{BIND_COMPLETED, BOUND_BY_CONTROLLER, LOCAL, PROVISIONED_BY, SELECTED_NODE, SHARED, provision};
use crate::action::{Action, Attempt, Note, Now, Object, Plan, Target};
use crate::caches::Caches;
use crate::driver::{Controller, Wiring};
use crate::object::{annotation, created, is_terminating, name, namespace, reference, uid};

const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";

/// What one look needs to see.
pub(crate) struct View {
    pub(crate) claim: Arc<PersistentVolumeClaim>,
    pub(crate) volumes: Vec<Arc<PersistentVolume>>,
    pub(crate) classes: Vec<Arc<StorageClass>>,
    /// The node the scheduler has chosen, if it has and the node is there.
    pub(crate) node: Option<Arc<Node>>,
    /// Where the built-in provisioner makes volumes.
    pub(crate) directory: Option<PathBuf>,
}

/// Decides about one claim.
pub(crate) fn reconcile(view: &View) -> Plan {
    let claim = view.claim.as_ref();
    let spec = claim.spec.clone().unwrap_or_default();
    if annotation(claim, BIND_COMPLETED).is_some() {
        return bound(view);
    }
    if is_terminating(claim) {
        return Plan::nothing("it is being deleted");
    }
    if let Some(wanted) = spec.volume_name.as_deref().filter(|wanted| !wanted.is_empty()) {
        let volume = view.volumes.iter().find(|volume| name(&***volume) == wanted);
        let is_ours = |volume: &&Arc<PersistentVolume>| {
            fit::is_for(volume, claim) || volume.spec.as_ref().is_none_or(|spec| spec.claim_ref.is_none())
        };
        return match volume.filter(is_ours) {
            Some(volume) => bind(claim, volume),
            None => pending(claim, &format!("volume {wanted} is not there, or another claim's"), None),
        };
    }
    let Some(class_name) = class_of(claim) else { return choose_class(view) };
    let class = view.classes.iter().find(|class| name(&***class) == class_name);
    let waits = class.and_then(|class| class.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer");
    let meant = view.volumes.iter().any(|volume| fit::is_for(volume, claim));
    if waits && view.node.is_none() && !meant {
        let message = "waiting for first consumer to be created before binding";
        return pending(claim, message, Some(("WaitForFirstConsumer", message.to_owned(), false)));
    }
    if let Some(volume) = fit::find(claim, &view.volumes, view.node.as_deref().filter(|_| waits)) {
        return bind(claim, volume);
    }
    match class {
        Some(class) => dynamic(view, class),
        None if class_name.is_empty() => {
            let message = "no persistent volumes available for this claim and no storage class is set";
            pending(claim, message, Some(("FailedBinding", message.to_owned(), false)))
        }
        None => {
            let message = format!("storageclass.storage.k8s.io \"{class_name}\" not found");
            pending(claim, &message.clone(), Some(("ProvisioningFailed", message, true)))
        }
    }
}

/// No volume suits: a new one.
fn dynamic(view: &View, class: &StorageClass) -> Plan {
    let claim = view.claim.as_ref();
    match (class.provisioner.as_str(), &view.directory) {
        (LOCAL | SHARED, Some(directory)) => match provision::volume(claim, class, view.node.as_deref(), directory) {
            Ok(volume) => {
                let mut plan = Plan::nothing("a volume is made for it");
                let message = format!("Successfully provisioned volume {}", name(&volume));
                plan.push(Action::Create(Object::of(&volume)));
                let reason = "ProvisioningSucceeded";
                plan.push(Action::Note(Note { regarding: reference(claim), warning: false, reason, message }));
                plan
            }
            Err(message) => pending(claim, &message.clone(), Some(("ProvisioningFailed", message, true))),
        },
        ("kubernetes.io/no-provisioner", _) => {
            let message = "no persistent volumes available for this claim and no storage class is set";
            pending(claim, message, Some(("FailedBinding", message.to_owned(), false)))
        }
        (other, _) => {
            let message = format!(
                "Waiting for a volume to be created either by the external provisioner '{other}' or manually by the \
                 system administrator. If volume creation is delayed, please verify that the provisioner is running \
                 and correctly registered."
            );
            let mut plan =
                pending(claim, "another provisioner is waited for", Some(("ExternalProvisioning", message, false)));
            if annotation(claim, PROVISIONER) != Some(other) {
                plan.push(annotate(claim, &json!({PROVISIONER: other})));
            }
            plan
        }
    }
}

/// The newest of the default classes.
fn choose_class(view: &View) -> Plan {
    let claim = view.claim.as_ref();
    let defaults = view.classes.iter().filter(|class| annotation(&***class, DEFAULT_CLASS) == Some("true"));
    let Some(class) = defaults.max_by_key(|class| (created(&***class), std::cmp::Reverse(name(&***class).to_owned())))
    else {
        // Without classes at all, volumes without a class are for claims without one.
        if let Some(volume) = fit::find(claim, &view.volumes, None) {
            return bind(claim, volume);
        }
        let message = "no persistent volumes available for this claim and no storage class is set";
        return pending(claim, message, Some(("FailedBinding", message.to_owned(), false)));
    };
    let mut plan = Plan::nothing("it gets the default class");
    let patch = json!({"metadata": {"uid": uid(claim)}, "spec": {"storageClassName": name(&**class)}});
    plan.push(Action::Patch(Target::of(claim), patch));
    plan
}

fn annotate(claim: &PersistentVolumeClaim, annotations: &Value) -> Action {
    Action::Patch(Target::of(claim), json!({"metadata": {"uid": uid(claim), "annotations": annotations}}))
}

/// It waits; the event is reason, message and whether it is a warning.
fn pending(claim: &PersistentVolumeClaim, why: &str, event: Option<(&'static str, String, bool)>) -> Plan {
    let mut plan = Plan::nothing(why);
    if phase(claim) != "Pending" {
        plan.push(with_status(
            claim,
            PersistentVolumeClaimStatus { phase: Some("Pending".to_owned()), ..status(claim) },
        ));
    }
    if let Some((reason, message, warning)) = event {
        plan.push(Action::Note(Note { regarding: reference(claim), warning, reason, message }));
    }
    plan
}

/// The volume first, then the claim, then its status.
fn bind(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Plan {
    let mut plan = Plan::nothing(format!("it gets volume {}", name(volume)));
    let held =
        volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()).and_then(|reference| reference.uid.as_deref());
    if held != Some(uid(claim)) {
        let mut wanted = reference(claim);
        wanted.resource_version.clone_from(&claim.metadata.resource_version);
        // The revision guards it: of two claims one gets the volume.
        let mut meta = json!({"uid": uid(volume), "resourceVersion": volume.metadata.resource_version});
        if volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none()) {
            meta["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
        }
        plan.push(Action::Patch(Target::of(volume), json!({"metadata": meta, "spec": {"claimRef": wanted}})));
    }
    let mut annotations = json!({BIND_COMPLETED: "yes"});
    if claim.spec.as_ref().is_none_or(|spec| spec.volume_name.as_deref().unwrap_or_default().is_empty()) {
        annotations[BOUND_BY_CONTROLLER] = json!("yes");
    }
    let meta = json!({"uid": uid(claim), "annotations": annotations});
    plan.push(Action::Patch(Target::of(claim), json!({"metadata": meta, "spec": {"volumeName": name(volume)}})));
    // The status follows with the next look, which sees the claim as it is then.
    plan
}

/// A claim that has its volume: what it offers is said, and whether it is still there.
fn bound(view: &View) -> Plan {
    let claim = view.claim.as_ref();
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    let volume = view.volumes.iter().find(|volume| name(&***volume) == wanted && fit::is_for(volume, claim));
    let mut plan = Plan::nothing(format!("it has volume {wanted}"));
    let Some(volume) = volume else {
        if phase(claim) != "Lost" {
            let lost = PersistentVolumeClaimStatus { phase: Some("Lost".to_owned()), ..status(claim) };
            plan.push(with_status(claim, lost));
            let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!".to_owned();
            plan.push(Action::Note(Note { regarding: reference(claim), warning: true, reason: "ClaimLost", message }));
        }
        return plan;
    };
    grow(view, volume, &mut plan);
    let spec = volume.spec.clone().unwrap_or_default();
    let new = PersistentVolumeClaimStatus {
        phase: Some("Bound".to_owned()),
        access_modes: spec.access_modes,
        capacity: spec.capacity,
        ..status(claim)
    };
    if claim.status.as_ref() != Some(&new) {
        plan.push(with_status(claim, new));
    }
    plan
}

/// A larger claim makes a volume of our own larger, if its class allows that: a directory has no size of its own.
fn grow(view: &View, volume: &PersistentVolume, plan: &mut Plan) {
    let claim = view.claim.as_ref();
    let class = view.classes.iter().find(|class| Some(name(&***class)) == class_of(claim));
    let ours = matches!(annotation(volume, PROVISIONED_BY), Some(LOCAL | SHARED));
    let allowed = class.is_some_and(|class| class.allow_volume_expansion == Some(true));
    if ours && allowed && fit::request(claim) > fit::capacity(volume) {
        let capacity = json!({"storage": fit::request(claim).to_string()});
        let patch = json!({"metadata": {"uid": uid(volume)}, "spec": {"capacity": capacity}});
        plan.push(Action::Patch(Target::of(volume), patch));
    }
}

fn status(claim: &PersistentVolumeClaim) -> PersistentVolumeClaimStatus {
    claim.status.clone().unwrap_or_default()
}

fn phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn with_status(claim: &PersistentVolumeClaim, status: PersistentVolumeClaimStatus) -> Action {
    Action::ReplaceStatus(Object::of(&PersistentVolumeClaim { status: Some(status), ..claim.clone() }))
}

/// The controller of claims.
pub(crate) struct Claims {
    /// Where the built-in provisioner makes volumes.
    directory: Option<PathBuf>,
    /// What was last told about a claim; the same is not told again.
    told: Mutex<HashMap<ObjectKey, String>>,
}

impl Claims {
    pub(crate) fn new(directory: Option<PathBuf>) -> Self {
        Self { directory, told: Mutex::default() }
    }
}

impl Controller for Claims {
    type Key = ObjectKey;
    const NAME: &'static str = "persistentvolume-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.claims, |change, _| vec![change.key.clone()]);
        // A volume concerns the claim it is for; a free one, every claim that waits.
        wiring.on(&caches.volumes, |change, caches| {
            let mut keys = Vec::new();
            for volume in change.versions() {
                match volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
                    Some(claim) => keys.push(ObjectKey::new(
                        claim.namespace.as_deref().unwrap_or_default(),
                        claim.name.as_deref().unwrap_or_default(),
                    )),
                    None => keys.extend(waiting(caches)),
                }
            }
            keys
        });
        wiring.on(&caches.storage_classes, |_, caches| waiting(caches));
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, _: Now) -> Plan {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(claim) = caches.claims.get_key(key) else {
            told.remove(key);
            return Plan::nothing("it is gone");
        };
        let node = annotation(&*claim, SELECTED_NODE).and_then(|node| caches.nodes.get("", node));
        let (volumes, classes) = (caches.volumes.list(), caches.storage_classes.list());
        let view = View { claim, volumes, classes, node, directory: self.directory.clone() };
        let mut plan = reconcile(&view);
        plan.actions.retain(|action| match action {
            Action::Note(note) => told.insert(key.clone(), note.message.clone()).as_ref() != Some(&note.message),
            _ => true,
        });
        plan
    }
}

fn waiting(caches: &Caches) -> Vec<ObjectKey> {
    let all = caches.claims.filter(|claim| annotation(claim, BIND_COMPLETED).is_none() && !namespace(claim).is_empty());
    all.iter().map(|claim| ObjectKey::of(&**claim)).collect()
}
