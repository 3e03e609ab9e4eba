//! What configurations compile to, and what is said about broken ones.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use http::{HeaderMap, Method};

use super::{Compiled, Objects, Options, compile, source};
use crate::api::Key;
use crate::table::paths::Asked;
use crate::table::{PortService, Rule};

const WORLD: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g, namespace: shop}
spec:
  gatewayClassName: mainstay
  listeners:
  - {name: http, port: 8080, protocol: HTTP}
  - name: api
    port: 8080
    protocol: HTTP
    hostname: api.example.com
    allowedRoutes: {namespaces: {from: All}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- {addresses: [10.0.0.1], conditions: {ready: true}, zone: a}
- {addresses: [10.0.0.2], conditions: {ready: false}}
- {addresses: [10.0.0.3]}
ports: [{name: http, port: 8000}]
---
";

fn compiled(text: &str) -> Compiled {
    let mut sources = Vec::new();
    source::parse(Path::new("w.yaml"), &format!("{WORLD}{text}"), &mut sources).unwrap();
    compile(&Objects::decode(&sources), &Options::default())
}

fn route<'a>(compiled: &'a Compiled, host: &str, path: &str) -> Option<&'a Rule> {
    let PortService::Http(listeners) = &compiled.table.ports[0].service else { return None };
    let asked = Asked { method: &Method::GET, path, query: None, headers: &HeaderMap::new() };
    let listener = listeners.get(host)?;
    let candidate = listener.routes.matching(host).find_map(|table| table.find(&asked))?;
    Some(&compiled.table.rules[candidate.rule.id])
}

#[test]
fn a_route_leads_to_the_ready_endpoints_of_its_service() {
    let compiled = compiled(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{name: g, sectionName: http}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /shop}}]
    backendRefs: [{name: web, port: 80}]
",
    );
    assert_eq!(compiled.problems, []);
    let rule = route(&compiled, "www.example.com", "/shop/1").unwrap();
    let upstream = &compiled.table.upstreams[rule.backends.list[0].upstream.unwrap()];
    let addresses: Vec<_> = upstream.endpoints.iter().map(|it| it.address.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.1:8000", "10.0.0.3:8000"]);
    assert!(route(&compiled, "www.example.com", "/").is_none());
    // The more specific listener takes its host away from the other (listener isolation).
    assert!(route(&compiled, "api.example.com", "/shop").is_none());
    let status = &compiled.statuses.gateways[&Key::new("shop", "g")];
    assert_eq!(status.listeners.iter().map(|it| it.attached).collect::<Vec<_>>(), [1, 0]);
    assert!(status.listeners.iter().flat_map(|it| &it.conditions).all(|it| it.holds == (it.kind != "Conflicted")));
}

#[test]
fn broken_references_are_answered_with_500_and_named_with_their_line() {
    let compiled = compiled(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs:
  - name: g
  - name: other
  rules:
  - backendRefs:
    - {name: web, port: 80, weight: 9}
    - name: nothing
      port: 80
    - {name: web, namespace: bank, port: 80}
",
    );
    let shown: Vec<String> = compiled.problems.iter().map(ToString::to_string).collect();
    let has = |text: &str| assert!(shown.iter().any(|it| it.contains(text)), "{text} in {shown:#?}");
    let line = WORLD.lines().count();
    has(&format!("w.yaml:{}: error: HTTPRoute shop/r: not attached: there is no Gateway shop/other", line + 7));
    has(&format!("w.yaml:{}: error: HTTPRoute shop/r: there is no Service shop/nothing", line + 11));
    has("no ReferenceGrant in namespace bank");
    let rule = route(&compiled, "a", "/").unwrap();
    assert_eq!(rule.backends.weight_total, 11);
    assert!(rule.backends.at(0).unwrap().upstream.is_some() && rule.backends.at(9).unwrap().upstream.is_none());
}

