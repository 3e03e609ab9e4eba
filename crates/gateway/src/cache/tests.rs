//! RFC 9111 by example.
#![allow(clippy::unwrap_used)]

use super::*;

const SETTINGS: CacheSettings = CacheSettings {
    bytes_max: 100_000,
    object_bytes_max: 10_000,
    stale_while_revalidate: Duration::ZERO,
    stale_if_error: Duration::ZERO,
    default_ttl: Duration::ZERO,
};

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::try_from(*name).unwrap(), value.parse().unwrap())).collect()
}

fn lifetime(request: &[(&str, &str)], status: u16, response: &[(&str, &str)]) -> Option<u64> {
    let status = StatusCode::from_u16(status).unwrap();
    let settings = CacheSettings { default_ttl: Duration::from_secs(7), ..SETTINGS };
    storable(&Method::GET, &headers(request), status, &headers(response), &settings, 784_111_777)
        .map(|it| it.0.as_secs())
}

#[test]
fn what_may_be_stored_and_for_how_long() {
    let cc = |value| [("cache-control", value)];
    assert_eq!(lifetime(&[], 200, &cc("max-age=60")), Some(60));
    assert_eq!(lifetime(&[], 200, &cc("max-age=60, s-maxage=\"5\"")), Some(5));
    assert_eq!(lifetime(&[], 200, &[("expires", "Sun, 06 Nov 1994 08:50:37 GMT")]), Some(60));
    assert_eq!(lifetime(&[], 200, &[("expires", "0"), ("etag", "\"a\"")]), Some(0));
    assert_eq!(lifetime(&[], 200, &[]), Some(7));
    assert_eq!(lifetime(&[], 500, &[]), None);
    assert_eq!(lifetime(&[], 500, &cc("max-age=1")), Some(1));
    assert_eq!(lifetime(&[], 200, &cc("max-age=x")), None);
    for forbidden in ["no-store", "private, max-age=60", "max-age=60, private=\"x-a, x-b\""] {
        assert_eq!(lifetime(&[], 200, &cc(forbidden)), None, "{forbidden}");
    }
    assert_eq!(lifetime(&[("authorization", "x")], 200, &cc("max-age=60")), None);
    assert_eq!(lifetime(&[("authorization", "x")], 200, &cc("public, max-age=60")), Some(60));
    assert_eq!(lifetime(&cc("no-store"), 200, &cc("max-age=60")), None);
    assert_eq!(lifetime(&[], 200, &[("vary", "*"), ("cache-control", "max-age=60")]), None);
    assert_eq!(lifetime(&[], 200, &[("set-cookie", "a=b"), ("cache-control", "max-age=60")]), None);
    assert_eq!(lifetime(&[], 206, &cc("max-age=60")), None);
}

fn fill(store: &Store, key: &str, request: &HeaderMap, response: &[(&str, &str)], body: &str, now: Instant) {
    let (headers, body) = (headers(response), Bytes::copy_from_slice(body.as_bytes()));
    store.filled(key, request, Some((StatusCode::OK, &headers, body)), now, 0);
}

fn found(store: &Store, request: &HeaderMap, now: Instant) -> &'static str {
    match store.find("a/", &Method::GET, request, now) {
        Found::Fresh(_) => "fresh",
        Found::Stale { refresh: true, .. } => "stale, refresh",
        Found::Stale { .. } => "stale",
        Found::Expired(_) => "expired",
        Found::Miss => "miss",
        Found::Wait(_) => "wait",
        Found::Pass => "pass",
    }
}

