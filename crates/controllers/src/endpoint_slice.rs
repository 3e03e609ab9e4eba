//! EndpointSlice: which pods answer for a Service, on which ports, and whether they are ready.
//!
//! Flow: resolve every pod's ports → keep each endpoint in the slice that holds it → fill slices that have room → add and
//! delete slices.
//!
//! Guarantees: an endpoint is in one slice only; a change of one pod rewrites one slice; a Service with a selector has at
//! least one slice, so that readers can tell "no pods" from "not looked at yet".
//!
//! Zone hints follow `trafficDistribution`, or the annotation `service.kubernetes.io/topology-mode: Auto` while the zones'
//! shares of endpoints are close to their shares of processors.
//!
//! Deliberately absent: IPv6. Services without a selector are left to whoever made their slices.
//!
//! Source: <https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/>.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mainstay_informer::{Change, Kind, ObjectKey};
use mainstay_model::quantity::Quantity;

use crate::action::{Action, Attempt, Now, Object, Plan, Target};
use crate::caches::Caches;
use crate::driver::{Controller, Wiring};
use crate::endpoint_hints;
use crate::object::{
    Labels, controller_reference, is_finished, is_ready, is_terminating, name, namespace, node_of, reference,
};

/// Endpoints in one slice.
const ENDPOINTS_MAX: usize = 100;
pub(crate) const SERVICE_LABEL: &str = "kubernetes.io/service-name";
pub(crate) const MANAGER_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
pub(crate) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// What one look needs to see.
pub(crate) struct View {
    pub(crate) service: Arc<Service>,
    /// Pods its selector chooses.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// Zones of the nodes.
    pub(crate) zones: BTreeMap<String, String>,
    /// Processors of the zones, in thousandths; only looked up for a Service that asks for balance.
    pub(crate) processors: BTreeMap<String, i64>,
    /// The slices this controller has written for it.
    pub(crate) slices: Vec<Arc<EndpointSlice>>,
}

/// Ports in an order that compares.
pub(crate) type Ports = Vec<(String, String, i32, Option<String>)>;

/// Decides about one Service.
pub(crate) fn reconcile(view: &View) -> Plan {
    let service = view.service.as_ref();
    if is_terminating(service) || selector_of(service).is_none() {
        return Plan::nothing("no selector, or on its way out");
    }
    let mut wanted: BTreeMap<Ports, BTreeMap<String, Endpoint>> = BTreeMap::new();
    for pod in view.pods.iter().filter(|pod| !is_finished(pod)) {
        if let Some(endpoint) = endpoint(service, pod, &view.zones) {
            wanted.entry(ports(service, pod)).or_default().insert(name(&**pod).to_owned(), endpoint);
        }
    }
    endpoint_hints::hint(service, wanted.values_mut().flat_map(BTreeMap::values_mut), &view.processors);
    let count: usize = wanted.values().map(BTreeMap::len).sum();
    let mut plan = Plan::nothing(format!("{count} endpoints"));
    let mut kept = 0;
    let mut slices: Vec<_> = view.slices.iter().filter(|slice| !is_terminating(&***slice)).collect();
    slices.sort_by_key(|slice| name(&***slice));
    // First each endpoint where it is; what has gone makes room for what is new.
    let mut drafts: Vec<(&EndpointSlice, Ports, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let own = ports_of(slice);
        let group = wanted.entry(own.clone()).or_default();
        let held = slice.endpoints.iter().flatten().filter_map(|endpoint| endpoint.target_ref.as_ref()?.name.clone());
        let endpoints = held.filter_map(|pod| group.remove(&pod)).collect();
        drafts.push((slice, own, endpoints));
    }
    let mut spare = Vec::new();
    for (slice, own, mut endpoints) in drafts {
        let group = wanted.entry(own.clone()).or_default();
        while endpoints.len() < ENDPOINTS_MAX
            && let Some((_, endpoint)) = group.pop_first()
        {
            endpoints.push(endpoint);
        }
        if endpoints.is_empty() {
            spare.push((slice, own));
            continue;
        }
        kept += 1;
        replace_if_changed(service, slice, &own, endpoints, &mut plan);
    }
    for (ports, group) in wanted.into_iter().filter(|(_, group)| !group.is_empty()) {
        let endpoints: Vec<Endpoint> = group.into_values().collect();
        for chunk in endpoints.chunks(ENDPOINTS_MAX) {
            kept += 1;
            match spare.pop() {
                Some((slice, _)) => replace_if_changed(service, slice, &ports, chunk.to_vec(), &mut plan),
                None => plan.push(Action::Create(Object::of(&slice(service, &ports, chunk.to_vec())))),
            }
        }
    }
    if kept == 0 {
        match spare.pop() {
            Some((slice, own)) => replace_if_changed(service, slice, &own, Vec::new(), &mut plan),
            None => plan.push(Action::Create(Object::of(&slice(service, &Vec::new(), Vec::new())))),
        }
    }
    plan.actions.extend(spare.into_iter().map(|(slice, _)| Action::delete(Target::of(slice))));
    plan
}

