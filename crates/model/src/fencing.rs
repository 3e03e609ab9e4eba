//! Fencing: the two clocks by which a pod that must not run twice never does.
//!
//! A node that is not heard may be dead, or cut off with everything on it alive. Before such a pod is started elsewhere, the
//! old one must have stopped, and nobody can ask. So both sides count:
//!
//! - *The node* stops the pod when [`Fence::stop_after`] has passed since it **sent** the last renewal of its Lease that
//!   was acknowledged. The pod's own shim counts, so it needs neither the agent nor anything else of the node.
//! - *The control plane* replaces the pod when [`Fence::replace_after`] has passed since it last **saw** the Lease change,
//!   and a read of the Lease that nothing older can answer shows that it has not been renewed since.
//!
//! # Proof
//!
//! Let `F` = `stop_after`, `K` = [`STOP_LIMIT`] (how late the shim may look, and how long SIGKILL may take), `R` =
//! `replace_after`, `t` the real time of the read, `v` the real time at which the control plane saw the last renewal before
//! that, and let every clock run at a rate between `1 - d` and `1 + d` of real time, `d` = [`DRIFT`].
//!
//! 1. The control plane's clock shows `R` since `v` at the earliest at `v + R / (1 + d)`, so `t >= v + R / (1 + d)`.
//! 2. The read shows every renewal that the API server had taken in by `t`; all of them had been seen by `v`, so all of them
//!    had been sent by `v`. A renewal is acknowledged only after it was taken in, so whatever was acknowledged by `t` was
//!    sent by `v`. (Without the read this fails: a slow watch could hide a renewal that was acknowledged.)
//! 3. So the node's clock, which counts from the sending, shows `F` at the latest at `v + F / (1 - d)`, and the pod is gone by
//!    `v + F / (1 - d) + K`. An acknowledgement that comes later finds the pod stopped.
//! 4. `R` is chosen so that `R / (1 + d) >= F / (1 - d) + K`. So the pod is gone by `t`, before it is replaced. ∎
//!
//! A restart of the control plane, a slow watch or a stalled process make `v` later, never earlier.
//!
//! A pod that was stopped so never runs again: its node reports it `Failed`, and the next one is a new pod. So nothing has
//! to be agreed when the node comes back.
//!
//! # Assumptions
//!
//! Clocks are monotonic, run while the machine sleeps (`CLOCK_BOOTTIME`), and keep within [`DRIFT`]. SIGKILL takes effect within
//! [`STOP_LIMIT`]. What no clock of the node can give: a machine whose processors stand still (a paused virtual machine) and
//! go on later runs on for at most the shim's look interval before it stops the pod; who must exclude that needs storage that
//! fences.

use std::time::Duration;

use serde_json::Value;

use crate::meta;

/// The annotation of a Node by which it promises to stop its pods, in milliseconds.
pub const ANNOTATION: &str = "mainstay.dev/fence-after-ms";
/// The annotation of a pod that says whether it must not run twice: `true` or `false`.
pub const POD_ANNOTATION: &str = "mainstay.dev/runs-once";
/// The reason in the status of a pod that its node stopped for this.
pub const REASON: &str = "NodeFenced";
/// How far clocks may differ in rate.
pub const DRIFT: f64 = 0.01;
/// How long stopping may take once it is due: the shim's look interval and SIGKILL.
pub const STOP_LIMIT: Duration = Duration::from_millis(500);
/// How often the shim looks.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// What a node promises unless it is told otherwise.
pub const STOP_AFTER: Duration = Duration::from_millis(2_500);

/// One node's promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// Time since the last acknowledged renewal was sent after which the node stops its pods.
    pub stop_after: Duration,
}

impl Fence {
    /// The promise of a node, from its annotation; `None` when it makes none.
    pub fn of(annotation: Option<&str>) -> Option<Self> {
        let stop_after = Duration::from_millis(annotation?.parse().ok()?);
        Some(Self { stop_after })
    }

    /// Time since the Lease was last seen to change after which the pods may be replaced.
    pub fn replace_after(self) -> Duration {
        (self.stop_after.div_f64(1.0 - DRIFT) + STOP_LIMIT).mul_f64(1.0 + DRIFT)
    }

    /// Whether the node must stop its pods, `since` the last acknowledged renewal was sent.
    pub fn is_over(self, since: Duration) -> bool {
        since >= self.stop_after
    }
}

