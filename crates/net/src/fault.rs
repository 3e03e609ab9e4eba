//! Links that are broken on purpose: one way only, for names only, or slow.
//!
//! Cuts are rules in an nftables table of their own, before all others; slowness is the link's queueing discipline (`man 8 tc`).
//! Call everything from a thread in the namespace that is meant (see [`netns::within_named`](crate::netns::within_named)).
//! Every call may be repeated, and healing what is well is fine.
//!
//! Not every kernel has `netem` (delay and loss) or `tbf` (bandwidth): then [`shape`] is refused, and says which is missing.

use crate::{
    netlink::{Netlink, NetlinkError, Request},
    nft::{self, ChainHook, ChainKind, Comparison, Expression, Hook, Message, Register},
    plan::Cidr,
    route,
};

/// The table of all cuts of a namespace.
const TABLE: &str = "ms-fault";
/// Before connection tracking (`NF_IP_PRI_RAW`), and after everything.
const FIRST: i32 = -300;
const LAST: i32 = 300;
/// The port of DNS.
const DNS: u16 = 53;

/// What is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Everything that comes in over the link.
    Incoming,
    /// Everything that goes out over the link.
    Outgoing,
    /// What comes in from these addresses.
    IncomingFrom(Cidr),
    /// What goes out to these addresses.
    OutgoingTo(Cidr),
    /// Every question to DNS, over whatever link, and from processes of the namespace itself.
    Names,
}

/// How slow a link is; in the direction out of the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Every packet waits, in milliseconds.
    Delay(u32),
    /// Of every hundred packets, so many are lost.
    Loss(u8),
    /// Kilobits per second.
    Bandwidth(u32),
}

/// Makes cuts at `link`, in place of those before.
///
/// # Errors
/// When the kernel refuses.
pub fn cut(link: &str, cuts: &[Cut]) -> Result<(), NetlinkError> {
    nft::commit(TABLE, &plan(link, cuts))
}

/// Takes all cuts away.
///
/// # Errors
/// When the kernel refuses.
pub fn heal_cuts() -> Result<(), NetlinkError> {
    // Deleting what is not there would be an error; creating what is there is not.
    nft::commit(TABLE, &[Message::NewTable, Message::DeleteTable])
}

/// Whether there are cuts.
///
/// # Errors
/// When the kernel does not tell.
pub fn has_cuts() -> Result<bool, NetlinkError> {
    Ok(nft::table_names()?.iter().any(|name| name == TABLE))
}

/// The transaction for cuts. Pure.
fn plan(link: &str, cuts: &[Cut]) -> Vec<Message> {
    let mut name = [0_u8; 16];
    let bytes = link.as_bytes();
    name[..bytes.len().min(15)].copy_from_slice(&bytes[..bytes.len().min(15)]);
    let is_link = |load: Expression| vec![load, Expression::Compare(Register(0), Comparison::Equal, name.to_vec())];
    let mut messages = vec![Message::NewTable, Message::DeleteTable, Message::NewTable];
    let chain = |name: &str, hook, priority| {
        Message::NewChain(name.to_owned(), Some(ChainHook { kind: ChainKind::Filter, hook, priority }))
    };
    messages.push(chain("in", Hook::Prerouting, FIRST));
    messages.push(chain("own", Hook::Output, FIRST));
    messages.push(chain("out", Hook::Postrouting, LAST));
    for cut in cuts {
        let rules = match cut {
            Cut::Incoming => vec![("in", is_link(Expression::LinkIn(Register(0))))],
            Cut::Outgoing => vec![("out", is_link(Expression::LinkOut(Register(0))))],
            Cut::IncomingFrom(range) => vec![("in", is_within(Expression::SourceAddress(Register(0)), *range))],
            Cut::OutgoingTo(range) => vec![("out", is_within(Expression::DestinationAddress(Register(0)), *range))],
            Cut::Names => {
                let to_dns = Expression::Compare(Register(0), Comparison::Equal, DNS.to_be_bytes().to_vec());
                let steps = vec![Expression::DestinationPort(Register(0)), to_dns];
                vec![("in", steps.clone()), ("own", steps)]
            }
        };
        for (chain, mut steps) in rules {
            steps.push(Expression::Drop);
            messages.push(Message::NewRule(chain.to_owned(), steps));
        }
    }
    messages
}

/// The address that is loaded lies in the range.
fn is_within(load: Expression, range: Cidr) -> Vec<Expression> {
    let mask = range.mask();
    let first = (range.address.to_bits() & mask.to_bits()).to_be_bytes().to_vec();
    vec![load, Expression::Mask(Register(0), mask.octets()), Expression::Compare(Register(0), Comparison::Equal, first)]
}

