//! A shared cache (RFC 9111) in memory: storing, freshness, variants, one request for many (stampede lock), stale answers.
//!
//! What may be stored and for how long is decided by pure functions of two heads and the clock. Deliberately absent: disk,
//! partial responses (206 and ranges pass by), HTTP/1.0 `Pragma` (RFC 9111, 5.4: deprecated).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    AGE, AUTHORIZATION, CACHE_CONTROL, DATE, ETAG, EXPIRES, HeaderName, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    LAST_MODIFIED, RANGE, SET_COOKIE, VARY,
};
use http::{HeaderMap, Method, StatusCode};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use crate::table::settings::CacheSettings;

/// Variants (`Vary`) of one resource at most.
const VARIANTS_MAX: usize = 32;
/// Memory a stored object costs besides its bytes, roughly.
const OVERHEAD: u64 = 512;

/// A stored response.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// When it was received.
    received: Instant,
    /// Its age when it was received.
    initial_age: Duration,
    lifetime: Duration,
    stale_while_revalidate: Duration,
    stale_if_error: Duration,
    must_revalidate: bool,
    /// The request's values of the headers that `Vary` names.
    vary: Vec<(HeaderName, Option<HeaderValue>)>,
}

/// What the cache has for a request.
#[derive(Debug)]
pub(crate) enum Found {
    /// A response to be used as it is.
    Fresh(Stored),
    /// One to be used now while one request refreshes it: this one, if `refresh`.
    Stale { stored: Stored, refresh: bool },
    /// One that needs validation first, but may be used if the endpoint fails.
    Expired(Stored),
    /// Nothing; this request is the one that fills it.
    Miss,
    /// Nothing; another request is filling it.
    Wait(OwnedNotified),
    /// The request is not one for a cache.
    Pass,
}

/// A cache.
#[derive(Debug)]
pub(crate) struct Store {
    settings: CacheSettings,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<String, Entry>,
    bytes: u64,
    clock: u64,
}

#[derive(Debug, Default)]
struct Entry {
    variants: Vec<Stored>,
    /// When it was used last, by a counter.
    used: u64,
    filling: Option<Arc<Notify>>,
}

/// Cache-Control directives with their values.
#[derive(Debug, Default, Clone)]
struct Directives(Vec<(String, Option<String>)>);

impl Directives {
    fn of(headers: &HeaderMap) -> Self {
        let mut found = Vec::new();
        for value in headers.get_all(CACHE_CONTROL).iter().filter_map(|it| it.to_str().ok()) {
            for part in split_quoted(value) {
                let (name, value) = part.split_once('=').map_or((part, None), |(name, value)| (name, Some(value)));
                let value = value.map(|it| it.trim().trim_matches('"').to_owned());
                found.push((name.trim().to_ascii_lowercase(), value));
            }
        }
        Self(found)
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    /// Seconds; a value that is no number counts as 0: better asked once too often (RFC 9111, 4.2.1).
    fn seconds(&self, name: &str) -> Option<Duration> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        let seconds = value.as_deref().and_then(|it| it.parse::<u64>().ok()).unwrap_or(0);
        Some(Duration::from_secs(seconds.min(1 << 31)))
    }
}

/// Splits at commas outside of quotes.
fn split_quoted(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
    .map(str::trim)
    .filter(|it| !it.is_empty())
}

/// How long a response may be stored and used; `None` if it must not be stored (RFC 9111, 3). `now_s` is seconds since 1970.
fn storable(
    method: &Method,
    request: &HeaderMap,
    status: StatusCode,
    response: &HeaderMap,
    settings: &CacheSettings,
    now_s: i64,
) -> Option<(Duration, Directives)> {
    let (asked, said) = (Directives::of(request), Directives::of(response));
    let public = said.has("public") || said.has("s-maxage") || said.has("must-revalidate");
    let forbidden = asked.has("no-store")
        || said.has("no-store")
        || said.has("private")
        || (request.contains_key(AUTHORIZATION) && !public)
        || response.get(VARY).is_some_and(|it| it.as_bytes().contains(&b'*'))
        // One visitor's cookie is not for the next.
        || response.contains_key(SET_COOKIE);
    if method != Method::GET || forbidden || status == StatusCode::PARTIAL_CONTENT || status.is_informational() {
        return None;
    }
    let expires = || {
        let date = response.get(DATE).and_then(http_date).unwrap_or(now_s);
        let until = response.get(EXPIRES)?;
        Some(Duration::from_secs(http_date(until).map_or(0, |it| (it - date).max(0)) as u64))
    };
    let explicit = said.seconds("s-maxage").or_else(|| said.seconds("max-age")).or_else(expires);
    // Statuses that are cacheable without being told so (RFC 9110, 15.1).
    let by_default = matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501);
    let lifetime = match explicit {
        _ if said.has("no-cache") => Duration::ZERO,
        Some(lifetime) => lifetime,
        None if by_default && !settings.default_ttl.is_zero() => settings.default_ttl,
        None => return None,
    };
    let validator = response.contains_key(ETAG) || response.contains_key(LAST_MODIFIED);
    (lifetime > Duration::ZERO || validator).then_some((lifetime, said))
}

