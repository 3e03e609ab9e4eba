//! The row of a node.

use serde_json::{Value, json};

use super::cells::{NONE, Row, UNKNOWN};
use crate::meta;

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
