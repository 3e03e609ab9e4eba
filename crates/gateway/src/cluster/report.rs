//! What is to be written about objects: pure.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::kinds::status_path;
use crate::api::Key;
use crate::config::source::Source;
use crate::config::status::{CONTROLLER, Condition, Statuses, conditions, policy_json};
use crate::config::{Problem, Severity};

/// A merge patch.
#[derive(Debug, PartialEq)]
pub(super) struct Update {
    /// Where it goes.
    pub(super) path: String,
    pub(super) body: Value,
}

/// What statuses are made of.
pub(super) struct Facts<'a> {
    pub(super) statuses: &'a Statuses,
    pub(super) problems: &'a [Problem],
    /// Of the Service in front.
    pub(super) addresses: &'a [String],
    /// RFC 3339, in whole seconds.
    pub(super) now: &'a str,
}

/// The statuses that are not as they should be.
pub(super) fn updates(objects: &[Source], facts: &Facts<'_>) -> Vec<Update> {
    objects.iter().filter_map(|source| update(source, facts)).collect()
}

fn update(source: &Source, facts: &Facts<'_>) -> Option<Update> {
    let object = &*source.value;
    let metadata = &object["metadata"];
    let (namespace, name) = (metadata["namespace"].as_str(), metadata["name"].as_str()?);
    let wanted = wanted(source, &Key::new(namespace.unwrap_or_default(), name), facts)?;
    if object["status"] == wanted {
        return None;
    }
    let path = status_path(object["apiVersion"].as_str()?, source.kind(), namespace, name)?;
    let body = json!({"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": wanted});
    Some(Update { path, body })
}

/// What of the Gateway API works here, by the names of its conformance suite (`pkg/features`), in their order.
const FEATURES: &[&str] = &[
    "BackendTLSPolicy",
    "GRPCRoute",
    "Gateway",
    "GatewayHTTPListenerIsolation",
    "GatewayPort8080",
    "HTTPRoute",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteSchemeRedirect",
    "ReferenceGrant",
    "TLSRoute",
];

/// Whether a class can be had as it is written.
fn accepted_class(object: &Value) -> Condition {
    if object["spec"]["parametersRef"].is_null() {
        return Condition::good("Accepted");
    }
    let message = "this controller takes no parameters; attach a TrafficPolicy to the Gateway instead";
    Condition::bad("Accepted", "InvalidParameters", message)
}

