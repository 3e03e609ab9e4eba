//! What changes about requests and answers on the way: CORS, redirects, compression, gRPC-Web.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    HOST, HeaderValue, LOCATION, ORIGIN, TE, VARY,
};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};

use super::reply::Reply;
use crate::body::{BodyError, BoxBody, ReplyBody};
use crate::grpc_web;
use crate::gzip::Gzip;
use crate::table::Rule;
use crate::table::filters::{Cors, Redirect};
use crate::table::settings::CompressionSettings;

/// The answer to a CORS preflight; `None` if the request is none (Fetch standard, 4.8).
pub(super) fn preflight(cors: &Cors, parts: &Parts) -> Option<Reply> {
    let origin = parts.headers.get(ORIGIN)?;
    if parts.method != Method::OPTIONS || !parts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
        return None;
    }
    let mut reply = Response::new(ReplyBody::Empty);
    *reply.status_mut() = StatusCode::NO_CONTENT;
    let headers = reply.headers_mut();
    if allow_origin(cors, origin, headers) {
        // A wildcard with credentials would be taken literally: what was asked for is named instead.
        let list = |configured: &[String], asked| match configured {
            [all] if all == "*" && cors.credentials => parts.headers.get(asked).cloned(),
            [] => None,
            some => HeaderValue::try_from(some.join(", ")).ok(),
        };
        if let Some(methods) = list(&cors.methods, ACCESS_CONTROL_REQUEST_METHOD) {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        }
        if let Some(names) = list(&cors.headers, ACCESS_CONTROL_REQUEST_HEADERS) {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names);
        }
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(cors.max_age_s));
    }
    Some(reply)
}

/// Adds what lets an allowed origin read the answer; answers whether it is allowed.
pub(super) fn allow_origin(cors: &Cors, origin: &HeaderValue, headers: &mut HeaderMap) -> bool {
    headers.append(VARY, HeaderValue::from_static("origin"));
    if !origin.to_str().is_ok_and(|origin| cors.allows(origin)) {
        return false;
    }
    let any = !cors.credentials && cors.origins.iter().any(|it| it == "*");
    let allowed = if any { HeaderValue::from_static("*") } else { origin.clone() };
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
    if cors.credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    if let Some(expose) = &cors.expose {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
    }
    true
}

/// The answer of a redirect (Gateway API, HTTPRequestRedirectFilter).
pub(super) fn redirect(redirect: &Redirect, parts: &Parts, prefix_len: usize, tls: bool, listener_port: u16) -> Reply {
    let scheme = redirect.scheme.as_deref().unwrap_or(if tls { "https" } else { "http" });
    let asked = parts
        .uri
        .authority()
        .map(http::uri::Authority::as_str)
        .or_else(|| parts.headers.get(HOST)?.to_str().ok())
        .unwrap_or_default();
    let host_end = asked.rfind(':').filter(|at| !asked[*at..].contains(']')).unwrap_or(asked.len());
    let host = redirect.host.as_deref().unwrap_or(&asked[..host_end]);
    let port = match (redirect.port, redirect.scheme.as_deref()) {
        (Some(port), _) => port,
        (None, Some("http")) => 80,
        (None, Some("https")) => 443,
        (None, _) => listener_port,
    };
    let default = matches!((scheme, port), ("http", 80) | ("https", 443));
    let port = if default { String::new() } else { format!(":{port}") };
    let path = match &redirect.path {
        Some(change) => change.apply(parts.uri.path(), prefix_len),
        None => parts.uri.path().to_owned(),
    };
    let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut reply = Response::new(ReplyBody::Empty);
    *reply.status_mut() = redirect.status;
    if let Ok(location) = HeaderValue::try_from(format!("{scheme}://{host}{port}{path}{query}")) {
        reply.headers_mut().insert(LOCATION, location);
    }
    reply
}

/// Changes a request's headers for conversions that the rule asks for.
pub(super) fn request(headers: &mut HeaderMap, rule: &Rule) {
    if rule.settings.grpc_web && grpc_web::Kind::of(headers).is_some() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// What the client takes, remembered while its request is on its way.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Accepted {
    gzip: bool,
    grpc_web: Option<grpc_web::Kind>,
}

impl Accepted {
    /// Looks at the request.
    pub(super) fn of(headers: &HeaderMap, rule: &Rule) -> Self {
        Self {
            gzip: rule.settings.compression.is_some() && accepts_gzip(headers),
            grpc_web: rule.settings.grpc_web.then(|| grpc_web::Kind::of(headers)).flatten(),
        }
    }

    /// Converts the answer.
    pub(super) fn convert(self, reply: Reply, rule: &Rule) -> Reply {
        let reply = match self.grpc_web {
            Some(kind) => grpc_web::reply(reply, kind),
            None => reply,
        };
        match &rule.settings.compression {
            Some(settings) => compress(reply, settings, self.gzip),
            None => reply,
        }
    }
}

