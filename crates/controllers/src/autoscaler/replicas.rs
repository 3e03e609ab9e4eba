//! How many replicas a metric asks for.
//!
//! In essence `ceil(replicas × value / target)`, with care for pods that say nothing or are not ready: when that would scale
//! down they count as being on target, when it would scale up as idle, so that lack of knowledge never exaggerates.
//!
//! Source: <https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#algorithm-details>.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use crate::object::{is_terminating, name, phase, pod_condition};

/// After its start a pod's processor use says little for this long, unless it has become ready.
const WARM_UP: SignedDuration = SignedDuration::from_mins(5);
/// A pod that became unready within this time of its start was never ready.
const FIRST_READINESS: SignedDuration = SignedDuration::from_secs(30);

/// What one pod was measured at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    /// In thousandths of the metric's unit.
    pub(crate) milli: i64,
    /// When it was measured, if that was said, and over which time.
    pub(crate) measured: Option<(Timestamp, SignedDuration)>,
}

/// By pod name.
pub(crate) type Samples = BTreeMap<String, Sample>;

/// Deviations that change nothing, up and down.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tolerance {
    pub(super) up: f64,
    pub(super) down: f64,
}

impl Tolerance {
    fn holds(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What each pod should be at.
pub(super) enum Goal<'a> {
    /// So much for each, in thousandths.
    Value(i64),
    /// A share of what each asks for: percent, and what each pod asks for in thousandths.
    Utilization(i32, &'a BTreeMap<String, i64>),
}

/// What a metric asks for, and what it was measured at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    /// Average over the pods, in thousandths.
    pub(super) average_milli: i64,
    /// Percent of what they ask for.
    pub(super) utilization: Option<i32>,
}

/// Pods by what can be said of them.
struct Groups<'a> {
    ready: Vec<&'a str>,
    unready: Vec<&'a str>,
    missing: Vec<&'a str>,
}

fn group<'a>(pods: &'a [Arc<Pod>], samples: &Samples, is_cpu: bool, now: Timestamp) -> Groups<'a> {
    let mut groups = Groups { ready: Vec::new(), unready: Vec::new(), missing: Vec::new() };
    for pod in pods.iter().filter(|pod| !is_terminating(&***pod) && phase(pod) != "Failed") {
        let own = name(&**pod);
        let list = match samples.get(own) {
            _ if phase(pod) == "Pending" => &mut groups.unready,
            None => &mut groups.missing,
            Some(sample) if is_cpu && !is_warm(pod, sample, now) => &mut groups.unready,
            Some(_) => &mut groups.ready,
        };
        list.push(own);
    }
    groups
}

/// Whether a pod's processor use says something about its load.
fn is_warm(pod: &Pod, sample: &Sample, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    let ready = pod_condition(pod, "Ready");
    let (Some(started), Some(ready)) = (started, ready) else { return false };
    let changed = ready.last_transition_time.as_ref().map_or(started.0, |time| time.0);
    let is_ready = ready.status == "True";
    if started.0 + WARM_UP > now {
        // Only what was measured wholly after it became ready.
        let late = sample.measured.is_some_and(|(at, window)| at < changed + window);
        return is_ready && !late;
    }
    is_ready || changed > started.0 + FIRST_READINESS
}

/// What a metric of every pod asks for.
pub(super) fn of_pods(
    current: i32,
    goal: &Goal<'_>,
    pods: &[Arc<Pod>],
    samples: &Samples,
    is_cpu: bool,
    tolerance: Tolerance,
    now: Timestamp,
) -> Result<Proposal, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let groups = group(pods, samples, is_cpu, now);
    let mut used: BTreeMap<&str, i64> = BTreeMap::new();
    for pod in &groups.ready {
        used.extend(samples.get(*pod).map(|sample| (*pod, sample.milli)));
    }
    if used.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let (ratio, utilization) = ratio(goal, &used)?;
    let average_milli = used.values().sum::<i64>() / used.len() as i64;
    let proposal = |replicas| Ok(Proposal { replicas, average_milli, utilization });
    let rising = ratio > 1.0;
    if groups.missing.is_empty() && (groups.unready.is_empty() || !rising) {
        if tolerance.holds(ratio) {
            return proposal(current);
        }
        return proposal((ratio * used.len() as f64).ceil() as i32);
    }
    for pod in &groups.missing {
        // Down: as if each were on target, or did all it asked for; up: as if each did nothing.
        let assumed = match goal {
            _ if rising => 0,
            Goal::Value(target) => *target,
            Goal::Utilization(target, asked) => {
                asked.get(*pod).copied().unwrap_or(0) * i64::from((*target).max(100)) / 100
            }
        };
        used.insert(pod, assumed);
    }
    if rising {
        used.extend(groups.unready.iter().map(|pod| (*pod, 0)));
    }
    let (again, _) = self::ratio(goal, &used)?;
    if tolerance.holds(again) || (rising && again < 1.0) || (!rising && again > 1.0) {
        return proposal(current);
    }
    let replicas = (again * used.len() as f64).ceil() as i32;
    // What is not known must not turn the direction.
    let turned = (again < 1.0 && replicas > current) || (again > 1.0 && replicas < current);
    proposal(if turned { current } else { replicas })
}

