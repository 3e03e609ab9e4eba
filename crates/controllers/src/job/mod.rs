//! Job: pods that run to completion, counted so that no result is lost.
//!
//! Flow: claim pods → [`count`] what has ended → [`verdict`]: will it end, and how → while undecided, start or stop pods
//! towards `parallelism` and `completions`; once decided, stop those that still run → status first, then finalizers off →
//! `Complete` or `Failed` when the last pod has ended.
//!
//! Guarantees: every pod carries a finalizer from its creation until its result is in the status, so a pod deleted by
//! anyone still counts, once; a Job that has ended is not touched again; results are recorded and pods started only by who
//! has seen the newest version of the Job, and of the pods that are counted.
//!
//! Deliberately absent: Jobs with `spec.managedBy` another are left alone.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/job/>.

mod count;
mod failure_policy;
mod indexes;
mod pods;
mod verdict;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use mainstay_informer::ObjectKey;
use mainstay_model::selector::LabelSelector;

use self::count::{Count, per_index};
use self::pods::End;
use self::verdict::Verdict;
use crate::action::{Action, Attempt, Note, Now, Object, Plan, Target};
use crate::caches::Caches;
use crate::claim::{candidates, claim, concerned};
use crate::driver::{Controller, Wiring};
use crate::object::{
    controller_of, is_active, is_finished, is_ready, is_terminating, name, reference, selector, time, uid,
};
use crate::replica_set::rank;

pub(crate) use verdict::{finished, has_finished};

/// Pods created or deleted in one go; the next look continues.
const BURST_MAX: usize = 500;
const MANAGER: &str = "kubernetes.io/job-controller";

/// What one look needs to see.
pub(crate) struct View {
    pub(crate) job: Arc<Job>,
    /// Pods of its namespace that it owns or could own.
    pub(crate) pods: Vec<Arc<Pod>>,
}

/// Decides about one Job.
pub(crate) fn reconcile(view: &View, now: Timestamp) -> Plan {
    let job = view.job.as_ref();
    let mut plan = Plan::default();
    let spec = job.spec.clone().unwrap_or_default();
    if spec.managed_by.as_deref().is_some_and(|manager| manager != MANAGER) {
        return Plan::nothing("another controller manages it");
    }
    let pods = claim(job, &selector(spec.selector.as_ref()), &view.pods, &mut plan);
    if has_finished(job) {
        plan.actions.extend(pods.iter().filter(|pod| pods::is_tracked(pod)).map(|pod| count::without_finalizer(pod)));
        "it has ended".clone_into(&mut plan.why);
        return plan;
    }
    let count = count::count(job, &pods);
    let verdict = verdict::of(job, &pods, &count, now);
    let suspended = spec.suspend.unwrap_or(false);
    let mut status = job.status.clone().unwrap_or_default();
    if status.start_time.is_none() && !suspended {
        status.start_time = Some(time(now));
    }
    let mut work = Plan::default();
    match &verdict {
        Some(verdict) => stop_all(&pods, verdict, &mut work),
        None if is_terminating(job) => {}
        None => manage(job, &pods, &count, suspended, now, &mut work),
    }
    suspend(job, &mut status, suspended && verdict.is_none(), now, &mut work);
    report(job, &pods, &count, &mut status);
    if let Some(verdict) = &verdict {
        conclude(job, &pods, &count, verdict, &mut status, now, &mut work);
    }
    if let Some(left) = verdict::until_deadline(job, now).filter(|_| verdict.is_none()) {
        work.look_again(left.max(Duration::from_millis(10)));
    }
    plan.actions.extend(count.expectations(&pods));
    let is_written = job.status.as_ref() != Some(&status);
    if is_written {
        plan.push(Action::ReplaceStatus(Object::of(&Job { status: Some(status), ..job.clone() })));
    }
    // Only what the status has recorded may go.
    plan.actions.extend(count.release(&pods, verdict.is_some()));
    // An old view of the Job must not start pods for results that are counted already.
    if !is_written && work.actions.iter().any(|action| matches!(action, Action::Create(_))) {
        plan.push(count::same(job));
    }
    plan.actions.append(&mut work.actions);
    (plan.requeue_after, plan.why) = (work.requeue_after, work.why);
    plan
}

/// The counts of pods that are not results.
fn report(job: &Job, pods: &[Arc<Pod>], count: &Count, status: &mut JobStatus) {
    let number =
        |keep: &dyn Fn(&Pod) -> bool| i32::try_from(pods.iter().filter(|pod| keep(pod)).count()).unwrap_or(i32::MAX);
    status.active = Some(number(&|pod| is_active(pod))).filter(|count| *count > 0);
    status.ready = Some(number(&|pod| is_active(pod) && is_ready(pod)));
    status.terminating = Some(number(&|pod| is_terminating(pod) && !is_finished(pod)));
    count.write(job, status);
}

