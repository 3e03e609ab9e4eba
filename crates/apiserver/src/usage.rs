//! `metrics.k8s.io`: what nodes, pods and their containers use, as `kubectl top` and the HorizontalPodAutoscaler ask for it.
//!
//! Flow: choose the objects → ask the agents of their nodes, all at once → put each object's name and usage together.
//! Nothing is stored.
//!
//! Guarantees: an agent is asked at most once a [`FRESH`] however many ask here; one that does not answer costs its own
//! objects, not the others; objects that have not been measured yet are left out, as by the metrics server.
//!
//! Source: <https://kubernetes.io/docs/tasks/debug/debug-cluster/resource-metrics-pipeline/>.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use mainstay_model::meta::format_time;
use mainstay_model::resource::known;
use mainstay_model::status::ApiError;
use serde_json::{Value, json};

use crate::api::Api;
use crate::computed;
use crate::proxy;
use crate::request::{Call, Form, Query, Verb};
use crate::rest;

/// The group of these resources.
pub(crate) const GROUP: &str = "metrics.k8s.io";
/// How long an agent's answer is good.
const FRESH: Duration = Duration::from_secs(1);
/// Of an agent's answer.
const SUMMARY_BYTES_MAX: usize = 8 << 20;
/// Over which time the agents measure, as far as people are told.
const WINDOW: &str = "5s";

/// The agents' last answers, by node.
#[derive(Default)]
pub(crate) struct Summaries(Mutex<HashMap<String, (Instant, Arc<Value>)>>);

impl Summaries {
    fn fresh(&self, node: &str) -> Option<Arc<Value>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(node).filter(|(at, _)| at.elapsed() < FRESH).map(|(_, summary)| summary.clone())
    }

    fn put(&self, node: &str, summary: Arc<Value>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (at, _)| at.elapsed() < FRESH);
        all.insert(node.to_owned(), (Instant::now(), summary));
    }
}

/// Answers a get or a list.
///
/// # Errors
/// 404 for one object that is not there or was not measured.
pub(crate) async fn answer(api: &Api, call: &Call, form: Form) -> Result<Value, ApiError> {
    let of = if call.resource.kind == "NodeMetrics" { "Node" } else { "Pod" };
    let mut objects = Call { resource: known(of).into(), verb: Verb::List, name: None, ..call.clone() };
    objects.query = Query::default();
    let mut filter = Call { resource: known(of).into(), ..call.clone() };
    filter.verb = Verb::List;
    let (chosen, revision) = rest::select(api, &objects, &rest::Filter::of(&filter)?).await?;
    let chosen: Vec<Value> = chosen
        .into_iter()
        .filter(|object| call.name.as_deref().is_none_or(|n| object["metadata"]["name"] == n))
        .collect();
    let field = if of == "Node" { "/metadata/name" } else { "/spec/nodeName" };
    let node_of = |object: &Value| object.pointer(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let nodes: BTreeSet<String> = chosen.iter().map(node_of).filter(|node| !node.is_empty()).collect();
    let asked = nodes.iter().map(|node| summary(api, call, node));
    let summaries: HashMap<&String, Arc<Value>> =
        nodes.iter().zip(join_all(asked).await).filter_map(|(node, summary)| Some((node, summary?))).collect();
    let now = format_time(api.now());
    let measured = chosen.iter().filter_map(|object| {
        let summary = summaries.get(&node_of(object))?;
        if of == "Node" { of_node(object, summary, &now) } else { of_pod(object, summary, &now) }
    });
    let mut items: Vec<Value> = measured.collect();
    if call.name.is_some() {
        return items.pop().ok_or_else(|| call.not_found());
    }
    Ok(computed::list(api, call, form, items, revision))
}

/// What a node's agent tells; none when it does not.
async fn summary(api: &Api, call: &Call, node: &str) -> Option<Arc<Value>> {
    if let Some(summary) = api.summaries.fresh(node) {
        return Some(summary);
    }
    let object = proxy::object(api, call, "Node", None, node).await.ok()?;
    let bytes = proxy::ask_agent(api, &object, "/stats/summary", SUMMARY_BYTES_MAX).await;
    let bytes = bytes.inspect_err(|error| tracing::debug!(node, error = %error.message, "node not measured")).ok()?;
    let summary: Arc<Value> = Arc::new(serde_json::from_slice(&bytes).ok()?);
    api.summaries.put(node, summary.clone());
    Some(summary)
}

/// CPU in billionths of a core, memory in KiB: the units of the metrics server.
fn usage(of: &Value) -> Option<Value> {
    let cpu = of["cpu"]["usageNanoCores"].as_u64()?;
    let memory = of["memory"]["workingSetBytes"].as_u64()?;
    Some(json!({"cpu": format!("{cpu}n"), "memory": format!("{}Ki", memory / 1024)}))
}

fn metadata(object: &Value, now: &str) -> Value {
    let mut metadata = json!({"name": object["metadata"]["name"], "creationTimestamp": now});
    for field in ["namespace", "labels"] {
        if !object["metadata"][field].is_null() {
            metadata[field] = object["metadata"][field].clone();
        }
    }
    metadata
}

fn seconds(time: &Value, now: &str) -> String {
    time.as_str().and_then(|text| text.parse().ok()).map_or_else(|| now.to_owned(), format_time)
}

fn of_node(node: &Value, summary: &Value, now: &str) -> Option<Value> {
    Some(json!({
        "kind": "NodeMetrics", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": metadata(node, now),
        "timestamp": seconds(&summary["node"]["cpu"]["time"], now), "window": WINDOW, "usage": usage(&summary["node"])?,
    }))
}

fn of_pod(pod: &Value, summary: &Value, now: &str) -> Option<Value> {
    let pods = summary["pods"].as_array()?;
    let measured = pods.iter().find(|measured| measured["podRef"]["uid"] == pod["metadata"]["uid"])?;
    let containers = measured["containers"].as_array()?.iter();
    let containers =
        containers.filter_map(|container| Some(json!({"name": container["name"], "usage": usage(container)?})));
    Some(json!({
        "kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": metadata(pod, now),
        "timestamp": seconds(&measured["cpu"]["time"], now), "window": WINDOW,
        "containers": containers.collect::<Vec<_>>(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_usage_in_the_units_of_the_metrics_server() {
        let pod = json!({"metadata": {"name": "a", "namespace": "n", "uid": "u", "labels": {"app": "a"}}});
        let summary = json!({"pods": [{"podRef": {"uid": "u"}, "cpu": {"time": "2026-01-01T00:00:00.5Z"}, "containers": [
            {"name": "c", "cpu": {"usageNanoCores": 5}, "memory": {"workingSetBytes": 4096}}]}]});
        let found = of_pod(&pod, &summary, "2026-01-02T00:00:00Z");
        let expected = json!({
            "kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1",
            "metadata": {"name": "a", "namespace": "n", "labels": {"app": "a"}, "creationTimestamp": "2026-01-02T00:00:00Z"},
            "timestamp": "2026-01-01T00:00:00Z", "window": "5s",
            "containers": [{"name": "c", "usage": {"cpu": "5n", "memory": "4Ki"}}],
        });
        assert_eq!(found, Some(expected));
        assert_eq!(of_pod(&json!({"metadata": {"uid": "x"}}), &summary, ""), None);
    }
}
