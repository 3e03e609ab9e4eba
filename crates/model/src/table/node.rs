//! The row of a node.

use serde_json::{Value, json};

use super::cells::{NONE, Row, UNKNOWN};
use crate::meta;
use crate::quantity::Quantity;

pub(super) fn cells(row: &Row) -> Vec<Value> {
    let node = row.object;
    let mut status = match meta::condition(node, "Ready") {
        Some(ready) if ready["status"] == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if meta::bool_at(node, "spec.unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    let address = |kind: &str| {
        let found = row.list("status.addresses").iter().find(|address| address["type"] == kind);
        json!(found.and_then(|address| address["address"].as_str()).unwrap_or(NONE))
    };
    let info = |field: &str| json!(row.text(&format!("status.nodeInfo.{field}"), UNKNOWN));
    vec![
        row.name(),
        json!(status),
        json!(roles(node)),
        row.age(),
        json!(row.text("status.nodeInfo.kubeletVersion", "")),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

/// What a node uses, or the containers of a pod together: thousandths of a core and MiB, as `kubectl top` shows them.
pub(super) fn metrics(row: &Row) -> Vec<Value> {
    let containers = row.list("containers").iter().map(|container| &container["usage"]);
    let all: Vec<&Value> = containers.chain(meta::at(row.object, "usage")).collect();
    let sum = |name: &str, of: fn(Quantity) -> i64| -> i64 {
        all.iter().filter_map(|usage| usage[name].as_str()?.parse().ok()).map(of).sum()
    };
    vec![
        row.name(),
        json!(format!("{}m", sum("cpu", Quantity::milli_value))),
        json!(format!("{}Mi", sum("memory", Quantity::value) >> 20)),
        json!(row.text("window", UNKNOWN)),
    ]
}

/// From labels `node-role.kubernetes.io/ROLE` and `kubernetes.io/role=ROLE`.
fn roles(node: &Value) -> String {
    let mut roles: Vec<_> = meta::labels(node)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role).filter(|role| !role.is_empty()),
            None if key == "kubernetes.io/role" => value.as_str().filter(|role| !role.is_empty()),
            None => None,
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { NONE.to_owned() } else { roles.join(",") }
}
