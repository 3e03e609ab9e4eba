//! TrafficPolicies: which apply, and the settings they add up to.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::{HeaderName, HeaderValue};

use super::Severity;
use super::compile::Work;
use super::objects::{Held, Objects};
use super::secrets::{bag_value, reference_key};
use super::upstreams::{self, Context};
use crate::access::{Authenticator, BasicUsers, Jwks, JwtRules, Networks};
use crate::api::policy::{
    Access, Acme, Authentication, CannedAnswer, DegradeWhen, HealthCheck, RateLimit, Retry, TrafficPolicySpec,
};
use crate::api::route::{HeaderPair, HttpRule, SessionPersistence};
use crate::api::{Key, Span};
use crate::table::settings::{
    AccessSettings, AdaptiveSettings, BanSettings, BreakerSettings, CacheSettings, Canned, CheckKind,
    CompressionSettings, ConcurrencySettings, DegradationSettings, HealthSettings, LimitSettings, OutlierSettings,
    PortSettings, RetrySettings, RuleSettings, SessionSettings, UpstreamSettings,
};
use crate::transcode::Transcoder;

/// Something that policies may be attached to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target<'a> {
    kind: &'a str,
    key: Key,
    section: Option<String>,
}

impl<'a> Target<'a> {
    /// A whole object.
    pub(super) fn whole(kind: &'a str, key: &Key) -> Self {
        Self { kind, key: key.clone(), section: None }
    }

    /// A listener, rule or port of an object.
    pub(super) fn section(kind: &'a str, key: &Key, section: &str) -> Self {
        Self { kind, key: key.clone(), section: Some(section.to_owned()) }
    }

    /// A policy that a rule names itself, by `extensionRef`.
    pub(super) fn policy(key: &Key) -> Self {
        Self { kind: "TrafficPolicy", key: key.clone(), section: None }
    }
}

/// The policies by what they are attached to.
pub(super) struct Policies<'a> {
    by_target: BTreeMap<Target<'a>, Vec<&'a Held<TrafficPolicySpec>>>,
    used: RefCell<BTreeSet<Key>>,
    all: Vec<&'a Held<TrafficPolicySpec>>,
}

impl<'a> Policies<'a> {
    /// Indexes the policies, the oldest first where several have one target.
    pub(super) fn new(objects: &'a Objects) -> Self {
        let mut all: Vec<_> = objects.policies.values().collect();
        all.sort_by_key(|it| (it.meta.creation_timestamp.clone(), it.key.clone()));
        let mut by_target: BTreeMap<Target<'a>, Vec<_>> = BTreeMap::new();
        for policy in &all {
            for target in &policy.spec.target_refs {
                let key = Key::new(&policy.key.namespace, &target.name);
                let target = Target { kind: &target.kind, key, section: target.section_name.clone() };
                by_target.entry(target).or_default().push(*policy);
            }
            by_target
                .entry(Target { kind: "TrafficPolicy", key: policy.key.clone(), section: None })
                .or_default()
                .push(*policy);
        }
        Self { by_target, used: RefCell::default(), all }
    }

