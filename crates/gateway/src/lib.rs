//! The gateway: listen → route → limit → pick → forward.
//!
//! Role: a reverse proxy for HTTP/1.1, HTTP/2, gRPC, WebSocket, TLS and TCP, configured with Gateway API objects, from files
//! or from the Kubernetes API. It needs nothing of the engine.

mod access;
mod api;
mod config;
mod table;

pub use config::ConfigError;
