//! Disruption budgets: none, one that lets nothing go, one that lets all go.

use serde_json::{Value, json};

use super::{Context, rule};
use crate::finding::Element::{E1, E5};
use crate::finding::Severity::{Error, Note, Warning};
use crate::finding::{Fix, Rule};
use crate::model::Kind;

static MISSING: Rule = rule(
    "no-budget",
    E1,
    Warning,
    "Without a PodDisruptionBudget a drain may take all replicas at once.",
    &[
        "kube-score deployment-has-poddisruptionbudget",
        "kube-score statefulset-has-poddisruptionbudget",
        "Polaris missingPodDisruptionBudget",
    ],
);
static BLOCKS: Rule = rule(
    "budget-blocks-drain",
    E5,
    Error,
    "The PodDisruptionBudget lets no pod go: no node with one can be drained.",
    &["KubeLinter pdb-min-available", "KubeLinter pdb-max-unavailable", "Polaris pdbDisruptionsIsZero"],
);
static ALLOWS_ALL: Rule = rule(
    "budget-allows-all",
    E1,
    Warning,
    "The PodDisruptionBudget lets every pod go at once: it guards nothing.",
    &[],
);
static NOTHING: Rule = rule("budget-selects-nothing", E1, Warning, "The PodDisruptionBudget selects no pod.", &[]);
static EMPTY: Rule = rule(
    "budget-without-policy",
    E1,
    Warning,
    "The PodDisruptionBudget says neither minAvailable nor maxUnavailable.",
    &["kube-score poddisruptionbudget-has-policy"],
);
static TWICE: Rule = rule(
    "budgets-overlap",
    E5,
    Error,
    "Two PodDisruptionBudgets select the same pods: evictions of those fail with an error.",
    &[],
);
static UNHEALTHY: Rule = rule(
    "budget-keeps-broken-pods",
    E5,
    Note,
    "Pods that run but are not Ready count against the budget: a crash loop blocks a drain.",
    &["KubeLinter pdb-unhealthy-pod-eviction-policy"],
);
static QUORUM: Rule = rule(
    "budget-below-quorum",
    E1,
    Error,
    "The PodDisruptionBudget lets more members go than the quorum can miss.",
    &[],
);

pub(super) static RULES: &[&Rule] = &[&BLOCKS, &TWICE, &QUORUM, &MISSING, &ALLOWS_ALL, &NOTHING, &EMPTY, &UNHEALTHY];

pub(super) fn look(context: &mut Context<'_>) {
    missing(context);
    let model = context.model;
    for (at, budget) in model.budgets.iter().enumerate() {
        let object = &model.objects[budget.object];
        let spec = &object.written["spec"];
        let field = if spec.get("minAvailable").is_some() { "spec.minAvailable" } else { "spec.maxUnavailable" };
        let one = |fields: Value| Some(Fix::patch(object, json!({"spec": fields})));
        if budget.pods.is_empty() {
            let change = "make spec.selector match the labels of the pods";
            context.say(&NOTHING, object, "spec.selector", format!("{} selects no pod", object.shown()), change, None);
            continue;
        }
        if spec.get("minAvailable").is_none() && spec.get("maxUnavailable").is_none() {
            let fix = one(json!({"maxUnavailable": 1}));
            context.say(&EMPTY, object, "spec", format!("{} has no figure", object.shown()), "maxUnavailable: 1", fix);
        } else if budget.minimum >= budget.pods.len() {
            let message = format!("{} keeps {} of {} pods", object.shown(), budget.minimum, budget.pods.len());
            let few = budget.pods.len() == 1;
            let change = if few { "more than one replica, then maxUnavailable: 1" } else { "maxUnavailable: 1" };
            let fix = if few { None } else { one(json!({"minAvailable": null, "maxUnavailable": 1})) };
            context.say(&BLOCKS, object, field, message, change, fix);
        } else if budget.minimum == 0 && budget.pods.len() > 1 {
            let message = format!("{} lets all {} pods go", object.shown(), budget.pods.len());
            let fix = one(json!({"minAvailable": null, "maxUnavailable": 1}));
            context.say(&ALLOWS_ALL, object, field, message, "maxUnavailable: 1", fix);
        }
        if spec["unhealthyPodEvictionPolicy"] != "AlwaysAllow" {
            let message = format!("{} guards pods that are not Ready, too", object.shown());
            let fix = one(json!({"unhealthyPodEvictionPolicy": "AlwaysAllow"}));
            context.say(&UNHEALTHY, object, "spec", message, "unhealthyPodEvictionPolicy: AlwaysAllow", fix);
        }
        for other in &model.budgets[..at] {
            if budget.pods.iter().any(|pod| other.pods.contains(pod)) {
                let name = model.objects[other.object].name();
                let message = format!("{} and {name} select the same pods", object.shown());
                context.say(&TWICE, object, "spec.selector", message, "remove one of the two", None);
            }
        }
        quorum(context, budget);
    }
}

fn missing(context: &mut Context<'_>) {
    let all: Vec<_> = context.serving().collect();
    for (at, workload, object) in all {
        let counts = matches!(workload.kind, Kind::Deployment | Kind::StatefulSet | Kind::ReplicaSet);
        let guarded =
            context.model.budgets.iter().any(|budget| workload.pods.iter().any(|pod| budget.pods.contains(pod)));
        if !counts || guarded || workload.replicas < 2 || !(context.is_served(at) || workload.quorum.is_some()) {
            continue;
        }
        let content = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": {"name": workload.name, "namespace": workload.namespace},
            "spec": {"maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": object.value["spec"]["selector"]}});
        let message = format!("no PodDisruptionBudget guards the {} replicas of {}", workload.replicas, workload.key());
        let change = "a PodDisruptionBudget with maxUnavailable: 1";
        context.say(&MISSING, object, "metadata.name", message, change, Some(Fix { content, is_new: true }));
    }
}

fn quorum(context: &mut Context<'_>, budget: &crate::model::BudgetModel) {
    let model = context.model;
    for workload in &model.workloads {
        let Some(quorum) = &workload.quorum else { continue };
        let members = workload.pods.len();
        let guarded = workload.pods.iter().filter(|pod| budget.pods.contains(pod)).count();
        let needed = quorum.rule.needed(members);
        if guarded == members && members > 1 && budget.minimum < needed && needed < members {
            let object = &model.objects[budget.object];
            let message =
                format!("{} keeps {} of {members} members; the quorum needs {needed}", object.shown(), budget.minimum);
            let fix = Fix::patch(object, json!({"spec": {"minAvailable": null, "maxUnavailable": members - needed}}));
            let change = format!("maxUnavailable: {}", members - needed);
            context.say(&QUORUM, object, "spec", message, &change, Some(fix));
        }
    }
}
