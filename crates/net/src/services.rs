//! Service addresses, load-balancer addresses and node ports as kernel NAT: one nftables table per cluster and namespace.
//!
//! Flow of a packet that opens a connection:
//!
//! 1. `prerouting` (arriving) or `output` (from a process here): one lookup of protocol, address and port in the map
//!    `services` finds whether there is such a service, however many there are.
//! 2. A chain picks one of its endpoints, at random or by a hash of the client's address (affinity), and rewrites the
//!    destination. Connection tracking does the same to all later packets and the reverse to the answers.
//! 3. `forward`, `output`, `input` (filter): what still carries an address of the service or load-balancer range after
//!    that has no endpoint, or no such port: refused at once (TCP reset, ICMP port unreachable).
//! 4. `postrouting`: the client's address is replaced where the answer would otherwise miss this namespace: a pod that
//!    reached itself, and connections to a node port; and on the host for pods that leave the cluster network.
//!
//! Guarantees: [`ServiceTable::apply`] replaces the whole table in one transaction; connections made before live on, also
//! on an endpoint that is no longer listed (as with kube-proxy), unless the service has [`ServicePort::cut`]. The same rules are
//! not sent twice.
//!
//! Deliberately absent: `externalTrafficPolicy: Local` and `internalTrafficPolicy` (give only the local endpoints), SCTP,
//! IPv6, timing out of affinity (a client keeps its endpoint as long as that is there, and gives it up only for a new one, as
//! rarely as that can be), node ports on 127.0.0.1, and deleting UDP's connection-tracking entries to endpoints that are gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use crate::{
    netlink::NetlinkError,
    nft::{
        self, ChainHook, ChainKind, Comparison, Element, Expression, Hook, Message, Register, Reject, Value, Verdict,
    },
    plan::{self, Cidr, Network},
};

/// `NF_IP_PRI_NAT_DST`, `NF_IP_PRI_FILTER`, `NF_IP_PRI_NAT_SRC` (`linux/netfilter_ipv4.h`).
const PRIORITY_DESTINATION_NAT: i32 = -100;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SOURCE_NAT: i32 = 100;
/// Numbers that clients of a service with affinity are spread over: enough for nearly even shares of a handful of endpoints.
const BUCKETS: u64 = 64;
/// `IPS_DST_NAT` (`linux/netfilter/nf_conntrack_common.h`).
const STATUS_DESTINATION_NAT: u32 = 1 << 5;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
}

/// One port of a service and who answers it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    /// Unique among all: for example `namespace/name:port`. Where two services claim the same address and port, the
    /// first in the order of names has it.
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The cluster address, if it has one.
    pub cluster_ip: Option<Ipv4Addr>,
    /// Load-balancer and other outside addresses.
    pub external_ips: Vec<Ipv4Addr>,
    /// The port at `cluster_ip` and `external_ips`.
    pub port: u16,
    /// The port at every node address.
    pub node_port: Option<u16>,
    /// Affinity of a client's address to an endpoint (`sessionAffinity: ClientIP`). The timeout is not kept; see the
    /// module's documentation.
    pub affinity: Option<Duration>,
    /// Connections to an endpoint that is no longer listed are reset with the client's next packet, instead of living on: for
    /// services of which only one endpoint at a time is right, such as the primary of a database.
    pub cut: bool,
    /// Ready endpoints. None: connections are refused.
    pub endpoints: Vec<SocketAddrV4>,
}

/// All that one namespace (a node's, or the host's) needs to know about services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRules {
    /// The cluster network.
    pub network: Network,
    /// The addresses of this namespace at which node ports answer; on the host usually none.
    pub node_addresses: Vec<Ipv4Addr>,
    /// The pods that live in this namespace; on the host none.
    pub pod_cidr: Option<Cidr>,
    /// Whether pods leave the cluster network through this namespace, with its address: on the host.
    pub masquerade_outbound: bool,
    /// The services.
    pub services: Vec<ServicePort>,
}

