//! A request answered from the cache, or filling it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};

use super::headers;
use super::reply::Reply;
use super::serve::{Journey, now_s};
use crate::body::{BodyError, ReplyBody, RequestBody};
use crate::cache::{self, Found, Store, Stored};

/// Longest wait for another request that fills the cache; then the request goes itself.
const WAIT_MAX: Duration = Duration::from_secs(5);

const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

/// Answers a request of a rule that has a cache.
pub(super) async fn answer(
    journey: &Journey<'_>,
    store: &Arc<Store>,
    mut parts: Parts,
    body: RequestBody,
    degraded: bool,
) -> Reply {
    let host = headers::host(&parts.uri, parts.version, &parts.headers).unwrap_or_default().to_ascii_lowercase();
    let key = cache::key(&host, parts.uri.path_and_query().map_or("/", |it| it.as_str()));
    let metrics = &journey.state.metrics;
    let end = journey.started + WAIT_MAX;
    loop {
        let now = Instant::now();
        match store.find(&key, &parts.method, &parts.headers, now) {
            Found::Fresh(stored) | Found::Stale { stored, refresh: false } => {
                metrics.cache_hits.add(1);
                return from_store(&stored, &parts, now, "hit");
            }
            Found::Stale { stored, refresh: true } => {
                // Refreshing beside the answer would need the request twice; this one request waits, all others do not.
                metrics.cache_misses.add(1);
                return fill(journey, store, key, Some(stored), parts, body, degraded).await;
            }
            Found::Expired(stored) => {
                metrics.cache_misses.add(1);
                return fill(journey, store, key, Some(stored), parts, body, degraded).await;
            }
            Found::Miss => {
                metrics.cache_misses.add(1);
                return fill(journey, store, key, None, parts, body, degraded).await;
            }
            Found::Wait(filled) if now < end => drop(tokio::time::timeout(end - now, filled).await),
            Found::Wait(_) | Found::Pass => return journey.ask(&mut parts, body, degraded).await,
        }
    }
}

/// Ends the filling of a key, whatever becomes of the request.
struct Filling {
    store: Arc<Store>,
    key: String,
    request: HeaderMap,
    done: bool,
}

impl Filling {
    fn end(&mut self, response: Option<(StatusCode, &HeaderMap, Bytes)>) {
        self.done = true;
        self.store.filled(&self.key, &self.request, response, Instant::now(), now_s());
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        if !self.done {
            self.end(None);
        }
    }
}

async fn fill(
    journey: &Journey<'_>,
    store: &Arc<Store>,
    key: String,
    stored: Option<Stored>,
    mut parts: Parts,
    body: RequestBody,
    degraded: bool,
) -> Reply {
    let mut filling = Filling { store: store.clone(), key, request: parts.headers.clone(), done: false };
    let asked = parts.clone();
    // Ask the endpoint for the whole, or whether the stored one is still good; the client's own conditions are ours to judge.
    for name in [http::header::IF_NONE_MATCH, http::header::IF_MODIFIED_SINCE] {
        parts.headers.remove(name);
    }
    if let Some(stored) = &stored {
        parts.headers.extend(stored.conditions());
    }
    let reply = journey.ask(&mut parts, body, degraded).await;
    let now = Instant::now();
    match (stored, reply.status()) {
        (Some(stored), StatusCode::NOT_MODIFIED) => {
            filling.done = true;
            let renewed = store.renewed(&filling.key, &filling.request, &stored, reply.headers(), now, now_s());
            from_store(&renewed, &asked, now, "revalidated")
        }
        (Some(stored), status) if status.is_server_error() && stored.usable_on_error(now) => {
            from_store(&stored, &asked, now, "stale")
        }
        _ => keep(reply, filling, &asked),
    }
}

/// Passes a response on and stores a copy once it is whole.
fn keep(reply: Reply, mut filling: Filling, asked: &Parts) -> Reply {
    let store = filling.store.clone();
    let (mut head, body) = reply.into_parts();
    let storable = store.may_store(&asked.method, &filling.request, head.status, &head.headers, now_s());
    let too_large = body.size_hint().lower() > store.object_bytes_max();
    if !storable || too_large {
        drop(filling);
        head.headers.insert(X_CACHE, HeaderValue::from_static("pass"));
        return Response::from_parts(head, body);
    }
    let (status, headers) = (head.status, head.headers.clone());
    head.headers.insert(X_CACHE, HeaderValue::from_static("miss"));
    let body = match body {
        ReplyBody::Empty => {
            filling.end(Some((status, &headers, Bytes::new())));
            ReplyBody::Empty
        }
        ReplyBody::Full(bytes) => {
            filling.end(Some((status, &headers, bytes.clone())));
            ReplyBody::Full(bytes)
        }
        body => {
            ReplyBody::Boxed(Box::pin(Copying { body, copy: BytesMut::new(), status, headers, filling: Some(filling) }))
        }
    };
    Response::from_parts(head, body)
}

/// A body that is stored as it passes.
struct Copying {
    body: ReplyBody,
    copy: BytesMut,
    status: StatusCode,
    headers: HeaderMap,
    filling: Option<Filling>,
}

impl Body for Copying {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.copy.extend_from_slice(data);
                }
                let too_large =
                    this.filling.as_ref().is_some_and(|it| this.copy.len() as u64 > it.store.object_bytes_max());
                // Trailers are not stored, and what has them is not (RFC 9111, 3).
                if too_large || frame.is_trailers() {
                    this.filling = None;
                    this.copy = BytesMut::new();
                }
            }
            Some(Err(_)) => this.filling = None,
            None => {}
        }
        if (frame.is_none() || this.body.is_end_stream())
            && !matches!(frame, Some(Err(_)))
            && let Some(mut filling) = this.filling.take()
        {
            filling.end(Some((this.status, &this.headers, this.copy.split().freeze())));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn from_store(stored: &Stored, asked: &Parts, now: Instant, how: &'static str) -> Reply {
    let mut headers = stored.headers_at(now);
    headers.insert(X_CACHE, HeaderValue::from_static(how));
    let mut reply = Response::new(ReplyBody::Empty);
    if stored.not_modified(&asked.headers) {
        *reply.status_mut() = StatusCode::NOT_MODIFIED;
        headers.remove(CONTENT_LENGTH);
    } else {
        *reply.status_mut() = stored.status;
        headers.insert(CONTENT_LENGTH, HeaderValue::from(stored.body.len()));
        if asked.method != Method::HEAD {
            *reply.body_mut() = ReplyBody::Full(stored.body.clone());
        }
    }
    *reply.headers_mut() = headers;
    reply
}
