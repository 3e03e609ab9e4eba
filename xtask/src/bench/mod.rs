//! `cargo xtask bench NAME`: measures, prints a table and writes `target/bench/NAME.json`.
//!
//! Benches measure, they do not judge: a missed goal is a figure in the table, not a failed command.

mod api;
mod drill;
mod failover;
mod faults;
mod gateway;
mod memory;
mod node;
mod overload;
mod proxies;
mod report;
mod scale;
mod scheduler;
mod up;

use clap::{Args, Subcommand};

use crate::process::Outcome;

/// Flags of `cargo xtask bench`.
#[derive(Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    name: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// The API server beside etcd on the same disk: create, update, list, watch, memory with 50,000 pods
    Api(api::ApiArgs),
    /// From process start to all pods of examples/shop Ready, and what it costs in memory
    Up(up::UpArgs),
    /// One node: pods to Ready, 300 of them, connections through services, changes of their rules
    Node(node::NodeArgs),
    /// Pods a second that find their nodes: the core alone, and the whole control plane with hollow nodes
    Scheduler(scheduler::SchedulerArgs),
    /// Three members of each database and one fault after the other: gaps between acknowledged writes, writes lost
    Failover(failover::FailoverArgs),
    /// The gateway beside HAProxy and nginx: requests, latency, processor time
    Gateway(gateway::GatewayArgs),
    /// The drill's load generator: how well it keeps its rate, and its latencies beside wrk's
    Drill(drill::DrillArgs),
}

/// Runs the bench asked for.
pub(crate) fn run(args: &BenchArgs) -> Outcome {
    match &args.name {
        Bench::Api(args) => api::run(args),
        Bench::Up(args) => up::run(args),
        Bench::Node(args) => node::run(args),
        Bench::Scheduler(args) => scheduler::run(args),
        Bench::Failover(args) => failover::run(args),
        Bench::Gateway(args) => gateway::run(args),
        Bench::Drill(args) => drill::run(args),
    }
}
