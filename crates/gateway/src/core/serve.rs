//! The journey of a request: understand → route → let in → limit → forward → answer.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{HOST, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::BodyExt as _;

use super::accept::Client;
use super::cached;
use super::convert;
use super::forward::{Answer, AnswerBody, AttemptError, Failure, Forward, Outbound, Payload};
use super::headers;
use super::keys::{self, Asker};
use super::live::{CoreTable, RuleState};
use super::reply::{self, Reply};
use super::route::{challenge, client_address, route};
use super::session::{session_header, sticky};
use super::transcoded;
use super::tunnel;
use crate::access::{BanVerdict, Denied};
use crate::api::policy::{DegradeWhen, Priority};
use crate::body::{ClientBody, ReplyBody, RequestBody, Streaming};
use crate::limit::{Overload, Pass};
use crate::table::filters::Filters;
use crate::table::settings::SessionSettings;
use crate::table::{Rule, WeightedBackend};
use crate::trace::Ended;
use crate::upstream::{ExchangeError, Group, Length};

/// A request on its way, with all it needs to know.
pub(super) struct Journey<'a> {
    pub(super) client: &'a Client,
    pub(super) table: &'a CoreTable,
    pub(super) rule: &'a Rule,
    pub(super) state: &'a RuleState,
    pub(super) address: IpAddr,
    pub(super) user: String,
    pub(super) started: Instant,
    prefix_len: usize,
    /// What the rate limits said, for the answer's headers.
    limits: Vec<(HeaderName, HeaderValue)>,
    pub(super) too_large: Rc<Cell<bool>>,
    /// The session cookie or header that the answer sets.
    session: RefCell<Option<(HeaderName, HeaderValue)>>,
}

/// Answers a request.
pub(super) async fn serve(client: Rc<Client>, request: Request<RequestBody>) -> Reply {
    let started = Instant::now();
    // HTTP/1.1 does this itself.
    let busy = (client.version.get() == Version::HTTP_2).then(|| client.watch.busy());
    let table = client.core.table();
    let (mut parts, body) = request.into_parts();
    let tracer = client.core.tracer.as_ref();
    let span = tracer.and_then(|it| it.begin(&parts.method, parts.uri.path(), &mut parts.headers));
    let logged =
        client.core.log.as_ref().map(|_| (parts.method.clone(), parts.uri.clone(), parts.headers.get(HOST).cloned()));
    let routed = match challenge(&table, &parts) {
        Some(reply) => Err(reply),
        None => route(&client, &table, &parts),
    };
    let (mut reply, rule) = match routed {
        Ok((id, prefix_len)) => {
            let (rule, state) = (&*table.live.table.rules[id], &table.rules[id]);
            let address = client_address(&client, &parts);
            let journey = Journey {
                client: &client,
                table: &table,
                rule,
                state,
                address,
                user: String::new(),
                started,
                prefix_len,
                limits: Vec::new(),
                too_large: Rc::default(),
                session: RefCell::default(),
            };
            let reply = journey.travel(parts, body).await;
            state.metrics.answered(reply.status(), started.elapsed());
            (reply, Some(rule))
        }
        Err(reply) => (reply, None),
    };
    if client.core.shared().draining.load(Ordering::Relaxed) && client.version.get() != Version::HTTP_2 {
        reply.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    }
    if let (Some(log), Some((method, uri, host))) = (&client.core.log, logged) {
        log.write(
            &client.peer,
            &method,
            &uri,
            host.as_ref(),
            rule.map(|it| it.name.as_str()),
            reply.status(),
            started.elapsed(),
        );
    }
    if let (Some(tracer), Some(span)) = (tracer, span) {
        let (status, route) = (reply.status(), rule.map(|it| it.name.as_str()));
        tracer.end(&span, &Ended { status, route, client: client.peer, took: started.elapsed() });
    }
    match busy {
        Some(busy) if !(reply.body().is_end_stream() || matches!(reply.body(), ReplyBody::Full(_))) => {
            reply.map(|body| convert::holding(body, busy))
        }
        _ => reply,
    }
}