/// Starts or stops pods until as many run as should.
fn manage(job: &Job, pods: &[Arc<Pod>], count: &Count, suspended: bool, now: Timestamp, plan: &mut Plan) {
    let spec = job.spec.clone().unwrap_or_default();
    let parallelism = spec.parallelism.unwrap_or(1).max(0);
    let mut active: Vec<Arc<Pod>> = pods.iter().filter(|pod| is_active(pod)).cloned().collect();
    let running = i32::try_from(active.len()).unwrap_or(i32::MAX);
    let wanted = match spec.completions {
        _ if suspended => 0,
        // A work queue that one has found empty gets no new workers.
        None if count.succeeded > 0 => running.min(parallelism),
        None => parallelism,
        Some(completions) => {
            let lost = i32::try_from(count.failed_indexes.len()).unwrap_or(0);
            parallelism.min(completions - count.succeeded - lost).max(0)
        }
    };
    plan.why = format!("{running} of {wanted} pods run, {} succeeded, {} failed", count.succeeded, count.failed);
    let mut surplus = Vec::new();
    if pods::is_indexed(job) {
        surplus.extend(superfluous(job, &mut active, count));
    }
    let running = i32::try_from(active.len()).unwrap_or(i32::MAX);
    if running > wanted {
        rank(&mut active, &std::collections::HashMap::new());
        surplus.extend(active.drain(..usize::try_from(running - wanted).unwrap_or(0)));
    }
    surplus.truncate(BURST_MAX);
    discard(&surplus, plan);
    if running >= wanted || is_terminating(job) {
        return;
    }
    let ending = pods.iter().filter(|pod| is_terminating(&***pod) && pods::end_of(job, pod).is_none()).count();
    let held = if pods::replaces_ended_only(job) { i32::try_from(ending).unwrap_or(0) } else { 0 };
    let missing = usize::try_from(wanted - running - held).unwrap_or(0).min(BURST_MAX);
    start(job, pods, count, missing, now, plan);
}

/// Pods of an index that another pod works on already, or that is done.
fn superfluous(job: &Job, active: &mut Vec<Arc<Pod>>, count: &Count) -> Vec<Arc<Pod>> {
    let mut taken = count.completed.clone();
    taken.extend(&count.failed_indexes);
    active.sort_by_key(|pod| (crate::object::created(&**pod), name(&**pod).to_owned()));
    let (stay, go) =
        active.drain(..).partition(|pod| pods::index_of(job, pod).is_some_and(|index| taken.insert(index)));
    *active = stay;
    go
}

fn start(job: &Job, pods: &[Arc<Pod>], count: &Count, missing: usize, now: Timestamp, plan: &mut Plan) {
    if missing == 0 {
        return;
    }
    if !pods::is_indexed(job) {
        let wait = pods::backoff(job, pods.iter().map(|pod| &**pod), now);
        if !wait.is_zero() {
            plan.why = format!("waits {} s after a failure", wait.as_secs());
            return plan.look_again(wait);
        }
        plan.actions.extend((0..missing).map(|_| Action::Create(Object::of(&pods::new(job, None, None)))));
        return;
    }
    let mut by_index: BTreeMap<i32, Vec<&Pod>> = BTreeMap::new();
    for pod in pods {
        if let Some(index) = pods::index_of(job, pod) {
            by_index.entry(index).or_default().push(pod);
        }
    }
    let common = pods::backoff(job, pods.iter().map(|pod| &**pod), now);
    let mut left = missing;
    for index in 0..job.spec.as_ref().and_then(|spec| spec.completions).unwrap_or(0) {
        let of_index = by_index.get(&index).map_or(&[][..], Vec::as_slice);
        let busy = of_index.iter().any(|pod| pods::end_of(job, pod).is_none());
        if left == 0 || busy || count.completed.contains(&index) || count.failed_indexes.contains(&index) {
            continue;
        }
        let wait = match per_index(job) {
            Some(_) => pods::backoff(job, of_index.iter().copied(), now),
            None => common,
        };
        if !wait.is_zero() {
            plan.look_again(wait);
            continue;
        }
        let failures = per_index(job).map(|_| index_failures(job, of_index));
        plan.push(Action::Create(Object::of(&pods::new(job, Some(index), failures))));
        left -= 1;
    }
}

/// Failures of an index so far, as its latest pod knows them.
fn index_failures(job: &Job, pods: &[&Pod]) -> i32 {
    let after = |pod: &&Pod| {
        let counted = pods::end_of(job, pod) == Some(End::Failed)
            && failure_policy::judge(job, pod) != failure_policy::Verdict::Ignored;
        pods::failures_before(pod) + i32::from(counted)
    };
    pods.iter().map(after).max().unwrap_or(0)
}

