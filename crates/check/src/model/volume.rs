//! Volumes: which pod uses which, and from where it can be reached.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume};
use mainstay_model::meta::{self, list_at};
use mainstay_scheduler::selector::NodeTerm;
use serde_json::Value;

use super::workload::{Kind, Workload};
use crate::engine::Engine;
use crate::manifest::Object;
use crate::topology::{HOSTNAME, NodeModel, Topology, ZONE};

/// The annotation of a claim, class or volume: `node`, `zone` or `any`.
pub const REACH: &str = "check.mainstay.dev/reach";

/// From where a volume can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// From the node it was made on.
    Node,
    /// From the zone it was made in.
    Zone,
    /// From everywhere.
    Anywhere,
}

/// One claimed volume.
#[derive(Debug, Clone)]
pub struct Volume {
    /// `namespace/claim`.
    pub key: String,
    /// From where it can be reached.
    pub reach: Reach,
    /// Why that is held to be so.
    pub why: String,
    /// The object that asks for it: a claim, or the StatefulSet with the template.
    pub object: usize,
    /// Whether one node at a time may use it.
    pub is_exclusive: bool,
    /// Pods that mount it.
    pub pods: Vec<usize>,
    /// Where it can be reached: for each list, one term must hold. Set by the volume, or by its first pod's node.
    pub terms: Vec<Vec<NodeTerm>>,
}

impl Volume {
    /// Fixes it to where its first pod was placed.
    pub(crate) fn settle(&mut self, node: &NodeModel, topology: &Topology) {
        if !self.terms.is_empty() {
            return;
        }
        let (key, value) = match self.reach {
            Reach::Node => (HOSTNAME, node.labels.get(HOSTNAME).cloned().unwrap_or_default()),
            Reach::Zone if !topology.zones[node.zone].is_empty() => (ZONE, topology.zones[node.zone].clone()),
            Reach::Zone | Reach::Anywhere => return,
        };
        self.terms.push(vec![term(key, value)]);
    }
}

fn term(key: &str, value: String) -> NodeTerm {
    let one = NodeSelectorRequirement { key: key.to_owned(), operator: "In".to_owned(), values: Some(vec![value]) };
    NodeTerm::of(&NodeSelectorTerm { match_expressions: Some(vec![one]), match_fields: None })
}

/// Provisioners and how far their volumes reach. Sources: each driver's own page, linked from
/// <https://kubernetes-csi.github.io/docs/drivers.html>.
const PROVISIONERS: &[(&str, Reach)] = &[
    ("mainstay.dev/local", Reach::Node),
    ("mainstay.dev/shared", Reach::Anywhere),
    ("kubernetes.io/no-provisioner", Reach::Node),
    ("rancher.io/local-path", Reach::Node),
    ("openebs.io/local", Reach::Node),
    ("topolvm", Reach::Node),
    ("local.csi.openebs.io", Reach::Node),
    ("hostpath", Reach::Node),
    ("ebs.csi.aws.com", Reach::Zone),
    ("kubernetes.io/aws-ebs", Reach::Zone),
    ("pd.csi.storage.gke.io", Reach::Zone),
    ("kubernetes.io/gce-pd", Reach::Zone),
    ("disk.csi.azure.com", Reach::Zone),
    ("cinder.csi.openstack.org", Reach::Zone),
    ("csi.hetzner.cloud", Reach::Zone),
    ("dobs.csi.digitalocean.com", Reach::Zone),
    ("efs.csi.aws.com", Reach::Anywhere),
    ("filestore.csi.storage.gke.io", Reach::Anywhere),
    ("file.csi.azure.com", Reach::Anywhere),
    ("nfs", Reach::Anywhere),
    ("cephfs", Reach::Anywhere),
    ("rbd", Reach::Anywhere),
    ("longhorn", Reach::Anywhere),
];

/// What the objects say of storage.
pub(crate) struct Storage<'o> {
    objects: &'o [Object],
    engine: &'o Engine,
    claims: BTreeMap<(&'o str, &'o str), usize>,
    classes: BTreeMap<&'o str, usize>,
    volumes: BTreeMap<(&'o str, &'o str), usize>,
}

