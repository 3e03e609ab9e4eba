//! What a Database's status says: of its pods, which their stewards label, and of the Lease that they agree upon.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::kind::Database;
use super::kind::names::{DATABASE, LAGS, POSITION, REASON, RECORD, REFUSAL, ROLE};

/// The status, as an object to apply.
pub(super) fn status(database: &Database, pods: &[&Pod], lease: Option<&Lease>, now: Timestamp) -> Value {
    let name = database.metadata.name.as_deref().unwrap_or_default();
    let mut pods: Vec<&Pod> = pods.to_vec();
    pods.sort_by_key(|pod| pod.metadata.name.clone());
    let ready = pods.iter().filter(|pod| is_ready(pod)).count();
    let primary = pods.iter().find(|pod| role(pod) == Some("primary") && is_ready(pod));
    let primary = primary.and_then(|pod| pod.metadata.name.as_deref());
    let wanted = usize::try_from(database.spec.replicas).unwrap_or(0);
    let began = database.status["history"].as_array().is_some_and(|it| !it.is_empty());
    let (state, message) = match primary {
        _ if database.metadata.deletion_timestamp.is_some() => ("Deleting", "it is being deleted".to_owned()),
        None if ready == 0 && began => ("Down", "no member answers".to_owned()),
        None if !began => ("Creating", format!("{ready} of {wanted} members answer; no primary yet")),
        None => ("FailingOver", format!("no primary accepts writes; {ready} of {wanted} members answer")),
        Some(_) if database.spec.paused => ("Paused", "nobody is elected or demoted".to_owned()),
        Some(primary) if ready < wanted => {
            ("Degraded", format!("{primary} accepts writes; {ready} of {wanted} members answer"))
        }
        Some(primary) => ("Healthy", format!("{primary} accepts writes")),
    };
    let first = pods.iter().find(|pod| primary.is_some() && pod.metadata.name.as_deref() == primary);
    let lags = first.and_then(|pod| serde_json::from_str(annotation(pod, LAGS)?).ok()).unwrap_or(Value::Null);
    let members: Vec<Value> = pods.iter().map(|pod| member(pod, &lags)).collect();
    let lag = members.iter().filter_map(|member| member["lag"].as_u64()).max();
    let record = lease.and_then(|lease| lease.metadata.annotations.as_ref()?.get(RECORD));
    let record: Value = record.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let mut status = json!({
        "observedGeneration": database.metadata.generation,
        "replicas": pods.len(),
        "selector": format!("{DATABASE}={name}"),
        "ready": format!("{ready}/{wanted}"),
        "state": state,
        "members": members,
        "conditions": [
            condition(database, "Available", primary.is_some(), state, &message, now),
            condition(database, "Redundant", ready >= wanted && primary.is_some(), state, &message, now),
        ],
    });
    if let Some(lag) = lag {
        status["lag"] = json!(bytes(lag));
    }
    if record.is_object() {
        status["epoch"] = record["epoch"].clone();
        status["history"] = record["history"].as_array().into_iter().flatten().map(chapter).collect();
    }
    // While nobody is primary, who was last is still worth knowing: the field stays as it is.
    if let Some(primary) = primary.or(database.status["primary"].as_str()) {
        status["primary"] = json!(primary);
    }
    status
}

/// One epoch, as the record has it.
fn chapter(chapter: &Value) -> Value {
    let from = format!("{}/{}", chapter["from"]["epoch"], chapter["from"]["offset"]);
    json!({"epoch": chapter["epoch"], "primary": chapter["primary"], "from": from})
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// An amount for people.
fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (0..units.len() - 1).find(|step| count >> (10 * (step + 1)) == 0).unwrap_or(units.len() - 1);
    format!("{}{}", count >> (10 * step), units[step])
}

/// One member; `lags` is how far behind each is, as the primary sees it.
fn member(pod: &Pod, lags: &Value) -> Value {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    let state = match phase {
        _ if pod.metadata.deletion_timestamp.is_some() => "Stopping",
        "Running" if is_ready(pod) => "Ready",
        "Running" => "Starting",
        other => other,
    };
    let mut member = json!({
        "name": pod.metadata.name,
        "role": role(pod).unwrap_or("none"),
        "state": state,
        "node": pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default(),
    });
    for (field, key) in [("position", POSITION), ("message", REASON), ("refusal", REFUSAL)] {
        if let Some(text) = annotation(pod, key) {
            member[field] = json!(text);
        }
    }
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if let Some(lag) = lags[name].as_u64() {
        member["lag"] = json!(lag);
    }
    member
}

fn condition(database: &Database, kind: &str, holds: bool, reason: &str, message: &str, now: Timestamp) -> Value {
    let status = if holds { "True" } else { "False" };
    let before = database.status["conditions"].as_array().into_iter().flatten().find(|it| it["type"] == kind);
    let since = before.filter(|it| it["status"] == status).map(|it| it["lastTransitionTime"].clone());
    json!({
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": database.metadata.generation,
        "lastTransitionTime": since.unwrap_or_else(|| json!(format!("{now:.0}"))),
    })
}

fn role(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(ROLE).map(String::as_str)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.is_some_and(|all| all.iter().any(|it| it.type_ == "Ready" && it.status == "True"))
}