fn replace_if_changed(
    service: &Service,
    old: &EndpointSlice,
    ports: &Ports,
    endpoints: Vec<Endpoint>,
    plan: &mut Plan,
) {
    let mut new = slice(service, ports, endpoints);
    let same = old.endpoints.as_deref().unwrap_or_default() == new.endpoints.as_deref().unwrap_or_default()
        && ports_of(old) == *ports
        && old.metadata.labels == new.metadata.labels;
    if same {
        return;
    }
    let labels = new.metadata.labels.take();
    new.metadata = ObjectMeta { labels, ..old.metadata.clone() };
    plan.push(Action::Replace(Object::of(&new)));
}

/// A slice with these endpoints, not yet named.
fn slice(service: &Service, ports: &Ports, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let ports = ports.iter().map(|(name, protocol, port, app_protocol)| EndpointPort {
        name: Some(name.clone()),
        protocol: Some(protocol.clone()),
        port: Some(*port),
        app_protocol: app_protocol.clone(),
    });
    let mut slice = slice_of(service, MANAGER, "IPv4", ports.collect(), endpoints);
    if is_headless(service) {
        slice.metadata.labels.get_or_insert_default().insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    slice
}

/// A new slice that a controller keeps for a Service, or for the Endpoints of its name.
pub(crate) fn slice_of<K: Kind>(
    source: &K,
    manager: &str,
    family: &str,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let mut labels: Labels = source.meta().labels.clone().unwrap_or_default();
    labels.insert(SERVICE_LABEL.to_owned(), name(source).to_owned());
    labels.insert(MANAGER_LABEL.to_owned(), manager.to_owned());
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(source))),
            namespace: source.meta().namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_reference(source)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports),
    }
}

/// The pod as an endpoint; `None` while it has no address.
fn endpoint(service: &Service, pod: &Pod, zones: &BTreeMap<String, String>) -> Option<Endpoint> {
    let address = pod.status.as_ref()?.pod_ip.clone().filter(|ip| !ip.is_empty())?;
    let spec = pod.spec.as_ref()?;
    let always = publishes_all(service);
    let (serving, terminating) = (is_ready(pod), is_terminating(pod));
    Some(Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(always || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        node_name: spec.node_name.clone(),
        zone: zones.get(node_of(pod)).cloned(),
        target_ref: Some(k8s_openapi::api::core::v1::ObjectReference { api_version: None, ..reference(pod) }),
        ..Endpoint::default()
    })
}

/// The name under which the pod is found below that of the Service, if it has one.
pub(crate) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    spec.hostname.clone().filter(|_| spec.subdomain.as_deref() == Some(name(service)))
}

/// Whether the Service has no address of its own.
pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// Whether pods that are not ready count like those that are.
pub(crate) fn publishes_all(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false)
}

/// The pods that a Service's selector chooses.
pub(crate) fn pods_of(caches: &Caches, service: &Service, selector: &Labels) -> Vec<Arc<Pod>> {
    caches.pods.in_namespace(namespace(service), |pod| chooses(selector, pod.metadata.labels.as_ref()))
}

/// The Services that a pod is, or was, behind.
pub(crate) fn services_of(change: &Change<Pod>, caches: &Caches) -> Vec<ObjectKey> {
    let own = |service: &Service| {
        selector_of(service)
            .is_some_and(|selector| change.versions().any(|pod| chooses(selector, pod.metadata.labels.as_ref())))
    };
    caches.services.in_namespace(&change.key.namespace, own).iter().map(|service| ObjectKey::of(&**service)).collect()
}

