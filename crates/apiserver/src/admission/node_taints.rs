//! TaintNodesByCondition: a new node takes no pods until its controller has seen it ready.

use serde_json::{Value, json};

const KEY: &str = "node.kubernetes.io/not-ready";

pub(super) fn mutate(node: &mut Value) {
    let taint = json!({"key": KEY, "effect": "NoSchedule"});
    match node["spec"]["taints"].as_array_mut() {
        Some(taints) if taints.iter().any(|t| t["key"] == KEY && t["effect"] == "NoSchedule") => {}
        Some(taints) => taints.push(taint),
        None => node["spec"]["taints"] = json!([taint]),
    }
}