impl<'a> Journey<'a> {
    /// Every stage in order; the first that answers ends it.
    async fn travel(mut self, mut parts: Parts, body: RequestBody) -> Reply {
        let reply = match self.let_in(&mut parts).await {
            Ok(pass) => {
                let reply = self.fulfil(parts, body, pass.as_ref()).await;
                if let Some(pass) = &pass {
                    pass.answered(Instant::now());
                }
                hold(reply, pass)
            }
            Err(reply) => reply,
        };
        self.remember_bad(reply.status());
        self.dress(reply)
    }

    /// Access, users, rates, bulkheads: who is let in, and when.
    async fn let_in(&mut self, parts: &mut Parts) -> Result<Option<Pass>, Reply> {
        let settings = &self.rule.settings;
        self.check_access(parts)?;
        if let Some(authenticator) = &settings.authentication {
            for name in authenticator.owned_headers() {
                parts.headers.remove(name);
            }
            match authenticator.check(&parts.headers, now_s()) {
                Ok(user) => {
                    parts.headers.extend(user.headers);
                    self.user = user.name;
                }
                Err(Denied(challenge)) => {
                    self.state.metrics.denied.add(1);
                    let mut reply = self.error(StatusCode::UNAUTHORIZED, "who are you?");
                    reply.headers_mut().insert(WWW_AUTHENTICATE, challenge);
                    return Err(reply);
                }
            }
        }
        self.check_rates(parts).await?;
        if settings.priority == Priority::NonCore && self.client.core.shared().switched_on("noncore") {
            self.state.metrics.degraded.add(1);
            return Err(self.error(StatusCode::SERVICE_UNAVAILABLE, "this part of the service is switched off for now"));
        }
        let Some(gate) = &self.state.gate else { return Ok(None) };
        match Box::pin(gate.enter(settings.priority)).await {
            Ok(pass) => Ok(Some(pass)),
            Err(Overload) => {
                self.state.metrics.overloaded.add(1);
                Err(self.canned(DegradeWhen::Overload).unwrap_or_else(|| {
                    reply::retry_after(self.error(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once"), 1)
                }))
            }
        }
    }

    fn check_access(&self, parts: &Parts) -> Result<(), Reply> {
        let Some(access) = &self.rule.settings.access else { return Ok(()) };
        let deny = |status, message| {
            self.state.metrics.denied.add(1);
            Err(self.error(status, message))
        };
        if access.ban.is_some()
            && let BanVerdict::Banned(time) = self.client.core.shared().bans.verdict(self.address, self.started)
        {
            let refused = deny(StatusCode::FORBIDDEN, "too many bad requests came from your address");
            return refused.map_err(|it| reply::retry_after(it, time.as_nanos() as u64));
        }
        if access.deny.contains(self.address) || !(access.allow.is_empty() || access.allow.contains(self.address)) {
            return deny(StatusCode::FORBIDDEN, "your address is not allowed");
        }
        if parts.uri.path_and_query().map_or(0, |it| it.as_str().len()) > access.uri_bytes_max {
            return deny(StatusCode::URI_TOO_LONG, "the URI is longer than allowed");
        }
        Ok(())
    }

    fn asker(&self) -> Asker<'_> {
        Asker { client: self.address, user: &self.user, rule: &self.rule.name }
    }

    async fn check_rates(&mut self, parts: &Parts) -> Result<(), Reply> {
        let limits = self.state.limiters.iter().zip(&self.rule.settings.limits);
        for ((limiter, settings), shared) in limits.zip(&self.state.shared_limits) {
            if !settings.counts(&parts.headers) {
                continue;
            }
            let key = keys::key(&settings.parts, parts, self.asker());
            let now = self.started.duration_since(self.client.core.shared().origin).as_nanos() as u64;
            let decided = match shared {
                Some(shared) => Box::pin(shared.ask(settings, &key)).await,
                None => None,
            };
            let decision = decided.unwrap_or_else(|| limiter.ask(&key, now));
            let seconds = |nanos: u64| HeaderValue::from(nanos.div_ceil(1_000_000_000));
            self.limits = vec![
                (HeaderName::from_static("ratelimit-limit"), HeaderValue::from(settings.requests)),
                (HeaderName::from_static("ratelimit-remaining"), HeaderValue::from(decision.remaining)),
                (HeaderName::from_static("ratelimit-reset"), seconds(decision.reset_ns)),
            ];
            if !decision.admitted {
                self.state.metrics.limited.add(1);
                let refused = self.error(StatusCode::TOO_MANY_REQUESTS, "too many requests; come back later");
                return Err(reply::retry_after(refused, decision.wait_ns));
            }
            if decision.wait_ns > 0 {
                Box::pin(tokio::time::sleep(std::time::Duration::from_nanos(decision.wait_ns))).await;
            }
        }
        Ok(())
    }

    /// Filters that answer themselves, the cache, and else an endpoint.
    async fn fulfil(&self, mut parts: Parts, body: RequestBody, _pass: Option<&Pass>) -> Reply {
        let filters = &self.rule.filters;
        let origin = parts.headers.get(http::header::ORIGIN).cloned();
        if let Some(cors) = &filters.cors
            && let Some(preflight) = convert::preflight(cors, &parts)
        {
            return preflight;
        }
        if let Some(redirect) = &filters.redirect {
            let port = self.client.local.port();
            return convert::redirect(redirect, &parts, self.prefix_len, self.client.tls, port);
        }
        let degraded = self.by_hand();
        if degraded && let Some(reply) = self.canned_answer() {
            return reply;
        }
        let accepted = convert::Accepted::of(&parts.headers, self.rule);
        let converted = match &self.rule.settings.transcoder {
            Some(transcoder) => Box::pin(transcoded::answer(self, transcoder, &mut parts, body, degraded)).await,
            None => Err(body),
        };
        let mut reply = match (converted, &self.state.cache) {
            (Ok(reply), _) => reply,
            (Err(body), Some(store)) => Box::pin(cached::answer(self, store, parts, body, degraded)).await,
            (Err(body), None) => self.ask(&mut parts, body, degraded).await,
        };
        if let (Some(cors), Some(origin)) = (&filters.cors, origin) {
            convert::allow_origin(cors, &origin, reply.headers_mut());
        }
        filters.response_headers.apply(reply.headers_mut());
        accepted.convert(reply, self.rule)
    }

    /// Asks an endpoint; `degraded` asks the fallback.
    pub(super) async fn ask(&self, parts: &mut Parts, body: RequestBody, degraded: bool) -> Reply {
        let (group, filters) = match self.choose(parts, degraded) {
            Ok(chosen) => chosen,
            Err(reply) => return reply,
        };
        let aim = self.aim(group, parts);
        let upgrade = headers::strip_hop_by_hop(&mut parts.headers);
        let connect = parts.method == Method::CONNECT;
        if connect {
            parts.headers.remove(http::header::UPGRADE);
        }
        let on_upgrade = (upgrade.is_some() || connect).then(|| tunnel::Upgrade::of(parts, &body)).flatten();
        let protocol = parts.extensions.remove::<hyper::ext::Protocol>();
        let mut out = self.outbound(parts, filters, upgrade.filter(|_| on_upgrade.is_some()));
        if let Some(protocol) = protocol {
            tunnel::as_http1_upgrade(&mut out, parts, &protocol);
        }
        let tunnel = on_upgrade.is_some();
        let payload = match self.payload(&out, body, tunnel).await {
            Ok(payload) => payload,
            Err(reply) => return reply,
        };
        self.mirror(&out, &payload);
        let result = self.forward(group, aim, &out, &payload).await;
        match result {
            Ok(answer) => match on_upgrade.filter(|_| tunnel::is_accepted(&out.method, answer.status)) {
                Some(on_upgrade) => tunnel::upgrade(self.client, on_upgrade, answer, out.upgrade.as_ref()),
                None => self.reply(answer, filters),
            },
            Err(failure) => Box::pin(self.fail(failure, group, aim, &out, &payload)).await,
        }
    }

    /// Which endpoint the request is meant for: its session's, or that of its hash.
    fn aim(&self, group: &Group, parts: &Parts) -> Aim {
        let first = self.rule.settings.session.as_ref().and_then(|it| sticky(it, &parts.headers, group));
        let hash = if group.needs_hash() { keys::hash(&group.spec.settings.hash_on, parts, self.asker()) } else { 0 };
        Aim { first, hash }
    }

    async fn forward(&self, group: &Rc<Group>, aim: Aim, out: &Outbound, payload: &Payload) -> Result<Answer, Failure> {
        let settings = &self.rule.settings;
        let Aim { first, hash } = aim;
        let wake = || self.client.core.wake();
        let forward = Forward {
            group,
            out,
            payload,
            retry: &settings.retry,
            deadline: settings.request_timeout.map(|limit| self.started + limit),
            hash,
            first,
            metrics: &self.state.metrics,
            wake: &wake,
        };
        let answer = forward.run().await?;
        if let Some(session) = &settings.session
            && first != Some(answer.index)
        {
            *self.session.borrow_mut() = session_header(session, group, answer.index);
        }
        Ok(answer)
    }

    /// The backend of a request, by the rule's weights.
    fn choose(&self, parts: &Parts, degraded: bool) -> Result<(&'a Rc<Group>, Option<&'a Filters>), Reply> {
        if degraded && let Some(fallback) = self.rule.fallback.and_then(|it| self.table.groups.get(it)) {
            return Ok((fallback, None));
        }
        let backends = &self.rule.backends;
        let settings = &self.rule.settings;
        let chosen = match (backends.list.as_slice(), &settings.session) {
            ([only], _) if only.weight > 0 => Some(only),
            (_, Some(session)) if let Some(known) = self.stuck_to(session, parts) => Some(known),
            _ if backends.weight_total == 0 => None,
            _ if settings.split_on.is_empty() => backends.at(self.state.split_point(backends.weight_total)),
            _ => {
                let hash = keys::hash(&settings.split_on, parts, self.asker());
                backends.at((hash % u64::from(backends.weight_total)) as u32)
            }
        };
        // No backend, weight 0 or a broken reference: 500, as the Gateway API demands.
        let group = chosen.and_then(|it| self.table.groups.get(it.upstream?));
        match (group, chosen) {
            (Some(group), Some(chosen)) => Ok((group, Some(&chosen.filters))),
            _ => Err(self.error(StatusCode::INTERNAL_SERVER_ERROR, "the route has no backend that can be used")),
        }
    }

    /// The backend that a session belongs to.
    fn stuck_to(&self, session: &SessionSettings, parts: &Parts) -> Option<&'a WeightedBackend> {
        self.rule.backends.list.iter().find(|backend| {
            let group = backend.upstream.and_then(|it| self.table.groups.get(it));
            backend.weight > 0 && group.is_some_and(|group| sticky(session, &parts.headers, group).is_some())
        })
    }

