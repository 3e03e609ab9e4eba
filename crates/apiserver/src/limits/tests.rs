//! Limits of bodies and of requests, through the whole server where it matters.

#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{World, admin, user};
use futures::stream;
use http_body::Frame;
use http_body_util::StreamBody;
use serde_json::{Value, json};
use std::convert::Infallible;

static LARGE: [u8; BODY_BYTES_MAX] = [0; BODY_BYTES_MAX];

fn pieces(pieces: Vec<&'static [u8]>) -> impl http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static {
    StreamBody::new(stream::iter(pieces.into_iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece))))))
}

#[tokio::test]
async fn bodies_are_read_whole_and_not_too_large() {
    let (limits, user) = (Limits::default(), User::new("a", &[]));
    assert_eq!(limits.read_body(pieces(vec![b"one", b"two"]), &user).await.unwrap(), "onetwo");
    assert_eq!(limits.read_body(pieces(vec![&LARGE, b"x"]), &user).await.unwrap_err().code, 413);
}

#[tokio::test]
async fn a_body_that_never_ends_is_cut() {
    let millis = Duration::from_millis;
    let limits = Limits { piece_timeout: millis(100), body_timeout: millis(150), ..Limits::default() };
    let user = User::new("a", &[]);
    let silent = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
    assert_eq!(limits.read_body(silent, &user).await.unwrap_err().code, 408);
    // One byte now and then is no way to hold a place, either.
    let dripping = stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x"))), ()))
    });
    assert_eq!(limits.read_body(StreamBody::new(dripping), &user).await.unwrap_err().code, 408);
}

async fn send(world: &World, method: &str, path: &str, media_type: &str, body: &str) -> crate::testing::Answer {
    world.call_raw(admin(), method, path, body, &[("content-type", media_type)]).await
}

#[tokio::test]
async fn nesting_without_end_is_refused() {
    let world = World::new().await;
    let path = "/api/v1/namespaces/default/configmaps";
    for body in ["[".repeat(1_000_000), "{\"a\":".repeat(400_000)] {
        assert_eq!(send(&world, "POST", path, "application/json", &body).await.code, 400);
        assert_eq!(send(&world, "PATCH", path, "application/yaml", &body).await.code, 405);
    }
    for body in ["[".repeat(100_000), "- ".repeat(100_000), "a: {".repeat(100_000)] {
        assert_eq!(send(&world, "POST", path, "application/yaml", &body).await.code, 400);
    }
    // Two patches, each within bounds, would add up.
    let revision = json!({"metadata": {"name": "r"}, "revision": 1, "data": {}});
    world.post("/apis/apps/v1/namespaces/default/controllerrevisions", revision).await;
    let mut deep = json!(1);
    for _ in 0..110 {
        deep = json!({"a": deep});
    }
    let path = "/apis/apps/v1/namespaces/default/controllerrevisions/r";
    let refused = world.call(admin(), "PATCH", path, &json!({"data": deep})).await;
    assert!((400..500).contains(&refused.code), "{} {}", refused.code, refused.body);
    world.get(path).await;
}

#[tokio::test]
async fn a_greedy_client_does_not_starve_another() {
    let world = Arc::new(World::new().await);
    world.bind("default", "edit", "greedy").await;
    world.bind("default", "view", "modest").await;
    let flood = (0..2_000).map(|n| {
        let world = world.clone();
        let body = json!({"metadata": {"name": format!("m{n}")}, "data": {"a": "x".repeat(1000)}});
        tokio::spawn(async move {
            world.call(user("greedy"), "POST", "/api/v1/namespaces/default/configmaps", &body).await.code
        })
    });
    let flood: Vec<_> = flood.collect();
    let mut worst = Duration::ZERO;
    while !flood.iter().all(tokio::task::JoinHandle::is_finished) {
        let since = std::time::Instant::now();
        world.call(user("modest"), "GET", "/api/v1/namespaces/default/pods", &Value::Null).await.ok();
        worst = worst.max(since.elapsed());
    }
    let codes = futures::future::join_all(flood).await;
    let count = |code: u16| codes.iter().filter(|answer| *answer.as_ref().unwrap() == code).count();
    assert_eq!(count(201) + count(429), 2_000);
    assert!(count(201) >= 400, "{}", count(201));
    assert!(worst < Duration::from_secs(10), "{worst:?}");
}

#[tokio::test]
async fn metrics_count_what_happens() {
    let world = World::new().await;
    world.get("/api/v1/namespaces/default/pods").await;
    let answer = world.call(admin(), "GET", "/metrics", &Value::Null).await;
    assert!(answer.headers["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let text = answer.body.as_str().unwrap();
    for line in [
        "apiserver_request_total{component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"pods\",scope=\"namespace\",subresource=\"\",verb=\"LIST\",version=\"v1\",code=\"200\"} 1",
        "apiserver_storage_objects{resource=\"namespaces\"} 4",
        "apiserver_current_inflight_requests{request_kind=\"mutating\"} 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
    }
    assert!(text.contains("etcd_request_duration_seconds_count{operation=\"create\"}"));
}
