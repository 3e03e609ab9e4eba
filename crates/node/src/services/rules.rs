//! From Services and EndpointSlices to the rules of one network namespace. Pure.
//!
//! Source: <https://kubernetes.io/docs/reference/networking/virtual-ips/> and, for terminating endpoints,
//! <https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#conditions>.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, EndpointSlice};
use mainstay_net::services::{Protocol, ServicePort};

/// The label that names a slice's service.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The annotation of a service whose connections end when their endpoint is no longer one: [`ServicePort::cut`].
const CUT: &str = "mainstay.dev/cut-removed-endpoints";
/// `sessionAffinityConfig.clientIP.timeoutSeconds` where it is not set: three hours.
const AFFINITY_DEFAULT: u64 = 10_800;

/// The host ports of a node's pods, as if each were a service of its own with a node port.
///
/// Source: <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#ports>, `hostPort`.
pub fn host_ports<'a>(pods: impl IntoIterator<Item = &'a core::Pod>) -> Vec<ServicePort> {
    let mut ports = Vec::new();
    for pod in pods {
        let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else { continue };
        let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let address = status.pod_ip.as_ref().and_then(|ip| ip.parse::<Ipv4Addr>().ok());
        let Some(address) = address.filter(|_| spec.host_network != Some(true) && !over) else { continue };
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        for port in containers.flat_map(|container| container.ports.iter().flatten()) {
            let number =
                |value: Option<i32>| value.and_then(|value| u16::try_from(value).ok()).filter(|port| *port > 0);
            let protocol = match port.protocol.as_deref() {
                None | Some("TCP") => Protocol::Tcp,
                Some("UDP") => Protocol::Udp,
                Some(_) => continue,
            };
            let (Some(outer), Some(inner)) = (number(port.host_port), number(Some(port.container_port))) else {
                continue;
            };
            ports.push(ServicePort {
                name: format!(
                    "host-port/{}/{}:{outer}",
                    text(pod.metadata.namespace.as_ref()),
                    text(pod.metadata.name.as_ref())
                ),
                protocol,
                cluster_ip: None,
                external_ips: Vec::new(),
                port: inner,
                node_port: Some(outer),
                affinity: None,
                cut: false,
                endpoints: vec![SocketAddrV4::new(address, inner)],
            });
        }
    }
    ports
}

/// Where the rules are for: for traffic policies that keep to a node, and hints that keep traffic near.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// The node.
    pub node: &'a str,
    /// Its zone.
    pub zone: &'a str,
}

/// The ports of all services with who answers them; without a place, those of the machine itself.
pub fn plan<'a>(
    services: impl IntoIterator<Item = &'a core::Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    place: Option<Place<'_>>,
) -> Vec<ServicePort> {
    let mut by_service: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
    for slice in slices.into_iter().filter(|slice| slice.address_type == "IPv4") {
        let name = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        if let (Some(namespace), Some(name)) = (&slice.metadata.namespace, name) {
            by_service.entry((namespace, name)).or_default().push(slice);
        }
    }
    let mut ports = Vec::new();
    for service in services {
        let key = (text(service.metadata.namespace.as_ref()), text(service.metadata.name.as_ref()));
        let slices = by_service.get(&key).map(Vec::as_slice).unwrap_or_default();
        ports.extend(service_ports(service, key, slices, place));
    }
    ports.sort_by(|a, b| a.name.cmp(&b.name));
    ports
}

fn text(value: Option<&String>) -> &str {
    value.map(String::as_str).unwrap_or_default()
}

