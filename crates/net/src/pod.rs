//! The link of a pod, made inside the node's namespace, routed as Calico does it.
//!
//! ```text
//!   node namespace                          pod namespace (of process PID)
//!   pod<hash>  ee:ee:ee:ee:ee:ee ═════════ eth0  IP/32
//!   route IP/32 → pod<hash>                 default via 169.254.1.1, pinned to ee:ee:ee:ee:ee:ee
//! ```
//!
//! The gateway 169.254.1.1 exists nowhere: its Ethernet address is pinned in the pod, and the pod's in the node, so no
//! address is ever asked for with ARP. With routes instead of a bridge in the node, a packet that a service sends back to
//! the pod it came from needs no hairpin mode and no `br_netfilter`.
//!
//! Call [`attach`] and [`detach`] from a process in the node's namespace. Both can be repeated. Blocking, 1 to 2 ms.

use std::{
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::{fd::AsFd, unix::fs::MetadataExt},
};

use crate::{
    fabric::ANYWHERE,
    netlink::{Netlink, NetlinkError},
    netns::{self, NetnsError},
    plan::{self, Cidr},
    route::{self, Hop, Mac, VethEnd},
};

/// Makes `address` one of the calling process's namespace's own, on its loopback link. Can be repeated.
///
/// # Errors
/// When the kernel refuses.
pub fn add_own_address(address: Ipv4Addr) -> Result<(), PodError> {
    let step = |step| move |source| PodError::Netlink { step, source };
    let mut netlink = Netlink::open_route().map_err(step("open netlink"))?;
    if let Some(lo) = route::link(&mut netlink, "lo").map_err(step("look up the loopback link"))? {
        let requests = [route::set_link(lo.index, true), route::add_address(lo.index, address, 32)];
        netlink.transact(&requests).map_err(step("add an address to the loopback link"))?;
    }
    Ok(())
}

/// The pods' gateway: link-local, the same in every pod (Calico's choice).
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The Ethernet address of the node's end of every pod link; each is alone with its pod, so they may be equal.
const GATEWAY_MAC: Mac = [0xee; 6];

/// Why a pod could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The process or its namespace is gone.
    #[error("cannot open the network namespace of process {pid}; has it ended?")]
    OpenNamespace {
        /// The process.
        pid: u32,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The process shares the caller's namespace, whose links must not be touched.
    #[error("process {pid} is in the node's own network namespace (a host-network pod has nothing to attach)")]
    NodeNamespace {
        /// The process.
        pid: u32,
    },
    /// The pod's namespace could not be entered.
    #[error(transparent)]
    Enter(#[from] NetnsError),
    /// The kernel refused a link, address or route.
    #[error("cannot {step}")]
    Netlink {
        /// The step.
        step: &'static str,
        /// The refusal.
        #[source]
        source: NetlinkError,
    },
}

fn step(step: &'static str) -> impl FnOnce(NetlinkError) -> PodError {
    move |source| PodError::Netlink { step, source }
}

/// Gives the network namespace of process `pid` an `eth0` with address `ip`, reachable from the calling namespace.
///
/// `uid` names the node's end; the same uid finds the same link again. A link left over from an earlier namespace of the
/// same pod is replaced.
pub fn attach(pid: u32, uid: &str, ip: Ipv4Addr) -> Result<(), PodError> {
    let namespace = open_namespace(pid)?;
    let mut node = Netlink::open_route().map_err(step("open netlink in the node"))?;
    let pod = netns::within(&format!("of process {pid}"), namespace.as_fd(), Netlink::open_route)?;
    let mut pod = pod.map_err(step("open netlink in the pod"))?;

    // A pair is complete or it is made anew.
    let name = plan::pod_link_name(uid);
    let mut near = route::link(&mut node, &name).map_err(step("look up the node's end"))?;
    let mut far = route::link(&mut pod, "eth0").map_err(step("look up the pod's end"))?;
    if near.is_none() || far.is_none() {
        let mut requests = Vec::new();
        requests.extend(near.map(|stale| route::delete_link(stale.index)));
        let near_end = VethEnd { name: &name, mac: Some(GATEWAY_MAC), netns: None, bridge: None };
        let far_end = VethEnd { name: "eth0", mac: Some(pod_mac(uid)), netns: Some(namespace.as_fd()), bridge: None };
        requests.push(route::create_veth(&near_end, &far_end));
        node.transact(&requests).map_err(step("create the pod's link"))?;
        near = route::link(&mut node, &name).map_err(step("look up the node's end"))?;
        far = route::link(&mut pod, "eth0").map_err(step("look up the pod's end"))?;
    }
    let (Some(near), Some(far)) = (near, far) else {
        let source = NetlinkError::NoAnswer { what: format!("look up {name}, just created") };
        return Err(PodError::Netlink { step: "find the pod's link", source });
    };

    // The pod's end first: the node's end has a carrier only then.
    let lo = route::link(&mut pod, "lo").map_err(step("look up the pod's loopback"))?;
    let mut requests: Vec<_> = lo.iter().map(|lo| route::set_link(lo.index, true)).collect();
    requests.extend([
        route::set_link(far.index, true),
        route::add_address(far.index, ip, 32),
        route::add_neighbour(far.index, GATEWAY, GATEWAY_MAC),
        route::add_route(Cidr { address: GATEWAY, prefix: 32 }, Hop::Link(far.index, None)),
        route::add_route(ANYWHERE, Hop::Via(GATEWAY)),
    ]);
    pod.transact(&requests).map_err(step("set up the pod's end"))?;
    node.transact(&[
        route::set_link(near.index, true),
        route::add_neighbour(near.index, ip, pod_mac(uid)),
        route::add_route(Cidr { address: ip, prefix: 32 }, Hop::Link(near.index, None)),
    ])
    .map_err(step("set up the node's end"))
}

/// Removes the link of pod `uid`, and with it the route to the pod. Nothing to remove is success.
pub fn detach(uid: &str) -> Result<(), PodError> {
    let mut node = Netlink::open_route().map_err(step("open netlink in the node"))?;
    let link = route::link(&mut node, &plan::pod_link_name(uid)).map_err(step("look up the node's end"))?;
    let requests: Vec<_> = link.iter().map(|link| route::delete_link(link.index)).collect();
    node.transact(&requests).map_err(step("delete the pod's link"))
}

/// Takes the link of pod `uid` down, so that it reaches nobody and nobody reaches it; [`attach`] brings it up again, with
/// the routes that a link loses on its way down. Without a link nothing is done.
pub fn cut(uid: &str) -> Result<(), PodError> {
    let mut node = Netlink::open_route().map_err(step("open netlink in the node"))?;
    let link = route::link(&mut node, &plan::pod_link_name(uid)).map_err(step("look up the node's end"))?;
    let requests: Vec<_> = link.iter().map(|link| route::set_link(link.index, false)).collect();
    node.transact(&requests).map_err(step("take the pod's link down"))
}

fn open_namespace(pid: u32) -> Result<File, PodError> {
    let failed = |source| PodError::OpenNamespace { pid, source };
    let file = File::open(format!("/proc/{pid}/ns/net")).map_err(failed)?;
    let theirs = file.metadata().map_err(failed)?;
    let ours = fs::metadata("/proc/thread-self/ns/net").map_err(failed)?;
    if (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()) {
        return Err(PodError::NodeNamespace { pid });
    }
    Ok(file)
}

/// A locally administered address from the uid: known to the node without asking.
fn pod_mac(uid: &str) -> Mac {
    let [a, b, c, d] = plan::fnv1a(uid.as_bytes()).to_be_bytes();
    [0x02, 0x70, a, b, c, d]
}
