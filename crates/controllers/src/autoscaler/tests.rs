//! What an autoscaler does and says, for what it is told.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use serde_json::{Value, json};

use super::metrics::Measured;
use super::replicas::Sample;
use super::*;
use crate::action::Target;
use crate::testing::typed;

fn view(current: i32, metrics: Value, measured: Vec<Result<Measured, String>>) -> View {
    let autoscaler: HorizontalPodAutoscaler = typed(json!({
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"minReplicas": 2, "maxReplicas": 10, "metrics": metrics,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}},
    }));
    let target = Target {
        resource: mainstay_model::resource::known("Deployment"),
        key: ObjectKey::new("shop", "web"),
        uid: None,
    };
    let scale = Scale { target, replicas: current, actual: current, selector: "app=web".to_owned() };
    let specs = autoscaler.spec.metrics.clone().unwrap();
    let pods = (0..current).map(|index| {
        let condition = json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2025-01-01T00:00:00Z"}]);
        let status = json!({"phase": "Running", "startTime": "2025-01-01T00:00:00Z", "conditions": condition});
        let container = json!({"name": "main", "resources": {"requests": {"cpu": "100m"}}});
        Arc::new(typed(
            json!({"metadata": {"name": format!("p{index}")}, "spec": {"containers": [container]}, "status": status}),
        ))
    });
    let pods = pods.collect();
    let observed = Observed { scale: Ok(scale), metrics: specs.into_iter().zip(measured).collect() };
    View { autoscaler: Arc::new(autoscaler), observed, pods }
}

/// What is measured of an autoscaler's Deployment: so much processor time for each of its pods, by name.
pub(crate) fn observed(caches: &Caches, key: &ObjectKey, pods: &[String], figures: &[&str]) -> Observed {
    let autoscaler = caches.autoscalers.get_key(key).unwrap();
    let deployment = caches.deployments.get(&key.namespace, &autoscaler.spec.scale_target_ref.name).unwrap();
    let milli = |figure: &str| figure.strip_suffix('m').unwrap().parse().unwrap();
    let samples =
        pods.iter().cloned().zip(figures).map(|(name, figure)| (name, Sample { milli: milli(figure), measured: None }));
    let measured: Measured = Measured::Pods(samples.collect());
    let replicas = deployment.spec.replicas.unwrap_or(1);
    let selector = crate::object::selector(Some(&deployment.spec.selector)).to_string();
    let scale = Scale { target: Target::of(&*deployment), replicas, actual: replicas, selector };
    let specs = metrics::of(autoscaler.spec.metrics.as_ref());
    Observed { scale: Ok(scale), metrics: specs.into_iter().map(|spec| (spec, Ok(measured.clone()))).collect() }
}

fn now(seconds: u64) -> Now {
    Now { wall: "2026-01-01T00:00:00Z".parse().unwrap(), monotonic: Duration::from_secs(seconds) }
}

fn cpu(percent: i32) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
}

fn each(count: i32, milli: i64) -> Measured {
    Measured::Pods((0..count).map(|index| (format!("p{index}"), Sample { milli, measured: None })).collect())
}

/// Actions without the status, and the conditions as `Type=Status(Reason)`.
fn told(plan: &Plan) -> (Vec<String>, Vec<String>) {
    let mut conditions = Vec::new();
    let mut others = Vec::new();
    for action in &plan.actions {
        match action {
            Action::ReplaceStatus(object) => {
                let all = object.value["status"]["conditions"].as_array().unwrap();
                let text = |one: &Value, field: &str| one[field].as_str().unwrap().to_owned();
                conditions = all
                    .iter()
                    .map(|c| format!("{}={}({})", text(c, "type"), text(c, "status"), text(c, "reason")))
                    .collect();
            }
            other => others.push(other.to_string()),
        }
    }
    (others, conditions)
}

#[test]
fn load_scales_up_and_says_why() {
    let plan = reconcile(&view(2, json!([cpu(50)]), vec![Ok(each(2, 100))]), &mut History::default(), now(0));
    let (actions, conditions) = told(&plan);
    assert_eq!(
        actions,
        [
            "scale Deployment shop/web to 4",
            "note SuccessfulRescale: New size: 4; reason: cpu resource utilization (percentage of request) above target",
        ]
    );
    assert_eq!(
        conditions,
        [
            "AbleToScale=True(SucceededRescale)",
            "ScalingActive=True(ValidMetricFound)",
            "ScalingLimited=False(DesiredWithinRange)",
        ]
    );
}

#[test]
fn the_busiest_metric_rules_and_bounds_hold() {
    let queue = json!({"type": "External", "external": {"metric": {"name": "queue"}, "target": {"type": "AverageValue", "averageValue": "10"}}});
    let measured = vec![Ok(each(4, 10)), Ok(Measured::Value(500_000))];
    let plan = reconcile(&view(4, json!([cpu(50), queue]), measured), &mut History::default(), now(0));
    let (actions, conditions) = told(&plan);
    assert_eq!(actions[0], "scale Deployment shop/web to 8", "at most doubled or four more at once");
    assert!(conditions.contains(&"ScalingLimited=True(ScaleUpLimit)".to_owned()), "{conditions:?}");
    let plan = reconcile(&view(12, json!([cpu(50)]), vec![Ok(each(12, 50))]), &mut History::default(), now(0));
    assert_eq!(told(&plan).0[0], "scale Deployment shop/web to 10");
}

#[test]
fn what_is_missing_never_scales_down() {
    let missing = || vec![Err("nothing served".to_owned()), Ok(each(6, 10))];
    let plan = reconcile(&view(6, json!([cpu(50), cpu(50)]), missing()), &mut History::default(), now(0));
    let (actions, conditions) = told(&plan);
    assert_eq!(actions.len(), 1, "only an event: {actions:?}");
    assert!(conditions.contains(&"ScalingActive=False(FailedGetResourceMetric)".to_owned()));
    // But it does not keep the others from scaling up.
    let measured = vec![Err("nothing served".to_owned()), Ok(each(3, 100))];
    let plan = reconcile(&view(3, json!([cpu(50), cpu(50)]), measured), &mut History::default(), now(0));
    assert_eq!(told(&plan).0[0], "scale Deployment shop/web to 6");
    let plan = reconcile(&view(0, json!([cpu(50)]), vec![]), &mut History::default(), now(0));
    assert!(told(&plan).1.contains(&"ScalingActive=False(ScalingDisabled)".to_owned()));
}

#[test]
fn down_waits_for_the_window() {
    let mut history = History::default();
    let calm = || view(6, json!([cpu(50)]), vec![Ok(each(6, 10))]);
    assert!(told(&reconcile(&calm(), &mut history, now(0))).0.is_empty());
    assert!(told(&reconcile(&calm(), &mut history, now(200))).0.is_empty());
    assert_eq!(told(&reconcile(&calm(), &mut history, now(301))).0[0], "scale Deployment shop/web to 2");
}
