//! Requests and limits: what keeps one pod from taking another's share.

use serde_json::{Value, json};

use super::{Context, containers, patch_spec, rule};
use crate::finding::Element::{E2, E8};
use crate::finding::Rule;
use crate::finding::Severity::{Note, Warning};

static NO_REQUESTS: Rule = rule(
    "no-requests",
    E8,
    Warning,
    "Without requests the scheduler crowds pods, and nobody knows whether the survivors of a failure carry the load.",
    &[
        "kube-score container-resources",
        "Polaris cpuRequestsMissing",
        "Polaris memoryRequestsMissing",
        "KubeLinter unset-cpu-requirements",
        "KubeLinter unset-memory-requirements",
    ],
);
static NO_LIMIT: Rule = rule(
    "no-memory-limit",
    E2,
    Note,
    "Without a memory limit one leak takes the node, and every pod on it.",
    &["kube-score container-resources", "Polaris memoryLimitsMissing"],
);

pub(super) static RULES: &[&Rule] = &[&NO_REQUESTS, &NO_LIMIT];

pub(super) fn look(context: &mut Context<'_>) {
    let all: Vec<_> = context.serving().collect();
    for (_, workload, object) in all {
        let of_pod = &workload.spec()["resources"];
        for (path, container) in containers(workload) {
            let given = |field: &str, name: &str| {
                !container["resources"][field][name].is_null() || !of_pod[field][name].is_null()
            };
            let (key, name) = (workload.key(), &container["name"]);
            let missing: Vec<&str> = ["cpu", "memory"].into_iter().filter(|name| !given("requests", name)).collect();
            let path = format!("{path}.resources");
            if !missing.is_empty() {
                let message = format!("container {name} of {key} requests no {}", missing.join(" and no "));
                let amounts: serde_json::Map<String, Value> = missing
                    .iter()
                    .map(|name| ((*name).to_owned(), json!(if *name == "cpu" { "100m" } else { "128Mi" })))
                    .collect();
                let spec = json!({"containers": [{"name": name, "resources": {"requests": amounts}}]});
                let fix = Some(patch_spec(workload, object, spec));
                context.say(
                    &NO_REQUESTS,
                    object,
                    &path,
                    message,
                    "requests as measured; 100m and 128Mi to begin with",
                    fix,
                );
            }
            if !given("limits", "memory") {
                let message = format!("container {name} of {key} has no memory limit");
                context.say(&NO_LIMIT, object, &path, message, "limits.memory, above what it was seen to use", None);
            }
        }
    }
}
