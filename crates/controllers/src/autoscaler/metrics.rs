//! Each kind of metric: what of it is measured, what it asks for, and how the status shows it.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus,
    ObjectMetricStatus, PodsMetricStatus, ResourceMetricSource, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use mainstay_model::quantity::Quantity;
use mainstay_model::workload::is_sidecar;
use serde_json::json;

use super::replicas::{Goal, Proposal, Samples, Tolerance, of_pods, of_share, of_value};
use crate::object::{is_ready, name};

/// What was measured for one metric.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Measured {
    /// Of every pod.
    Pods(Samples),
    /// One value, in thousandths.
    Value(i64),
}

/// What a metric asks for and how it is shown.
pub(super) struct Asked {
    pub(super) replicas: i32,
    /// In words, for events and conditions.
    pub(super) named: String,
    pub(super) status: MetricStatus,
}

/// What metrics are judged against.
pub(super) struct Context<'a> {
    pub(super) current: i32,
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) tolerance: Tolerance,
    pub(super) now: Timestamp,
}

/// The metrics of a spec; without any, processor use at 80 % of requests.
pub(super) fn of(specs: Option<&Vec<MetricSpec>>) -> Vec<MetricSpec> {
    specs.filter(|all| !all.is_empty()).cloned().unwrap_or_else(|| {
        let target =
            MetricTarget { type_: "Utilization".to_owned(), average_utilization: Some(80), ..MetricTarget::default() };
        let resource = ResourceMetricSource { name: "cpu".to_owned(), target };
        vec![MetricSpec { type_: "Resource".to_owned(), resource: Some(resource), ..MetricSpec::default() }]
    })
}

/// The reason of a condition when the metric could not be had.
pub(super) fn failure(spec: &MetricSpec) -> &'static str {
    match spec.type_.as_str() {
        "Resource" => "FailedGetResourceMetric",
        "ContainerResource" => "FailedGetContainerResourceMetric",
        "Pods" => "FailedGetPodsMetric",
        "Object" => "FailedGetObjectMetric",
        _ => "FailedGetExternalMetric",
    }
}

fn milli(written: Option<&Written>) -> Option<i64> {
    Some(written?.0.parse::<Quantity>().ok()?.milli_value())
}

fn written(milli: i64) -> Written {
    Written(Quantity::from_milli(milli).to_string())
}

/// What the metric asks for. The error says what is missing.
pub(super) fn ask(spec: &MetricSpec, measured: &Measured, context: &Context<'_>) -> Result<Asked, String> {
    let empty = || MetricStatus { type_: spec.type_.clone(), ..MetricStatus::default() };
    match (spec.type_.as_str(), measured) {
        ("Resource", Measured::Pods(samples)) => {
            let source = spec.resource.as_ref().ok_or("the metric has no resource")?;
            let (proposal, current) = resource(&source.name, None, &source.target, samples, context)?;
            let how = if proposal.utilization.is_some() { " (percentage of request)" } else { "" };
            let status = ResourceMetricStatus { name: source.name.clone(), current };
            Ok(Asked {
                replicas: proposal.replicas,
                named: format!("{} resource{}{how}", source.name, if how.is_empty() { "" } else { " utilization" }),
                status: MetricStatus { resource: Some(status), ..empty() },
            })
        }
        ("ContainerResource", Measured::Pods(samples)) => {
            let source = spec.container_resource.as_ref().ok_or("the metric has no containerResource")?;
            let (proposal, current) =
                resource(&source.name, Some(&source.container), &source.target, samples, context)?;
            let (name, container) = (source.name.clone(), source.container.clone());
            let how = if proposal.utilization.is_some() { " utilization (percentage of request)" } else { "" };
            Ok(Asked {
                replicas: proposal.replicas,
                named: format!("{name} container resource{how}"),
                status: MetricStatus {
                    container_resource: Some(ContainerResourceMetricStatus { name, container, current }),
                    ..empty()
                },
            })
        }
        ("Pods", Measured::Pods(samples)) => {
            let source = spec.pods.as_ref().ok_or("the metric has no pods")?;
            let target = milli(source.target.average_value.as_ref()).ok_or("the target has no averageValue")?;
            let proposal = plain(target, samples, false, context)?;
            let current = MetricValueStatus {
                average_value: Some(written(proposal.average_milli)),
                ..MetricValueStatus::default()
            };
            Ok(Asked {
                replicas: proposal.replicas,
                named: format!("pods metric {}", source.metric.name),
                status: MetricStatus {
                    pods: Some(PodsMetricStatus { metric: source.metric.clone(), current }),
                    ..empty()
                },
            })
        }
        ("Object" | "External", Measured::Value(measured)) => ask_whole(spec, *measured, context),
        (other, _) => Err(format!("unknown metric source type {other:?}")),
    }
}

