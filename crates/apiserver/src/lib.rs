//! The Kubernetes API server: route → authenticate → authorise → admit → store → watch.
//!
//! Role: the one seam of Mainstay. Everything else — `kubectl`, controllers, scheduler, node agents — reads and writes
//! the state of the cluster here and nowhere else.
//!
//! Flow of a request: [`server`] accepts TLS; [`authn`] finds out who calls and [`authz`] whether he may; [`request`]
//! turns path and query into a [`request::Call`]; [`handler`] hands it to discovery, to [`rest`] (create, get, list, update, patch,
//! delete: one generic path for all kinds), to [`watch`], or to [`proxy`] for what a node answers (logs, exec).
//!
//! Guarantees: a write is answered after it is durable; every refusal is a Kubernetes `Status`; bodies, requests in
//! flight, connections and watch buffers have limits.
//!
//! Kinds of CustomResourceDefinitions take the same path; what is theirs is in [`custom`].

mod admission;
mod api;
mod audit;
mod authn;
mod authz;
mod bootstrap;
mod computed;
mod custom;
mod decode;
mod discovery;
mod exchange;
mod follow;
mod guard;
mod handler;
mod health;
mod limits;
mod maintenance;
mod metrics;
mod openapi;
mod proxy;
mod registry;
mod reply;
mod request;
mod rest;
mod seen;
mod server;
mod service_ip;
#[cfg(test)]
mod testing;
mod usage;
mod watch;

pub use api::{Api, Settings};
pub use audit::{Audit, AuditError, LogFile};
pub use authn::{KeyError, TokenKeys, User};
pub use bootstrap::bootstrap;
pub use guard::contain_panics;
pub use maintenance::Maintenance;
pub use server::{ServeError, TlsFiles, serve};
