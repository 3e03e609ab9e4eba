//! The routing table: what the data plane reads. Immutable; a new configuration is a new table.
//!
//! # Flow
//! port → listener by host (or SNI) → rules by host → rules by path → conditions → [`Rule`].
//!
//! # Guarantees
//! - A lookup costs a handful of hash lookups, whatever the number of routes: hosts and paths are keys, and only what shares
//!   host and path is compared one by one.
//! - Precedence is that of the Gateway API (HTTPRoute reference, "matches"): exact path, then regular expressions (longest
//!   first), then the longest prefix; then a method, more headers, more query parameters; then the older route, then
//!   namespace/name, then the order of writing.

pub(crate) mod filters;
pub(crate) mod hash;
pub(crate) mod hosts;
pub(crate) mod paths;
pub(crate) mod settings;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;

use crate::api::policy::KeyPart;
use filters::Filters;
use hosts::HostMap;
use paths::PathTable;
use settings::{PortSettings, RuleSettings, UpstreamSettings};

/// A whole configuration.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) ports: Vec<Arc<Port>>,
    pub(crate) upstreams: Vec<Arc<Upstream>>,
    /// Every rule, at the index that its `id` says.
    pub(crate) rules: Vec<Arc<Rule>>,
    /// Hosts whose ACME challenges are answered here, with the thumbprint that belongs to the answer.
    pub(crate) challenges: HashMap<String, Arc<str>>,
}

/// One address and port to listen on.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) service: PortService,
    pub(crate) settings: PortSettings,
}

/// What is spoken on a port.
#[derive(Debug)]
pub(crate) enum PortService {
    /// HTTP/1.1 and h2c.
    Http(HostMap<Arc<HttpListener>>),
    /// TLS; by SNI either terminated here or passed through.
    Tls(HostMap<SniTarget>),
    /// TCP; `None` refuses, because no route is attached.
    Tcp(Option<Arc<StreamRule>>),
}

/// What happens to a TLS connection.
#[derive(Debug, Clone)]
pub(crate) enum SniTarget {
    /// Terminated, and HTTP inside.
    Http(Arc<HttpListener>, Arc<ServerConfig>),
    /// Terminated, and anything inside.
    Stream(Arc<StreamRule>, Arc<ServerConfig>),
    /// Passed through as it is.
    Passthrough(HostMap<Arc<StreamRule>>),
}

/// A listener of a Gateway with the routes attached to it.
#[derive(Debug)]
pub(crate) struct HttpListener {
    pub(crate) routes: HostMap<PathTable>,
}

/// Where a TCP or TLS connection goes.
#[derive(Debug)]
pub(crate) struct StreamRule {
    pub(crate) name: String,
    pub(crate) backends: Backends,
}

/// Weighted backends.
#[derive(Debug, Default)]
pub(crate) struct Backends {
    pub(crate) list: Vec<WeightedBackend>,
    pub(crate) weight_total: u32,
}

impl Backends {
    /// The backend that a number below `weight_total` falls on. The split is exact: every number has one backend.
    pub(crate) fn at(&self, mut point: u32) -> Option<&WeightedBackend> {
        self.list.iter().find(|backend| {
            let hit = point < backend.weight;
            point = point.saturating_sub(backend.weight);
            hit
        })
    }
}

/// A backend of a rule.
#[derive(Debug)]
pub(crate) struct WeightedBackend {
    pub(crate) weight: u32,
    /// Index into [`Table::upstreams`]; `None` if the reference is broken: such requests are answered with 500.
    pub(crate) upstream: Option<usize>,
    pub(crate) filters: Filters,
}

/// A rule of a route: what happens to a request that matched.
#[derive(Debug)]
pub(crate) struct Rule {
    /// Index into [`Table::rules`].
    pub(crate) id: usize,
    /// `HTTPRoute namespace/name rule`, for metrics and logs; also the identity that survives a reload.
    pub(crate) name: String,
    pub(crate) filters: Filters,
    pub(crate) backends: Backends,
    pub(crate) fallback: Option<usize>,
    pub(crate) settings: RuleSettings,
}

/// A set of endpoints with how they are used.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// Namespace, name, port and the settings' hash: what it is over reloads.
    pub(crate) key: String,
    /// `namespace/name:port`.
    pub(crate) name: String,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) settings: Arc<UpstreamSettings>,
}

impl Upstream {
    /// The key without the settings.
    pub(crate) fn base(&self) -> &str {
        self.key.rsplit_once('#').map_or(self.key.as_str(), |(base, _)| base)
    }

    /// Whether a connection to an endpoint of the one is as good for the other.
    pub(crate) fn is_reached_like(&self, other: &Self) -> bool {
        let same_tls = match (&self.settings.tls, &other.settings.tls) {
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            (one, two) => one.is_none() && two.is_none(),
        };
        same_tls && self.settings.protocol == other.settings.protocol
    }
}

/// One address of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) weight: u32,
    pub(crate) zone: Option<Arc<str>>,
    /// 0 is used first.
    pub(crate) priority: u8,
}

/// The parts of a key, as written in policies.
pub(crate) type KeyParts = Vec<KeyPart>;
