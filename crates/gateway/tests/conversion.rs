//! JSON in front of gRPC, and traces for a collector: with a gRPC server and a collector that answer over real sockets.
#![allow(clippy::unwrap_used)]

mod world;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use world::{Endpoint, Gateway, free_port, plain, policy, read_body, reply};

/// `message Echo { string text = 1; }  service Echoes { rpc Say(Echo) returns (Echo); }`, package `test`, as protoc writes it.
fn descriptors() -> Vec<u8> {
    let field = |number: u8, value: &[u8]| [&[number << 3 | 2, value.len() as u8], value].concat();
    let text = [field(1, b"text"), vec![3 << 3, 1, 4 << 3, 1, 5 << 3, 9]].concat();
    let echo = [field(1, b"Echo"), field(2, &text)].concat();
    let say = [field(1, b"Say"), field(2, b".test.Echo"), field(3, b".test.Echo")].concat();
    let service = [field(1, b"Echoes"), field(2, &say)].concat();
    let file =
        [field(1, b"t.proto"), field(2, b"test"), field(4, &echo), field(6, &service), field(12, b"proto3")].concat();
    field(1, &file)
}

/// A gRPC server: says back what it is told; on `fail` the status NOT_FOUND.
fn grpc_server() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let connection =
                    http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service_fn(say));
                tokio::spawn(connection);
            }
        });
    });
    address
}

async fn say(
    request: Request<Incoming>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    assert_eq!(request.headers()["content-type"], "application/grpc");
    assert_eq!(request.uri().path(), "/test.Echoes/Say");
    let message = request.into_body().collect().await.unwrap().to_bytes();
    let fails = message.ends_with(b"fail");
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", if fails { "5" } else { "0" }.parse().unwrap());
    trailers.insert("grpc-message", "not%20here".parse().unwrap());
    let data = (!fails).then(|| Ok(Frame::data(message)));
    let frames = data.into_iter().chain([Ok(Frame::trailers(trailers))]);
    let body = StreamBody::new(futures::stream::iter(frames));
    Ok(Response::builder().header("content-type", "application/grpc").header("x-kept", "1").body(body).unwrap())
}

#[test]
fn json_clients_are_answered_by_grpc() {
    let server = grpc_server();
    let data = base64::engine::general_purpose::STANDARD.encode(descriptors());
    let more = policy("  conversion: {grpcJson: {descriptorsRef: {name: methods}}}\n")
        + &format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: methods}}\nbinaryData: {{descriptors: {data}}}\n"
        );
    let port = free_port();
    let configuration = plain(port, &[server], &more).replace("  endpoints:", "  protocol: h2c\n  endpoints:");
    let gateway = Gateway::start(port, &configuration);
    let ask = |body: &str| {
        gateway.send(&format!(
            "POST /test.Echoes/Say HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    let answer = ask(r#"{"text": "hello"}"#);
    assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"text":"hello"}"#), "{}", gateway.log());
    assert_eq!((answer.header("content-type"), answer.header("x-kept")), (Some("application/json"), Some("1")));
    assert_eq!(answer.header("grpc-status"), None);
    let answer = ask(r#"{"text": "fail"}"#);
    assert_eq!((answer.status, answer.text().as_str()), (404, r#"{"code":5,"message":"not here"}"#));
    let answer = ask(r#"{"nothing": 1}"#);
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("nothing"), "{}", answer.text());
}

#[test]
fn sampled_requests_are_traced() {
    static SPANS: Mutex<Vec<String>> = Mutex::new(Vec::new());
    static PARENTS: Mutex<Vec<String>> = Mutex::new(Vec::new());
    static REFUSED: AtomicU32 = AtomicU32::new(0);
    let collector = Endpoint::start(|head, stream| {
        let body = String::from_utf8(read_body(head, stream)).unwrap();
        assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
        // One refusal: those spans are lost, the next are not.
        if REFUSED.fetch_add(1, Ordering::Relaxed) == 0 {
            return reply(stream, "503 Service Unavailable", "", b"");
        }
        SPANS.lock().unwrap().push(body);
        reply(stream, "200 OK", "", b"{}")
    });
    let endpoint = Endpoint::start(|head, stream| {
        PARENTS.lock().unwrap().push(world::header(head, "traceparent").unwrap().to_owned());
        reply(stream, "200 OK", "", b"ok")
    });
    let port = free_port();
    let collector = format!("http://{}", collector.address);
    let gateway = Gateway::start_with(
        port,
        &plain(port, &[endpoint.address], ""),
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector)],
    );
    assert_eq!(gateway.get("/lost").status, 200);
    gateway.wait(|it| it.metric("spans_dropped_total") > 0.0);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    gateway.send(&format!(
        "GET /kept HTTP/1.1\r\nHost: a\r\nConnection: close\r\ntraceparent: 00-{trace}-b7ad6b7169203331-01\r\n\r\n"
    ));
    gateway.wait(|_| !SPANS.lock().unwrap().is_empty());
    let sent: serde_json::Value = serde_json::from_str(&SPANS.lock().unwrap()[0]).unwrap();
    let span = &sent["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
    assert_eq!((span["traceId"].as_str(), span["parentSpanId"].as_str()), (Some(trace), Some("b7ad6b7169203331")));
    let parent = PARENTS.lock().unwrap().last().unwrap().clone();
    assert_eq!(parent, format!("00-{trace}-{}-01", span["spanId"].as_str().unwrap()));
    assert!(span["attributes"].to_string().contains("/kept"), "{span}");
}