fn service_ports(
    service: &core::Service,
    (namespace, name): (&str, &str),
    slices: &[&EndpointSlice],
    place: Option<Place<'_>>,
) -> Vec<ServicePort> {
    let Some(spec) = service.spec.as_ref().filter(|spec| spec.type_.as_deref() != Some("ExternalName")) else {
        return Vec::new();
    };
    let address = |text: &String| text.parse::<Ipv4Addr>().ok();
    let cluster_ip = spec.cluster_ip.as_ref().and_then(address);
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    let mut external_ips: Vec<_> =
        ingress.into_iter().flatten().filter_map(|i| i.ip.as_ref().and_then(address)).collect();
    external_ips.extend(spec.external_ips.iter().flatten().filter_map(address));
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        let seconds = config.and_then(|client| client.timeout_seconds).and_then(|s| u64::try_from(s).ok());
        Duration::from_secs(seconds.unwrap_or(AFFINITY_DEFAULT))
    });
    let cut = service.metadata.annotations.as_ref().and_then(|all| all.get(CUT)).is_some_and(|it| it == "true");
    let inside = Who::of(spec.internal_traffic_policy.as_deref(), place);
    let outside = Who::of(spec.external_traffic_policy.as_deref(), place);
    let mut ports = Vec::new();
    for port in spec.ports.iter().flatten() {
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some(_) => continue,
        };
        let number = |value: i32| u16::try_from(value).ok().filter(|port| *port > 0);
        let node_port = port.node_port.and_then(number);
        let Some(number) = number(port.port) else { continue };
        if cluster_ip.is_none() && external_ips.is_empty() && node_port.is_none() {
            continue;
        }
        let port_name = text(port.name.as_ref());
        let whole = ServicePort {
            name: format!("{namespace}/{name}:{port_name}"),
            protocol,
            cluster_ip,
            external_ips: external_ips.clone(),
            port: number,
            node_port,
            affinity,
            cut,
            endpoints: endpoints(slices, port_name, protocol, inside),
        };
        if inside == outside {
            ports.push(whole);
            continue;
        }
        // Who asks from outside the cluster is answered by others than who asks from inside. Load-balancer addresses, asked
        // for by a pod, never leave the cluster: they count as inside, as with kube-proxy.
        let from_outside = ServicePort {
            name: format!("{} from outside", whole.name),
            cluster_ip: None,
            external_ips: Vec::new(),
            endpoints: endpoints(slices, port_name, protocol, outside),
            ..whole.clone()
        };
        ports.extend([ServicePort { node_port: None, ..whole }, from_outside]);
    }
    ports
}

/// Which endpoints count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who<'a> {
    /// All.
    All,
    /// Those of one node, because the traffic policy is `Local`.
    OfNode(&'a str),
    /// Those that are meant for a place, where all endpoints say for whom they are meant.
    Near(Place<'a>),
}

impl<'a> Who<'a> {
    /// What a traffic policy means at a place.
    fn of(policy: Option<&str>, place: Option<Place<'a>>) -> Self {
        match place {
            Some(place) if policy == Some("Local") => Self::OfNode(place.node),
            Some(place) => Self::Near(place),
            None => Self::All,
        }
    }
}

/// An endpoint for which somebody is meant: by nodes, and by zones.
type Hinted<'a> = (SocketAddrV4, Option<&'a EndpointHints>);

