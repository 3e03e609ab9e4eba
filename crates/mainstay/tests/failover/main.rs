//! What needs only a control plane, without nodes and privileges: leading, and the objects of databases.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod database;
mod lead;
mod server;
