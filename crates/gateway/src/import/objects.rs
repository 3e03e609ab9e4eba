//! A plan as Gateway API objects.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::plan::{Backend, Kind, Listener, Plan, Route, Rule};

const GATEWAY: &str = "imported";

/// The objects, in the order in which people read them.
pub(super) fn objects(plan: &Plan) -> Vec<Value> {
    let mut all = vec![gateway(&plan.listeners)];
    all.extend(policy("Gateway", GATEWAY, None, &plan.gateway_policy));
    for route in &plan.routes {
        all.push(route_object(route));
        for (at, rule) in route.rules.iter().enumerate() {
            all.extend(policy(route_kind(route), &route.name, Some(&rule_name(at)), &rule.policy));
        }
    }
    for (name, backend) in &plan.backends {
        all.push(backend_object(name, backend));
        all.extend(policy("Backend", name, None, &backend.policy));
    }
    for (name, (chain, key)) in &plan.certificates {
        let data = json!({"tls.crt": chain, "tls.key": key});
        all.push(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "kubernetes.io/tls", "stringData": data}));
    }
    for (name, lines) in &plan.passwords {
        all.push(
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"auth": lines}}),
        );
    }
    all
}

fn gateway(listeners: &[Listener]) -> Value {
    let listener = |it: &Listener| {
        let protocol = match it.kind {
            Kind::Http => "HTTP",
            Kind::Https => "HTTPS",
            Kind::Tcp => "TCP",
        };
        let mut object = json!({"name": it.name, "port": it.port, "protocol": protocol});
        if let Some(hostname) = &it.hostname {
            object["hostname"] = json!(hostname);
        }
        if let Some(certificate) = &it.certificate {
            object["tls"] = json!({"certificateRefs": [{"name": certificate}]});
        }
        object
    };
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": GATEWAY},
        "spec": {"gatewayClassName": "mainstay", "listeners": listeners.iter().map(listener).collect::<Vec<_>>()},
    })
}

fn route_kind(route: &Route) -> &'static str {
    if route.tcp { "TCPRoute" } else { "HTTPRoute" }
}

fn rule_name(at: usize) -> String {
    format!("rule-{at}")
}

fn route_object(route: &Route) -> Value {
    let parents = route.listeners.iter().map(|it| json!({"name": GATEWAY, "sectionName": it}));
    let mut spec = json!({"parentRefs": parents.collect::<Vec<_>>()});
    if !route.hostnames.is_empty() {
        spec["hostnames"] = json!(route.hostnames);
    }
    spec["rules"] = route.rules.iter().enumerate().map(|(at, rule)| rule_object(at, rule, route.tcp)).collect();
    let version = if route.tcp { "v1alpha2" } else { "v1" };
    json!({
        "apiVersion": format!("gateway.networking.k8s.io/{version}"),
        "kind": route_kind(route),
        "metadata": {"name": route.name},
        "spec": spec,
    })
}

fn rule_object(at: usize, rule: &Rule, tcp: bool) -> Value {
    let mut object = json!({});
    if !tcp && !rule.policy.is_empty() {
        object["name"] = json!(rule_name(at));
    }
    let lists = [("matches", &rule.matches), ("filters", &rule.filters)];
    for (field, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        object[field] = json!(list);
    }
    if let Some(session) = &rule.session {
        object["sessionPersistence"] = session.clone();
    }
    if let Some(backend) = &rule.backend {
        object["backendRefs"] = json!([{"group": "mainstay.dev", "kind": "Backend", "name": backend}]);
    }
    object
}

fn backend_object(name: &str, backend: &Backend) -> Value {
    let endpoints = backend.endpoints.iter().map(|it| {
        let mut object = json!({"address": it.address});
        if let Some(weight) = it.weight {
            object["weight"] = json!(weight);
        }
        if it.backup {
            object["priority"] = json!(1);
        }
        object
    });
    let mut spec = json!({"endpoints": endpoints.collect::<Vec<_>>()});
    if let Some(protocol) = backend.protocol {
        spec["protocol"] = json!(protocol);
    }
    if let Some(tls) = &backend.tls {
        spec["tls"] = tls.clone();
    }
    json!({"apiVersion": "mainstay.dev/v1alpha1", "kind": "Backend", "metadata": {"name": name}, "spec": spec})
}

fn policy(kind: &str, name: &str, section: Option<&str>, sections: &BTreeMap<&'static str, Value>) -> Option<Value> {
    if sections.is_empty() {
        return None;
    }
    let group = if kind == "Backend" { "mainstay.dev" } else { "gateway.networking.k8s.io" };
    let mut target = json!({"group": group, "kind": kind, "name": name});
    let mut policy_name = format!("{}-{name}", kind.to_ascii_lowercase());
    if let Some(section) = section {
        target["sectionName"] = json!(section);
        policy_name = format!("{policy_name}-{section}");
    }
    let mut spec = json!({"targetRefs": [target]});
    for (field, value) in sections {
        spec[*field] = value.clone();
    }
    Some(json!({
        "apiVersion": "mainstay.dev/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": {"name": policy_name},
        "spec": spec,
    }))
}
