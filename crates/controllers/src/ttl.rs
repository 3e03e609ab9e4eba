//! TTL after finished: Jobs that have ended are deleted after `ttlSecondsAfterFinished`.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/ttlafterfinished/>.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use mainstay_informer::ObjectKey;

use crate::action::{Action, Attempt, Now, Plan, Propagation, Target};
use crate::caches::Caches;
use crate::driver::{Controller, Wiring};
use crate::job::finished;
use crate::object::is_terminating;

/// The longest time between two looks at the clock, so that a jump of it is noticed.
const LOOK_MAX: Duration = Duration::from_secs(60);

/// Decides about one Job.
pub(crate) fn reconcile(job: &Job, now: Timestamp) -> Plan {
    let ttl = job.spec.as_ref().and_then(|spec| spec.ttl_seconds_after_finished).filter(|_| !is_terminating(job));
    let ended = finished(job).and_then(|condition| condition.last_transition_time.clone());
    let (Some(ttl), Some(ended)) = (ttl, ended) else { return Plan::nothing("it stays") };
    let due = ended.0 + SignedDuration::from_secs(i64::from(ttl.max(0)));
    let mut plan = Plan::nothing(format!("it goes at {due}"));
    match Duration::try_from(due.duration_since(now)) {
        Ok(left) if !left.is_zero() => plan.look_again(left.min(LOOK_MAX)),
        _ => plan.push(Action::Delete {
            target: Target::of(job),
            grace_seconds: None,
            propagation: Propagation::Foreground,
        }),
    }
    plan
}

/// The controller of ended Jobs.
pub(crate) struct TtlAfterFinished;

impl Controller for TtlAfterFinished {
    type Key = ObjectKey;
    const NAME: &'static str = "ttl-after-finished-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.jobs, |change, _| vec![change.key.clone()]);
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, now: Now) -> Plan {
        caches.jobs.get_key(key).map_or_else(|| Plan::nothing("it is gone"), |job| reconcile(&job, now.wall))
    }
}