/// Whether `Accept-Encoding` has gzip with a weight above 0 (RFC 9110, 12.5.3).
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|it| it.to_str().ok());
    let mut any = None;
    for part in lines.flat_map(|it| it.split(',')) {
        let (coding, weight) = part.split_once(';').unwrap_or((part, ""));
        let weight = weight.trim().strip_prefix("q=").and_then(|it| it.parse::<f32>().ok()).unwrap_or(1.0);
        match coding.trim() {
            "gzip" | "x-gzip" => return weight > 0.0,
            "*" => any = Some(weight > 0.0),
            _ => {}
        }
    }
    any.unwrap_or(false)
}

/// Types that are worth compressing, unless the policy names others.
const TYPES: [&str; 7] = [
    "text/",
    "application/json",
    "application/javascript",
    "application/xml",
    "image/svg+xml",
    "application/manifest+json",
    "application/xhtml+xml",
];

fn compress(reply: Reply, settings: &CompressionSettings, accepted: bool) -> Reply {
    let headers = reply.headers();
    let kind = headers.get(CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    let fits = if settings.types.is_empty() {
        TYPES.iter().any(|it| kind.starts_with(it))
    } else {
        settings.types.iter().any(|it| kind.starts_with(it.as_str()))
    };
    let no_transform =
        headers.get(CACHE_CONTROL).is_some_and(|it| it.to_str().is_ok_and(|it| it.contains("no-transform")));
    let coded = headers.contains_key(CONTENT_ENCODING) || headers.contains_key(CONTENT_RANGE);
    let small = reply.body().size_hint().upper().is_some_and(|bytes| bytes < settings.bytes_min);
    let bodyless = reply.body().is_end_stream() || matches!(reply.status().as_u16(), 101 | 204 | 206 | 304);
    if !fits || no_transform || coded || small || bodyless {
        return reply;
    }
    let (mut head, body) = reply.into_parts();
    head.headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    if !accepted {
        return Response::from_parts(head, body);
    }
    head.headers.remove(CONTENT_LENGTH);
    head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    // Not the same bytes any more: only a weak validator still holds (RFC 9110, 8.8.1).
    if let Some(etag) = head.headers.get(ETAG).filter(|it| !it.as_bytes().starts_with(b"W/"))
        && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", etag.as_bytes()].concat())
    {
        head.headers.insert(ETAG, weak);
    }
    Response::from_parts(head, ReplyBody::Boxed(Box::pin(Gzip::new(body, settings.level))))
}

/// A body that holds something until it ends.
struct Holding<T> {
    body: ReplyBody,
    held: Option<T>,
}

/// A body that holds something, a place at a gate for example, until it ends or is dropped.
pub(super) fn holding<T: Unpin + 'static>(body: ReplyBody, held: T) -> ReplyBody {
    let boxed: BoxBody = Box::pin(Holding { body, held: Some(held) });
    ReplyBody::Boxed(boxed)
}

impl<T: Unpin> Body for Holding<T> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
        if frame.is_none() {
            this.held = None;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::table::filters::PathChange;
    use http::Request;

    #[test]
    fn codings_are_chosen_by_weight() {
        for (value, wanted) in [
            ("gzip", true),
            ("br, gzip;q=0.5", true),
            ("gzip;q=0", false),
            ("*", true),
            ("br", false),
            ("*;q=0", false),
            ("", false),
        ] {
            let headers: HeaderMap = [(ACCEPT_ENCODING, value.parse().unwrap())].into_iter().collect();
            assert_eq!(accepts_gzip(&headers), wanted, "{value}");
        }
    }

    #[test]
    fn redirects_say_where_to() {
        let to = |rule: Redirect, prefix_len| {
            let (parts, ()) = Request::get("/a/b?c=d").header("host", "x.example:8080").body(()).unwrap().into_parts();
            let reply = redirect(&rule, &parts, prefix_len, false, 8080);
            (reply.status().as_u16(), reply.headers()["location"].to_str().unwrap().to_owned())
        };
        let plain = Redirect { scheme: None, host: None, port: None, path: None, status: StatusCode::FOUND };
        assert_eq!(to(plain.clone(), 0), (302, "http://x.example:8080/a/b?c=d".into()));
        let https = Redirect { scheme: Some("https".into()), ..plain.clone() };
        assert_eq!(to(https, 0).1, "https://x.example/a/b?c=d");
        let path =
            Redirect { path: Some(PathChange::Prefix("/z".into())), host: Some("y".into()), port: Some(80), ..plain };
        assert_eq!(to(path, 2).1, "http://y/z/b?c=d");
    }
}
