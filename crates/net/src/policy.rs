//! NetworkPolicies in the kernel: one nftables table per cluster and node, beside that of the services.
//!
//! Flow of a packet that passes through the node, which is every one to or from a pod but those between a pod and the node
//! itself: what belongs to a connection that was let through before goes on → the sender's chain, if policies of the direction
//! out select him, ends in a drop unless a rule of it returns → the same for the receiver. Services have been translated
//! before, so that rules see pods and ports of pods.
//!
//! Guarantees: [`PolicyTable::apply`] replaces everything in one transaction; a pod reaches itself; the node reaches its pods
//! (probes) and pods reach their node (names), as Kubernetes says.
//!
//! Deliberately absent: SCTP, IPv6, cutting connections that a new policy would not have let begin.
//!
//! Source: <https://kubernetes.io/docs/concepts/services-networking/network-policies/>.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::netlink::NetlinkError;
use crate::nft::{
    self, ChainHook, ChainKind, Comparison, Element, Expression, Hook, Message, Register, Value, Verdict,
};
use crate::plan::{self, Cidr};
use crate::services::Protocol;

/// Behind the services' refusals (`NF_IP_PRI_FILTER`).
const PRIORITY: i32 = 10;
/// Established and related (`NF_CT_STATE_BIT`, `linux/netfilter/nf_tables.h`).
const KNOWN_CONNECTION: u32 = 2 | 4;

/// Whom a pod may talk with in one direction.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allowed {
    /// With whom.
    pub peers: Peers,
    /// On which ports of the receiver; none for all, of every protocol.
    pub ports: Option<Vec<Ports>>,
}

/// Some addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peers {
    /// All there are.
    Everybody,
    /// These pods.
    Pods(BTreeSet<Ipv4Addr>),
    /// A range without some parts of it.
    Range {
        /// The range.
        within: Cidr,
        /// What of it does not belong.
        except: Vec<Cidr>,
    },
}

/// Adjacent ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// Of this protocol.
    pub protocol: Protocol,
    /// From this one; 0 with `last` 65535 for all.
    pub first: u16,
    /// To this one.
    pub last: u16,
}

/// What applies to one pod of the node. A direction without policies is free.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodPolicy {
    /// Who may reach it.
    pub ingress: Option<BTreeSet<Allowed>>,
    /// Whom it may reach.
    pub egress: Option<BTreeSet<Allowed>>,
}

/// What applies to the pods of a node, by their addresses.
pub type PolicyRules = BTreeMap<Ipv4Addr, PodPolicy>;

/// The table of one cluster in the calling thread's network namespace.
#[derive(Debug)]
pub struct PolicyTable {
    table: String,
    applied: Option<PolicyRules>,
}

impl PolicyTable {
    /// The table of the cluster `instance`. Does nothing yet.
    pub fn new(instance: &str) -> Self {
        Self { table: format!("{}-policy", plan::table_name(instance)), applied: None }
    }

    /// Makes the kernel's rules those of `rules`; answers whether anything had to be sent. Blocking. After an error the
    /// former rules stand.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn apply(&mut self, rules: PolicyRules) -> Result<bool, NetlinkError> {
        if self.applied.as_ref() == Some(&rules) {
            return Ok(false);
        }
        nft::commit(&self.table, &plan_policies(&rules))?;
        self.applied = Some(rules);
        Ok(true)
    }
}

/// The transaction that makes the table say what `rules` say, whatever it said before. Pure.
pub fn plan_policies(rules: &PolicyRules) -> Vec<Message> {
    let mut messages = vec![Message::NewTable, Message::DeleteTable, Message::NewTable];
    if rules.is_empty() {
        messages.truncate(2);
        return messages;
    }
    let forward = || "forward".to_owned();
    let hook = ChainHook { kind: ChainKind::Filter, hook: Hook::Forward, priority: PRIORITY };
    messages.push(Message::NewChain(forward(), Some(hook)));
    let mut chains = Chains::default();
    let mut maps = Vec::new();
    for (direction, address) in
        [("egress", Expression::SourceAddress(Register(0))), ("ingress", Expression::DestinationAddress(Register(0)))]
    {
        let mut elements = Vec::new();
        for (pod, policy) in rules {
            let (allowed, peer) = match direction {
                "egress" => (&policy.egress, Side::Destination),
                _ => (&policy.ingress, Side::Source),
            };
            if let Some(allowed) = allowed {
                let chain = chains.of(direction, peer, allowed);
                elements.push(Element { key: pod.octets().to_vec(), value: Value::Verdict(Verdict::Jump(chain)) });
            }
        }
        maps.push((direction, address, elements));
    }
    messages.extend(chains.messages);
    let selves: Vec<_> =
        rules.keys().map(|ip| Element { key: [ip.octets(), ip.octets()].concat(), value: Value::None }).collect();
    messages.extend(set("self", 8, Value::None, selves));
    messages.push(Message::NewRule(
        forward(),
        vec![
            Expression::ConnectionState(Register(0)),
            Expression::Mask(Register(0), KNOWN_CONNECTION.to_ne_bytes()),
            Expression::Compare(Register(0), Comparison::NotEqual, vec![0; 4]),
            Expression::Decide(Verdict::Accept),
        ],
    ));
    messages.push(Message::NewRule(
        forward(),
        vec![
            Expression::SourceAddress(Register(0)),
            Expression::DestinationAddress(Register(1)),
            Expression::In(Register(0), "self".to_owned()),
            Expression::Decide(Verdict::Accept),
        ],
    ));
    for (direction, address, elements) in maps {
        messages.extend(set(direction, 4, Value::Verdict(Verdict::Jump(String::new())), elements));
        let steps = vec![address, Expression::VerdictOf(Register(0), direction.to_owned())];
        messages.push(Message::NewRule(forward(), steps));
    }
    messages
}

