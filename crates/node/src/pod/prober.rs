//! Carries out probes and hooks: HTTP, TCP, gRPC, commands, sleep.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#types-of-probe>.
//!
//! Deliberately absent: following redirects (a redirect is a success).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mainstay_runtime::exec::{Exec, ExecConfig, Streams};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::pod::grpc;

/// What of a command's output or an HTTP answer is looked at and shown, as the kubelet limits it.
const OUTPUT_BYTES_MAX: usize = 10 * 1024;

/// What to do against a container.
#[derive(Debug, Clone)]
pub enum Check {
    /// A command; success is exit code 0.
    Exec(ExecConfig),
    /// A request; success is a status of 200 to 399.
    Http(HttpCheck),
    /// A connection to host and port.
    Tcp(String, u16),
    /// A gRPC health check of a service at host and port.
    Grpc(String, u16, String),
    /// Nothing, for a while.
    Sleep(Duration),
    /// What cannot be done here, and why.
    Impossible(String),
}

/// A request.
#[derive(Debug, Clone)]
pub struct HttpCheck {
    /// With TLS; the certificate is not looked at.
    pub tls: bool,
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// Headers.
    pub headers: Vec<(String, String)>,
}

impl Check {
    /// The check of a probe; `host` is the pod's address, `exec` makes a command's configuration.
    pub fn of_probe(
        probe: &core::Probe,
        container: &core::Container,
        host: &str,
        exec: impl Fn(Vec<String>) -> ExecConfig,
    ) -> Self {
        if let Some(action) = &probe.exec {
            Self::Exec(exec(action.command.clone().unwrap_or_default()))
        } else if let Some(action) = &probe.http_get {
            Self::http(action, container, host)
        } else if let Some(action) = &probe.tcp_socket {
            Self::tcp(action, container, host)
        } else if let Some(action) = &probe.grpc {
            match u16::try_from(action.port) {
                Ok(port) => Self::Grpc(host.to_owned(), port, action.service.clone().unwrap_or_default()),
                Err(_) => no_port(&IntOrString::Int(action.port)),
            }
        } else {
            Self::Impossible("missing probe handler".to_owned())
        }
    }

    /// The check of a hook.
    pub fn of_hook(
        hook: &core::LifecycleHandler,
        container: &core::Container,
        host: &str,
        exec: impl Fn(Vec<String>) -> ExecConfig,
    ) -> Self {
        if let Some(action) = &hook.exec {
            Self::Exec(exec(action.command.clone().unwrap_or_default()))
        } else if let Some(action) = &hook.http_get {
            Self::http(action, container, host)
        } else if let Some(action) = &hook.sleep {
            Self::Sleep(Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0)))
        } else if let Some(action) = &hook.tcp_socket {
            Self::tcp(action, container, host)
        } else {
            Self::Impossible("missing hook handler".to_owned())
        }
    }

    fn http(action: &core::HTTPGetAction, container: &core::Container, host: &str) -> Self {
        let Some(port) = port_of(&action.port, container) else { return no_port(&action.port) };
        let headers = action.http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone()));
        let path = action.path.as_deref().unwrap_or("/");
        Self::Http(HttpCheck {
            tls: action.scheme.as_deref() == Some("HTTPS"),
            host: action.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| host.to_owned()),
            port,
            path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
            headers: headers.collect(),
        })
    }

    fn tcp(action: &core::TCPSocketAction, container: &core::Container, host: &str) -> Self {
        let Some(port) = port_of(&action.port, container) else { return no_port(&action.port) };
        Self::Tcp(action.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| host.to_owned()), port)
    }

    /// Carries it out for at most `limit`.
    ///
    /// # Errors
    /// What went wrong, as people see it in an event.
    pub async fn run(self, limit: Duration) -> Result<(), String> {
        let (what, too_late) = match self {
            Self::Exec(config) => {
                (timeout(limit, command(&config)).await, format!("command timed out after {limit:?}"))
            }
            Self::Http(check) => {
                let url = check.url();
                let late = format!("Get \"{url}\": context deadline exceeded (no answer within {limit:?})");
                (timeout(limit, request(&check)).await, late)
            }
            Self::Tcp(host, port) => {
                let late = format!("dial tcp {host}:{port}: i/o timeout");
                (timeout(limit, async { connect(&host, port).await.map(drop) }).await, late)
            }
            Self::Grpc(host, port, service) => {
                let late = format!("timeout: failed to connect service \"{host}:{port}\" within {limit:?}");
                let checked = async { grpc::check(connect(&host, port).await?, &host, &service).await };
                (timeout(limit, checked).await, late)
            }
            Self::Sleep(time) => {
                tokio::time::sleep(time.min(limit)).await;
                (Ok(Ok(())), String::new())
            }
            Self::Impossible(why) => (Ok(Err(why)), String::new()),
        };
        what.unwrap_or(Err(too_late))
    }
}

fn no_port(port: &IntOrString) -> Check {
    let name = match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => name.clone(),
    };
    Check::Impossible(format!("the container has no port {name:?}"))
}

fn port_of(port: &IntOrString, container: &core::Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
            named.map_or_else(|| name.parse().ok(), |port| Some(port.container_port))?
        }
    };
    u16::try_from(number).ok().filter(|port| *port > 0)
}