    /// The request as endpoints get it.
    fn outbound(&self, parts: &mut Parts, filters: Option<&Filters>, upgrade: Option<HeaderValue>) -> Outbound {
        let mut out_headers = std::mem::take(&mut parts.headers);
        // HTTP/2 and absolute targets have the host in the target.
        if let Some(authority) = parts.uri.authority()
            && let Ok(host) = HeaderValue::from_str(authority.as_str())
        {
            out_headers.insert(HOST, host);
        }
        self.client.forwarding.add(&mut out_headers);
        headers::strip_framing(&mut out_headers);
        let path = if parts.uri.path().is_empty() { "/" } else { parts.uri.path() };
        let mut new_path = None;
        for filters in std::iter::once(&self.rule.filters).chain(filters) {
            filters.request_headers.apply(&mut out_headers);
            let Some(rewrite) = &filters.rewrite else { continue };
            if let Some(host) = &rewrite.host {
                out_headers.insert(HOST, host.clone());
            }
            new_path = rewrite.path.as_ref().map(|change| change.apply(path, self.prefix_len)).or(new_path);
        }
        convert::request(&mut out_headers, self.rule);
        let target = match (new_path, parts.uri.path_and_query()) {
            _ if parts.method == Method::CONNECT => parts.uri.authority().map_or_else(String::new, ToString::to_string),
            (Some(path), whole) => match whole.and_then(|it| it.query()) {
                Some(query) => format!("{path}?{query}"),
                None => path,
            },
            (None, Some(whole)) => whole.as_str().to_owned(),
            (None, None) => path.to_owned(),
        };
        Outbound { method: parts.method.clone(), target, headers: out_headers, upgrade }
    }

