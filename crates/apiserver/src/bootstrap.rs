//! What every cluster has from its first second: the system namespaces, the `kubernetes` service, the default roles.

use std::net::Ipv4Addr;

use mainstay_model::resource::known;
use mainstay_model::status::ApiError;
use serde_json::{Value, json};

use crate::api::Api;
use crate::authz;
use crate::request::{Call, Verb};
use crate::rest;

const NAMESPACES: &[&str] = &["default", "kube-node-lease", "kube-public", "kube-system"];

/// The classes of what the cluster itself cannot do without.
const PRIORITY_CLASSES: &[(&str, i64, &str)] = &[
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];

/// Creates what is missing and brings the endpoints of the `kubernetes` service up to date. May be repeated.
///
/// # Errors
/// When the store does not take the objects.
pub async fn bootstrap(api: &Api) -> Result<(), ApiError> {
    for namespace in NAMESPACES {
        ensure(api, "Namespace", None, json!({"metadata": {"name": namespace}})).await?;
    }
    authz::reconcile_defaults(api).await?;
    for (name, value, description) in PRIORITY_CLASSES {
        let class = json!({"metadata": {"name": name}, "value": value, "description": description});
        ensure(api, "PriorityClass", None, class).await?;
    }
    let settings = &api.settings;
    let address = Ipv4Addr::from(u32::from(settings.service_range) + 1);
    let service = json!({
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "clusterIP": address,
            "ports": [{"name": "https", "port": 443, "targetPort": settings.advertise.port()}],
        },
    });
    ensure(api, "Service", Some("default"), service).await?;
    let slice = json!({
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [settings.advertise.ip()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": settings.advertise.port(), "protocol": "TCP"}],
    });
    ensure(api, "EndpointSlice", Some("default"), slice).await?;
    // The older form, for programs that read it still, which cannot name this machine to itself.
    if settings.advertise.ip().is_loopback() {
        return Ok(());
    }
    // Its slice is above, so it is not to be mirrored into another.
    let endpoints = json!({
        "metadata": {"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{
            "addresses": [{"ip": settings.advertise.ip()}],
            "ports": [{"name": "https", "port": settings.advertise.port(), "protocol": "TCP"}],
        }],
    });
    ensure(api, "Endpoints", Some("default"), endpoints).await
}

/// Creates the object, or replaces the addresses of the API server where they may have changed.
async fn ensure(api: &Api, kind: &str, namespace: Option<&str>, object: Value) -> Result<(), ApiError> {
    let mut call = Call::internal(Verb::Create, known(kind).into(), namespace);
    match rest::create(api, &call, "application/json", object.to_string().as_bytes()).await {
        Err(error) if error.reason == "AlreadyExists" && matches!(kind, "EndpointSlice" | "Endpoints") => {
            call.name = object["metadata"]["name"].as_str().map(str::to_owned);
            call.verb = Verb::Update;
            rest::update(api, &call, "application/json", object.to_string().as_bytes()).await.map(drop)
        }
        Err(error) if error.reason == "AlreadyExists" => Ok(()),
        other => other.map(drop),
    }
}
