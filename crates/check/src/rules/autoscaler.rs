//! Autoscalers: against fixed replicas, without a target, down to one.

use serde_json::json;

use super::{Context, rule};
use crate::finding::Element::{E1, E8};
use crate::finding::Fix;
use crate::finding::Rule;
use crate::finding::Severity::{Error, Note, Warning};

static FIXED: Rule = rule(
    "autoscaler-fixed-replicas",
    E8,
    Warning,
    "The manifest fixes replicas that an autoscaler sets: every apply throws its figure away.",
    &["kube-score deployment-targeted-by-hpa-does-not-have-replicas-configured"],
);
static SINGLE: Rule = rule(
    "autoscaler-down-to-one",
    E1,
    Error,
    "The autoscaler may leave one pod.",
    &[
        "kube-score horizontalpodautoscaler-replicas",
        "KubeLinter hpa-minimum-three-replicas",
        "Polaris hpaMinAvailability",
    ],
);
static NO_TARGET: Rule = rule(
    "autoscaler-without-target",
    E8,
    Error,
    "The autoscaler's target is not there.",
    &["kube-score horizontalpodautoscaler-has-target", "KubeLinter dangling-horizontalpodautoscaler"],
);
static NO_ROOM: Rule = rule(
    "autoscaler-without-room",
    E8,
    Note,
    "The autoscaler's least and most are the same: it does nothing.",
    &["Polaris hpaMaxAvailability"],
);
static BUDGET: Rule = rule(
    "budget-over-autoscaler-minimum",
    E1,
    Error,
    "At its least, the autoscaler leaves as many pods as the budget keeps: nothing can be drained then.",
    &["Polaris pdbMinAvailableGreaterThanHPAMinReplicas"],
);

pub(super) static RULES: &[&Rule] = &[&SINGLE, &NO_TARGET, &BUDGET, &FIXED, &NO_ROOM];

pub(super) fn look(context: &mut Context<'_>) {
    let model = context.model;
    for object in model.objects.iter().filter(|object| object.kind() == "HorizontalPodAutoscaler") {
        let spec = &object.written["spec"];
        let (least, most) = (spec["minReplicas"].as_u64().unwrap_or(1), spec["maxReplicas"].as_u64().unwrap_or(1));
        let target = model.workloads.iter().find(|workload| {
            workload.namespace == object.namespace()
                && spec["scaleTargetRef"]["name"] == workload.name.as_str()
                && spec["scaleTargetRef"]["kind"] == model.object_of(workload).kind()
        });
        let shown = object.shown();
        let Some(target) = target else {
            let wanted = &spec["scaleTargetRef"];
            let message = format!("{shown} scales {} {}, which is not there", wanted["kind"], wanted["name"]);
            context.say(&NO_TARGET, object, "spec.scaleTargetRef", message, "name an object that is there", None);
            continue;
        };
        if least < 2 {
            let fix = Some(Fix::patch(object, json!({"spec": {"minReplicas": 2, "maxReplicas": most.max(2)}})));
            context.say(
                &SINGLE,
                object,
                "spec.minReplicas",
                format!("{shown} goes down to {least}"),
                "minReplicas: 2 or more",
                fix,
            );
        }
        if most <= least && most > 1 {
            let message = format!("{shown} has minReplicas and maxReplicas of {most}");
            context.say(&NO_ROOM, object, "spec.maxReplicas", message, "a larger maxReplicas", None);
        }
        let owner = model.object_of(target);
        if owner.written["spec"].get("replicas").is_some() && !owner.is_live() {
            let message = format!("{} sets replicas, and {} sets them too", owner.shown(), object.name());
            let change = "leave spec.replicas out of the manifest";
            context.say(&FIXED, owner, "spec.replicas", message, change, None);
        }
        let keeps = model.budgets.iter().find(|budget| {
            target.pods.iter().any(|pod| budget.pods.contains(pod)) && budget.minimum as u64 >= least && least > 1
        });
        if let Some(budget) = keeps {
            let budget_object = &model.objects[budget.object];
            let message = format!("{} keeps {} pods; {shown} may leave {least}", budget_object.shown(), budget.minimum);
            let fix = Some(Fix::patch(budget_object, json!({"spec": {"minAvailable": null, "maxUnavailable": 1}})));
            context.say(&BUDGET, budget_object, "spec", message, "maxUnavailable: 1", fix);
        }
    }
}
