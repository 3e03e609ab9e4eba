//! Rate limits that two gateways share through a real Redis.
#![allow(clippy::unwrap_used, clippy::float_cmp, clippy::format_collect)]

mod world;

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use world::{Endpoint, Gateway, PATIENCE, free_port, policy, reply};

/// A Redis that ends with the test.
struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    fn start() -> Self {
        let port = free_port();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        let since = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(since.elapsed() < PATIENCE, "redis-server does not listen");
            std::thread::yield_now();
        }
        Self { child, port }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many of 40 requests, half of them at each of two gateways, are let through by a limit of 10.
fn admitted(redis: &Redis, algorithm: &str, more: &str) -> usize {
    let endpoint = Endpoint::start(|_, stream| reply(stream, "200 OK", "", b""));
    let limit = format!(
        "  rateLimits: [{{name: {algorithm}, algorithm: {algorithm}, requests: 10, period: 5h{more}, redis: '127.0.0.1:{}'}}]\n",
        redis.port
    );
    let gateways = [(); 2].map(|()| Gateway::plain(&[endpoint.address], &policy(&limit)));
    (0..40).filter(|number| gateways[number % 2].get("/").status == 200).count()
}

#[test]
fn two_gateways_admit_together_what_one_may() {
    let redis = Redis::start();
    for (algorithm, more, wanted) in
        [("TokenBucket", "", 10), ("SlidingWindow", "", 10), ("LeakyBucket", ", queue: 0", 1)]
    {
        assert_eq!(admitted(&redis, algorithm, more), wanted, "{algorithm}");
    }
    // Aligned windows: one may end in between.
    let count = admitted(&redis, "FixedWindow", "");
    assert!((10..=20).contains(&count), "{count}");
}

#[test]
fn without_its_redis_a_gateway_counts_alone() {
    let redis = Redis::start();
    let endpoint = Endpoint::start(|_, stream| reply(stream, "200 OK", "", b""));
    let limit = format!("  rateLimits: [{{name: n, requests: 5, period: 5h, redis: '127.0.0.1:{}'}}]\n", redis.port);
    let gateway = Gateway::plain(&[endpoint.address], &policy(&limit));
    assert_eq!(gateway.get("/").status, 200);
    drop(redis);
    let statuses: Vec<u16> = (0..8).map(|_| gateway.get("/").status).collect();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429, 429, 429]);
}