fn stop_all(pods: &[Arc<Pod>], verdict: &Verdict, plan: &mut Plan) {
    plan.why.clone_from(&verdict.message);
    let running: Vec<_> = pods.iter().filter(|pod| is_active(pod)).cloned().collect();
    if verdict.success {
        return discard(&running, plan);
    }
    // Those stopped because the Job has failed count as failed.
    plan.actions.extend(running.iter().map(|pod| Action::delete(Target::of(&**pod))));
}

/// Deletes pods whose end says nothing about the Job: they are let go before, so that they do not count.
fn discard(pods: &[Arc<Pod>], plan: &mut Plan) {
    plan.actions.extend(pods.iter().filter(|pod| pods::is_tracked(pod)).map(|pod| count::without_finalizer(pod)));
    plan.actions.extend(pods.iter().map(|pod| Action::delete(Target::of(&**pod))));
}

/// The `Suspended` condition; the clock of the deadline starts anew when a Job goes on.
fn suspend(job: &Job, status: &mut JobStatus, suspended: bool, now: Timestamp, plan: &mut Plan) {
    let was = verdict::condition(status, "Suspended").is_some();
    let (reason, message) = if suspended { ("JobSuspended", "Job suspended") } else { ("JobResumed", "Job resumed") };
    if suspended == was {
        return;
    }
    verdict::set(status, "Suspended", suspended, reason, message, now);
    status.start_time = (!suspended).then(|| time(now));
    let reason = if suspended { "Suspended" } else { "Resumed" };
    plan.push(Action::Note(Note { regarding: reference(job), warning: false, reason, message: message.to_owned() }));
}

/// Says how the Job will end and, when nothing of it runs and all is counted, that it has.
fn conclude(
    job: &Job,
    pods: &[Arc<Pod>],
    count: &Count,
    decided: &Verdict,
    status: &mut JobStatus,
    now: Timestamp,
    plan: &mut Plan,
) {
    let running = pods.iter().any(|pod| !is_finished(pod) && pod.metadata.deletion_grace_period_seconds != Some(0));
    let over =
        !running && count.is_settled() && pods.iter().all(|pod| !pods::is_tracked(pod) || !needs_count(job, pod));
    verdict::write(decided, over, status, now);
    if over {
        status.uncounted_terminated_pods = Some(UncountedTerminatedPods::default());
        (status.active, status.terminating, status.ready) = (None, Some(0), Some(0));
        let (warning, reason, message) = if decided.success {
            (false, "Completed", "Job completed".to_owned())
        } else {
            (true, event_reason(&decided.reason), decided.message.clone())
        };
        plan.push(Action::Note(Note { regarding: reference(job), warning, reason, message }));
    }
}

/// Whether a result would be lost if the Job ended now.
fn needs_count(job: &Job, pod: &Pod) -> bool {
    pods::end_of(job, pod) != Some(End::Succeeded) || !pods::is_indexed(job)
}

/// Reasons of events are fixed words.
fn event_reason(reason: &str) -> &'static str {
    const KNOWN: &[&str] =
        &["PodFailurePolicy", "DeadlineExceeded", "MaxFailedIndexesExceeded", "FailedIndexes", "BackoffLimitExceeded"];
    KNOWN.iter().find(|known| **known == reason).copied().unwrap_or("Failed")
}

/// The controller of Jobs.
pub(crate) struct Jobs;

fn chosen(job: &Job) -> LabelSelector {
    selector(job.spec.as_ref().and_then(|spec| spec.selector.as_ref()))
}

impl Controller for Jobs {
    type Key = ObjectKey;
    const NAME: &'static str = "job-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.jobs, |change, _| vec![change.key.clone()]);
        wiring.on(&caches.pods, |change, caches| concerned(change, &caches.jobs, chosen));
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, now: Now) -> Plan {
        let job = caches.jobs.get_key(key);
        // Pods of a Job that is gone, or of an earlier one of its name, wait for nobody.
        let orphans = caches.pods.in_namespace(&key.namespace, |pod| {
            let owner = controller_of(pod).filter(|owner| owner.kind == "Job" && owner.name == key.name);
            pods::is_tracked(pod) && owner.is_some_and(|owner| job.as_ref().is_none_or(|job| uid(&**job) != owner.uid))
        });
        let released = orphans.iter().map(|pod| count::without_finalizer(pod));
        let mut plan = match job {
            None => Plan::nothing("it is gone"),
            Some(job) => {
                let pods = candidates(&caches.pods, &*job, &chosen(&job));
                reconcile(&View { job, pods }, now.wall)
            }
        };
        plan.actions.extend(released);
        plan
    }
}
