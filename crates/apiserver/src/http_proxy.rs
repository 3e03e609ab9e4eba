//! The `proxy` subresource: an HTTP request passed on to a pod, to a ready endpoint of a service, or to a node's agent.
//!
//! Flow: read the name (`[scheme:]name[:port]`) → find the address → connect → send the request with the rest of the
//! path → stream the answer back. A request to switch protocols (WebSocket) is passed on as one, and from then on bytes
//! are carried both ways.
//!
//! Guarantees: the caller's credentials stay here; connecting has a time limit. Deliberately absent: links inside HTML
//! answers are not rewritten.
//!
//! Source: <https://kubernetes.io/docs/tasks/access-application-cluster/access-cluster-services/>.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use mainstay_model::resource::known;
use mainstay_model::status::ApiError;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::api::Api;
use crate::reply::{self, Body, BodyError};
use crate::request::{Call, Query, Verb};
use crate::{proxy, rest};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Headers that are between two neighbours (RFC 9110 section 7.6.1), and the caller's credentials.
const STAY_HERE: &[HeaderName] = &[
    header::AUTHORIZATION,
    header::CONNECTION,
    header::HOST,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Where a request goes.
struct Destination {
    /// `address:port`.
    address: String,
    kind: Kind,
}

#[derive(PartialEq, Eq)]
enum Kind {
    Plain,
    /// An agent, which knows this server by its certificate.
    Agent,
}

/// A name with what may stand around it.
struct Target<'a> {
    name: &'a str,
    port: &'a str,
}

impl<'a> Target<'a> {
    fn read(text: &'a str) -> Result<Self, ApiError> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return Err(ApiError::bad_request(format!("invalid proxy target {text:?}: use [scheme:]name[:port]"))),
        };
        if !matches!(scheme, "" | "http") {
            return Err(ApiError::bad_request(format!(
                "proxying to {scheme:?} is not supported: the certificates of pods and services are not known here"
            )));
        }
        Ok(Self { name, port })
    }
}

/// Passes the request on.
///
/// # Errors
/// 404 and 400 for a target that is not there or has no such port, 503 when it does not answer.
pub(crate) async fn forward<B>(api: &Arc<Api>, call: &Call, mut request: Request<B>) -> Result<Response<Body>, ApiError>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let target = Target::read(call.name())?;
    let object = Call { verb: Verb::Get, name: Some(target.name.to_owned()), subresource: None, ..call.clone() };
    let destination = match call.resource.kind.as_str() {
        "Pod" => pod(&target, &rest::get(api, &object).await?)?,
        "Service" => service(api, &object, &target).await?,
        _ => node(&rest::get(api, &object).await?)?,
    };
    let upgrade = request.headers().contains_key(header::UPGRADE);
    let client = upgrade.then(|| hyper::upgrade::on(&mut request));
    let outgoing = outgoing(call, &destination, request, upgrade)?;
    let mut answer = send(api, &destination, outgoing).await?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = client
    {
        let there = hyper::upgrade::on(&mut answer);
        tokio::spawn(async move {
            if let (Ok(client), Ok(there)) = (client.await, there.await) {
                let (mut client, mut there) = (TokioIo::new(client), TokioIo::new(there));
                // Either side closing ends the session; there is nobody left to tell.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut there).await;
            }
        });
        let mut response = Response::new(reply::full(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = answer.headers().clone();
        return Ok(response);
    }
    let (head, body) = answer.into_parts();
    let mut response = Response::new(body.map_err(Into::into).boxed_unsync());
    *response.status_mut() = head.status;
    copy(&head.headers, response.headers_mut());
    Ok(response)
}

fn copy(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from.iter().filter(|(name, _)| !STAY_HERE.contains(name)) {
        to.append(name.clone(), value.clone());
    }
}

fn outgoing<B>(
    call: &Call,
    destination: &Destination,
    request: Request<B>,
    upgrade: bool,
) -> Result<Request<Body>, ApiError>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let (head, body) = request.into_parts();
    let query = head.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    // A trailing slash matters to programs, and is lost when a path is split.
    let slash = if !call.rest.is_empty() && head.uri.path().ends_with('/') { "/" } else { "" };
    let mut outgoing = Request::builder()
        .method(head.method)
        .uri(format!("/{}{slash}{query}", call.rest))
        .header(header::HOST, &destination.address)
        .body(body.map_err(Into::into).boxed_unsync())
        .map_err(|error| ApiError::bad_request(format!("this request cannot be passed on: {error}")))?;
    copy(&head.headers, outgoing.headers_mut());
    if upgrade {
        for name in [header::CONNECTION, header::UPGRADE] {
            if let Some(value) = head.headers.get(&name) {
                outgoing.headers_mut().insert(name, value.clone());
            }
        }
    }
    Ok(outgoing)
}

