//! The address plan: which address of the cluster network belongs to what. Pure.
//!
//! A cluster owns one IPv4 /16, `X.Y.0.0/16`:
//!
//! | range          | use                                                          |
//! |----------------|--------------------------------------------------------------|
//! | `X.Y.0.0/24`   | nodes: `.1` the host's bridge, `.10+i` node `i` (1 to 50)    |
//! | `X.Y.2i.0/23`  | pods of node `i`: 510 addresses                              |
//! | `X.Y.120.0/24` | load-balancer addresses                                      |
//! | `X.Y.128.0/17` | service (cluster) addresses; `.128.1` kubernetes, `.128.10` DNS |
//!
//! Names of kernel objects are derived here too, from the [`instance_id`], so that several clusters can share a machine.
//! Link names stay under the kernel's limit of 15 bytes (`IFNAMSIZ`, `man 7 netdevice`).

use std::{fmt, net::Ipv4Addr, path::Path, str::FromStr};

/// The largest node number of a plan.
pub const NODES_MAX: u32 = 50;

/// Why an address plan was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// The text is not `ADDRESS/PREFIX`.
    #[error("network {0:?} is not an IPv4 network; write it like 10.90.0.0/16")]
    Syntax(String),
    /// The network is not a /16.
    #[error("network {0} is not a /16; the address plan needs exactly a /16, like 10.90.0.0/16")]
    PrefixLength(Cidr),
    /// Bits are set behind the prefix.
    #[error("network {given} has bits set behind its prefix; did you mean {meant}?")]
    Unaligned {
        /// What was asked for.
        given: Cidr,
        /// The same with those bits cleared.
        meant: Cidr,
    },
    /// Loopback, multicast, link-local, reserved or unspecified space.
    #[error("network {0} is not usable for unicast; choose a private range, like 10.90.0.0/16")]
    NotUnicast(Cidr),
    /// A node number outside 1 to [`NODES_MAX`].
    #[error("node number {0} is outside 1 to {NODES_MAX}, which is all a /16 network has room for")]
    NodeNumber(u32),
}

/// An IPv4 network: address and prefix length (0 to 32).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    /// The first address.
    pub address: Ipv4Addr,
    /// The prefix length in bits, 0 to 32.
    pub prefix: u8,
}

impl Cidr {
    /// The network mask.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0))
    }

    /// Whether `address` lies in this network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        let mask = self.mask().to_bits();
        address.to_bits() & mask == self.address.to_bits() & mask
    }

    /// Whether the two networks share an address. (Then one contains the other.)
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let parts = text
            .split_once('/')
            .and_then(|(address, prefix)| Some(Self { address: address.parse().ok()?, prefix: prefix.parse().ok()? }));
        parts.filter(|cidr| cidr.prefix <= 32).ok_or_else(|| PlanError::Syntax(text.to_owned()))
    }
}

/// A cluster's /16 and the plan for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    base: u32,
}

