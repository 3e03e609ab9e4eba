//! Backend references: resolved to upstreams with their endpoints.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::compile::Work;
use super::objects::Held;
use super::policies::{self, Target};
use super::status::Condition;
use super::{Severity, secrets};
use crate::api::core::{EndpointSlice, ServicePort};
use crate::api::route::BackendRef;
use crate::api::{Key, MAINSTAY_GROUP};
use crate::table::settings::{Protocol, UpstreamSettings};
use crate::table::{Backends, Endpoint, Upstream, WeightedBackend, hash};

/// Who refers: what decides about policies and grants.
pub(super) struct Context<'a> {
    pub(super) route_kind: &'a str,
    pub(super) route: &'a Key,
    /// The route's own policies, most specific first.
    pub(super) targets: Vec<Target<'a>>,
    /// A GRPCRoute speaks HTTP/2 to its backends.
    pub(super) grpc: bool,
    /// The Gateway it is attached to; none for an Ingress.
    pub(super) gateway: Option<&'a Key>,
}

impl<'a> Context<'a> {
    /// The context of a TLSRoute or TCPRoute.
    pub(super) fn stream(kind: &'a str, route: &'a Key, gateway: &'a Key, section: &'a str) -> Self {
        let targets = vec![
            Target::whole(kind, route),
            Target::section("Gateway", gateway, section),
            Target::whole("Gateway", gateway),
        ];
        Self { route_kind: kind, route, targets, grpc: false, gateway: Some(gateway) }
    }
}

/// Resolves the backends of a rule. A broken reference keeps its share of the traffic, which is answered with 500; the
/// condition says which it is.
pub(super) fn backends<T>(
    work: &mut Work<'_>,
    route: &Held<T>,
    context: &Context<'_>,
    references: &[BackendRef],
    path: &[&str],
) -> (Backends, Option<Condition>) {
    let mut backends = Backends::default();
    let mut bad = None;
    for (index, reference) in references.iter().enumerate() {
        let upstream = match resolve(work, route, context, reference) {
            Ok(upstream) => Some(upstream),
            Err(condition) => {
                let index = index.to_string();
                let path: Vec<&str> = path.iter().copied().chain(["backendRefs", &index]).collect();
                work.problem(route, &path, Severity::Error, &*condition.message);
                bad = Some(condition);
                None
            }
        };
        let weight = reference.weight.unwrap_or(1).min(1_000_000);
        backends.weight_total += weight;
        backends.list.push(WeightedBackend { weight, upstream, filters: crate::table::filters::Filters::default() });
    }
    (backends, bad)
}

/// The upstream of a reference, made if it is new.
///
/// # Errors
/// The condition `ResolvedRefs` with the Gateway API's reason.
pub(super) fn resolve<T>(
    work: &mut Work<'_>,
    route: &Held<T>,
    context: &Context<'_>,
    reference: &BackendRef,
) -> Result<usize, Condition> {
    let bad = |reason, message: String| Condition::bad("ResolvedRefs", reason, message);
    let namespace = reference.namespace.as_deref().unwrap_or(&context.route.namespace);
    let key = Key::new(namespace, &reference.name);
    let kind = reference.kind.as_deref().unwrap_or("Service");
    let group = reference.group.as_deref().unwrap_or("");
    if namespace != context.route.namespace && !granted(work, context, group, kind, &key) {
        let message =
            format!("no ReferenceGrant in namespace {namespace} lets {} refer to {kind} {key}", context.route_kind);
        return Err(bad("RefNotPermitted", message));
    }
    let found = match (group, kind) {
        ("" | "core", "Service") => service(work, &key, reference.port),
        (MAINSTAY_GROUP, "Backend") => backend(work, &key),
        _ => return Err(bad("InvalidKind", format!("{kind} ({group}) is not a backend; use a Service or a Backend"))),
    };
    let found = found.map_err(|(reason, message)| bad(reason, message))?;
    let mut targets = vec![Target::whole(found.kind, &key)];
    if let Some(section) = found.section.as_deref() {
        targets.insert(0, Target::section(found.kind, &key, section));
    }
    targets.extend(context.targets.iter().cloned());
    let mut settings = policies::upstream_settings(work, &targets);
    settings.protocol = found.protocol;
    if context.grpc {
        settings.protocol = Protocol::Http2;
    }
    settings.tls = secrets::client_config(work, route, context.gateway, &found, &key)
        .map_err(|message| bad("BackendNotFound", message))?;
    let name = format!("{key}:{}", reference.port.unwrap_or(0));
    Ok(add(work, name, found, settings))
}

