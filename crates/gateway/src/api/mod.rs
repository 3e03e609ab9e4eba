//! The objects a gateway is configured with, as far as it reads them.
//!
//! Role: serde types of the Gateway API (v1, experimental routes included), of the core kinds it refers to, and of
//! Mainstay's own `TrafficPolicy` and `Backend`. What is named `spec` here is strict: a field that is not known is an
//! error with its line, because a filter that is silently ignored is a hole. Metadata and status are lenient.
//!
//! Deliberately absent: meaning. These types say what was written; `config` says what it means.

pub(crate) mod core;
pub(crate) mod duration;
pub(crate) mod gateway;
pub(crate) mod policy;
pub(crate) mod route;

use std::collections::BTreeMap;

use serde::Deserialize;

pub(crate) use duration::Span;

/// The group of the Gateway API.
pub(crate) const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
/// The group of Mainstay's own kinds.
pub(crate) const MAINSTAY_GROUP: &str = "mainstay.dev";

/// Metadata, as far as a gateway needs it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Meta {
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// RFC 3339; older objects win conflicts.
    pub(crate) creation_timestamp: Option<String>,
    pub(crate) generation: Option<i64>,
}

/// An object with a strict `spec`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Object<S> {
    pub(crate) metadata: Meta,
    pub(crate) spec: S,
}

/// Namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object; without a namespace it is in `default`, as `kubectl` would put it.
    pub(crate) fn of(meta: &Meta) -> Self {
        Self::new(meta.namespace.as_deref().unwrap_or("default"), &meta.name)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
