//! What makes a StatefulSet's pod itself: its name, its labels and its claims.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};

use super::Ranks;
use crate::action::{Action, Note, Object, Plan};
use crate::claim::with_owners;
use crate::object::{controller_reference, is_terminating, name, namespace, reference, uid};
use crate::revisions::{HASH_LABEL, template_of};

const NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// The ordinal in a pod's name, if the name is one of this set's.
pub(super) fn ordinal(set: &StatefulSet, pod: &str) -> Option<i32> {
    let digits = pod.strip_prefix(name(set))?.strip_prefix('-')?;
    let number: i32 = digits.parse().ok()?;
    (number.to_string() == digits && number >= 0).then_some(number)
}

fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", name(set))
}

fn templates(set: &StatefulSet) -> impl Iterator<Item = &PersistentVolumeClaim> {
    set.spec.volume_claim_templates.iter().flatten()
}

/// Whether a claim's name is that of one of the set's templates and ordinals.
pub(super) fn is_claim_of(set: &StatefulSet, claim: &str) -> bool {
    claim_ordinal(set, claim).is_some()
}

fn claim_ordinal(set: &StatefulSet, claim: &str) -> Option<i32> {
    templates(set).find_map(|template| ordinal(set, claim.strip_prefix(name(template))?.strip_prefix('-')?))
}

fn claim_names(set: &StatefulSet, ordinal: i32) -> impl Iterator<Item = (&PersistentVolumeClaim, String)> {
    templates(set).map(move |template| (template, format!("{}-{}", name(template), pod_name(set, ordinal))))
}

/// The labels that only the pod of this ordinal has.
fn own_labels(set: &StatefulSet, ordinal: i32) -> [(String, String); 2] {
    [(NAME_LABEL.to_owned(), pod_name(set, ordinal)), (INDEX_LABEL.to_owned(), ordinal.to_string())]
}

/// A new pod of a revision; `None` when the revision cannot be read.
pub(super) fn pod(set: &StatefulSet, ordinal: i32, revision: &ControllerRevision) -> Option<Pod> {
    let template = template_of(revision)?;
    let mut metadata = template.metadata.unwrap_or_default();
    metadata.name = Some(pod_name(set, ordinal));
    metadata.generate_name = None;
    metadata.namespace = Some(namespace(set).to_owned());
    metadata.owner_references = Some(vec![controller_reference(set)]);
    let labels = metadata.labels.get_or_insert_default();
    labels.extend(own_labels(set, ordinal));
    labels.insert(HASH_LABEL.to_owned(), name(revision).to_owned());
    let mut spec = template.spec.unwrap_or_default();
    spec.hostname = Some(pod_name(set, ordinal));
    spec.subdomain = set.spec.service_name.clone().filter(|service| !service.is_empty());
    mount(set, ordinal, &mut spec);
    Some(Pod { metadata, spec: Some(spec), status: None })
}

/// The claims go before volumes of the same name in the template.
fn mount(set: &StatefulSet, ordinal: i32, spec: &mut PodSpec) {
    let mut volumes: Vec<Volume> = claim_names(set, ordinal)
        .map(|(template, claim_name)| Volume {
            name: name(template).to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource { claim_name, read_only: Some(false) }),
            ..Volume::default()
        })
        .collect();
    let claimed: Vec<String> = volumes.iter().map(|volume| volume.name.clone()).collect();
    volumes.extend(spec.volumes.take().unwrap_or_default().into_iter().filter(|v| !claimed.contains(&v.name)));
    spec.volumes = (!volumes.is_empty()).then_some(volumes);
}

/// What has to be patched in a pod that has lost its labels.
pub(super) fn correction(set: &StatefulSet, ordinal: i32, pod: &Pod) -> Option<Value> {
    let labels = pod.metadata.labels.as_ref();
    let lost = own_labels(set, ordinal)
        .into_iter()
        .filter(|(key, value)| labels.and_then(|labels| labels.get(key)) != Some(value));
    let lost: serde_json::Map<String, Value> = lost.map(|(key, value)| (key, Value::from(value))).collect();
    (!lost.is_empty()).then(|| json!({"metadata": {"uid": uid(pod), "labels": lost}}))
}

