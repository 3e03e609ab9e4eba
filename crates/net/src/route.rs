//! Links, addresses, routes and neighbours as [`Request`]s (`man 7 rtnetlink`).
//!
//! Requests are idempotent: what is created may exist, what is deleted may be gone. Answers are read attribute by
//! attribute instead of through the typed library, so that an attribute a newer kernel adds cannot fail a dump.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NetlinkSerializable};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
    },
};

use crate::{
    netlink::{Netlink, NetlinkError, Request, attribute, number},
    plan::Cidr,
};

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// `struct ifinfomsg`, `struct rtmsg`, `struct ifaddrmsg`: sizes, and the attributes read from answers (`linux/if_link.h`,
/// `linux/rtnetlink.h`, `linux/if_addr.h`).
const LINK_HEADER: usize = 16;
const ROUTE_HEADER: usize = 12;
const ADDRESS_HEADER: usize = 8;
const IFLA_IFNAME: u16 = 3;
const IFA_ADDRESS: u16 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;

/// A link as a dump shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Administratively up (`IFF_UP`).
    pub(crate) up: bool,
}

/// An occupied range: an address with its subnet, or a route's destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Occupied {
    pub(crate) range: Cidr,
    /// The link's index; `None` for unreachable and similar routes.
    pub(crate) link: Option<u32>,
}

fn request(message: &RouteNetlinkMessage, flags: u16, what: String, tolerate: &'static [i32]) -> Request {
    let mut body = vec![0; message.buffer_len()];
    message.serialize(&mut body);
    Request { kind: message.message_type(), flags, body, what, tolerate }
}

const CREATE: u16 = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
const REPLACE: u16 = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;

/// Creates a bridge, or accepts the one of that name.
pub(crate) fn create_bridge(name: &str, mac: Mac) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        // Without a fixed address a bridge takes that of a port, and loses it with the port.
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    let what = format!("create bridge {name}");
    request(&RouteNetlinkMessage::NewLink(message), CREATE, what, &[libc::EEXIST])
}

/// One end of a veth pair to be created.
pub(crate) struct VethEnd<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Option<Mac>,
    /// The namespace to create it in; `None`: the socket's own.
    pub(crate) netns: Option<BorrowedFd<'a>>,
    /// The bridge to plug it into.
    pub(crate) bridge: Option<u32>,
}

impl VethEnd<'_> {
    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(self.name.to_owned()));
        message.attributes.extend(self.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        message.attributes.extend(self.netns.map(|netns| LinkAttribute::NetNsFd(netns.as_raw_fd())));
        message.attributes.extend(self.bridge.map(LinkAttribute::Controller));
        message
    }
}

/// Creates a veth pair; both names must be free.
pub(crate) fn create_veth(near: &VethEnd<'_>, far: &VethEnd<'_>) -> Request {
    let mut message = near.message();
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far.message()))),
    ]));
    let what = format!("create veth pair {} - {}", near.name, far.name);
    request(&RouteNetlinkMessage::NewLink(message), CREATE, what, &[])
}

/// Brings a link up or down.
pub(crate) fn set_link(index: u32, up: bool) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    message.header.change_mask = LinkFlags::Up;
    let what = format!("bring link {index} {}", if up { "up" } else { "down" });
    request(&RouteNetlinkMessage::NewLink(message), NLM_F_ACK, what, &[])
}

/// Deletes a link, and with a veth its peer.
pub(crate) fn delete_link(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    request(&RouteNetlinkMessage::DelLink(message), NLM_F_ACK, format!("delete link {index}"), &[libc::ENODEV])
}

/// Gives a link an address with its subnet.
pub(crate) fn add_address(link: u32, address: Ipv4Addr, prefix: u8) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix;
    message.header.index = link;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
    let what = format!("add address {address}/{prefix} to link {link}");
    request(&RouteNetlinkMessage::NewAddress(message), CREATE, what, &[libc::EEXIST])
}