/// The endpoints that are meant for a place: those for the node, else those for the zone; all, if any endpoint does not say for
/// whom it is meant, or if none is meant for the place.
///
/// Source: <https://kubernetes.io/docs/reference/networking/virtual-ips/#traffic-distribution>,
/// <https://kubernetes.io/docs/concepts/services-networking/topology-aware-routing/#safeguards>.
fn near(all: &[Hinted<'_>], place: Place<'_>) -> Vec<SocketAddrV4> {
    let pick = |of: &dyn Fn(&EndpointHints) -> Option<bool>| -> Option<Vec<SocketAddrV4>> {
        let meant: Option<Vec<_>> = all.iter().map(|(address, hints)| Some((*address, of((*hints)?)?))).collect();
        let meant: Vec<_> = meant?.into_iter().filter(|(_, here)| *here).map(|(address, _)| address).collect();
        (!meant.is_empty()).then_some(meant)
    };
    let of_node = |hints: &EndpointHints| {
        let nodes = hints.for_nodes.as_ref().filter(|nodes| !nodes.is_empty())?;
        Some(nodes.iter().any(|node| node.name == place.node))
    };
    let of_zone = |hints: &EndpointHints| {
        let zones = hints.for_zones.as_ref().filter(|zones| !zones.is_empty())?;
        Some(zones.iter().any(|zone| zone.name == place.zone))
    };
    pick(&of_node).or_else(|| pick(&of_zone)).unwrap_or_else(|| all.iter().map(|(address, _)| *address).collect())
}

/// How many endpoints of a service are ready on a node.
pub fn ready_on<'a>(slices: impl IntoIterator<Item = &'a EndpointSlice>, node: &str) -> usize {
    let endpoints = slices
        .into_iter()
        .filter(|slice| slice.address_type == "IPv4")
        .flat_map(|slice| slice.endpoints.iter().flatten());
    let is_ready = |endpoint: &&Endpoint| {
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        ready && endpoint.node_name.as_deref() == Some(node)
    };
    endpoints.filter(is_ready).count()
}