/// The table of one cluster in the calling thread's network namespace.
#[derive(Debug)]
pub struct ServiceTable {
    table: String,
    applied: Option<ServiceRules>,
}

impl ServiceTable {
    /// The table of the cluster `instance` (see [`plan::instance_id`]). Does nothing yet.
    pub fn new(instance: &str) -> Self {
        Self { table: plan::table_name(instance), applied: None }
    }

    /// Makes the kernel's rules those of `rules`; returns whether anything had to be sent.
    ///
    /// Blocking: about 1 ms, with 1,000 services of 10 endpoints some tens of milliseconds. Must always be called in the
    /// same network namespace. After an error the former rules stand.
    pub fn apply(&mut self, rules: &ServiceRules) -> Result<bool, NetlinkError> {
        let rules = rules.normalised();
        if self.applied.as_ref() == Some(&rules) {
            return Ok(false);
        }
        let messages = plan_rules(&rules);
        nft::commit(&self.table, &messages)?;
        tracing::debug!(table = self.table, services = rules.services.len(), "service rules applied");
        self.applied = Some(rules);
        Ok(true)
    }
}

/// Removes the table of cluster `instance` from the calling thread's network namespace. None there is success.
pub fn remove_table(instance: &str) -> Result<(), NetlinkError> {
    // Deleting what is not there would be an error; creating what is there is not.
    nft::commit(&plan::table_name(instance), &[Message::NewTable, Message::DeleteTable])
}

impl ServiceRules {
    /// The same in one fixed order, so that order alone makes no difference.
    fn normalised(&self) -> Self {
        let mut rules = self.clone();
        for service in &mut rules.services {
            service.endpoints.sort_unstable();
            service.endpoints.dedup();
        }
        rules.services.sort_unstable();
        rules
    }
}

/// The transaction that makes the table say what `rules` say, whatever it said before. Pure.
pub fn plan_rules(rules: &ServiceRules) -> Vec<Message> {
    let rules = rules.normalised();
    let mut messages = vec![Message::NewTable, Message::DeleteTable, Message::NewTable];
    let hooks = [
        ("prerouting", ChainKind::Nat, Hook::Prerouting, PRIORITY_DESTINATION_NAT),
        ("output", ChainKind::Nat, Hook::Output, PRIORITY_DESTINATION_NAT),
        ("postrouting", ChainKind::Nat, Hook::Postrouting, PRIORITY_SOURCE_NAT),
        ("filter-input", ChainKind::Filter, Hook::Input, PRIORITY_FILTER),
        ("filter-forward", ChainKind::Filter, Hook::Forward, PRIORITY_FILTER),
        ("filter-output", ChainKind::Filter, Hook::Output, PRIORITY_FILTER),
    ];
    messages.extend(hooks.map(|(name, kind, hook, priority)| {
        Message::NewChain(name.to_owned(), Some(ChainHook { kind, hook, priority }))
    }));
    frontends(&rules, &mut messages);
    refusals(&rules, &mut messages);
    cuts(&rules, &mut messages);
    source_translation(&rules, &mut messages);
    messages
}

/// Protocol, address, port: what a client asks for.
type Frontend = (Protocol, Ipv4Addr, u16);

/// How an endpoint is picked: the number of them, and whether by the client's address. Services that are equal in this share
/// a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Choice {
    endpoints: u32,
    affinity: bool,
}

impl Choice {
    fn of(service: &ServicePort) -> Option<Self> {
        let endpoints = picks(service).len() as u32;
        (endpoints > 0).then_some(Self { endpoints, affinity: service.affinity.is_some() })
    }

    fn chain(self) -> String {
        format!("{}-of-{}", if self.affinity { "hashed" } else { "random" }, self.endpoints)
    }

