//! Which routes are attached to which listeners.

use std::sync::Arc;

use super::compile::Work;
use super::objects::Held;
use super::rules::{self, RouteKind};
use super::status::{Condition, RouteStatus};
use super::{Severity, listeners::OpenListener, upstreams};
use crate::api::route::{GrpcRule, HttpMatch, HttpRule, ParentRef, PathMatch, RouteSpec, StreamRule as StreamRuleSpec};
use crate::api::{GATEWAY_GROUP, Key};
use crate::table::StreamRule;
use crate::table::hosts::intersection;

/// A listener a route is attached to, by index, and the hosts they have in common.
pub(super) type Attachment = (usize, Vec<Option<String>>);

/// Attaches HTTPRoutes and GRPCRoutes.
pub(super) fn http_routes(work: &mut Work<'_>) {
    for route in work.objects.http_routes.values() {
        http_route(work, route, RouteKind::Http, &route.spec);
    }
    for route in work.objects.grpc_routes.values() {
        let spec = RouteSpec {
            parent_refs: route.spec.parent_refs.clone(),
            hostnames: route.spec.hostnames.clone(),
            rules: route.spec.rules.iter().map(http_rule).collect(),
            use_default_gateways: None,
        };
        http_route(work, route, RouteKind::Grpc, &spec);
    }
}

fn http_route<T>(work: &mut Work<'_>, route: &Held<T>, kind: RouteKind, spec: &RouteSpec<HttpRule>) {
    let mut status = RouteStatus::default();
    for (index, parent) in spec.parent_refs.iter().enumerate() {
        let place = ["spec", "parentRefs", &index.to_string()].map(str::to_owned);
        let attachments = match attachments(work, kind.name(), &route.key, &spec.hostnames, parent) {
            Attached::NotOurs => continue,
            Attached::Refused(condition) => {
                let path: Vec<&str> = place.iter().map(String::as_str).collect();
                work.problem(route, &path, Severity::Error, format!("not attached: {}", condition.message));
                status.parents.push((parent.clone(), vec![condition, Condition::good("ResolvedRefs")]));
                continue;
            }
            Attached::To(attachments) => attachments,
        };
        let outcome = rules::attach(work, route, kind, spec, &attachments);
        status.parents.push((parent.clone(), outcome));
    }
    if spec.parent_refs.is_empty() {
        work.problem(route, &["spec"], Severity::Warning, "no parentRefs: the route is attached to nothing");
    }
    work.statuses.routes.insert((kind.name(), route.key.clone()), status);
}

/// A GRPCRoute rule as an HTTP rule: a gRPC method is the path `/service/method` (gRPC over HTTP/2, "Requests").
fn http_rule(rule: &GrpcRule) -> HttpRule {
    let matches = rule.matches.iter().map(|it| {
        let method = it.method.clone().unwrap_or_default();
        let regex = method.kind.as_deref() == Some("RegularExpression");
        let (kind, value) = match (&method.service, &method.method) {
            (None, None) => ("PathPrefix", "/".to_owned()),
            (Some(service), None) if !regex => ("PathPrefix", format!("/{service}")),
            (Some(service), Some(method)) if !regex => ("Exact", format!("/{service}/{method}")),
            (service, method) => {
                let part = |text: &Option<String>| match text {
                    Some(text) if regex => format!("(?:{text})"),
                    Some(text) => regex::escape(text),
                    None => "[^/]+".to_owned(),
                };
                ("RegularExpression", format!("/{}/{}", part(service), part(method)))
            }
        };
        HttpMatch {
            path: Some(PathMatch { kind: Some(kind.to_owned()), value: Some(value) }),
            headers: it.headers.clone(),
            query_params: Vec::new(),
            method: None,
        }
    });
    HttpRule {
        name: rule.name.clone(),
        matches: matches.collect(),
        filters: rule.filters.clone(),
        backend_refs: rule.backend_refs.clone(),
        session_persistence: rule.session_persistence.clone(),
        ..HttpRule::default()
    }
}

/// Attaches TLSRoutes and TCPRoutes.
pub(super) fn stream_routes(work: &mut Work<'_>) {
    let objects = work.objects;
    let tls = objects.tls_routes.values().map(|route| ("TLSRoute", route));
    let tcp = objects.tcp_routes.values().map(|route| ("TCPRoute", route));
    let mut routes: Vec<_> = tls.chain(tcp).collect();
    // The oldest wins a host (Gateway API, "Conflict Resolution").
    routes.sort_by_key(|(_, route)| (route.meta.creation_timestamp.clone(), route.key.clone()));
    for (kind, route) in routes {
        let mut status = RouteStatus::default();
        for (index, parent) in route.spec.parent_refs.iter().enumerate() {
            let index = index.to_string();
            match attachments(work, kind, &route.key, &route.spec.hostnames, parent) {
                Attached::NotOurs => {}
                Attached::Refused(condition) => {
                    let message = format!("not attached: {}", condition.message);
                    work.problem(route, &["spec", "parentRefs", &index], Severity::Error, message);
                    status.parents.push((parent.clone(), vec![condition, Condition::good("ResolvedRefs")]));
                }
                Attached::To(attachments) => {
                    let resolved = stream_route(work, kind, route, &attachments);
                    status.parents.push((parent.clone(), vec![Condition::good("Accepted"), resolved]));
                }
            }
        }
        work.statuses.routes.insert((kind, route.key.clone()), status);
    }
}

