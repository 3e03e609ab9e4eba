//! A Job's pods: how they are made, how each has ended, and how long the next must wait after failures.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};

use crate::object::{annotation, controller_reference, is_terminating, name, namespace, phase};

/// Holds a pod's result until it is counted.
pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often its index had failed before this pod.
pub(super) const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Wait before a pod that follows one failure; it doubles with each further one in a row.
const FIRST_WAIT: SignedDuration = SignedDuration::from_secs(10);
const LONGEST_WAIT: SignedDuration = SignedDuration::from_secs(600);

/// How a pod has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Succeeded,
    Failed,
}

pub(super) fn is_indexed(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.completion_mode.as_deref()) == Some("Indexed")
}

/// Whether a successor may start only when its predecessor has ended, not already when its end has begun.
pub(super) fn replaces_ended_only(job: &Job) -> bool {
    let spec = job.spec.as_ref();
    match spec.and_then(|spec| spec.pod_replacement_policy.as_deref()) {
        Some(policy) => policy == "Failed",
        None => spec.is_some_and(|spec| spec.pod_failure_policy.is_some()),
    }
}

/// How the pod has ended, if it has. One that is being deleted has failed, at once or, if successors wait for it, when
/// nothing of it runs any more.
pub(super) fn end_of(job: &Job, pod: &Pod) -> Option<End> {
    let stopped = pod.metadata.deletion_grace_period_seconds == Some(0);
    match phase(pod) {
        "Succeeded" => Some(End::Succeeded),
        "Failed" => Some(End::Failed),
        _ if is_terminating(pod) && (stopped || !replaces_ended_only(job)) => Some(End::Failed),
        _ => None,
    }
}

pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|own| own == FINALIZER)
}

/// The completion index of a pod, if it is one of the Job's.
pub(super) fn index_of(job: &Job, pod: &Pod) -> Option<i32> {
    let index: i32 = annotation(pod, INDEX)?.parse().ok()?;
    let completions = job.spec.as_ref()?.completions?;
    (0..completions).contains(&index).then_some(index)
}

/// How often the pod's index had failed before it.
pub(super) fn failures_before(pod: &Pod) -> i32 {
    annotation(pod, INDEX_FAILURES).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A new pod; for an indexed Job with its index and, when failures are counted per index, those so far.
pub(super) fn new(job: &Job, index: Option<i32>, index_failures: Option<i32>) -> Pod {
    let template = job.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut metadata = template.metadata.unwrap_or_default();
    metadata.name = None;
    metadata.namespace = Some(namespace(job).to_owned());
    metadata.owner_references = Some(vec![controller_reference(job)]);
    metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
    let mut spec = template.spec.unwrap_or_default();
    metadata.generate_name = Some(format!("{}-", name(job)));
    if let Some(index) = index {
        metadata.generate_name = Some(format!("{}-{index}-", name(job)));
        metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
        metadata.annotations.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
        spec.hostname = Some(format!("{}-{index}", name(job)));
        let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
        for env in containers.map(|container| container.env.get_or_insert_default()) {
            if env.iter().all(|variable| variable.name != "JOB_COMPLETION_INDEX") {
                env.push(index_variable());
            }
        }
    }
    if let Some(failures) = index_failures {
        metadata.annotations.get_or_insert_default().insert(INDEX_FAILURES.to_owned(), failures.to_string());
    }
    Pod { metadata, spec: Some(spec), status: None }
}

fn index_variable() -> EnvVar {
    let field = ObjectFieldSelector { api_version: None, field_path: format!("metadata.annotations['{INDEX}']") };
    let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    EnvVar { name: "JOB_COMPLETION_INDEX".to_owned(), value_from: Some(source), ..EnvVar::default() }
}

/// When a pod ended, as well as can be told from it.
pub(super) fn ended_at(pod: &Pod) -> Timestamp {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
    let ends =
        containers.filter_map(|container| Some(container.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0));
    let deleted = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    let transition = || {
        let all = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        all.filter_map(|condition| Some(condition.last_transition_time.as_ref()?.0)).max()
    };
    ends.max().or(deleted).or_else(transition).unwrap_or_else(|| crate::object::created(pod))
}

/// How long the next pod has to wait after the failures since the last success, given all ended pods (of one index).
pub(super) fn backoff<'a>(job: &Job, pods: impl Iterator<Item = &'a Pod>, now: Timestamp) -> Duration {
    let mut ends: Vec<(Timestamp, End)> = pods.filter_map(|pod| Some((ended_at(pod), end_of(job, pod)?))).collect();
    // Of two ends in the same second the failure counts as the later.
    ends.sort_by_key(|(at, end)| (*at, *end == End::Failed));
    let failures = ends.iter().rev().take_while(|(_, end)| *end == End::Failed).count();
    let Some((last, _)) = ends.last().filter(|_| failures > 0) else { return Duration::ZERO };
    let factor = 1 << (failures - 1).min(10);
    let wait = FIRST_WAIT.checked_mul(factor).map_or(LONGEST_WAIT, |wait| wait.min(LONGEST_WAIT));
    // A node whose clock is ahead must not hold the next pod up for longer than the wait.
    Duration::try_from((*last + wait).duration_since(now).min(wait)).unwrap_or_default()
}