fn http_date(value: &HeaderValue) -> Option<i64> {
    let text = value.to_str().ok()?;
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok().map(jiff::Timestamp::as_second)
}

impl Stored {
    fn age(&self, now: Instant) -> Duration {
        self.initial_age + now.saturating_duration_since(self.received)
    }

    /// How long it has been stale.
    fn staleness(&self, now: Instant) -> Duration {
        self.age(now).saturating_sub(self.lifetime)
    }

    /// Whether it may be used although the endpoint fails.
    pub(crate) fn usable_on_error(&self, now: Instant) -> bool {
        !self.must_revalidate && self.staleness(now) <= self.stale_if_error
    }

    /// The headers as they are sent, with `Age`.
    pub(crate) fn headers_at(&self, now: Instant) -> HeaderMap {
        let mut headers = self.headers.clone();
        headers.insert(AGE, HeaderValue::from(self.age(now).as_secs()));
        headers
    }

    /// Headers that ask whether it is still good.
    pub(crate) fn conditions(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let etag = self.headers.get(ETAG).map(|it| (IF_NONE_MATCH, it.clone()));
        let date = self.headers.get(LAST_MODIFIED).map(|it| (IF_MODIFIED_SINCE, it.clone()));
        etag.into_iter().chain(date)
    }

    /// Whether the client has it already (RFC 9110, 13.1.2 and 13.1.3).
    pub(crate) fn not_modified(&self, request: &HeaderMap) -> bool {
        if let Some(asked) = request.get(IF_NONE_MATCH).and_then(|it| it.to_str().ok()) {
            let weak = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
            let ours = self.headers.get(ETAG).and_then(|it| it.to_str().ok()).map(weak);
            return asked.trim() == "*" || asked.split(',').any(|tag| Some(weak(tag)) == ours);
        }
        let since = request.get(IF_MODIFIED_SINCE).and_then(http_date);
        since
            .zip(self.headers.get(LAST_MODIFIED).and_then(http_date))
            .is_some_and(|(since, modified)| modified <= since)
    }

    fn fits(&self, request: &HeaderMap) -> bool {
        self.vary.iter().all(|(name, value)| request.get(name) == value.as_ref())
    }

    fn cost(&self, key: &str) -> u64 {
        let headers: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        (self.body.len() + headers + key.len()) as u64 + OVERHEAD
    }
}

/// The key of a request: method is always GET, so host and target are enough.
pub(crate) fn key(host: &str, target: &str) -> String {
    format!("{host}{target}")
}

impl Store {
    /// An empty cache.
    pub(crate) fn new(settings: CacheSettings) -> Self {
        Self { settings, inner: Mutex::default() }
    }

    /// Looks for a response. After [`Found::Miss`] and [`Found::Expired`] the caller must end with [`Store::filled`].
    pub(crate) fn find(&self, key: &str, method: &Method, request: &HeaderMap, now: Instant) -> Found {
        let asked = Directives::of(request);
        if !matches!(*method, Method::GET | Method::HEAD) || request.contains_key(RANGE) || asked.has("no-store") {
            return Found::Pass;
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clock += 1;
        let clock = inner.clock;
        let entry = inner.entries.get_mut(key);
        let stored = entry.as_ref().and_then(|entry| entry.variants.iter().find(|it| it.fits(request)).cloned());
        let fresh_enough = |it: &Stored| {
            !asked.has("no-cache")
                && asked.seconds("max-age").is_none_or(|max| it.age(now) <= max)
                && it.age(now) < it.lifetime
        };
        match (entry, stored) {
            (Some(entry), Some(stored)) if fresh_enough(&stored) => {
                entry.used = clock;
                Found::Fresh(stored)
            }
            (_, None) if *method == Method::HEAD || asked.has("only-if-cached") => Found::Pass,
            (Some(entry), Some(stored)) => {
                let usable = !stored.must_revalidate && !asked.has("no-cache") && !asked.has("max-age");
                if usable
                    && stored.staleness(now) <= stored.stale_while_revalidate
                    && !stored.stale_while_revalidate.is_zero()
                {
                    let refresh = entry.filling.is_none() && *method == Method::GET;
                    if refresh {
                        entry.filling = Some(Arc::default());
                    }
                    return Found::Stale { stored, refresh };
                }
                match &entry.filling {
                    Some(filling) if !asked.has("no-cache") => Found::Wait(filling.clone().notified_owned()),
                    _ if *method == Method::HEAD => Found::Pass,
                    _ => {
                        entry.filling = Some(Arc::default());
                        Found::Expired(stored)
                    }
                }
            }
            (Some(Entry { filling: Some(filling), .. }), None) => Found::Wait(filling.clone().notified_owned()),
            (_, None) => {
                inner.entries.entry(key.to_owned()).or_default().filling = Some(Arc::default());
                Found::Miss
            }
            (None, Some(_)) => Found::Pass,
        }
    }

    /// Whether and how long a response to this request may be stored.
    pub(crate) fn may_store(
        &self,
        method: &Method,
        request: &HeaderMap,
        status: StatusCode,
        response: &HeaderMap,
        now_s: i64,
    ) -> bool {
        storable(method, request, status, response, &self.settings, now_s).is_some()
    }

    /// Largest body that is stored, in bytes.
    pub(crate) fn object_bytes_max(&self) -> u64 {
        self.settings.object_bytes_max
    }

    /// Ends filling: stores the response if there is one that may be stored, and lets those who wait look again.
    pub(crate) fn filled(
        &self,
        key: &str,
        request: &HeaderMap,
        response: Option<(StatusCode, &HeaderMap, Bytes)>,
        now: Instant,
        now_s: i64,
    ) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = &mut *inner;
        inner.clock += 1;
        let entry = inner.entries.entry(key.to_owned()).or_default();
        entry.used = inner.clock;
        if let Some(waiting) = entry.filling.take() {
            waiting.notify_waiters();
        }
        let stored =
            response.and_then(|(status, headers, body)| self.stored(request, status, headers, body, now, now_s));
        if let Some(stored) = stored {
            let added = stored.cost(key);
            let before: u64 = entry.variants.iter().filter(|it| it.fits(request)).map(|it| it.cost(key)).sum();
            entry.variants.retain(|it| !it.fits(request));
            entry.variants.truncate(VARIANTS_MAX - 1);
            entry.variants.insert(0, stored);
            inner.bytes = (inner.bytes + added).saturating_sub(before);
        }
        if entry.variants.is_empty() {
            inner.entries.remove(key);
        }
        inner.shrink(self.settings.bytes_max);
    }

