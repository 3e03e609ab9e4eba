//! The conditions of gateways and routes (Gateway API, "Conditions").

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::api::Key;
use crate::api::route::ParentRef;

/// A condition, without times: those are the driver's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) kind: &'static str,
    pub(crate) holds: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Condition {
    /// A condition that holds.
    pub(crate) fn good(kind: &'static str) -> Self {
        Self { kind, holds: true, reason: kind, message: String::new() }
    }

    /// A condition that does not, and why.
    pub(crate) fn bad(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, holds: false, reason, message: message.into() }
    }
}

/// What is said of a listener.
#[derive(Debug, Clone, Default)]
pub(crate) struct ListenerStatus {
    pub(crate) name: String,
    pub(crate) kinds: Vec<&'static str>,
    pub(crate) attached: u32,
    pub(crate) conditions: Vec<Condition>,
}

/// What is said of a Gateway.
#[derive(Debug, Clone, Default)]
pub(crate) struct GatewayStatus {
    pub(crate) conditions: Vec<Condition>,
    pub(crate) listeners: Vec<ListenerStatus>,
}

/// What is said of a route, for each parent.
#[derive(Debug, Clone, Default)]
pub(crate) struct RouteStatus {
    pub(crate) parents: Vec<(ParentRef, Vec<Condition>)>,
}

/// All conditions of a configuration.
#[derive(Debug, Default)]
pub(crate) struct Statuses {
    pub(crate) gateways: BTreeMap<Key, GatewayStatus>,
    /// By kind and key.
    pub(crate) routes: BTreeMap<(&'static str, Key), RouteStatus>,
    /// Ingresses that are served.
    pub(crate) ingresses: BTreeSet<Key>,
    /// BackendTLSPolicies that are used: the gateways they are used for, and what is said of them there.
    pub(crate) tls_policies: BTreeMap<Key, (BTreeSet<Key>, Vec<Condition>)>,
}

/// Who writes the conditions of routes.
pub(crate) const CONTROLLER: &str = "mainstay.dev/gateway";

/// Conditions as the API shows them; times of those that have not changed are kept.
pub(crate) fn conditions(list: &[Condition], generation: Option<i64>, now: &str, before: &Value) -> Value {
    let old = before.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .map(|condition| {
            let status = if condition.holds { "True" } else { "False" };
            let same = old.iter().find(|it| it["type"] == condition.kind && it["status"] == status);
            json!({
                "type": condition.kind,
                "status": status,
                "reason": condition.reason,
                "message": condition.message,
                "observedGeneration": generation.unwrap_or(0),
                "lastTransitionTime": same.map_or(json!(now), |it| it["lastTransitionTime"].clone()),
            })
        })
        .collect()
}

impl GatewayStatus {
    /// The `status` of a Gateway object; times of conditions that have not changed are kept.
    pub(crate) fn to_json(&self, object: &Value, addresses: &[String], now: &str) -> Value {
        let generation = object["metadata"]["generation"].as_i64();
        let before = &object["status"];
        let listeners = self.listeners.iter().map(|listener| {
            let old = before["listeners"].as_array().and_then(|all| all.iter().find(|it| it["name"] == listener.name));
            let kinds = listener.kinds.iter().map(|kind| json!({"group": crate::api::GATEWAY_GROUP, "kind": kind}));
            json!({
                "name": listener.name,
                "supportedKinds": kinds.collect::<Vec<_>>(),
                "attachedRoutes": listener.attached,
                "conditions": conditions(&listener.conditions, generation, now, old.map_or(&Value::Null, |it| &it["conditions"])),
            })
        });
        json!({
            "addresses": addresses.iter().map(|it| json!({"type": "IPAddress", "value": it})).collect::<Vec<_>>(),
            "conditions": conditions(&self.conditions, generation, now, &before["conditions"]),
            "listeners": listeners.collect::<Vec<_>>(),
        })
    }
}

/// Ancestors that a policy's status may name (Gateway API, `PolicyStatus`).
const ANCESTORS_MAX: usize = 16;

/// The `status` of a policy of the Gateway API; what other controllers wrote is kept.
pub(crate) fn policy_json(object: &Value, gateways: &BTreeSet<Key>, list: &[Condition], now: &str) -> Value {
    let generation = object["metadata"]["generation"].as_i64();
    let before = object["status"]["ancestors"].as_array().cloned().unwrap_or_default();
    let mut ancestors: Vec<Value> = before.iter().filter(|it| it["controllerName"] != CONTROLLER).cloned().collect();
    for gateway in gateways {
        let reference = json!({
            "group": crate::api::GATEWAY_GROUP,
            "kind": "Gateway",
            "namespace": gateway.namespace,
            "name": gateway.name,
        });
        let old = before.iter().find(|it| it["controllerName"] == CONTROLLER && it["ancestorRef"] == reference);
        let old = old.map_or(&Value::Null, |it| &it["conditions"]);
        let conditions = conditions(list, generation, now, old);
        ancestors.push(json!({"ancestorRef": reference, "controllerName": CONTROLLER, "conditions": conditions}));
    }
    ancestors.truncate(ANCESTORS_MAX);
    json!({"ancestors": ancestors})
}

impl RouteStatus {
    /// The `status` of a route object; what other controllers wrote about their parents is kept.
    pub(crate) fn to_json(&self, object: &Value, now: &str) -> Value {
        let generation = object["metadata"]["generation"].as_i64();
        let before = object["status"]["parents"].as_array().cloned().unwrap_or_default();
        let mut parents: Vec<Value> = before.iter().filter(|it| it["controllerName"] != CONTROLLER).cloned().collect();
        for (parent, list) in &self.parents {
            let mut reference = json!({"name": parent.name});
            let fields = [
                ("group", &parent.group),
                ("kind", &parent.kind),
                ("namespace", &parent.namespace),
                ("sectionName", &parent.section_name),
            ];
            for (field, value) in fields {
                if let Some(value) = value {
                    reference[field] = json!(value);
                }
            }
            if let Some(port) = parent.port {
                reference["port"] = json!(port);
            }
            let old = before.iter().find(|it| it["controllerName"] == CONTROLLER && it["parentRef"] == reference);
            let old = old.map_or(&Value::Null, |it| &it["conditions"]);
            let conditions = conditions(list, generation, now, old);
            parents.push(json!({"parentRef": reference, "controllerName": CONTROLLER, "conditions": conditions}));
        }
        json!({"parents": parents})
    }
}