/// Where in a packet the peer's address is.
#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

impl Side {
    fn load(self) -> Expression {
        match self {
            Self::Source => Expression::SourceAddress(Register(0)),
            Self::Destination => Expression::DestinationAddress(Register(0)),
        }
    }
}

/// Chains and sets, shared by pods to which the same applies.
#[derive(Default)]
struct Chains<'a> {
    known: BTreeMap<(&'static str, &'a BTreeSet<Allowed>), String>,
    sets: BTreeMap<&'a BTreeSet<Ipv4Addr>, String>,
    messages: Vec<Message>,
}

impl<'a> Chains<'a> {
    fn of(&mut self, direction: &'static str, side: Side, allowed: &'a BTreeSet<Allowed>) -> String {
        if let Some(chain) = self.known.get(&(direction, allowed)) {
            return chain.clone();
        }
        let chain = format!("{direction}-{}", self.known.len());
        self.known.insert((direction, allowed), chain.clone());
        self.messages.push(Message::NewChain(chain.clone(), None));
        for one in allowed {
            let peers = self.peers(side, &one.peers);
            let everything = vec![None];
            let ports = one.ports.as_ref().map_or(everything, |ports| ports.iter().map(Some).collect());
            for port in ports {
                let mut steps = peers.clone();
                steps.extend(port.into_iter().flat_map(|port| on(*port)));
                steps.push(Expression::Decide(Verdict::Return));
                self.messages.push(Message::NewRule(chain.clone(), steps));
            }
        }
        self.messages.push(Message::NewRule(chain.clone(), vec![Expression::Decide(Verdict::Drop)]));
        chain
    }

    fn peers(&mut self, side: Side, peers: &'a Peers) -> Vec<Expression> {
        match peers {
            Peers::Everybody => Vec::new(),
            Peers::Pods(pods) => {
                let name = self.sets.get(pods).cloned().unwrap_or_else(|| {
                    let name = format!("pods-{}", self.sets.len());
                    let elements = pods.iter().map(|ip| Element { key: ip.octets().to_vec(), value: Value::None });
                    self.messages.extend(set(&name, 4, Value::None, elements.collect()));
                    self.sets.insert(pods, name.clone());
                    name
                });
                vec![side.load(), Expression::In(Register(0), name)]
            }
            Peers::Range { within, except } => {
                let mut steps = compare(side, *within, Comparison::Equal);
                steps.extend(except.iter().flat_map(|part| compare(side, *part, Comparison::NotEqual)));
                steps
            }
        }
    }
}

fn compare(side: Side, range: Cidr, comparison: Comparison) -> Vec<Expression> {
    let address = range.address.to_bits() & range.mask().to_bits();
    vec![
        side.load(),
        Expression::Mask(Register(0), range.mask().octets()),
        Expression::Compare(Register(0), comparison, address.to_be_bytes().to_vec()),
    ]
}

fn on(ports: Ports) -> Vec<Expression> {
    let mut steps = vec![
        Expression::Protocol(Register(0)),
        Expression::Compare(Register(0), Comparison::Equal, vec![ports.protocol as u8]),
    ];
    if (ports.first, ports.last) != (0, u16::MAX) {
        steps.push(Expression::DestinationPort(Register(0)));
        steps.push(if ports.first == ports.last {
            Expression::Compare(Register(0), Comparison::Equal, ports.first.to_be_bytes().to_vec())
        } else {
            Expression::Between(Register(0), ports.first.to_be_bytes().to_vec(), ports.last.to_be_bytes().to_vec())
        });
    }
    steps
}

fn set(name: &str, key_bytes: u32, value: Value, elements: Vec<Element>) -> [Message; 2] {
    let size = elements.len() as u32;
    [Message::NewSet { name: name.to_owned(), key_bytes, value, size }, Message::NewElements(name.to_owned(), elements)]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pods_with_the_same_policy_share_a_chain_and_others_are_free() {
        let ip = |last| Ipv4Addr::new(10, 90, 2, last);
        let ports = Some(vec![Ports { protocol: Protocol::Tcp, first: 80, last: 80 }]);
        let allowed = BTreeSet::from([Allowed { peers: Peers::Pods([ip(9)].into()), ports }]);
        let one = PodPolicy { ingress: Some(allowed), egress: None };
        let closed = PodPolicy { ingress: Some(BTreeSet::new()), egress: Some(BTreeSet::new()) };
        let rules = PolicyRules::from([(ip(1), one.clone()), (ip(2), one), (ip(3), closed)]);
        let messages = plan_policies(&rules);
        let chains = messages.iter().filter_map(|message| match message {
            Message::NewChain(name, _) => Some(name.as_str()),
            _ => None,
        });
        assert_eq!(chains.collect::<Vec<_>>(), ["forward", "egress-0", "ingress-1", "ingress-2"]);
        let jumps = |map: &str| {
            messages.iter().find_map(|message| match message {
                Message::NewElements(name, elements) if name == map => Some(elements.len()),
                _ => None,
            })
        };
        assert_eq!((jumps("ingress"), jumps("egress"), jumps("pods-0")), (Some(3), Some(1), Some(1)));
        assert_eq!(plan_policies(&PolicyRules::new()), [Message::NewTable, Message::DeleteTable]);
    }
}
