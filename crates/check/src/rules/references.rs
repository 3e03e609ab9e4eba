//! References that lead nowhere, and jobs that end nowhere.

use mainstay_model::meta::list_at;
use serde_json::{Value, json};

use super::{Context, rule};
use crate::finding::Element::{E1, E5};
use crate::finding::Severity::{Error, Note};
use crate::finding::{Fix, Rule};
use crate::model::dependency;

static NO_PODS: Rule = rule(
    "service-selects-nothing",
    E1,
    Error,
    "No pod stands behind the Service.",
    &["kube-score service-targets-pod", "KubeLinter dangling-service"],
);
static NO_PORT: Rule = rule(
    "service-port-missing",
    E1,
    Error,
    "The Service leads to a port that its pods do not name.",
    &["KubeLinter invalid-target-ports"],
);
static NO_SERVICE: Rule = rule(
    "route-without-service",
    E1,
    Error,
    "An Ingress or route leads to a Service that is not there.",
    &["kube-score ingress-targets-service", "KubeLinter dangling-ingress"],
);
static NO_DEADLINE: Rule = rule(
    "cronjob-without-deadline",
    E5,
    Note,
    "Without startingDeadlineSeconds a CronJob that misses 100 starts is never started again.",
    &["kube-score cronjob-has-deadline"],
);
static SELECTOR: Rule = rule(
    "selector-mismatch",
    E1,
    Error,
    "The selector does not select the pods of its own template.",
    &[
        "KubeLinter mismatching-selector",
        "kube-score deployment-pod-selector-labels-match-template-metadata-labels",
        "kube-score statefulset-pod-selector-labels-match-template-metadata-labels",
    ],
);

pub(super) static RULES: &[&Rule] = &[&NO_PODS, &NO_PORT, &NO_SERVICE, &SELECTOR, &NO_DEADLINE];

pub(super) fn look(context: &mut Context<'_>) {
    let model = context.model;
    for (at, object) in model.objects.iter().enumerate() {
        match object.kind() {
            "Service" => service(context, at),
            "CronJob" if object.written["spec"].get("startingDeadlineSeconds").is_none() => {
                let fix = Some(Fix::patch(object, json!({"spec": {"startingDeadlineSeconds": 300}})));
                let message = format!("{} has no startingDeadlineSeconds", object.shown());
                context.say(&NO_DEADLINE, object, "spec", message, "startingDeadlineSeconds: 300", fix);
            }
            _ => {}
        }
        for (service, path) in dependency::backends(object) {
            let there = |other: &crate::manifest::Object| {
                other.kind() == "Service" && format!("{}/{}", other.namespace(), other.name()) == service
            };
            if !model.objects.iter().any(there) {
                let message = format!("{} leads to Service {service}, which is not there", object.shown());
                context.say(&NO_SERVICE, object, &path, message, "name a Service that is there", None);
            }
        }
    }
    let all: Vec<_> = context.serving().collect();
    for (_, workload, object) in all {
        let selector = &object.written["spec"]["selector"]["matchLabels"];
        let labels = workload.labels();
        let misses = |(key, value): (&String, &Value)| labels.get(key).map(String::as_str) != value.as_str();
        if selector.as_object().is_some_and(|wanted| wanted.iter().any(misses)) {
            let message = format!("the selector of {} does not match its template's labels", workload.key());
            context.say(&SELECTOR, object, "spec.selector", message, "the same labels in both", None);
        }
    }
}

fn service(context: &mut Context<'_>, at: usize) {
    let model = context.model;
    let object = &model.objects[at];
    let selector = &object.written["spec"]["selector"];
    if selector.as_object().is_none_or(serde_json::Map::is_empty) {
        return;
    }
    let Some(service) = model.services.iter().find(|service| service.is_service && service.object == at) else {
        let message = format!("{} selects no pod", object.shown());
        context.say(&NO_PODS, object, "spec.selector", message, "the labels of the pods it is for", None);
        return;
    };
    for (index, port) in list_at(&object.written, "spec.ports").iter().enumerate() {
        let Some(name) = port["targetPort"].as_str().filter(|name| name.parse::<u16>().is_err()) else { continue };
        let declares = |workload: &usize| {
            let containers = list_at(model.workloads[*workload].spec(), "containers").iter();
            containers.flat_map(|container| list_at(container, "ports")).any(|port| port["name"] == name)
        };
        if !service.workloads.iter().all(declares) {
            let message = format!("{} leads to port {name:?}, which its pods do not declare", object.shown());
            let path = format!("spec.ports[{index}].targetPort");
            context.say(&NO_PORT, object, &path, message, "declare the port by that name in the container", None);
        }
    }
}