/// What a metric of the whole target asks for.
fn ask_whole(spec: &MetricSpec, measured: i64, context: &Context<'_>) -> Result<Asked, String> {
    let mut status = MetricStatus { type_: spec.type_.clone(), ..MetricStatus::default() };
    if let Some(source) = &spec.object {
        let (replicas, current) = whole(&source.target, measured, context)?;
        let (described_object, metric) = (source.described_object.clone(), source.metric.clone());
        let named = format!("{} metric {}", described_object.kind, metric.name);
        status.object = Some(ObjectMetricStatus { described_object, metric, current });
        return Ok(Asked { replicas, named, status });
    }
    let source = spec.external.as_ref().ok_or("the metric has no source")?;
    let (replicas, current) = whole(&source.target, measured, context)?;
    status.external = Some(ExternalMetricStatus { metric: source.metric.clone(), current });
    Ok(Asked { replicas, named: format!("external metric {}", source.metric.name), status })
}

fn plain(target: i64, samples: &Samples, is_cpu: bool, context: &Context<'_>) -> Result<Proposal, String> {
    let Context { current, pods, tolerance, now } = context;
    of_pods(*current, &Goal::Value(target), pods, samples, is_cpu, *tolerance, *now)
}

/// A resource of the pods, or of one container in each.
fn resource(
    resource: &str,
    container: Option<&str>,
    target: &MetricTarget,
    samples: &Samples,
    context: &Context<'_>,
) -> Result<(Proposal, MetricValueStatus), String> {
    let is_cpu = resource == "cpu";
    let proposal = match (milli(target.average_value.as_ref()), target.average_utilization) {
        (Some(target), _) => plain(target, samples, is_cpu, context)?,
        (None, Some(percent)) => {
            let asked = requests(context.pods, resource, container)?;
            let Context { current, pods, tolerance, now } = context;
            of_pods(*current, &Goal::Utilization(percent, &asked), pods, samples, is_cpu, *tolerance, *now)?
        }
        (None, None) => return Err("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set".to_owned()),
    };
    let current = MetricValueStatus {
        average_utilization: proposal.utilization,
        average_value: Some(written(proposal.average_milli)),
        value: None,
    };
    Ok((proposal, current))
}

/// What each pod asks for, in thousandths; every container must say.
fn requests(pods: &[Arc<Pod>], resource: &str, container: Option<&str>) -> Result<BTreeMap<String, i64>, String> {
    let mut all = BTreeMap::new();
    for pod in pods {
        let Some(spec) = &pod.spec else { continue };
        let sidecars = spec.init_containers.iter().flatten().filter(|init| is_sidecar(&json!(init)));
        let mut sum = 0;
        for own in spec.containers.iter().chain(sidecars).filter(|own| container.is_none_or(|name| name == own.name)) {
            let request = own.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get(resource));
            let missing =
                || format!("missing request for {resource} in container {} of Pod {}", own.name, name(&**pod));
            sum += milli(request).ok_or_else(missing)?;
        }
        all.insert(name(&**pod).to_owned(), sum);
    }
    Ok(all)
}

/// One value for the whole target, or so much for each replica.
fn whole(target: &MetricTarget, measured: i64, context: &Context<'_>) -> Result<(i32, MetricValueStatus), String> {
    let Context { current, tolerance, .. } = context;
    if let Some(target) = milli(target.average_value.as_ref()) {
        let share = measured / i64::from((*current).max(1));
        let status = MetricValueStatus { average_value: Some(written(share)), ..MetricValueStatus::default() };
        return Ok((of_share(*current, measured, target, *tolerance), status));
    }
    let target = milli(target.value.as_ref()).ok_or("the target has neither value nor averageValue")?;
    let ready = context.pods.iter().filter(|pod| is_ready(pod)).count();
    let status = MetricValueStatus { value: Some(written(measured)), ..MetricValueStatus::default() };
    Ok((of_value(*current, measured, target, ready, *tolerance), status))
}