    /// The policies of some targets, most specific first.
    fn of(&self, targets: &[Target<'_>]) -> Vec<&'a Held<TrafficPolicySpec>> {
        let found = targets.iter().filter_map(|target| self.by_target.get(target)).flatten().copied();
        let found: Vec<_> = found.collect();
        self.used.borrow_mut().extend(found.iter().map(|it| it.key.clone()));
        found
    }

    /// Policies that no object of the configuration asked for.
    pub(super) fn unused(&self) -> Vec<(&'a Held<TrafficPolicySpec>, String)> {
        let used = self.used.borrow();
        let unused = self.all.iter().filter(|it| !used.contains(&it.key));
        unused
            .map(|it| {
                (*it, "it applies to nothing: no gateway, attached route or used backend is named by it".to_owned())
            })
            .collect()
    }
}

/// The first of some policies that has a section.
fn first<'a, T>(
    policies: &[&'a Held<TrafficPolicySpec>],
    section: impl Fn(&'a TrafficPolicySpec) -> Option<&'a T>,
) -> Option<&'a T> {
    policies.iter().find_map(|it| section(&it.spec))
}

fn time(span: Option<Span>, default: Duration) -> Duration {
    span.map_or(default, |it| it.0)
}

/// A limit that `0s` switches off.
fn limit(span: Option<Span>, default: Option<Duration>) -> Option<Duration> {
    span.map_or(default, |it| Some(it.0)).filter(|it| !it.is_zero())
}

/// The policy that has certificates obtained for a target, if there is one.
pub(super) fn acme<'a>(work: &Work<'a>, targets: &[Target<'_>]) -> Option<(&'a Held<TrafficPolicySpec>, &'a Acme)> {
    work.policies.of(targets).into_iter().find_map(|it| Some((it, it.spec.acme.as_ref()?)))
}

/// The settings of a listener's port.
pub(super) fn port_settings(work: &mut Work<'_>, targets: &[Target<'_>]) -> PortSettings {
    let policies = work.policies.of(targets);
    let default = PortSettings::default();
    let timeouts = first(&policies, |it| it.timeouts.as_ref()).cloned().unwrap_or_default();
    let access = first(&policies, |it| it.access.as_ref()).cloned().unwrap_or_default();
    let trusted_proxies = Networks::parse(&access.trusted_proxies).unwrap_or_else(|message| {
        if let Some(policy) = policies.first() {
            work.problem(policy, &["spec", "access", "trustedProxies"], Severity::Error, message);
        }
        Networks::default()
    });
    PortSettings {
        accept_proxy: first(&policies, |it| it.proxy_protocol.as_ref()).is_some_and(|it| it.accept),
        client_header: time(timeouts.client_header, default.client_header),
        client_idle: time(timeouts.client_idle, default.client_idle),
        header_bytes_max: access.header_bytes_max.map_or(default.header_bytes_max, |it| it.max(256) as usize),
        headers_max: access.headers_max.map_or(default.headers_max, |it| it.max(1) as usize),
        connections_per_client: access.connections_per_client,
        trusted_proxies,
        tunnel_idle: limit(timeouts.tunnel_idle, default.tunnel_idle),
    }
}

/// The settings of an upstream, without protocol and TLS.
pub(super) fn upstream_settings(work: &Work<'_>, targets: &[Target<'_>]) -> UpstreamSettings {
    let policies = work.policies.of(targets);
    let default = UpstreamSettings::default();
    let balance = first(&policies, |it| it.load_balancer.as_ref()).cloned().unwrap_or_default();
    let connections = first(&policies, |it| it.connections.as_ref()).cloned().unwrap_or_default();
    let timeouts = first(&policies, |it| it.timeouts.as_ref()).cloned().unwrap_or_default();
    UpstreamSettings {
        algorithm: balance.algorithm,
        hash_on: balance.hash_on,
        slow_start: time(balance.slow_start, default.slow_start),
        zone_aware: balance.zone_aware.unwrap_or(false),
        panic_percent: balance.panic_threshold_percent.unwrap_or(default.panic_percent),
        health: first(&policies, |it| it.health_check.as_ref()).map(health),
        outlier: first(&policies, |it| it.outlier_detection.as_ref()).map_or(default.outlier, |it| {
            let default = OutlierSettings::default();
            OutlierSettings {
                consecutive_errors: it.consecutive_errors.unwrap_or(default.consecutive_errors),
                error_percent: it.error_percent.unwrap_or(0),
                latency_factor: it.latency_factor.unwrap_or(0.0),
                base_ejection: time(it.base_ejection_time, default.base_ejection),
                max_ejection: time(it.max_ejection_time, default.max_ejection),
                max_ejection_percent: it.max_ejection_percent.unwrap_or(default.max_ejection_percent),
                stall: limit(it.stall, default.stall),
            }
        }),
        connect_timeout: time(timeouts.connect, default.connect_timeout),
        connections_max: connections.max.unwrap_or(default.connections_max),
        idle_max: connections.idle_max.unwrap_or(default.idle_max),
        idle_timeout: time(connections.idle_timeout, default.idle_timeout),
        breaker: first(&policies, |it| it.circuit_breaker.as_ref()).map(|it| BreakerSettings {
            scope: it.per,
            failure_percent: it.failure_percent,
            failures: it.failures,
            slow_percent: it.slow_percent,
            slow_after: time(it.slow_after, Duration::from_secs(1)),
            window_calls: it.window_calls.or(it.window_time.is_none().then_some(100)),
            window_time: it.window_time.map(|it| it.0),
            min_calls: it.min_calls.unwrap_or(10),
            open_time: time(it.open_time, Duration::from_secs(5)),
            probes: it.probes.unwrap_or(3).max(1),
        }),
        send_proxy: first(&policies, |it| it.proxy_protocol.as_ref()).and_then(|it| it.send),
        ..default
    }
}

