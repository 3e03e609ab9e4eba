//! What a pod's volume claims mean for the choice of its node.
//!
//! A claim that has its volume ties the pod to where that can be reached. One that waits for its first consumer lets the
//! scheduler choose first, among nodes that a volume could be had on; then the claim is told the node, and the pod is bound
//! when the claim has its volume.
//!
//! Source: <https://kubernetes.io/docs/concepts/storage/storage-classes/#volume-binding-mode>.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, Pod,
};
use k8s_openapi::api::storage::v1::StorageClass;
use mainstay_informer::{Cache, ObjectKey};
use mainstay_model::quantity::Quantity;

use crate::selector::NodeTerm;

/// The node the scheduler has chosen for a claim's first pod.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const ZONES: &[&str] = &["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
const SINGLE_POD: &str = "ReadWriteOncePod";

/// What the caches know of storage.
#[derive(Clone, Default)]
pub(crate) struct Storage {
    pub(crate) claims: Cache<PersistentVolumeClaim>,
    pub(crate) volumes: Cache<PersistentVolume>,
    pub(crate) classes: Cache<StorageClass>,
}

/// What a pod's claims come to.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Demand {
    /// For each volume, terms of which one must hold for the node.
    pub(crate) terms: Vec<Vec<NodeTerm>>,
    /// For each claim without a volume, where one could be had, in the same way.
    pub(crate) findable: Vec<Vec<NodeTerm>>,
    /// Claims that want to be told a node.
    pub(crate) unbound: Vec<ObjectKey>,
}

impl Storage {
    /// What a pod's claims demand. The error says, as kube-scheduler does, why no node can do.
    pub(crate) fn demand(&self, pod: &Pod, pods: &Cache<Pod>) -> Result<Demand, String> {
        let mut demand = Demand::default();
        let space = pod.metadata.namespace.as_deref().unwrap_or_default();
        for name in claim_names(pod) {
            let missing = || format!("persistentvolumeclaim \"{name}\" not found");
            let claim = self.claims.get(space, &name).ok_or_else(missing)?;
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
            }
            let modes = claim.spec.iter().flat_map(|spec| spec.access_modes.iter().flatten());
            if modes.into_iter().any(|mode| mode == SINGLE_POD) && is_used(pods, pod, space, &name) {
                return Err(
                    "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
                        .to_owned(),
                );
            }
            match volume_of(&claim) {
                Some(volume) => demand.terms.extend(self.bound(volume)?),
                None => self.unbound(&claim, ObjectKey::new(space, &name), &mut demand)?,
            }
        }
        Ok(demand)
    }

    /// Where a volume can be reached.
    fn bound(&self, name: &str) -> Result<Vec<Vec<NodeTerm>>, String> {
        let missing = || format!("persistentvolume \"{name}\" not found");
        let volume = self.volumes.get("", name).ok_or_else(missing)?;
        Ok(reach(&volume))
    }

    fn unbound(&self, claim: &PersistentVolumeClaim, key: ObjectKey, demand: &mut Demand) -> Result<(), String> {
        let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default();
        let class = self.classes.get("", class);
        let waits =
            class.as_ref().and_then(|class| class.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer");
        let Some(class) = class.filter(|_| waits) else {
            return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
        };
        demand.unbound.push(key);
        // A volume that is there already will do as well as one that can be made.
        let there: Vec<NodeTerm> = self
            .volumes
            .filter(|volume| suits(volume, claim))
            .iter()
            .flat_map(|volume| reach(volume).into_iter().next().unwrap_or_else(|| vec![NodeTerm::any()]))
            .collect();
        if class.provisioner == NO_PROVISIONER {
            demand.findable.push(there);
        } else if let Some(allowed) = class.allowed_topologies.as_ref().filter(|allowed| !allowed.is_empty()) {
            let made = allowed.iter().map(|term| {
                let expressions =
                    term.match_label_expressions.iter().flatten().map(|expression| NodeSelectorRequirement {
                        key: expression.key.clone(),
                        operator: "In".to_owned(),
                        values: Some(expression.values.clone()),
                    });
                NodeTerm::of(&NodeSelectorTerm { match_expressions: Some(expressions.collect()), match_fields: None })
            });
            demand.findable.push(made.chain(there).collect());
        }
        Ok(())
    }
}

/// The claims a pod mounts, those of its ephemeral volumes too.
fn claim_names(pod: &Pod) -> Vec<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let claims = volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{name}-{}", volume.name)),
        _ => None,
    });
    claims.collect()
}

/// Whether a pod mounts any claim.
pub(crate) fn has_claims(pod: &Pod) -> bool {
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.any(|volume| volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some())
}

fn is_used(pods: &Cache<Pod>, own: &Pod, space: &str, claim: &str) -> bool {
    let uses = |pod: &Pod| {
        let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty());
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        pod.metadata.namespace.as_deref() == Some(space)
            && pod.metadata.uid != own.metadata.uid
            && bound
            && !matches!(phase, Some("Succeeded" | "Failed"))
            && claim_names(pod).iter().any(|name| name == claim)
    };
    !pods.filter(uses).is_empty()
}

/// The volume of a claim that is bound.
fn volume_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.metadata.annotations.as_ref()?.get(BIND_COMPLETED)?;
    claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())
}

/// The terms of a volume's node affinity, and of its zone labels.
fn reach(volume: &PersistentVolume) -> Vec<Vec<NodeTerm>> {
    let mut all = Vec::new();
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
    if let Some(required) = affinity {
        all.push(required.node_selector_terms.iter().map(NodeTerm::of).collect());
    }
    let labels: &BTreeMap<String, String> = match &volume.metadata.labels {
        Some(labels) => labels,
        None => return all,
    };
    for (key, value) in ZONES.iter().filter_map(|key| Some((key, labels.get(*key)?))) {
        let zone = NodeSelectorRequirement {
            key: (*key).to_owned(),
            operator: "In".to_owned(),
            values: Some(value.split("__").map(str::to_owned).collect()),
        };
        all.push(vec![NodeTerm::of(&NodeSelectorTerm { match_expressions: Some(vec![zone]), match_fields: None })]);
    }
    all
}

/// Whether a free volume could be what the claim asks for.
fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(offer), Some(asked)) = (&volume.spec, &claim.spec) else { return false };
    let amount = |all: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>| {
        all.and_then(|all| all.get("storage")?.0.parse::<Quantity>().ok()).unwrap_or(Quantity::ZERO)
    };
    let offered = offer.access_modes.as_deref().unwrap_or_default();
    let requests = asked.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    offer.claim_ref.is_none()
        && volume.metadata.deletion_timestamp.is_none()
        && offer.storage_class_name == asked.storage_class_name
        && asked.access_modes.iter().flatten().all(|mode| offered.contains(mode))
        && amount(offer.capacity.as_ref()) >= amount(requests)
}
