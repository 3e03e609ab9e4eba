//! Asking the API what autoscalers need to know: the scale of their targets, and their metrics.
//!
//! Resource metrics come from `metrics.k8s.io`, those of pods and objects from `custom.metrics.k8s.io`, external ones from
//! `external.metrics.k8s.io`, wherever those are served.

use std::collections::BTreeMap;

use form_urlencoded::Serializer;
use http::Request;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HorizontalPodAutoscaler, MetricIdentifier, MetricSpec,
};
use kube::Client;
use mainstay_informer::ObjectKey;
use mainstay_model::quantity::Quantity;
use mainstay_model::resource::{self, Resource};
use serde_json::Value;

use super::metrics::{self, Measured};
use super::replicas::{Sample, Samples};
use crate::action::Target;
use crate::caches::Caches;
use crate::object::{namespace, selector};

/// The scale of a target.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scale {
    pub(crate) target: Target,
    /// Wanted.
    pub(crate) replicas: i32,
    /// There are.
    pub(crate) actual: i32,
    /// Of its pods.
    pub(crate) selector: String,
}

/// What was learnt for one autoscaler. Errors are in words.
#[derive(Debug, Clone)]
pub(crate) struct Observed {
    pub(crate) scale: Result<Scale, String>,
    /// For each metric of the spec, in order.
    pub(crate) metrics: Vec<(MetricSpec, Result<Measured, String>)>,
}

/// Asks for everything one autoscaler needs.
pub(crate) async fn observe(client: &Client, caches: &Caches, autoscaler: &HorizontalPodAutoscaler) -> Observed {
    let space = namespace(autoscaler);
    let spec = &autoscaler.spec;
    let scale = scale(client, caches, space, &spec.scale_target_ref).await;
    let mut all = Vec::new();
    if let Ok(scale) = &scale {
        for metric in metrics::of(spec.metrics.as_ref()) {
            let measured = measure(client, caches, space, &scale.selector, &metric).await;
            all.push((metric, measured));
        }
    }
    Observed { scale, metrics: all }
}

/// The row of a kind, built-in or custom.
fn row(caches: &Caches, api_version: &str, kind: &str) -> Option<&'static Resource> {
    match resource::find_kind(api_version, kind) {
        Some(row) => Some(row),
        None => caches.others.find(api_version, kind).map(|(_, row)| row),
    }
}

async fn scale(
    client: &Client,
    caches: &Caches,
    space: &str,
    of: &CrossVersionObjectReference,
) -> Result<Scale, String> {
    let version = of.api_version.as_deref().unwrap_or("v1");
    let resource = row(caches, version, &of.kind)
        .ok_or_else(|| format!("no matches for kind {:?} in group {version:?}", of.kind))?;
    let target = Target { resource, key: ObjectKey::new(space, &of.name), uid: None };
    let found = get(client, &target.path(Some("scale"))).await?;
    let number = |pointer: &str| found.pointer(pointer).and_then(Value::as_i64).and_then(|n| i32::try_from(n).ok());
    let selector = found.pointer("/status/selector").and_then(Value::as_str).unwrap_or_default().to_owned();
    if selector.is_empty() {
        return Err("the HPA target's scale is missing a selector".to_owned());
    }
    let (replicas, actual) = (number("/spec/replicas").unwrap_or(0), number("/status/replicas").unwrap_or(0));
    Ok(Scale { target, replicas, actual, selector })
}

