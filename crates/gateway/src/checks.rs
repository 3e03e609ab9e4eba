//! Active health checks: one task for each endpoint that has one, on the control thread.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue, TE, USER_AGENT};
use http::{HeaderMap, Method, Request, Version};
use http_body_util::{BodyExt as _, Either, Full};
use tokio::task::AbortHandle;

use crate::health::{Active, CheckOutcome};
use crate::registry::Shared;
use crate::table::Table;
use crate::table::settings::{CheckKind, HealthSettings, UpstreamSettings};
use crate::upstream::{Connection, Exchange, HostShared, Outgoing, connect, handshake};

/// The checks that run.
#[derive(Debug, Default)]
pub(crate) struct Checks(HashMap<(String, SocketAddr), AbortHandle>);

impl Checks {
    /// Starts the checks of new endpoints and ends those of endpoints that are gone. An upstream's key names its settings, so
    /// that other settings are another check. Must run on a local task set.
    pub(crate) fn set(&mut self, table: &Table, shared: &Shared) {
        let mut wanted = HashMap::new();
        for upstream in &table.upstreams {
            if let Some(health) = &upstream.settings.health {
                for endpoint in &upstream.endpoints {
                    wanted.insert((upstream.key.clone(), endpoint.address), (upstream, health));
                }
            }
        }
        self.0.retain(|key, task| {
            let keep = wanted.contains_key(key);
            if !keep {
                task.abort();
            }
            keep
        });
        for (key, (upstream, health)) in wanted {
            let start = || {
                let host = shared.host(&key.0, key.1);
                let check = run(upstream.name.clone(), key.1, upstream.settings.clone(), health.clone(), host);
                tokio::task::spawn_local(check).abort_handle()
            };
            self.0.entry(key.clone()).or_insert_with(start);
        }
    }
}

async fn run(
    name: String,
    address: SocketAddr,
    upstream: Arc<UpstreamSettings>,
    health: HealthSettings,
    host: Arc<HostShared>,
) {
    let mut active = Active::new(host.healthy.load(Ordering::Relaxed));
    let target = SocketAddr::new(address.ip(), health.port.unwrap_or(address.port()));
    // Spread over the interval, so that a thousand endpoints are not asked in the same millisecond.
    tokio::time::sleep(health.interval.mul_f64(fastrand::f64())).await;
    let mut timer = tokio::time::interval(health.interval);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let result = tokio::time::timeout(health.timeout, check(target, &upstream, &health.kind)).await;
        let (outcome, reason) = match result {
            Ok(Ok(())) => (CheckOutcome::Pass, String::new()),
            Ok(Err(reason)) => (CheckOutcome::Fail, reason),
            Err(_) => (CheckOutcome::Fail, format!("no answer within {:?}", health.timeout)),
        };
        let before = active.healthy();
        active.note(outcome, health.rise, health.fall);
        if active.healthy() != before {
            host.healthy.store(active.healthy(), Ordering::Relaxed);
            host.version.fetch_add(1, Ordering::Relaxed);
            tracing::info!(upstream = %name, endpoint = %address, healthy = active.healthy(), reason, "health has changed");
        }
    }
}

async fn check(target: SocketAddr, upstream: &UpstreamSettings, kind: &CheckKind) -> Result<(), String> {
    let io = connect(target, upstream).await.map_err(|error| error.to_string())?;
    match kind {
        CheckKind::Tcp => Ok(()),
        CheckKind::Http { path, host, statuses } => {
            let mut headers = HeaderMap::new();
            let host = host.clone().unwrap_or_else(|| target.to_string());
            headers.insert(HOST, HeaderValue::try_from(host).map_err(|error| error.to_string())?);
            headers.insert(USER_AGENT, HeaderValue::from_static("mainstay-gateway-check"));
            let mut exchange = Exchange::new(Connection::new(io), &Method::GET, path, &headers, Outgoing::None, None);
            let head = poll_fn(|cx| exchange.poll_head(cx)).await.map_err(|error| error.to_string())?;
            let status = head.status.as_u16();
            let good = if statuses.is_empty() { (200..400).contains(&status) } else { statuses.contains(&status) };
            if good { Ok(()) } else { Err(format!("status {status}")) }
        }
        CheckKind::Grpc { service } => {
            let mut sender = handshake(io).await.map_err(|error| error.to_string())?;
            // HealthCheckRequest { string service = 1; } in a gRPC frame.
            let mut message = vec![0x0a, service.len().min(127) as u8];
            message.extend_from_slice(&service.as_bytes()[..service.len().min(127)]);
            let mut frame = vec![0, 0, 0, 0, message.len() as u8];
            frame.extend_from_slice(&message);
            let request = Request::post(format!("http://{target}/grpc.health.v1.Health/Check"))
                .version(Version::HTTP_2)
                .header(CONTENT_TYPE, "application/grpc")
                .header(TE, "trailers")
                .body(Either::Left(Full::new(Bytes::from(frame))));
            let response = sender.send_request(request.map_err(|error| error.to_string())?).await;
            let body = response.map_err(|error| error.to_string())?.into_body().collect().await;
            let bytes = body.map_err(|error| error.to_string())?.to_bytes();
            // HealthCheckResponse { ServingStatus status = 1; }, SERVING = 1.
            if bytes.get(5..) == Some(&[8, 1]) { Ok(()) } else { Err("it is not SERVING".to_owned()) }
        }
    }
}