/// The service's ports as this pod has them; a named target port that the pod does not have is left out.
pub(crate) fn ports(service: &Service, pod: &Pod) -> Ports {
    let all = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let mut ports: Ports = all
        .filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            let number = target_port(port, &protocol, pod)?;
            Some((port.name.clone().unwrap_or_default(), protocol, number, port.app_protocol.clone()))
        })
        .collect();
    ports.sort();
    ports
}

fn target_port(port: &ServicePort, protocol: &str, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(wanted)) if wanted.is_empty() => Some(port.port),
        Some(IntOrString::String(wanted)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec.init_containers.iter().flatten();
            let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
            let mut all = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
            let found = all
                .find(|own| own.name.as_ref() == Some(wanted) && own.protocol.as_deref().unwrap_or("TCP") == protocol);
            found.map(|own| own.container_port)
        }
    }
}

fn ports_of(slice: &EndpointSlice) -> Ports {
    let mut ports: Ports = slice
        .ports
        .iter()
        .flatten()
        .map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            (port.name.clone().unwrap_or_default(), protocol, port.port.unwrap_or(0), port.app_protocol.clone())
        })
        .collect();
    ports.sort();
    ports
}

/// The selector of a Service whose endpoints are this controller's business.
pub(crate) fn selector_of(service: &Service) -> Option<&Labels> {
    let spec = service.spec.as_ref().filter(|spec| spec.type_.as_deref() != Some("ExternalName"))?;
    spec.selector.as_ref().filter(|selector| !selector.is_empty())
}

pub(crate) fn chooses(selector: &Labels, labels: Option<&Labels>) -> bool {
    labels.is_some_and(|labels| selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

fn zone(node: &Node) -> Option<&String> {
    node.metadata.labels.as_ref()?.get(ZONE_LABEL)
}

/// Processors of each zone's ready nodes, in thousandths.
fn processors(caches: &Caches) -> BTreeMap<String, i64> {
    let mut all = BTreeMap::new();
    for node in caches.nodes.list() {
        let capacity = node.status.as_ref().and_then(|status| status.allocatable.as_ref()?.get("cpu"));
        let milli = capacity.and_then(|text| text.0.parse::<Quantity>().ok()).map_or(0, Quantity::milli_value);
        if let Some(zone) = zone(&node) {
            *all.entry(zone.clone()).or_insert(0) += milli;
        }
    }
    all
}

/// The controller of EndpointSlices.
pub(crate) struct EndpointSlices;

impl Controller for EndpointSlices {
    type Key = ObjectKey;
    const NAME: &'static str = "endpointslice-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.services, |change, _| vec![change.key.clone()]);
        wiring.on(&caches.pods, services_of);
        wiring.on(&caches.endpoint_slices, |change, _| {
            let named = change.versions().filter_map(|slice| slice.metadata.labels.as_ref()?.get(SERVICE_LABEL));
            named.map(|service| ObjectKey::new(&change.key.namespace, service)).collect()
        });
        wiring.on(&caches.nodes, |change: &Change<Node>, caches| {
            let before = change.before.as_ref().and_then(|node| zone(node));
            let after = change.after.as_ref().and_then(|node| zone(node));
            if before == after {
                return Vec::new();
            }
            let all = caches.services.filter(|service| selector_of(service).is_some());
            all.iter().map(|service| ObjectKey::of(&**service)).collect()
        });
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, _: Now) -> Plan {
        let Some(service) = caches.services.get_key(key) else { return Plan::nothing("it is gone") };
        let Some(selector) = selector_of(&service) else { return Plan::nothing("it has no selector") };
        let pods = pods_of(caches, &service, selector);
        let slices = caches.endpoint_slices.in_namespace(&key.namespace, |slice| {
            let labels = slice.metadata.labels.as_ref();
            let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
            label(SERVICE_LABEL) == Some(key.name.as_str()) && label(MANAGER_LABEL) == Some(MANAGER)
        });
        let zones = pods.iter().filter_map(|pod| {
            let node = caches.nodes.get("", node_of(pod))?;
            Some((name(&*node).to_owned(), zone(&node)?.clone()))
        });
        let zones = zones.collect();
        let processors = if endpoint_hints::needs_processors(&service) { processors(caches) } else { BTreeMap::new() };
        reconcile(&View { service, pods, zones, processors, slices })
    }
}
