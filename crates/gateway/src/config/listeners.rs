//! Listeners: opened from Gateways with their conflicts judged, closed into ports once routes are attached.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::ServerConfig;

use super::compile::Work;
use super::objects::Held;
use super::status::{Condition, GatewayStatus, ListenerStatus};
use super::{Severity, acme, policies, secrets};
use crate::api::gateway::{AllowedRoutes, GatewaySpec, Listener};
use crate::api::{GATEWAY_GROUP, Key};
use crate::table::hosts::HostMap;
use crate::table::paths::PathTable;
use crate::table::settings::PortSettings;
use crate::table::{HttpListener, Port, PortService, SniTarget, StreamRule};

/// What a listener does with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Http,
    Https,
    TlsTerminate,
    TlsPassthrough,
    Tcp,
}

impl Mode {
    /// The kinds of route that can attach.
    pub(super) fn kinds(self) -> &'static [&'static str] {
        match self {
            Self::Http | Self::Https => &["HTTPRoute", "GRPCRoute"],
            Self::TlsTerminate => &["TLSRoute", "TCPRoute"],
            Self::TlsPassthrough => &["TLSRoute"],
            Self::Tcp => &["TCPRoute"],
        }
    }

    /// What can share a port: everything on TLS is told apart by its SNI.
    fn family(self) -> u8 {
        match self {
            Self::Http => 0,
            Self::Https | Self::TlsTerminate | Self::TlsPassthrough => 1,
            Self::Tcp => 2,
        }
    }
}

/// A listener that routes can attach to.
#[derive(Debug)]
pub(super) struct OpenListener {
    pub(super) gateway: Key,
    pub(super) name: String,
    pub(super) hostname: Option<String>,
    pub(super) port: u16,
    pub(super) mode: Mode,
    pub(super) allowed: AllowedRoutes,
    /// Kinds that may attach: what the protocol takes and `allowedRoutes.kinds` names.
    pub(super) kinds: Vec<&'static str>,
    pub(super) attached: u32,
    pub(super) routes: HostMap<PathTable>,
    pub(super) streams: HostMap<Arc<StreamRule>>,
    addresses: Vec<IpAddr>,
    tls: Option<Arc<ServerConfig>>,
    settings: PortSettings,
    /// Found wrong: it takes routes for their status, but is not served.
    served: bool,
    conditions: Vec<Condition>,
}

impl OpenListener {
    /// A listener that no Gateway names: for Ingresses.
    pub(super) fn implicit(name: &str, port: u16, addresses: Vec<IpAddr>, tls: Option<Arc<ServerConfig>>) -> Self {
        Self {
            gateway: Key::new("", "ingress"),
            name: name.to_owned(),
            hostname: None,
            port,
            mode: if tls.is_some() { Mode::Https } else { Mode::Http },
            allowed: AllowedRoutes::default(),
            kinds: Vec::new(),
            attached: 0,
            routes: HostMap::default(),
            streams: HostMap::default(),
            addresses,
            tls,
            settings: PortSettings::default(),
            served: true,
            conditions: Vec::new(),
        }
    }

    /// Whether it does the same for the same port and hosts.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let place = |it: &Self| (it.mode, it.port, it.hostname.clone(), it.addresses.clone());
        self.served && place(self) == place(other)
    }

    /// Whether the other cannot be served beside it.
    pub(super) fn excludes(&self, other: &Self) -> bool {
        let apart = self.mode.family() == other.mode.family()
            && self.hostname != other.hostname
            && self.addresses == other.addresses;
        self.served && self.port == other.port && !apart
    }
}

/// Opens the listeners of every gateway that is ours, the oldest gateway first.
pub(super) fn open(work: &mut Work<'_>) {
    let mut gateways: Vec<_> = work.objects.gateways.values().filter(|gateway| is_ours(work, gateway)).collect();
    gateways.sort_by_key(|gateway| (gateway.meta.creation_timestamp.clone(), gateway.key.clone()));
    for gateway in gateways {
        let addresses = addresses(work, gateway);
        for (index, listener) in gateway.spec.listeners.iter().enumerate() {
            open_one(work, gateway, index, listener, &addresses);
        }
    }
}

fn is_ours(work: &Work<'_>, gateway: &Held<GatewaySpec>) -> bool {
    let class = &gateway.spec.gateway_class_name;
    let held = work.objects.gateway_classes.values().find(|held| &held.meta.name == class);
    held.map_or(!work.options.class_required, |held| held.spec.controller_name == super::status::CONTROLLER)
}

fn addresses(work: &mut Work<'_>, gateway: &Held<GatewaySpec>) -> Vec<IpAddr> {
    // In a cluster the addresses of a Gateway are those of its load balancer, not of this machine.
    if work.options.class_required || gateway.spec.addresses.is_empty() {
        return work.options.addresses.clone();
    }
    let mut found = Vec::new();
    for (index, address) in gateway.spec.addresses.iter().enumerate() {
        match address.value.parse() {
            Ok(parsed) if address.kind.as_deref().unwrap_or("IPAddress") == "IPAddress" => found.push(parsed),
            _ => {
                let message = format!("{:?} is not an address of type IPAddress", address.value);
                work.problem(gateway, &["spec", "addresses", &index.to_string()], Severity::Error, message);
            }
        }
    }
    found
}

