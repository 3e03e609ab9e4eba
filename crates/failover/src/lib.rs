//! The stewards of databases: one beside each server, agreeing through one Lease which server may be written to.
//!
//! # Role
//! What Patroni, repmgr, Orchestrator and Sentinel do: a primary that dies, hangs or is cut off is replaced by a replica that
//! has every acknowledged write, and never before the old primary can acknowledge no more.
//!
//! # Flow
//! observe (own server, the Lease, the peers, each asked directly) → [`core`] decides, by a table → act. What is particular to
//! one database (how to ask for a position, to promote, to follow, to rewind) is one file behind [`engine::Engine`].
//!
//! # Guarantees
//! See [`core`]: at most one member is writable within the bounds of the clocks, and no acknowledged write is lost whatever the
//! clocks do, as long as replication is synchronous.
//!
//! What people write is a [`database::Database`]; its objects are made by a controller. Beside that, [`lead`] does the plain thing for any other program.

pub mod core;
pub mod database;
pub mod engine;
pub mod lead;
pub mod lease;
pub mod peer;
pub mod publish;
pub mod server;
pub mod state;
pub mod steward;