fn stream_route(
    work: &mut Work<'_>,
    kind: &'static str,
    route: &Held<RouteSpec<StreamRuleSpec>>,
    attachments: &[Attachment],
) -> Condition {
    let mut resolved = Condition::good("ResolvedRefs");
    let Some(rule) = route.spec.rules.first() else { return resolved };
    if route.spec.rules.len() > 1 {
        work.problem(
            route,
            &["spec", "rules", "1"],
            Severity::Warning,
            "only the first rule of a stream route is used",
        );
    }
    for (at, hosts) in attachments {
        let gateway = work.listeners[*at].gateway.clone();
        let section = work.listeners[*at].name.clone();
        let context = upstreams::Context::stream(kind, &route.key, &gateway, &section);
        let (backends, bad) = upstreams::backends(work, route, &context, &rule.backend_refs, &["spec", "rules", "0"]);
        resolved = bad.unwrap_or(resolved);
        let name = format!("{kind} {} {}", route.key, rule.name.as_deref().unwrap_or("0"));
        let compiled = Arc::new(StreamRule { name, backends });
        let listener = &mut work.listeners[*at];
        listener.attached += 1;
        for host in hosts {
            listener.streams.entry(host.as_deref(), || compiled.clone());
        }
    }
    resolved
}

/// The outcome of one parent reference.
enum Attached {
    To(Vec<Attachment>),
    Refused(Condition),
    /// Another controller's gateway, or no gateway at all.
    NotOurs,
}

fn attachments(work: &Work<'_>, kind: &str, route: &Key, hostnames: &[String], parent: &ParentRef) -> Attached {
    let gateway = parent.kind.as_deref().unwrap_or("Gateway") == "Gateway"
        && parent.group.as_deref().unwrap_or(GATEWAY_GROUP) == GATEWAY_GROUP;
    if !gateway {
        return Attached::NotOurs;
    }
    let key = Key::new(parent.namespace.as_deref().unwrap_or(&route.namespace), &parent.name);
    let of_gateway = |it: &&OpenListener| it.gateway == key;
    if !work.listeners.iter().any(|it| it.gateway == key) {
        // In a cluster it may be another controller's; alone, a name that leads nowhere is a mistake.
        return if work.options.class_required || work.objects.gateways.contains_key(&key) {
            Attached::NotOurs
        } else {
            Attached::Refused(Condition::bad("Accepted", "NoMatchingParent", format!("there is no Gateway {key}")))
        };
    }
    let named = |it: &&OpenListener| {
        parent.section_name.as_ref().is_none_or(|name| *name == it.name)
            && parent.port.is_none_or(|port| port == it.port)
    };
    if !work.listeners.iter().filter(of_gateway).any(|it| named(&it)) {
        let message = format!("Gateway {key} has no listener of that name and port");
        return Attached::Refused(Condition::bad("Accepted", "NoMatchingParent", message));
    }
    let mut allowed_any = false;
    let mut found = Vec::new();
    for (at, listener) in work.listeners.iter().enumerate().filter(|(_, it)| it.gateway == key && named(it)) {
        if !listener.kinds.contains(&kind) || !allowed(work, listener, route) {
            continue;
        }
        allowed_any = true;
        let ours = listener.hostname.as_deref();
        let hosts: Vec<Option<String>> = if hostnames.is_empty() {
            vec![ours.map(str::to_owned)]
        } else {
            hostnames.iter().filter_map(|host| intersection(ours, Some(host))).collect()
        };
        if !hosts.is_empty() {
            found.push((at, hosts));
        }
    }
    match (found.is_empty(), allowed_any) {
        (false, _) => Attached::To(found),
        (true, true) => Attached::Refused(Condition::bad(
            "Accepted",
            "NoMatchingListenerHostname",
            format!("no hostname of the route fits a listener of Gateway {key}"),
        )),
        (true, false) => Attached::Refused(Condition::bad(
            "Accepted",
            "NotAllowedByListeners",
            format!("the listeners of Gateway {key} do not allow {kind} from namespace {}", route.namespace),
        )),
    }
}

fn allowed(work: &Work<'_>, listener: &OpenListener, route: &Key) -> bool {
    let namespaces = listener.allowed.namespaces.as_ref();
    match namespaces.and_then(|it| it.from.as_deref()).unwrap_or("Same") {
        "All" => true,
        "Same" => route.namespace == listener.gateway.namespace,
        "Selector" => {
            let labels = work.objects.namespaces.get(&route.namespace).map(|meta| &meta.labels);
            let selector = namespaces.and_then(|it| it.selector.as_ref());
            selector.zip(labels).is_some_and(|(selector, labels)| selector.matches(labels))
        }
        _ => false,
    }
}