impl Network {
    /// Reads `"10.90.0.0/16"`: an aligned, unicast IPv4 /16.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        let given: Cidr = text.parse()?;
        if given.prefix != 16 {
            return Err(PlanError::PrefixLength(given));
        }
        let base = given.address.to_bits() & given.mask().to_bits();
        if base != given.address.to_bits() {
            let meant = Cidr { address: Ipv4Addr::from_bits(base), prefix: 16 };
            return Err(PlanError::Unaligned { given, meant });
        }
        let first = given.address.octets()[0];
        if first == 0 || first == 127 || first >= 224 || given.address.is_link_local() {
            return Err(PlanError::NotUnicast(given));
        }
        Ok(Self { base })
    }

    fn at(self, third: u32, fourth: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base | (third << 8) | fourth)
    }

    /// The whole /16.
    pub fn cidr(self) -> Cidr {
        Cidr { address: self.at(0, 0), prefix: 16 }
    }

    /// The host's address on the bridge, `X.Y.0.1`: every node's gateway.
    pub fn host_address(self) -> Ipv4Addr {
        self.at(0, 1)
    }

    /// The subnet of host and nodes, `X.Y.0.0/24`.
    pub fn node_subnet(self) -> Cidr {
        Cidr { address: self.at(0, 0), prefix: 24 }
    }

    /// The address of node `node` (1 to [`NODES_MAX`]), `X.Y.0.(10+node)`.
    pub fn node_address(self, node: u32) -> Result<Ipv4Addr, PlanError> {
        check_node(node)?;
        Ok(self.at(0, 10 + node))
    }

    /// The pod addresses of node `node` (1 to [`NODES_MAX`]), `X.Y.(2·node).0/23`.
    pub fn pod_cidr(self, node: u32) -> Result<Cidr, PlanError> {
        check_node(node)?;
        Ok(Cidr { address: self.at(2 * node, 0), prefix: 23 })
    }

    /// The addresses for services of type LoadBalancer, `X.Y.120.0/24`.
    pub fn load_balancer_range(self) -> Cidr {
        Cidr { address: self.at(120, 0), prefix: 24 }
    }

    /// The cluster addresses of services, `X.Y.128.0/17`.
    pub fn service_range(self) -> Cidr {
        Cidr { address: self.at(128, 0), prefix: 17 }
    }

    /// The cluster address of the `kubernetes` service: the first of the service range.
    pub fn kubernetes_service_address(self) -> Ipv4Addr {
        self.at(128, 1)
    }

    /// The cluster address of the DNS service: the tenth of the service range, as most distributions have it.
    pub fn dns_service_address(self) -> Ipv4Addr {
        self.at(128, 10)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cidr().fmt(formatter)
    }
}

fn check_node(node: u32) -> Result<(), PlanError> {
    if (1..=NODES_MAX).contains(&node) { Ok(()) } else { Err(PlanError::NodeNumber(node)) }
}

/// A stable id for the cluster that lives in `data_dir`: 4 lower-case hex digits.
///
/// Two directories collide with probability 1/65536; the second cluster then finds the first one's bridge under its own
/// name and adopts it, so the caller keeps a lock per data directory. Pass an absolute path.
pub fn instance_id(data_dir: &Path) -> String {
    let hash = fnv1a(data_dir.as_os_str().as_encoded_bytes());
    format!("{:04x}", (hash >> 16) ^ (hash & 0xffff))
}

/// The bridge of an instance, and the prefix all its other names share in spirit: `ms-<id>`.
pub fn bridge_name(instance: &str) -> String {
    format!("ms-{instance}")
}

/// The host's end of a node's veth pair: `ms<id>n<node>`.
pub fn host_link_name(instance: &str, node: u32) -> String {
    format!("{}{node}", host_link_prefix(instance))
}

pub(crate) fn host_link_prefix(instance: &str) -> String {
    format!("ms{instance}n")
}

/// A node's network namespace: `ms-<id>-node-<node>`.
pub fn netns_name(instance: &str, node: u32) -> String {
    format!("{}{node}", netns_prefix(instance))
}

/// What the names of all network namespaces of an instance begin with: `ms-<id>-node-`.
pub fn netns_prefix(instance: &str) -> String {
    format!("ms-{instance}-node-")
}

/// The nftables table of an instance: `mainstay-<id>`.
pub fn table_name(instance: &str) -> String {
    format!("mainstay-{instance}")
}

/// The node's end of a pod's veth pair: `pod` and 8 hex digits of the pod uid's hash.
pub fn pod_link_name(uid: &str) -> String {
    format!("pod{:08x}", fnv1a(uid.as_bytes()))
}

