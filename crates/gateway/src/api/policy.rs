//! `mainstay.dev/v1alpha1` TrafficPolicy: everything the Gateway API has no field for.
//!
//! A policy is attached to a Gateway, a route (or one rule of it, by `sectionName`), a Service or a Backend. Where several
//! apply, each section is taken whole from the most specific: Service or Backend, rule, route, listener, Gateway.
//! `rateLimits` add up instead: the limits of every level hold.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Span;
use super::route::{BackendRef, HeaderPair, ObjectRef};

/// What a policy is attached to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct TargetRef {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    /// A listener of a Gateway, a rule of a route, or a port name of a Service.
    pub(crate) section_name: Option<String>,
}

/// The sections of a policy. All are optional.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct TrafficPolicySpec {
    pub(crate) target_refs: Vec<TargetRef>,
    pub(crate) load_balancer: Option<LoadBalancer>,
    pub(crate) health_check: Option<HealthCheck>,
    pub(crate) outlier_detection: Option<OutlierDetection>,
    pub(crate) retry: Option<Retry>,
    pub(crate) timeouts: Option<Timeouts>,
    pub(crate) connections: Option<Connections>,
    pub(crate) rate_limits: Vec<RateLimit>,
    pub(crate) concurrency: Option<Concurrency>,
    pub(crate) circuit_breaker: Option<CircuitBreaker>,
    pub(crate) degradation: Option<Degradation>,
    pub(crate) cache: Option<Cache>,
    pub(crate) access: Option<Access>,
    pub(crate) authentication: Option<Authentication>,
    pub(crate) compression: Option<Compression>,
    pub(crate) conversion: Option<Conversion>,
    pub(crate) proxy_protocol: Option<ProxyProtocol>,
    pub(crate) priority: Option<Priority>,
    pub(crate) split: Option<Split>,
    pub(crate) acme: Option<Acme>,
}

/// Certificates of listeners and Ingresses are obtained and renewed by ACME (RFC 8555). The fields are named as those of
/// cert-manager's ACME issuers; the names and the Secret are the listener's own, as with cert-manager's annotations.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Acme {
    /// URL of the directory; Let's Encrypt's if none.
    pub(crate) server: Option<String>,
    /// Where the authority writes to.
    pub(crate) email: Option<String>,
    /// The Secret of the account, made if it is not there; `mainstay-acme-account` if none.
    pub(crate) private_key_secret_ref: Option<ObjectRef>,
    /// ConfigMaps or Secrets (`ca.crt`) with the authorities that vouch for the server; the machine's if none.
    pub(crate) ca_certificate_refs: Vec<ObjectRef>,
}

/// How requests are divided over a rule's weighted backends.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Split {
    /// Requests with the same key go to the same backend (grey release by user); exact turns if empty.
    pub(crate) hash_on: Vec<KeyPart>,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct LoadBalancer {
    pub(crate) algorithm: Algorithm,
    /// What RingHash and Maglev hash, first present wins; the client's address if none is.
    pub(crate) hash_on: Vec<KeyPart>,
    /// A recovered or new endpoint's weight grows from a tenth to its full over this time.
    pub(crate) slow_start: Option<Span>,
    pub(crate) zone_aware: Option<bool>,
    /// Below this share of healthy endpoints, health is ignored and all are used. Default 50; 0 never.
    pub(crate) panic_threshold_percent: Option<u8>,
}

/// The load-balancing algorithms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
pub(crate) enum Algorithm {
    /// Smooth weighted round robin.
    #[default]
    RoundRobin,
    /// Weighted random.
    Random,
    /// Of two random endpoints, the one with fewer requests in flight per weight (power of two choices).
    LeastRequest,
    /// Of two random endpoints, the one with the smaller latency times load (peak exponentially weighted moving average).
    PeakEwma,
    /// Consistent hash on a ring (Ketama).
    RingHash,
    /// Consistent hash by Maglev's table.
    Maglev,
    /// Consistent hash of the client's address.
    SourceHash,
}

