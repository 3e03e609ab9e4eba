//! The rows of the kinds that make pods, scale them and protect them.

use serde_json::{Value, json};

use super::cells::{NONE, Row, UNKNOWN, labels};
use crate::meta;
use crate::quantity::Quantity;

const TEMPLATE: &str = "spec.template.spec";

/// Appends containers, images and the selector.
fn with_template(row: &Row, mut cells: Vec<Value>) -> Vec<Value> {
    cells.extend(row.containers(TEMPLATE));
    cells.push(row.selector("spec.selector"));
    cells
}

pub(super) fn deployment(row: &Row) -> Vec<Value> {
    let ready = format!("{}/{}", row.number("status.readyReplicas"), row.number("spec.replicas"));
    let (updated, available) = (row.number("status.updatedReplicas"), row.number("status.availableReplicas"));
    with_template(row, vec![row.name(), json!(ready), json!(updated), json!(available), row.age()])
}

pub(super) fn replica_set(row: &Row) -> Vec<Value> {
    let numbers = ["spec.replicas", "status.replicas", "status.readyReplicas"].map(|path| json!(row.number(path)));
    let [desired, current, ready] = numbers;
    let mut cells = vec![row.name(), desired, current, ready, row.age()];
    if meta::kind(row.object) == "ReplicationController" {
        cells.extend(row.containers(TEMPLATE));
        cells.push(json!(labels(meta::map_at(row.object, "spec.selector"))));
        return cells;
    }
    with_template(row, cells)
}

pub(super) fn stateful_set(row: &Row) -> Vec<Value> {
    let ready = format!("{}/{}", row.number("status.readyReplicas"), row.number("spec.replicas"));
    let mut cells = vec![row.name(), json!(ready), row.age()];
    cells.extend(row.containers(TEMPLATE));
    cells
}

pub(super) fn daemon_set(row: &Row) -> Vec<Value> {
    let mut cells = vec![row.name()];
    let numbers = [
        "desiredNumberScheduled",
        "currentNumberScheduled",
        "numberReady",
        "updatedNumberScheduled",
        "numberAvailable",
    ];
    cells.extend(numbers.map(|field| json!(row.number(&format!("status.{field}")))));
    cells.push(json!(labels(meta::map_at(row.object, "spec.template.spec.nodeSelector"))));
    cells.push(row.age());
    with_template(row, cells)
}

pub(super) fn job(row: &Row) -> Vec<Value> {
    let job = row.object;
    let holds = |name: &str| meta::is_condition_true(job, name);
    let status = if holds("Complete") {
        "Complete"
    } else if holds("Failed") {
        "Failed"
    } else if meta::is_being_deleted(job) {
        "Terminating"
    } else if holds("Suspended") {
        "Suspended"
    } else if holds("FailureTarget") {
        "FailureTarget"
    } else if holds("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    let succeeded = row.number("status.succeeded");
    let completions = match meta::i64_at(job, "spec.completions") {
        Some(wanted) => format!("{succeeded}/{wanted}"),
        None => match row.number("spec.parallelism") {
            parallelism if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
            _ => format!("{succeeded}/1"),
        },
    };
    let end = meta::time_at(job, "status.completionTime").unwrap_or(row.now);
    let duration = meta::time_at(job, "status.startTime").map(|start| meta::age(start, end)).unwrap_or_default();
    with_template(row, vec![row.name(), json!(status), json!(completions), json!(duration), row.age()])
}

pub(super) fn cron_job(row: &Row) -> Vec<Value> {
    let last = if meta::at(row.object, "status.lastScheduleTime").is_some() {
        row.since("status.lastScheduleTime")
    } else {
        NONE.to_owned()
    };
    let suspended = if meta::bool_at(row.object, "spec.suspend") { "True" } else { "False" };
    let mut cells = vec![
        row.name(),
        json!(row.text("spec.schedule", "")),
        json!(row.text("spec.timeZone", NONE)),
        json!(suspended),
        json!(row.list("status.active").len()),
        json!(last),
        row.age(),
    ];
    cells.extend(row.containers("spec.jobTemplate.spec.template.spec"));
    cells.push(row.selector("spec.jobTemplate.spec.selector"));
    cells
}

pub(super) fn autoscaler(row: &Row) -> Vec<Value> {
    let reference =
        format!("{}/{}", row.text("spec.scaleTargetRef.kind", ""), row.text("spec.scaleTargetRef.name", ""));
    let metrics = row.list("spec.metrics");
    let current = row.list("status.currentMetrics");
    let mut targets: Vec<_> =
        metrics.iter().take(2).enumerate().map(|(i, metric)| target(metric, current.get(i))).collect();
    if metrics.len() > 2 {
        targets.push(format!("{} more...", metrics.len() - 2));
    }
    let targets = if targets.is_empty() { NONE.to_owned() } else { targets.join(", ") };
    let least = meta::i64_at(row.object, "spec.minReplicas").map_or_else(|| "<unset>".to_owned(), |n| n.to_string());
    vec![
        row.name(),
        json!(reference),
        json!(targets),
        json!(least),
        json!(row.number("spec.maxReplicas")),
        json!(row.number("status.currentReplicas")),
        row.age(),
    ]
}

/// `cpu: 10%/80%`: current and wanted of one metric.
fn target(metric: &Value, current: Option<&Value>) -> String {
    let (source, name) = match metric["type"].as_str().unwrap_or_default() {
        "Resource" => ("resource", meta::str_at(metric, "resource.name")),
        "ContainerResource" => ("containerResource", meta::str_at(metric, "containerResource.name")),
        "Pods" => ("pods", None),
        "Object" => ("object", None),
        "External" => ("external", None),
        _ => return "<unknown type>".to_owned(),
    };
    let wanted = &metric[source]["target"];
    let now = current.map_or(&Value::Null, |current| &current[source]["current"]);
    let amount = |place: &Value, field: &str| {
        let quantity = place.get(field).and_then(|amount| Quantity::from_value(amount).ok());
        quantity.map_or_else(|| UNKNOWN.to_owned(), |quantity| quantity.to_string())
    };
    let text = if let Some(percent) = wanted["averageUtilization"].as_i64() {
        let now = now["averageUtilization"].as_i64().map_or_else(|| UNKNOWN.to_owned(), |now| format!("{now}%"));
        format!("{now}/{percent}%")
    } else if wanted.get("averageValue").is_some() {
        let average = if matches!(source, "object" | "external") { " (avg)" } else { "" };
        format!("{}/{}{average}", amount(now, "averageValue"), amount(wanted, "averageValue"))
    } else {
        format!("{}/{}", amount(now, "value"), amount(wanted, "value"))
    };
    name.map_or_else(|| text.clone(), |name| format!("{name}: {text}"))
}

pub(super) fn disruption_budget(row: &Row) -> Vec<Value> {
    let bound = |field: &str| match meta::at(row.object, &format!("spec.{field}")) {
        Some(Value::String(percent)) => percent.clone(),
        Some(number) => number.to_string(),
        None => "N/A".to_owned(),
    };
    let (least, most) = (bound("minAvailable"), bound("maxUnavailable"));
    vec![row.name(), json!(least), json!(most), json!(row.number("status.disruptionsAllowed")), row.age()]
}
