//! What a client sees: routing, headers, bodies, tunnels, and what must not get through.
#![allow(clippy::unwrap_used, clippy::float_cmp)]

mod world;

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use world::{Conversation, Endpoint, Gateway, echo, free_port, plain, policy, reply};

#[test]
fn a_request_arrives_with_the_headers_it_should() {
    let endpoint = Endpoint::start(echo);
    let gateway = Gateway::plain(&[endpoint.address], "");
    let answer = gateway.send(
        "GET /a/b?c=d HTTP/1.1\r\nHost: Shop.Example:80\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nX-Forwarded-For: 6.6.6.6\r\nX-Kept: yes\r\n\r\n",
    );
    assert_eq!(answer.status, 200);
    let seen = answer.text();
    assert!(seen.starts_with("GET /a/b?c=d HTTP/1.1\r\n"), "{seen}");
    for (name, wanted) in [
        ("host", Some("Shop.Example:80")),
        ("x-kept", Some("yes")),
        ("x-hop", None),
        ("connection", None),
        ("x-forwarded-for", Some("127.0.0.1")),
        ("x-forwarded-proto", Some("http")),
        ("forwarded", Some("for=127.0.0.1;proto=http")),
        ("via", Some("1.1 mainstay")),
    ] {
        assert_eq!(world::header(&seen, name), wanted, "{name} in {seen}");
    }
    assert_eq!(world::header(&seen, "traceparent").map(str::len), Some(55));
}

