//! Keys of limits, hashes and splits, from the parts of a request.

use std::net::IpAddr;

use http::HeaderMap;
use http::header::{COOKIE, HOST};
use http::request::Parts;

use crate::api::policy::KeyPart;
use crate::table::hash::stable;
use crate::table::paths::query_value;

/// Who asks, as far as keys go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker<'a> {
    pub(super) client: IpAddr,
    pub(super) user: &'a str,
    pub(super) rule: &'a str,
}

/// The bytes of a key; parts are kept apart, so that ("a", "bc") is not ("ab", "c").
pub(super) fn key(wanted: &[KeyPart], parts: &Parts, asker: Asker<'_>) -> Vec<u8> {
    let mut key = Vec::with_capacity(if wanted.is_empty() { 0 } else { 32 });
    for part in wanted {
        append(&mut key, part, parts, asker);
        key.push(0);
    }
    key
}

/// A hash of the first part that is there; of the client's address if none is.
pub(super) fn hash(wanted: &[KeyPart], parts: &Parts, asker: Asker<'_>) -> u64 {
    let mut bytes = Vec::new();
    for part in wanted {
        append(&mut bytes, part, parts, asker);
        if !bytes.is_empty() {
            return stable(&bytes);
        }
    }
    append(&mut bytes, &KeyPart::Client, parts, asker);
    stable(&bytes)
}

fn append(key: &mut Vec<u8>, part: &KeyPart, parts: &Parts, asker: Asker<'_>) {
    match part {
        KeyPart::Client => match asker.client {
            IpAddr::V4(address) => key.extend_from_slice(&address.octets()),
            // A whole /64 is one client: that is what one gets by default (RFC 6177).
            IpAddr::V6(address) => key.extend_from_slice(&address.octets()[..8]),
        },
        KeyPart::Route => key.extend_from_slice(asker.rule.as_bytes()),
        KeyPart::Header(name) => key.extend_from_slice(parts.headers.get(name).map_or(b"", |it| it.as_bytes())),
        KeyPart::Cookie(name) => key.extend_from_slice(cookie(&parts.headers, name).unwrap_or_default().as_bytes()),
        KeyPart::Query(name) => {
            key.extend_from_slice(
                query_value(parts.uri.query().unwrap_or_default(), name).unwrap_or_default().as_bytes(),
            );
        }
        KeyPart::Path => key.extend_from_slice(parts.uri.path().as_bytes()),
        KeyPart::Host => key.extend_from_slice(parts.headers.get(HOST).map_or(b"", |it| it.as_bytes())),
        KeyPart::Method => key.extend_from_slice(parts.method.as_str().as_bytes()),
        KeyPart::User => key.extend_from_slice(asker.user.as_bytes()),
    }
}

/// The value of a cookie (RFC 6265, 4.2).
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|it| it.to_str().ok());
    lines
        .flat_map(|it| it.split(';'))
        .filter_map(|it| it.split_once('='))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http::Request;

    #[test]
    fn keys_are_made_of_their_parts() {
        let request =
            Request::get("/a?user=x%20y").header("x-id", "7").header("cookie", "a=1; id = z").body(()).unwrap();
        let (parts, ()) = request.into_parts();
        let asker = Asker { client: IpAddr::from([10, 0, 0, 1]), user: "ann", rule: "r" };
        let of = |part: KeyPart| String::from_utf8(key(&[part], &parts, asker)).unwrap();
        assert_eq!(of(KeyPart::Header("X-Id".into())), "7\0");
        assert_eq!(of(KeyPart::Cookie("id".into())), "z\0");
        assert_eq!(of(KeyPart::Query("user".into())), "x y\0");
        assert_eq!(of(KeyPart::User), "ann\0");
        assert_eq!(key(&[KeyPart::Client, KeyPart::Path], &parts, asker), b"\x0a\0\0\x01\0/a\0");
        let fallback = hash(&[KeyPart::Header("none".into())], &parts, asker);
        assert_eq!(fallback, hash(&[], &parts, asker));
        assert_ne!(fallback, hash(&[KeyPart::Header("x-id".into())], &parts, asker));
    }
}
