//! Headers between two hops: what ends here, and what is added (RFC 9110, 7.6; RFC 7239; W3C Trace Context).

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::uri::Authority;
use http::{HeaderMap, Method, Uri, Version};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Headers a client must not be able to take away by naming them in `Connection`.
const PROTECTED: [HeaderName; 6] =
    [HOST, CONTENT_LENGTH, FORWARDED, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST];

/// The host a request is for, in lower case and without its port; an error says why there is none.
///
/// # Errors
/// No Host, two of them, or one that is none (RFC 9112, 3.2): the answer is 400.
pub(super) fn host<'a>(uri: &'a Uri, version: Version, headers: &'a HeaderMap) -> Result<&'a str, &'static str> {
    let mut hosts = headers.get_all(HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err("there is more than one Host");
    }
    let header = match first {
        Some(value) => Some(value.to_str().map_err(|_| "the Host is not text")?),
        None => None,
    };
    if let Some(authority) = uri.authority() {
        // The target's authority counts, and Host is only looked at for being well-formed (RFC 9112, 3.2.2).
        return Ok(authority.host());
    }
    match header {
        Some("") | None if version == Version::HTTP_10 => Ok(""),
        None => Err("there is no Host"),
        Some(text) => without_port(text),
    }
}

fn without_port(text: &str) -> Result<&str, &'static str> {
    const WRONG: &str = "the Host is not a host";
    // The common case by hand: parsing an authority costs more than the rest of routing.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    match text.bytes().position(|byte| !plain(byte)) {
        None if !text.is_empty() => Ok(text),
        Some(at) if at > 0 && text.as_bytes()[at] == b':' && text[at + 1..].bytes().all(|it| it.is_ascii_digit()) => {
            Ok(&text[..at])
        }
        _ => {
            let authority: Authority = text.parse().map_err(|_| WRONG)?;
            let end = authority.host().len();
            let port = text[end..].strip_prefix(':').unwrap_or_default();
            let good = !text.contains('@')
                && end > 0
                && port.len() + 1 >= text.len() - end
                && port.bytes().all(|it| it.is_ascii_digit());
            if good { Ok(&text[..end]) } else { Err(WRONG) }
        }
    }
}

/// Takes out what only concerned this hop. Answers the protocol the client wants to change to, if any.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let mut upgrade = None;
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::try_from(name.trim()).ok())
            .collect();
        if named.contains(&UPGRADE) {
            upgrade = headers.get(UPGRADE).cloned();
        }
        for name in named.iter().filter(|name| !PROTECTED.contains(name)) {
            // `TE: trailers` is a promise of the client that this gateway passes on (RFC 9110, 10.1.4).
            if *name != TE {
                headers.remove(name);
            }
        }
        headers.remove(CONNECTION);
    }
    let trailers = headers.get(TE).is_some_and(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    for name in [TE, UPGRADE, KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, PROXY_AUTHORIZATION, PROXY_AUTHENTICATE]
    {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    upgrade
}

/// What this hop does itself: the length and the waiting for 100.
pub(super) fn strip_framing(headers: &mut HeaderMap) {
    headers.remove(CONTENT_LENGTH);
    headers.remove(EXPECT);
    headers.remove(TRAILER);
}

/// Headers that are added to a request.
const ADDED: usize = 8;

/// What is said of a client on every request; made once per connection.
#[derive(Debug)]
pub(super) struct Forwarding {
    address: HeaderValue,
    forwarded: HeaderValue,
    proto: HeaderValue,
    trusted: bool,
}

impl Forwarding {
    /// For a client; `trusted` if what it says about its own clients is believed.
    pub(super) fn new(peer: IpAddr, tls: bool, trusted: bool) -> Self {
        let proto = if tls { "https" } else { "http" };
        let node = if peer.is_ipv6() { format!("\"[{peer}]\"") } else { peer.to_string() };
        let value = |text: String| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("unknown"));
        Self {
            address: value(peer.to_string()),
            forwarded: value(format!("for={node};proto={proto}")),
            proto: HeaderValue::from_static(proto),
            trusted,
        }
    }

    /// Adds the headers. A client that is not trusted cannot pretend to be a proxy.
    pub(super) fn add(&self, headers: &mut HeaderMap) {
        headers.reserve(ADDED);
        if self.trusted {
            append(headers, X_FORWARDED_FOR, &self.address);
            append(headers, FORWARDED, &self.forwarded);
            headers.entry(X_FORWARDED_PROTO).or_insert_with(|| self.proto.clone());
        } else {
            headers.insert(X_FORWARDED_FOR, self.address.clone());
            headers.insert(FORWARDED, self.forwarded.clone());
            headers.insert(X_FORWARDED_PROTO, self.proto.clone());
            headers.remove(X_FORWARDED_HOST);
        }
        if let Some(host) = headers.get(HOST).cloned() {
            headers.entry(X_FORWARDED_HOST).or_insert(host);
        }
        append(headers, VIA, &HeaderValue::from_static("1.1 mainstay"));
        if !headers.contains_key(TRACEPARENT) {
            headers.insert(TRACEPARENT, traceparent(fastrand::u128(1..), fastrand::u64(1..), false));
        }
    }
}

/// Adds to a comma-separated header.
fn append(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    match headers.get(&name) {
        None => drop(headers.insert(name, value.clone())),
        Some(before) => {
            let both = [before.as_bytes(), b", ", value.as_bytes()].concat();
            if let Ok(both) = HeaderValue::from_bytes(&both) {
                headers.insert(name, both);
            }
        }
    }
}

