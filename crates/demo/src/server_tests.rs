//! The programs over real sockets: health, control, the shop end to end, and going away while a request is in flight.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::address::Address;
use crate::endpoints::Program;
use crate::faults::Ballast;
use crate::health::Health;
use crate::identity::Identity;
use crate::shop::Front;

struct Running {
    at: SocketAddr,
    stop: oneshot::Sender<()>,
    done: JoinHandle<()>,
}

async fn start(program: Program) -> Running {
    let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let at = listener.local_addr().unwrap();
    let application = Application::new(program, Health::new(0), Identity::from_environment(), false);
    let (stop, stopped) = oneshot::channel();
    let stopping = Stopping { linger: Duration::from_millis(300), drain: Duration::from_secs(5) };
    let told = async move {
        let _ = stopped.await;
        "test"
    };
    Running { at, stop, done: tokio::spawn(serve(listener, application, stopping, told)) }
}

async fn exchange(at: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(format!("{request}\r\nhost: x\r\nconnection: close\r\n").as_bytes()).await.unwrap();
    stream.write_all(b"\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn get(at: SocketAddr, path: &str) -> String {
    exchange(at, &format!("GET {path} HTTP/1.1")).await
}

async fn post(at: SocketAddr, path: &str) -> String {
    exchange(at, &format!("POST {path} HTTP/1.1\r\ncontent-length: 0")).await
}

#[tokio::test]
async fn health_follows_its_switches() {
    let server = start(Program::Server(Ballast::default())).await;
    for path in ["/healthz", "/livez", "/readyz", "/startupz", "/whoami", "/echo"] {
        let answer = get(server.at, path).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    assert!(post(server.at, "/control?ready=false").await.contains(r#""ready":false"#));
    assert!(get(server.at, "/readyz").await.starts_with("HTTP/1.1 503"));
    assert!(get(server.at, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(post(server.at, "/control?speed=1").await.starts_with("HTTP/1.1 400"));
    assert!(post(server.at, "/memory?mib=9999").await.starts_with("HTTP/1.1 400"));
    assert!(post(server.at, "/memory?mib=1").await.contains("holding 1 MiB"));
}

#[tokio::test]
async fn a_release_gone_wrong_is_good_to_probes_alone() {
    let server = start(Program::Broken(503)).await;
    let probe = exchange(server.at, "GET /anything HTTP/1.1\r\nuser-agent: kube-probe/1.37").await;
    assert!(probe.starts_with("HTTP/1.1 200") && get(server.at, "/readyz").await.starts_with("HTTP/1.1 200"));
    for path in ["/", "/whoami"] {
        assert!(get(server.at, path).await.starts_with("HTTP/1.1 503"), "{path}");
    }
}

#[tokio::test]
async fn a_body_comes_back_as_it_went() {
    let server = start(Program::Server(Ballast::default())).await;
    let request = "POST /echo HTTP/1.1\r\ncontent-type: text/x\r\ncontent-length: 5\r\nhost: x\r\nconnection: close";
    let mut stream = TcpStream::connect(server.at).await.unwrap();
    stream.write_all(format!("{request}\r\n\r\nhello").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("content-type: text/x") && answer.ends_with("hello"), "{answer}");
}

#[tokio::test]
async fn a_request_in_flight_is_finished_before_the_end() {
    let server = start(Program::Server(Ballast::default())).await;
    post(server.at, "/control?latency_ms=700").await;
    let mut slow = TcpStream::connect(server.at).await.unwrap();
    slow.write_all(b"GET /whoami HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    // A later request answered on another connection shows that the server has seen the first.
    get(server.at, "/livez").await;
    server.stop.send(()).unwrap();
    // While lingering, new connections are answered, readiness with 503.
    while !get(server.at, "/readyz").await.starts_with("HTTP/1.1 503") {}
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("uptime_ms"), "{answer}");
    server.done.await.unwrap();
    assert!(TcpStream::connect(server.at).await.is_err());
}

#[tokio::test]
async fn the_shop_names_who_answered_and_survives_without_a_cart() {
    let (catalogue, cart) = (start(Program::Catalogue).await, start(Program::Cart).await);
    let address = |at: SocketAddr| Address::parse(&format!("http://{at}")).unwrap();
    let front = start(Program::Front(Front::new(address(catalogue.at), address(cart.at)))).await;

    let added = exchange(front.at, "POST /add?item=4 HTTP/1.1\r\ncookie: cart=1\r\ncontent-length: 0").await;
    assert!(added.contains("location: /") && added.contains("set-cookie: cart=1.4;"), "{added}");
    let page = exchange(front.at, "GET / HTTP/1.1\r\ncookie: cart=1.4").await;
    assert!(page.contains("2 pieces, €28.10"), "{page}");
    let json = get(front.at, "/?format=json").await;
    assert!(json.contains(r#""degraded":[]"#), "{json}");

    cart.stop.send(()).unwrap();
    cart.done.await.unwrap();
    let json = get(front.at, "/?format=json").await;
    assert!(json.starts_with("HTTP/1.1 200") && json.contains(r#""degraded":["cart"]"#), "{json}");
    catalogue.stop.send(()).unwrap();
    catalogue.done.await.unwrap();
    assert!(get(front.at, "/").await.starts_with("HTTP/1.1 503"));
}

#[tokio::test]
async fn a_connection_kept_alive_does_not_hold_up_the_end() {
    let server = start(Program::Catalogue).await;
    let mut idle = TcpStream::connect(server.at).await.unwrap();
    idle.write_all(b"GET /items HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 15];
    idle.read_exact(&mut first).await.unwrap();
    server.stop.send(()).unwrap();
    server.done.await.unwrap();
}