fn health(it: &HealthCheck) -> HealthSettings {
    let kind = match (&it.http, &it.grpc) {
        (Some(http), _) => CheckKind::Http {
            path: http.path.clone().unwrap_or_else(|| "/".to_owned()),
            host: http.host.clone(),
            statuses: http.statuses.clone(),
        },
        (None, Some(grpc)) => CheckKind::Grpc { service: grpc.service.clone().unwrap_or_default() },
        (None, None) => CheckKind::Tcp,
    };
    HealthSettings {
        kind,
        interval: time(it.interval, Duration::from_secs(1)).max(Duration::from_millis(10)),
        timeout: time(it.timeout, Duration::from_millis(500)),
        rise: it.rise.unwrap_or(2).max(1),
        fall: it.fall.unwrap_or(2).max(1),
        port: it.port,
    }
}

/// The settings of a rule, and the upstream of its fallback.
///
/// # Errors
/// What in a policy, or in the rule, cannot be used.
pub(super) fn rule_settings<T>(
    work: &mut Work<'_>,
    route: &Held<T>,
    context: &Context<'_>,
    rule: &HttpRule,
) -> Result<(RuleSettings, Option<usize>), String> {
    let policies = work.policies.of(&context.targets);
    let default = RuleSettings::default();
    let timeouts = first(&policies, |it| it.timeouts.as_ref()).cloned().unwrap_or_default();
    let written = rule.timeouts.clone().unwrap_or_default();
    let access = policies.iter().find(|it| it.spec.access.is_some());
    let access = access.and_then(|it| it.spec.access.as_ref()).map(access_settings).transpose()?;
    let authentication = policies.iter().find_map(|it| Some((*it, it.spec.authentication.as_ref()?)));
    let authentication = authentication.map(|(policy, it)| authenticator(work, policy, it)).transpose()?;
    let retry = retry(first(&policies, |it| it.retry.as_ref()), rule, limit(written.backend_request, None))?;
    let mut limits = Vec::new();
    for policy in &policies {
        for (index, it) in policy.spec.rate_limits.iter().enumerate() {
            limits.push(Arc::new(rate_limit(it, policy, index)?));
        }
    }
    let degradation = policies.iter().find_map(|it| Some((*it, it.spec.degradation.as_ref()?)));
    let mut fallback = None;
    if let Some((_, degradation)) = degradation
        && let Some(reference) = &degradation.fallback
    {
        fallback = Some(upstreams::resolve(work, route, context, reference).map_err(|it| it.message)?);
    }
    let settings = RuleSettings {
        request_timeout: limit(written.request.or(timeouts.request), default.request_timeout),
        stream_idle: limit(timeouts.stream_idle, default.stream_idle),
        retry,
        limits,
        concurrency: policies.iter().find_map(|policy| Some((*policy, policy.spec.concurrency.as_ref()?))).map(
            |(policy, it)| ConcurrencySettings {
                key: policy.key.to_string(),
                max: it.max,
                pending: it.pending.unwrap_or(0),
                pending_timeout: time(it.pending_timeout, Duration::from_secs(1)),
                adaptive: it.adaptive.as_ref().map(|it| AdaptiveSettings {
                    min: it.min.unwrap_or(4).max(1),
                    max: it.max.unwrap_or(1024).max(1),
                    tolerance_percent: it.tolerance_percent.unwrap_or(100),
                }),
            },
        ),
        degradation: degradation.map(|(policy, it)| degradation_settings(policy, it)).transpose()?,
        cache: first(&policies, |it| it.cache.as_ref()).map(|it| CacheSettings {
            bytes_max: it.bytes_max.unwrap_or(64 << 20),
            object_bytes_max: it.object_bytes_max.unwrap_or(1 << 20),
            stale_while_revalidate: time(it.stale_while_revalidate, Duration::ZERO),
            stale_if_error: time(it.stale_if_error, Duration::ZERO),
            default_ttl: time(it.default_ttl, Duration::ZERO),
        }),
        access: access.map(Arc::new),
        authentication: authentication.map(Arc::new),
        compression: first(&policies, |it| it.compression.as_ref()).map(|it| CompressionSettings {
            types: it.types.iter().map(|it| it.to_lowercase()).collect(),
            bytes_min: it.bytes_min.unwrap_or(1024),
            level: u32::from(it.level.unwrap_or(4).clamp(1, 9)),
        }),
        transcoder: transcoder(work, &policies)?,
        grpc_web: first(&policies, |it| it.conversion.as_ref()).is_some_and(|it| it.grpc_web),
        priority: first(&policies, |it| it.priority.as_ref()).copied().unwrap_or_default(),
        session: rule.session_persistence.as_ref().map(session),
        split_on: first(&policies, |it| it.split.as_ref()).map(|it| it.hash_on.clone()).unwrap_or_default(),
        grpc: context.grpc,
    };
    Ok((settings, fallback))
}

