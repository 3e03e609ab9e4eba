//! Counting how pods have ended, so that none is lost and none counted twice, whatever crashes when.
//!
//! ```text
//! pod ended, finalizer on ──▶ its uid in status.uncountedTerminatedPods ──▶ finalizer off ──▶ in the counters
//! ```
//!
//! Each arrow is one write after the one before it has been acknowledged. A success of an indexed Job is a member of
//! `completedIndexes` instead of a number, so that it cannot be counted twice at all.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/job/#job-tracking-with-finalizers>.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use mainstay_informer::Kind;
use serde_json::json;

use super::failure_policy::{Verdict, judge};
use super::indexes::{self, Indexes};
use super::pods::{self, End, FINALIZER};
use crate::action::{Action, Target};
use crate::object::uid;

/// Uids that may wait in the status at once.
const UNCOUNTED_MAX: usize = 500;

/// What is known of a Job's results.
#[derive(Debug, Clone, Default)]
pub(super) struct Count {
    /// Counted and recorded successes; for an indexed Job, completed indexes.
    pub(super) succeeded: i32,
    /// Counted and recorded failures.
    pub(super) failed: i32,
    /// Whether a failure is among them that the status did not know.
    pub(super) has_new_failure: bool,
    /// The counters as they go into the status.
    settled: (i32, i32),
    uncounted: (BTreeSet<String>, BTreeSet<String>),
    pub(super) completed: Indexes,
    pub(super) failed_indexes: Indexes,
    /// Uids of pods whose finalizer may go once the status is written.
    free: BTreeSet<String>,
    /// Uids that the status has not known before: whoever looked too late would count them twice.
    fresh: BTreeSet<String>,
    /// Set by a rule of the failure policy: why the Job has failed.
    pub(super) fails_job: Option<String>,
}

/// Takes in all pods of the Job.
pub(super) fn count(job: &Job, all: &[Arc<Pod>]) -> Count {
    let status = job.status.clone().unwrap_or_default();
    let completions = job.spec.as_ref().and_then(|spec| spec.completions).unwrap_or(0);
    let recorded = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let mut count = Count {
        settled: (status.succeeded.unwrap_or(0), status.failed.unwrap_or(0)),
        completed: indexes::parse(status.completed_indexes.as_deref(), completions),
        failed_indexes: indexes::parse(status.failed_indexes.as_deref(), completions),
        ..Count::default()
    };
    let is_tracked = |id: &String| all.iter().any(|pod| uid(&**pod) == id && pods::is_tracked(pod));
    // A recorded pod without its finalizer will not come up again: it moves into the counters.
    for (ids, counter, left) in [
        (recorded.succeeded, &mut count.settled.0, &mut count.uncounted.0),
        (recorded.failed, &mut count.settled.1, &mut count.uncounted.1),
    ] {
        for id in ids.into_iter().flatten() {
            if is_tracked(&id) {
                count.free.insert(id.clone());
                left.insert(id);
            } else {
                *counter += 1;
            }
        }
    }
    let indexed = pods::is_indexed(job);
    for pod in all.iter().filter(|pod| pods::is_tracked(pod)) {
        let known = count.free.contains(uid(&**pod));
        match pods::end_of(job, pod) {
            Some(End::Succeeded) if indexed => {
                count.completed.extend(pods::index_of(job, pod));
                count.free.insert(uid(&**pod).to_owned());
            }
            Some(End::Succeeded) if !known && count.has_room() => count.record(pod, End::Succeeded),
            Some(End::Failed) => fail(job, pod, known, &mut count),
            _ => {}
        }
    }
    let completed = count.completed.clone();
    count.failed_indexes.retain(|index| !completed.contains(index));
    if indexed {
        count.settled.0 = i32::try_from(count.completed.len()).unwrap_or(i32::MAX);
    }
    let size = |ids: &BTreeSet<String>| i32::try_from(ids.len()).unwrap_or(i32::MAX);
    count.succeeded = count.settled.0 + size(&count.uncounted.0);
    count.failed = count.settled.1 + size(&count.uncounted.1);
    if per_index(job).is_some() {
        keep_failure_counts(job, all, &mut count);
    }
    count
}

fn fail(job: &Job, pod: &Arc<Pod>, known: bool, count: &mut Count) {
    let verdict = judge(job, pod);
    let index = pods::index_of(job, pod);
    match &verdict {
        Verdict::FailsJob(message) => count.fails_job = count.fails_job.take().or(Some(message.clone())),
        Verdict::FailsIndex => count.failed_indexes.extend(index),
        Verdict::Ignored => {
            count.free.insert(uid(&**pod).to_owned());
            return;
        }
        Verdict::Counts => {}
    }
    if let (Some(limit), Some(index)) = (per_index(job), index)
        && pods::failures_before(pod) >= limit
    {
        count.failed_indexes.insert(index);
    }
    if !known && count.has_room() {
        count.record(pod, End::Failed);
        count.has_new_failure = true;
    }
}

