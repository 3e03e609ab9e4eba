//! Probes: none, those that kill when they should not, and those that ask others.

use serde_json::{Value, json};

use super::{Context, containers, patch_spec, rule};
use crate::engine;
use crate::finding::Element::{E4, E5};
use crate::finding::Rule;
use crate::finding::Severity::{Error, Note, Warning};
use crate::manifest::Object;
use crate::model::dependency::Need;
use crate::model::{Kind, Workload};

static NO_READINESS: Rule = rule(
    "no-readiness-probe",
    E5,
    Error,
    "Without a readiness probe requests go to a pod before it can answer, and after it no longer can.",
    &["kube-score pod-probes", "Polaris readinessProbeMissing", "KubeLinter no-readiness-probe"],
);
static NO_LIVENESS: Rule = rule(
    "no-liveness-probe",
    E5,
    Warning,
    "Without a liveness probe a process that hangs is never started again.",
    &["kube-score pod-probes", "Polaris livenessProbeMissing", "KubeLinter no-liveness-probe"],
);
static SAME: Rule = rule(
    "liveness-same-as-readiness",
    E4,
    Warning,
    "Liveness and readiness ask the same: under load a pod is killed when it should only rest.",
    &["kube-score pod-probes-identical"],
);
static ASKS: Rule = rule(
    "liveness-asks-dependency",
    E4,
    Error,
    "The liveness probe asks another service: when that fails, these pods are killed too, again and again.",
    &[],
);
static SHARED: Rule = rule(
    "liveness-may-ask-dependency",
    E4,
    Warning,
    "Liveness uses the endpoint that readiness uses, in a workload that needs others: if it looks at them, their outage kills.",
    &[],
);
static IMPATIENT: Rule =
    rule("liveness-impatient", E4, Warning, "The liveness probe kills after a few slow answers, as under load.", &[]);
static SLOW_START: Rule = rule(
    "liveness-kills-slow-start",
    E5,
    Warning,
    "Without a startup probe the liveness probe may kill a container that is still starting.",
    &[],
);
static OVERLAP: Rule =
    rule("probe-timeout-over-period", E4, Note, "A probe may take longer than the time to the next one.", &[]);
static PORT: Rule = rule(
    "probe-port-missing",
    E5,
    Error,
    "A probe names a port that the container does not declare.",
    &["KubeLinter liveness-port", "KubeLinter readiness-port", "KubeLinter startup-port"],
);

pub(super) static RULES: &[&Rule] =
    &[&ASKS, &NO_READINESS, &PORT, &SHARED, &SAME, &IMPATIENT, &SLOW_START, &NO_LIVENESS, &OVERLAP];

/// Slower than this, killing counts as patient: seconds of failing.
const PATIENT_S: f64 = 10.0;
/// A program that starts within this needs no startup probe.
const START_S: f64 = 10.0;

pub(super) fn look(context: &mut Context<'_>) {
    let all: Vec<_> = context.serving().collect();
    for (at, workload, object) in all {
        let served = context.is_served(at);
        asks(context, at, workload, object);
        for (path, container) in containers(workload) {
            let probe = |name: &str| container.get(name).filter(|probe| probe.is_object());
            let (liveness, readiness) = (probe("livenessProbe"), probe("readinessProbe"));
            let name = container["name"].as_str().unwrap_or_default();
            if readiness.is_none() && served && has_ports(container) {
                let message = format!("container {name} of {} has no readinessProbe", workload.key());
                context.say(
                    &NO_READINESS,
                    object,
                    &path,
                    message,
                    "a readinessProbe on what says that it can answer",
                    None,
                );
            }
            if liveness.is_none() && workload.kind != Kind::Pod {
                let message = format!("container {name} of {} has no livenessProbe", workload.key());
                context.say(
                    &NO_LIVENESS,
                    object,
                    &path,
                    message,
                    "a livenessProbe on the process alone, slower than readiness",
                    None,
                );
            }
            if let Some(liveness) = liveness {
                of_liveness(context, at, workload, object, &path, container, liveness);
            }
            for kind in ["startupProbe", "livenessProbe", "readinessProbe"] {
                if let Some(probe) = probe(kind) {
                    of_each(context, workload, object, &format!("{path}.{kind}"), container, kind, probe);
                }
            }
        }
    }
}

/// The liveness probe of a workload names another service.
fn asks(context: &mut Context<'_>, at: usize, workload: &Workload, object: &Object) {
    let model = context.model;
    for dependency in model.dependencies[at].iter().filter(|dependency| dependency.need == Need::Liveness) {
        let message = format!("the liveness probe of {} asks {}", workload.key(), dependency.service);
        let change = "let liveness look at the process alone; what it needs belongs into readiness, if anywhere";
        context.say(&ASKS, object, &dependency.path, message, change, None);
    }
}