    /// From what is asked for to the service's number, with an index to the endpoint's address and port.
    fn steps(self) -> Vec<Expression> {
        let mut steps = load_frontend();
        steps.push(Expression::ValueOf(Register(0), "numbers".to_owned(), Register(4)));
        if self.affinity {
            // One seed for all: a client keeps its endpoint whichever node it comes by, and when services come and go.
            steps.push(Expression::SourceAddress(Register(3)));
            steps.push(Expression::Hash { source: Register(3), into: Register(5), bound: self.endpoints, seed: 0 });
        } else {
            steps.push(Expression::Random(Register(5), self.endpoints));
        }
        steps.push(Expression::ValueOf(Register(4), "endpoints".to_owned(), Register(6)));
        steps.push(Expression::DestinationNat(Register(6), Register(7)));
        steps
    }
}

/// What the number that is drawn, or made of the client's address, leads to. With affinity a client's number never changes, and of
/// [`BUCKETS`] numbers only those move that must when an endpoint comes or goes: each has the endpoint that ranks highest for it.
///
/// Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998 (rendezvous hashing).
fn picks(service: &ServicePort) -> Vec<SocketAddrV4> {
    if service.affinity.is_none() || service.endpoints.is_empty() {
        return service.endpoints.clone();
    }
    let rank = |bucket: u64, endpoint: &SocketAddrV4| {
        let address = u64::from(u32::from(*endpoint.ip())) << 16 | u64::from(endpoint.port());
        mixed(mixed(address) ^ bucket)
    };
    let best = |bucket| service.endpoints.iter().max_by_key(|endpoint| (rank(bucket, endpoint), **endpoint)).copied();
    (0..BUCKETS).filter_map(best).collect()
}