/// Whether a pod must not run twice: one of a StatefulSet, one with a volume that is claimed, or one that says so. Node and
/// control plane both ask here, so that they agree.
pub fn runs_once(pod: &Value) -> bool {
    match meta::annotation(pod, POD_ANNOTATION) {
        Some("true") => return true,
        Some("false") => return false,
        _ => {}
    }
    let of_set = meta::controller_of(pod).is_some_and(|owner| owner["kind"] == "StatefulSet");
    let claims = |volume: &Value| !volume["persistentVolumeClaim"].is_null() || !volume["ephemeral"].is_null();
    of_set || meta::list_at(pod, "spec.volumes").iter().any(claims)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_leave_a_second_and_a_half_for_the_start_elsewhere() {
        let fence = Fence { stop_after: STOP_AFTER };
        assert!(fence.replace_after() < Duration::from_millis(3_100), "{:?}", fence.replace_after());
        assert_eq!(Fence::of(Some("2500")), Some(fence));
        assert_eq!((Fence::of(None), Fence::of(Some("soon"))), (None, None));
    }

    #[test]
    fn who_must_not_run_twice() {
        let owned = |kind: &str| json!({"metadata": {"ownerReferences": [{"kind": kind, "controller": true}]}});
        let annotated = |value: &str| json!({"metadata": {"annotations": {POD_ANNOTATION: value}}});
        let claiming = json!({"spec": {"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "d"}}]}});
        for (pod, once) in [
            (owned("StatefulSet"), true),
            (owned("ReplicaSet"), false),
            (annotated("true"), true),
            (claiming, true),
            (json!({}), false),
        ] {
            assert_eq!(runs_once(&pod), once, "{pod}");
        }
    }

    /// One renewal: sent at, time to the server, time of the answer, time until the control plane sees it; lost on its way
    /// there or back.
    #[derive(Debug, Clone)]
    struct Renewal {
        sent: f64,
        there: f64,
        back: f64,
        seen: f64,
        lost_there: bool,
        lost_back: bool,
    }

    prop_compose! {
        fn renewal()(
            gap in 0.0..3.0f64, there in 0.0..4.0f64, back in 0.0..4.0f64, seen in 0.0..4.0f64,
            lost_there in any::<bool>(), lost_back in any::<bool>(),
        ) -> Renewal {
            Renewal { sent: gap, there, back, seen, lost_there, lost_back }
        }
    }

    proptest! {
        /// Whatever is lost or late, and however the clocks run within their bounds: the pod has stopped before it is
        /// replaced. Times are real seconds.
        #[test]
        fn never_twice(
            renewals in prop::collection::vec(renewal(), 1..40),
            node_rate in 1.0 - DRIFT..=1.0 + DRIFT,
            judge_rate in 1.0 - DRIFT..=1.0 + DRIFT,
            restart in prop::option::of(0.0..40.0f64),
            late in 0.0..=1.0f64,
            stop_after_ms in 500u64..20_000,
        ) {
            let fence = Fence { stop_after: Duration::from_millis(stop_after_ms) };
            let (stop, replace) = (fence.stop_after.as_secs_f64(), fence.replace_after().as_secs_f64());
            let mut clock = 0.0;
            // (answered, sent), and (taken in, seen).
            let (mut acknowledged, mut taken) = (Vec::new(), vec![(0.0f64, 0.0f64)]);
            for renewal in &renewals {
                clock += renewal.sent;
                if renewal.lost_there {
                    continue;
                }
                taken.push((clock + renewal.there, clock + renewal.there + renewal.seen));
                if !renewal.lost_back {
                    acknowledged.push((clock + renewal.there + renewal.back, clock));
                }
            }
            let stopped = stops(acknowledged, stop / node_rate) + late * STOP_LIMIT.as_secs_f64();
            // A new control plane begins to count when it starts.
            taken.extend(restart.map(|start| (start, start)));
            let replaced = replaces(&taken, replace / judge_rate);
            prop_assert!(stopped <= replaced + 1e-9, "stopped at {stopped}, replaced at {replaced}");
        }
    }

    /// When the node stops: at each moment it holds the newest sending time among the answers that have come; it stops at
    /// the first moment at which that is too long ago, and then for good.
    fn stops(mut acknowledged: Vec<(f64, f64)>, after: f64) -> f64 {
        acknowledged.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut held = 0.0f64;
        for (answered, sent) in acknowledged {
            if answered >= held + after {
                break;
            }
            held = held.max(sent);
        }
        held + after
    }

    /// When the control plane replaces: it has seen nothing new for long enough, and a read shows nothing new either.
    fn replaces(taken: &[(f64, f64)], after: f64) -> f64 {
        let mut last = 0.0f64;
        loop {
            let due = last + after;
            // What it sees on the way makes it count anew; what only the read shows, too, from the time of the read.
            let newer = taken.iter().map(|(_, seen)| *seen).filter(|seen| *seen > last && *seen <= due);
            let hidden = taken.iter().any(|(taken, seen)| *taken <= due && *seen > due);
            last = match newer.min_by(f64::total_cmp) {
                Some(seen) => seen,
                None if hidden => due,
                None => return due,
            };
        }
    }
}
