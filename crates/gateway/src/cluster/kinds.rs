//! The kinds that a gateway reads, as one table.

use kube::core::ApiResource;

use crate::api::{GATEWAY_GROUP, MAINSTAY_GROUP};

/// A kind, with the versions it is read in, the preferred one first.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) group: &'static str,
    pub(super) versions: &'static [&'static str],
    pub(super) kind: &'static str,
    pub(super) plural: &'static str,
}

const fn row(
    group: &'static str,
    versions: &'static [&'static str],
    kind: &'static str,
    plural: &'static str,
) -> Watched {
    Watched { group, versions, kind, plural }
}

/// Every kind.
pub(super) const KINDS: &[Watched] = &[
    row("", &["v1"], "Namespace", "namespaces"),
    row("", &["v1"], "Secret", "secrets"),
    row("", &["v1"], "ConfigMap", "configmaps"),
    row("", &["v1"], "Service", "services"),
    row("discovery.k8s.io", &["v1"], "EndpointSlice", "endpointslices"),
    row("networking.k8s.io", &["v1"], "IngressClass", "ingressclasses"),
    row("networking.k8s.io", &["v1"], "Ingress", "ingresses"),
    row(GATEWAY_GROUP, &["v1", "v1beta1"], "GatewayClass", "gatewayclasses"),
    row(GATEWAY_GROUP, &["v1", "v1beta1"], "Gateway", "gateways"),
    row(GATEWAY_GROUP, &["v1", "v1beta1"], "HTTPRoute", "httproutes"),
    row(GATEWAY_GROUP, &["v1"], "GRPCRoute", "grpcroutes"),
    row(GATEWAY_GROUP, &["v1", "v1alpha3", "v1alpha2"], "TLSRoute", "tlsroutes"),
    row(GATEWAY_GROUP, &["v1", "v1alpha2"], "TCPRoute", "tcproutes"),
    row(GATEWAY_GROUP, &["v1beta1", "v1"], "ReferenceGrant", "referencegrants"),
    row(GATEWAY_GROUP, &["v1", "v1alpha3"], "BackendTLSPolicy", "backendtlspolicies"),
    row(MAINSTAY_GROUP, &["v1alpha1"], "Backend", "backends"),
    row(MAINSTAY_GROUP, &["v1alpha1"], "TrafficPolicy", "trafficpolicies"),
];

impl Watched {
    /// The resource in one of its versions.
    pub(super) fn resource(&self, version: &str) -> ApiResource {
        let api_version = if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) };
        ApiResource {
            group: self.group.to_owned(),
            version: version.to_owned(),
            api_version,
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        }
    }
}

/// The URL path of an object's status.
pub(super) fn status_path(api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Option<String> {
    let plural = KINDS.iter().find(|it| it.kind == kind)?.plural;
    let root = if api_version.contains('/') { "/apis" } else { "/api" };
    let namespace = namespace.map_or_else(String::new, |namespace| format!("/namespaces/{namespace}"));
    Some(format!("{root}/{api_version}{namespace}/{plural}/{name}/status"))
}
