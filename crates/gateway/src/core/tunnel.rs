//! Bytes that are no HTTP to us: upgraded connections, TCP and TLS routes; and copies of requests for mirrors.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use http::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{Method, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::oneshot;

use super::Core;
use super::accept::{Client, Open};
use super::forward::{Answer, AnswerBody, Forward, Outbound, Payload};
use super::live::CoreTable;
use super::proxy_protocol;
use super::reply::{self, Reply};
use crate::api::policy::KeyPart;
use crate::body::{ReplyBody, RequestBody};
use crate::health::Outcome;
use crate::io::Io;
use crate::metrics::RuleMetrics;
use crate::server::{Upgraded, Watch, WatchLimits, Watched};
use crate::table::settings::RetrySettings;
use crate::table::{StreamRule, hash};
use crate::upstream::{Group, Permit, connect};

/// Time limit of a mirrored request.
const COPY_TIMEOUT: Duration = Duration::from_secs(10);

/// The client's side of a tunnel to be.
pub(super) enum Upgrade {
    Http1(oneshot::Receiver<Upgraded>),
    Http2(OnUpgrade),
}

impl Upgrade {
    /// Prepares for what a request may become.
    pub(super) fn of(parts: &mut Parts, body: &RequestBody) -> Option<Self> {
        match body {
            RequestBody::Http1(body) => Some(Self::Http1(body.upgrade())),
            _ => parts.extensions.remove::<OnUpgrade>().map(Self::Http2),
        }
    }

    /// Carries bytes once the client has the answer, until either side ends.
    async fn carry(self, mut upstream: Io, early: Bytes, idle: Option<Duration>) {
        match self {
            Self::Http1(receiver) => {
                let Ok((client, sent)) = receiver.await else {
                    return tracing::debug!("the client did not upgrade");
                };
                // What the client has said already comes before what it will say.
                if upstream.write_all(&sent).await.is_ok() {
                    carry(client, upstream, early, idle).await;
                }
            }
            Self::Http2(on_upgrade) => match on_upgrade.await {
                Ok(upgraded) => carry(TokioIo::new(upgraded), upstream, early, idle).await,
                Err(error) => tracing::debug!(%error, "the client did not upgrade"),
            },
        }
    }
}

/// Whether an answer lets the tunnel begin.
pub(super) fn is_accepted(method: &Method, status: StatusCode) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS || (method == Method::CONNECT && status.is_success())
}

/// A WebSocket over HTTP/2 (RFC 8441) as the HTTP/1.1 upgrade that endpoints understand.
pub(super) fn as_http1_upgrade(out: &mut Outbound, parts: &Parts, protocol: &hyper::ext::Protocol) {
    out.method = Method::GET;
    out.target = parts.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    out.upgrade = HeaderValue::from_str(protocol.as_str()).ok();
    let key = base64::engine::general_purpose::STANDARD.encode(fastrand::u128(..).to_be_bytes());
    if let Ok(key) = HeaderValue::try_from(key) {
        out.headers.insert(HeaderName::from_static("sec-websocket-key"), key);
    }
}

/// Answers an accepted upgrade and carries bytes until either side ends.
pub(super) fn upgrade(client: &Client, upgrade: Upgrade, answer: Answer, protocol: Option<&HeaderValue>) -> Reply {
    let Answer { status, mut headers, body, permit, .. } = answer;
    let AnswerBody::Http1(exchange) = body else {
        return reply::error(StatusCode::BAD_GATEWAY, "the endpoint cannot be tunnelled to over HTTP/2", false);
    };
    let (upstream, early) = exchange.into_connection().into_tunnel();
    let idle = client.slot.port.borrow().settings.tunnel_idle;
    let open = client.open.clone();
    tokio::task::spawn_local(async move {
        upgrade.carry(upstream, early, idle).await;
        drop((permit, open));
    });
    super::headers::strip_hop_by_hop(&mut headers);
    let mut reply = Response::new(ReplyBody::Empty);
    if client.version.get() == Version::HTTP_2 {
        // HTTP/2 has no 101: success is the beginning (RFC 8441, 5).
        for name in ["sec-websocket-accept", "content-length"] {
            headers.remove(name);
        }
    } else {
        *reply.status_mut() = status;
        if let Some(protocol) = protocol.filter(|_| status == StatusCode::SWITCHING_PROTOCOLS) {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, protocol.clone());
        }
    }
    *reply.headers_mut() = headers;
    reply
}

