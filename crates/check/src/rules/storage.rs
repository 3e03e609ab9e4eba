//! Data: volumes that hold a pod to one place, one volume for many, and data on nothing that lasts.

use mainstay_model::meta::list_at;

use super::{Context, rule};
use crate::finding::Element::{E1, E5, E7};
use crate::finding::Rule;
use crate::finding::Severity::{Error, Warning};
use crate::model::{Kind, Reach};

static PINNED: Rule = rule(
    "volume-in-one-place",
    E1,
    Warning,
    "The only copy of the data is on a volume of one node or zone: when that is away, the pod cannot start elsewhere.",
    &[],
);
static SHARED: Rule = rule(
    "volume-shared-by-replicas",
    E5,
    Error,
    "Several replicas mount one volume that one node at a time may use: they share a node, or do not start.",
    &[],
);
static ROLLS: Rule = rule(
    "volume-blocks-update",
    E5,
    Warning,
    "A rolling update starts the new pod beside the old one, which still holds the volume: on another node it waits for ever.",
    &[],
);
static FLEETING: Rule =
    rule("data-without-volume", E7, Error, "A database keeps its data where it ends with the pod.", &[]);
static HOST_PATH: Rule = rule(
    "data-on-host-path",
    E7,
    Warning,
    "A hostPath is another directory on every node: a pod that moves does not find its data.",
    &[],
);

pub(super) static RULES: &[&Rule] = &[&SHARED, &FLEETING, &ROLLS, &PINNED, &HOST_PATH];

pub(super) fn look(context: &mut Context<'_>) {
    let model = context.model;
    for volume in &model.volumes {
        let Some(first) = volume.pods.first() else { continue };
        let workload = &model.workloads[model.pods[*first].workload];
        let object = &model.objects[volume.object];
        let owner = model.object_of(workload);
        if volume.reach != Reach::Anywhere && workload.replicas == 1 && workload.kind.serves() {
            let place = if volume.reach == Reach::Node { "node" } else { "zone" };
            let message = format!("volume {} of {} stays in one {place} ({})", volume.key, workload.key(), volume.why);
            let change = "members that replicate, each with a volume of its own; or a class that every node reaches";
            let path = if volume.object == workload.object { "spec.volumeClaimTemplates" } else { "spec" };
            context.say(&PINNED, object, path, message, change, None);
        }
        if volume.is_exclusive && volume.pods.len() > 1 {
            let message = format!("{} pods of {} mount {}", volume.pods.len(), workload.key(), volume.key);
            let change = "a StatefulSet with volumeClaimTemplates, or accessModes: [ReadWriteMany]";
            context.say(&SHARED, owner, &workload.path("volumes"), message, change, None);
        }
        let rolls = workload.kind == Kind::Deployment && owner.value["spec"]["strategy"]["type"] != "Recreate";
        if volume.is_exclusive && volume.pods.len() == 1 && rolls {
            let message = format!("{} rolls over its volume {}", workload.key(), volume.key);
            context.say(&ROLLS, owner, "spec.strategy", message, "strategy type: Recreate, or a StatefulSet", None);
        }
    }
    let all: Vec<_> = context.serving().collect();
    for (_, workload, object) in all {
        let Some(known) = workload.known.filter(|known| known.keeps) else { continue };
        if workload.pods.iter().any(|pod| !model.pods[*pod].volumes.is_empty()) {
            continue;
        }
        let on_host = list_at(workload.spec(), "volumes").iter().any(|volume| volume["hostPath"].is_object());
        let (key, path) = (workload.key(), workload.path("volumes"));
        if on_host {
            let message = format!("{key} runs {} on a hostPath", known.name);
            context.say(&HOST_PATH, object, &path, message, "a PersistentVolumeClaim", None);
        } else {
            let message = format!("{key} runs {} without a PersistentVolumeClaim", known.name);
            context.say(&FLEETING, object, &path, message, "volumeClaimTemplates in a StatefulSet", None);
        }
    }
}