/// Who answers a port: the ready endpoints; where there are none, those that still serve while they terminate.
fn endpoints(slices: &[&EndpointSlice], port_name: &str, protocol: Protocol, who: Who<'_>) -> Vec<SocketAddrV4> {
    let (mut ready, mut terminating): (Vec<Hinted<'_>>, Vec<Hinted<'_>>) = (Vec::new(), Vec::new());
    let only_node = if let Who::OfNode(node) = who { Some(node) } else { None };
    for slice in slices {
        let is_it = |port: &&k8s_openapi::api::discovery::v1::EndpointPort| {
            let same = match port.protocol.as_deref() {
                None | Some("TCP") => protocol == Protocol::Tcp,
                Some("UDP") => protocol == Protocol::Udp,
                Some(_) => false,
            };
            same && text(port.name.as_ref()) == port_name
        };
        let port = slice.ports.iter().flatten().find(is_it).and_then(|port| u16::try_from(port.port?).ok());
        let Some(port) = port else { continue };
        for endpoint in
            slice.endpoints.iter().flatten().filter(|e| only_node.is_none() || e.node_name.as_deref() == only_node)
        {
            let conditions = endpoint.conditions.as_ref();
            let is_ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
            let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(is_ready);
            let list = match (is_ready, serving && conditions.and_then(|c| c.terminating).unwrap_or(false)) {
                (true, _) => &mut ready,
                (false, true) => &mut terminating,
                (false, false) => continue,
            };
            // The addresses of one endpoint are one and the same pod.
            let address = endpoint.addresses.first().and_then(|a| a.parse().ok()).map(|ip| SocketAddrV4::new(ip, port));
            list.extend(address.map(|address| (address, endpoint.hints.as_ref())));
        }
    }
    let all = if ready.is_empty() { terminating } else { ready };
    let mut chosen = match who {
        Who::Near(place) => near(&all, place),
        Who::All | Who::OfNode(_) => all.into_iter().map(|(address, _)| address).collect(),
    };
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
    use super::*;
    use serde_json::{Value, json};

    fn service(spec: Value, status: Value) -> core::Service {
        serde_json::from_value(
            json!({"metadata": {"namespace": "shop", "name": "front"}, "spec": spec, "status": status}),
        )
        .unwrap()
    }

    fn slice(endpoints: Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": "front-1", "labels": {"kubernetes.io/service-name": "front"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints}))
        .unwrap()
    }

    fn shown(ports: &[ServicePort]) -> Vec<String> {
        let one = |p: &ServicePort| {
            format!(
                "{} {:?} {:?} {:?} {} {:?} -> {:?}",
                p.name, p.protocol, p.cluster_ip, p.external_ips, p.port, p.node_port, p.endpoints
            )
        };
        ports.iter().map(one).collect()
    }

    #[test]
    fn ready_ones_answer_and_terminating_ones_only_if_nobody_else_does() {
        let spec = json!({"type": "LoadBalancer", "clusterIP": "10.0.128.7", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
        let status = json!({"loadBalancer": {"ingress": [{"ip": "10.0.120.1"}]}});
        let front = service(spec, status);
        let mut endpoints = vec![
            json!({"addresses": ["10.0.2.5"], "conditions": {"ready": true}}),
            json!({"addresses": ["10.0.4.5"], "conditions": {"ready": false, "serving": true, "terminating": true}}),
            json!({"addresses": ["10.0.6.5"], "conditions": {"ready": false, "serving": false}}),
        ];
        let head = "shop/front:http Tcp Some(10.0.128.7) [10.0.120.1] 80 Some(30080) ->";
        assert_eq!(shown(&plan([&front], [&slice(json!(endpoints))], None)), [format!("{head} [10.0.2.5:8080]")]);
        endpoints.remove(0);
        assert_eq!(shown(&plan([&front], [&slice(json!(endpoints))], None)), [format!("{head} [10.0.4.5:8080]")]);
        assert_eq!(shown(&plan([&front], [], None)), [format!("{head} []")]);
    }

    #[test]
    fn headless_and_external_names_have_no_rules_and_local_keeps_to_the_node() {
        let headless = service(json!({"clusterIP": "None", "ports": [{"port": 80}]}), json!({}));
        let external = service(json!({"type": "ExternalName", "externalName": "x"}), json!({}));
        assert!(plan([&headless, &external], [], None).is_empty());
        let local = service(
            json!({"clusterIP": "10.0.128.7", "internalTrafficPolicy": "Local", "sessionAffinity": "ClientIP", "ports": [{"name": "http", "port": 80}]}),
            json!({}),
        );
        let slice = slice(
            json!([{"addresses": ["10.0.2.5"], "nodeName": "node-1"}, {"addresses": ["10.0.4.5"], "nodeName": "node-2"}]),
        );
        let planned = plan([&local], [&slice], Some(Place { node: "node-2", zone: "b" }));
        assert_eq!(planned[0].endpoints, ["10.0.4.5:8080".parse().unwrap()]);
        assert_eq!(planned[0].affinity, Some(Duration::from_secs(10_800)));
    }

    #[test]
    fn hints_keep_traffic_near_as_long_as_somebody_is_meant() {
        let front = service(json!({"clusterIP": "10.0.128.7", "ports": [{"name": "http", "port": 80}]}), json!({}));
        let zone = |address: &str, zone: &str| json!({"addresses": [address], "hints": {"forZones": [{"name": zone}]}});
        let node = |address: &str, node: &str| json!({"addresses": [address], "hints": {"forNodes": [{"name": node}], "forZones": [{"name": "a"}]}});
        let answers = |endpoints: Value, place| -> Vec<String> {
            let planned = plan([&front], [&slice(endpoints)], place);
            planned[0].endpoints.iter().map(|endpoint| endpoint.ip().to_string()).collect()
        };
        let place = |node, zone| Some(Place { node, zone });
        let zones = || json!([zone("10.0.2.5", "a"), zone("10.0.4.5", "b")]);
        assert_eq!(answers(zones(), place("n1", "a")), ["10.0.2.5"]);
        assert_eq!(answers(zones(), place("n1", "c")).len(), 2, "nobody is meant for that zone");
        assert_eq!(answers(zones(), None).len(), 2, "the machine is in no zone");
        let some = json!([zone("10.0.2.5", "a"), {"addresses": ["10.0.4.5"]}]);
        assert_eq!(answers(some, place("n1", "a")).len(), 2, "one does not say for whom it is meant");
        let nodes = || json!([node("10.0.2.5", "n1"), node("10.0.2.6", "n2")]);
        assert_eq!(answers(nodes(), place("n2", "a")), ["10.0.2.6"]);
        assert_eq!(answers(nodes(), place("n3", "a")).len(), 2, "the zone's, where there is none of the node");
    }
}