/// A part of a request that makes a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum KeyPart {
    /// The client's address.
    Client,
    /// The route and rule.
    Route,
    /// A request header.
    Header(String),
    /// A cookie.
    Cookie(String),
    /// A query parameter.
    Query(String),
    /// The path without the query.
    Path,
    /// The Host.
    Host,
    /// The method.
    Method,
    /// The authenticated user: basic auth's name or the token's subject.
    User,
}

/// Active checks.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct HealthCheck {
    pub(crate) http: Option<HttpCheck>,
    pub(crate) tcp: Option<TcpCheck>,
    pub(crate) grpc: Option<GrpcCheck>,
    /// Default 1s.
    pub(crate) interval: Option<Span>,
    /// Default 500ms.
    pub(crate) timeout: Option<Span>,
    /// Successes in a row until an endpoint is healthy again; default 2.
    pub(crate) rise: Option<u32>,
    /// Failures in a row until it is not; default 2.
    pub(crate) fall: Option<u32>,
    /// Another port than that of the traffic.
    pub(crate) port: Option<u16>,
}

/// `GET path`, 2xx and 3xx are healthy unless `statuses` says others.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct HttpCheck {
    pub(crate) path: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) statuses: Vec<u16>,
}

/// A connection that opens is healthy.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct TcpCheck {}

/// `grpc.health.v1.Health/Check` answers SERVING.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct GrpcCheck {
    pub(crate) service: Option<String>,
}

/// Passive checks: what the traffic itself says.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct OutlierDetection {
    /// Errors (5xx, resets, timeouts) in a row that eject; default 5, 0 never.
    pub(crate) consecutive_errors: Option<u32>,
    /// Share of errors, in percent over the last 100 answers, that ejects; default 0 (never).
    pub(crate) error_percent: Option<u8>,
    /// Ejected when the endpoint's mean latency is more than this many times the median of the others'; default 0 (never).
    pub(crate) latency_factor: Option<f64>,
    /// First ejection; the n-th lasts n times as long. Default 1s.
    pub(crate) base_ejection_time: Option<Span>,
    /// Default 30s.
    pub(crate) max_ejection_time: Option<Span>,
    /// Share of the endpoints that may be ejected at once; default 50. One is always kept.
    pub(crate) max_ejection_percent: Option<u8>,
    /// An endpoint that has requests waiting but answered none for this long, while others answer, is stalled: it is
    /// avoided, and what waits at it is tried elsewhere if that is safe. Default 100ms; 0s never.
    pub(crate) stall: Option<Span>,
}

/// Repetition.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Retry {
    /// Attempts besides the first; default 2, 0 never.
    pub(crate) attempts: Option<u8>,
    /// Statuses that are tried again; default 500, 502, 503, 504.
    pub(crate) statuses: Option<Vec<u16>>,
    /// Each attempt's time limit until the response head; none by default.
    pub(crate) per_try_timeout: Option<Span>,
    /// A second attempt beside a first that has not answered; none by default.
    pub(crate) hedge_after: Option<Span>,
    /// Share of the active requests that may be retries; default 20. Refused and closed connections do not count.
    pub(crate) budget_percent: Option<u8>,
    /// Retries that may always run at once; default 10.
    pub(crate) budget_min: Option<u32>,
    /// Wait before the second retry, doubled each time, with full jitter; default 0s. The first is immediate.
    pub(crate) backoff: Option<Span>,
    /// Largest body kept for repetition, in bytes; default 65536.
    pub(crate) body_bytes_max: Option<u64>,
    /// Repeat POST and PATCH, too. For services that deduplicate.
    pub(crate) unsafe_methods: Option<bool>,
}

/// Time limits; 0s means none.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Timeouts {
    /// From the request's head to the response's head, all attempts together. Default 60s.
    pub(crate) request: Option<Span>,
    /// Opening a connection. Default 1s.
    pub(crate) connect: Option<Span>,
    /// Between two pieces of a body in either direction. Default 60s.
    pub(crate) stream_idle: Option<Span>,
    /// A client's time to send a request's head. Default 10s.
    pub(crate) client_header: Option<Span>,
    /// A client's connection without a request. Default 75s.
    pub(crate) client_idle: Option<Span>,
    /// A tunnel or TCP connection on which nothing moves. Default 1h.
    pub(crate) tunnel_idle: Option<Span>,
}