/// 32-bit FNV-1a (draft-eastlake-fnv): stable over releases and machines, which `std`'s hasher does not promise.
pub(crate) fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn accepts_only_an_aligned_unicast_slash_16() {
        assert_eq!(Network::parse("10.90.0.0/16").unwrap().to_string(), "10.90.0.0/16");
        for bad in ["", "10.90.0.0", "10.90/16", "fd00::/16", "10.90.0.0/33", "10.90.0.0/-1", "10.90.0.0/16/1"] {
            assert!(matches!(Network::parse(bad), Err(PlanError::Syntax(_))), "{bad}");
        }
        assert!(matches!(Network::parse("10.90.0.0/15"), Err(PlanError::PrefixLength(_))));
        assert!(matches!(Network::parse("10.90.1.0/24"), Err(PlanError::PrefixLength(_))));
        assert_eq!(
            Network::parse("10.90.3.1/16").unwrap_err().to_string(),
            "network 10.90.3.1/16 has bits set behind its prefix; did you mean 10.90.0.0/16?"
        );
        for bad in ["0.0.0.0/16", "127.0.0.0/16", "169.254.0.0/16", "224.0.0.0/16", "255.255.0.0/16"] {
            assert!(matches!(Network::parse(bad), Err(PlanError::NotUnicast(_))), "{bad}");
        }
    }

    #[test]
    fn addresses_are_where_the_table_says() {
        let network = Network::parse("10.90.0.0/16").unwrap();
        let text = |cidr: Cidr| cidr.to_string();
        assert_eq!(network.host_address().to_string(), "10.90.0.1");
        assert_eq!(network.node_address(3).unwrap().to_string(), "10.90.0.13");
        assert_eq!(text(network.pod_cidr(1).unwrap()), "10.90.2.0/23");
        assert_eq!(text(network.pod_cidr(50).unwrap()), "10.90.100.0/23");
        assert_eq!(text(network.load_balancer_range()), "10.90.120.0/24");
        assert_eq!(text(network.service_range()), "10.90.128.0/17");
        assert_eq!(network.kubernetes_service_address().to_string(), "10.90.128.1");
        assert_eq!(network.dns_service_address().to_string(), "10.90.128.10");
        assert_eq!(network.node_address(0), Err(PlanError::NodeNumber(0)));
        assert_eq!(network.pod_cidr(51), Err(PlanError::NodeNumber(51)));
    }

    /// Every address of the /16, once: no two ranges may claim it, and each claimed range lies inside.
    #[test]
    fn no_address_has_two_uses() {
        for text in ["10.0.0.0/16", "10.90.0.0/16", "172.16.0.0/16", "192.168.0.0/16"] {
            let network = Network::parse(text).unwrap();
            let mut ranges = vec![network.node_subnet(), network.load_balancer_range(), network.service_range()];
            ranges.extend((1..=NODES_MAX).map(|node| network.pod_cidr(node).unwrap()));
            for low in 0..=u32::from(u16::MAX) {
                let address = Ipv4Addr::from_bits(network.base | low);
                let owners = ranges.iter().filter(|range| range.contains(address)).count();
                assert!(owners <= 1, "{address} has {owners} owners");
            }
            for (i, range) in ranges.iter().enumerate() {
                assert!(network.cidr().contains(range.address) && range.prefix >= 16);
                assert!(ranges.iter().skip(i + 1).all(|other| !range.overlaps(*other)));
            }
            let mut nodes: Vec<_> = (1..=NODES_MAX).map(|node| network.node_address(node).unwrap()).collect();
            assert!(nodes.iter().all(|node| network.node_subnet().contains(*node)));
            nodes.push(network.host_address());
            nodes.sort_unstable();
            nodes.dedup();
            assert_eq!(nodes.len(), NODES_MAX as usize + 1);
        }
    }

    #[test]
    fn overlap_is_containment_either_way() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        assert!(cidr("10.0.0.0/8").overlaps(cidr("10.90.0.0/16")));
        assert!(cidr("10.90.0.0/16").overlaps(cidr("10.90.4.1/32")));
        assert!(cidr("0.0.0.0/0").overlaps(cidr("10.90.0.0/16")));
        assert!(!cidr("10.91.0.0/16").overlaps(cidr("10.90.0.0/16")));
    }

    #[test]
    fn names_are_stable_and_short() {
        assert_eq!(fnv1a(b""), 0x811c_9dc5);
        assert_eq!(fnv1a(b"foobar"), 0xbf9c_f968);
        let instance = instance_id(Path::new("/var/lib/mainstay"));
        assert_eq!(instance, instance_id(Path::new("/var/lib/mainstay")));
        assert_ne!(instance, instance_id(Path::new("/var/lib/mainstay2")));
        assert!(instance.len() == 4 && instance.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
        assert!(bridge_name(&instance).len() <= 15);
        assert!(host_link_name(&instance, NODES_MAX).len() <= 15);
        assert!(pod_link_name("0b5a0b5a-8a3c-4a53-b41b-7b24bb3d0a7e").len() <= 15);
    }
}
