//! Releases and ends of pods: strategies that stop all, grace that is too short, images that are not what they were.

use mainstay_model::meta::{i64_at, list_at};
use mainstay_model::workload::rolling_limits;
use serde_json::{Value, json};

use super::{Context, containers, patch_spec, rule};
use crate::finding::Element::{E1, E5};
use crate::finding::Severity::{Error, Note, Warning};
use crate::finding::{Fix, Rule};
use crate::manifest::Object;
use crate::model::{Kind, Workload};

static RECREATE: Rule = rule(
    "recreate-strategy",
    E1,
    Error,
    "Recreate stops every pod before it starts a new one: each release is an outage.",
    &["kube-score deployment-strategy", "KubeLinter no-rolling-update-strategy"],
);
static STOPS_ALL: Rule = rule(
    "update-stops-all",
    E1,
    Error,
    "A rolling update may stop every pod at once: maxUnavailable is as large as replicas.",
    &[],
);
static ON_DELETE: Rule =
    rule("update-on-delete", E5, Note, "OnDelete: new versions reach pods only when somebody deletes them.", &[]);
static SHORT_GRACE: Rule = rule(
    "grace-shorter-than-prestop",
    E1,
    Error,
    "The preStop hook takes the whole grace period: the program is killed before it can finish its requests.",
    &[],
);
static NO_PRESTOP: Rule =
    rule("no-prestop", E1, Note, "Without a preStop sleep a pod may stop while others still send it requests.", &[]);
static LATEST: Rule = rule(
    "image-tag-latest",
    E5,
    Warning,
    "The image has no fixed version: a replacement may run another than its siblings, and there is nothing to go back to.",
    &["kube-score container-image-tag", "Polaris tagNotSpecified", "KubeLinter latest-tag"],
);
static PULL: Rule = rule(
    "image-pull-always",
    E5,
    Note,
    "Every start asks the registry, and while that is away nothing heals; kube-score and Polaris ask for this, for other reasons.",
    &[],
);
static PRIORITY: Rule = rule(
    "no-priority",
    E5,
    Note,
    "Without a priority, a Service's pods make no room among others when nodes are lost.",
    &["Polaris priorityClassNotSet", "KubeLinter priority-class-name"],
);

pub(super) static RULES: &[&Rule] =
    &[&RECREATE, &STOPS_ALL, &SHORT_GRACE, &LATEST, &ON_DELETE, &NO_PRESTOP, &PULL, &PRIORITY];

/// The image that every node has.
const HOST_IMAGE: &str = "mainstay.dev/host";

pub(super) fn look(context: &mut Context<'_>) {
    let all: Vec<_> = context.serving().collect();
    for (at, workload, object) in all {
        let served = context.is_served(at);
        strategy(context, workload, object);
        grace(context, workload, object, served);
        images(context, workload, object);
        if served && workload.spec()["priorityClassName"].as_str().unwrap_or_default().is_empty() {
            let message = format!("the pods of {} have no priority class", workload.key());
            context.say(&PRIORITY, object, &workload.path(""), message, "a PriorityClass, and priorityClassName", None);
        }
    }
}

fn strategy(context: &mut Context<'_>, workload: &Workload, object: &Object) {
    let key = workload.key();
    match workload.kind {
        // One exclusive volume cannot be in two pods: there it is the only way.
        Kind::Deployment
            if object.value["spec"]["strategy"]["type"] == "Recreate"
                && workload.pods.iter().all(|pod| context.model.pods[*pod].volumes.is_empty()) =>
        {
            let rolling = json!({"$retainKeys": ["type"], "type": "RollingUpdate"});
            let fix = Fix::patch(object, json!({"spec": {"strategy": rolling}}));
            let message = format!("{key} has strategy Recreate");
            context.say(&RECREATE, object, "spec.strategy.type", message, "type: RollingUpdate", Some(fix));
        }
        Kind::Deployment if object.value["spec"]["strategy"]["type"] == "Recreate" => {}
        Kind::Deployment => {
            let limits = rolling_limits(&object.value);
            let replicas = i64_at(&object.value, "spec.replicas").unwrap_or(1);
            if replicas > 1 && limits.max_unavailable >= replicas {
                let rolling = json!({"maxUnavailable": 0, "maxSurge": 1});
                let fix = Fix::patch(object, json!({"spec": {"strategy": {"rollingUpdate": rolling}}}));
                let message = format!("a rolling update of {key} may stop all {replicas} pods at once");
                context.say(&STOPS_ALL, object, "spec.strategy", message, "maxUnavailable: 0, maxSurge: 1", Some(fix));
            }
        }
        Kind::StatefulSet | Kind::DaemonSet if object.value["spec"]["updateStrategy"]["type"] == "OnDelete" => {
            let message = format!("{key} has updateStrategy OnDelete");
            context.say(&ON_DELETE, object, "spec.updateStrategy.type", message, "type: RollingUpdate", None);
        }
        _ => {}
    }
}

