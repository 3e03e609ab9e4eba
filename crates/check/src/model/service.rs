//! Services and disruption budgets: what must go on, and how many pods that takes.

use mainstay_model::meta;
use mainstay_model::selector::LabelSelector;
use mainstay_model::workload::int_or_percent;
use serde_json::Value;

use super::dependency::Need;
use super::{PodModel, workload::Workload};
use crate::manifest::Object;

/// The annotation of a Service: how many ready endpoints are enough, a number or a percentage.
pub const MINIMUM: &str = "check.mainstay.dev/minimum";
/// The annotation of a Service: `true` when those who call it try again, with pauses, until a dead endpoint has been noticed.
pub const RETRIED: &str = "check.mainstay.dev/retried";

/// Something that must go on: a Service, or a workload behind none.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The Service's object, or the workload's.
    pub object: usize,
    /// Whether it is a Service.
    pub is_service: bool,
    /// Pods behind it.
    pub pods: Vec<usize>,
    /// Workloads of those pods.
    pub workloads: Vec<usize>,
    /// Ready pods that are enough.
    pub minimum: usize,
    /// Why so many.
    pub minimum_why: String,
    /// Whether callers try again elsewhere.
    pub is_retried: bool,
    /// What it needs: place in the list of services, and how.
    pub needs: Vec<(usize, Need)>,
}

impl Service {
    /// `shop/cart`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A PodDisruptionBudget.
#[derive(Debug, Clone)]
pub struct BudgetModel {
    /// Its object.
    pub object: usize,
    /// Pods it guards.
    pub pods: Vec<usize>,
    /// How many of them must stay.
    pub minimum: usize,
}

/// The budgets with the pods they guard.
pub(crate) fn budgets(objects: &[Object], workloads: &[Workload], pods: &[PodModel]) -> Vec<BudgetModel> {
    let all = objects.iter().enumerate().filter(|(_, object)| object.kind() == "PodDisruptionBudget");
    let budget = |(at, object): (usize, &Object)| {
        let spec = &object.written["spec"];
        let selector = LabelSelector::from_object(&spec["selector"]).unwrap_or_else(|_| LabelSelector::nothing());
        let guarded: Vec<usize> = selected(workloads, pods, object.namespace(), &selector);
        let total = guarded.len() as i64;
        let minimum = match (spec.get("minAvailable"), spec.get("maxUnavailable")) {
            (Some(least), _) => int_or_percent(least, total, true).unwrap_or(0),
            (None, Some(most)) => total - int_or_percent(most, total, true).unwrap_or(0),
            (None, None) => total - 1,
        };
        BudgetModel { object: at, pods: guarded, minimum: usize::try_from(minimum).unwrap_or(0) }
    };
    all.map(budget).collect()
}

fn selected(workloads: &[Workload], pods: &[PodModel], namespace: &str, selector: &LabelSelector) -> Vec<usize> {
    let chosen = |workload: &Workload| {
        let labels = workload.template["metadata"]["labels"].as_object();
        workload.namespace == namespace && workload.kind.serves() && selector.matches(labels)
    };
    let chosen: Vec<bool> = workloads.iter().map(chosen).collect();
    (0..pods.len()).filter(|pod| chosen[pods[*pod].workload]).collect()
}

/// Every Service with pods behind it, then every serving workload that no Service leads to.
pub(crate) fn services(
    objects: &[Object],
    workloads: &[Workload],
    pods: &[PodModel],
    budgets: &[BudgetModel],
) -> Vec<Service> {
    let mut all = Vec::new();
    let mut served = vec![false; workloads.len()];
    let of = |pods_behind: &[usize]| {
        let mut behind: Vec<usize> = pods_behind.iter().map(|pod| pods[*pod].workload).collect();
        behind.dedup();
        behind
    };
    for (at, object) in objects.iter().enumerate().filter(|(_, object)| object.kind() == "Service") {
        let selector = &object.value["spec"]["selector"];
        if selector.as_object().is_none_or(serde_json::Map::is_empty) {
            continue;
        }
        let selector = LabelSelector::from_map(selector).unwrap_or_else(|_| LabelSelector::nothing());
        let behind = selected(workloads, pods, object.namespace(), &selector);
        if behind.is_empty() {
            continue;
        }
        let own = of(&behind);
        for workload in &own {
            served[*workload] = true;
        }
        all.push(service(at, object, true, behind, own, budgets, objects));
    }
    for (at, workload) in workloads.iter().enumerate() {
        let alone = !served[at] && workload.kind.serves() && workload.kind != super::Kind::DaemonSet;
        if alone && !workload.pods.is_empty() {
            let object = &objects[workload.object];
            all.push(service(workload.object, object, false, workload.pods.clone(), vec![at], budgets, objects));
        }
    }
    all
}

fn service(
    at: usize,
    object: &Object,
    is_service: bool,
    pods: Vec<usize>,
    workloads: Vec<usize>,
    budgets: &[BudgetModel],
    objects: &[Object],
) -> Service {
    let (minimum, minimum_why) = minimum(object, &pods, budgets, objects);
    Service {
        namespace: object.namespace().to_owned(),
        name: object.name().to_owned(),
        object: at,
        is_service,
        minimum,
        minimum_why,
        is_retried: object.annotation(RETRIED) == Some("true"),
        pods,
        workloads,
        needs: Vec::new(),
    }
}

/// The annotation, or the strictest budget over its pods, or one.
fn minimum(object: &Object, pods: &[usize], budgets: &[BudgetModel], objects: &[Object]) -> (usize, String) {
    let total = pods.len();
    let stated = object.annotation(MINIMUM).and_then(|text| {
        let value = text.parse::<i64>().map_or_else(|_| Value::from(text), Value::from);
        usize::try_from(int_or_percent(&value, total as i64, true)?).ok()
    });
    if let Some(stated) = stated {
        return (stated.clamp(1, total.max(1)), format!("annotation {MINIMUM}"));
    }
    let over = budgets.iter().filter(|budget| budget.pods.iter().any(|pod| pods.contains(pod)));
    let strictest = over.max_by_key(|budget| budget.minimum);
    match strictest.filter(|budget| budget.minimum > 1) {
        Some(budget) => {
            let name = meta::name(&objects[budget.object].written);
            (budget.minimum.clamp(1, total.max(1)), format!("PodDisruptionBudget {name}"))
        }
        None => (1, "one ready endpoint".to_owned()),
    }
}