/// The whole status of an object; `None` where it is not ours to write.
fn wanted(source: &Source, key: &Key, facts: &Facts<'_>) -> Option<Value> {
    let object = &*source.value;
    let before = &object["status"];
    let generation = object["metadata"]["generation"].as_i64();
    match source.kind() {
        "GatewayClass" if object["spec"]["controllerName"] == CONTROLLER => {
            let accepted = [accepted_class(object), Condition::good("SupportedVersion")];
            let features: Vec<Value> = FEATURES.iter().map(|name| json!({ "name": name })).collect();
            let conditions = conditions(&accepted, generation, facts.now, &before["conditions"]);
            Some(json!({"conditions": conditions, "supportedFeatures": features}))
        }
        "Gateway" => {
            let mut status = facts.statuses.gateways.get(key)?.clone();
            let programmed = status.conditions.iter_mut().find(|it| it.kind == "Programmed" && it.holds);
            if let Some(programmed) = programmed.filter(|_| facts.addresses.is_empty()) {
                let message = "the Service in front of the gateways has no address yet";
                *programmed = Condition::bad("Programmed", "AddressNotAssigned", message);
            }
            Some(status.to_json(object, facts.addresses, facts.now))
        }
        kind @ ("HTTPRoute" | "GRPCRoute" | "TLSRoute" | "TCPRoute") => {
            let of_kind = |it: &&(&'static str, Key)| it.0 == kind && it.1 == *key;
            let found = facts.statuses.routes.keys().find(of_kind)?;
            let status = facts.statuses.routes[found].to_json(object, facts.now);
            // Nothing to say about a route that never was ours.
            let silent = before.is_null() && status["parents"].as_array().is_some_and(Vec::is_empty);
            (!silent).then_some(status)
        }
        "Ingress" if facts.statuses.ingresses.contains(key) => {
            let address = |text: &String| {
                let field = if text.parse::<std::net::IpAddr>().is_ok() { "ip" } else { "hostname" };
                json!({ field: text })
            };
            let ingress: Vec<Value> = facts.addresses.iter().map(address).collect();
            let balancer = if ingress.is_empty() { json!({}) } else { json!({"ingress": ingress}) };
            Some(json!({"loadBalancer": balancer}))
        }
        "BackendTLSPolicy" => {
            let nothing = (BTreeSet::new(), Vec::new());
            let (gateways, list) = facts.statuses.tls_policies.get(key).unwrap_or(&nothing);
            let status = policy_json(object, gateways, list, facts.now);
            // Nothing to say about a policy that never was used.
            let silent = before.is_null() && gateways.is_empty();
            (!silent).then_some(status)
        }
        "TrafficPolicy" => {
            let shown = format!("TrafficPolicy {key}");
            let mut problems = facts.problems.iter().filter(|it| it.object == shown);
            let accepted = match problems.find(|it| it.severity == Severity::Error) {
                Some(problem) => Condition::bad("Accepted", "Invalid", &*problem.message),
                None => match facts.problems.iter().find(|it| it.object == shown) {
                    Some(warning) => Condition { message: warning.message.clone(), ..Condition::good("Accepted") },
                    None => Condition::good("Accepted"),
                },
            };
            Some(json!({"conditions": conditions(&[accepted], generation, facts.now, &before["conditions"])}))
        }
        _ => None,
    }
}

/// The ports that the Service in front should have, if it has others: those that are listened on, and 80 while there is none,
/// because a Service needs one. What is there already keeps its node port.
pub(super) fn service_ports(service: &Value, listening: &BTreeSet<u16>) -> Option<Value> {
    let fallback = BTreeSet::from([80]);
    let wanted = if listening.is_empty() { &fallback } else { listening };
    let there = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let has: BTreeSet<u16> = there.iter().filter_map(|it| u16::try_from(it["port"].as_u64()?).ok()).collect();
    if has == *wanted {
        return None;
    }
    let port = |number: &u16| {
        let known = there.iter().find(|it| it["port"] == *number).cloned();
        known.unwrap_or_else(
            || json!({"name": format!("port-{number}"), "port": number, "targetPort": number, "protocol": "TCP"}),
        )
    };
    Some(wanted.iter().map(port).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::*;
    use crate::config::{Objects, Options, compile, source};

    const CLUSTER: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: mainstay, generation: 1, resourceVersion: "5"}
spec: {controllerName: mainstay.dev/gateway}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: other, resourceVersion: "6"}
spec: {controllerName: example.com/gateway}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g, namespace: shop, generation: 3, resourceVersion: "7"}
spec: {gatewayClassName: mainstay, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop, resourceVersion: "8"}
spec: {parentRefs: [{name: g}], rules: [{backendRefs: [{name: nowhere, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: foreign, namespace: shop, resourceVersion: "9"}
spec: {parentRefs: [{name: theirs}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: i, namespace: shop, resourceVersion: "10"}
spec: {ingressClassName: other, rules: []}
---
apiVersion: mainstay.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: p, namespace: shop, resourceVersion: "11"}
spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}], retry: {attempts: 1}}
"#;

    fn write(objects: &[Source], addresses: &[&str]) -> Vec<Update> {
        let options = Options { class_required: true, ..Options::default() };
        let compiled = compile(&Objects::decode(objects), &options);
        let addresses: Vec<String> = addresses.iter().map(|it| (*it).to_owned()).collect();
        let (statuses, problems, now) = (&compiled.statuses, &compiled.problems[..], "2026-01-01T00:00:00Z");
        updates(objects, &Facts { statuses, problems, addresses: &addresses, now })
    }

    fn objects() -> Vec<Source> {
        let mut objects = Vec::new();
        source::parse(Path::new("cluster.yaml"), CLUSTER, &mut objects).unwrap();
        objects
    }

    fn condition<'a>(list: &'a Value, kind: &str) -> &'a Value {
        list.as_array().unwrap().iter().find(|it| it["type"] == kind).unwrap()
    }

    #[test]
    fn what_is_ours_is_written_and_nothing_else() {
        let written = write(&objects(), &["10.0.0.9"]);
        let paths: Vec<&str> = written.iter().map(|it| it.path.as_str()).collect();
        let shop = "/apis/gateway.networking.k8s.io/v1/namespaces/shop";
        assert_eq!(
            paths,
            [
                "/apis/gateway.networking.k8s.io/v1/gatewayclasses/mainstay/status",
                &format!("{shop}/gateways/g/status"),
                &format!("{shop}/httproutes/r/status"),
                "/apis/mainstay.dev/v1alpha1/namespaces/shop/trafficpolicies/p/status",
            ]
        );
        let gateway = &written[1].body["status"];
        assert_eq!(written[1].body["metadata"]["resourceVersion"], "7");
        assert_eq!(gateway["addresses"], json!([{"type": "IPAddress", "value": "10.0.0.9"}]));
        assert_eq!(condition(&gateway["conditions"], "Programmed")["status"], "True");
        assert_eq!(condition(&gateway["conditions"], "Programmed")["observedGeneration"], 3);
        assert_eq!(gateway["listeners"][0]["attachedRoutes"], 1);
        let route = &written[2].body["status"]["parents"][0];
        assert_eq!(route["controllerName"], CONTROLLER);
        assert_eq!(condition(&route["conditions"], "Accepted")["status"], "True");
        assert_eq!(condition(&route["conditions"], "ResolvedRefs")["reason"], "BackendNotFound");
    }

    #[test]
    fn what_is_as_it_should_be_is_not_written_again() {
        let mut objects = objects();
        for update in write(&objects, &["10.0.0.9"]) {
            let name = update.path.rsplit('/').nth(1).unwrap();
            let at = objects.iter().position(|it| it.value["metadata"]["name"] == name).unwrap();
            let mut value = (*objects[at].value).clone();
            value["status"] = update.body["status"].clone();
            objects[at] = Source::of_api(value);
        }
        assert_eq!(write(&objects, &["10.0.0.9"]), []);
        // An address that goes away is a change of the Gateway alone.
        let written = write(&objects, &[]);
        assert_eq!(written.len(), 1);
        let conditions = &written[0].body["status"]["conditions"];
        assert_eq!(condition(conditions, "Programmed")["reason"], "AddressNotAssigned");
    }

    #[test]
    fn the_service_has_the_ports_of_the_listeners_and_keeps_node_ports() {
        let service =
            json!({"spec": {"ports": [{"name": "port-80", "port": 80, "targetPort": 80, "nodePort": 30001}]}});
        assert_eq!(service_ports(&service, &BTreeSet::new()), None);
        assert_eq!(service_ports(&service, &BTreeSet::from([80])), None);
        let more = service_ports(&service, &BTreeSet::from([80, 443])).unwrap();
        assert_eq!(more[0]["nodePort"], 30001);
        assert_eq!(more[1], json!({"name": "port-443", "port": 443, "targetPort": 443, "protocol": "TCP"}));
    }
}
