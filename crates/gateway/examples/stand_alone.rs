//! The gateway alone, without the rest of the binary: for measuring and profiling builds that take seconds.
//!
//! `cargo run --release -p mainstay-gateway --example stand_alone -- CORES ADMIN FILES...`
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut args = std::env::args().skip(1);
    let cores = args.next().unwrap().parse().unwrap();
    let admin = args.next().unwrap().parse().ok();
    let options = mainstay_gateway::Options {
        files: args.map(Into::into).collect(),
        cluster: None,
        addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        cores,
        admin,
        probes: None,
        zone: None,
        access_log: None,
        access_log_template: None,
        hand_over: std::env::var_os("HAND_OVER").map(Into::into),
        traces: std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT")
            .ok()
            .map(|url| mainstay_gateway::TraceOptions::of_url(&url, 1.0).unwrap()),
        drain: Duration::from_secs(10),
        ingress_ports: (8080, 8443),
        state: std::env::var_os("STATE").unwrap_or_else(|| "/nonexistent".into()).into(),
    };
    mainstay_gateway::run(options).unwrap();
}