    /// The request's body: kept whole if the request may be repeated and it is small, else as it comes.
    async fn payload(&self, out: &Outbound, body: RequestBody, tunnel: bool) -> Result<Payload, Reply> {
        if tunnel || body.is_end_stream() {
            return Ok(Payload::None);
        }
        let limit = self.rule.settings.access.as_ref().and_then(|it| it.body_bytes_max).unwrap_or(u64::MAX);
        let known = body.size_hint().exact();
        if known.is_some_and(|bytes| bytes > limit) {
            return Err(self.error(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than allowed"));
        }
        let retry = &self.rule.settings.retry;
        let body = ClientBody::new(body, limit, self.too_large.clone());
        if retry.attempts > 0
            && retry.may_repeat(&out.method)
            && known.is_some_and(|bytes| bytes <= retry.body_bytes_max)
        {
            return match Box::pin(body.collect()).await {
                Ok(whole) => Ok(Payload::Full(whole.to_bytes())),
                Err(_) => Err(self.error(StatusCode::BAD_REQUEST, "the body ended early")),
            };
        }
        let length = known.map_or(Length::Chunked, Length::Fixed);
        Ok(Payload::Once(RefCell::new(Some((body, length)))))
    }

    /// Sends copies where the filters say so; nobody waits for what comes of them.
    fn mirror(&self, out: &Outbound, payload: &Payload) {
        for mirror in &self.rule.filters.mirrors {
            let body = match payload {
                Payload::None => Bytes::new(),
                Payload::Full(bytes) => bytes.clone(),
                Payload::Once(_) => continue,
            };
            if fastrand::u32(..mirror.denominator) < mirror.numerator
                && let Some(group) = self.table.groups.get(mirror.upstream)
            {
                self.state.metrics.mirrored.add(1);
                tunnel::send_copy(self.client, group.clone(), out, body, self.state.metrics.clone());
            }
        }
    }

    /// An endpoint's answer as the client gets it.
    fn reply(&self, answer: Answer, filters: Option<&Filters>) -> Reply {
        let Answer { status, mut headers, body, permit, .. } = answer;
        headers::strip_hop_by_hop(&mut headers);
        if let Some(filters) = filters {
            filters.response_headers.apply(&mut headers);
        }
        let idle = self.rule.settings.stream_idle;
        let body = match body {
            AnswerBody::Http1(mut exchange) => match exchange.take_whole() {
                Some(bytes) => {
                    permit.give_back(*exchange);
                    if bytes.is_empty() { ReplyBody::Empty } else { ReplyBody::Full(bytes) }
                }
                None => ReplyBody::Stream(Box::new(Streaming::http1(*exchange, permit, idle))),
            },
            AnswerBody::Http2(incoming) if incoming.is_end_stream() => ReplyBody::Empty,
            AnswerBody::Http2(incoming) => ReplyBody::Stream(Box::new(Streaming::http2(incoming, permit, idle))),
        };
        let mut reply = Response::new(body);
        *reply.status_mut() = status;
        *reply.headers_mut() = headers;
        reply
    }

    /// No answer: degrade if the rule says how, else say why.
    async fn fail(&self, failure: Failure, group: &Rc<Group>, aim: Aim, out: &Outbound, payload: &Payload) -> Reply {
        if let Failure::Unreachable(error) | Failure::Broken(error) = &failure {
            tracing::debug!(rule = %self.rule.name, %error, "no answer");
        }
        let when = match failure {
            Failure::CircuitOpen(_) => Some(DegradeWhen::CircuitOpen),
            Failure::NoHost | Failure::Unreachable(_) => Some(DegradeWhen::NoHealthyHost),
            Failure::Broken(_) | Failure::TimedOut => {
                group.none_healthy(Instant::now()).then_some(DegradeWhen::NoHealthyHost)
            }
        };
        if matches!(failure, Failure::CircuitOpen(_)) {
            self.state.metrics.open_circuit.add(1);
        }
        if self.too_large.get() {
            return self.error(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than allowed");
        }
        if let Some(when) = when
            && self.degrades(when)
        {
            self.state.metrics.degraded.add(1);
            if let Some(fallback) = self.rule.fallback.and_then(|it| self.table.groups.get(it))
                && let Ok(answer) = self.forward(fallback, Aim { first: None, ..aim }, out, payload).await
            {
                return self.reply(answer, None);
            }
            if let Some(reply) = self.canned_answer() {
                return reply;
            }
        }
        match failure {
            Failure::NoHost => self.error(StatusCode::SERVICE_UNAVAILABLE, "no endpoint is available"),
            Failure::CircuitOpen(wait) => {
                let refused = self.error(StatusCode::SERVICE_UNAVAILABLE, "the circuit is open");
                reply::retry_after(refused, wait.as_nanos() as u64)
            }
            Failure::TimedOut => self.error(StatusCode::GATEWAY_TIMEOUT, "no endpoint answered in time"),
            Failure::Unreachable(_) => self.error(StatusCode::SERVICE_UNAVAILABLE, "no endpoint could be reached"),
            Failure::Broken(AttemptError::Exchange(ExchangeError::Client(_))) => {
                self.error(StatusCode::BAD_REQUEST, "the request's body is broken")
            }
            Failure::Broken(_) => self.error(StatusCode::BAD_GATEWAY, "the endpoint did not answer as it should"),
        }
    }

    fn degrades(&self, when: DegradeWhen) -> bool {
        self.rule.settings.degradation.as_ref().is_some_and(|it| it.when.contains(&when))
    }

    /// Whether degradation is switched on by hand.
    fn by_hand(&self) -> bool {
        let Some(degradation) = &self.rule.settings.degradation else { return false };
        let on = self.client.core.shared().switched_on(&degradation.name);
        if on {
            self.state.metrics.degraded.add(1);
        }
        on
    }

    /// The canned answer for a condition.
    fn canned(&self, when: DegradeWhen) -> Option<Reply> {
        self.degrades(when).then(|| self.canned_answer()).flatten()
    }

    /// What a degraded rule answers itself: its canned answer, or a refusal of the share that is shed.
    fn canned_answer(&self) -> Option<Reply> {
        let degradation = self.rule.settings.degradation.as_ref()?;
        if let Some(canned) = &degradation.respond {
            return Some(reply::canned(canned));
        }
        let shed = fastrand::u8(..100) < degradation.shed_percent;
        shed.then(|| self.error(StatusCode::SERVICE_UNAVAILABLE, "part of the requests is refused for now"))
    }

    /// An error as this rule's clients understand it.
    pub(super) fn error(&self, status: StatusCode, message: &'static str) -> Reply {
        reply::error(status, message, self.rule.settings.grpc)
    }

    /// Counts bad requests of a client, if the rule bans for them.
    fn remember_bad(&self, status: StatusCode) {
        if status.is_client_error()
            && let Some(ban) = self.rule.settings.access.as_ref().and_then(|it| it.ban.as_ref())
        {
            self.client.core.shared().bans.bad_request(ban, self.address, self.started);
        }
    }

    /// What every answer of the rule carries.
    fn dress(self, mut reply: Reply) -> Reply {
        if !self.limits.is_empty() {
            reply.headers_mut().extend(self.limits);
        }
        if let Some((name, value)) = self.session.into_inner() {
            reply.headers_mut().append(name, value);
        }
        reply
    }
}

/// An endpoint to try first, and a key's hash.
#[derive(Debug, Clone, Copy)]
struct Aim {
    first: Option<usize>,
    hash: u64,
}

/// Keeps a place at the gate until the answer's body has ended.
fn hold(reply: Reply, pass: Option<Pass>) -> Reply {
    match pass {
        Some(pass) if !reply.body().is_end_stream() => reply.map(|body| convert::holding(body, pass)),
        _ => reply,
    }
}

/// Seconds since 1970.
pub(super) fn now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs() as i64)
}