fn open_one(work: &mut Work<'_>, gateway: &Held<GatewaySpec>, index: usize, listener: &Listener, addresses: &[IpAddr]) {
    let number = index.to_string();
    let path = |field: &'static str| ["spec", "listeners", number.as_str(), field].map(str::to_owned);
    let mut conditions = Vec::new();
    let mut say = |work: &mut Work<'_>, field, severity, condition: Condition| {
        let path = path(field);
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        work.problem(gateway, &path, severity, format!("listener {}: {}", listener.name, condition.message));
        conditions.push(condition);
    };
    let mode = mode(listener);
    if mode.is_none() {
        let message = format!(
            "protocol {:?} with TLS mode {:?} is not served; use HTTP, HTTPS, TLS or TCP",
            listener.protocol,
            listener.tls.as_ref().and_then(|tls| tls.mode.as_deref()).unwrap_or("Terminate")
        );
        say(work, "protocol", Severity::Error, Condition::bad("Accepted", "UnsupportedProtocol", message));
    }
    let mode = mode.unwrap_or(Mode::Tcp);
    let hostname = listener.hostname.as_deref().filter(|it| !it.is_empty()).map(str::to_lowercase);
    let targets = [
        policies::Target::section("Gateway", &gateway.key, &listener.name),
        policies::Target::whole("Gateway", &gateway.key),
    ];
    let mut tls = None;
    if matches!(mode, Mode::Https | Mode::TlsTerminate) {
        let awaited = acme::listener(work, gateway, listener, &["spec", "listeners", &number, "tls"], &targets);
        match (secrets::server_config(work, gateway, listener, mode == Mode::Https), awaited) {
            (Ok(config), _) => tls = Some(config),
            (Err((reason, _)), Some(message)) => {
                say(work, "tls", Severity::Warning, Condition::bad("ResolvedRefs", reason, message));
            }
            (Err((reason, message)), None) => {
                say(work, "tls", Severity::Error, Condition::bad("ResolvedRefs", reason, message));
            }
        }
    }
    let allowed = listener.allowed_routes.clone().unwrap_or_default();
    let kinds = allowed_kinds(mode, &allowed);
    if kinds.is_empty() || allowed.kinds.iter().any(|kind| !mode.kinds().contains(&kind.kind.as_str())) {
        let message = format!("allowedRoutes.kinds names kinds that {} does not take", listener.protocol);
        say(work, "allowedRoutes", Severity::Error, Condition::bad("ResolvedRefs", "InvalidRouteKinds", message));
    }
    if let Some(condition) = clash(work, gateway, listener.port, mode, hostname.as_deref(), addresses) {
        say(work, "port", Severity::Error, condition);
    }
    let settings = policies::port_settings(work, &targets);
    let hard = conditions.iter().any(|it| it.reason != "InvalidRouteKinds");
    work.listeners.push(OpenListener {
        gateway: gateway.key.clone(),
        name: listener.name.clone(),
        hostname,
        port: listener.port,
        mode,
        allowed,
        kinds,
        attached: 0,
        routes: HostMap::default(),
        streams: HostMap::default(),
        addresses: addresses.to_vec(),
        tls,
        settings,
        served: !hard,
        conditions,
    });
}

/// Whether another listener has the port already; of two in one Gateway that cannot be told apart neither is served (Gateway
/// API, "Distinct Listeners"), of two Gateways the older one's is.
fn clash(
    work: &mut Work<'_>,
    gateway: &Held<GatewaySpec>,
    port: u16,
    mode: Mode,
    hostname: Option<&str>,
    addresses: &[IpAddr],
) -> Option<Condition> {
    let same = |it: &OpenListener| it.port == port && it.addresses.iter().any(|address| addresses.contains(address));
    let other = work.listeners.iter_mut().find(|it| {
        same(it) && (it.mode.family() != mode.family() || (it.hostname.as_deref() == hostname && it.served))
    })?;
    let reason = if other.mode.family() == mode.family() { "HostnameConflict" } else { "ProtocolConflict" };
    let message = format!("port {port} is taken by listener {} of gateway {}", other.name, other.gateway);
    let condition = Condition { holds: true, ..Condition::bad("Conflicted", reason, message) };
    if other.gateway == gateway.key {
        other.served = false;
        other.conditions.push(condition.clone());
    }
    Some(condition)
}

fn mode(listener: &Listener) -> Option<Mode> {
    let tls_mode = listener.tls.as_ref().and_then(|tls| tls.mode.as_deref()).unwrap_or("Terminate");
    Some(match (listener.protocol.as_str(), tls_mode) {
        ("HTTP", _) => Mode::Http,
        ("HTTPS", "Terminate") => Mode::Https,
        ("TLS", "Terminate") => Mode::TlsTerminate,
        ("TLS", "Passthrough") => Mode::TlsPassthrough,
        ("TCP", _) => Mode::Tcp,
        _ => return None,
    })
}