    /// A stored response was found to be still good (304): its headers are renewed.
    pub(crate) fn renewed(
        &self,
        key: &str,
        request: &HeaderMap,
        stored: &Stored,
        fresh: &HeaderMap,
        now: Instant,
        now_s: i64,
    ) -> Stored {
        let mut headers = stored.headers.clone();
        for (name, value) in fresh.iter().filter(|(name, _)| **name != http::header::CONTENT_LENGTH) {
            headers.insert(name.clone(), value.clone());
        }
        self.filled(key, request, Some((stored.status, &headers, stored.body.clone())), now, now_s);
        let renewed = self.stored(request, stored.status, &headers, stored.body.clone(), now, now_s);
        renewed.unwrap_or_else(|| stored.clone())
    }

    fn stored(
        &self,
        request: &HeaderMap,
        status: StatusCode,
        headers: &HeaderMap,
        body: Bytes,
        now: Instant,
        now_s: i64,
    ) -> Option<Stored> {
        let (lifetime, said) = storable(&Method::GET, request, status, headers, &self.settings, now_s)?;
        let age = headers.get(AGE).and_then(|it| it.to_str().ok()?.parse().ok()).unwrap_or(0);
        let named = headers.get_all(VARY).iter().filter_map(|it| it.to_str().ok()).flat_map(|it| it.split(','));
        let vary = named.filter_map(|name| HeaderName::try_from(name.trim()).ok());
        let mut headers = headers.clone();
        headers.remove(AGE);
        Some(Stored {
            status,
            body,
            received: now,
            initial_age: Duration::from_secs(age),
            lifetime,
            stale_while_revalidate: said
                .seconds("stale-while-revalidate")
                .unwrap_or(self.settings.stale_while_revalidate),
            stale_if_error: said.seconds("stale-if-error").unwrap_or(self.settings.stale_if_error),
            must_revalidate: said.has("must-revalidate")
                || said.has("proxy-revalidate")
                || said.has("s-maxage")
                || said.has("no-cache"),
            vary: vary.map(|name| (name.clone(), request.get(&name).cloned())).collect(),
            headers,
        })
    }

    /// Drops what `matches` by its key (host and path with query); answers how much that was.
    pub(crate) fn purge(&self, matches: impl Fn(&str) -> bool) -> usize {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let before = inner.entries.len();
        inner.entries.retain(|key, entry| !matches(key) || entry.filling.is_some());
        inner.bytes = inner.entries.iter().flat_map(|(key, entry)| entry.variants.iter().map(|it| it.cost(key))).sum();
        before - inner.entries.len()
    }
}

impl Inner {
    /// Drops what was not used for longest until the rest fits.
    fn shrink(&mut self, bytes_max: u64) {
        while self.bytes > bytes_max {
            // A sample instead of all: near enough to the oldest, and cheap (as Redis does).
            let oldest =
                self.entries.iter().filter(|(_, it)| !it.variants.is_empty()).take(16).min_by_key(|(_, it)| it.used);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { return };
            if let Some(gone) = self.entries.remove(&key) {
                let freed: u64 = gone.variants.iter().map(|it| it.cost(&key)).sum();
                self.bytes = self.bytes.saturating_sub(freed);
                if let Some(waiting) = gone.filling {
                    waiting.notify_waiters();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
