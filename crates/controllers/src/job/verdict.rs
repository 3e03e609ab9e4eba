//! Whether a Job has succeeded or failed, and why.
//!
//! A Job ends in two steps: `SuccessCriteriaMet` or `FailureTarget` says how it will end, its remaining pods are stopped,
//! and when the last has ended `Complete` or `Failed` follows.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/job/#job-termination-and-cleanup>.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;

use super::count::{Count, per_index};
use super::indexes;
use super::pods;
use crate::object::{is_terminating, time};

pub(super) const SUCCESS: &str = "SuccessCriteriaMet";
pub(super) const FAILURE: &str = "FailureTarget";
pub(super) const COMPLETE: &str = "Complete";
pub(super) const FAILED: &str = "Failed";
const BACKOFF_LIMIT_DEFAULT: i32 = 6;

/// How the Job will end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) success: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

/// A condition that is true.
pub(super) fn condition<'a>(status: &'a JobStatus, type_: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_ && condition.status == "True")
}

/// Whether the Job has ended for good.
pub(crate) fn has_finished(job: &Job) -> bool {
    finished(job).is_some()
}

/// The condition that says that the Job has ended for good.
pub(crate) fn finished(job: &Job) -> Option<&JobCondition> {
    let status = job.status.as_ref()?;
    condition(status, COMPLETE).or_else(|| condition(status, FAILED))
}

fn verdict(success: bool, reason: &str, message: impl Into<String>) -> Verdict {
    Verdict { success, reason: reason.to_owned(), message: message.into() }
}

/// How the Job will end, if that is decided.
pub(super) fn of(job: &Job, all: &[Arc<Pod>], count: &Count, now: Timestamp) -> Option<Verdict> {
    let status = job.status.clone().unwrap_or_default();
    let told = |type_| condition(&status, type_).cloned();
    if let Some(said) = told(FAILURE).or_else(|| told(SUCCESS)) {
        let (reason, message) = (said.reason.unwrap_or_default(), said.message.unwrap_or_default());
        return Some(verdict(said.type_ == SUCCESS, &reason, message));
    }
    if let Some(message) = &count.fails_job {
        return Some(verdict(false, "PodFailurePolicy", message.clone()));
    }
    if until_deadline(job, now).is_some_and(|left| left.is_zero()) {
        return Some(verdict(false, "DeadlineExceeded", "Job was active longer than specified deadline"));
    }
    let spec = job.spec.clone().unwrap_or_default();
    if let Some(success) = success_policy(job, count) {
        return Some(success);
    }
    if per_index(job).is_some() {
        if spec.max_failed_indexes.is_some_and(|most| count.failed_indexes.len() > usize::try_from(most).unwrap_or(0)) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(verdict(false, "MaxFailedIndexesExceeded", message));
        }
        let over = count.failed_indexes.len() + count.completed.len();
        if !count.failed_indexes.is_empty() && over >= usize::try_from(spec.completions.unwrap_or(0)).unwrap_or(0) {
            return Some(verdict(false, "FailedIndexes", "Job has failed indexes"));
        }
    } else if is_past_limit(job, all, count) {
        return Some(verdict(false, "BackoffLimitExceeded", "Job has reached the specified backoff limit"));
    }
    let active = all.iter().any(|pod| pods::end_of(job, pod).is_none() && !is_terminating(&**pod));
    let complete = match spec.completions {
        Some(completions) => count.succeeded >= completions,
        // A work queue: one has found it empty, and the others have followed.
        None => count.succeeded > 0 && !active,
    };
    if complete && !spec.suspend.unwrap_or(false) {
        return Some(verdict(true, "CompletionsReached", "Reached expected number of succeeded pods"));
    }
    None
}

fn is_past_limit(job: &Job, all: &[Arc<Pod>], count: &Count) -> bool {
    let spec = job.spec.clone().unwrap_or_default();
    let limit = spec.backoff_limit.unwrap_or(BACKOFF_LIMIT_DEFAULT);
    if count.has_new_failure && count.failed > limit {
        return true;
    }
    let restarts_in_place = spec.template.spec.and_then(|spec| spec.restart_policy).as_deref() == Some("OnFailure");
    if !restarts_in_place {
        return false;
    }
    let living = all.iter().filter(|pod| pods::end_of(job, pod).is_none());
    let restarts: i32 = living
        .filter_map(|pod| pod.status.as_ref())
        .flat_map(|status| status.container_statuses.iter().chain(&status.init_container_statuses).flatten())
        .map(|container| container.restart_count)
        .sum();
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

fn success_policy(job: &Job, count: &Count) -> Option<Verdict> {
    let spec = job.spec.as_ref()?;
    let completions = spec.completions.unwrap_or(0);
    for (index, rule) in spec.success_policy.as_ref()?.rules.iter().enumerate() {
        let chosen = rule.succeeded_indexes.as_ref().map(|text| indexes::parse(Some(text), completions));
        let done = match &chosen {
            Some(chosen) => count.completed.intersection(chosen).count(),
            None => count.completed.len(),
        };
        let needed = match (rule.succeeded_count, &chosen) {
            (Some(needed), _) => usize::try_from(needed).unwrap_or(0),
            (None, Some(chosen)) => chosen.len(),
            (None, None) => usize::try_from(completions).unwrap_or(0),
        };
        if done >= needed && done > 0 {
            return Some(verdict(true, "SuccessPolicy", format!("Matched rules at index {index}")));
        }
    }
    None
}

/// How long until the Job has been active for too long; `None` without a deadline.
pub(super) fn until_deadline(job: &Job, now: Timestamp) -> Option<Duration> {
    let spec = job.spec.as_ref()?;
    let seconds = spec.active_deadline_seconds.filter(|_| !spec.suspend.unwrap_or(false))?;
    let started = job.status.as_ref()?.start_time.as_ref()?.0;
    let due = started.checked_add(SignedDuration::from_secs(seconds)).ok()?;
    Some(Duration::try_from(due.duration_since(now)).unwrap_or_default())
}

/// Writes the verdict into the conditions, and that the Job is over once nothing of it runs (`over`).
pub(super) fn write(verdict: &Verdict, over: bool, status: &mut JobStatus, now: Timestamp) {
    let (first, last) = if verdict.success { (SUCCESS, COMPLETE) } else { (FAILURE, FAILED) };
    set(status, first, true, &verdict.reason, &verdict.message, now);
    if over {
        set(status, last, true, &verdict.reason, &verdict.message, now);
        if verdict.success {
            status.completion_time = Some(time(now));
        }
    }
}

/// Puts a condition in place of the one of its type.
pub(super) fn set(status: &mut JobStatus, type_: &str, is: bool, reason: &str, message: &str, now: Timestamp) {
    let all = status.conditions.get_or_insert_default();
    let word = if is { "True" } else { "False" };
    if all.iter().any(|condition| condition.type_ == type_ && condition.status == word) {
        return;
    }
    all.retain(|condition| condition.type_ != type_);
    all.push(JobCondition {
        type_: type_.to_owned(),
        status: word.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(time(now)),
        last_transition_time: Some(time(now)),
    });
}