fn of_liveness(
    context: &mut Context<'_>,
    at: usize,
    workload: &Workload,
    object: &Object,
    path: &str,
    container: &Value,
    liveness: &Value,
) {
    let (key, path) = (workload.key(), format!("{path}.livenessProbe"));
    let name = &container["name"];
    let patched = |probe: Value| {
        Some(patch_spec(workload, object, json!({"containers": [{"name": name, "livenessProbe": probe}]})))
    };
    let handler = |probe: &Value| ["httpGet", "tcpSocket", "exec", "grpc"].map(|field| probe[field].clone());
    let readiness = &container["readinessProbe"];
    let asks_same = readiness.is_object() && handler(liveness) == handler(readiness);
    let killed = engine::killed_after_s(container).unwrap_or(f64::INFINITY);
    let threshold = |probe: &Value| {
        probe["periodSeconds"].as_f64().unwrap_or(10.0) * probe["failureThreshold"].as_f64().unwrap_or(3.0)
    };
    if asks_same && threshold(liveness) <= threshold(readiness) {
        let message = format!("liveness of {key} asks what readiness asks, and is no slower");
        let fix = patched(
            json!({"failureThreshold": (threshold(readiness) * 3.0 / liveness["periodSeconds"].as_f64().unwrap_or(10.0)).ceil() as i64}),
        );
        context.say(
            &SAME,
            object,
            &path,
            message,
            "another endpoint, or a failureThreshold several times readiness's",
            fix,
        );
    }
    let needs_others = context.model.dependencies[at].iter().any(|dependency| dependency.need == Need::Hard);
    if asks_same && needs_others && !readiness["httpGet"].is_null() {
        let message = format!("liveness and readiness of {key} share an endpoint, and {key} needs other services");
        context.say(&SHARED, object, &path, message, "an endpoint for liveness that asks nobody, such as /livez", None);
    }
    if killed < PATIENT_S {
        let message = format!("{key} is killed after {killed} s of slow answers");
        let fix = patched(json!({"periodSeconds": 10, "failureThreshold": 3, "timeoutSeconds": 2}));
        context.say(&IMPATIENT, object, &path, message, "periodSeconds × failureThreshold of 10 s or more", fix);
    }
    let delay = liveness["initialDelaySeconds"].as_f64().unwrap_or(0.0);
    let has_startup = container.get("startupProbe").is_some_and(Value::is_object);
    if !has_startup && delay + killed < START_S + 5.0 {
        let message = format!("{key} is killed unless it answers within {} s of its start", delay + killed);
        let mut startup = json!({"periodSeconds": 1, "failureThreshold": 60});
        for field in ["httpGet", "tcpSocket", "exec", "grpc"] {
            if liveness.get(field).is_some() {
                startup[field] = liveness[field].clone();
            }
        }
        let spec = json!({"containers": [{"name": name, "startupProbe": startup}]});
        let fix = Some(patch_spec(workload, object, spec));
        context.say(
            &SLOW_START,
            object,
            &path,
            message,
            "a startupProbe with periodSeconds: 1 and failureThreshold: 60",
            fix,
        );
    }
}

fn of_each(
    context: &mut Context<'_>,
    workload: &Workload,
    object: &Object,
    path: &str,
    container: &Value,
    kind: &str,
    probe: &Value,
) {
    let number = |name: &str, default: f64| probe[name].as_f64().unwrap_or(default);
    if number("timeoutSeconds", 1.0) > number("periodSeconds", 10.0) {
        let message = format!(
            "{kind} of {} may take {} s, and is due every {} s",
            workload.key(),
            probe["timeoutSeconds"],
            probe["periodSeconds"]
        );
        context.say(&OVERLAP, object, path, message, "timeoutSeconds no longer than periodSeconds", None);
    }
    let port = ["httpGet", "tcpSocket"].iter().find_map(|action| probe[action]["port"].as_str());
    if let Some(port) = port.filter(|port| port.parse::<u16>().is_err()) {
        let ports = mainstay_model::meta::list_at(container, "ports");
        if !ports.iter().any(|declared| declared["name"] == port) {
            let message = format!(
                "{kind} of {} asks port {port:?}, which container {} does not declare",
                workload.key(),
                container["name"]
            );
            context.say(
                &PORT,
                object,
                path,
                message,
                "declare the port by that name, or give the probe its number",
                None,
            );
        }
    }
}

fn has_ports(container: &Value) -> bool {
    !mainstay_model::meta::list_at(container, "ports").is_empty()
}