/// What a reference leads to.
pub(super) struct Found {
    pub(super) kind: &'static str,
    /// The port's name.
    pub(super) section: Option<String>,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) protocol: Protocol,
    /// TLS without a policy that says how.
    pub(super) tls: Option<crate::api::core::BackendTls>,
}

fn add(work: &mut Work<'_>, name: String, found: Found, settings: UpstreamSettings) -> usize {
    // Routes with the same settings share an upstream: its health, its connections and its limits.
    let tls = settings.tls.as_ref().map(Arc::as_ptr);
    let described = format!("{:?} {tls:?}", UpstreamSettings { tls: None, ..settings.clone() });
    let key = format!("{}/{name}#{:x}", found.kind, hash::stable(described.as_bytes()));
    if let Some(known) = work.upstream_index.get(&key) {
        return *known;
    }
    let index = work.upstreams.len();
    let endpoints = found.endpoints;
    work.upstreams.push(Arc::new(Upstream { key: key.clone(), name, endpoints, settings: Arc::new(settings) }));
    work.upstream_index.insert(key, index);
    index
}

fn granted(work: &Work<'_>, context: &Context<'_>, group: &str, kind: &str, to: &Key) -> bool {
    grant_exists(work, crate::api::GATEWAY_GROUP, context.route_kind, &context.route.namespace, group, kind, to)
}

/// Whether a ReferenceGrant lets objects of a kind and namespace refer to an object.
pub(super) fn grant_exists(
    work: &Work<'_>,
    from_group: &str,
    from_kind: &str,
    from_namespace: &str,
    group: &str,
    kind: &str,
    to: &Key,
) -> bool {
    work.objects.grants.values().filter(|grant| grant.key.namespace == to.namespace).any(|grant| {
        grant
            .spec
            .from
            .iter()
            .any(|it| it.group == from_group && it.kind == from_kind && it.namespace == from_namespace)
            && grant
                .spec
                .to
                .iter()
                .any(|it| it.group == group && it.kind == kind && it.name.as_ref().is_none_or(|name| *name == to.name))
    })
}

