//! CronJob: starts Jobs at times of the clock.
//!
//! Flow: look at the Jobs it has → delete history → note which still run → find the latest time that is due and not
//! started → by `concurrencyPolicy` start it, skip it, or replace what runs → wake at the next time.
//!
//! Guarantees: a time is started at most once, because the Job's name is made of it; times missed while nobody looked are
//! not made up one by one: the latest is started if `startingDeadlineSeconds` allows; a jump of the clock is noticed
//! within [`LOOK_MAX`].
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/>.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use mainstay_informer::ObjectKey;
use mainstay_model::cron::{Schedule, time_zone};

use crate::action::{Action, Attempt, Note, Now, Object, Plan, Propagation, Target};
use crate::caches::Caches;
use crate::driver::{Controller, Wiring};
use crate::job::{finished, has_finished};
use crate::object::{
    annotation, controller_of, controller_reference, created, is_terminating, name, namespace, reference, time, uid,
};

/// The longest time between two looks at the clock.
const LOOK_MAX: Duration = Duration::from_secs(30);
/// How often people are told of a schedule that cannot be read.
const FAULT_PAUSE: Duration = Duration::from_secs(300);
/// Missed times above which people are told.
const MISSED_MAX: usize = 100;
const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// What one look needs to see.
pub(crate) struct View {
    pub(crate) cron: Arc<CronJob>,
    /// Jobs of its namespace that it controls.
    pub(crate) jobs: Vec<Arc<Job>>,
}

/// Decides about one CronJob.
pub(crate) fn reconcile(view: &View, attempt: &Attempt, now: Timestamp) -> Plan {
    let cron = view.cron.as_ref();
    let mut plan = Plan::default();
    if is_terminating(cron) {
        return Plan::nothing("it is being deleted");
    }
    let mut status = cron.status.clone().unwrap_or_default();
    follow(view, &mut status, &mut plan);
    trim(view, &mut plan);
    if let Err((reason, message)) = run_due(view, &mut status, now, &mut plan) {
        plan.why.clone_from(&message);
        plan.look_again(FAULT_PAUSE);
        if attempt.failures == 0 {
            plan.push(Action::Note(Note { regarding: reference(cron), warning: true, reason, message }));
        }
    }
    if cron.status.as_ref() != Some(&status) {
        plan.push(Action::ReplaceStatus(Object::of(&CronJob { status: Some(status), ..cron.clone() })));
    }
    plan
}

/// Which Jobs run, and when one last succeeded.
fn follow(view: &View, status: &mut CronJobStatus, plan: &mut Plan) {
    let cron = view.cron.as_ref();
    let before = status.active.take().unwrap_or_default();
    for done in view.jobs.iter().filter(|job| has_finished(job)) {
        let Some(condition) = finished(done) else { continue };
        if condition.type_ == "Complete" {
            let at = done.status.as_ref().and_then(|status| status.completion_time.clone());
            let is_later = |at: &Timestamp| status.last_successful_time.as_ref().is_none_or(|last| last.0 < *at);
            if let Some(at) = at.filter(|at| is_later(&at.0)) {
                status.last_successful_time = Some(at);
            }
        }
        if before.iter().any(|known| known.uid.as_deref() == Some(uid(&**done))) {
            let message = format!("Saw completed job: {}, condition: {}", name(&**done), condition.type_);
            let note = Note { regarding: reference(cron), warning: false, reason: "SawCompletedJob", message };
            plan.push(Action::Note(note));
        }
    }
    // Jobs that people started by hand are the CronJob's, but not in its way.
    let running = view.jobs.iter().filter(|job| !has_finished(job) && annotation(&***job, SCHEDULED_AT).is_some());
    let mut active: Vec<ObjectReference> = running.map(|job| reference(&**job)).collect();
    active.sort_by(|a, b| a.name.cmp(&b.name));
    status.active = (!active.is_empty()).then_some(active);
}

/// Deletes ended Jobs beyond the limits, oldest first.
fn trim(view: &View, plan: &mut Plan) {
    let spec = view.cron.spec.clone();
    let kept = [
        ("Complete", spec.successful_jobs_history_limit.unwrap_or(3)),
        ("Failed", spec.failed_jobs_history_limit.unwrap_or(1)),
    ];
    for (type_, kept) in kept {
        let ended = |job: &&Arc<Job>| finished(job).is_some_and(|condition| condition.type_ == type_);
        let mut all: Vec<_> = view.jobs.iter().filter(ended).filter(|job| !is_terminating(&***job)).collect();
        all.sort_by_key(|job| (job.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0), name(&***job)));
        let surplus = all.len().saturating_sub(usize::try_from(kept).unwrap_or(0));
        plan.actions.extend(all.iter().take(surplus).map(|job| Action::delete(Target::of(&***job))));
    }
}

