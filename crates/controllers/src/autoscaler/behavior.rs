//! How fast a target may be scaled: stabilisation windows and policies.
//!
//! Source: <https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#configurable-scaling-behavior>.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerSpec};
use mainstay_model::quantity::Quantity;

/// Deviation from the target that changes nothing.
const TOLERANCE: f64 = 0.1;
const DOWN_WINDOW: i32 = 300;
/// The longest time anything is remembered: the longest window and period the API allows.
const MEMORY: Duration = Duration::from_secs(3600);

/// What has been recommended and done, each with the time since an arbitrary start.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    recommended: Vec<(Duration, i32)>,
    /// Changes of size: above zero up, below down.
    scaled: Vec<(Duration, i32)>,
}

impl History {
    /// Notes that the size was changed.
    pub(super) fn scaled(&mut self, now: Duration, change: i32) {
        self.scaled.push((now, change));
    }

    fn forget(&mut self, now: Duration) {
        let recent = |(at, _): &(Duration, i32)| now.saturating_sub(*at) <= MEMORY;
        self.recommended.retain(recent);
        self.scaled.retain(recent);
    }

    /// Pods added and taken away within the last `seconds`.
    fn changes(&self, now: Duration, seconds: i32) -> (i32, i32) {
        let period = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let recent = self.scaled.iter().filter(|(at, _)| now.saturating_sub(*at) < period);
        recent.fold((0, 0), |(up, down), (_, change)| (up + (*change).max(0), down - (*change).min(0)))
    }
}

/// Rules with their defaults filled in.
pub(super) struct Rules {
    window: Duration,
    policies: Vec<HPAScalingPolicy>,
    select: String,
    /// Deviation from the target that changes nothing.
    pub(super) tolerance: f64,
}

fn policy(type_: &str, value: i32) -> HPAScalingPolicy {
    HPAScalingPolicy { type_: type_.to_owned(), value, period_seconds: 15 }
}

fn rules(given: Option<&HPAScalingRules>, window: i32, policies: Vec<HPAScalingPolicy>) -> Rules {
    let given = given.cloned().unwrap_or_default();
    let tolerance = given.tolerance.as_ref().and_then(|text| text.0.parse::<Quantity>().ok());
    let window = given.stabilization_window_seconds.unwrap_or(window);
    Rules {
        window: Duration::from_secs(u64::try_from(window).unwrap_or(0)),
        policies: given.policies.filter(|all| !all.is_empty()).unwrap_or(policies),
        select: given.select_policy.unwrap_or_else(|| "Max".to_owned()),
        tolerance: tolerance.map_or(TOLERANCE, Quantity::as_f64),
    }
}

/// The rules for scaling up and down.
pub(super) fn of(spec: &HorizontalPodAutoscalerSpec) -> (Rules, Rules) {
    let behavior = spec.behavior.as_ref();
    let up = rules(behavior.and_then(|b| b.scale_up.as_ref()), 0, vec![policy("Pods", 4), policy("Percent", 100)]);
    let down = rules(behavior.and_then(|b| b.scale_down.as_ref()), DOWN_WINDOW, vec![policy("Percent", 100)]);
    (up, down)
}

/// What came of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowed {
    pub(super) replicas: i32,
    /// Reason and message of the condition `AbleToScale`.
    pub(super) able: (&'static str, &'static str),
    /// Reason and message of the condition `ScalingLimited` when it is true.
    pub(super) limited: Option<(&'static str, &'static str)>,
}

/// The size that is allowed now.
pub(super) fn allow(
    (up, down): (&Rules, &Rules),
    (least, most): (i32, i32),
    current: i32,
    wanted: i32,
    history: &mut History,
    now: Duration,
) -> Allowed {
    history.forget(now);
    if history.recommended.is_empty() {
        // Nobody knows what was wanted before: taken to be what there is.
        history.recommended.push((now, current));
    }
    let within = |rules: &Rules| {
        let recent = history.recommended.iter().filter(|(at, _)| now.saturating_sub(*at) < rules.window);
        recent.map(|(_, replicas)| *replicas).collect::<Vec<_>>()
    };
    // Up only as far as every recommendation of the window, down only as far as none of them exceeds.
    let up_to = within(up).into_iter().chain([wanted]).min().unwrap_or(wanted);
    let down_to = within(down).into_iter().chain([wanted]).max().unwrap_or(wanted);
    history.recommended.push((now, wanted));
    let stable = current.max(up_to).min(down_to);
    let able = match () {
        () if stable < wanted => (
            "ScaleUpStabilized",
            "recent recommendations were lower than current one, applying the lowest recent recommendation",
        ),
        () if stable > wanted => (
            "ScaleDownStabilized",
            "recent recommendations were higher than current one, applying the highest recent recommendation",
        ),
        () => ("ReadyForNewScale", "recommended size matches current size"),
    };
    let (replicas, limited) = limit((up, down), (least, most), (current, stable, wanted), history, now);
    Allowed { replicas, able, limited }
}

