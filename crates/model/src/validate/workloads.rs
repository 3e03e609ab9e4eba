//! Rules of the kinds that make pods, and of those that scale and protect them.

use serde_json::{Value, json};

use super::faults::{Faults, get, items, text};
use super::{IMMUTABLE, metadata, pod};
use crate::meta;
use crate::selector::LabelSelector;
use crate::workload;

/// Selector and template of a controller: the selector must choose the template's pods.
fn selector_and_template(faults: &mut Faults, spec: &Value, kind: &str) {
    let selector = get(spec, "selector");
    if let Some(selector) = selector {
        metadata::selector(faults, selector, "spec.selector");
        if LabelSelector::from_object(selector).is_ok_and(|selector| selector.is_everything()) {
            faults.invalid("spec.selector", selector, format!("empty selector is invalid for {kind}"));
        }
    }
    let Some(template) = get(spec, "template") else { return };
    if let Some(Ok(selector)) = selector.map(LabelSelector::from_object)
        && !selector.is_everything()
        && !selector.matches(meta::labels(template))
    {
        let labels = meta::at(template, "metadata.labels").cloned().unwrap_or_else(|| json!({}));
        faults.invalid("spec.template.metadata.labels", &labels, "`selector` does not match template `labels`");
    }
    pod::check_template(faults, template, "spec.template");
}

/// The pods of a controller that replaces them live for ever.
fn lives_for_ever(faults: &mut Faults, spec: &Value) {
    if let Some(policy) = meta::str_at(spec, "template.spec.restartPolicy").filter(|policy| *policy != "Always") {
        faults.not_supported("spec.template.spec.restartPolicy", &json!(policy), &["Always"]);
    }
    if meta::at(spec, "template.spec.activeDeadlineSeconds").is_some() {
        faults.forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        );
    }
}

pub(super) fn deployment(faults: &mut Faults, object: &Value) {
    let Some(spec) = get(object, "spec") else { return faults.required("spec", "") };
    selector_and_template(faults, spec, "deployment");
    lives_for_ever(faults, spec);
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        faults.not_negative(spec, "spec", field);
    }
    let number = |field: &str| get(spec, field).and_then(Value::as_i64);
    if let Some(deadline) = number("progressDeadlineSeconds")
        && deadline <= number("minReadySeconds").unwrap_or(0)
    {
        faults.invalid("spec.progressDeadlineSeconds", &json!(deadline), "must be greater than minReadySeconds");
    }
    let Some(strategy) = get(spec, "strategy") else { return };
    faults.one_of(strategy, "spec.strategy", "type", &["Recreate", "RollingUpdate"]);
    let Some(rolling) = get(strategy, "rollingUpdate") else { return };
    let path = "spec.strategy.rollingUpdate";
    if strategy["type"] == "Recreate" {
        return faults.forbidden(path, "may not be specified when strategy `type` is 'Recreate'");
    }
    rolling_update(faults, rolling, path);
}

fn rolling_update(faults: &mut Faults, rolling: &Value, path: &str) {
    for field in ["maxSurge", "maxUnavailable"] {
        faults.int_or_percent(rolling, path, field);
    }
    faults.at_most_all(rolling, path, "maxUnavailable");
    let zero =
        |field: &str| get(rolling, field).is_none_or(|value| workload::int_or_percent(value, 100, true) == Some(0));
    if zero("maxSurge") && zero("maxUnavailable") {
        faults.invalid(
            format!("{path}.maxUnavailable"),
            &rolling["maxUnavailable"],
            "may not be 0 when `maxSurge` is 0",
        );
    }
}

pub(super) fn replica_set(faults: &mut Faults, object: &Value) {
    let Some(spec) = get(object, "spec") else { return faults.required("spec", "") };
    selector_and_template(faults, spec, "replicaset");
    if get(spec, "template").is_none() {
        faults.required("spec.template", "");
    }
    lives_for_ever(faults, spec);
    faults.not_negative(spec, "spec", "replicas");
    faults.not_negative(spec, "spec", "minReadySeconds");
}