/// `backoffLimitPerIndex` of an indexed Job.
pub(super) fn per_index(job: &Job) -> Option<i32> {
    job.spec.as_ref().and_then(|spec| spec.backoff_limit_per_index).filter(|_| pods::is_indexed(job))
}

/// The failed pod of an index carries the number of its failures; it stays until its successor carries it on.
fn keep_failure_counts(job: &Job, all: &[Arc<Pod>], count: &mut Count) {
    for pod in all.iter().filter(|pod| pods::end_of(job, pod) == Some(End::Failed)) {
        let Some(index) = pods::index_of(job, pod) else { continue };
        let is_done = count.completed.contains(&index) || count.failed_indexes.contains(&index);
        let has_successor = all.iter().any(|other| {
            pods::index_of(job, other) == Some(index)
                && crate::object::created(&**other) >= crate::object::created(&**pod)
                && uid(&**other) != uid(&**pod)
                && pods::failures_before(other) > pods::failures_before(pod)
        });
        if !is_done && !has_successor {
            count.free.remove(uid(&**pod));
        }
    }
}

impl Count {
    fn has_room(&self) -> bool {
        self.uncounted.0.len() + self.uncounted.1.len() < UNCOUNTED_MAX
    }

    fn record(&mut self, pod: &Pod, end: End) {
        let list = if end == End::Succeeded { &mut self.uncounted.0 } else { &mut self.uncounted.1 };
        list.insert(uid(pod).to_owned());
        self.fresh.insert(uid(pod).to_owned());
        self.free.insert(uid(pod).to_owned());
    }

    /// Writes the results into a status.
    pub(super) fn write(&self, job: &Job, status: &mut JobStatus) {
        let positive = |count: i32| Some(count).filter(|count| *count > 0);
        let list = |ids: &BTreeSet<String>| Some(ids.iter().cloned().collect::<Vec<_>>()).filter(|ids| !ids.is_empty());
        (status.succeeded, status.failed) = (positive(self.settled.0), positive(self.settled.1));
        status.uncounted_terminated_pods =
            Some(UncountedTerminatedPods { succeeded: list(&self.uncounted.0), failed: list(&self.uncounted.1) });
        if pods::is_indexed(job) {
            status.completed_indexes = indexes::format(&self.completed);
        }
        if per_index(job).is_some() {
            // An empty text says that none has failed; absent would say that nobody counts.
            status.failed_indexes = Some(indexes::format(&self.failed_indexes).unwrap_or_default());
        }
    }

    /// Whether everything that was recorded is in the counters.
    pub(super) fn is_settled(&self) -> bool {
        self.uncounted.0.is_empty() && self.uncounted.1.is_empty()
    }

    /// What must hold for the results to be recorded: their pods are as they were seen. One whose finalizer is off has been
    /// counted already, by an earlier look or by another process.
    pub(super) fn expectations<'a>(&'a self, all: &'a [Arc<Pod>]) -> impl Iterator<Item = Action> + 'a {
        let fresh = all.iter().filter(|pod| self.fresh.contains(uid(&***pod)));
        fresh.map(|pod| same(&**pod))
    }

    /// Takes the finalizers away, to follow the write of the status.
    pub(super) fn release<'a>(&'a self, all: &'a [Arc<Pod>], finishing: bool) -> impl Iterator<Item = Action> + 'a {
        let ready = all.iter().filter(|pod| pods::is_tracked(pod));
        ready
            .filter(move |pod| self.free.contains(uid(&***pod)) || (finishing && self.is_recorded(pod)))
            .map(|pod| without_finalizer(pod))
    }

    fn is_recorded(&self, pod: &Pod) -> bool {
        self.uncounted.0.contains(uid(pod)) || self.uncounted.1.contains(uid(pod))
    }
}

/// The rest is done only if the object is as it was seen.
pub(super) fn same<K: Kind>(object: &K) -> Action {
    Action::ExpectSame(Target::of(object), object.meta().resource_version.clone().unwrap_or_default())
}

/// Lets a pod go that a Job need not count (any more).
pub(super) fn without_finalizer(pod: &Pod) -> Action {
    let mut finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
    finalizers.retain(|own| own != FINALIZER);
    let meta = &pod.metadata;
    let patch =
        json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": finalizers}});
    Action::Patch(Target::of(pod), patch)
}