#[test]
fn listeners_that_cannot_be_told_apart_are_not_served() {
    let compiled = compiled(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: h, namespace: shop}
spec:
  gatewayClassName: mainstay
  listeners:
  - {name: a, port: 9000, protocol: HTTP}
  - {name: b, port: 9000, protocol: HTTP}
  - {name: c, port: 9001, protocol: UDP}
  - {name: d, port: 9002, protocol: HTTPS}
  - {name: e, port: 9003, protocol: TCP}
",
    );
    let status = &compiled.statuses.gateways[&Key::new("shop", "h")];
    let reason = |name: &str, kind: &str| {
        let listener = status.listeners.iter().find(|it| it.name == name).unwrap();
        listener.conditions.iter().find(|it| it.kind == kind).map(|it| (it.holds, it.reason)).unwrap()
    };
    assert_eq!(reason("a", "Conflicted"), (true, "HostnameConflict"));
    assert_eq!(reason("b", "Conflicted"), (true, "HostnameConflict"));
    assert_eq!(reason("c", "Accepted"), (false, "UnsupportedProtocol"));
    assert_eq!(reason("d", "ResolvedRefs"), (false, "InvalidCertificateRef"));
    assert_eq!(reason("e", "Programmed"), (true, "Programmed"));
    let ports: Vec<u16> = compiled.table.ports.iter().map(|it| it.addresses[0].port()).collect();
    assert_eq!(ports, [8080, 9003]);
}

#[test]
fn the_most_specific_policy_wins_by_section_and_limits_add_up() {
    let policy = |name: &str, target: &str, sections: &str| {
        format!(
            "---\napiVersion: mainstay.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  targetRefs: [{target}]\n{sections}"
        )
    };
    let text = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{name: g}]
  rules:
  - name: first
    backendRefs: [{name: web, port: 80}]
"
    .to_owned()
        + &policy(
            "a",
            "{kind: Gateway, name: g}",
            "  rateLimits: [{requests: 5}]\n  retry: {attempts: 7}\n  loadBalancer: {algorithm: Random}\n",
        )
        + &policy(
            "b",
            "{kind: HTTPRoute, name: r}",
            "  rateLimits: [{requests: 6, key: [client, {header: X-User}]}]\n  retry: {attempts: 1}\n",
        )
        + &policy("c", "{kind: Service, name: web}", "  loadBalancer: {algorithm: Maglev, hashOn: [{cookie: id}]}\n")
        + &policy("d", "{kind: Service, name: none}", "  retry: {attempts: 1}\n");
    let compiled = compiled(&text);
    let rule = route(&compiled, "a", "/").unwrap();
    assert_eq!(rule.settings.retry.attempts, 1);
    assert_eq!(rule.settings.limits.iter().map(|it| it.requests).collect::<Vec<_>>(), [6, 5]);
    let upstream = &compiled.table.upstreams[rule.backends.list[0].upstream.unwrap()];
    assert_eq!(upstream.settings.algorithm, crate::api::policy::Algorithm::Maglev);
    assert_eq!(compiled.problems.len(), 1, "{:?}", compiled.problems);
    assert!(compiled.problems[0].to_string().contains("TrafficPolicy shop/d"));
}

#[test]
fn an_ingress_shares_the_port_of_a_gateway() {
    let ingress = "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: i, namespace: shop}
spec:
  rules:
  - host: old.example.com
    http:
      paths: [{path: /a, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}]
";
    let mut sources = Vec::new();
    source::parse(Path::new("w.yaml"), &format!("{WORLD}{ingress}"), &mut sources).unwrap();
    let options = Options { ingress_ports: (8080, 8443), ..Options::default() };
    let compiled = compile(&Objects::decode(&sources), &options);
    assert_eq!(compiled.problems, []);
    assert_eq!(compiled.table.ports.len(), 1);
    assert!(route(&compiled, "old.example.com", "/a/b").is_some());
    let status = &compiled.statuses.gateways[&Key::new("shop", "g")];
    assert_eq!(status.listeners[0].attached, 0, "an Ingress is no route of the Gateway");
}

#[test]
fn an_ingress_is_served_on_its_own_ports() {
    let compiled = compiled(
        "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: i, namespace: shop}
spec:
  rules:
  - host: shop.example.com
    http:
      paths: [{path: /a, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}]
",
    );
    assert_eq!(compiled.problems, []);
    assert!(compiled.table.ports.iter().any(|it| it.addresses[0].port() == 80));
    assert!(compiled.table.rules[0].backends.list[0].upstream.is_some());
}

/// A route to the Service, with these rules.
fn routed(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r, namespace: shop}}
spec:
  parentRefs: [{{name: g, sectionName: http}}]
  rules:
{rules}"
    )
}