/// A trace and a span of it (W3C Trace Context, 3.2).
pub(crate) fn traceparent(trace: u128, span: u64, sampled: bool) -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    // By hand: formatting costs more than the rest of what is added to a request.
    for (at, byte) in trace.to_be_bytes().into_iter().enumerate() {
        text[3 + 2 * at] = DIGITS[usize::from(byte >> 4)];
        text[4 + 2 * at] = DIGITS[usize::from(byte & 15)];
    }
    for (at, byte) in span.to_be_bytes().into_iter().enumerate() {
        text[36 + 2 * at] = DIGITS[usize::from(byte >> 4)];
        text[37 + 2 * at] = DIGITS[usize::from(byte & 15)];
    }
    text[54] = DIGITS[usize::from(sampled)];
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static(""))
}

/// The client behind trusted proxies: the last address of `X-Forwarded-For` that is not a trusted proxy itself.
pub(super) fn client_address(headers: &HeaderMap, peer: IpAddr, trusted: impl Fn(IpAddr) -> bool) -> IpAddr {
    if !trusted(peer) {
        return peer;
    }
    let values = headers.get_all(X_FORWARDED_FOR).iter().filter_map(|it| it.to_str().ok());
    let listed: Vec<&str> = values.flat_map(|it| it.split(',')).map(str::trim).collect();
    let mut client = peer;
    for text in listed.into_iter().rev() {
        let Ok(address) = text.parse() else { break };
        client = address;
        if !trusted(address) {
            break;
        }
    }
    client
}

/// Whether a request is allowed to have this form of target.
pub(super) fn target_is_valid(method: &Method, uri: &Uri) -> bool {
    match uri.path() {
        "*" => method == Method::OPTIONS,
        "" => method == Method::CONNECT || uri.scheme().is_some(),
        path => path.starts_with('/') || method == Method::CONNECT,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_host_is_found_or_refused() {
        let find = |uri: &str, pairs: &[(&str, &str)]| {
            host(&uri.parse().unwrap(), Version::HTTP_11, &headers(pairs)).map(str::to_owned)
        };
        assert_eq!(find("/", &[("host", "a.example:80")]).unwrap(), "a.example");
        assert_eq!(find("/", &[("host", "[::1]:80")]).unwrap(), "[::1]");
        assert_eq!(find("http://b.example/", &[("host", "a.example")]).unwrap(), "b.example");
        for wrong in ["", "a b", "user@a", "a/b", "a:b", "a:80:80"] {
            assert!(find("/", &[("host", wrong)]).is_err(), "{wrong:?}");
        }
        assert!(find("/", &[]).is_err());
        assert!(find("/", &[("host", "a"), ("host", "a")]).is_err());
    }

    #[test]
    fn hop_by_hop_headers_end_here() {
        let mut all = headers(&[
            ("connection", "keep-alive, X-Secret, upgrade, host"),
            ("connection", "te"),
            ("upgrade", "websocket"),
            ("te", "gzip, trailers"),
            ("x-secret", "1"),
            ("keep-alive", "5"),
            ("proxy-authorization", "x"),
            ("host", "a"),
            ("x-kept", "1"),
        ]);
        assert_eq!(strip_hop_by_hop(&mut all), Some("websocket".parse().unwrap()));
        assert_eq!(all, headers(&[("host", "a"), ("x-kept", "1"), ("te", "trailers")]));
        let mut alone = headers(&[("upgrade", "websocket")]);
        assert_eq!(strip_hop_by_hop(&mut alone), None, "Upgrade counts only if Connection names it");
    }

    #[test]
    fn strangers_cannot_pretend_to_be_proxies() {
        let claimed =
            [("host", "a"), ("x-forwarded-for", "1.1.1.1"), ("forwarded", "for=1.1.1.1"), ("x-forwarded-host", "evil")];
        let peer = IpAddr::from([192, 0, 2, 1]);
        let mut stranger = headers(&claimed);
        Forwarding::new(peer, false, false).add(&mut stranger);
        assert_eq!(
            (&stranger["x-forwarded-for"], &stranger["x-forwarded-host"]),
            (&"192.0.2.1".parse().unwrap(), &"a".parse().unwrap())
        );
        let mut proxy = headers(&claimed);
        Forwarding::new(peer, true, true).add(&mut proxy);
        assert_eq!(proxy["x-forwarded-for"], "1.1.1.1, 192.0.2.1");
        assert_eq!(proxy["forwarded"], "for=1.1.1.1, for=192.0.2.1;proto=https");
        assert_eq!(proxy["x-forwarded-host"], "evil");
        assert_eq!(proxy["traceparent"].len(), 55);
    }

    #[test]
    fn the_client_is_the_last_that_is_no_proxy() {
        let trusted = |address: IpAddr| matches!(address, IpAddr::V4(it) if it.octets()[0] == 10);
        let of = |peer: [u8; 4], list: &str| {
            client_address(&headers(&[("x-forwarded-for", list)]), peer.into(), trusted).to_string()
        };
        assert_eq!(of([192, 0, 2, 1], "1.1.1.1"), "192.0.2.1");
        assert_eq!(of([10, 0, 0, 1], "9.9.9.9, 1.1.1.1, 10.0.0.2"), "1.1.1.1");
        assert_eq!(of([10, 0, 0, 1], "10.0.0.3"), "10.0.0.3");
        assert_eq!(of([10, 0, 0, 1], "evil, 10.0.0.3"), "10.0.0.3");
    }
}