fn allowed_kinds(mode: Mode, allowed: &AllowedRoutes) -> Vec<&'static str> {
    let named = |kind: &str| {
        allowed.kinds.is_empty()
            || allowed
                .kinds
                .iter()
                .any(|it| it.kind == kind && it.group.as_deref().unwrap_or(GATEWAY_GROUP) == GATEWAY_GROUP)
    };
    mode.kinds().iter().copied().filter(|kind| named(kind)).collect()
}

/// Writes the gateways' conditions and makes ports of the listeners that can be served.
pub(super) fn close(work: &mut Work<'_>) -> Vec<Arc<Port>> {
    let listeners = std::mem::take(&mut work.listeners);
    for listener in listeners.iter().filter(|it| !it.gateway.namespace.is_empty()) {
        let status = work.statuses.gateways.entry(listener.gateway.clone()).or_default();
        status.listeners.push(listener_status(listener));
    }
    for status in work.statuses.gateways.values_mut() {
        gateway_conditions(status);
    }
    let mut ports: BTreeMap<(Vec<IpAddr>, u16), Vec<OpenListener>> = BTreeMap::new();
    for listener in listeners.into_iter().filter(|it| it.served) {
        ports.entry((listener.addresses.clone(), listener.port)).or_default().push(listener);
    }
    ports.into_iter().filter_map(|((addresses, port), group)| make_port(&addresses, port, group)).collect()
}

fn listener_status(listener: &OpenListener) -> ListenerStatus {
    let found = |kind| listener.conditions.iter().find(|it| it.kind == kind).cloned();
    let good_unless = |kind| found(kind).unwrap_or_else(|| Condition::good(kind));
    let conflicted = found("Conflicted").unwrap_or_else(|| Condition::bad("Conflicted", "NoConflicts", ""));
    let accepted = match (&found("Accepted"), conflicted.holds) {
        (Some(bad), _) => bad.clone(),
        (None, true) => Condition::bad("Accepted", conflicted.reason, &*conflicted.message),
        (None, false) => Condition::good("Accepted"),
    };
    let programmed = if listener.served {
        Condition::good("Programmed")
    } else {
        Condition::bad("Programmed", "Invalid", "see the other conditions")
    };
    ListenerStatus {
        name: listener.name.clone(),
        // A protocol that is not spoken takes no routes.
        kinds: if accepted.reason == "UnsupportedProtocol" { Vec::new() } else { listener.kinds.clone() },
        attached: listener.attached,
        conditions: vec![accepted, conflicted, good_unless("ResolvedRefs"), programmed],
    }
}

fn gateway_conditions(status: &mut GatewayStatus) {
    let programmed = |it: &&ListenerStatus| it.conditions.iter().any(|c| c.kind == "Programmed" && c.holds);
    let good = status.listeners.iter().filter(programmed).count();
    let mut accepted = Condition::good("Accepted");
    if good < status.listeners.len() {
        accepted.reason = "ListenersNotValid";
        accepted.holds = good > 0;
        "see the conditions of the listeners".clone_into(&mut accepted.message);
    }
    let programmed = if good > 0 {
        Condition::good("Programmed")
    } else {
        Condition::bad("Programmed", "Invalid", "no listener can be served")
    };
    status.conditions = vec![accepted, programmed];
}

fn make_port(addresses: &[IpAddr], port: u16, group: Vec<OpenListener>) -> Option<Arc<Port>> {
    let settings = group.first()?.settings.clone();
    let first = group.first()?.mode;
    let service = match first.family() {
        0 => {
            let mut hosts = HostMap::default();
            for listener in group {
                let hostname = listener.hostname.clone();
                let listener = http_listener(listener);
                hosts.entry(hostname.as_deref(), || listener);
            }
            PortService::Http(hosts)
        }
        1 => {
            let mut targets = HostMap::default();
            for listener in group {
                let hostname = listener.hostname.clone();
                for (pattern, target) in sni_targets(listener) {
                    targets.entry(pattern.or_else(|| hostname.clone()).as_deref(), || target);
                }
            }
            PortService::Tls(targets)
        }
        _ => PortService::Tcp(group.into_iter().find_map(|mut listener| listener.streams.values_mut().next().cloned())),
    };
    let addresses = addresses.iter().map(|address| SocketAddr::new(*address, port)).collect();
    Some(Arc::new(Port { addresses, service, settings }))
}

fn http_listener(listener: OpenListener) -> Arc<HttpListener> {
    let mut routes = listener.routes;
    routes.values_mut().for_each(PathTable::sort);
    Arc::new(HttpListener { routes })
}

fn sni_targets(mut listener: OpenListener) -> Vec<(Option<String>, SniTarget)> {
    match (listener.mode, listener.tls.take()) {
        (Mode::Https, Some(config)) => vec![(None, SniTarget::Http(http_listener(listener), config))],
        (Mode::TlsTerminate, Some(config)) => {
            let rule = listener.streams.values_mut().next().cloned();
            rule.map(|rule| (None, SniTarget::Stream(rule, config))).into_iter().collect()
        }
        (Mode::TlsPassthrough, _) => vec![(None, SniTarget::Passthrough(listener.streams))],
        _ => Vec::new(),
    }
}
