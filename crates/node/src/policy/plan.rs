//! From NetworkPolicies to what applies to each pod of one node. Pure.
//!
//! Source: <https://kubernetes.io/docs/concepts/services-networking/network-policies/>.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mainstay_model::selector::LabelSelector;
use mainstay_net::plan::Cidr;
use mainstay_net::policy::{Allowed, Peers, PodPolicy, PolicyRules, Ports};
use mainstay_net::services::Protocol;
use serde_json::json;

type Labels = BTreeMap<String, String>;

/// A pod as policies see it.
struct Seen<'a> {
    pod: &'a Pod,
    namespace: &'a str,
    address: Ipv4Addr,
}

/// What applies to the pods of `node`.
pub(super) fn plan(
    policies: &[Arc<NetworkPolicy>],
    pods: &[Arc<Pod>],
    namespaces: &[Arc<Namespace>],
    node: &str,
) -> PolicyRules {
    let seen: Vec<_> = pods.iter().filter_map(|pod| see(pod)).collect();
    let world = World { pods: &seen, namespaces };
    let mut rules = PolicyRules::new();
    for policy in policies {
        let Some(spec) = &policy.spec else { continue };
        let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
        let selector = selector(spec.pod_selector.as_ref());
        let types = spec.policy_types.clone().unwrap_or_default();
        let egress = types.iter().any(|kind| kind == "Egress") || (types.is_empty() && spec.egress.is_some());
        let ingress = types.iter().any(|kind| kind == "Ingress") || types.is_empty();
        let of_node =
            |seen: &&Seen<'_>| seen.pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node);
        let selected = seen
            .iter()
            .filter(of_node)
            .filter(|seen| seen.namespace == namespace && selector.matches_with(label(seen.pod)));
        for target in selected {
            let entry: &mut PodPolicy = rules.entry(target.address).or_default();
            if ingress {
                let all = entry.ingress.get_or_insert_default();
                for rule in spec.ingress.iter().flatten() {
                    world.allow_in(namespace, rule.from.as_deref(), rule.ports.as_deref(), target, all);
                }
            }
            if egress {
                let all = entry.egress.get_or_insert_default();
                for rule in spec.egress.iter().flatten() {
                    world.allow_out(namespace, rule.to.as_deref(), rule.ports.as_deref(), all);
                }
            }
        }
    }
    rules
}

/// A pod with an address of its own that still has it.
fn see(pod: &Pod) -> Option<Seen<'_>> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if spec.host_network == Some(true) || over {
        return None;
    }
    Some(Seen { pod, namespace: pod.metadata.namespace.as_deref()?, address: status.pod_ip.as_deref()?.parse().ok()? })
}

/// A selector that is absent selects everything here; one that makes no sense nothing.
fn selector(given: Option<&meta::LabelSelector>) -> LabelSelector {
    let object = given.map_or_else(|| json!({}), |given| json!(given));
    LabelSelector::from_object(&object).unwrap_or_else(|_| LabelSelector::nothing())
}

fn find<'a>(labels: Option<&'a Labels>) -> impl Fn(&str) -> Option<&'a str> {
    move |key| labels.and_then(|labels| labels.get(key)).map(String::as_str)
}

fn label<'a>(pod: &'a Pod) -> impl Fn(&str) -> Option<&'a str> {
    find(pod.metadata.labels.as_ref())
}

struct World<'a> {
    pods: &'a [Seen<'a>],
    namespaces: &'a [Arc<Namespace>],
}

impl World<'_> {
    /// The pods that a peer means.
    fn peers(&self, namespace: &str, peer: &NetworkPolicyPeer) -> Vec<&Seen<'_>> {
        let pods = selector(peer.pod_selector.as_ref());
        let namespaces = peer.namespace_selector.as_ref().map(|given| selector(Some(given)));
        let belongs = |name: &str| match &namespaces {
            None => name == namespace,
            Some(wanted) => {
                let found = self.namespaces.iter().find(|one| one.metadata.name.as_deref() == Some(name));
                found.is_some_and(|one| wanted.matches_with(find(one.metadata.labels.as_ref())))
            }
        };
        self.pods.iter().filter(|seen| belongs(seen.namespace) && pods.matches_with(label(seen.pod))).collect()
    }

    fn allow_in(
        &self,
        namespace: &str,
        from: Option<&[NetworkPolicyPeer]>,
        ports: Option<&[NetworkPolicyPort]>,
        target: &Seen<'_>,
        all: &mut BTreeSet<Allowed>,
    ) {
        // Named ports are those of the pod that is reached.
        let ports = ports.filter(|ports| !ports.is_empty());
        let ports =
            ports.map(|ports| ports.iter().filter_map(|port| ports_of(port, Some(target.pod))).collect::<Vec<_>>());
        for peers in self.groups(namespace, from) {
            all.insert(Allowed { peers, ports: ports.clone() });
        }
    }

    fn allow_out(
        &self,
        namespace: &str,
        to: Option<&[NetworkPolicyPeer]>,
        ports: Option<&[NetworkPolicyPort]>,
        all: &mut BTreeSet<Allowed>,
    ) {
        let ports = ports.filter(|ports| !ports.is_empty());
        let plain = ports.map(|ports| ports.iter().filter_map(|port| ports_of(port, None)).collect::<Vec<_>>());
        for peers in self.groups(namespace, to) {
            // A named port may be another number in every pod that is reached.
            for port in ports.into_iter().flatten().filter(|port| matches!(port.port, Some(IntOrString::String(_)))) {
                let mut by_number: BTreeMap<Ports, BTreeSet<Ipv4Addr>> = BTreeMap::new();
                let reached = self.pods.iter().filter(|seen| match &peers {
                    Peers::Everybody => true,
                    Peers::Pods(pods) => pods.contains(&seen.address),
                    Peers::Range { .. } => false,
                });
                for seen in reached {
                    if let Some(found) = ports_of(port, Some(seen.pod)) {
                        by_number.entry(found).or_default().insert(seen.address);
                    }
                }
                all.extend(
                    by_number
                        .into_iter()
                        .map(|(found, pods)| Allowed { peers: Peers::Pods(pods), ports: Some(vec![found]) }),
                );
            }
            all.insert(Allowed { peers, ports: plain.clone() });
        }
    }

    /// The peers of a rule; none given means everybody.
    fn groups(&self, namespace: &str, peers: Option<&[NetworkPolicyPeer]>) -> Vec<Peers> {
        let Some(peers) = peers.filter(|peers| !peers.is_empty()) else { return vec![Peers::Everybody] };
        let mut pods = BTreeSet::new();
        let mut groups = Vec::new();
        for peer in peers {
            if let Some(block) = &peer.ip_block {
                // Ranges of IPv6 have nobody here.
                let Ok(within) = block.cidr.parse::<Cidr>() else { continue };
                let except = block.except.iter().flatten().filter_map(|part| part.parse().ok()).collect();
                groups.push(Peers::Range { within, except });
            } else {
                pods.extend(self.peers(namespace, peer).into_iter().map(|seen| seen.address));
            }
        }
        groups.push(Peers::Pods(pods));
        groups
    }
}