/// Every bit of the result depends on every bit of the input (SplitMix64's last step).
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// What services answer and how, and what is refused.
///
/// A chain per service would be the obvious way. But for every element added to a map the kernel looks at every rule that
/// refers to the map, and the other way round: 10 million steps (0.4 s) for 1,000 services of 10 endpoints. So services
/// share chains, and a packet looks its service up once more, by number.
fn frontends(rules: &ServiceRules, messages: &mut Vec<Message>) {
    let mut owners = BTreeMap::new();
    let mut endpoints = Vec::new();
    for (number, service) in (0_u32..).zip(&rules.services) {
        for frontend in frontends_of(service, &rules.node_addresses) {
            owners.entry(frontend).or_insert((number, Choice::of(service)));
        }
        for (index, endpoint) in (0_u32..).zip(picks(service)) {
            let key = [number.to_ne_bytes(), index.to_ne_bytes()].concat();
            let value = [endpoint.ip().octets(), padded(&endpoint.port().to_be_bytes())].concat();
            endpoints.push(Element { key, value: Value::Data(value) });
        }
    }
    let (mut services, mut numbers, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    let mut choices = BTreeSet::new();
    for ((protocol, address, port), (number, choice)) in owners {
        let key = [padded(&[protocol as u8]), address.octets(), padded(&port.to_be_bytes())].concat();
        if let Some(choice) = choice {
            choices.insert(choice);
            numbers.push(Element { key: key.clone(), value: Value::Data(number.to_ne_bytes().to_vec()) });
            services.push(Element { key, value: Value::Verdict(Verdict::Goto(choice.chain())) });
        } else {
            refused.push(Element { key, value: Value::None });
        }
    }
    messages.extend(set("endpoints", 8, Value::Data(vec![0; 8]), endpoints));
    messages.extend(set("numbers", 12, Value::Data(vec![0; 4]), numbers));
    messages.extend(choices.iter().map(|choice| Message::NewChain(choice.chain(), None)));
    messages.extend(choices.iter().map(|choice| Message::NewRule(choice.chain(), choice.steps())));
    messages.extend(set("services", 12, Value::Verdict(Verdict::Goto(String::new())), services));
    messages.extend(set("refused", 12, Value::None, refused));
    for chain in ["prerouting", "output"] {
        let mut steps = load_frontend();
        steps.push(Expression::VerdictOf(Register(0), "services".to_owned()));
        messages.push(Message::NewRule(chain.to_owned(), steps));
    }
}

fn frontends_of(service: &ServicePort, node_addresses: &[Ipv4Addr]) -> Vec<Frontend> {
    let addresses = service.cluster_ip.iter().chain(&service.external_ips);
    let ports = addresses.map(|address| (service.protocol, *address, service.port));
    let nodes = service.node_port.map(|port| node_addresses.iter().map(move |node| (service.protocol, *node, port)));
    ports.chain(nodes.into_iter().flatten()).collect()
}

fn load_frontend() -> Vec<Expression> {
    vec![
        Expression::Protocol(Register(0)),
        Expression::DestinationAddress(Register(1)),
        Expression::DestinationPort(Register(2)),
    ]
}

/// Refuses what no service answers.
fn refusals(rules: &ServiceRules, messages: &mut Vec<Message>) {
    let refuse = || "refuse".to_owned();
    let is_tcp = Expression::Compare(Register(0), Comparison::Equal, vec![Protocol::Tcp as u8]);
    messages.extend([
        Message::NewChain(refuse(), None),
        Message::NewRule(
            refuse(),
            vec![Expression::Protocol(Register(0)), is_tcp, Expression::Reject(Reject::TcpReset)],
        ),
        Message::NewRule(refuse(), vec![Expression::Reject(Reject::PortUnreachable)]),
    ]);
    for chain in ["filter-input", "filter-forward", "filter-output"] {
        let mut steps = load_frontend();
        steps.push(Expression::In(Register(0), "refused".to_owned()));
        steps.push(Expression::Decide(Verdict::Goto(refuse())));
        messages.push(Message::NewRule(chain.to_owned(), steps));
    }
    // Addresses of these ranges belong to no interface: what was not translated has nowhere to go.
    for chain in ["filter-forward", "filter-output"] {
        for range in [rules.network.service_range(), rules.network.load_balancer_range()] {
            let mut steps = vec![Expression::DestinationAddress(Register(0))];
            if rules.pod_cidr.is_some() {
                // A node answers names itself, at an address of this range that is its own.
                let dns = rules.network.dns_service_address().octets().to_vec();
                steps.push(Expression::Compare(Register(0), Comparison::NotEqual, dns));
            }
            steps.extend(within(Register(0), range, Comparison::Equal));
            steps.push(Expression::Decide(Verdict::Goto(refuse())));
            messages.push(Message::NewRule(chain.to_owned(), steps));
        }
    }
}

/// Resets what is under way to endpoints that are gone.
fn cuts(rules: &ServiceRules, messages: &mut Vec<Message>) {
    let (mut cut, mut kept) = (BTreeSet::new(), BTreeSet::new());
    for service in rules.services.iter().filter(|service| service.cut && service.protocol == Protocol::Tcp) {
        for (protocol, address, port) in frontends_of(service, &rules.node_addresses) {
            let key = [padded(&[protocol as u8]), address.octets(), padded(&port.to_be_bytes())].concat();
            for endpoint in &service.endpoints {
                let to = [endpoint.ip().octets(), padded(&endpoint.port().to_be_bytes())].concat();
                kept.insert([key.clone(), to].concat());
            }
            cut.insert(key);
        }
    }
    if cut.is_empty() {
        return;
    }
    let elements =
        |keys: BTreeSet<Vec<u8>>| keys.into_iter().map(|key| Element { key, value: Value::None }).collect::<Vec<_>>();
    messages.extend(set("cut", 12, Value::None, elements(cut)));
    messages.extend(set("kept", 20, Value::None, elements(kept)));
    for chain in ["filter-forward", "filter-output"] {
        let steps = vec![
            Expression::Direction(Register(0)),
            Expression::Compare(Register(0), Comparison::Equal, vec![0]),
            Expression::Protocol(Register(0)),
            Expression::OriginalDestination(Register(1)),
            Expression::OriginalPort(Register(2)),
            Expression::In(Register(0), "cut".to_owned()),
            Expression::DestinationAddress(Register(3)),
            Expression::DestinationPort(Register(4)),
            Expression::NotIn(Register(0), "kept".to_owned()),
            Expression::Decide(Verdict::Goto("refuse".to_owned())),
        ];
        messages.push(Message::NewRule(chain.to_owned(), steps));
    }
}

/// Replaces the client's address where the answer would otherwise not come back through here.
fn source_translation(rules: &ServiceRules, messages: &mut Vec<Message>) {
    let chain = || "postrouting".to_owned();
    // A pod that was sent to itself would take a packet from its own address for forged.
    let endpoints = rules.services.iter().flat_map(|service| &service.endpoints).map(|endpoint| *endpoint.ip());
    let local: BTreeSet<_> = endpoints.filter(|ip| rules.pod_cidr.is_some_and(|cidr| cidr.contains(*ip))).collect();
    let pairs = local.iter().map(|ip| Element { key: [ip.octets(), ip.octets()].concat(), value: Value::None });
    messages.extend(set("hairpin", 8, Value::None, pairs.collect()));
    messages.push(Message::NewRule(
        chain(),
        vec![
            Expression::SourceAddress(Register(0)),
            Expression::DestinationAddress(Register(1)),
            Expression::In(Register(0), "hairpin".to_owned()),
            Expression::Masquerade,
        ],
    ));
    // A connection to a node port may have been sent to another node's pod, which would answer the client directly.
    let status = STATUS_DESTINATION_NAT.to_ne_bytes();
    let nodes: BTreeSet<_> = rules.node_addresses.iter().map(Ipv4Addr::octets).collect();
    let nodes = nodes.iter().map(|node| Element { key: node.to_vec(), value: Value::None });
    messages.extend(set("nodes", 4, Value::None, nodes.collect()));
    messages.push(Message::NewRule(
        chain(),
        vec![
            Expression::ConnectionStatus(Register(0)),
            Expression::Mask(Register(0), status),
            Expression::Compare(Register(0), Comparison::NotEqual, vec![0; 4]),
            Expression::OriginalDestination(Register(0)),
            Expression::In(Register(0), "nodes".to_owned()),
        ]
        .into_iter()
        // The answers of this node's own pods come by here anyway: they see who asked.
        .chain(rules.pod_cidr.into_iter().flat_map(|own| {
            let [mask, compare] = within(Register(0), own, Comparison::NotEqual);
            [Expression::DestinationAddress(Register(0)), mask, compare]
        }))
        .chain([Expression::Masquerade])
        .collect(),
    ));
    if rules.masquerade_outbound {
        let cluster = rules.network.cidr();
        let mut steps = vec![Expression::SourceAddress(Register(0))];
        steps.extend(within(Register(0), cluster, Comparison::Equal));
        steps.push(Expression::DestinationAddress(Register(0)));
        steps.extend(within(Register(0), cluster, Comparison::NotEqual));
        steps.push(Expression::Masquerade);
        messages.push(Message::NewRule(chain(), steps));
    }
}

/// Goes on if the address in `register` is (not) in `range`. Overwrites the register.
fn within(register: Register, range: Cidr, comparison: Comparison) -> [Expression; 2] {
    [
        Expression::Mask(register, range.mask().octets()),
        Expression::Compare(register, comparison, range.address.octets().to_vec()),
    ]
}

/// A set or map and its elements, which are as many as it will ever have.
fn set(name: &str, key_bytes: u32, value: Value, elements: Vec<Element>) -> [Message; 2] {
    let size = elements.len() as u32;
    [Message::NewSet { name: name.to_owned(), key_bytes, value, size }, Message::NewElements(name.to_owned(), elements)]
}

/// A field of a concatenation: padded to the four bytes of a register.
fn padded(field: &[u8]) -> [u8; 4] {
    let mut register = [0; 4];
    register.iter_mut().zip(field).for_each(|(to, from)| *to = *from);
    register
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn service(name: &str, endpoints: &[&str]) -> ServicePort {
        ServicePort {
            name: name.to_owned(),
            protocol: Protocol::Tcp,
            cluster_ip: Some(Ipv4Addr::new(10, 90, 128, 5)),
            external_ips: vec![Ipv4Addr::new(10, 90, 120, 1)],
            port: 80,
            node_port: Some(30080),
            affinity: None,
            cut: false,
            endpoints: endpoints.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    fn rules(services: &[ServicePort]) -> ServiceRules {
        let network = Network::parse("10.90.0.0/16").unwrap();
        ServiceRules {
            network,
            node_addresses: vec![network.node_address(1).unwrap()],
            pod_cidr: Some(network.pod_cidr(1).unwrap()),
            masquerade_outbound: false,
            services: services.to_vec(),
        }
    }

    fn elements(messages: &[Message], set: &str) -> Vec<Element> {
        let of_set = |message: &Message| match message {
            Message::NewElements(name, elements) if name == set => Some(elements.clone()),
            _ => None,
        };
        messages.iter().find_map(of_set).unwrap()
    }

    #[test]
    fn every_address_of_a_service_leads_to_its_chain() {
        let messages = plan_rules(&rules(&[service("a", &["10.90.2.5:8080", "10.90.4.5:8080"])]));
        let services = elements(&messages, "services");
        let keys: Vec<_> = services.iter().map(|element| element.key.as_slice()).collect();
        // Node port, load-balancer address, cluster address; each field padded to four bytes.
        assert_eq!(keys[0], [6, 0, 0, 0, 10, 90, 0, 11, 0x75, 0x80, 0, 0]);
        assert_eq!(keys[1], [6, 0, 0, 0, 10, 90, 120, 1, 0, 80, 0, 0]);
        assert_eq!(keys[2], [6, 0, 0, 0, 10, 90, 128, 5, 0, 80, 0, 0]);
        let chain = Value::Verdict(Verdict::Goto("random-of-2".to_owned()));
        assert!(services.iter().all(|element| element.value == chain));
        assert_eq!(elements(&messages, "endpoints")[0].value, Value::Data(vec![10, 90, 2, 5, 0x1f, 0x90, 0, 0]));
        // Only the pod of this node can meet itself here.
        assert_eq!(elements(&messages, "hairpin")[0].key, [10, 90, 2, 5, 10, 90, 2, 5]);
        assert_eq!(elements(&messages, "hairpin").len(), 1);
        assert!(elements(&messages, "refused").is_empty());
    }

    #[test]
    fn with_affinity_only_those_move_who_must() {
        let of = |endpoints: &[&str]| {
            let service = ServicePort { affinity: Some(Duration::from_secs(60)), ..service("a", endpoints) };
            picks(&service)
        };
        let (three, four) = (
            of(&["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"]),
            of(&["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1"]),
        );
        let new: SocketAddrV4 = "10.0.0.4:1".parse().unwrap();
        let moved = three.iter().zip(&four).filter(|(before, after)| before != after).count();
        assert!(three.iter().zip(&four).all(|(before, after)| before == after || *after == new), "only to the new one");
        assert!((6..30).contains(&moved), "a fair share of 64: {moved}");
        assert_eq!(of(&[]), []);
    }

    #[test]
    fn without_endpoints_every_address_is_refused() {
        let messages = plan_rules(&rules(&[service("a", &[])]));
        assert!(elements(&messages, "services").is_empty());
        assert_eq!(elements(&messages, "refused").len(), 3);
    }

    #[test]
    fn the_first_name_has_an_address_claimed_twice() {
        let messages = plan_rules(&rules(&[service("b", &["10.90.2.6:1"]), service("a", &[])]));
        assert!(elements(&messages, "services").is_empty());
        assert_eq!(elements(&messages, "refused").len(), 3);
    }

    #[test]
    fn order_and_repetition_make_no_difference() {
        let one = [service("a", &["10.90.2.5:1", "10.90.2.6:1"]), service("b", &[])];
        let other = [service("b", &[]), service("a", &["10.90.2.6:1", "10.90.2.5:1", "10.90.2.5:1"])];
        assert_eq!(plan_rules(&rules(&one)), plan_rules(&rules(&other)));
    }
}
