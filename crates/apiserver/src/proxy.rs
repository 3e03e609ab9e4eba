//! `log` and `exec`: what the pod's node answers, passed through.
//!
//! Flow: find the pod and its node → open TLS to the agent, this server's certificate as credential → send the request in
//! the agent's words → for `log` stream the body; for `exec` let the agent switch protocols and then carry bytes both ways
//! without looking at them (the WebSocket runs between `kubectl` and the agent).
//!
//! The agent's paths are the kubelet's: `/containerLogs/{namespace}/{pod}/{container}`, `/exec/{namespace}/{pod}/{container}`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use mainstay_model::resource::known;
use mainstay_model::status::ApiError;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::api::Api;
use crate::reply::{self, Body};
use crate::request::Call;
use crate::rest;

/// Time to reach an agent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Headers that ask for another protocol; everything else stays between two neighbours.
const UPGRADE_HEADERS: &[HeaderName] = &[
    header::CONNECTION,
    header::UPGRADE,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_ACCEPT,
];

/// Passes a request for a pod's logs or for a command in it to the pod's node.
pub(crate) async fn forward<B>(
    api: &Arc<Api>,
    call: &Call,
    request: &mut Request<B>,
) -> Result<Response<Body>, ApiError> {
    let pod = rest::get(api, &Call { subresource: None, ..call.clone() }).await?;
    let container = container_of(call, &pod)?;
    let address = agent_of(api, call, &pod).await?;
    let what = if call.subresource.as_deref() == Some("log") { "containerLogs" } else { "exec" };
    let namespace = call.namespace.as_deref().unwrap_or_default();
    let query = request.uri().query().unwrap_or_default();
    let target = format!("/{what}/{namespace}/{}/{container}?{query}", call.name());
    let mut outgoing = Request::builder().method(request.method().clone()).uri(target).header(header::HOST, &address);
    copy_upgrade(request.headers(), outgoing.headers_mut());
    let outgoing = outgoing.body(Empty::<Bytes>::new()).map_err(ApiError::internal)?;
    let mut answer = send(api, &address, outgoing).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (head, body) = answer.into_parts();
        let mut response = Response::new(body.map_err(Into::into).boxed_unsync());
        *response.status_mut() = head.status;
        if let Some(kind) = head.headers.get(header::CONTENT_TYPE) {
            response.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
        }
        return Ok(response);
    }
    let (client, agent) = (hyper::upgrade::on(request), hyper::upgrade::on(&mut answer));
    tokio::spawn(async move {
        if let (Ok(client), Ok(agent)) = (client.await, agent.await) {
            let (mut client, mut agent) = (TokioIo::new(client), TokioIo::new(agent));
            // Either side closing ends the session; there is nobody left to tell.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut agent).await;
        }
    });
    let mut response = Response::new(reply::full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    copy_upgrade(answer.headers(), Some(response.headers_mut()));
    Ok(response)
}

fn copy_upgrade(from: &HeaderMap, to: Option<&mut HeaderMap>) {
    let Some(to) = to else { return };
    for name in UPGRADE_HEADERS {
        for value in from.get_all(name) {
            to.append(name.clone(), value.clone());
        }
    }
}

/// The container asked for, or the pod's only one, or its default one.
fn container_of(call: &Call, pod: &Value) -> Result<String, ApiError> {
    let names = |list: &str| -> Vec<String> {
        let list = pod["spec"][list].as_array().into_iter().flatten();
        list.filter_map(|c| c["name"].as_str()).map(str::to_owned).collect()
    };
    let containers = names("containers");
    let (init, ephemeral) = (names("initContainers"), names("ephemeralContainers"));
    let default = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    match call.query.get("container").or(default) {
        Some(name) if containers.iter().chain(&init).chain(&ephemeral).any(|c| c == name) => Ok(name.to_owned()),
        Some(name) => Err(ApiError::bad_request(format!("container {name} is not valid for pod {}", call.name()))),
        None if containers.len() == 1 => Ok(containers[0].clone()),
        None => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            call.name(),
            containers.join(" ")
        ))),
    }
}

/// `address:port` of the agent that runs the pod.
async fn agent_of(api: &Api, call: &Call, pod: &Value) -> Result<String, ApiError> {
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", call.name())));
    }
    let nodes = known("Node");
    let of_node = Call {
        resource: nodes.into(),
        namespace: None,
        name: Some(node.to_owned()),
        subresource: None,
        ..call.clone()
    };
    let node = rest::get(api, &of_node).await?;
    agent_address(&node)
}

/// `address:port` of a node's agent.
///
/// # Errors
/// 503 when the node has not told it yet.
pub(crate) fn agent_address(node: &Value) -> Result<String, ApiError> {
    let address = node["status"]["addresses"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|address| address["type"] == "InternalIP")
        .and_then(|address| address["address"].as_str())
        .ok_or_else(|| ApiError::unavailable("the node has not told its address"))?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap_or(10250);
    Ok(format!("{address}:{port}"))
}

/// A TLS connection to an agent, with this server's certificate as credential.
///
/// # Errors
/// 503 when the agent does not answer in time.
pub(crate) async fn connect(api: &Api, address: &str) -> Result<TlsStream<TcpStream>, ApiError> {
    let unreachable = |error: &dyn std::fmt::Display| unreachable(address, error);
    let tls =
        api.settings.agents.clone().ok_or_else(|| ApiError::unavailable("this server has no credentials for nodes"))?;
    let host = address.split(':').next().unwrap_or_default().to_owned();
    let name = ServerName::try_from(host).map_err(|error| unreachable(&error))?;
    let connect = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(tls).connect(name, stream).await
    };
    match timeout(CONNECT_TIMEOUT, connect).await {
        Ok(connected) => connected.map_err(|error| unreachable(&error)),
        Err(elapsed) => Err(unreachable(&elapsed)),
    }
}

fn unreachable(address: &str, error: &dyn std::fmt::Display) -> ApiError {
    ApiError::unavailable(format!("the pod's node at {address} does not answer: {error}"))
}

async fn send(
    api: &Api,
    address: &str,
    request: Request<Empty<Bytes>>,
) -> Result<Response<hyper::body::Incoming>, ApiError> {
    let unreachable = |error: &dyn std::fmt::Display| unreachable(address, error);
    let stream = connect(api, address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to an agent ended");
        }
    });
    sender.send_request(request).await.map_err(|error| unreachable(&error))
}