fn retry(policy: Option<&Retry>, rule: &HttpRule, per_try: Option<Duration>) -> Result<RetrySettings, String> {
    let mut settings = RetrySettings::default();
    if let Some(it) = policy {
        let statuses = it.statuses.as_ref().map(|all| statuses(all)).transpose()?;
        settings = RetrySettings {
            attempts: it.attempts.unwrap_or(settings.attempts),
            statuses: statuses.unwrap_or(settings.statuses),
            per_try_timeout: limit(it.per_try_timeout, None),
            hedge_after: limit(it.hedge_after, None),
            budget_percent: it.budget_percent.unwrap_or(settings.budget_percent),
            budget_min: it.budget_min.unwrap_or(settings.budget_min),
            backoff: time(it.backoff, Duration::ZERO),
            body_bytes_max: it.body_bytes_max.unwrap_or(settings.body_bytes_max),
            unsafe_methods: it.unsafe_methods.unwrap_or(false),
        };
    }
    if let Some(it) = &rule.retry {
        settings.attempts = it.attempts.unwrap_or(settings.attempts);
        settings.backoff = time(it.backoff, settings.backoff);
        if !it.codes.is_empty() {
            settings.statuses = statuses(&it.codes)?;
        }
    }
    settings.per_try_timeout = per_try.or(settings.per_try_timeout);
    Ok(settings)
}

fn statuses(codes: &[u16]) -> Result<Vec<StatusCode>, String> {
    codes.iter().map(|code| StatusCode::from_u16(*code).map_err(|_| format!("{code} is not a status code"))).collect()
}

fn rate_limit(it: &RateLimit, policy: &Held<TrafficPolicySpec>, index: usize) -> Result<LimitSettings, String> {
    let period = time(it.period, Duration::from_secs(1));
    if it.requests == 0 || period.is_zero() {
        return Err(format!("rate limit {index} of TrafficPolicy {} needs requests and a period above 0", policy.key));
    }
    let port = |address: &String| address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if let Some(address) = it.redis.as_ref().filter(|address| !port(address)) {
        return Err(format!("rate limit {index} of TrafficPolicy {}: redis {address:?} is not HOST:PORT", policy.key));
    }
    let name = if it.name.is_empty() { index.to_string() } else { it.name.clone() };
    Ok(LimitSettings {
        key: format!("{}/{name}", policy.key),
        algorithm: it.algorithm,
        requests: it.requests,
        period,
        burst: it.burst.unwrap_or(it.requests).max(1),
        queue: it.queue.unwrap_or(it.requests),
        parts: it.key.clone(),
        when_headers: pairs(&it.when_headers)?,
        redis: it.redis.clone(),
    })
}

fn pairs(written: &[HeaderPair]) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let pair = |it: &HeaderPair| {
        let name = HeaderName::try_from(&it.name).map_err(|_| format!("{:?} is not a header name", it.name))?;
        let value = HeaderValue::from_str(&it.value).map_err(|_| format!("{:?} is not a header value", it.value))?;
        Ok((name, value))
    };
    written.iter().map(pair).collect()
}

fn degradation_settings(
    policy: &Held<TrafficPolicySpec>,
    it: &crate::api::policy::Degradation,
) -> Result<DegradationSettings, String> {
    use DegradeWhen::{CircuitOpen, NoHealthyHost, Overload};
    Ok(DegradationSettings {
        name: it.name.clone().unwrap_or_else(|| policy.key.name.clone()),
        when: it.when.clone().unwrap_or_else(|| vec![CircuitOpen, Overload, NoHealthyHost]),
        respond: it.respond.as_ref().map(canned).transpose()?.map(Arc::new),
        shed_percent: it.shed_percent.unwrap_or(0).min(100),
    })
}