impl HttpCheck {
    fn url(&self) -> String {
        format!("{}://{}:{}{}", if self.tls { "https" } else { "http" }, self.host, self.port, self.path)
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let stream = TcpStream::connect((host, port)).await;
    let stream = stream.map_err(|error| format!("dial tcp {host}:{port}: connect: {}", plain(&error)))?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// The system's words in the form that people know from Go programs: `connection refused`.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

async fn request(check: &HttpCheck) -> Result<(), String> {
    let url = check.url();
    let stream = connect(&check.host, check.port).await.map_err(|error| format!("Get \"{url}\": {error}"))?;
    let answered = if check.tls {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(crate::tls::unverified_client()));
        let name = rustls::pki_types::ServerName::try_from(check.host.clone()).map_err(|error| error.to_string())?;
        let stream = connector.connect(name, stream).await.map_err(|error| format!("Get \"{url}\": {error}"))?;
        exchange(check, stream).await
    } else {
        exchange(check, stream).await
    };
    let (status, body) = answered.map_err(|error| format!("Get \"{url}\": {error}"))?;
    if (200..400).contains(&status) {
        return Ok(());
    }
    tracing::debug!(url, status, body = %String::from_utf8_lossy(&body), "probe's answer");
    Err(format!("HTTP probe failed with statuscode: {status}"))
}

async fn exchange(
    check: &HttpCheck,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<(u16, Bytes), String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let mut request = http::Request::get(&check.path);
    let given = |name: &str| check.headers.iter().any(|(header, _)| header.eq_ignore_ascii_case(name));
    if !given("host") {
        request = request.header("host", format!("{}:{}", check.host, check.port));
    }
    for (name, value) in [("user-agent", "kube-probe/1.37"), ("accept", "*/*"), ("connection", "close")] {
        if !given(name) {
            request = request.header(name, value);
        }
    }
    for (name, value) in &check.headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status().as_u16();
        // Only a failure's text is of use.
        let body = if (200..400).contains(&status) {
            Bytes::new()
        } else {
            Limited::new(answer.into_body(), OUTPUT_BYTES_MAX)
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default()
        };
        Ok((status, body))
    };
    // The connection only has to be driven; an end without an answer comes out of the exchange.
    let driven = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        result = exchange => result,
        () = driven => Err("EOF".to_owned()),
    }
}

/// Runs a command and drains its output. Dropping the future kills the command.
async fn command(config: &ExecConfig) -> Result<(), String> {
    let (mut exec, streams) = Exec::spawn(config).map_err(|error| format!("cannot run the command: {error}"))?;
    let Streams::Pipes { stdout, stderr, .. } = streams else { return Err("unexpected terminal".to_owned()) };
    let (out, err, code) = tokio::join!(drain(stdout), drain(stderr), exec.wait());
    match code {
        Ok(0) => Ok(()),
        Ok(code) => {
            let mut text = String::from_utf8_lossy(&out).into_owned();
            text.push_str(&String::from_utf8_lossy(&err));
            Err(if text.trim().is_empty() { format!("command exited with {code}") } else { text.trim_end().to_owned() })
        }
        Err(error) => Err(format!("cannot wait for the command: {error}")),
    }
}

/// Reads to the end and keeps the beginning.
async fn drain(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let room = OUTPUT_BYTES_MAX - kept.len();
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
    kept
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    fn http(port: u16) -> Check {
        let probe: core::Probe = serde_json::from_value(json!({"httpGet": {"port": "web", "path": "x"}})).unwrap();
        let container =
            serde_json::from_value(json!({"name": "a", "ports": [{"name": "web", "containerPort": port}]})).unwrap();
        Check::of_probe(&probe, &container, "127.0.0.1", |_| unreachable!())
    }

    async fn answer(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 1024];
            let count = stream.read(&mut buffer).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&buffer[..count]).into_owned()
        });
        (port, server)
    }

    #[tokio::test]
    async fn http_by_status() {
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Ok(())),
            ("HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", Ok(())),
            (
                "HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno",
                Err("HTTP probe failed with statuscode: 503".to_owned()),
            ),
        ] {
            let (port, server) = answer(text).await;
            assert_eq!(http(port).run(Duration::from_secs(5)).await, expected);
            let seen = server.await.unwrap();
            assert!(seen.starts_with("GET /x HTTP/1.1\r\n") && seen.contains("kube-probe"), "{seen}");
        }
    }

    #[tokio::test]
    async fn refused_silent_and_impossible() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(Check::Tcp("127.0.0.1".to_owned(), port).run(Duration::from_secs(5)).await, Ok(()));
        let late = http(port).run(Duration::from_millis(20)).await.unwrap_err();
        assert!(late.contains("deadline exceeded"), "{late}");
        drop(listener);
        let refused = http(port).run(Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(
            refused,
            format!("Get \"http://127.0.0.1:{port}/x\": dial tcp 127.0.0.1:{port}: connect: connection refused")
        );
        let grpc: core::Probe = serde_json::from_value(json!({"grpc": {"port": 1}})).unwrap();
        let check = Check::of_probe(&grpc, &core::Container::default(), "127.0.0.1", |_| unreachable!());
        assert!(check.run(Duration::from_secs(1)).await.unwrap_err().contains("connection refused"));
    }
}