/// Seconds a hook surely takes, as far as it says: a sleep action, or the command `sleep 5`.
fn hook_s(hook: &Value) -> Option<f64> {
    if let Some(seconds) = hook["sleep"]["seconds"].as_f64() {
        return Some(seconds);
    }
    let words = list_at(hook, "exec.command").iter().filter_map(Value::as_str).flat_map(str::split_whitespace);
    let words: Vec<&str> = words.map(|word| word.trim_matches([';', '"', '\'', '&'])).collect();
    let sleep = words.windows(2).find(|pair| pair[0].ends_with("sleep"))?;
    sleep[1].trim_end_matches('s').parse().ok()
}

fn grace(context: &mut Context<'_>, workload: &Workload, object: &Object, served: bool) {
    let grace = workload.spec()["terminationGracePeriodSeconds"].as_f64().unwrap_or(30.0);
    for (path, container) in containers(workload) {
        let hook = &container["lifecycle"]["preStop"];
        let name = &container["name"];
        let path = format!("{path}.lifecycle.preStop");
        if let Some(seconds) = hook_s(hook).filter(|seconds| *seconds >= grace) {
            let message = format!("preStop of container {name} of {} takes {seconds} s of {grace} s", workload.key());
            let wanted = (seconds + 30.0) as i64;
            let fix = patch_spec(workload, object, json!({"terminationGracePeriodSeconds": wanted}));
            let change = format!("terminationGracePeriodSeconds: {wanted}");
            context.say(&SHORT_GRACE, object, &path, message, &change, Some(fix));
        }
        let serves = served && !list_at(container, "ports").is_empty();
        if serves && hook.is_null() && workload.replicas > 1 {
            let message = format!("container {name} of {} has no preStop hook", workload.key());
            let spec = json!({"containers": [{"name": name, "lifecycle": {"preStop": {"sleep": {"seconds": 2}}}}]});
            let fix = Some(patch_spec(workload, object, spec));
            context.say(&NO_PRESTOP, object, &path, message, "lifecycle.preStop.sleep.seconds: 2", fix);
        }
    }
}

fn images(context: &mut Context<'_>, workload: &Workload, object: &Object) {
    for (path, container) in containers(workload) {
        let image = container["image"].as_str().unwrap_or_default();
        let last = image.rsplit('/').next().unwrap_or(image);
        if image == HOST_IMAGE || image.is_empty() {
            continue;
        }
        let is_fixed =
            last.contains('@') || last.split_once(':').is_some_and(|(_, tag)| tag != "latest" && !tag.is_empty());
        let path = format!("{path}.image");
        if !is_fixed {
            let message = format!("{} runs image {image}", workload.key());
            context.say(&LATEST, object, &path, message, "a tag that stays the same, or a digest", None);
        } else if container["imagePullPolicy"] == "Always" {
            let message = format!("{} pulls {image} at every start", workload.key());
            let spec = json!({"containers": [{"name": container["name"], "imagePullPolicy": "IfNotPresent"}]});
            let fix = Some(patch_spec(workload, object, spec));
            context.say(&PULL, object, &path, message, "imagePullPolicy: IfNotPresent", fix);
        }
    }
}