#[test]
fn bodies_pass_in_both_directions() {
    let endpoint = Endpoint::start(echo);
    let gateway = Gateway::plain(&[endpoint.address], "");
    let mut conversation = gateway.connect();
    for (method, size) in [("POST", 0), ("PUT", 5), ("POST", 100_000), ("PUT", 300_000)] {
        let body = "x".repeat(size);
        conversation
            .write(format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n{body}").as_bytes());
        let answer = conversation.answer(false);
        assert!(answer.status == 200 && answer.text().ends_with(&format!("\r\n\r\n{body}")), "{method} {size}");
    }
    conversation.write(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(conversation.answer(true).status, 100);
    conversation.write(b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n");
    assert!(conversation.answer(false).text().ends_with("abcdef"));
    conversation.write(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    let head = conversation.answer(true);
    assert!(head.status == 200 && head.header("content-length").is_some());
}

#[test]
fn trailers_and_streams_pass_as_they_come() {
    static SEEN: AtomicBool = AtomicBool::new(false);
    let endpoint = Endpoint::start(|_, stream| {
        let out = stream.get_mut();
        out.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n5\r\nfirst\r\n")
            .unwrap();
        // The rest only comes once the test has seen the first part: a gateway that waits for it waits for ever.
        while !SEEN.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        out.write_all(b"4\r\nlast\r\n0\r\nX-Sum: 9\r\n\r\n").is_ok()
    });
    let gateway = Gateway::plain(&[endpoint.address], "");
    let mut conversation = gateway.connect();
    conversation.write(b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n");
    let mut first = vec![0; 200];
    let mut seen = Vec::new();
    while !seen.windows(5).any(|it| it == b"first") {
        let count = conversation.0.read(&mut first).unwrap();
        seen.extend_from_slice(&first[..count]);
    }
    SEEN.store(true, Ordering::Relaxed);
    while !seen.ends_with(b"\r\n0\r\nx-sum: 9\r\n\r\n") {
        let count = conversation.0.read(&mut first).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&first[..count]);
    }
}

#[test]
fn what_could_smuggle_a_request_is_refused() {
    let endpoint = Endpoint::start(echo);
    let gateway = Gateway::plain(&[endpoint.address], "");
    let refused = [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    for request in refused {
        let answer = gateway.send(request);
        assert!(matches!(answer.status, 0 | 400), "{request:?}: {answer:?}");
    }
    assert_eq!(endpoint.count(), 0, "none of them reached the endpoint");
    // Both lengths: chunked counts, the other is not passed on, and the connection ends (RFC 9112, 6.3).
    let mut conversation = gateway.connect();
    conversation.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = conversation.answer(false);
    assert!(answer.status == 400 || !answer.text().to_lowercase().contains("content-length: 5"), "{answer:?}");
    assert_eq!(conversation.answer(false).status, 0, "nothing more is answered on it");
    assert!(endpoint.count() <= 1);
    // A broken chunk ends the request; what follows is not a request.
    let mut conversation = gateway.connect();
    conversation.write(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut rest = String::new();
    let _ = conversation.0.read_to_string(&mut rest);
    assert!(!rest.contains("200 OK"), "{rest}");
}

#[test]
fn websockets_are_tunnelled() {
    let endpoint = Endpoint::start(|head, stream| {
        assert_eq!(world::header(head, "upgrade"), Some("websocket"));
        let out = stream.get_mut();
        out.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\nhello").unwrap();
        let mut byte = [0; 4];
        while stream.read_exact(&mut byte).is_ok() {
            stream.get_mut().write_all(&byte).unwrap();
        }
        false
    });
    let gateway = Gateway::plain(&[endpoint.address], "");
    let mut conversation = gateway.connect();
    conversation.write(
        b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n",
    );
    let answer = conversation.answer(true);
    assert_eq!((answer.status, answer.header("sec-websocket-accept")), (101, Some("x")));
    let mut hello = [0; 5];
    conversation.0.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    for _ in 0..3 {
        conversation.write(b"ping");
        let mut pong = [0; 4];
        conversation.0.read_exact(&mut pong).unwrap();
        assert_eq!(&pong, b"ping");
    }
}

#[test]
fn filters_act() {
    let endpoint = Endpoint::start(echo);
    let port = free_port();
    let configuration = plain(port, &[endpoint.address], "").replace(
        "  - name: all\n",
        "  - matches: [{path: {value: /old}}]\n    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]\n\
         \x20 - matches: [{path: {value: /api}, method: GET}]\n    filters:\n    - {type: URLRewrite, urlRewrite: {hostname: inner.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}\n    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: s}], remove: [X-Gone]}}\n    - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: X-Added, value: a}]}}\n    - {type: CORS, cors: {allowOrigins: ['https://*.example.com'], allowMethods: [GET], allowHeaders: [x-a]}}\n    backendRefs: [{group: mainstay.dev, kind: Backend, name: b}]\n\
         \x20 - name: all\n",
    );
    let gateway = Gateway::start(port, &configuration);
    let answer = gateway.get("/old/page?x=1");
    assert_eq!((answer.status, answer.header("location")), (301, Some("https://shop.example/new/page?x=1")));
    let answer = gateway.send("GET /api/users?x=1 HTTP/1.1\r\nHost: a\r\nX-Gone: 1\r\nOrigin: https://a.example.com\r\nConnection: close\r\n\r\n");
    let seen = answer.text();
    assert!(seen.starts_with("GET /v2/users?x=1 "), "{seen}");
    assert_eq!(
        (world::header(&seen, "host"), world::header(&seen, "x-set"), world::header(&seen, "x-gone")),
        (Some("inner.example"), Some("s"), None)
    );
    assert_eq!(answer.header("x-added"), Some("a"));
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://a.example.com"));
}

#[test]
fn limits_hold_and_say_so() {
    let endpoint = Endpoint::start(echo);
    let gateway = Gateway::plain(
        &[endpoint.address],
        &policy(
            "  rateLimits: [{name: a, algorithm: SlidingWindow, requests: 3, period: 60s, key: [{header: x-user}]}]\n",
        ),
    );
    let ask =
        |user: &str| gateway.send(&format!("GET / HTTP/1.1\r\nHost: a\r\nX-User: {user}\r\nConnection: close\r\n\r\n"));
    let statuses: Vec<u16> = (0..5).map(|_| ask("ann").status).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    let refused = ask("ann");
    assert_eq!((refused.header("ratelimit-limit"), refused.header("ratelimit-remaining")), (Some("3"), Some("0")));
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() <= 60);
    assert_eq!(ask("bob").status, 200);
}

#[test]
fn a_configuration_is_exchanged_under_an_open_connection() {
    let (one, two) = (
        Endpoint::start(|_, stream| reply(stream, "200 OK", "", b"one")),
        Endpoint::start(|_, stream| reply(stream, "200 OK", "", b"two")),
    );
    let gateway = Gateway::plain(&[one.address], "");
    let mut conversation = gateway.connect();
    let mut ask = || {
        conversation.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        conversation.answer(false).text()
    };
    assert_eq!(ask(), "one");
    gateway.reconfigure(&plain(gateway.port, &[two.address], ""));
    assert_eq!(ask(), "two");
    let before = gateway.metric("reloads_total{result=\"bad\"}");
    std::fs::write(gateway.directory.path().join("gateway.yaml"), "a: [").unwrap();
    gateway.wait(|it| it.metric("reloads_total{result=\"bad\"}") > before);
    assert_eq!(ask(), "two", "a broken configuration changes nothing");
}

#[test]
fn tcp_is_carried_with_the_clients_address() {
    let endpoint = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = endpoint.local_addr().unwrap();
    let port = free_port();
    let gateway = Gateway::start(
        port,
        &format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g}}\nspec:\n  gatewayClassName: mainstay\n  listeners: [{{name: t, port: {port}, protocol: TCP}}]\n---\n\
             apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TCPRoute\nmetadata: {{name: r}}\nspec: {{parentRefs: [{{name: g}}], rules: [{{backendRefs: [{{group: mainstay.dev, kind: Backend, name: b}}]}}]}}\n---\n\
             apiVersion: mainstay.dev/v1alpha1\nkind: Backend\nmetadata: {{name: b}}\nspec: {{endpoints: [{{address: '{address}'}}]}}\n---\n\
             apiVersion: mainstay.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p}}\nspec: {{targetRefs: [{{kind: TCPRoute, name: r}}], proxyProtocol: {{send: 1}}}}\n"
        ),
    );
    let mut client = Conversation::to(SocketAddr::from(([127, 0, 0, 1], gateway.port)));
    client.write(b"hello");
    let (mut stream, _) = endpoint.accept().unwrap();
    let from = client.0.get_ref().local_addr().unwrap();
    let wanted = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {port}\r\nhello", from.port());
    let mut seen = vec![0; wanted.len()];
    stream.read_exact(&mut seen).unwrap();
    assert_eq!(String::from_utf8(seen).unwrap(), wanted);
    stream.write_all(b"bye").unwrap();
    drop(stream);
    let mut rest = String::new();
    client.0.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "bye");
}
