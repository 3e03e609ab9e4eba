//! Which rule a request falls under: by listener, host, path and conditions.

use std::borrow::Cow;
use std::net::IpAddr;

use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;

use super::accept::Client;
use super::headers;
use super::live::CoreTable;
use super::reply::{self, Reply};
use crate::acme::CHALLENGE_PATH;
use crate::body::ReplyBody;
use crate::table::paths::Asked;
use crate::table::{PortService, SniTarget};

/// Finds the rule for a request, and how long the prefix was that matched.
pub(super) fn route(client: &Client, table: &CoreTable, parts: &Parts) -> Result<(usize, usize), Reply> {
    let bad = |message| Err(reply::error(StatusCode::BAD_REQUEST, message, false));
    let host = match headers::host(&parts.uri, parts.version, &parts.headers) {
        Ok(host) => host.strip_suffix('.').unwrap_or(host),
        Err(message) => return bad(message),
    };
    if !headers::target_is_valid(&parts.method, &parts.uri) {
        return bad("the target is neither a path nor an authority");
    }
    let host = if host.bytes().any(|it| it.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    };
    let port = client.slot.port.borrow();
    let listener = match &port.service {
        PortService::Http(listeners) => listeners.get(&host),
        PortService::Tls(targets) => {
            let by = |name: &str| match targets.get(name) {
                Some(SniTarget::Http(listener, _)) => Some(listener),
                _ => None,
            };
            let (by_host, by_sni) = (by(&host), client.sni.as_deref().map(by));
            // The certificate that was shown must be the host's own (RFC 9110, 7.4: misdirected).
            if let Some(by_sni) = by_sni
                && by_sni.map(std::sync::Arc::as_ptr) != by_host.map(std::sync::Arc::as_ptr)
            {
                return Err(reply::error(
                    StatusCode::MISDIRECTED_REQUEST,
                    "this connection was made for another host",
                    false,
                ));
            }
            by_host
        }
        PortService::Tcp(_) => None,
    };
    let path = if parts.uri.path().is_empty() { "/" } else { parts.uri.path() };
    let asked = Asked { method: &parts.method, path, query: parts.uri.query(), headers: &parts.headers };
    let found = listener.and_then(|it| it.routes.matching(&host).find_map(|paths| paths.find(&asked)));
    match found {
        Some(candidate) if candidate.rule.id < table.rules.len() => Ok((candidate.rule.id, candidate.prefix_len)),
        _ => {
            let grpc = parts.headers.get(CONTENT_TYPE).is_some_and(|it| it.as_bytes().starts_with(b"application/grpc"));
            Err(reply::error(StatusCode::NOT_FOUND, "no route matches this host and path", grpc))
        }
    }
}

/// The answer to an ACME challenge of a host whose certificate is had from here (RFC 8555, 8.3). It comes before any route:
/// redirects to HTTPS and access lists are not for the authority.
pub(super) fn challenge(table: &CoreTable, parts: &Parts) -> Option<Reply> {
    let challenges = &table.live.table.challenges;
    let token = parts.uri.path().strip_prefix(CHALLENGE_PATH).filter(|_| !challenges.is_empty())?;
    let host = headers::host(&parts.uri, parts.version, &parts.headers).ok()?.to_ascii_lowercase();
    let thumbprint = challenges.get(host.strip_suffix('.').unwrap_or(&host))?;
    // Tokens are base64url (8.3), so that nothing else can be made to stand here.
    let is_token = !token.is_empty() && token.bytes().all(|it| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'_'));
    is_token.then(|| {
        let mut reply = Reply::new(ReplyBody::Full(format!("{token}.{thumbprint}").into()));
        reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        reply
    })
}

/// The client's address, seen through trusted proxies.
pub(super) fn client_address(client: &Client, parts: &Parts) -> IpAddr {
    let port = client.slot.port.borrow();
    let trusted = &port.settings.trusted_proxies;
    if trusted.is_empty() {
        return client.peer.ip();
    }
    headers::client_address(&parts.headers, client.peer.ip(), |address| trusted.contains(address))
}
