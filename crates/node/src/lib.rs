//! The node agent: runs the pods that are bound to its node, and reports how they are.
//!
//! Role: one process per node, on a `current_thread` runtime, inside the node's network namespace. It meets the rest of
//! the cluster only through the Kubernetes API.
//!
//! Flow: [`agent::run`] enters the node's cgroup, takes over what a former agent left running, registers the Node and
//! renews its Lease ([`registration`]). Every pod bound to the node gets a task ([`pod::worker`]) around a pure state
//! machine ([`pod::machine`]). Beside them run the kernel's service rules ([`services`]), events ([`events`]) and the
//! HTTPS server for logs and exec ([`server`]); [`pressure`] watches what the node runs out of.
//!
//! Guarantees:
//! - *Crash-only.* Containers outlive the agent; the next agent adopts them with the same ids. What has to be remembered
//!   is in each pod's directory ([`pod::dir`]).
//! - *API unreachable.* Everything that runs goes on, restarts included; statuses are written when the API is back.
//! - *Bounded.* Queues, connections, answers and logs read have limits.
//!
//! Deliberately absent: volume plug-ins.

pub mod addresses;
pub mod agent;
pub mod config;
pub mod context;
pub mod dns;
pub mod env;
pub mod events;
pub mod images;
pub mod pod;
pub mod policy;
pub mod pressure;
pub mod registration;
pub mod report;
pub mod server;
pub mod services;
pub mod shutdown;
pub mod static_pods;
pub mod stats;
mod tls;
pub mod volumes;

pub use agent::run;
pub use config::{AGENT_PORT, LEASE_RENEWAL, NodeConfig, NodeError, PIDS_MAX, SHUTDOWN_GRACE, ServerTls};
pub use pressure::signals::{ThresholdError, Thresholds};
pub use services::{Role, ServiceNetwork, serve_services};
pub use volumes::reclaim_volumes;