/// Connections to endpoints.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Connections {
    /// Per endpoint; default 1024.
    pub(crate) max: Option<u32>,
    /// Kept open without a request, per endpoint; default 128.
    pub(crate) idle_max: Option<u32>,
    /// How long they are kept; default 30s.
    pub(crate) idle_timeout: Option<Span>,
}

/// A rate limit.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct RateLimit {
    pub(crate) name: String,
    pub(crate) algorithm: LimitAlgorithm,
    /// Requests per `period`.
    pub(crate) requests: u64,
    /// Default 1s.
    pub(crate) period: Option<Span>,
    /// TokenBucket: bucket size, default `requests`.
    pub(crate) burst: Option<u64>,
    /// LeakyBucket: requests that may wait, default `requests`; more are refused.
    pub(crate) queue: Option<u64>,
    /// What has a limit of its own; everything together if empty.
    pub(crate) key: Vec<KeyPart>,
    /// Only requests with these headers are counted.
    pub(crate) when_headers: Vec<HeaderPair>,
    /// `host:port` of a Redis that gateways share the count through.
    pub(crate) redis: Option<String>,
}

/// The limit algorithms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum LimitAlgorithm {
    /// Refills steadily, lets a burst through.
    #[default]
    TokenBucket,
    /// Lets requests through at equal distances; the others wait.
    LeakyBucket,
    /// No window of `period`, wherever it starts, has more than `requests`.
    SlidingWindow,
    /// Counts from the full `period` on; the simplest.
    FixedWindow,
}

/// Bulkheads: how much may run at once.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Concurrency {
    /// Requests in flight.
    pub(crate) max: Option<u32>,
    /// Requests that may wait for a place; default 0.
    pub(crate) pending: Option<u32>,
    /// How long; default 1s.
    pub(crate) pending_timeout: Option<Span>,
    pub(crate) adaptive: Option<AdaptiveConcurrency>,
}

/// A limit that follows latency (gradient).
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct AdaptiveConcurrency {
    /// Default 4.
    pub(crate) min: Option<u32>,
    /// Default 1024.
    pub(crate) max: Option<u32>,
    /// Latency over the best that is still taken as healthy, in percent; default 100 (twice the best).
    pub(crate) tolerance_percent: Option<u32>,
}

/// When to stop asking.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct CircuitBreaker {
    /// Whose circuit: the whole upstream (default) or each endpoint.
    pub(crate) per: BreakerScope,
    /// Opens when this share of the window failed.
    pub(crate) failure_percent: Option<u8>,
    /// Opens after this many failures in the window.
    pub(crate) failures: Option<u32>,
    /// Opens when this share of the window was slow.
    pub(crate) slow_percent: Option<u8>,
    /// What is slow; default 1s.
    pub(crate) slow_after: Option<Span>,
    /// The last so many calls. Default 100 if there is no `windowTime`.
    pub(crate) window_calls: Option<u32>,
    /// Or the calls of the last so long.
    pub(crate) window_time: Option<Span>,
    /// Fewer calls than this decide nothing; default 10.
    pub(crate) min_calls: Option<u32>,
    /// How long it stays open; default 5s.
    pub(crate) open_time: Option<Span>,
    /// Calls that are let through to try; all must succeed. Default 3.
    pub(crate) probes: Option<u32>,
}

/// Whose circuit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum BreakerScope {
    /// One for the upstream.
    #[default]
    Upstream,
    /// One for each endpoint.
    Endpoint,
}

/// What to do when the real answer cannot be had.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Degradation {
    /// A switch's name for `mainstay degrade on NAME`; default the policy's name.
    pub(crate) name: Option<String>,
    /// When it applies; by hand it always can. Default all three conditions.
    pub(crate) when: Option<Vec<DegradeWhen>>,
    /// Ask another backend, for example an older version.
    pub(crate) fallback: Option<BackendRef>,
    /// Answer at once.
    pub(crate) respond: Option<CannedAnswer>,
    /// Refuse this share of the requests, in percent, with 503.
    pub(crate) shed_percent: Option<u8>,
}

/// Conditions of degradation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum DegradeWhen {
    /// The circuit is open.
    CircuitOpen,
    /// A concurrency limit is reached.
    Overload,
    /// No endpoint is healthy.
    NoHealthyHost,
}

