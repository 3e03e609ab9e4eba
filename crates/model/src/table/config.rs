//! The rows of the simpler kinds, and of those without columns of their own.

use serde_json::{Value, json};

use super::cells::{Row, UNKNOWN};
use crate::meta;

pub(super) fn cells(kind: &str, row: &Row) -> Vec<Value> {
    let entries = |field: &str| meta::map_at(row.object, field).map_or(0, serde_json::Map::len);
    match kind {
        "ConfigMap" => vec![row.name(), json!(entries("data") + entries("binaryData")), row.age()],
        "Secret" => vec![row.name(), json!(row.text("type", "Opaque")), json!(entries("data")), row.age()],
        "Namespace" => vec![row.name(), json!(row.text("status.phase", "")), row.age()],
        "Lease" => vec![row.name(), json!(row.text("spec.holderIdentity", "")), row.age()],
        "ServiceAccount" => vec![row.name(), json!(row.list("secrets").len()), row.age()],
        "Event" => event(row),
        "Role" | "ClusterRole" => vec![row.name(), json!(row.text("metadata.creationTimestamp", UNKNOWN))],
        "RoleBinding" | "ClusterRoleBinding" => binding(row),
        "PriorityClass" => vec![
            row.name(),
            json!(row.number("value")),
            json!(meta::bool_at(row.object, "globalDefault")),
            row.age(),
            json!(row.text("preemptionPolicy", "")),
        ],
        "RuntimeClass" => vec![row.name(), json!(row.text("handler", "")), row.age()],
        _ => super::admin::cells(kind, row).unwrap_or_else(|| vec![row.name(), row.age()]),
    }
}

fn event(row: &Row) -> Vec<Value> {
    let event = row.object;
    let known = |path: &str| Some(row.since(path)).filter(|age| age != UNKNOWN);
    let first = known("firstTimestamp").unwrap_or_else(|| row.since("eventTime"));
    let (last, count) = if meta::at(event, "series").is_some() {
        (row.since("series.lastObservedTime"), row.number("series.count"))
    } else {
        (known("lastTimestamp").unwrap_or_else(|| first.clone()), row.number("count").max(1))
    };
    let kind = row.text("involvedObject.kind", "").to_lowercase();
    let object = match row.text("involvedObject.name", "") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let component = row.text("source.component", row.text("reportingComponent", ""));
    let host = row.text("source.host", row.text("reportingInstance", ""));
    let source = if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") };
    vec![
        json!(last),
        json!(row.text("type", "")),
        json!(row.text("reason", "")),
        json!(object),
        json!(row.text("involvedObject.fieldPath", "")),
        json!(source),
        json!(row.text("message", "").trim()),
        json!(first),
        json!(count),
        row.name(),
    ]
}

fn binding(row: &Row) -> Vec<Value> {
    let role = format!("{}/{}", row.text("roleRef.kind", ""), row.text("roleRef.name", ""));
    let subjects = |kind: &str| {
        let of_kind = row.list("subjects").iter().filter(|subject| subject["kind"] == kind);
        let names: Vec<_> = of_kind
            .map(|subject| {
                let text = |field: &str| subject[field].as_str().unwrap_or_default();
                if kind == "ServiceAccount" {
                    format!("{}/{}", text("namespace"), text("name"))
                } else {
                    text("name").to_owned()
                }
            })
            .collect();
        json!(names.join(", "))
    };
    vec![row.name(), json!(role), row.age(), subjects("User"), subjects("Group"), subjects("ServiceAccount")]
}
