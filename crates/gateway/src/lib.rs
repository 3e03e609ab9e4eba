//! The gateway: listen → route → limit → pick → forward.
//!
//! # Role
//! A reverse proxy for HTTP/1.1, HTTP/2, gRPC, WebSocket, TLS and TCP, configured with Gateway API objects. It needs nothing of
//! the engine, and nothing of it is needed by the engine.
//!
//! # Flow
//! Objects come from files or, by `cluster`, from the Kubernetes API; `config` compiles them into an immutable `table`; `control`
//! publishes it to the cores. On each core, `server` (HTTP/1.1; hyper for HTTP/2) reads requests, `core` carries them by the table, and
//! `upstream` asks endpoints, with the help of pure parts that know neither sockets nor clocks: `balance`, `health`, `limit`,
//! `breaker`, `cache`, `access`.
//!
//! # Guarantees
//! - A request is answered by one configuration, the one that was live when it began.
//! - Cores share nothing on the path of a request but what must be counted exactly (rate limits, bulkheads, circuits), and
//!   caches, and only where a policy asks for it.
//! - Every queue, table, body and wait has a limit.

#![allow(
    clippy::single_match_else, // both arms are the story, and a match tells them as equals
    clippy::result_large_err, // an early answer to a request is an answer, not an error to be boxed
    clippy::option_option, // no host in common, any host, this host: three things
)]

mod access;
mod access_log;
mod acme;
mod admin;
mod api;
mod balance;
mod body;
mod breaker;
mod cache;
mod checks;
mod cluster;
mod config;
mod control;
mod core;
#[doc(hidden)]
pub mod fuzzing;
mod grpc_web;
mod gzip;
mod health;
mod import;
mod io;
mod limit;
mod metrics;
mod registry;
mod server;
mod sockets;
mod table;
mod trace;
mod transcode;
mod upstream;

use std::path::PathBuf;

pub use cluster::ClusterOptions;
pub use config::ConfigError;
pub use control::{GatewayError, Options, ask_admin, run};
pub use import::{ImportError, Imported, Note, import};
pub use trace::TraceOptions;

/// The ConfigMap beside the gateways' Service whose keys are the degradations that are switched on in the whole cluster.
pub const DEGRADED: &str = "mainstay-degraded";

/// What a check of a configuration found.
#[derive(Debug)]
pub struct Checked {
    /// Every problem, as `FILE:LINE: error|warning: OBJECT: MESSAGE`, sorted.
    pub problems: Vec<String>,
    /// How many of them are errors.
    pub errors: usize,
    /// What it adds up to, in words.
    pub summary: String,
}

/// Reads and compiles a configuration without serving it.
///
/// # Errors
/// A file that cannot be read, or is no YAML.
pub fn check(files: &[PathBuf]) -> Result<Checked, ConfigError> {
    let sources = config::source::read(files)?;
    let objects = config::Objects::decode(&sources);
    let compiled = config::compile(&objects, &config::Options::default());
    let table = &compiled.table;
    let ports: Vec<String> = table.ports.iter().flat_map(|it| &it.addresses).map(ToString::to_string).collect();
    let endpoints: usize = table.upstreams.iter().map(|it| it.endpoints.len()).sum();
    let summary = format!(
        "{} objects: listens on {}; {} rules, {} upstreams with {endpoints} endpoints",
        sources.len(),
        if ports.is_empty() { "nothing".to_owned() } else { ports.join(", ") },
        table.rules.len(),
        table.upstreams.len(),
    );
    let errors = compiled.problems.iter().filter(|it| it.severity == config::Severity::Error).count();
    Ok(Checked { problems: compiled.problems.iter().map(ToString::to_string).collect(), errors, summary })
}
