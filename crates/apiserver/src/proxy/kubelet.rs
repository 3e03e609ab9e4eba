//! `log`, `exec`, `attach` and `portforward` of pods: what the pod's node answers.
//!
//! The agent's paths are the kubelet's: `/containerLogs/{namespace}/{pod}/{container}`, and so on.

use std::sync::Arc;

use crate::limits::Seat;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use mainstay_model::status::{ApiError, FieldError, FieldErrorKind};
use serde_json::{Value, json};

use super::carry::{self, Place};
use super::{agent, object};
use crate::api::Api;
use crate::reply::{self, Body};
use crate::request::Call;
use crate::rest;

/// Of an agent's refusal.
const REFUSAL_BYTES_MAX: usize = 16 * 1024;

/// Passes a request to the pod's node.
pub(super) async fn forward(
    api: &Arc<Api>,
    call: &Call,
    mut request: Request<Body>,
    permit: Seat,
) -> Result<Response<Body>, ApiError> {
    let what = call.subresource.as_deref().unwrap_or_default();
    let pod = rest::get(api, &Call { subresource: None, ..call.clone() }).await?;
    if what == "log" {
        check_log_options(call)?;
    }
    let container = if what == "portforward" { None } else { Some(container_of(call, &pod)?) };
    let Some(node) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) else {
        // There is nothing to show yet.
        if what == "log" {
            return Ok(reply::text(StatusCode::OK, Bytes::new()));
        }
        return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", call.name())));
    };
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if matches!(what, "exec" | "attach") && matches!(phase, "Succeeded" | "Failed") {
        let verb = if what == "exec" { "exec into" } else { "attach" };
        let text = format!("cannot {verb} a container in a completed pod; current phase is {phase}");
        return Err(ApiError::bad_request(text));
    }
    let (address, port) = agent(&object(api, call, "Node", None, node).await?)?;
    let ip = address.parse().map_err(ApiError::internal)?;
    let tls = api.settings.agents.clone();
    let tls = tls.ok_or_else(|| ApiError::unavailable("this server has no credentials for nodes"))?;
    let place = Place { address: (ip, port), tls: Some(tls), who: format!("node {node} at {address}:{port}") };
    let path = match what {
        "log" => "containerLogs",
        "portforward" => "portForward",
        other => other,
    };
    let namespace = call.namespace.as_deref().unwrap_or_default();
    let container = container.map(|name| format!("/{name}")).unwrap_or_default();
    let query = request.uri().query().unwrap_or_default();
    let target = format!("/{path}/{namespace}/{}{container}?{query}", call.name());
    let outgoing = Request::builder().method(request.method().clone()).uri(target).body(reply::full(Bytes::new()));
    let upgrade = hyper::upgrade::on(&mut request);
    let outgoing = outgoing.map_err(ApiError::internal)?;
    let answer = carry::exchange(&place, outgoing, request.headers(), upgrade, permit).await?;
    if matches!(answer.status(), StatusCode::OK | StatusCode::SWITCHING_PROTOCOLS) {
        return Ok(answer);
    }
    Err(refusal(answer).await)
}

/// An agent's refusal, a sentence, as people get it.
async fn refusal(answer: Response<Body>) -> ApiError {
    let code = answer.status().as_u16();
    let text = Limited::new(carry::named(answer.into_body()), REFUSAL_BYTES_MAX)
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes);
    let text = String::from_utf8_lossy(&text.unwrap_or_default()).trim().to_owned();
    let reason = match code {
        400 => "BadRequest",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    };
    ApiError::new(code, reason, text)
}

/// The container asked for, or the pod's only one, or its default one.
fn container_of(call: &Call, pod: &Value) -> Result<String, ApiError> {
    let names = |list: &str| -> Vec<String> {
        let list = pod["spec"][list].as_array().into_iter().flatten();
        list.filter_map(|c| c["name"].as_str()).map(str::to_owned).collect()
    };
    let containers = names("containers");
    let (init, ephemeral) = (names("initContainers"), names("ephemeralContainers"));
    let wanted = call.query.get("container").filter(|name| !name.is_empty());
    match wanted {
        Some(name) if containers.iter().chain(&init).chain(&ephemeral).any(|c| c == name) => Ok(name.to_owned()),
        Some(name) => Err(ApiError::bad_request(format!("container {name} is not valid for pod {}", call.name()))),
        None if containers.len() == 1 => Ok(containers[0].clone()),
        None => {
            let further = if init.is_empty() {
                String::new()
            } else {
                format!(" or one of the init containers: [{}]", init.join(" "))
            };
            Err(ApiError::bad_request(format!(
                "a container name must be specified for pod {}, choose one of: [{}]{further}",
                call.name(),
                containers.join(" ")
            )))
        }
    }
}

/// What `PodLogOptions` may say.
fn check_log_options(call: &Call) -> Result<(), ApiError> {
    let mut causes = Vec::new();
    for (name, least) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
        let Some(text) = call.query.get(name) else { continue };
        let Ok(value) = text.parse::<i64>() else {
            return Err(ApiError::bad_request(format!(
                "unable to decode query parameter {name}: {text:?} is not a number"
            )));
        };
        if value < least {
            let why = if least == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            causes.push(FieldError::with_value(name, FieldErrorKind::Invalid, json!(value), why));
        }
    }
    if call.query.get("sinceSeconds").is_some() && call.query.get("sinceTime").is_some() {
        let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        causes.push(FieldError::new("", FieldErrorKind::Forbidden, why));
    }
    if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid("", "PodLogOptions", call.name(), causes)) }
}
