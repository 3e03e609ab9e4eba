//! Sessions that stay with an endpoint (Gateway API, GEP-1619).
//!
//! The cookie or header holds a hash of upstream and address: nothing is remembered here, and every gateway understands it.

use std::time::Instant;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue, SET_COOKIE};

use super::keys;
use crate::table::hash;
use crate::table::settings::SessionSettings;
use crate::upstream::Group;

/// The endpoint a session belongs to.
pub(super) fn sticky(session: &SessionSettings, headers: &HeaderMap, group: &Group) -> Option<usize> {
    let value = if session.cookie {
        keys::cookie(headers, &session.name)
    } else {
        headers.get(session.name.as_str()).and_then(|it| it.to_str().ok())
    };
    let wanted = u64::from_str_radix(value?, 16).ok()?;
    let now = Instant::now();
    (0..group.hosts.len()).find(|index| session_token(group, *index) == wanted && group.hosts[*index].healthy(now))
}

fn session_token(group: &Group, index: usize) -> u64 {
    hash::stable(format!("{}|{}", group.spec.name, group.hosts[index].endpoint.address).as_bytes())
}

/// The header that begins a session with an endpoint.
pub(super) fn session_header(
    session: &SessionSettings,
    group: &Group,
    index: usize,
) -> Option<(HeaderName, HeaderValue)> {
    let token = session_token(group, index);
    if !session.cookie {
        let name = HeaderName::try_from(session.name.as_str()).ok()?;
        return Some((name, HeaderValue::try_from(format!("{token:x}")).ok()?));
    }
    let age = session.max_age.map(|it| format!("; Max-Age={}", it.as_secs())).unwrap_or_default();
    let cookie = format!("{}={token:x}; Path={}; HttpOnly; SameSite=Lax{age}", session.name, session.path);
    Some((SET_COOKIE, HeaderValue::try_from(cookie).ok()?))
}