fn canned(it: &CannedAnswer) -> Result<Canned, String> {
    let status = it.status.unwrap_or(200);
    Ok(Canned {
        status: StatusCode::from_u16(status).map_err(|_| format!("{status} is not a status code"))?,
        headers: pairs(&it.headers)?,
        body: it.body.clone().into(),
    })
}

fn access_settings(it: &Access) -> Result<AccessSettings, String> {
    Ok(AccessSettings {
        allow: Networks::parse(&it.allow)?,
        deny: Networks::parse(&it.deny)?,
        ban: it.ban.as_ref().map(|it| BanSettings {
            after: it.after.max(1),
            period: time(it.period, Duration::from_secs(10)),
            time: time(it.time, Duration::from_secs(60)),
        }),
        uri_bytes_max: it.uri_bytes_max.unwrap_or(8192) as usize,
        body_bytes_max: it.body_bytes_max,
    })
}

/// The methods of the descriptors that the first policy with conversions names, if it does.
fn transcoder(work: &Work<'_>, policies: &[&Held<TrafficPolicySpec>]) -> Result<Option<Arc<Transcoder>>, String> {
    let conversion = policies.iter().find_map(|it| Some((*it, it.spec.conversion.as_ref()?)));
    let grpc_json = conversion.and_then(|(policy, it)| Some((policy, it.grpc_json.as_ref()?)));
    let Some((policy, written)) = grpc_json else { return Ok(None) };
    let kind = if written.descriptors_ref.kind.as_deref() == Some("Secret") { "Secret" } else { "ConfigMap" };
    let key = reference_key(&written.descriptors_ref, &policy.key);
    let descriptors = bag_value(work, kind, &key, &["descriptors"])?;
    let transcoder = Transcoder::new(descriptors);
    let transcoder = transcoder.map_err(|error| format!("TrafficPolicy {}: {kind} {key}: {error}", policy.key))?;
    Ok(Some(Arc::new(transcoder)))
}

fn authenticator(
    work: &Work<'_>,
    policy: &Held<TrafficPolicySpec>,
    it: &Authentication,
) -> Result<Authenticator, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| "not UTF-8".to_owned());
    let mut found = Authenticator::default();
    if let Some(basic) = &it.basic {
        let key = reference_key(&basic.secret_ref, &policy.key);
        let users = text(bag_value(work, "Secret", &key, &[".htpasswd", "auth"])?)?;
        let users = BasicUsers::parse(basic.realm.as_deref().unwrap_or("mainstay"), &users);
        found.basic = Some(users.map_err(|message| format!("Secret {key}: {message}"))?);
    }
    if let Some(jwt) = &it.jwt {
        let kind = if jwt.jwks_ref.kind.as_deref() == Some("Secret") { "Secret" } else { "ConfigMap" };
        let key = reference_key(&jwt.jwks_ref, &policy.key);
        let keys = Jwks::parse(&text(bag_value(work, kind, &key, &["jwks", "jwks.json"])?)?);
        let claim_headers = jwt.claim_headers.iter().map(|(claim, header)| {
            HeaderName::try_from(header)
                .map(|name| (claim.clone(), name))
                .map_err(|_| format!("{header:?} is not a header name"))
        });
        let rules = JwtRules {
            issuer: jwt.issuer.clone(),
            audiences: jwt.audiences.clone(),
            claim_headers: claim_headers.collect::<Result<_, _>>()?,
        };
        found.jwt = Some((rules, keys.map_err(|message| format!("{kind} {key}: {message}"))?));
    }
    if found.basic.is_none() && found.jwt.is_none() {
        return Err(format!("authentication of TrafficPolicy {} needs basic or jwt", policy.key));
    }
    Ok(found)
}

fn session(it: &SessionPersistence) -> SessionSettings {
    let permanent = it.cookie_config.as_ref().and_then(|it| it.lifetime_type.as_deref()) == Some("Permanent");
    SessionSettings {
        cookie: it.kind.as_deref().unwrap_or("Cookie") == "Cookie",
        name: it.session_name.clone().unwrap_or_else(|| "mainstay-session".to_owned()),
        max_age: it.absolute_timeout.filter(|_| permanent).map(|it| it.0),
        path: "/".to_owned(),
    }
}
