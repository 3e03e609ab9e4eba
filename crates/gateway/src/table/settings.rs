//! Settings with every default filled in. The numbers here are the defaults that the policy's documentation names.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};

use super::KeyParts;
use crate::access::{Authenticator, Networks};
use crate::api::policy::{Algorithm, BreakerScope, DegradeWhen, LimitAlgorithm, Priority};
use crate::transcode::Transcoder;

/// Settings of a port, before any route is known.
#[derive(Debug, Clone)]
pub(crate) struct PortSettings {
    pub(crate) accept_proxy: bool,
    pub(crate) client_header: Duration,
    pub(crate) client_idle: Duration,
    pub(crate) header_bytes_max: usize,
    pub(crate) headers_max: usize,
    pub(crate) connections_per_client: Option<u32>,
    pub(crate) trusted_proxies: Networks,
    pub(crate) tunnel_idle: Option<Duration>,
}

impl Default for PortSettings {
    fn default() -> Self {
        Self {
            accept_proxy: false,
            client_header: Duration::from_secs(10),
            client_idle: Duration::from_secs(75),
            header_bytes_max: 65_536,
            headers_max: 100,
            connections_per_client: None,
            trusted_proxies: Networks::default(),
            tunnel_idle: Some(Duration::from_secs(3600)),
        }
    }
}

/// Settings of a rule.
#[derive(Debug, Clone)]
pub(crate) struct RuleSettings {
    /// Until the response's head, all attempts together.
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) stream_idle: Option<Duration>,
    pub(crate) retry: RetrySettings,
    pub(crate) limits: Vec<Arc<LimitSettings>>,
    pub(crate) concurrency: Option<ConcurrencySettings>,
    pub(crate) degradation: Option<DegradationSettings>,
    pub(crate) cache: Option<CacheSettings>,
    pub(crate) access: Option<Arc<AccessSettings>>,
    pub(crate) authentication: Option<Arc<Authenticator>>,
    pub(crate) compression: Option<CompressionSettings>,
    pub(crate) grpc_web: bool,
    /// JSON becomes gRPC.
    pub(crate) transcoder: Option<Arc<Transcoder>>,
    pub(crate) priority: Priority,
    pub(crate) session: Option<SessionSettings>,
    /// What a split is by; turns if empty.
    pub(crate) split_on: KeyParts,
    /// gRPC errors are answered as gRPC answers them.
    pub(crate) grpc: bool,
}

impl Default for RuleSettings {
    fn default() -> Self {
        Self {
            request_timeout: Some(Duration::from_secs(60)),
            stream_idle: Some(Duration::from_secs(60)),
            retry: RetrySettings::default(),
            limits: Vec::new(),
            concurrency: None,
            degradation: None,
            cache: None,
            access: None,
            authentication: None,
            compression: None,
            grpc_web: false,
            transcoder: None,
            priority: Priority::Normal,
            session: None,
            split_on: Vec::new(),
            grpc: false,
        }
    }
}

/// Repetition.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RetrySettings {
    /// Besides the first.
    pub(crate) attempts: u8,
    pub(crate) statuses: Vec<StatusCode>,
    pub(crate) per_try_timeout: Option<Duration>,
    pub(crate) hedge_after: Option<Duration>,
    pub(crate) budget_percent: u8,
    pub(crate) budget_min: u32,
    pub(crate) backoff: Duration,
    pub(crate) body_bytes_max: u64,
    pub(crate) unsafe_methods: bool,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            attempts: 2,
            statuses: vec![
                StatusCode::INTERNAL_SERVER_ERROR,
                StatusCode::BAD_GATEWAY,
                StatusCode::SERVICE_UNAVAILABLE,
                StatusCode::GATEWAY_TIMEOUT,
            ],
            per_try_timeout: None,
            hedge_after: None,
            budget_percent: 20,
            budget_min: 10,
            backoff: Duration::ZERO,
            body_bytes_max: 65_536,
            unsafe_methods: false,
        }
    }
}

impl RetrySettings {
    /// Whether a request of this method may be sent twice (RFC 9110, 9.2.2: idempotent methods).
    pub(crate) fn may_repeat(&self, method: &Method) -> bool {
        self.unsafe_methods
            || matches!(
                *method,
                Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
            )
    }
}

/// One rate limit.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LimitSettings {
    /// What makes it the same limit over reloads.
    pub(crate) key: String,
    pub(crate) algorithm: LimitAlgorithm,
    pub(crate) requests: u64,
    pub(crate) period: Duration,
    pub(crate) burst: u64,
    pub(crate) queue: u64,
    pub(crate) parts: KeyParts,
    pub(crate) when_headers: Vec<(HeaderName, HeaderValue)>,
    /// `HOST:PORT` of the Redis through which gateways share it.
    pub(crate) redis: Option<String>,
}

impl LimitSettings {
    /// Whether a request with these headers is counted.
    pub(crate) fn counts(&self, headers: &HeaderMap) -> bool {
        self.when_headers.iter().all(|(name, value)| headers.get(name) == Some(value))
    }
}

/// A bulkhead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConcurrencySettings {
    /// The policy: rules under it share one gate.
    pub(crate) key: String,
    pub(crate) max: Option<u32>,
    pub(crate) pending: u32,
    pub(crate) pending_timeout: Duration,
    pub(crate) adaptive: Option<AdaptiveSettings>,
}