/// Starts the Job of the latest time that is due. The error is an event's reason and message.
fn run_due(
    view: &View,
    status: &mut CronJobStatus,
    now: Timestamp,
    plan: &mut Plan,
) -> Result<(), (&'static str, String)> {
    let cron = view.cron.as_ref();
    let spec = cron.spec.clone();
    if spec.suspend.unwrap_or(false) {
        "it is suspended".clone_into(&mut plan.why);
        return Ok(());
    }
    let zone = match &spec.time_zone {
        Some(zone) => time_zone(zone).map_err(|error| ("UnknownTimeZone", format!("invalid timeZone: {error}")))?,
        None => TimeZone::system(),
    };
    let schedule = Schedule::parse(&spec.schedule)
        .map_err(|error| ("UnparseableSchedule", format!("unparseable schedule: {:?} : {error}", spec.schedule)))?;
    let deadline = spec.starting_deadline_seconds.map(SignedDuration::from_secs);
    let last = status.last_schedule_time.as_ref().map_or_else(|| created(cron), |time| time.0);
    let earliest = deadline.map_or(last, |deadline| last.max(now.saturating_sub(deadline).unwrap_or(last)));
    let (due, missed) = latest(&schedule, earliest, now, &zone);
    if let Some(next) = schedule.next(now, &zone) {
        let wait = Duration::try_from(next.duration_since(now)).unwrap_or_default();
        plan.look_again(wait.clamp(Duration::from_millis(10), LOOK_MAX));
        plan.why = format!("next at {next}");
    }
    if missed > MISSED_MAX {
        let message = format!(
            "too many missed start times: {missed}. Set or decrease .spec.startingDeadlineSeconds or check clock skew"
        );
        plan.push(Action::Note(Note {
            regarding: reference(cron),
            warning: true,
            reason: "TooManyMissedTimes",
            message,
        }));
    }
    if let Some(due) = due {
        start(view, status, (due, &zone), now, plan);
    }
    Ok(())
}

/// Starts the Job of a time, unless it was started or the policy is against it.
fn start(
    view: &View,
    status: &mut CronJobStatus,
    (due, zone): (Timestamp, &TimeZone),
    now: Timestamp,
    plan: &mut Plan,
) {
    let (cron, spec) = (view.cron.as_ref(), &view.cron.spec);
    let job = job(cron, due, zone);
    let running = status.active.clone().unwrap_or_default();
    let is_started = view.jobs.iter().any(|other| name(&**other) == name(&job));
    if is_started {
        status.last_schedule_time = Some(time(due));
        return;
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !running.is_empty() => {
            "a job of it still runs".clone_into(&mut plan.why);
            if now.duration_since(due) < SignedDuration::try_from(LOOK_MAX).unwrap_or_default() {
                let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
                plan.push(Action::Note(Note {
                    regarding: reference(cron),
                    warning: false,
                    reason: "JobAlreadyActive",
                    message: message.to_owned(),
                }));
            }
            return;
        }
        Some("Replace") => {
            for old in view.jobs.iter().filter(|job| running.iter().any(|run| run.uid.as_deref() == Some(uid(&***job))))
            {
                plan.push(Action::Delete {
                    target: Target::of(&**old),
                    grace_seconds: None,
                    propagation: Propagation::Background,
                });
            }
            status.active = None;
        }
        _ => {}
    }
    plan.why = format!("starts {}", name(&job));
    plan.push(Action::Create(Object::of(&job)));
    let message = format!("Created job {}", name(&job));
    plan.push(Action::Note(Note { regarding: reference(cron), warning: false, reason: "SuccessfulCreate", message }));
    status.last_schedule_time = Some(time(due));
}

/// The latest due time after `earliest` and not after `now`, and how many there are (counted up to a bound).
fn latest(schedule: &Schedule, earliest: Timestamp, now: Timestamp, zone: &TimeZone) -> (Option<Timestamp>, usize) {
    let mut count = 0;
    let mut latest = None;
    let mut from = earliest;
    while let Some(due) = schedule.next(from, zone).filter(|due| *due <= now) {
        (latest, from, count) = (Some(due), due, count + 1);
        // So far behind that counting would take long: go on from close to now.
        if count == MISSED_MAX + 1 {
            let behind = now.duration_since(from);
            let step = schedule.next(due, zone).map_or(SignedDuration::ZERO, |next| next.duration_since(due));
            if behind > step * 1000 {
                from = now.saturating_sub(step * 500).unwrap_or(from);
            }
        }
    }
    (latest, count)
}

/// The Job of a time: its name is made of the minute, so that the same time cannot be started twice.
fn job(cron: &CronJob, due: Timestamp, zone: &TimeZone) -> Job {
    let template = cron.spec.job_template.clone();
    let mut metadata = template.metadata.unwrap_or_default();
    metadata.name = Some(format!("{}-{}", name(cron), due.as_second() / 60));
    metadata.namespace = Some(namespace(cron).to_owned());
    metadata.owner_references = Some(vec![controller_reference(cron)]);
    let stamp = due.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string().replace("+00:00", "Z");
    metadata.annotations.get_or_insert_default().insert(SCHEDULED_AT.to_owned(), stamp);
    Job { metadata, spec: template.spec, status: None }
}

/// The controller of CronJobs.
pub(crate) struct CronJobs;

impl Controller for CronJobs {
    type Key = ObjectKey;
    const NAME: &'static str = "cronjob-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.cron_jobs, |change, _| vec![change.key.clone()]);
        wiring.on(&caches.jobs, |change, _| {
            let owners = change.versions().filter_map(|job| controller_of(&**job));
            let crons = owners.filter(|owner| owner.kind == "CronJob");
            crons.map(|owner| ObjectKey::new(&change.key.namespace, &owner.name)).collect()
        });
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, attempt: &Attempt, now: Now) -> Plan {
        let Some(cron) = caches.cron_jobs.get_key(key) else { return Plan::nothing("it is gone") };
        let jobs = caches.jobs.controlled_by(&key.namespace, uid(&*cron));
        reconcile(&View { cron, jobs }, attempt, now.wall)
    }
}
