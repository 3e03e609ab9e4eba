//! Core kinds that routes refer to: Service, EndpointSlice, Secret, ConfigMap, Namespace, Ingress; and Backend.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::Meta;
use super::route::ObjectRef;

/// A Service's spec; what is not routing is not read.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceSpec {
    pub(crate) ports: Vec<ServicePort>,
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) external_name: Option<String>,
    pub(crate) session_affinity: Option<String>,
}

/// One port of a Service.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServicePort {
    pub(crate) name: Option<String>,
    pub(crate) port: u16,
    pub(crate) app_protocol: Option<String>,
}

/// An EndpointSlice.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointSlice {
    pub(crate) metadata: Meta,
    #[serde(default)]
    pub(crate) endpoints: Vec<SliceEndpoint>,
    #[serde(default)]
    pub(crate) ports: Vec<SlicePort>,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SliceEndpoint {
    pub(crate) addresses: Vec<String>,
    pub(crate) conditions: SliceConditions,
    pub(crate) zone: Option<String>,
}

/// What is known of an endpoint; absent means true for `ready` (EndpointSlice API reference).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SliceConditions {
    pub(crate) ready: Option<bool>,
    pub(crate) serving: Option<bool>,
    pub(crate) terminating: Option<bool>,
}

/// One port of a slice, matched to the Service's port by its name.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SlicePort {
    pub(crate) name: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) app_protocol: Option<String>,
}

/// A Secret or ConfigMap: named bytes. `data` of a Secret is base64.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Bag {
    pub(crate) metadata: Meta,
    #[serde(default)]
    pub(crate) data: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) string_data: BTreeMap<String, String>,
    /// Of a ConfigMap: base64.
    #[serde(default)]
    pub(crate) binary_data: BTreeMap<String, String>,
}

/// An object of which only the metadata counts: a Namespace.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Named {
    pub(crate) metadata: Meta,
}

/// `networking.k8s.io/v1` IngressClass: whose Ingresses are ours.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct IngressClassSpec {
    pub(crate) controller: String,
}

/// `networking.k8s.io/v1` Ingress.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct IngressSpec {
    pub(crate) ingress_class_name: Option<String>,
    pub(crate) default_backend: Option<IngressBackend>,
    pub(crate) tls: Vec<IngressTls>,
    pub(crate) rules: Vec<IngressRule>,
}

/// Hosts served with a certificate.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct IngressTls {
    pub(crate) hosts: Vec<String>,
    pub(crate) secret_name: Option<String>,
}

/// Paths of one host.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct IngressRule {
    pub(crate) host: Option<String>,
    pub(crate) http: Option<IngressPaths>,
}

/// The paths.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct IngressPaths {
    pub(crate) paths: Vec<IngressPath>,
}

/// One path.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct IngressPath {
    #[serde(default)]
    pub(crate) path: String,
    pub(crate) path_type: String,
    pub(crate) backend: IngressBackend,
}

/// Where an Ingress path leads.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct IngressBackend {
    pub(crate) service: Option<IngressService>,
    pub(crate) resource: Option<Value>,
}

/// A Service by name and port.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct IngressService {
    pub(crate) name: String,
    pub(crate) port: IngressPort,
}

/// A port by number or name.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct IngressPort {
    pub(crate) number: Option<u16>,
    pub(crate) name: Option<String>,
}

/// `mainstay.dev/v1alpha1` Backend: addresses outside the cluster, or without one.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct BackendSpec {
    pub(crate) endpoints: Vec<BackendEndpoint>,
    /// What is spoken to them: `http` (default), `h2c`, `https`, `h2`.
    pub(crate) protocol: Option<String>,
    pub(crate) tls: Option<BackendTls>,
}

/// One address of a Backend.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct BackendEndpoint {
    /// `ADDRESS:PORT`; a name in place of the address is looked up when the configuration is read.
    pub(crate) address: String,
    /// Share of the traffic, relative to the others; 1 unless it says another, 0 takes none.
    pub(crate) weight: Option<u32>,
    pub(crate) zone: Option<String>,
    /// Level: 0 is used first, 1 when too few of 0 are healthy, and so on.
    #[serde(default)]
    pub(crate) priority: u8,
}

/// How a Backend's TLS is verified.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct BackendTls {
    /// The name sent as SNI and expected in the certificate.
    pub(crate) hostname: Option<String>,
    /// ConfigMaps or Secrets whose `ca.crt` is trusted.
    pub(crate) ca_certificate_refs: Vec<ObjectRef>,
    /// A Secret of type `kubernetes.io/tls` to show to the backend.
    pub(crate) client_certificate_ref: Option<ObjectRef>,
    /// Encrypts without verifying. For tests.
    pub(crate) insecure_skip_verify: bool,
    /// Trusts this machine's authorities.
    #[serde(skip)]
    pub(crate) system_authorities: bool,
}

/// `gateway.networking.k8s.io/v1` BackendTLSPolicy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct BackendTlsPolicySpec {
    pub(crate) target_refs: Vec<super::policy::TargetRef>,
    pub(crate) validation: BackendTlsValidation,
}

/// Whom to believe.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct BackendTlsValidation {
    pub(crate) hostname: String,
    pub(crate) ca_certificate_refs: Vec<ObjectRef>,
    /// `System`: the authorities of this machine.
    #[serde(rename = "wellKnownCACertificates")]
    pub(crate) well_known_ca_certificates: Option<String>,
    pub(crate) subject_alt_names: Vec<Value>,
}

/// `gateway.networking.k8s.io` ReferenceGrant: who may refer into its namespace.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ReferenceGrantSpec {
    pub(crate) from: Vec<GrantFrom>,
    pub(crate) to: Vec<GrantTo>,
}

/// A kind in a namespace that may refer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct GrantFrom {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
}

/// A kind, or one object of it, that may be referred to.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct GrantTo {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: Option<String>,
}
