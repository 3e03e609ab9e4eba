//! Mainstay from outside: the real binary, the real kubectl, real containers; broken where the design speaks of failure.
//!
//! Each test has its own data directory, port and address range, waits for conditions instead of sleeping, and takes
//! everything down again even when it fails.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod access;
mod chaos;
mod cluster;
mod commands;
mod control_plane;
mod crash;
mod drill;
mod examples;
mod failover;
mod faults;
mod gateway;
mod hardship;
mod images;
mod isolation;
mod machine;
mod network;
mod nodes;
mod pods;
mod recovery;
mod scaling;
mod scheduling;
mod state;
mod streams;
mod transcripts;
mod workloads;

#[path = "../../../gateway/tests/authority/mod.rs"]
mod authority;
#[path = "../../../store/tests/support/mod.rs"]
mod etcd;