async fn measure(
    client: &Client,
    caches: &Caches,
    space: &str,
    pods: &str,
    metric: &MetricSpec,
) -> Result<Measured, String> {
    let failed = |error: String| format!("unable to get metrics: {error}");
    match metric.type_.as_str() {
        "Resource" | "ContainerResource" => {
            let path =
                format!("/apis/metrics.k8s.io/v1beta1/namespaces/{space}/pods?{}", query(&[("labelSelector", pods)]));
            let list = get(client, &path).await.map_err(|error| {
                format!(
                    "unable to get metrics for resource: unable to fetch metrics from resource metrics API: {error}"
                )
            })?;
            let (name, container) = match (&metric.resource, &metric.container_resource) {
                (Some(source), _) => (source.name.as_str(), None),
                (None, Some(source)) => (source.name.as_str(), Some(source.container.as_str())),
                (None, None) => return Err("the metric has no source".to_owned()),
            };
            Ok(Measured::Pods(usages(&list, name, container)))
        }
        "Pods" => {
            let source = metric.pods.as_ref().ok_or("the metric has no source")?;
            let chosen = metric_selector(&source.metric);
            let query = query(&[("labelSelector", pods), ("metricLabelSelector", &chosen)]);
            let path =
                format!("/apis/custom.metrics.k8s.io/v1beta2/namespaces/{space}/pods/*/{}?{query}", source.metric.name);
            Ok(Measured::Pods(values(&get(client, &path).await.map_err(failed)?)))
        }
        "Object" => {
            let source = metric.object.as_ref().ok_or("the metric has no source")?;
            let of = &source.described_object;
            let version = of.api_version.as_deref().unwrap_or("v1");
            let row = row(caches, version, &of.kind).ok_or_else(|| format!("no matches for kind {:?}", of.kind))?;
            let group = if row.group.is_empty() { String::new() } else { format!(".{}", row.group) };
            let query = query(&[("metricLabelSelector", &metric_selector(&source.metric))]);
            let path = format!(
                "/apis/custom.metrics.k8s.io/v1beta2/namespaces/{space}/{}{group}/{}/{}?{query}",
                row.plural, of.name, source.metric.name
            );
            one(&get(client, &path).await.map_err(failed)?)
        }
        "External" => {
            let source = metric.external.as_ref().ok_or("the metric has no source")?;
            let query = query(&[("labelSelector", &metric_selector(&source.metric))]);
            let path =
                format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{space}/{}?{query}", source.metric.name);
            one(&get(client, &path).await.map_err(failed)?)
        }
        other => Err(format!("unknown metric source type {other:?}")),
    }
}

fn metric_selector(metric: &MetricIdentifier) -> String {
    metric.selector.as_ref().map(|one| selector(Some(one)).to_string()).unwrap_or_default()
}

fn query(pairs: &[(&str, &str)]) -> String {
    let given = pairs.iter().filter(|(_, value)| !value.is_empty());
    Serializer::new(String::new()).extend_pairs(given).finish()
}

async fn get(client: &Client, path: &str) -> Result<Value, String> {
    let request = Request::get(path).header("accept", "application/json").body(Vec::new());
    let text = client.request_text(request.map_err(|error| error.to_string())?).await;
    let text = text.map_err(|error| match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    })?;
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

fn milli(value: &Value) -> Option<i64> {
    Some(Quantity::from_value(value).ok()?.milli_value())
}

/// `window` is written as a Go duration, for example `15.2s`.
fn measured(item: &Value, window: Option<SignedDuration>) -> Option<(Timestamp, SignedDuration)> {
    let at = item["timestamp"].as_str()?.parse().ok()?;
    let seconds = || item["window"].as_str()?.strip_suffix('s')?.parse::<f64>().ok();
    let window = window.or_else(|| SignedDuration::try_from_secs_f64(seconds()?).ok());
    Some((at, window.unwrap_or(SignedDuration::from_secs(60))))
}

/// `PodMetricsList`: the use of a resource, over all containers or of one.
fn usages(list: &Value, resource: &str, container: Option<&str>) -> Samples {
    let mut samples = BTreeMap::new();
    for item in list["items"].as_array().into_iter().flatten() {
        let own = item["containers"].as_array().into_iter().flatten();
        let own = own.filter(|own| container.is_none_or(|name| own["name"] == name));
        let used: Option<Vec<i64>> = own.map(|own| milli(&own["usage"][resource])).collect();
        if let (Some(name), Some(used)) = (item["metadata"]["name"].as_str(), used.filter(|used| !used.is_empty())) {
            samples.insert(name.to_owned(), Sample { milli: used.iter().sum(), measured: measured(item, None) });
        }
    }
    samples
}

/// `MetricValueList` of pods.
fn values(list: &Value) -> Samples {
    let items = list["items"].as_array().into_iter().flatten();
    let pairs = items.filter_map(|item| {
        let window = item["windowSeconds"].as_i64().map(SignedDuration::from_secs);
        let sample = Sample { milli: milli(&item["value"])?, measured: measured(item, window) };
        Some((item["describedObject"]["name"].as_str()?.to_owned(), sample))
    });
    pairs.collect()
}

/// The sum of a `MetricValueList` or `ExternalMetricValueList`.
fn one(list: &Value) -> Result<Measured, String> {
    let all: Option<Vec<i64>> =
        list["items"].as_array().into_iter().flatten().map(|item| milli(&item["value"])).collect();
    match all.filter(|all| !all.is_empty()) {
        Some(all) => Ok(Measured::Value(all.iter().sum())),
        None => Err("no metrics returned from metrics API".to_owned()),
    }
}
