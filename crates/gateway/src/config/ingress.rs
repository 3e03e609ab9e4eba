//! Ingresses: attached as HTTP rules to two listeners of their own, or to a Gateway's listener that has the port for all hosts.

use super::attach::Attachment;
use super::compile::Work;
use super::listeners::{Mode, OpenListener};
use super::objects::Held;
use super::rules::{self, RouteKind};
use super::{Severity, secrets};
use crate::api::core::{IngressBackend, IngressSpec};
use crate::api::route::{BackendRef, HttpMatch, HttpRule, PathMatch, RouteSpec};

/// The class whose Ingresses are ours, if no IngressClass says more. Alone, Ingresses without a class are ours, too; in a cluster
/// the default class is set when an Ingress is created.
const CLASS: &str = "mainstay";
/// How classes were named before there were IngressClasses.
const ANNOTATION: &str = "kubernetes.io/ingress.class";

/// Opens the Ingress ports if there are Ingresses, and attaches them.
pub(super) fn attach(work: &mut Work<'_>) {
    let mut ingresses: Vec<_> = work.objects.ingresses.values().filter(|it| is_ours(work, it)).collect();
    ingresses.sort_by_key(|it| (it.meta.creation_timestamp.clone(), it.key.clone()));
    if ingresses.is_empty() {
        return;
    }
    let (http, https) = work.options.ingress_ports;
    let addresses = work.options.addresses.clone();
    let plain = OpenListener::implicit("http", http, addresses.clone(), None);
    let mut listeners = Vec::new();
    listeners.extend(share_or_open(work, plain, ingresses[0]));
    if let Some(config) = secrets::ingress_config(work, &ingresses) {
        let encrypted = OpenListener::implicit("https", https, addresses, Some(config));
        listeners.extend(share_or_open(work, encrypted, ingresses[0]));
    }
    for ingress in ingresses {
        work.statuses.ingresses.insert(ingress.key.clone());
        attach_one(work, ingress, &listeners);
    }
}

/// The place of a listener for Ingresses: a Gateway's that has this port for all hosts without TLS, else the one given. Nothing
/// if a Gateway has the port for something else; other hosts on it are no hindrance.
fn share_or_open(work: &mut Work<'_>, own: OpenListener, ingress: &Held<IngressSpec>) -> Option<usize> {
    if let Some(shared) = work.listeners.iter().position(|it| it.mode == Mode::Http && it.is_same(&own)) {
        return Some(shared);
    }
    if work.listeners.iter().any(|it| it.excludes(&own)) {
        let message = format!("port {} is taken by a Gateway; Ingresses are not served on it", own.port);
        work.problem(ingress, &["kind"], Severity::Error, message);
        return None;
    }
    work.listeners.push(own);
    Some(work.listeners.len() - 1)
}

fn is_ours(work: &Work<'_>, ingress: &Held<IngressSpec>) -> bool {
    let annotated = ingress.meta.annotations.get(ANNOTATION);
    let Some(class) = ingress.spec.ingress_class_name.as_ref().or(annotated) else {
        return !work.options.class_required;
    };
    let held = work.objects.ingress_classes.values().find(|held| held.meta.name == *class);
    held.map_or(class == CLASS, |held| held.spec.controller == super::status::CONTROLLER)
}

fn attach_one(work: &mut Work<'_>, ingress: &Held<IngressSpec>, listeners: &[usize]) {
    let paths = ingress.spec.rules.iter().filter_map(|it| it.http.as_ref()).flat_map(|it| &it.paths);
    let backends = paths.map(|it| &it.backend).chain(&ingress.spec.default_backend);
    for backend in backends.filter(|it| it.resource.is_some()) {
        let resource = backend.resource.as_ref().and_then(|it| it["kind"].as_str()).unwrap_or_default().to_owned();
        let message = format!("a backend of kind {resource} is not served; name a Service");
        work.problem(ingress, &["spec"], Severity::Error, message);
    }
    let mut hosts: Vec<(Option<String>, Vec<HttpRule>)> = Vec::new();
    for rule in &ingress.spec.rules {
        let rules = rule.http.iter().flat_map(|it| &it.paths).map(|path| {
            let kind = if path.path_type == "Exact" { "Exact" } else { "PathPrefix" };
            let value = if path.path.is_empty() { "/".to_owned() } else { path.path.clone() };
            let path_match = PathMatch { kind: Some(kind.to_owned()), value: Some(value) };
            http_rule(work, ingress, &path.backend, Some(path_match))
        });
        hosts.push((rule.host.clone().filter(|host| !host.is_empty()), rules.collect()));
    }
    if let Some(backend) = &ingress.spec.default_backend {
        hosts.push((None, vec![http_rule(work, ingress, backend, None)]));
    }
    for (host, rules) in hosts {
        let spec = RouteSpec {
            parent_refs: Vec::new(),
            hostnames: host.clone().into_iter().collect(),
            rules,
            use_default_gateways: None,
        };
        let host = host.map(|it| it.to_lowercase());
        let attachments: Vec<Attachment> = listeners.iter().map(|at| (*at, vec![host.clone()])).collect();
        rules::attach(work, ingress, RouteKind::Ingress, &spec, &attachments);
    }
}

fn http_rule(
    work: &Work<'_>,
    ingress: &Held<IngressSpec>,
    backend: &IngressBackend,
    path: Option<PathMatch>,
) -> HttpRule {
    let service = backend.service.clone().unwrap_or_default();
    let by_name = || {
        let key = crate::api::Key::new(&ingress.key.namespace, &service.name);
        let held = work.objects.services.get(&key)?;
        held.spec.ports.iter().find(|port| port.name == service.port.name).map(|port| port.port)
    };
    let port = service.port.number.or_else(by_name);
    let backend = BackendRef { name: service.name.clone(), port, ..BackendRef::default() };
    HttpRule {
        matches: path.map(|path| HttpMatch { path: Some(path), ..HttpMatch::default() }).into_iter().collect(),
        backend_refs: vec![backend],
        ..HttpRule::default()
    }
}