/// A canned answer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct CannedAnswer {
    /// Default 200.
    pub(crate) status: Option<u16>,
    pub(crate) headers: Vec<HeaderPair>,
    pub(crate) body: String,
}

/// RFC 9111 shared cache.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Cache {
    /// Memory for stored bodies and heads together; default 67108864 (64 MiB).
    pub(crate) bytes_max: Option<u64>,
    /// Largest object; default 1048576.
    pub(crate) object_bytes_max: Option<u64>,
    /// Serve stale for so long while one request refreshes, unless the response says another.
    pub(crate) stale_while_revalidate: Option<Span>,
    /// Serve stale for so long if the backend fails, unless the response says another.
    pub(crate) stale_if_error: Option<Span>,
    /// Freshness of responses that say nothing; none by default.
    pub(crate) default_ttl: Option<Span>,
}

/// Who may come, and how much of a nuisance they may be.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Access {
    /// If there are any, only these networks.
    pub(crate) allow: Vec<String>,
    pub(crate) deny: Vec<String>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub(crate) trusted_proxies: Vec<String>,
    pub(crate) ban: Option<Ban>,
    /// Connections of one client address; default none.
    pub(crate) connections_per_client: Option<u32>,
    /// Default 65536 bytes for all headers of a request.
    pub(crate) header_bytes_max: Option<u32>,
    /// Default 100.
    pub(crate) headers_max: Option<u32>,
    /// Default 8192 bytes.
    pub(crate) uri_bytes_max: Option<u32>,
    /// No limit by default.
    pub(crate) body_bytes_max: Option<u64>,
}

/// Bans a client address.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Ban {
    /// Bad requests (400, 401, 403, 404, 429 and the like) within `period`.
    pub(crate) after: u32,
    /// Default 10s.
    pub(crate) period: Option<Span>,
    /// Default 60s.
    pub(crate) time: Option<Span>,
}

/// Who the user is. Either is enough.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Authentication {
    pub(crate) basic: Option<BasicAuth>,
    pub(crate) jwt: Option<JwtAuth>,
}

/// Names and passwords.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct BasicAuth {
    pub(crate) realm: Option<String>,
    /// A Secret whose `.htpasswd` or `auth` holds `name:{SHA}...` or `name:{SHA256}...` lines.
    pub(crate) secret_ref: ObjectRef,
}

/// Tokens (RFC 7519).
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct JwtAuth {
    pub(crate) issuer: Option<String>,
    pub(crate) audiences: Vec<String>,
    /// A Secret or ConfigMap whose `jwks` holds the keys (RFC 7517).
    pub(crate) jwks_ref: ObjectRef,
    /// Claims that the backend gets as headers.
    pub(crate) claim_headers: BTreeMap<String, String>,
}

/// Compressed responses.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Compression {
    /// Content types; default text, JSON, JavaScript, XML, SVG.
    pub(crate) types: Vec<String>,
    /// Smaller responses stay as they are; default 1024.
    pub(crate) bytes_min: Option<u64>,
    /// 1 to 9; default 4.
    pub(crate) level: Option<u8>,
}

/// Between protocols.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Conversion {
    /// gRPC-Web requests become gRPC.
    pub(crate) grpc_web: bool,
    /// JSON requests become gRPC.
    pub(crate) grpc_json: Option<GrpcJson>,
}

/// JSON to gRPC and back.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct GrpcJson {
    /// A ConfigMap (its `binaryData`) or Secret whose `descriptors` is a file descriptor set, imports included.
    pub(crate) descriptors_ref: ObjectRef,
}

/// The PROXY protocol (HAProxy's specification, versions 1 and 2).
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ProxyProtocol {
    /// On a Gateway: connections must begin with it.
    pub(crate) accept: bool,
    /// To endpoints of TCP and TLS routes: 1 or 2.
    pub(crate) send: Option<u8>,
}

/// Who is shed first in overload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) enum Priority {
    /// Last.
    Critical,
    /// In between.
    #[default]
    Normal,
    /// First; also what `mainstay degrade on noncore` switches off.
    NonCore,
}
