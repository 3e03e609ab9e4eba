//! HTTP/1.1 as clients of every kind send it: what RFC 9112 demands, what attackers try, what slow and old clients do.
#![allow(clippy::unwrap_used)]

mod world;

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use world::{Endpoint, Gateway, echo, free_port, plain, policy, reply};

/// Sends bytes and returns all that comes back until the connection ends.
fn raw(gateway: &Gateway, bytes: &[u8]) -> String {
    let mut conversation = gateway.connect();
    conversation.write(bytes);
    let mut answer = Vec::new();
    let _ = conversation.0.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn what_can_be_read_in_two_ways_is_refused_and_ends_the_connection() {
    let endpoint = Endpoint::start(echo);
    let gateway = Gateway::plain(&[endpoint.address], "");
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for (head, body) in [
        // CL.TE and TE.CL, plain and disguised.
        ("Content-Length: 6\r\nTransfer-Encoding: chunked", "0\r\n\r\nG"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 4", "5c\r\nx"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nTransfer-encoding: x", "0\r\n\r\n"),
        ("Transfer-Encoding:\u{b}chunked", "0\r\n\r\n"),
        ("Transfer-Encoding : chunked", "0\r\n\r\n"),
        ("Transfer-Encoding: \"chunked\"", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked;q=1", "0\r\n\r\n"),
        ("Transfer-Encoding:\r\n chunked", "0\r\n\r\n"),
        ("X: y\rTransfer-Encoding: chunked", "0\r\n\r\n"),
        ("Content-Length: 0\r\nContent-Length: 5", "hello"),
        ("Content-Length: 5 5", "hello"),
        ("Content-Length: -1", ""),
        ("Content-Length: 1e1", "0123456789"),
        ("Content-Length: 5\r\n ", "hello"),
        ("Host: b", ""),
        ("X\tY: z", ""),
        ("X(Y): z", ""),
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n{body}{smuggled}");
        let answer = raw(&gateway, request.as_bytes());
        let refused = answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.1 501 ");
        assert!(refused && answer.matches("HTTP/1.1 ").count() == 1, "{head:?}: {answer}");
        assert!(answer.contains("connection: close\r\n"), "{head:?}: {answer}");
    }
    assert_eq!(endpoint.count(), 0, "nothing of it reached the endpoint");
}

#[test]
fn broken_chunks_end_the_request_and_the_connection() {
    let endpoint = Endpoint::start(|_, stream| {
        // Reads what comes, and answers nothing until it ends.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        false
    });
    let gateway = Gateway::plain(&[endpoint.address], "");
    for body in [
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5 \n hello\r\n0\r\n\r\n",
        "\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n",
        "5\nhello\n0\n\n",
        "0\r\nA B: c\r\n\r\n",
    ] {
        let request = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
        );
        let answer = raw(&gateway, request.as_bytes());
        assert!(!answer.contains(" 200 ") && answer.matches("HTTP/1.1 ").count() <= 1, "{body:?}: {answer}");
    }
}

#[test]
fn heads_have_limits_and_say_which() {
    let endpoint = Endpoint::start(echo);
    let more = "apiVersion: mainstay.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p}\nspec:\n  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g}]\n  access: {headerBytesMax: 4096, headersMax: 10, uriBytesMax: 100}\n";
    let gateway = Gateway::plain(&[endpoint.address], more);
    let ask = |target: &str, headers: &str| {
        gateway.send(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n{headers}Connection: close\r\n\r\n")).status
    };
    assert_eq!(ask("/", "X: y\r\n"), 200);
    assert_eq!(ask(&format!("/{}", "x".repeat(200)), ""), 414);
    assert_eq!(ask("/", &"X: y\r\n".repeat(20)), 431);
    assert_eq!(ask("/", &format!("X: {}\r\n", "y".repeat(5_000))), 431);
    assert_eq!(gateway.send("GET / HTTP/3.0\r\nHost: a\r\n\r\n").status, 505);
    // No end, ever: the limit ends it.
    let mut conversation = gateway.connect();
    let _ = conversation.0.get_mut().write_all(format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(1 << 20)).as_bytes());
    assert_eq!(conversation.answer(false).status, 431);
}

#[test]
fn requests_in_one_piece_are_answered_in_order() {
    let endpoint = Endpoint::start(echo);
    let gateway = Gateway::plain(&[endpoint.address], "");
    let mut conversation = gateway.connect();
    let one = |number| format!("POST /{number} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    conversation.write((0..20).map(one).collect::<Vec<_>>().concat().as_bytes());
    for number in 0..20 {
        let answer = conversation.answer(false).text();
        assert!(
            answer.starts_with(&format!("POST /{number} HTTP/1.1\r\n")) && answer.ends_with("\r\n\r\nabc"),
            "{answer}"
        );
    }
    // A byte at a time, with an empty line in front, as old clients send it.
    for byte in b"\r\nGET /slow HTTP/1.1\r\nHost: a\r\n\r\n" {
        conversation.write(&[*byte]);
    }
    assert!(conversation.answer(false).text().starts_with("GET /slow "));
}

#[test]
fn old_clients_are_served() {
    let endpoint = Endpoint::start(|_, stream| {
        stream
            .get_mut()
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
            .is_ok()
    });
    let gateway = Gateway::plain(&[endpoint.address], "");
    // No chunks for HTTP/1.0: the end of the connection is the end of the body.
    let answer = raw(&gateway, b"GET / HTTP/1.0\r\n\r\n");
    assert!(answer.ends_with("\r\n\r\nabc") && !answer.contains("chunked"), "{answer}");
    let endpoint = Endpoint::start(|_, stream| reply(stream, "200 OK", "", b"abc"));
    let gateway = Gateway::plain(&[endpoint.address], "");
    let mut conversation = gateway.connect();
    for _ in 0..2 {
        conversation.write(b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
        let answer = conversation.answer(false);
        assert_eq!((answer.text().as_str(), answer.header("connection")), ("abc", Some("keep-alive")));
    }
}

#[test]
fn targets_of_every_form_reach_their_host() {
    let endpoint = Endpoint::start(echo);
    let gateway = Gateway::plain(&[endpoint.address], "");
    let answer = gateway.send("GET http://b.example/x?y HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").text();
    assert!(answer.starts_with("GET /x?y HTTP/1.1\r\n"), "{answer}");
    assert_eq!(world::header(&answer, "host"), Some("b.example"), "the target counts (RFC 9112, 3.2.2)");
    let answer = gateway.send("OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(answer.status == 404 || answer.text().starts_with("OPTIONS * "), "{answer:?}");
    for target in ["CONNECT /", "GET a:80", "CONNECT http://a/", "GET *"] {
        assert_eq!(gateway.send(&format!("{target} HTTP/1.1\r\nHost: a\r\n\r\n")).status, 400, "{target}");
    }
}

#[test]
fn http2_is_not_smuggled_in_an_upgrade() {
    let endpoint = Endpoint::start(echo);
    let gateway = Gateway::plain(&[endpoint.address], "");
    for protocol in ["h2c", "H2C", "websocket, h2c", "HTTP/2.0", "TLS/1.0"] {
        let answer = gateway.send(&format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, close\r\nHTTP2-Settings: x\r\nUpgrade: {protocol}\r\n\r\n"
        ));
        assert_eq!((answer.status, world::header(&answer.text(), "upgrade")), (200, None), "{protocol}");
    }
}

#[test]
fn a_refusal_arrives_although_the_body_is_still_coming() {
    let endpoint = Endpoint::start(echo);
    let gateway = Gateway::plain(&[endpoint.address], &policy("  access: {bodyBytesMax: 1000}\n"));
    // More than fits into any buffer on the way.
    let body = "x".repeat(3 << 20);
    let answer = gateway.send(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(answer.status, 413);
    // A client that asks first does not send it at all.
    let mut conversation = gateway.connect();
    conversation.write(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2000\r\n\r\n");
    let answer = conversation.answer(false);
    assert_eq!((answer.status, answer.header("connection")), (413, Some("close")));
    assert_eq!(conversation.answer(false).status, 0);
}

#[test]
fn what_an_endpoint_does_not_read_does_not_disturb_the_next_request() {
    let endpoint = Endpoint::start(|_, stream| {
        reply(stream, "200 OK", "", b"early");
        let _ = stream.read_to_end(&mut Vec::new());
        false
    });
    let gateway = Gateway::plain(&[endpoint.address], "");
    let mut conversation = gateway.connect();
    for _ in 0..5 {
        conversation.write(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
        assert_eq!(conversation.answer(false).text(), "early");
        conversation.write(b"3\r\ndef\r\n0\r\n\r\n");
    }
}

#[test]
fn slow_and_silent_clients_are_cut_off_and_slow_endpoints_are_not() {
    let endpoint = Endpoint::start(|_, stream| {
        std::thread::sleep(Duration::from_millis(1_200));
        reply(stream, "200 OK", "", b"late")
    });
    let more = "apiVersion: mainstay.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p}\nspec:\n  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g}]\n  timeouts: {clientHeader: 300ms, clientIdle: 700ms}\n";
    let gateway = Gateway::plain(&[endpoint.address], more);
    let lasts = |bytes: &[u8]| {
        let mut conversation = gateway.connect();
        conversation.write(bytes);
        let begun = Instant::now();
        let mut rest = Vec::new();
        let _ = conversation.0.read_to_end(&mut rest);
        (begun.elapsed(), String::from_utf8_lossy(&rest).into_owned())
    };
    let (time, rest) = lasts(b"");
    assert!(time >= Duration::from_millis(600) && rest.is_empty(), "{time:?} {rest}");
    let (time, rest) = lasts(b"GET / HTTP/1.1\r\nHost:");
    assert!(time >= Duration::from_millis(250) && !rest.contains("200 OK"), "{time:?} {rest}");
    let (time, rest) = lasts(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc");
    assert!(time >= Duration::from_millis(600) && !rest.contains("200 OK"), "{time:?} {rest}");
    let (_, rest) = lasts(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(rest.ends_with("late"), "{rest}");
}

#[test]
fn a_client_that_leaves_takes_its_request_along() {
    use std::sync::atomic::{AtomicBool, Ordering};
    static CLOSED: AtomicBool = AtomicBool::new(false);
    let endpoint = Endpoint::start(|_, stream| {
        // The endpoint never answers: it sees the connection close when nobody waits any more.
        let mut byte = [0];
        CLOSED.store(stream.read(&mut byte).unwrap_or(0) == 0, Ordering::Relaxed);
        false
    });
    let gateway = Gateway::plain(&[endpoint.address], "");
    let mut conversation = gateway.connect();
    conversation.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    gateway.wait(|_| endpoint.count() == 1);
    conversation.0.get_ref().shutdown(Shutdown::Both).unwrap();
    gateway.wait(|_| CLOSED.load(Ordering::Relaxed));
}

#[test]
fn a_body_passes_as_fast_as_its_reader_and_no_faster() {
    let endpoint = Endpoint::start(|head, stream| {
        let size: usize = world::header(head, "x-size").unwrap().parse().unwrap();
        reply(stream, "200 OK", "", &vec![b'x'; size])
    });
    let port = free_port();
    let gateway = Gateway::start(port, &plain(port, &[endpoint.address], ""));
    let size = 64 << 20;
    let mut conversation = gateway.connect();
    conversation.write(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Size: {size}\r\n\r\n").as_bytes());
    let mut first = [0; 10];
    conversation.0.read_exact(&mut first).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let memory = std::fs::read_to_string(format!("/proc/{}/statm", gateway.id())).unwrap();
    let resident: usize = memory.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096;
    assert!(resident < 48 << 20, "{resident} bytes are resident while the client does not read");
    let mut read = first.len();
    let mut buffer = vec![0; 1 << 16];
    while read < size {
        let count = conversation.0.read(&mut buffer).unwrap();
        assert!(count > 0);
        read += count;
    }
}