#[test]
fn one_request_fills_and_the_others_wait() {
    let (store, now, none) = (Store::new(SETTINGS), Instant::now(), HeaderMap::new());
    assert_eq!(found(&store, &none, now), "miss");
    assert_eq!(found(&store, &none, now), "wait");
    fill(&store, "a/", &none, &[("cache-control", "max-age=10")], "x", now);
    assert_eq!(found(&store, &none, now), "fresh");
    assert_eq!(found(&store, &headers(&[("range", "bytes=0-1")]), now), "pass");
    assert_eq!(found(&store, &none, now + Duration::from_secs(9)), "fresh");
    assert_eq!(found(&store, &headers(&[("cache-control", "max-age=1")]), now + Duration::from_secs(5)), "expired");
    store.filled("a/", &none, None, now, 0);
    assert_eq!(found(&store, &none, now + Duration::from_secs(11)), "expired");
    assert_eq!(found(&store, &none, now + Duration::from_secs(11)), "wait");
    store.filled("a/", &none, None, now, 0);
    assert_eq!(store.purge(|key| key.starts_with("a/")), 1);
    assert_eq!(found(&store, &none, now), "miss");
}

#[test]
fn stale_answers_while_one_refreshes() {
    let (store, now, none) = (Store::new(SETTINGS), Instant::now(), HeaderMap::new());
    fill(&store, "a/", &none, &[("cache-control", "max-age=1, stale-while-revalidate=5, stale-if-error=20")], "x", now);
    let at = |seconds| now + Duration::from_secs(seconds);
    assert_eq!(found(&store, &none, at(3)), "stale, refresh");
    assert_eq!(found(&store, &none, at(3)), "stale");
    store.filled("a/", &none, None, at(3), 0);
    let Found::Expired(stored) = store.find("a/", &Method::GET, &none, at(10)) else { unreachable!("it is expired") };
    assert!(stored.usable_on_error(at(20)) && !stored.usable_on_error(at(22)));
}

#[test]
fn variants_are_kept_apart() {
    let (store, now) = (Store::new(SETTINGS), Instant::now());
    let (english, german) = (headers(&[("accept-language", "en")]), headers(&[("accept-language", "de")]));
    let response = [("cache-control", "max-age=10"), ("vary", "Accept-Language")];
    fill(&store, "a/", &english, &response, "hello", now);
    assert_eq!(found(&store, &german, now), "miss");
    fill(&store, "a/", &german, &response, "hallo", now);
    for (request, body) in [(&english, "hello"), (&german, "hallo")] {
        let Found::Fresh(stored) = store.find("a/", &Method::GET, request, now) else { unreachable!("it is fresh") };
        assert_eq!(stored.body, body);
    }
}

#[test]
fn a_validated_response_is_renewed_and_clients_validate_too() {
    let (store, now, none) = (Store::new(SETTINGS), Instant::now(), HeaderMap::new());
    fill(&store, "a/", &none, &[("cache-control", "max-age=1"), ("etag", "W/\"1\""), ("x", "old")], "x", now);
    let later = now + Duration::from_secs(5);
    let Found::Expired(stored) = store.find("a/", &Method::GET, &none, later) else { unreachable!("it is expired") };
    assert_eq!(stored.conditions().collect::<Vec<_>>(), [(IF_NONE_MATCH, "W/\"1\"".parse().unwrap())]);
    let renewed = store.renewed("a/", &none, &stored, &headers(&[("x", "new")]), later, 0);
    assert_eq!((&renewed.headers["x"], renewed.body.as_ref()), (&HeaderValue::from_static("new"), b"x".as_slice()));
    assert_eq!(found(&store, &none, later), "fresh");
    assert!(renewed.not_modified(&headers(&[("if-none-match", "\"0\", \"1\"")])));
    assert!(!renewed.not_modified(&headers(&[("if-none-match", "\"0\"")])));
    assert!(!renewed.not_modified(&none));
}

#[test]
fn memory_is_limited() {
    let (store, now, none) = (Store::new(SETTINGS), Instant::now(), HeaderMap::new());
    for number in 0..1000 {
        fill(&store, &format!("a/{number}"), &none, &[("cache-control", "max-age=10")], &"x".repeat(1000), now);
    }
    let inner = store.inner.lock().unwrap();
    assert!(
        inner.bytes <= 100_000 && inner.entries.len() > 30,
        "{} bytes, {} entries",
        inner.bytes,
        inner.entries.len()
    );
}