/// Creates the claims of an ordinal that are not there.
pub(super) fn missing_claims(set: &StatefulSet, ordinal: i32, claims: &[Arc<PersistentVolumeClaim>], plan: &mut Plan) {
    for (template, claim_name) in claim_names(set, ordinal) {
        if claims.iter().any(|claim| name(&**claim) == claim_name) {
            continue;
        }
        let mut claim = PersistentVolumeClaim { status: None, ..template.clone() };
        claim.metadata.name = Some(claim_name.clone());
        claim.metadata.namespace = Some(namespace(set).to_owned());
        claim.metadata.uid = None;
        claim.metadata.creation_timestamp = None;
        let selected = set.spec.selector.match_labels.clone().unwrap_or_default();
        claim.metadata.labels.get_or_insert_default().extend(selected);
        plan.push(Action::Create(Object::of(&claim)));
        let (pod, set_name) = (pod_name(set, ordinal), name(set));
        let message = format!("create Claim {claim_name} Pod {pod} in StatefulSet {set_name} success");
        plan.push(Action::Note(Note {
            regarding: reference(set),
            warning: false,
            reason: "SuccessfulCreate",
            message,
        }));
    }
}

/// A claim of the ordinal that is being deleted.
pub(super) fn leaving_claim(set: &StatefulSet, ordinal: i32, claims: &[Arc<PersistentVolumeClaim>]) -> Option<String> {
    let mut names = claim_names(set, ordinal).map(|(_, claim)| claim);
    names.find(|wanted| claims.iter().any(|claim| name(&**claim) == wanted && is_terminating(&**claim)))
}

/// Sees that each claim has the owners that `persistentVolumeClaimRetentionPolicy` asks for: the set, when claims go with
/// it; the pod, when claims go with a pod that is scaled away.
///
/// Source: <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#persistentvolumeclaim-retention>.
pub(super) fn own_claims(set: &StatefulSet, ranks: &Ranks, claims: &[Arc<PersistentVolumeClaim>], plan: &mut Plan) {
    let policy = set.spec.persistent_volume_claim_retention_policy.clone().unwrap_or_default();
    let deletes = |when: &Option<String>| when.as_deref() == Some("Delete");
    let (with_set, with_pod) = (deletes(&policy.when_deleted), deletes(&policy.when_scaled));
    for claim in claims.iter().filter(|claim| !is_terminating(&***claim)) {
        let Some(ordinal) = claim_ordinal(set, name(&**claim)) else { continue };
        let pod = ranks.pods().find(|pod| name(&***pod) == pod_name(set, ordinal));
        let condemned = !ranks.slots.contains_key(&ordinal);
        let mut owners = claim.metadata.owner_references.clone().unwrap_or_default();
        owners.retain(|owner| owner.uid != uid(set) && !(owner.kind == "Pod" && owner.name == pod_name(set, ordinal)));
        let mut own = |mut owner: OwnerReference| {
            // Nobody controls a claim; an owner only takes it along.
            (owner.controller, owner.block_owner_deletion) = (None, None);
            owners.push(owner);
        };
        match pod.filter(|_| condemned && with_pod) {
            Some(pod) => own(controller_reference(&**pod)),
            // A claim whose pod is gone already goes with nothing more.
            None if with_set && !(condemned && with_pod) => own(controller_reference(set)),
            None if condemned && with_pod => continue,
            None => {}
        }
        let before = claim.metadata.owner_references.as_deref().unwrap_or_default();
        let same = before.len() == owners.len() && owners.iter().all(|owner| before.iter().any(|o| o.uid == owner.uid));
        if !same {
            plan.push(with_owners(&**claim, &owners));
        }
    }
}
