//! `proxy` of nodes, pods and services: their own HTTP servers through this one, as `kubectl proxy` and `kubectl get --raw` use
//! it.
//!
//! The name in the path may say more than the name: `[SCHEME:]NAME[:PORT]`; a service's port may be a name. Certificates of
//! pods and services are not looked at, as in kube-apiserver; an agent's is.
//!
//! Source: <https://kubernetes.io/docs/tasks/access-application-cluster/access-cluster-services/#manually-constructing-apiserver-proxy-urls>.
//!
//! Deliberately absent: rewriting links in the pages that come back.

use std::net::IpAddr;
use std::sync::Arc;

use crate::limits::Seat;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use mainstay_model::resource::known;
use mainstay_model::status::ApiError;
use serde_json::Value;

use super::carry::{self, Place};
use super::{agent, object};
use crate::api::Api;
use crate::limits::BODY_BYTES_MAX;
use crate::reply::{self, Body};
use crate::request::{Call, Query, Verb};
use crate::rest;

/// The label that names a slice's service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// `[SCHEME:]NAME[:PORT]`.
#[derive(Debug, PartialEq, Eq)]
struct Named<'a> {
    secure: bool,
    name: &'a str,
    port: &'a str,
}

impl<'a> Named<'a> {
    fn parse(text: &'a str) -> Result<Self, ApiError> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return Err(ApiError::bad_request(format!("invalid service request {text:?}"))),
        };
        if !matches!(scheme, "" | "http" | "https") || name.is_empty() {
            return Err(ApiError::bad_request(format!("invalid service request {text:?}")));
        }
        Ok(Self { secure: scheme == "https", name, port })
    }
}

/// Passes a request to a program.
pub(super) async fn forward(
    api: &Arc<Api>,
    call: &Call,
    mut request: Request<Body>,
    permit: Seat,
) -> Result<Response<Body>, ApiError> {
    let (path, rest) = (request.uri().path(), call.rest.as_str());
    if rest.is_empty() && matches!(*request.method(), Method::GET | Method::HEAD) {
        // Relative links of the page must stay below it.
        let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
        let mut response = Response::new(reply::full(Bytes::new()));
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        let location = HeaderValue::try_from(format!("{path}/{query}")).map_err(ApiError::internal)?;
        response.headers_mut().insert(header::LOCATION, location);
        return Ok(response);
    }
    let place = match call.resource.kind.as_str() {
        "Node" => node(api, call).await?,
        "Pod" => pod(api, call).await?,
        _ => service(api, call).await?,
    };
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let target = format!("{}{query}", if rest.is_empty() { "/" } else { rest });
    let upgrade = hyper::upgrade::on(&mut request);
    let (head, body) = request.into_parts();
    let body = Limited::new(carry::named(body), BODY_BYTES_MAX).boxed_unsync();
    let outgoing = Request::builder().method(head.method).uri(target).body(body).map_err(ApiError::internal)?;
    carry::exchange(&place, outgoing, &head.headers, upgrade, permit).await
}

fn address(text: &str, what: &str) -> Result<IpAddr, ApiError> {
    text.parse().map_err(|_| ApiError::unavailable(format!("{what} has no address yet")))
}

/// A node's agent, or another server at the node's address.
async fn node(api: &Api, call: &Call) -> Result<Place, ApiError> {
    let named = Named::parse(call.name())?;
    let node = object(api, call, "Node", None, named.name).await?;
    let (ip, agent_port) = agent(&node)?;
    let port = if named.port.is_empty() { agent_port } else { number(named.port)? };
    let tls = if port == agent_port { api.settings.agents.clone() } else { unverified(named.secure) };
    Ok(Place { address: (address(&ip, "the node")?, port), tls, who: format!("node {} at {ip}:{port}", named.name) })
}

/// A port of a pod; its first one if none is named.
async fn pod(api: &Api, call: &Call) -> Result<Place, ApiError> {
    let named = Named::parse(call.name())?;
    let pod = object(api, call, "Pod", call.namespace.as_deref(), named.name).await?;
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    let of = |port: &Value| port["containerPort"].as_u64().and_then(|port| u16::try_from(port).ok());
    let port = match named.port {
        "" => ports.find_map(of).unwrap_or(80),
        text => match ports.find(|port| port["name"] == text).and_then(of) {
            Some(port) => port,
            None => number(text)?,
        },
    };
    let ip = pod["status"]["podIP"].as_str().unwrap_or_default();
    let ip = address(ip, "the pod")?;
    Ok(Place { address: (ip, port), tls: unverified(named.secure), who: format!("pod {} at {ip}:{port}", named.name) })
}

/// A ready endpoint of a service's port; of its only port if none is named.
async fn service(api: &Api, call: &Call) -> Result<Place, ApiError> {
    let named = Named::parse(call.name())?;
    let service = object(api, call, "Service", call.namespace.as_deref(), named.name).await?;
    let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let is_it = |port: &&Value| {
        port["name"] == named.port || port["port"].as_u64().map(|p| p.to_string()).as_deref() == Some(named.port)
    };
    let port = if named.port.is_empty() && ports.len() == 1 { ports.first() } else { ports.iter().find(is_it) };
    let missing =
        || ApiError::unavailable(format!("no service port {:?} found for service {:?}", named.port, named.name));
    let port_name = port.ok_or_else(missing)?["name"].as_str().unwrap_or_default().to_owned();
    let slices = Call {
        verb: Verb::List,
        resource: known("EndpointSlice").into(),
        name: None,
        subresource: None,
        query: Query::parse(Some(&format!("labelSelector={SERVICE_NAME}%3D{}", named.name))),
        ..call.clone()
    };
    let (slices, _) = rest::select(api, &slices, &rest::Filter::of(&slices)?).await?;
    let mut ready = Vec::new();
    for slice in &slices {
        let mut numbers = slice["ports"].as_array().into_iter().flatten();
        let of_port = numbers.find(|port| port["name"].as_str().unwrap_or_default() == port_name);
        let Some(number) = of_port.and_then(|port| u16::try_from(port["port"].as_u64()?).ok()) else { continue };
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        let endpoints = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] != false);
        let addresses = endpoints.filter_map(|endpoint| endpoint["addresses"][0].as_str());
        ready.extend(addresses.map(|address| (address.to_owned(), number)));
    }
    let none = || ApiError::unavailable(format!("no endpoints available for service {:?}", named.name));
    let (ip, port) = fastrand::choice(&ready).ok_or_else(none)?;
    let who = format!("service {} at {ip}:{port}", named.name);
    Ok(Place { address: (address(ip, "the endpoint")?, *port), tls: unverified(named.secure), who })
}

fn number(text: &str) -> Result<u16, ApiError> {
    let number = text.parse().ok().filter(|port| *port > 0);
    number.ok_or_else(|| ApiError::bad_request(format!("invalid port {text:?}")))
}

fn unverified(secure: bool) -> Option<Arc<rustls::ClientConfig>> {
    secure.then(|| Arc::new(carry::unverified_client()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_may_say_more_than_the_name() {
        let named = |text| Named::parse(text).map_err(|error| error.code);
        assert_eq!(named("web"), Ok(Named { secure: false, name: "web", port: "" }));
        assert_eq!(named("web:http"), Ok(Named { secure: false, name: "web", port: "http" }));
        assert_eq!(named("https:web:443"), Ok(Named { secure: true, name: "web", port: "443" }));
        assert_eq!(named("https:web:"), Ok(Named { secure: true, name: "web", port: "" }));
        for text in ["a:b:c:d", "ftp:web:1", ":80"] {
            assert_eq!(named(text), Err(400), "{text}");
        }
    }
}
