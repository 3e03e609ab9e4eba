//! Hints in EndpointSlices: for which zone or node an endpoint is meant, so that traffic stays near.
//!
//! | asked for | hints of a ready endpoint |
//! |---|---|
//! | `trafficDistribution: PreferSameZone` (`PreferClose`) | its zone |
//! | `trafficDistribution: PreferSameNode` | its node and its zone |
//! | annotation `service.kubernetes.io/topology-mode: Auto` | its zone, while no zone's share of endpoints is too small for its share of processors |
//!
//! Source: <https://kubernetes.io/docs/reference/networking/virtual-ips/#traffic-distribution>,
//! <https://kubernetes.io/docs/concepts/services-networking/topology-aware-routing/>.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, ForNode, ForZone};

use crate::object::annotation;

const MODE: &str = "service.kubernetes.io/topology-mode";
/// How much more than its share of traffic an endpoint may get by `Auto`.
const OVERLOAD_MAX: f64 = 0.2;

/// Whether the Service asks for hints that depend on the nodes' processors.
pub(crate) fn needs_processors(service: &Service) -> bool {
    distribution(service).is_none() && matches!(annotation(service, MODE), Some("Auto" | "auto"))
}

fn distribution(service: &Service) -> Option<&str> {
    service.spec.as_ref()?.traffic_distribution.as_deref()
}

/// Gives the endpoints of a Service their hints; `processors` are the zones', in thousandths.
pub(crate) fn hint<'a>(
    service: &Service,
    endpoints: impl Iterator<Item = &'a mut Endpoint>,
    processors: &BTreeMap<String, i64>,
) {
    let mut endpoints: Vec<&mut Endpoint> = endpoints.collect();
    let near_node = match distribution(service) {
        Some("PreferSameNode") => true,
        Some("PreferSameZone" | "PreferClose") => false,
        None if needs_processors(service) && is_balanced(&endpoints, processors) => false,
        _ => return,
    };
    for endpoint in endpoints.iter_mut().filter(|endpoint| is_ready(endpoint)) {
        let Some(zone) = endpoint.zone.clone() else { continue };
        let node = endpoint.node_name.clone().filter(|_| near_node);
        endpoint.hints = Some(EndpointHints {
            for_zones: Some(vec![ForZone { name: zone }]),
            for_nodes: node.map(|name| vec![ForNode { name }]),
        });
    }
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true)
}

/// Whether every zone has about as many endpoints as its processors ask for.
fn is_balanced(endpoints: &[&mut Endpoint], processors: &BTreeMap<String, i64>) -> bool {
    let ready: Vec<_> = endpoints.iter().filter(|endpoint| is_ready(endpoint)).collect();
    let total: i64 = processors.values().sum();
    if processors.len() < 2 || total <= 0 || ready.iter().any(|endpoint| endpoint.zone.is_none()) {
        return false;
    }
    processors.iter().all(|(zone, own)| {
        let here = ready.iter().filter(|endpoint| endpoint.zone.as_ref() == Some(zone)).count() as f64;
        let wanted = ready.len() as f64 * *own as f64 / total as f64;
        here > 0.0 && wanted / here <= 1.0 + OVERLOAD_MAX
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::typed;
    use serde_json::json;

    fn hints(service: serde_json::Value, zones: &[&str]) -> Vec<String> {
        let service: Service = typed(service);
        let endpoint = |zone: &&str| -> Endpoint {
            typed(
                json!({"addresses": ["10.0.0.1"], "zone": zone, "nodeName": format!("n-{zone}"), "conditions": {"ready": true}}),
            )
        };
        let mut endpoints: Vec<Endpoint> = zones.iter().map(endpoint).collect();
        let processors = [("a".to_owned(), 4000), ("b".to_owned(), 4000)].into();
        hint(&service, endpoints.iter_mut(), &processors);
        endpoints.iter().map(|endpoint| serde_json::to_value(&endpoint.hints).unwrap_or_default().to_string()).collect()
    }

    #[test]
    fn as_asked_for() {
        let close = json!({"spec": {"trafficDistribution": "PreferClose"}});
        assert_eq!(hints(close, &["a"]), [r#"{"forZones":[{"name":"a"}]}"#]);
        let node = json!({"spec": {"trafficDistribution": "PreferSameNode"}});
        assert_eq!(hints(node, &["b"]), [r#"{"forNodes":[{"name":"n-b"}],"forZones":[{"name":"b"}]}"#]);
        let auto = || json!({"metadata": {"annotations": {MODE: "Auto"}}, "spec": {}});
        assert!(hints(auto(), &["a", "a", "b", "b"]).iter().all(|hint| hint != "null"));
        assert!(hints(auto(), &["a", "a", "a", "b"]).iter().all(|hint| hint == "null"), "b would be overloaded");
        assert!(hints(json!({"spec": {}}), &["a", "b"]).iter().all(|hint| hint == "null"));
    }
}