/// Its selector is a plain map of labels.
pub(super) fn replication_controller(faults: &mut Faults, object: &Value) {
    let Some(spec) = get(object, "spec") else { return faults.required("spec", "") };
    let selector = &spec["selector"];
    if selector.as_object().is_none_or(serde_json::Map::is_empty) {
        faults.required("spec.selector", "");
    }
    faults.not_negative(spec, "spec", "replicas");
    faults.not_negative(spec, "spec", "minReadySeconds");
    let Some(template) = get(spec, "template") else { return faults.required("spec.template", "") };
    let labels = &template["metadata"]["labels"];
    if selector.as_object().into_iter().flatten().any(|(key, value)| labels.get(key) != Some(value)) {
        faults.invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`");
    }
    pod::check_template(faults, template, "spec.template");
    lives_for_ever(faults, spec);
}

pub(super) fn stateful_set(faults: &mut Faults, object: &Value) {
    let Some(spec) = get(object, "spec") else { return faults.required("spec", "") };
    selector_and_template(faults, &with_claims(spec), "statefulset");
    lives_for_ever(faults, spec);
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        faults.not_negative(spec, "spec", field);
    }
    faults.one_of(spec, "spec", "podManagementPolicy", &["OrderedReady", "Parallel"]);
    if let Some(strategy) = get(spec, "updateStrategy") {
        faults.one_of(strategy, "spec.updateStrategy", "type", &["OnDelete", "RollingUpdate"]);
        if let Some(rolling) = get(strategy, "rollingUpdate") {
            faults.not_negative(rolling, "spec.updateStrategy.rollingUpdate", "partition");
            faults.int_or_percent(rolling, "spec.updateStrategy.rollingUpdate", "maxUnavailable");
        }
    }
    for (i, claim) in items(spec, "volumeClaimTemplates").iter().enumerate() {
        if meta::name(claim).is_empty() {
            faults.required(format!("spec.volumeClaimTemplates[{i}].metadata.name"), "");
        }
    }
}

/// The spec as its pods will have it: each claim template is a volume of that name, in place of the template's own.
fn with_claims(spec: &Value) -> Value {
    let mut spec = spec.clone();
    let claims: Vec<Value> = items(&spec, "volumeClaimTemplates")
        .iter()
        .map(meta::name)
        .filter(|name| !name.is_empty())
        .map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}))
        .collect();
    if let Some(pod) = spec.pointer_mut("/template/spec").and_then(Value::as_object_mut)
        && let Some(volumes) = pod.entry("volumes").or_insert_with(|| json!([])).as_array_mut()
    {
        volumes.retain(|volume| claims.iter().all(|claim| claim["name"] != volume["name"]));
        volumes.extend(claims);
    }
    spec
}

pub(super) fn stateful_set_update(faults: &mut Faults, old: &Value, new: &Value) {
    const MAY_CHANGE: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let fixed = |object: &Value| {
        let mut spec = object["spec"].as_object().cloned().unwrap_or_default();
        spec.retain(|key, value| !value.is_null() && !MAY_CHANGE.contains(&key.as_str()));
        for claim in spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(claim) = claim.as_object_mut() {
                claim.remove("status");
            }
        }
        spec
    };
    if fixed(old) != fixed(new) {
        faults.forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
}

pub(super) fn daemon_set(faults: &mut Faults, object: &Value) {
    let Some(spec) = get(object, "spec") else { return faults.required("spec", "") };
    selector_and_template(faults, spec, "daemonset");
    lives_for_ever(faults, spec);
    faults.not_negative(spec, "spec", "minReadySeconds");
    faults.not_negative(spec, "spec", "revisionHistoryLimit");
    if let Some(strategy) = get(spec, "updateStrategy") {
        faults.one_of(strategy, "spec.updateStrategy", "type", &["OnDelete", "RollingUpdate"]);
        if let Some(rolling) = get(strategy, "rollingUpdate") {
            rolling_update(faults, rolling, "spec.updateStrategy.rollingUpdate");
        }
    }
}

pub(super) fn job(faults: &mut Faults, object: &Value) {
    let Some(spec) = get(object, "spec") else { return faults.required("spec", "") };
    // The server generates the selector and the template's labels; when they are there they must agree.
    job_spec(faults, spec, "spec");
    if let (Some(selector), Some(template)) = (get(spec, "selector"), get(spec, "template")) {
        metadata::selector(faults, selector, "spec.selector");
        let selector = LabelSelector::from_object(selector);
        if selector.is_ok_and(|selector| !selector.matches(meta::labels(template))) {
            let labels = meta::at(template, "metadata.labels").cloned().unwrap_or_else(|| json!({}));
            faults.invalid("spec.template.metadata.labels", &labels, "`selector` does not match template `labels`");
        }
    }
}

fn job_spec(faults: &mut Faults, spec: &Value, path: &str) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "maxFailedIndexes",
    ] {
        faults.not_negative(spec, path, field);
    }
    faults.one_of(spec, path, "completionMode", &["Indexed", "NonIndexed"]);
    faults.one_of(spec, path, "podReplacementPolicy", &["Failed", "TerminatingOrFailed"]);
    if text(spec, "completionMode") == Some("Indexed") && get(spec, "completions").is_none() {
        faults.required(format!("{path}.completions"), "when completion mode is Indexed");
    }
    let Some(template) = get(spec, "template") else { return };
    pod::check_template(faults, template, &format!("{path}.template"));
    if !matches!(meta::str_at(template, "spec.restartPolicy"), Some("OnFailure" | "Never")) {
        faults.required(format!("{path}.template.spec.restartPolicy"), "valid values: \"OnFailure\", \"Never\"");
    }
}

pub(super) fn job_update(faults: &mut Faults, old: &Value, new: &Value) {
    let indexed = meta::str_at(old, "spec.completionMode") == Some("Indexed");
    if !indexed {
        faults.unchanged(old, new, "spec.completions", IMMUTABLE);
    }
    faults.unchanged(old, new, "spec.selector", IMMUTABLE);
    faults.unchanged(old, new, "spec.completionMode", IMMUTABLE);
    // The template of a job that has not started may still be changed.
    let started = meta::at(old, "status.startTime").is_some() || !meta::bool_at(old, "spec.suspend");
    if started {
        faults.unchanged(old, new, "spec.template", IMMUTABLE);
    }
}

pub(super) fn cron_job(faults: &mut Faults, object: &Value) {
    let Some(spec) = get(object, "spec") else { return faults.required("spec", "") };
    match text(spec, "schedule") {
        None => faults.required("spec.schedule", ""),
        Some(schedule) if schedule.contains("TZ") => {
            faults.invalid(
                "spec.schedule",
                &json!(schedule),
                "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            );
        }
        Some(schedule) => {
            if let Err(reason) = crate::cron::Schedule::parse(schedule) {
                faults.invalid("spec.schedule", &json!(schedule), reason);
            }
        }
    }
    for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        faults.not_negative(spec, "spec", field);
    }
    faults.one_of(spec, "spec", "concurrencyPolicy", &["Allow", "Forbid", "Replace"]);
    if let Some(job) = get(spec, "jobTemplate").and_then(|template| get(template, "spec")) {
        job_spec(faults, job, "spec.jobTemplate.spec");
        if get(job, "manualSelector").is_some_and(|manual| *manual == true) {
            faults.not_supported("spec.jobTemplate.spec.manualSelector", &json!(true), &["nil", "false"]);
        }
    }
}

pub(super) fn autoscaler(faults: &mut Faults, object: &Value) {
    let Some(spec) = get(object, "spec") else { return faults.required("spec", "") };
    let number = |field: &str| get(spec, field).and_then(Value::as_i64);
    if number("minReplicas").is_some_and(|least| least < 1) {
        faults.invalid("spec.minReplicas", &spec["minReplicas"], "must be greater than or equal to 1");
    }
    if let Some(most) = number("maxReplicas") {
        if most < 1 {
            faults.invalid("spec.maxReplicas", &json!(most), "must be greater than 0");
        } else if number("minReplicas").is_some_and(|least| most < least) {
            faults.invalid("spec.maxReplicas", &json!(most), "must be greater than or equal to `minReplicas`");
        }
    }
    if let Some(target) = get(spec, "scaleTargetRef") {
        for field in ["kind", "name"] {
            if text(target, field).is_none() {
                faults.required(format!("spec.scaleTargetRef.{field}"), "");
            }
        }
    }
    for (i, metric) in items(spec, "metrics").iter().enumerate() {
        let path = format!("spec.metrics[{i}]");
        faults.one_of(metric, &path, "type", &["ContainerResource", "External", "Object", "Pods", "Resource"]);
    }
}

pub(super) fn disruption_budget(faults: &mut Faults, object: &Value) {
    let Some(spec) = get(object, "spec") else { return };
    for field in ["minAvailable", "maxUnavailable"] {
        faults.int_or_percent(spec, "spec", field);
        faults.at_most_all(spec, "spec", field);
    }
    if get(spec, "minAvailable").is_some() && get(spec, "maxUnavailable").is_some() {
        faults.invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set");
    }
    faults.one_of(spec, "spec", "unhealthyPodEvictionPolicy", &["AlwaysAllow", "IfHealthyBudget"]);
    if let Some(selector) = get(spec, "selector") {
        metadata::selector(faults, selector, "spec.selector");
    }
}