/// Value over target, and for a utilization its percentage.
fn ratio(goal: &Goal<'_>, used: &BTreeMap<&str, i64>) -> Result<(f64, Option<i32>), String> {
    let sum: i64 = used.values().sum();
    match goal {
        Goal::Value(target) => Ok((sum as f64 / used.len() as f64 / (*target).max(1) as f64, None)),
        Goal::Utilization(target, asked) => {
            let asked: i64 = used.keys().filter_map(|pod| asked.get(*pod)).sum();
            if asked <= 0 {
                return Err("no metrics returned matched known pods".to_owned());
            }
            let percent = (sum * 100 / asked) as i32;
            Ok((f64::from(percent) / f64::from((*target).max(1)), Some(percent)))
        }
    }
}

/// What one value for the whole target asks for: `ready` pods share it.
pub(super) fn of_value(current: i32, value: i64, target: i64, ready: usize, tolerance: Tolerance) -> i32 {
    let ratio = value as f64 / target.max(1) as f64;
    if current == 0 {
        return ratio.ceil() as i32;
    }
    if tolerance.holds(ratio) { current } else { (ratio * ready as f64).ceil() as i32 }
}

/// What one value asks for when each pod should have so much of it.
pub(super) fn of_share(current: i32, value: i64, target: i64, tolerance: Tolerance) -> i32 {
    let needed = value as f64 / target.max(1) as f64;
    if current > 0 && tolerance.holds(needed / f64::from(current)) { current } else { needed.ceil() as i32 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    fn pod(index: usize, ready: bool, age: i64) -> Arc<Pod> {
        let since = now() - SignedDuration::from_secs(age);
        let status = json!({"phase": "Running", "startTime": since, "conditions": [
            {"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": since}]});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": format!("p{index}")}, "status": status})).unwrap())
    }

    fn samples(milli: &[i64]) -> Samples {
        let one = |(index, milli): (usize, &i64)| (format!("p{index}"), Sample { milli: *milli, measured: None });
        milli.iter().enumerate().map(one).collect()
    }

    const TOLERANCE: Tolerance = Tolerance { up: 0.1, down: 0.1 };

    /// Each pod asks for 1000; the target is a percentage of that.
    fn asks(pods: &[Arc<Pod>], used: &[i64], target: i32) -> i32 {
        let asked = pods.iter().map(|pod| (name(&**pod).to_owned(), 1000)).collect();
        let goal = Goal::Utilization(target, &asked);
        of_pods(pods.len() as i32, &goal, pods, &samples(used), true, TOLERANCE, now()).unwrap().replicas
    }

    #[test]
    fn utilization() {
        let old = |count: usize| (0..count).map(|index| pod(index, true, 3600)).collect::<Vec<_>>();
        assert_eq!(asks(&old(3), &[300, 500, 700], 30), 5, "500 of 300 wanted");
        assert_eq!(asks(&old(3), &[300, 500, 700], 50), 3, "on target");
        assert_eq!(asks(&old(3), &[510, 510, 510], 48), 3, "within a tenth");
        assert_eq!(asks(&old(4), &[100, 100, 100, 100], 50), 1);
        // One says nothing: down, it counts as busy; up, as idle.
        assert_eq!(asks(&old(4), &[100, 100, 100], 50), 3, "1300 over 4 at 50");
        assert_eq!(asks(&old(4), &[900, 900, 900], 50), 6, "2700 over 4 at 50");
        assert_eq!(asks(&old(4), &[600, 600, 600], 50), 4, "the one unknown could be idle");
    }

    #[test]
    fn young_pods_do_not_exaggerate() {
        let mut pods = vec![pod(0, true, 3600), pod(1, true, 3600)];
        pods.extend((2..4).map(|index| pod(index, false, 20)));
        assert_eq!(asks(&pods, &[900, 900, 2000, 2000], 50), 4, "two that warm up count as idle: 1800 over 4 at 50");
        assert_eq!(asks(&pods, &[100, 100, 2000, 2000], 50), 1, "and are left out on the way down");
        assert!(of_pods(2, &Goal::Value(1), &pods[2..], &samples(&[0, 0, 9, 9]), true, TOLERANCE, now()).is_err());
    }

    #[test]
    fn values_for_the_whole() {
        assert_eq!(of_value(4, 30_000, 10_000, 4, TOLERANCE), 12);
        assert_eq!(of_value(0, 30_000, 10_000, 0, TOLERANCE), 3);
        assert_eq!(of_value(4, 10_500, 10_000, 4, TOLERANCE), 4);
        assert_eq!(of_share(4, 90_000, 10_000, TOLERANCE), 9);
        assert_eq!(of_share(4, 41_000, 10_000, TOLERANCE), 4);
    }
}