/// A limit that follows latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AdaptiveSettings {
    pub(crate) min: u32,
    pub(crate) max: u32,
    pub(crate) tolerance_percent: u32,
}

/// What happens when the real answer cannot be had.
#[derive(Debug, Clone)]
pub(crate) struct DegradationSettings {
    pub(crate) name: String,
    pub(crate) when: Vec<DegradeWhen>,
    pub(crate) respond: Option<Arc<Canned>>,
    pub(crate) shed_percent: u8,
}

/// A canned answer.
#[derive(Debug, Clone)]
pub(crate) struct Canned {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: bytes::Bytes,
}

/// RFC 9111.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheSettings {
    pub(crate) bytes_max: u64,
    pub(crate) object_bytes_max: u64,
    pub(crate) stale_while_revalidate: Duration,
    pub(crate) stale_if_error: Duration,
    pub(crate) default_ttl: Duration,
}

/// Who may come.
#[derive(Debug, Clone)]
pub(crate) struct AccessSettings {
    pub(crate) allow: Networks,
    pub(crate) deny: Networks,
    pub(crate) ban: Option<BanSettings>,
    pub(crate) uri_bytes_max: usize,
    pub(crate) body_bytes_max: Option<u64>,
}

/// Bans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BanSettings {
    pub(crate) after: u32,
    pub(crate) period: Duration,
    pub(crate) time: Duration,
}

/// Compressed responses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CompressionSettings {
    pub(crate) types: Vec<String>,
    pub(crate) bytes_min: u64,
    pub(crate) level: u32,
}

/// Sessions that stay with an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionSettings {
    /// Cookie, or else header.
    pub(crate) cookie: bool,
    pub(crate) name: String,
    /// `Max-Age`; a session cookie if `None`.
    pub(crate) max_age: Option<Duration>,
    pub(crate) path: String,
}

/// What is spoken to an upstream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// Settings of an upstream.
#[derive(Debug, Clone)]
pub(crate) struct UpstreamSettings {
    pub(crate) protocol: Protocol,
    pub(crate) tls: Option<Arc<UpstreamTls>>,
    pub(crate) algorithm: Algorithm,
    pub(crate) hash_on: KeyParts,
    pub(crate) slow_start: Duration,
    pub(crate) zone_aware: bool,
    pub(crate) panic_percent: u8,
    pub(crate) health: Option<HealthSettings>,
    pub(crate) outlier: OutlierSettings,
    pub(crate) connect_timeout: Duration,
    pub(crate) connections_max: u32,
    pub(crate) idle_max: u32,
    pub(crate) idle_timeout: Duration,
    pub(crate) breaker: Option<BreakerSettings>,
    pub(crate) send_proxy: Option<u8>,
}

impl Default for UpstreamSettings {
    fn default() -> Self {
        Self {
            protocol: Protocol::Http1,
            tls: None,
            algorithm: Algorithm::RoundRobin,
            hash_on: Vec::new(),
            slow_start: Duration::ZERO,
            zone_aware: false,
            panic_percent: 50,
            health: None,
            outlier: OutlierSettings::default(),
            connect_timeout: Duration::from_secs(1),
            connections_max: 1024,
            idle_max: 128,
            idle_timeout: Duration::from_secs(30),
            breaker: None,
            send_proxy: None,
        }
    }
}

/// TLS to an upstream.
#[derive(Debug)]
pub(crate) struct UpstreamTls {
    pub(crate) config: Arc<rustls::ClientConfig>,
    /// SNI and the name the certificate must have; the endpoint's address if `None`.
    pub(crate) hostname: Option<String>,
}

/// Active checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HealthSettings {
    pub(crate) kind: CheckKind,
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    pub(crate) rise: u32,
    pub(crate) fall: u32,
    pub(crate) port: Option<u16>,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CheckKind {
    /// `GET path` with a Host; the statuses that are healthy, 2xx and 3xx if there are none.
    Http { path: String, host: Option<String>, statuses: Vec<u16> },
    /// A connection that opens.
    Tcp,
    /// `grpc.health.v1.Health/Check` of a service.
    Grpc { service: String },
}

/// Passive checks.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OutlierSettings {
    pub(crate) consecutive_errors: u32,
    pub(crate) error_percent: u8,
    pub(crate) latency_factor: f64,
    pub(crate) base_ejection: Duration,
    pub(crate) max_ejection: Duration,
    pub(crate) max_ejection_percent: u8,
    pub(crate) stall: Option<Duration>,
}

impl Default for OutlierSettings {
    fn default() -> Self {
        Self {
            consecutive_errors: 5,
            error_percent: 0,
            latency_factor: 0.0,
            base_ejection: Duration::from_secs(1),
            max_ejection: Duration::from_secs(30),
            max_ejection_percent: 50,
            stall: Some(Duration::from_millis(100)),
        }
    }
}

/// A circuit breaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BreakerSettings {
    pub(crate) scope: BreakerScope,
    pub(crate) failure_percent: Option<u8>,
    pub(crate) failures: Option<u32>,
    pub(crate) slow_percent: Option<u8>,
    pub(crate) slow_after: Duration,
    pub(crate) window_calls: Option<u32>,
    pub(crate) window_time: Option<Duration>,
    pub(crate) min_calls: u32,
    pub(crate) open_time: Duration,
    pub(crate) probes: u32,
}