/// `RTM_NEWQDISC` and `RTM_DELQDISC` (`linux/rtnetlink.h`).
const NEW_QUEUE: u16 = 36;
const DELETE_QUEUE: u16 = 37;
const ROOT: u32 = 0xffff_ffff;
const HANDLE: u32 = 0x6d73_0000;
/// `TCA_KIND`, `TCA_OPTIONS`, `TCA_TBF_PARMS`, `TCA_TBF_BURST` (`linux/rtnetlink.h`, `linux/pkt_sched.h`).
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const TBF_PARAMETERS: u16 = 1;
const TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`.
const ETHERNET: u8 = 1;
/// Packets that may wait, for netem.
const WAITING_MAX: u32 = 10_000;
/// The scheduler's clock ticks every 64 ns (`PSCHED_SHIFT`).
const TICK_NS: u64 = 64;

/// Makes a link slow.
///
/// # Errors
/// When the link does not exist, or the kernel has no such discipline.
pub fn shape(link: &str, shape: Shape) -> Result<(), NetlinkError> {
    let (kind, options) = match shape {
        Shape::Delay(ms) => ("netem", netem(u64::from(ms) * 1_000_000, 0)),
        Shape::Loss(percent) => ("netem", netem(0, (u64::from(u32::MAX) * u64::from(percent.min(100)) / 100) as u32)),
        Shape::Bandwidth(kbit) => ("tbf", tbf(kbit)),
    };
    let mut attributes = attribute(KIND, &[kind.as_bytes(), &[0]].concat());
    attributes.extend(attribute(OPTIONS, &options));
    let flags = netlink_packet_core::NLM_F_CREATE | netlink_packet_core::NLM_F_REPLACE;
    let what = format!("shape link {link} with {kind} (a kernel without it says: no such file)");
    queue(link, NEW_QUEUE, flags, &attributes, what, &[])
}

/// Gives a link its own speed again.
///
/// # Errors
/// When the kernel refuses.
pub fn unshape(link: &str) -> Result<(), NetlinkError> {
    let what = format!("take the shape off link {link}");
    queue(link, DELETE_QUEUE, 0, &[], what, &[libc::ENOENT, libc::EINVAL])
}

/// A request about the root queue of a link: `struct tcmsg` and attributes.
fn queue(
    link: &str,
    kind: u16,
    flags: u16,
    attributes: &[u8],
    what: String,
    tolerate: &'static [i32],
) -> Result<(), NetlinkError> {
    let mut netlink = Netlink::open_route()?;
    let index = route::link(&mut netlink, link)?.map_or(0, |link| link.index);
    let mut body = vec![0; 4];
    for number in [index, HANDLE, ROOT, 0] {
        body.extend(number.to_ne_bytes());
    }
    body.extend_from_slice(attributes);
    netlink.transact(&[Request { kind, flags: flags | netlink_packet_core::NLM_F_ACK, body, what, tolerate }])
}

/// `struct tc_netem_qopt`: latency, limit, loss, gap, duplicate, jitter.
fn netem(delay_ns: u64, loss: u32) -> Vec<u8> {
    let delay = u32::try_from(delay_ns / TICK_NS).unwrap_or(u32::MAX);
    [delay, WAITING_MAX, loss, 0, 0, 0].iter().flat_map(|number| number.to_ne_bytes()).collect()
}

/// `struct tc_tbf_qopt` and the burst: what may pass at once, 10 ms' worth and a few packets at least.
fn tbf(kbit: u32) -> Vec<u8> {
    let bytes_per_second = kbit.saturating_mul(125);
    let burst = (bytes_per_second / 100).max(16 << 10);
    let mut parameters = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
    parameters.extend(bytes_per_second.to_ne_bytes());
    parameters.extend([0; 12]);
    // Limit: what may wait, a tenth of a second and the burst. Buffer and MTU follow from the burst.
    for number in [bytes_per_second / 10 + burst, 0, 0] {
        parameters.extend(number.to_ne_bytes());
    }
    let mut options = attribute(TBF_PARAMETERS, &parameters);
    options.extend(attribute(TBF_BURST, &burst.to_ne_bytes()));
    options
}

/// Length, kind, value, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + value.len().next_multiple_of(4));
    bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_a_rule_that_ends_in_drop() {
        let rules = |cuts: &[Cut]| {
            let is_rule = |message: &&Message| matches!(message, Message::NewRule(..));
            plan("eth0", cuts).iter().filter(is_rule).cloned().collect::<Vec<_>>()
        };
        assert_eq!(rules(&[Cut::Incoming]).len(), 1);
        assert_eq!(rules(&[Cut::Outgoing, Cut::Names]).len(), 3);
        let range = Cidr { address: std::net::Ipv4Addr::new(10, 1, 2, 3), prefix: 24 };
        let from = rules(&[Cut::IncomingFrom(range), Cut::OutgoingTo(range)]);
        let first = Expression::Compare(Register(0), Comparison::Equal, vec![10, 1, 2, 0]);
        assert!(
            matches!(&from[0], Message::NewRule(chain, steps) if chain == "in" && steps.contains(&first)),
            "{from:?}"
        );
        for rule in rules(&[Cut::Incoming, Cut::Outgoing, Cut::Names]).into_iter().chain(from) {
            assert!(matches!(&rule, Message::NewRule(_, steps) if steps.last() == Some(&Expression::Drop)), "{rule:?}");
        }
    }

    #[test]
    fn options_have_the_kernels_sizes() {
        assert_eq!(netem(1_000_000, 0)[..4], 15_625_u32.to_ne_bytes());
        assert_eq!(netem(0, 7).len(), 24);
        // struct tc_tbf_qopt is 36 bytes.
        assert_eq!(tbf(1000).len(), 4 + 36 + 4 + 4);
    }
}
