//! Defaults of the controllers' kinds and of claims.

use serde_json::{Value, json};

use super::{each, pod, set, set_at_phase, with};
use crate::meta;

/// A pod template.
pub(super) fn template(template: &mut Value) {
    with(template, "spec", pod::spec);
    pod::requests_from_pod_limits(template);
}

pub(super) fn deployment(deployment: &mut Value) {
    with(deployment, "spec", |spec| {
        set(spec, "replicas", || json!(1));
        set(spec, "revisionHistoryLimit", || json!(10));
        set(spec, "progressDeadlineSeconds", || json!(600));
        set(spec, "strategy", || json!({}));
        with(spec, "strategy", |strategy| {
            set(strategy, "type", || json!("RollingUpdate"));
            if strategy["type"] == "RollingUpdate" {
                set(strategy, "rollingUpdate", || json!({}));
                with(strategy, "rollingUpdate", |rolling| {
                    set(rolling, "maxSurge", || json!("25%"));
                    set(rolling, "maxUnavailable", || json!("25%"));
                });
            }
        });
        with(spec, "template", template);
    });
}

pub(super) fn replica_set(set_object: &mut Value) {
    with(set_object, "spec", |spec| {
        set(spec, "replicas", || json!(1));
        with(spec, "template", template);
    });
}

pub(super) fn stateful_set(object: &mut Value) {
    with(object, "spec", |spec| {
        set(spec, "replicas", || json!(1));
        set(spec, "revisionHistoryLimit", || json!(10));
        set(spec, "podManagementPolicy", || json!("OrderedReady"));
        set(spec, "persistentVolumeClaimRetentionPolicy", || json!({}));
        with(spec, "persistentVolumeClaimRetentionPolicy", |policy| {
            set(policy, "whenDeleted", || json!("Retain"));
            set(policy, "whenScaled", || json!("Retain"));
        });
        set(spec, "updateStrategy", || json!({}));
        with(spec, "updateStrategy", |strategy| {
            set(strategy, "type", || json!("RollingUpdate"));
            if strategy["type"] == "RollingUpdate" {
                set(strategy, "rollingUpdate", || json!({}));
                with(strategy, "rollingUpdate", |rolling| set(rolling, "partition", || json!(0)));
            }
        });
        each(spec, "volumeClaimTemplates", |template| {
            set(template, "apiVersion", || json!("v1"));
            set(template, "kind", || json!("PersistentVolumeClaim"));
            claim(template);
        });
        with(spec, "template", template);
    });
}

pub(super) fn daemon_set(object: &mut Value) {
    with(object, "spec", |spec| {
        set(spec, "revisionHistoryLimit", || json!(10));
        set(spec, "updateStrategy", || json!({}));
        with(spec, "updateStrategy", |strategy| {
            set(strategy, "type", || json!("RollingUpdate"));
            if strategy["type"] == "RollingUpdate" {
                set(strategy, "rollingUpdate", || json!({}));
                with(strategy, "rollingUpdate", |rolling| {
                    set(rolling, "maxUnavailable", || json!(1));
                    set(rolling, "maxSurge", || json!(0));
                });
            }
        });
        with(spec, "template", template);
    });
}

/// A Job's spec; without completions and parallelism it is one pod.
pub(super) fn job_spec(spec: &mut Value) {
    if spec.get("completions").is_none_or(Value::is_null) && spec.get("parallelism").is_none_or(Value::is_null) {
        set(spec, "completions", || json!(1));
    }
    set(spec, "parallelism", || json!(1));
    let by_index = spec.get("backoffLimitPerIndex").is_some_and(|limit| !limit.is_null());
    set(spec, "backoffLimit", || json!(if by_index { i32::MAX } else { 6 }));
    set(spec, "completionMode", || json!("NonIndexed"));
    set(spec, "suspend", || json!(false));
    set(spec, "manualSelector", || json!(false));
    let failure_policy = spec.get("podFailurePolicy").is_some_and(|policy| !policy.is_null());
    set(spec, "podReplacementPolicy", || json!(if failure_policy { "Failed" } else { "TerminatingOrFailed" }));
    with(spec, "template", template);
}

pub(super) fn cron_job(object: &mut Value) {
    with(object, "spec", |spec| {
        set(spec, "concurrencyPolicy", || json!("Allow"));
        set(spec, "suspend", || json!(false));
        set(spec, "successfulJobsHistoryLimit", || json!(3));
        set(spec, "failedJobsHistoryLimit", || json!(1));
        // Jobs made from it get their own defaults when they are created; only the pods' are shown here.
        with(spec, "jobTemplate", |job| {
            with(job, "spec", |spec| with(spec, "template", template));
        });
    });
}

/// A persistent volume claim, of its own or as a template.
pub(super) fn claim(object: &mut Value) {
    with(object, "spec", |spec| {
        set(spec, "volumeMode", || json!("Filesystem"));
        with(spec, "resources", |resources| {
            let limit = meta::str_at(resources, "limits.storage").map(str::to_owned);
            if let Some(limit) = limit.filter(|_| meta::at(resources, "requests.storage").is_none()) {
                meta::set_at(resources, "requests.storage", json!(limit));
            }
        });
    });
    set_at_phase(object, "Pending");
}
