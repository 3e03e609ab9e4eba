//! Expressions: the steps of a rule.
//!
//! Attribute numbers are those of `linux/netfilter/nf_tables.h`, named there `NFTA_<EXPRESSION>_<FIELD>`.

use super::attribute::Attributes;

/// One of the sixteen 4-byte registers, 0 to 15 (`NFT_REG32_00` and on).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(pub u8);

impl Register {
    fn number(self) -> u32 {
        8 + u32::from(self.0)
    }
}

/// The register that decides what happens to the packet (`NFT_REG_VERDICT`).
const VERDICT_REGISTER: u32 = 0;
const NFPROTO_IPV4: u32 = 2;

/// Where a packet goes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// On to a chain, and back behind this rule when that chain ends.
    Jump(String),
    /// On to a chain for good.
    Goto(String),
    /// Let through, as far as this table is concerned.
    Accept,
    /// Gone without a word.
    Drop,
    /// Back to where the chain was jumped to from.
    Return,
}

impl Verdict {
    /// As `NFTA_DATA_VERDICT`.
    pub(super) fn data(&self) -> Attributes {
        // `NF_DROP`, `NF_ACCEPT` (`linux/netfilter.h`), `NFT_JUMP`, `NFT_GOTO`, `NFT_RETURN`.
        let (code, chain) = match self {
            Self::Drop => (0_i32, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5, None),
        };
        let verdict = Attributes::new().number(1, code.cast_unsigned());
        let verdict = match chain {
            Some(chain) => verdict.text(2, chain),
            None => verdict,
        };
        Attributes::new().nested(2, &verdict)
    }
}

/// How a register is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Go on if equal.
    Equal,
    /// Go on if different.
    NotEqual,
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// A TCP reset: "connection refused" at once.
    TcpReset,
    /// ICMP port unreachable.
    PortUnreachable,
}

/// One step of a rule. A step that does not match ends the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// Load the protocol number behind the IP header.
    Protocol(Register),
    /// Load the name of the link the packet came in on, 16 bytes with zeros behind.
    LinkIn(Register),
    /// Load the name of the link the packet goes out on, 16 bytes with zeros behind.
    LinkOut(Register),
    /// Load the source address.
    SourceAddress(Register),
    /// Load the destination address.
    DestinationAddress(Register),
    /// Load the destination port of TCP or UDP.
    DestinationPort(Register),
    /// Load the connection's state bits (`NF_CT_STATE_BIT`), native-endian.
    ConnectionState(Register),
    /// Load the connection's status bits (`enum ip_conntrack_status`), native-endian.
    ConnectionStatus(Register),
    /// Load the destination address the connection was opened to, before translation.
    OriginalDestination(Register),
    /// Load the port the connection was opened to, before translation.
    OriginalPort(Register),
    /// Load the direction of the packet in its connection, one byte: 0 as it was opened, 1 back.
    Direction(Register),
    /// Keep only the bits of a mask in a register.
    Mask(Register, [u8; 4]),
    /// Compare a register, as far as the data goes.
    Compare(Register, Comparison, Vec<u8>),
    /// Go on if a register is one of the bounds or between them, as far as they go, big-endian.
    Between(Register, Vec<u8>, Vec<u8>),
    /// Go on if the key that starts in the register is in the set.
    In(Register, String),
    /// Go on if the key that starts in the register is not in the set.
    NotIn(Register, String),
    /// Find the key in the map and do what its verdict says.
    VerdictOf(Register, String),
    /// Find the key in the map and store its value into the second register and those behind it.
    ValueOf(Register, String, Register),
    /// Store a random number below the bound, native-endian.
    Random(Register, u32),
    /// Store a hash of the source's 4 bytes below the bound, native-endian: `hash(source, seed) mod bound`.
    Hash {
        /// Where the 4 bytes are.
        source: Register,
        /// Where the result goes.
        into: Register,
        /// The bound.
        bound: u32,
        /// The seed.
        seed: u32,
    },
    /// Do what the verdict says.
    Decide(Verdict),
    /// Lose the packet.
    Drop,
    /// Send the connection to the address and port in two registers.
    DestinationNat(Register, Register),
    /// Let the connection come from an address of the outgoing link's namespace.
    Masquerade,
    /// Refuse the packet.
    Reject(Reject),
}

impl Expression {
    /// As the content of one `NFTA_LIST_ELEM` of a rule.
    pub(super) fn encode(&self) -> Attributes {
        let (name, data) = self.name_and_data();
        Attributes::new().text(1, name).nested(2, &data)
    }

