//! All objects of a configuration, decoded and sorted by kind.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde::de::DeserializeOwned;

use super::source::{Place, Source};
use super::{Problem, Severity};
use crate::acme::{MANAGED, SERVER};
use crate::api::core::{
    BackendSpec, BackendTlsPolicySpec, Bag, EndpointSlice, IngressClassSpec, IngressSpec, Named, ReferenceGrantSpec,
    ServiceSpec,
};
use crate::api::gateway::{GatewayClassSpec, GatewaySpec};
use crate::api::policy::TrafficPolicySpec;
use crate::api::route::{GrpcRule, HttpRule, RouteSpec, StreamRule};
use crate::api::{GATEWAY_GROUP, Key, MAINSTAY_GROUP, Meta, Object};

/// An object with where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Held<T> {
    pub(crate) key: Key,
    pub(crate) meta: Meta,
    pub(crate) spec: T,
    pub(crate) source: Source,
}

impl<T> Held<T> {
    /// Kind and name, as messages say them.
    pub(crate) fn shown(&self) -> String {
        format!("{} {}", self.source.kind(), self.key)
    }

    /// The place of a field.
    pub(crate) fn place(&self, path: &[&str]) -> Place {
        self.source.place_of(path)
    }
}

/// Decoded objects. Later ones of the same kind and name replace earlier ones, and that is a problem.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) gateway_classes: BTreeMap<Key, Held<GatewayClassSpec>>,
    pub(crate) gateways: BTreeMap<Key, Held<GatewaySpec>>,
    pub(crate) http_routes: BTreeMap<Key, Held<RouteSpec<HttpRule>>>,
    pub(crate) grpc_routes: BTreeMap<Key, Held<RouteSpec<GrpcRule>>>,
    pub(crate) tls_routes: BTreeMap<Key, Held<RouteSpec<StreamRule>>>,
    pub(crate) tcp_routes: BTreeMap<Key, Held<RouteSpec<StreamRule>>>,
    pub(crate) ingress_classes: BTreeMap<Key, Held<IngressClassSpec>>,
    pub(crate) ingresses: BTreeMap<Key, Held<IngressSpec>>,
    pub(crate) services: BTreeMap<Key, Held<ServiceSpec>>,
    pub(crate) slices: BTreeMap<Key, Vec<EndpointSlice>>,
    pub(crate) backends: BTreeMap<Key, Held<BackendSpec>>,
    pub(crate) policies: BTreeMap<Key, Held<TrafficPolicySpec>>,
    pub(crate) tls_policies: BTreeMap<Key, Held<BackendTlsPolicySpec>>,
    pub(crate) grants: BTreeMap<Key, Held<ReferenceGrantSpec>>,
    pub(crate) namespaces: BTreeMap<String, Meta>,
    /// Secrets and ConfigMaps by kind and key; values decoded.
    pub(crate) bags: BTreeMap<(&'static str, Key), BTreeMap<String, Vec<u8>>>,
    /// Secrets that were made here, with the ACME server they are from.
    pub(crate) managed: BTreeMap<Key, String>,
    pub(crate) problems: Vec<Problem>,
}

/// The label that names an EndpointSlice's Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

impl Objects {
    /// Decodes everything. Kinds a gateway does not read are passed over.
    pub(crate) fn decode(sources: &[Source]) -> Self {
        let mut objects = Self::default();
        for source in sources {
            objects.take(source);
        }
        objects
    }