fn pod(target: &Target<'_>, pod: &Value) -> Result<Destination, ApiError> {
    let address = pod["status"]["podIP"].as_str().unwrap_or_default();
    if address.is_empty() {
        return Err(ApiError::unavailable(format!("pod {} has no address yet", target.name)));
    }
    let ports = || pod["spec"]["containers"].as_array().into_iter().flatten().filter_map(|c| c["ports"].as_array());
    let named = |name: &str| ports().flatten().find(|port| port["name"] == name);
    let port = match target.port {
        "" => ports().flatten().next().and_then(|port| port["containerPort"].as_u64()).unwrap_or(80),
        port => port
            .parse()
            .ok()
            .or_else(|| named(port)?["containerPort"].as_u64())
            .ok_or_else(|| ApiError::bad_request(format!("pod {} has no port {port:?}", target.name)))?,
    };
    Ok(Destination { address: format!("{address}:{port}"), kind: Kind::Plain })
}

/// A ready endpoint of the service, any of them.
async fn service(api: &Api, call: &Call, target: &Target<'_>) -> Result<Destination, ApiError> {
    let service = rest::get(api, call).await?;
    let ports: Vec<&Value> = service["spec"]["ports"].as_array().into_iter().flatten().collect();
    let number = target.port.parse::<u64>().ok();
    let wanted = |port: &&&Value| port["name"] == target.port || (number.is_some() && number == port["port"].as_u64());
    let port = match target.port {
        "" if ports.len() == 1 => Some(ports[0]),
        _ => ports.iter().find(wanted).copied(),
    };
    let port = port.ok_or_else(|| {
        let why = format!("no service port {:?} found for service {:?}", target.port, target.name);
        ApiError::unavailable(why)
    })?;
    let mut slices = Call::internal(Verb::List, known("EndpointSlice").into(), call.namespace.as_deref());
    slices.query = Query::parse(Some(&format!("labelSelector=kubernetes.io/service-name={}", target.name)));
    let (slices, _) = rest::select(api, &slices, &rest::Filter::of(&slices)?).await?;
    let name = port["name"].as_str().unwrap_or_default();
    let ready: Vec<String> = slices.iter().flat_map(|slice| ready_endpoints(slice, name)).collect();
    let address = (!ready.is_empty()).then(|| ready[fastrand::usize(..ready.len())].clone());
    let address = address
        .ok_or_else(|| ApiError::unavailable(format!("no endpoints available for service {:?}", target.name)))?;
    Ok(Destination { address, kind: Kind::Plain })
}

fn ready_endpoints(slice: &Value, port: &str) -> Vec<String> {
    let ports = slice["ports"].as_array().into_iter().flatten();
    let port = ports.clone().find(|p| p["name"].as_str().unwrap_or_default() == port).and_then(|p| p["port"].as_u64());
    let Some(port) = port else { return Vec::new() };
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    endpoints
        .filter(|endpoint| endpoint["conditions"]["ready"] != false)
        .filter_map(|endpoint| endpoint["addresses"][0].as_str())
        .map(|address| format!("{address}:{port}"))
        .collect()
}

fn node(node: &Value) -> Result<Destination, ApiError> {
    Ok(Destination { address: proxy::agent_address(node)?, kind: Kind::Agent })
}

async fn send(
    api: &Api,
    destination: &Destination,
    request: Request<Body>,
) -> Result<Response<hyper::body::Incoming>, ApiError> {
    if destination.kind == Kind::Agent {
        let stream = proxy::connect(api, &destination.address).await?;
        return exchange(stream, &destination.address, request).await;
    }
    let stream = match timeout(CONNECT_TIMEOUT, TcpStream::connect(&destination.address)).await {
        Ok(connected) => connected.map_err(|error| unreachable(&destination.address, &error))?,
        Err(elapsed) => return Err(unreachable(&destination.address, &elapsed)),
    };
    exchange(stream, &destination.address, request).await
}

fn unreachable(address: &str, error: &dyn std::fmt::Display) -> ApiError {
    ApiError::unavailable(format!("error trying to reach service: {address}: {error}"))
}

async fn exchange<S>(
    stream: S,
    address: &str,
    request: Request<Body>,
) -> Result<Response<hyper::body::Incoming>, ApiError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unreachable(address, &error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "proxied connection ended");
        }
    });
    sender.send_request(request).await.map_err(|error| unreachable(address, &error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn names_with_scheme_and_port() {
        let target = Target::read("http:web:metrics").unwrap();
        assert_eq!((target.name, target.port), ("web", "metrics"));
        assert_eq!(Target::read("web").unwrap().name, "web");
        assert!(Target::read("https:web:443").is_err());
        assert!(Target::read("a:b:c:d").is_err());
    }

    #[test]
    fn ports_by_name_and_number() {
        let object = json!({"status": {"podIP": "10.0.0.5"},
            "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]}});
        let of = |name: &str| pod(&Target::read(name).unwrap(), &object).map(|it| it.address).map_err(|e| e.code);
        assert_eq!(of("web").unwrap(), "10.0.0.5:8080");
        assert_eq!(of("web:http").unwrap(), "10.0.0.5:8080");
        assert_eq!(of("web:9").unwrap(), "10.0.0.5:9");
        assert_eq!(of("web:none").unwrap_err(), 400);
    }

    #[test]
    fn only_ready_endpoints_of_the_port() {
        let slice = json!({"ports": [{"name": "http", "port": 80}], "endpoints": [
            {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}}]});
        assert_eq!(ready_endpoints(&slice, "http"), ["10.0.0.1:80"]);
        assert!(ready_endpoints(&slice, "other").is_empty());
    }
}