/// The ports that are meant; a name is looked up in the pod that is reached.
fn ports_of(port: &NetworkPolicyPort, reached: Option<&Pod>) -> Option<Ports> {
    let wanted = port.protocol.as_deref().unwrap_or("TCP");
    let protocol = match wanted {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        _ => return None,
    };
    let number = |number: i32| u16::try_from(number).ok();
    let (first, last) = match &port.port {
        None => (0, u16::MAX),
        Some(IntOrString::Int(first)) => (number(*first)?, number(port.end_port.unwrap_or(*first))?),
        Some(IntOrString::String(name)) => {
            let containers = reached?.spec.iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            let found = ports.find(|port| {
                port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == wanted
            })?;
            (number(found.container_port)?, number(found.container_port)?)
        }
    };
    Some(Ports { protocol, first, last })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
    use super::*;
    use serde_json::Value;

    fn pod(name: &str, namespace: &str, ip: &str, port: u16) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
            "status": {"podIP": ip}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn planned(spec: Value) -> PolicyRules {
        let pods = [
            pod("db", "shop", "10.0.2.1", 5432),
            pod("web", "shop", "10.0.2.2", 80),
            pod("web", "other", "10.0.2.3", 8080),
        ];
        let namespace =
            |name: &str| json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}});
        let namespaces = ["shop", "other"].map(|name| Arc::new(serde_json::from_value(namespace(name)).unwrap()));
        let policy = json!({"metadata": {"namespace": "shop", "name": "p"}, "spec": spec});
        plan(&[Arc::new(serde_json::from_value(policy).unwrap())], &pods, &namespaces, "n1")
    }

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 2, last)
    }

    #[test]
    fn an_empty_policy_closes_the_direction_for_the_pods_it_selects() {
        let rules = planned(json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"]}));
        assert_eq!(rules, PolicyRules::from([(ip(1), PodPolicy { ingress: Some(BTreeSet::new()), egress: None })]));
        let rules = planned(json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}));
        assert_eq!(rules.len(), 2);
        let everything = BTreeSet::from([Allowed { peers: Peers::Everybody, ports: None }]);
        assert_eq!(rules[&ip(1)], PodPolicy { ingress: None, egress: Some(everything) });
    }

    #[test]
    fn peers_are_pods_of_namespaces_and_named_ports_those_of_whoever_is_reached() {
        let rules = planned(
            json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"ports": [{"port": "web"}],
            "from": [{"podSelector": {"matchLabels": {"app": "web"}}}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}]}),
        );
        let ports = Some(vec![Ports { protocol: Protocol::Tcp, first: 5432, last: 5432 }]);
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        let range = Peers::Range { within: cidr("10.0.0.0/8"), except: vec![cidr("10.1.0.0/16")] };
        let expected = [Peers::Pods([ip(2)].into()), range].map(|peers| Allowed { peers, ports: ports.clone() });
        assert_eq!(rules[&ip(1)].ingress, Some(BTreeSet::from(expected)));

        let rules =
            planned(json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Egress"], "egress": [{
            "ports": [{"port": "web"}, {"port": 1000, "endPort": 2000, "protocol": "UDP"}],
            "to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}]}]}));
        let tcp = |port| Some(vec![Ports { protocol: Protocol::Tcp, first: port, last: port }]);
        let expected = [
            Allowed { peers: Peers::Pods([ip(2)].into()), ports: tcp(80) },
            Allowed { peers: Peers::Pods([ip(3)].into()), ports: tcp(8080) },
            Allowed {
                peers: Peers::Pods([ip(2), ip(3)].into()),
                ports: Some(vec![Ports { protocol: Protocol::Udp, first: 1000, last: 2000 }]),
            },
        ];
        assert_eq!(rules[&ip(1)].egress, Some(BTreeSet::from(expected)));
    }
}