    fn take(&mut self, source: &Source) {
        let problems = &mut self.problems;
        match (source.group(), source.kind()) {
            (GATEWAY_GROUP, "GatewayClass") => hold(&mut self.gateway_classes, problems, source),
            (GATEWAY_GROUP, "Gateway") => hold(&mut self.gateways, problems, source),
            (GATEWAY_GROUP, "HTTPRoute") => hold(&mut self.http_routes, problems, source),
            (GATEWAY_GROUP, "GRPCRoute") => hold(&mut self.grpc_routes, problems, source),
            (GATEWAY_GROUP, "TLSRoute") => hold(&mut self.tls_routes, problems, source),
            (GATEWAY_GROUP, "TCPRoute") => hold(&mut self.tcp_routes, problems, source),
            (GATEWAY_GROUP, "ReferenceGrant") => hold(&mut self.grants, problems, source),
            (GATEWAY_GROUP, "BackendTLSPolicy") => hold(&mut self.tls_policies, problems, source),
            ("networking.k8s.io", "IngressClass") => hold(&mut self.ingress_classes, problems, source),
            ("networking.k8s.io", "Ingress") => hold(&mut self.ingresses, problems, source),
            ("", "Service") => hold(&mut self.services, problems, source),
            (MAINSTAY_GROUP, "Backend") => hold(&mut self.backends, problems, source),
            (MAINSTAY_GROUP, "TrafficPolicy") => hold(&mut self.policies, problems, source),
            ("discovery.k8s.io", "EndpointSlice") => {
                if let Some(slice) = decode::<EndpointSlice>(problems, source)
                    && let Some(service) = slice.metadata.labels.get(SERVICE_LABEL)
                {
                    let namespace = slice.metadata.namespace.as_deref().unwrap_or("default");
                    self.slices.entry(Key::new(namespace, service)).or_default().push(slice);
                }
            }
            ("", "Secret") => self.take_bag("Secret", source, true),
            ("", "ConfigMap") => self.take_bag("ConfigMap", source, false),
            ("", "Namespace") => {
                if let Some(namespace) = decode::<Named>(problems, source) {
                    self.namespaces.insert(namespace.metadata.name.clone(), namespace.metadata);
                }
            }
            (GATEWAY_GROUP | MAINSTAY_GROUP, kind) => {
                let message = format!("{kind} is not a kind that this gateway reads");
                problems.push(problem(source, source.place_of(&["kind"]), Severity::Warning, message));
            }
            _ => {}
        }
    }

    fn take_bag(&mut self, kind: &'static str, source: &Source, encoded: bool) {
        let Some(bag) = decode::<Bag>(&mut self.problems, source) else { return };
        let mut values = BTreeMap::new();
        let data = bag.data.into_iter().map(|it| (it, encoded));
        for ((name, text), encoded) in data.chain(bag.binary_data.into_iter().map(|it| (it, true))) {
            let value = if encoded {
                base64::engine::general_purpose::STANDARD.decode(text.replace(['\n', ' '], ""))
            } else {
                Ok(text.into_bytes())
            };
            match value {
                Ok(value) => drop(values.insert(name, value)),
                Err(error) => {
                    let place = source.place_of(&["data", &name]);
                    let message = format!("data.{name} is not base64 ({error}); plain text goes into stringData");
                    self.problems.push(problem(source, place, Severity::Error, message));
                }
            }
        }
        values.extend(bag.string_data.into_iter().map(|(name, text)| (name, text.into_bytes())));
        let key = Key::of(&bag.metadata);
        if kind == "Secret" && bag.metadata.labels.get(MANAGED.0).is_some_and(|it| it == MANAGED.1) {
            let server = bag.metadata.annotations.get(SERVER).cloned();
            self.managed.insert(key.clone(), server.unwrap_or_default());
        }
        self.bags.insert((kind, key), values);
    }
}

fn decode<T: DeserializeOwned>(problems: &mut Vec<Problem>, source: &Source) -> Option<T> {
    source.decode().map_err(|(place, message)| problems.push(problem(source, place, Severity::Error, message))).ok()
}

fn hold<T: DeserializeOwned>(map: &mut BTreeMap<Key, Held<T>>, problems: &mut Vec<Problem>, source: &Source) {
    let Some(Object { metadata, spec }) = decode::<Object<T>>(problems, source) else { return };
    if metadata.name.is_empty() {
        let place = source.place_of(&["metadata"]);
        problems.push(problem(source, place, Severity::Error, "metadata.name is missing".to_owned()));
        return;
    }
    let key = Key::of(&metadata);
    let held = Held { key: key.clone(), meta: metadata, spec, source: source.clone() };
    if let Some(before) = map.insert(key, held) {
        let message =
            format!("there are two of this kind and name; the one at {} is not used", before.place(&["kind"]));
        problems.push(problem(source, source.place_of(&["metadata", "name"]), Severity::Warning, message));
    }
}

fn problem(source: &Source, place: Place, severity: Severity, message: String) -> Problem {
    let at = |pointer| source.value.pointer(pointer).and_then(|it| it.as_str());
    let name = at("/metadata/name").unwrap_or("(without a name)");
    let namespace = at("/metadata/namespace").unwrap_or("default");
    Problem { place, severity, object: format!("{} {namespace}/{name}", source.kind()), message }
}