type Reason = (&'static str, String);

fn service(work: &Work<'_>, key: &Key, port: Option<u16>) -> Result<Found, Reason> {
    let held = work.objects.services.get(key).ok_or(("BackendNotFound", format!("there is no Service {key}")))?;
    let number = port.ok_or(("BackendNotFound", format!("a reference to Service {key} needs a port")))?;
    let port = held.spec.ports.iter().find(|it| it.port == number);
    let port = port.ok_or_else(|| ("BackendNotFound", format!("Service {key} has no port {number}")))?;
    let endpoints = match (held.spec.kind.as_deref(), &held.spec.external_name) {
        (Some("ExternalName"), Some(name)) => {
            let addresses = work.options.names.get(name).into_iter().flatten();
            addresses.map(|address| endpoint(SocketAddr::new(*address, number), 1, None, 0)).collect()
        }
        _ => slices(work.objects.slices.get(key).map(Vec::as_slice).unwrap_or_default(), port),
    };
    let (protocol, tls) = match port.app_protocol.as_deref() {
        Some("kubernetes.io/h2c" | "grpc" | "h2c") => (Protocol::Http2, false),
        Some("https" | "kubernetes.io/wss") => (Protocol::Http1, true),
        _ => (Protocol::Http1, false),
    };
    // A certificate that nobody says how to verify cannot be verified; encryption alone is what `https` then means.
    let tls = tls.then(|| crate::api::core::BackendTls { insecure_skip_verify: true, ..Default::default() });
    Ok(Found { kind: "Service", section: port.name.clone(), endpoints, protocol, tls })
}

/// The endpoints of a Service's port: the ready ones, or, if there is none, those that end but still serve (KEP-1669).
fn slices(slices: &[EndpointSlice], port: &ServicePort) -> Vec<Endpoint> {
    let mut ready = Vec::new();
    let mut serving = Vec::new();
    for slice in slices {
        let wanted = port.name.as_deref().unwrap_or_default();
        let found = slice.ports.iter().find(|it| it.name.as_deref().unwrap_or_default() == wanted);
        let Some(number) = found.and_then(|it| it.port) else { continue };
        for written in &slice.endpoints {
            let Some(address) = written.addresses.first().and_then(|it| it.parse::<IpAddr>().ok()) else { continue };
            let endpoint = endpoint(SocketAddr::new(address, number), 1, written.zone.as_deref(), 0);
            let ending = written.conditions.terminating.unwrap_or(false);
            if written.conditions.ready.unwrap_or(true) && !ending {
                ready.push(endpoint);
            } else if ending && written.conditions.serving.unwrap_or(false) {
                serving.push(endpoint);
            }
        }
    }
    let mut endpoints = if ready.is_empty() { serving } else { ready };
    endpoints.sort_by_key(|it| it.address);
    endpoints.dedup_by_key(|it| it.address);
    endpoints
}

fn backend(work: &Work<'_>, key: &Key) -> Result<Found, Reason> {
    let held = work.objects.backends.get(key).ok_or(("BackendNotFound", format!("there is no Backend {key}")))?;
    let mut endpoints = Vec::new();
    for written in &held.spec.endpoints {
        let wrong = || ("BackendNotFound", format!("Backend {key}: {:?} is not ADDRESS:PORT", written.address));
        let (host, port) = written.address.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().map_err(|_| wrong())?;
        let weight = written.weight.unwrap_or(1);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => work.options.names.get(host).cloned().unwrap_or_default(),
        };
        let zone = written.zone.as_deref();
        endpoints.extend(
            addresses.into_iter().map(|it| endpoint(SocketAddr::new(it, port), weight, zone, written.priority)),
        );
    }
    endpoints.sort_by_key(|it| (it.priority, it.address));
    endpoints.dedup_by_key(|it| it.address);
    let (protocol, tls) = match held.spec.protocol.as_deref().unwrap_or("http") {
        "http" | "tcp" => (Protocol::Http1, false),
        "https" => (Protocol::Http1, true),
        "h2c" => (Protocol::Http2, false),
        "h2" => (Protocol::Http2, true),
        other => {
            return Err((
                "UnsupportedProtocol",
                format!("Backend {key}: protocol {other:?} is not http, https, h2c, h2 or tcp"),
            ));
        }
    };
    let tls = held.spec.tls.clone().or_else(|| tls.then(Default::default));
    Ok(Found { kind: "Backend", section: None, endpoints, protocol, tls })
}

fn endpoint(address: SocketAddr, weight: u32, zone: Option<&str>, priority: u8) -> Endpoint {
    Endpoint { address, weight: weight.min(1_000_000), zone: zone.map(Into::into), priority }
}

/// Names that must be looked up before compiling.
pub(crate) fn names(objects: &super::Objects) -> Vec<String> {
    let services = objects.services.values().filter_map(|it| it.spec.external_name.clone());
    let backends = objects.backends.values().flat_map(|it| &it.spec.endpoints).filter_map(|it| {
        let host = it.address.rsplit_once(':')?.0;
        let plain = host.trim_start_matches('[').trim_end_matches(']');
        plain.parse::<IpAddr>().is_err().then(|| host.to_owned())
    });
    let mut names: Vec<String> = services.chain(backends).collect();
    names.sort();
    names.dedup();
    names
}