const PLAIN_RULE: &str = "  - backendRefs: [{name: web, port: 80}]\n";
const BROKEN_RULE: &str = "  - matches: [{path: {type: RegularExpression, value: '('}}]\n";

/// The conditions of the route: type, status, reason.
fn conditions(compiled: &Compiled) -> Vec<(&'static str, bool, &'static str)> {
    let status = &compiled.statuses.routes[&("HTTPRoute", Key::new("shop", "r"))];
    status.parents[0].1.iter().map(|it| (it.kind, it.holds, it.reason)).collect()
}

#[test]
fn a_route_is_accepted_as_long_as_a_rule_of_it_can_be_served() {
    let good = ("Accepted", true, "Accepted");
    let resolved = ("ResolvedRefs", true, "ResolvedRefs");
    assert_eq!(conditions(&compiled(&routed(PLAIN_RULE))), [good, resolved]);
    let partly = compiled(&routed(&[PLAIN_RULE, BROKEN_RULE].concat()));
    assert_eq!(conditions(&partly), [good, resolved, ("PartiallyInvalid", true, "UnsupportedValue")]);
    assert!(route(&partly, "a.example", "/").is_some(), "the other rule is served");
    assert_eq!(conditions(&compiled(&routed(BROKEN_RULE))), [("Accepted", false, "UnsupportedValue"), resolved]);
}

#[test]
fn tls_to_a_backend_is_as_its_policy_says_or_not_at_all() {
    let authority = rcgen::generate_simple_self_signed(["web.example".to_owned()]).unwrap().cert.pem();
    let authority = authority.lines().map(|line| format!("    {line}\n")).collect::<Vec<_>>().concat();
    let policy = |validation: &str| {
        format!(
            "{}---
apiVersion: v1
kind: ConfigMap
metadata: {{name: ca, namespace: shop}}
data:
  ca.crt: |
{authority}---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {{name: p, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: web, sectionName: http}}]
  validation: {{hostname: web.example, {validation}}}
",
            routed(PLAIN_RULE)
        )
    };
    let outcome = |validation: &str| {
        let compiled = compiled(&policy(validation));
        let (gateways, list) = &compiled.statuses.tls_policies[&Key::new("shop", "p")];
        assert_eq!(gateways.iter().map(ToString::to_string).collect::<Vec<_>>(), ["shop/g"]);
        let said: Vec<_> = list.iter().map(|it| (it.kind, it.holds, it.reason)).collect();
        let rule = route(&compiled, "a.example", "/").unwrap();
        let upstream = rule.backends.list[0].upstream.map(|it| &compiled.table.upstreams[it]);
        (said, upstream.map(|it| it.settings.tls.as_ref().unwrap().hostname.clone().unwrap()))
    };
    let refs = |kind: &str, name: &str| format!("caCertificateRefs: [{{group: '', kind: {kind}, name: {name}}}]");
    let good = [("Accepted", true, "Accepted"), ("ResolvedRefs", true, "ResolvedRefs")];
    assert_eq!(outcome(&refs("ConfigMap", "ca")), (good.to_vec(), Some("web.example".to_owned())));
    for (validation, accepted, resolved) in [
        (refs("ConfigMap", "gone"), "NoValidCACertificate", "InvalidCACertificateRef"),
        (refs("Deployment", "ca"), "NoValidCACertificate", "InvalidKind"),
        ("wellKnownCACertificates: Mine".to_owned(), "Invalid", "ResolvedRefs"),
        (refs("ConfigMap", "ca") + ", subjectAltNames: [{type: URI, uri: 'spiffe://a'}]", "Invalid", "ResolvedRefs"),
    ] {
        let (said, upstream) = outcome(&validation);
        assert_eq!(said, [("Accepted", false, accepted), ("ResolvedRefs", resolved == "ResolvedRefs", resolved)]);
        assert_eq!(upstream, None, "{validation}: nothing is sent without the TLS that was asked for");
    }
}

#[test]
fn a_backend_of_an_ingress_is_a_service() {
    let compiled = compiled(
        "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: i, namespace: shop}
spec:
  defaultBackend: {resource: {apiGroup: x.example, kind: Bucket, name: b}}
",
    );
    assert!(compiled.problems.iter().any(|it| it.message.contains("kind Bucket")), "{:?}", compiled.problems);
}
