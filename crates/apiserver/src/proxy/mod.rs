//! What others answer, passed through: a pod's node (`log`, `exec`, `attach`, `portforward`), and the programs of nodes, pods
//! and services (`proxy`).
//!
//! Flow: find out whom the call is for ([`kubelet`], [`program`]) → connect → send the request on ([`carry`]) → stream the
//! answer; where both sides switch protocols, carry bytes both ways without looking at them.
//!
//! Limits: such requests at a time, time to connect, time until an answer begins. What then flows is held up by the slower
//! side, never collected.

mod carry;
mod kubelet;
mod program;

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use mainstay_model::resource::known;
use mainstay_model::status::ApiError;
use serde_json::Value;

use self::carry::Place;
use crate::api::Api;
use crate::reply::Body;
use crate::request::{Call, Query, Verb};
use crate::rest;

/// Whether somebody else answers this subresource.
pub(crate) fn answers(subresource: Option<&str>) -> bool {
    matches!(subresource, Some("log" | "exec" | "attach" | "portforward" | "proxy"))
}

/// Passes a request on.
///
/// # Errors
/// When there is nobody to pass it to, or nobody answers.
pub(crate) async fn forward(api: &Arc<Api>, call: &Call, request: Request<Body>) -> Result<Response<Body>, ApiError> {
    let permit = api.limits.enter_stream(&call.user).await?;
    match call.subresource.as_deref() {
        Some("proxy") => program::forward(api, call, request, permit).await,
        _ => kubelet::forward(api, call, request, permit).await,
    }
}

/// Another object, as the server itself sees it.
pub(crate) async fn object(
    api: &Api,
    call: &Call,
    kind: &str,
    namespace: Option<&str>,
    name: &str,
) -> Result<Value, ApiError> {
    let other = Call {
        resource: known(kind).into(),
        namespace: namespace.map(str::to_owned),
        name: Some(name.to_owned()),
        subresource: None,
        verb: Verb::Get,
        query: Query::default(),
        ..call.clone()
    };
    rest::get(api, &other).await
}

/// What a node's agent answers to a GET, if that is 200 and no longer than `bytes_max`.
///
/// # Errors
/// 503 and 504 when it does not answer.
pub(crate) async fn ask_agent(api: &Api, node: &Value, path: &str, bytes_max: usize) -> Result<Bytes, ApiError> {
    let (address, port) = agent(node)?;
    let ip = address.parse().map_err(ApiError::internal)?;
    let tls = api.settings.agents.clone();
    let tls = tls.ok_or_else(|| ApiError::unavailable("this server has no credentials for nodes"))?;
    let name = node["metadata"]["name"].as_str().unwrap_or_default();
    let place = Place { address: (ip, port), tls: Some(tls), who: format!("node {name} at {address}:{port}") };
    carry::fetch(&place, path, bytes_max).await
}

/// Where a node's agent answers: its address and port.
fn agent(node: &Value) -> Result<(String, u16), ApiError> {
    let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
    let internal = addresses.filter(|address| address["type"] == "InternalIP").find_map(|a| a["address"].as_str());
    let address = internal.ok_or_else(|| ApiError::unavailable("the node has not told its address"))?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    Ok((address.to_owned(), port.and_then(|port| u16::try_from(port).ok()).unwrap_or(10250)))
}
