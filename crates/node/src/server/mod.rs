//! The agent's HTTPS server, to which the API server passes on `kubectl logs`, `exec`, `attach` and `port-forward`.
//!
//! Paths are the kubelet's: `/containerLogs/…`, `/exec/…`, `/attach/…`, `/portForward/…`, `/pods`, `/healthz`. Every client needs a certificate of the
//! cluster's authority.
//!
//! Limits: connections, time for the handshake and for request heads, size of heads.

mod attach;
mod exec;
pub mod log_file;
mod logs;
mod port_forward;
mod streams;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;

use crate::config::AGENT_PORT;
use crate::context::Context;
use crate::pod::dir::PodDir;
use crate::stats;
use crate::tls::{self, TlsError};

/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// For the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Of a request's head.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// The media type of Prometheus' text format.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Certificates.
    #[error("TLS of the agent's server")]
    Tls(#[from] TlsError),
    /// The port.
    #[error("cannot listen on {address}; does another agent of this node run?")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// An answer to a request.
pub struct Answer(Response<Body>);

impl Answer {
    fn text(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Self {
        let mut response = Response::new(Full::new(text.into()).boxed_unsync());
        *response.status_mut() = status;
        response.headers_mut().insert("content-type", http::HeaderValue::from_static(kind));
        Self(response)
    }

    /// Pieces as they come.
    fn stream(pieces: mpsc::Receiver<Bytes>) -> Self {
        let frames = futures::stream::unfold(pieces, |mut pieces| async {
            pieces.recv().await.map(|piece| (Ok(Frame::data(piece)), pieces))
        });
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        response.headers_mut().insert("content-type", http::HeaderValue::from_static("text/plain"));
        Self(response)
    }

    /// From now on this connection speaks another protocol.
    fn switch(headers: &[(http::HeaderName, http::HeaderValue)]) -> Self {
        let mut response = Response::new(Full::default().boxed_unsync());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().extend(headers.iter().cloned());
        Self(response)
    }
}

/// A running container that a request is about.
struct Target {
    dir: PodDir,
    container_id: String,
    /// It has a standard input.
    stdin: bool,
}

impl Target {
    fn find(context: &Context, namespace: &str, pod: &str, container: &str) -> Result<Self, Refusal> {
        let view = context.view(namespace, pod).ok_or_else(|| Refusal::no_pod(pod))?;
        let state = view.containers.get(container).ok_or_else(|| Refusal::no_container(pod, container))?;
        let Some(container_id) = state.running.clone() else {
            return Err(Refusal::bad(format!("container \"{container}\" in pod \"{pod}\" is not running")));
        };
        let dir = PodDir::new(&context.config.data_dir, view.pod.metadata.uid.as_deref().unwrap_or_default());
        Ok(Self { dir, container_id, stdin: state.stdin })
    }
}

/// Why a request is not served: a status and a sentence, as the kubelet answers.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    fn bad(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }

    fn forbidden(message: impl Into<String>) -> Self {
        Self { status: StatusCode::FORBIDDEN, message: message.into() }
    }

    fn no_pod(pod: &str) -> Self {
        Self { status: StatusCode::NOT_FOUND, message: format!("pod \"{pod}\" does not exist on this node") }
    }

    fn no_container(pod: &str, container: &str) -> Self {
        Self::bad(format!("container {container} is not valid for pod {pod}"))
    }
}

/// Listens on the node's address. Certificates are read once, here.
pub async fn bind(context: &Context) -> Result<(TcpListener, TlsAcceptor), ServerError> {
    let acceptor = TlsAcceptor::from(Arc::new(tls::server(&context.config.tls)?));
    let address = SocketAddr::from((context.config.address, AGENT_PORT));
    let listener = TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })?;
    Ok((listener, acceptor))
}

/// Serves for ever.
pub async fn serve(context: Arc<Context>, listener: TcpListener, acceptor: TlsAcceptor) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: wait for some to become free.
                tracing::warn!(%error, "agent's server cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (context, acceptor) = (context.clone(), acceptor.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await else { return };
            let service = hyper::service::service_fn(move |request| handle(context.clone(), request));
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
            let _ = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        });
    }
}

async fn handle(context: Arc<Context>, mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let result = match (request.method(), parts.as_slice()) {
        (&Method::GET, ["healthz"]) => Ok(Answer::text(StatusCode::OK, "text/plain", "ok")),
        (&Method::GET, ["pods"]) => Ok(pods(&context)),
        (&Method::GET, ["stats", "summary"]) => {
            Ok(Answer::text(StatusCode::OK, "application/json", stats::summary(&context).to_string()))
        }
        (&Method::GET, ["metrics"]) => Ok(Answer::text(StatusCode::OK, PROMETHEUS, stats::agent_metrics(&context))),
        (&Method::GET, ["metrics", "resource"]) => {
            Ok(Answer::text(StatusCode::OK, PROMETHEUS, stats::resource_metrics(&context)))
        }
        (&Method::GET, ["containerLogs", namespace, pod, container]) => {
            let query = request.uri().query().unwrap_or_default();
            logs::serve(&context, namespace, pod, container, query).await
        }
        (&Method::GET | &Method::POST, ["exec", namespace, pod, container]) => {
            exec::serve(&context, (namespace, pod, container), &mut request)
        }
        (&Method::GET | &Method::POST, ["attach", namespace, pod, container]) => {
            attach::serve(&context, (namespace, pod, container), &mut request)
        }
        (&Method::GET | &Method::POST, ["portForward", namespace, pod]) => {
            port_forward::serve(&context, (namespace, pod), &mut request)
        }
        _ => Err(Refusal { status: StatusCode::NOT_FOUND, message: "404 page not found".to_owned() }),
    };
    let answer = result.unwrap_or_else(|refusal| Answer::text(refusal.status, "text/plain", refusal.message));
    Ok(answer.0)
}

fn pods(context: &Context) -> Answer {
    let items: Vec<_> = context.with_views(|views| views.values().map(|view| view.pod.clone()).collect());
    let items: Vec<_> = items.iter().map(|pod| &**pod).collect();
    let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
    Answer::text(StatusCode::OK, "application/json", list.to_string())
}