/// Copies in both directions until both ends are closed, one fails, or nothing has moved for `idle`.
async fn carry(client: impl AsyncRead + AsyncWrite + Unpin, mut upstream: Io, early: Bytes, idle: Option<Duration>) {
    let limits = WatchLimits { header: Duration::MAX, idle: Duration::MAX };
    let state = Watch::new(limits, Instant::now());
    let mut client = Watched::new(client, state.clone());
    if client.write_all(&early).await.is_err() {
        return;
    }
    let copying = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, 16_384, 16_384);
    let Some(idle) = idle else { return drop(copying.await) };
    let silent = async {
        // Looked at a few times within the limit, instead of a timer that every byte resets.
        let step = (idle / 4).max(Duration::from_millis(10));
        let mut moved = state.moved();
        let mut since = Instant::now();
        while since.elapsed() < idle {
            tokio::time::sleep(step).await;
            if state.moved() != moved {
                (moved, since) = (state.moved(), Instant::now());
            }
        }
    };
    tokio::select! {
        _ = copying => {}
        () = silent => {}
    }
}

/// Carries a TCP or TLS connection to an endpoint of its route.
#[allow(clippy::too_many_arguments, reason = "they are what is known of the connection")]
pub(super) async fn stream(
    core: &Rc<Core>,
    table: &CoreTable,
    rule: &StreamRule,
    client: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    local: SocketAddr,
    idle: Option<Duration>,
    open: Open,
) {
    let total = rule.backends.weight_total;
    let backend = (total > 0).then(|| rule.backends.at(fastrand::u32(..total))).flatten();
    let Some(group) = backend.and_then(|it| table.groups.get(it.upstream?)) else {
        tracing::debug!(rule = %rule.name, "no backend for a connection");
        return;
    };
    let Some((mut upstream, permit)) = open_stream(group, peer).await else { return };
    core.wake();
    if let Some(version) = group.spec.settings.send_proxy {
        let header = proxy_protocol::write(version, peer, local);
        if upstream.write_all(&header).await.is_err() {
            return;
        }
    }
    carry(client, upstream, Bytes::new(), idle).await;
    drop((permit, open));
}

/// A connection to an endpoint; others are tried if one refuses.
async fn open_stream(group: &Rc<Group>, peer: SocketAddr) -> Option<(Io, Permit)> {
    let mut tried = Vec::new();
    // A stream has no header to hash: every part of a key falls back to the client's address.
    let hash = hash::stable(format!("{:?}{}", KeyPart::Client, peer.ip()).as_bytes());
    while tried.len() < group.hosts.len().min(4) {
        let index = group.pick(&tried, hash, Instant::now())?;
        if tried.contains(&index) {
            break;
        }
        tried.push(index);
        let host = &group.hosts[index];
        let permit = Permit::new(host.clone(), 0);
        match connect(host.endpoint.address, &group.spec.settings).await {
            Ok(io) => {
                host.metrics.connects.add(1);
                host.metrics.good.add(1);
                permit.open.set(Some(host.open()));
                group.note(host, Outcome::Good, Instant::now());
                return Some((io, permit));
            }
            Err(error) => {
                host.metrics.refused.add(1);
                group.note(host, Outcome::Refused, Instant::now());
                tracing::debug!(%error, "an endpoint refused a connection");
            }
        }
    }
    None
}

/// Sends a copy of a request and throws its answer away.
pub(super) fn send_copy(client: &Client, group: Rc<Group>, out: &Outbound, body: Bytes, metrics: Arc<RuleMetrics>) {
    let out = Outbound {
        method: out.method.clone(),
        target: out.target.clone(),
        headers: out.headers.clone(),
        upgrade: None,
    };
    let core = client.core.clone();
    tokio::task::spawn_local(async move {
        let payload = if body.is_empty() { Payload::None } else { Payload::Full(body) };
        let retry = RetrySettings { attempts: 0, ..RetrySettings::default() };
        let wake = || core.wake();
        let deadline = Some(Instant::now() + COPY_TIMEOUT);
        let hash = fastrand::u64(..);
        let forward = Forward {
            group: &group,
            out: &out,
            payload: &payload,
            retry: &retry,
            deadline,
            hash,
            first: None,
            metrics: &metrics,
            wake: &wake,
        };
        if let Ok(Answer { body: AnswerBody::Http1(mut exchange), permit, .. }) = forward.run().await {
            // Read to its end, so that the connection can be used again; a long answer is cut off with it.
            let reading = async {
                while std::future::poll_fn(|cx| exchange.poll_frame(cx)).await.is_some_and(|it| it.is_ok()) {}
            };
            if tokio::time::timeout(COPY_TIMEOUT, reading).await.is_ok() {
                permit.give_back(*exchange);
            }
        }
    });
}