impl<'o> Storage<'o> {
    pub(crate) fn of(objects: &'o [Object], engine: &'o Engine) -> Self {
        let of_kind = |kind: &'static str| objects.iter().enumerate().filter(move |(_, object)| object.kind() == kind);
        let claims =
            of_kind("PersistentVolumeClaim").map(|(at, claim)| ((claim.namespace(), claim.name()), at)).collect();
        let classes = of_kind("StorageClass").map(|(at, class)| (class.name(), at)).collect();
        let of_claim = |(at, volume): (usize, &'o Object)| {
            let text = |path: &str| meta::str_at(&volume.written, path);
            Some(((text("spec.claimRef.namespace")?, text("spec.claimRef.name")?), at))
        };
        let volumes = of_kind("PersistentVolume").filter_map(of_claim).collect();
        Self { objects, engine, claims, classes, volumes }
    }

    /// Names of the claims that a pod of a workload mounts, and the claim's object or template.
    pub(crate) fn claims_of(&self, workload: &Workload, pod: &str) -> Vec<(String, usize, &'o Value)> {
        let owner = &self.objects[workload.object];
        let templates = list_at(&owner.value, "spec.volumeClaimTemplates").iter();
        let made = templates.filter(|_| workload.kind == Kind::StatefulSet).map(|template| {
            (format!("{}/{}-{pod}", workload.namespace, meta::name(template)), workload.object, template)
        });
        let named = list_at(workload.spec(), "volumes").iter().filter_map(|volume| {
            let name = volume["persistentVolumeClaim"]["claimName"].as_str()?;
            let at = self.claims.get(&(workload.namespace.as_str(), name)).copied();
            let value = at.map_or(&Value::Null, |at| &self.objects[at].value);
            Some((format!("{}/{name}", workload.namespace), at.unwrap_or(workload.object), value))
        });
        made.chain(named).collect()
    }

    /// The volume of a claim.
    pub(crate) fn volume(&self, key: String, object: usize, claim: &Value) -> Volume {
        let (namespace, name) = key.split_once('/').unwrap_or_default();
        let bound = self.volumes.get(&(namespace, name)).map(|at| &self.objects[*at]);
        let modes = list_at(claim, "spec.accessModes");
        let is_exclusive = !modes.iter().any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany");
        let (mut reach, mut why) = self.reach(claim, bound);
        let mut terms = Vec::new();
        if let Some(volume) =
            bound.and_then(|object| serde_json::from_value::<PersistentVolume>(object.value.clone()).ok())
        {
            let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
            if let Some(required) = affinity {
                let names =
                    required.node_selector_terms.iter().flat_map(|term| term.match_expressions.iter().flatten());
                reach = if names.into_iter().any(|term| term.key == HOSTNAME) { Reach::Node } else { Reach::Zone };
                "its volume's node affinity".clone_into(&mut why);
                terms.push(required.node_selector_terms.iter().map(NodeTerm::of).collect());
            }
            if let Some(zone) = volume.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE)) {
                terms.push(vec![term(ZONE, zone.clone())]);
            }
        }
        Volume { key, reach, why, object, is_exclusive, pods: Vec::new(), terms }
    }

    fn reach(&self, claim: &Value, volume: Option<&Object>) -> (Reach, String) {
        let class_name = meta::str_at(claim, "spec.storageClassName");
        let class = class_name.and_then(|name| self.classes.get(name)).map(|at| &self.objects[*at]);
        let of_volume = volume.and_then(|volume| volume.annotation(REACH));
        let stated =
            meta::annotation(claim, REACH).or(of_volume).or_else(|| class.and_then(|class| class.annotation(REACH)));
        match stated {
            Some("node") => return (Reach::Node, "its annotation".to_owned()),
            Some("zone") => return (Reach::Zone, "its annotation".to_owned()),
            Some("any") => return (Reach::Anywhere, "its annotation".to_owned()),
            _ => {}
        }
        let provisioner = class.and_then(|class| class.written["provisioner"].as_str());
        if let Some(text) = provisioner {
            let known = PROVISIONERS.iter().find(|(name, _)| text == *name || text.contains(name));
            if let Some((_, reach)) = known {
                return (*reach, format!("its class's provisioner {text}"));
            }
        }
        match class_name {
            Some("shared") if self.engine.is_storage_local => (Reach::Anywhere, "the built-in class shared".to_owned()),
            _ if self.engine.is_storage_local => (Reach::Node, "assumed: a directory of its node".to_owned()),
            _ => (Reach::Zone, "assumed: a disk of its zone".to_owned()),
        }
    }
}