/// Where a route leads.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hop {
    /// To a gateway that a route of the link reaches.
    Via(Ipv4Addr),
    /// Straight out of a link, with a preferred source address.
    Link(u32, Option<Ipv4Addr>),
    /// Nowhere: the sender is told at once (ICMP host unreachable).
    Unreachable,
}

/// Adds a route to the main table, or replaces the one to the same destination.
pub(crate) fn add_route(destination: Cidr, hop: Hop) -> Request {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: AddressFamily::Inet,
        destination_prefix_length: destination.prefix,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        flags: RouteFlags::empty(),
        ..RouteHeader::default()
    };
    message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(destination.address)));
    match hop {
        Hop::Via(gateway) => message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway))),
        Hop::Link(link, source) => {
            message.header.scope = RouteScope::Link;
            message.attributes.push(RouteAttribute::Oif(link));
            message.attributes.extend(source.map(|address| RouteAttribute::PrefSource(RouteAddress::Inet(address))));
        }
        Hop::Unreachable => message.header.kind = RouteType::Unreachable,
    }
    let what = format!("add route {destination} {hop:?}");
    request(&RouteNetlinkMessage::NewRoute(message), REPLACE, what, &[])
}

/// Pins the Ethernet address of a neighbour, so that it is never asked for.
pub(crate) fn add_neighbour(link: u32, address: Ipv4Addr, mac: Mac) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    let what = format!("pin neighbour {address} on link {link}");
    request(&RouteNetlinkMessage::NewNeighbour(message), REPLACE, what, &[])
}

/// All links of the socket's namespace.
pub(crate) fn links(netlink: &mut Netlink) -> Result<Vec<Link>, NetlinkError> {
    let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let replies = netlink.dump(request(&message, NLM_F_DUMP, "list links".to_owned(), &[]))?;
    Ok(replies.iter().filter_map(|reply| parse_link(&reply.body)).collect())
}

/// The link called `name`, if there is one.
pub(crate) fn link(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let message = RouteNetlinkMessage::GetLink(message);
    let replies = netlink.dump(request(&message, 0, format!("look up link {name}"), &[libc::ENODEV]))?;
    Ok(replies.iter().find_map(|reply| parse_link(&reply.body)))
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let name = attribute(body, LINK_HEADER, IFLA_IFNAME)?;
    Some(Link {
        index: number(body, 4)?,
        name: String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned(),
        up: number(body, 8)? & LinkFlags::Up.bits() != 0,
    })
}

/// All IPv4 addresses (as subnets) and routes of the socket's namespace; the kernel's own local table left out.
pub(crate) fn occupied(netlink: &mut Netlink) -> Result<Vec<Occupied>, NetlinkError> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let message = RouteNetlinkMessage::GetAddress(message);
    let addresses = netlink.dump(request(&message, NLM_F_DUMP, "list addresses".to_owned(), &[]))?;
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    let message = RouteNetlinkMessage::GetRoute(message);
    let routes = netlink.dump(request(&message, NLM_F_DUMP, "list routes".to_owned(), &[]))?;
    let addresses = addresses.iter().filter_map(|reply| {
        let range = range(&reply.body, ADDRESS_HEADER, IFA_ADDRESS)?;
        Some(Occupied { range, link: number(&reply.body, 4) })
    });
    let routes = routes.iter().filter_map(|reply| {
        // `rtm_table` 255 (local) repeats the addresses; a route without destination is a default route.
        let range = range(&reply.body, ROUTE_HEADER, RTA_DST).filter(|_| reply.body.get(4) != Some(&255))?;
        let link = attribute(&reply.body, ROUTE_HEADER, RTA_OIF).and_then(|index| number(&index, 0));
        Some(Occupied { range, link })
    });
    Ok(addresses.chain(routes).collect())
}

/// The range in an address or route message: prefix length in the second byte, address in the attribute.
fn range(body: &[u8], header: usize, kind: u16) -> Option<Cidr> {
    let octets: [u8; 4] = attribute(body, header, kind)?.try_into().ok()?;
    Some(Cidr { address: octets.into(), prefix: *body.get(1)? })
}
