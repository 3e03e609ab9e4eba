//! Enough copies, apart from each other.

use mainstay_model::meta::list_at;
use mainstay_model::selector::LabelSelector;
use serde_json::{Value, json};

use super::{Context, patch_spec, rule};
use crate::finding::Element::{E1, E5};
use crate::finding::Severity::{Error, Warning};
use crate::finding::{Fix, Rule};
use crate::model::{Kind, Workload};
use crate::topology::{HOSTNAME, ZONE};

static SINGLE: Rule = rule(
    "single-replica",
    E1,
    Error,
    "There is one pod: while it is away nobody answers.",
    &["kube-score deployment-replicas", "Polaris deploymentMissingReplicas", "KubeLinter minimum-three-replicas"],
);
static BARE: Rule = rule("bare-pod", E5, Error, "A Pod without a controller is not replaced when its node dies.", &[]);
static NO_SPREAD: Rule = rule(
    "no-spread",
    E1,
    Warning,
    "Nothing keeps the replicas apart: they may share a node or a zone.",
    &[
        "kube-score deployment-has-host-podantiaffinity",
        "kube-score statefulset-has-host-podantiaffinity",
        "kube-score pod-topology-spread-constraints",
        "Polaris topologySpreadConstraint",
        "KubeLinter no-anti-affinity",
    ],
);
static SPREAD_MISSES: Rule = rule(
    "spread-selects-others",
    E1,
    Warning,
    "A spread constraint or anti-affinity does not select the workload's own pods, so it keeps nothing apart.",
    &[],
);
static STAYS: Rule = rule(
    "tolerates-dead-node",
    E5,
    Warning,
    "The pods tolerate a dead node for long, and so are not replaced for as long.",
    &[],
);

pub(super) static RULES: &[&Rule] = &[&SINGLE, &BARE, &NO_SPREAD, &SPREAD_MISSES, &STAYS];

pub(super) fn look(context: &mut Context<'_>) {
    let all: Vec<_> = context.serving().collect();
    for (at, workload, object) in all {
        match workload.kind {
            Kind::Pod if !workload.is_replaced => {
                let message = format!("{} is a Pod of its own", workload.key());
                context.say(
                    &BARE,
                    object,
                    "kind",
                    message,
                    "make it a Deployment (or a StatefulSet, if it keeps data)",
                    None,
                );
                continue;
            }
            Kind::DaemonSet | Kind::Pod => continue,
            _ => {}
        }
        if workload.replicas == 1 {
            let what = if context.is_served(at) { "is behind a Service" } else { "has one pod" };
            let fix = workload.known.is_none().then(|| Fix::patch(object, json!({"spec": {"replicas": 3}})));
            let change = match workload.known {
                Some(known) => format!("run {} with members that replicate", known.name),
                None => "replicas: 3, or 2 where two zones are all there is".to_owned(),
            };
            let path = if object.written["spec"].get("replicas").is_some() { "spec.replicas" } else { "spec" };
            context.say(&SINGLE, object, path, format!("{} {what}, with replicas: 1", workload.key()), &change, fix);
        }
        if workload.replicas > 1 {
            spread(context, workload, object);
        }
        if let Some(stay) = workload.stay_s.filter(|stay| *stay > context.model.engine.toleration_s && *stay > 30.0) {
            let message = format!("the pods of {} stay on a dead node for {stay} s", workload.key());
            context.say(&STAYS, object, &workload.path("tolerations"), message, "tolerationSeconds: 30 or less", None);
        } else if workload.stay_s.is_none() {
            let message = format!("the pods of {} stay on a dead node for ever", workload.key());
            context.say(
                &STAYS,
                object,
                &workload.path("tolerations"),
                message,
                "give the toleration tolerationSeconds",
                None,
            );
        }
    }
}

fn spread(context: &mut Context<'_>, workload: &Workload, object: &crate::manifest::Object) {
    let spec = workload.spec();
    let labels = workload.template["metadata"]["labels"].as_object();
    let is_apart = |key: &Value| key == ZONE || key == HOSTNAME;
    let constraints = list_at(spec, "topologySpreadConstraints");
    let required = list_at(spec, "affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution");
    let preferred = list_at(spec, "affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution");
    let terms = required.iter().chain(preferred.iter().map(|term| &term["podAffinityTerm"]));
    let all: Vec<&Value> = constraints.iter().chain(terms).filter(|one| is_apart(&one["topologyKey"])).collect();
    let selects = |one: &&&Value| {
        LabelSelector::from_object(&one["labelSelector"])
            .is_ok_and(|selector| !one["labelSelector"].is_null() && selector.matches(labels))
    };
    let own = json!({"matchLabels": object.value["spec"]["selector"]["matchLabels"]});
    let wanted = json!({"topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": own},
        {"maxSkew": 1, "topologyKey": HOSTNAME, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": own}]});
    let change = "topologySpreadConstraints over topology.kubernetes.io/zone and kubernetes.io/hostname, ScheduleAnyway, selecting its own pods";
    let fix = || Some(patch_spec(workload, object, wanted.clone()));
    if all.is_empty() {
        let message =
            format!("{} has {} replicas and no constraint over nodes or zones", workload.key(), workload.replicas);
        context.say(&NO_SPREAD, object, &workload.path(""), message, change, fix());
    } else if !all.iter().any(|one| selects(&one)) {
        let path = if constraints.is_empty() { "affinity.podAntiAffinity" } else { "topologySpreadConstraints" };
        let message = format!("no constraint of {} selects its own pods", workload.key());
        context.say(&SPREAD_MISSES, object, &workload.path(path), message, change, fix());
    }
}