    fn name_and_data(&self) -> (&'static str, Attributes) {
        let new = Attributes::new;
        let value = |bytes: &[u8]| new().bytes(1, bytes);
        match self {
            // NFT_META_L4PROTO
            Self::Protocol(into) => ("meta", new().number(1, into.number()).number(2, 16)),
            // NFT_META_IIFNAME, NFT_META_OIFNAME
            Self::LinkIn(into) => ("meta", new().number(1, into.number()).number(2, 6)),
            Self::LinkOut(into) => ("meta", new().number(1, into.number()).number(2, 7)),
            Self::SourceAddress(into) => ("payload", payload(*into, 1, 12, 4)),
            Self::DestinationAddress(into) => ("payload", payload(*into, 1, 16, 4)),
            Self::DestinationPort(into) => ("payload", payload(*into, 2, 2, 2)),
            // NFT_CT_STATE
            Self::ConnectionState(into) => ("ct", new().number(1, into.number()).number(2, 0)),
            // NFT_CT_STATUS; NFT_CT_DST in direction IP_CT_DIR_ORIGINAL
            Self::ConnectionStatus(into) => ("ct", new().number(1, into.number()).number(2, 2)),
            Self::OriginalDestination(into) => ("ct", new().number(1, into.number()).number(2, 9).bytes(3, &[0])),
            // NFT_CT_PROTO_DST in direction IP_CT_DIR_ORIGINAL; NFT_CT_DIRECTION
            Self::OriginalPort(into) => ("ct", new().number(1, into.number()).number(2, 12).bytes(3, &[0])),
            Self::Direction(into) => ("ct", new().number(1, into.number()).number(2, 1)),
            Self::Mask(register, mask) => {
                let data = new().number(1, register.number()).number(2, register.number()).number(3, 4);
                ("bitwise", data.nested(4, &value(mask)).nested(5, &value(&[0; 4])))
            }
            Self::Compare(register, comparison, data) => {
                let operator = u32::from(*comparison == Comparison::NotEqual);
                ("cmp", new().number(1, register.number()).number(2, operator).nested(3, &value(data)))
            }
            // NFT_RANGE_EQ
            Self::Between(register, first, last) => {
                let data = new().number(1, register.number()).number(2, 0);
                ("range", data.nested(3, &value(first)).nested(4, &value(last)))
            }
            Self::In(key, set) => ("lookup", new().text(1, set).number(2, key.number())),
            // NFT_LOOKUP_F_INV
            Self::NotIn(key, set) => ("lookup", new().text(1, set).number(2, key.number()).number(5, 1)),
            Self::VerdictOf(key, map) => {
                ("lookup", new().text(1, map).number(2, key.number()).number(3, VERDICT_REGISTER))
            }
            Self::ValueOf(key, map, into) => {
                ("lookup", new().text(1, map).number(2, key.number()).number(3, into.number()))
            }
            // NFT_NG_RANDOM
            Self::Random(into, bound) => ("numgen", new().number(1, into.number()).number(2, *bound).number(3, 1)),
            // NFT_HASH_JENKINS
            Self::Hash { source, into, bound, seed } => {
                let data = new().number(1, source.number()).number(2, into.number()).number(3, 4);
                ("hash", data.number(4, *bound).number(5, *seed).number(7, 0))
            }
            Self::Decide(verdict) => ("immediate", new().number(1, VERDICT_REGISTER).nested(2, &verdict.data())),
            // NF_DROP
            Self::Drop => {
                let verdict = new().nested(2, &new().number(1, 0));
                ("immediate", new().number(1, VERDICT_REGISTER).nested(2, &verdict))
            }
            // NFT_NAT_DNAT
            Self::DestinationNat(address, port) => {
                let data = new().number(1, 1).number(2, NFPROTO_IPV4);
                ("nat", data.number(3, address.number()).number(5, port.number()))
            }
            Self::Masquerade => ("masq", new()),
            // NFT_REJECT_TCP_RST; NFT_REJECT_ICMP_UNREACH with ICMP_PORT_UNREACH (RFC 792)
            Self::Reject(Reject::TcpReset) => ("reject", new().number(1, 1)),
            Self::Reject(Reject::PortUnreachable) => ("reject", new().number(1, 0).bytes(2, &[3])),
        }
    }
}

/// Base 1 is the network header, 2 the transport header.
fn payload(into: Register, base: u32, offset: u32, length: u32) -> Attributes {
    Attributes::new().number(1, into.number()).number(2, base).number(3, offset).number(4, length)
}