type Limit = (&'static str, &'static str);
const TOO_MANY: Limit = ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: Limit = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const TOO_FAST_UP: Limit =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const TOO_FAST_DOWN: Limit =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");

/// The stable size within policies and bounds, and what held it back.
fn limit(
    (up, down): (&Rules, &Rules),
    (least, most): (i32, i32),
    (current, stable, wanted): (i32, i32, i32),
    history: &History,
    now: Duration,
) -> (i32, Option<Limit>) {
    if stable > current {
        let limit = limit_up(up, current, history, now).max(current);
        let highest = limit.min(most);
        let reason = if limit > most { TOO_MANY } else { TOO_FAST_UP };
        return if stable > highest { (highest, Some(reason)) } else { (stable, None) };
    }
    if stable < current {
        let limit = limit_down(down, current, history, now).min(current);
        let lowest = limit.max(least);
        let reason = if limit < least { TOO_FEW } else { TOO_FAST_DOWN };
        return if stable < lowest { (lowest, Some(reason)) } else { (stable, None) };
    }
    match () {
        () if wanted > most => (stable.min(most), Some(TOO_MANY)),
        () if wanted < least => (stable.max(least), Some(TOO_FEW)),
        () => (stable, None),
    }
}

fn limit_up(rules: &Rules, current: i32, history: &History, now: Duration) -> i32 {
    let limits = rules.policies.iter().map(|policy| {
        let (added, gone) = history.changes(now, policy.period_seconds);
        let start = current - added + gone;
        match policy.type_.as_str() {
            "Pods" => start.saturating_add(policy.value),
            _ => (f64::from(start) * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32,
        }
    });
    match rules.select.as_str() {
        "Disabled" => current,
        "Min" => limits.min().unwrap_or(current),
        _ => limits.max().unwrap_or(current),
    }
}

fn limit_down(rules: &Rules, current: i32, history: &History, now: Duration) -> i32 {
    let limits = rules.policies.iter().map(|policy| {
        let (added, gone) = history.changes(now, policy.period_seconds);
        let start = current - added + gone;
        match policy.type_.as_str() {
            "Pods" => start.saturating_sub(policy.value),
            _ => (f64::from(start) * (1.0 - f64::from(policy.value) / 100.0)).floor() as i32,
        }
    });
    match rules.select.as_str() {
        "Disabled" => current,
        // The smaller change leaves more.
        "Min" => limits.max().unwrap_or(current),
        _ => limits.min().unwrap_or(current),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::needless_pass_by_value)]
    use super::*;
    use serde_json::json;

    fn spec(behavior: &serde_json::Value) -> HorizontalPodAutoscalerSpec {
        let spec = json!({"maxReplicas": 100, "minReplicas": 1, "scaleTargetRef": {"kind": "Deployment", "name": "web"},
            "behavior": behavior});
        serde_json::from_value(spec).expect("it is valid")
    }

    /// Sizes over time for (second, wanted).
    fn play(behavior: serde_json::Value, start: i32, wishes: &[(u64, i32)]) -> Vec<i32> {
        let (up, down) = of(&spec(&behavior));
        let (mut history, mut current) = (History::default(), start);
        let step = |(second, wanted): &(u64, i32)| {
            let now = Duration::from_secs(*second);
            let allowed = allow((&up, &down), (1, 100), current, *wanted, &mut history, now);
            if allowed.replicas != current {
                history.scaled(now, allowed.replicas - current);
            }
            current = allowed.replicas;
            current
        };
        wishes.iter().map(step).collect()
    }

    #[test]
    fn up_at_once_but_not_too_fast_and_down_only_after_five_minutes() {
        assert_eq!(play(json!(null), 1, &[(0, 50), (5, 50), (15, 50), (30, 50), (45, 50)]), [5, 5, 10, 20, 40]);
        assert_eq!(play(json!(null), 10, &[(0, 10), (60, 2), (200, 2), (299, 2), (301, 2)]), [10, 10, 10, 10, 2]);
        assert_eq!(play(json!(null), 10, &[(0, 10), (60, 2), (200, 6), (301, 2), (501, 2)]), [10, 10, 10, 6, 2]);
    }

    #[test]
    fn policies_and_windows() {
        let slow = json!({"scaleDown": {"stabilizationWindowSeconds": 0,
            "policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]}});
        assert_eq!(play(slow, 10, &[(0, 1), (30, 1), (60, 1), (120, 1)]), [8, 8, 6, 4]);
        let never = json!({"scaleDown": {"selectPolicy": "Disabled", "stabilizationWindowSeconds": 0}});
        assert_eq!(play(never, 10, &[(0, 1), (3000, 1)]), [10, 10]);
        let calm = json!({"scaleUp": {"stabilizationWindowSeconds": 60}});
        assert_eq!(play(calm, 2, &[(0, 9), (30, 4), (59, 9), (61, 9), (91, 9)]), [2, 2, 2, 4, 8]);
    }
}
