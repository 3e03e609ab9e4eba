//! The host side of the cluster network: bridge, node namespaces, the links between them, and routes.
//!
//! ```text
//!   host namespace                                node namespace ms-<id>-node-<i>
//!   bridge ms-<id>  X.Y.0.1/24 ── ms<id>n<i> ═══ eth0  X.Y.0.(10+i)/24, default via X.Y.0.1
//!   pods of node i via X.Y.0.(10+i)               pods of node j via X.Y.0.(10+j); own pods: see `pod`
//!   services, load balancer → bridge              own pod range otherwise unreachable
//! ```
//!
//! Flow: [`Fabric::preflight`] (is the range free?), [`Fabric::up`], [`Fabric::set_link`] for faults, [`Fabric::down`].
//!
//! Guarantees: `up` and `down` can be repeated and interrupted; `down` leaves the machine as it was. The service and
//! load-balancer ranges are routed to the bridge only so that a lookup finds a route; the NAT rules of
//! [`services`](crate::services) rewrite such packets before they would leave.
//!
//! Deliberately absent: other machines (a joined machine brings its own fabric), shrinking (`up` with fewer nodes than
//! before leaves the others), the machine's own firewall: one that drops forwarded packets also drops those of pods.

use std::{io, path::PathBuf, thread};

use crate::{
    forwarding::Forwarding,
    netlink::{Netlink, NetlinkError},
    netns::{self, NetnsError},
    plan::{self, Cidr, Network, PlanError},
    route::{self, Hop, Mac, VethEnd},
    services, sysctl,
};

/// Where the former value of `ip_forward` is kept unless the caller says otherwise. All clusters of a machine must name
/// the same file.
pub const FORWARDING_FILE: &str = "/run/mainstay/ip_forward";

/// Everything: the destination of a default route.
pub(crate) const ANYWHERE: Cidr = Cidr { address: std::net::Ipv4Addr::UNSPECIFIED, prefix: 0 };

/// Why a step on the host side failed.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    /// The range is in use by something that is not this cluster's.
    #[error(
        "the cluster network {network} overlaps {range}, which this machine uses on {interface}; \
         choose another with --network, for example --network 10.91.0.0/16"
    )]
    Overlap {
        /// The cluster's network.
        network: Network,
        /// What it overlaps.
        range: Cidr,
        /// The interface it was found on.
        interface: String,
    },
    /// A node number outside the plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A network namespace could not be made, entered or removed.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel refused a link, address or route.
    #[error("cannot {step}")]
    Netlink {
        /// The step.
        step: String,
        /// The refusal.
        #[source]
        source: NetlinkError,
    },
    /// A kernel setting could not be written.
    #[error("cannot set up forwarding in {place}")]
    Forwarding {
        /// Host or namespace.
        place: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The node's link does not exist.
    #[error("node {node} has no link {link} on this machine; is the cluster up?")]
    NoLink {
        /// The node's number.
        node: u32,
        /// The link's name.
        link: String,
    },
}

fn step(step: impl Into<String>) -> impl FnOnce(NetlinkError) -> FabricError {
    let step = step.into();
    move |source| FabricError::Netlink { step, source }
}

/// The host side of one cluster's network.
#[derive(Debug, Clone)]
pub struct Fabric {
    network: Network,
    instance: String,
    forwarding_file: PathBuf,
}

impl Fabric {
    /// A fabric for `network`, its kernel objects named after `instance` (see [`plan::instance_id`]). Does nothing yet.
    ///
    /// `forwarding_file` remembers the machine's `ip_forward`; usually [`FORWARDING_FILE`].
    pub fn new(network: Network, instance: impl Into<String>, forwarding_file: impl Into<PathBuf>) -> Self {
        Self { network, instance: instance.into(), forwarding_file: forwarding_file.into() }
    }

    /// The address plan.
    pub fn network(&self) -> Network {
        self.network
    }

    /// The name of node `node`'s network namespace, for [`netns::enter`].
    pub fn netns_name(&self, node: u32) -> String {
        plan::netns_name(&self.instance, node)
    }

    /// Checks that no address or route of this machine, this cluster's own aside, overlaps the network.
    ///
    /// Default routes, and the pair of /1 routes by which some VPN clients replace one, do not count.
    pub fn preflight(&self) -> Result<(), FabricError> {
        let failed = || step("look at this machine's addresses and routes");
        let mut netlink = Netlink::open_route().map_err(failed())?;
        let links = route::links(&mut netlink).map_err(failed())?;
        let bridge = plan::bridge_name(&self.instance);
        for occupied in route::occupied(&mut netlink).map_err(failed())? {
            let interface = links.iter().find(|link| Some(link.index) == occupied.link);
            let interface = interface.map_or("no interface (an unreachable or blackhole route)", |link| &link.name);
            let range = occupied.range;
            if range.prefix > 1 && interface != bridge && range.overlaps(self.network.cidr()) {
                return Err(FabricError::Overlap { network: self.network, range, interface: interface.to_owned() });
            }
        }
        Ok(())
    }

    /// Creates whatever is missing for nodes 1 to `nodes`.
    pub fn up(&self, nodes: u32) -> Result<(), FabricError> {
        self.network.node_address(nodes.max(1))?;
        let on_host = |source| FabricError::Forwarding { place: "the host".to_owned(), source };
        let mut forwarding = Forwarding::lock(&self.forwarding_file).map_err(on_host)?;
        let mut netlink = Netlink::open_route().map_err(step("open netlink"))?;

        // The bridge first: the veth pairs are created plugged into it.
        let bridge = self.raise_bridge(&mut netlink)?;
        forwarding.enable().map_err(on_host)?;

        // Making a namespace takes a millisecond or two of waiting inside the kernel, so all are made at once.
        let namespaces = self.for_each_node(nodes, |node| netns::create(&self.netns_name(node)))?;

        // A pair has its far end created directly inside the node, under the name it keeps.
        let mut requests = Vec::new();
        for (node, namespace) in (1..).zip(&namespaces) {
            use std::os::fd::AsFd;
            let near = plan::host_link_name(&self.instance, node);
            if route::link(&mut netlink, &near).map_err(step("look up the node's link"))?.is_none() {
                let near = VethEnd { name: &near, mac: None, netns: None, bridge: Some(bridge) };
                let far =
                    VethEnd { name: "eth0", mac: Some(self.mac(node)), netns: Some(namespace.as_fd()), bridge: None };
                requests.push(route::create_veth(&near, &far));
            }
        }
        netlink.transact(&requests).map_err(step("create the links to the nodes"))?;
        self.raise_host_links(&mut netlink, nodes)?;

        // Inside, every node is its own world.
        self.for_each_node(nodes, |node| self.raise_node(node, nodes))?;
        Ok(())
    }

    /// Removes everything this cluster has in the kernel's network: links, namespaces, routes, rules. Nothing to do is
    /// success. Processes still inside a namespace keep it alive, cut off.
    pub fn down(&self) -> Result<(), FabricError> {
        let on_host = |source| FabricError::Forwarding { place: "the host".to_owned(), source };
        let forwarding = Forwarding::lock(&self.forwarding_file).map_err(on_host)?;
        let mut netlink = Netlink::open_route().map_err(step("open netlink"))?;
        let bridge = plan::bridge_name(&self.instance);
        let prefix = plan::host_link_prefix(&self.instance);
        let links = route::links(&mut netlink).map_err(step("list links"))?;
        let (own, rest): (Vec<_>, Vec<_>) =
            links.into_iter().partition(|link| link.name == bridge || link.name.starts_with(&prefix));
        // Routes and addresses go with the bridge, the nodes' ends with the hosts' ends.
        let requests: Vec<_> = own.iter().map(|link| route::delete_link(link.index)).collect();
        netlink.transact(&requests).map_err(step("delete the links of the cluster"))?;
        for name in netns::list(&plan::netns_prefix(&self.instance))? {
            netns::remove(&name)?;
        }
        services::remove_table(&self.instance).map_err(step("remove the service rules"))?;
        let others = rest.iter().any(|link| link.name.starts_with("ms-") && link.name.len() == bridge.len());
        forwarding.restore(others).map_err(on_host)
    }

    /// Takes the link of node `node` down or up, at the host's end: the node loses its carrier but keeps addresses and
    /// routes, as if its cable were pulled. Up again, it works as before.
    pub fn set_link(&self, node: u32, up: bool) -> Result<(), FabricError> {
        let mut netlink = Netlink::open_route().map_err(step("open netlink"))?;
        let link = self.host_link(&mut netlink, node)?;
        netlink.transact(&[route::set_link(link.index, up)]).map_err(step(format!("set the link of node {node}")))
    }

    /// Whether the link of node `node` is up, as far as [`set_link`](Self::set_link) is concerned.
    pub fn link_is_up(&self, node: u32) -> Result<bool, FabricError> {
        let mut netlink = Netlink::open_route().map_err(step("open netlink"))?;
        self.host_link(&mut netlink, node).map(|link| link.up)
    }

    fn host_link(&self, netlink: &mut Netlink, node: u32) -> Result<route::Link, FabricError> {
        let name = plan::host_link_name(&self.instance, node);
        let link = route::link(netlink, &name).map_err(step("look up the node's link"))?;
        link.ok_or(FabricError::NoLink { node, link: name })
    }

    fn raise_bridge(&self, netlink: &mut Netlink) -> Result<u32, FabricError> {
        let name = plan::bridge_name(&self.instance);
        netlink.transact(&[route::create_bridge(&name, self.mac(0))]).map_err(step("create the bridge"))?;
        let bridge = route::link(netlink, &name).map_err(step("look up the bridge"))?;
        let bridge = bridge.ok_or(FabricError::NoLink { node: 0, link: name })?.index;
        let host = self.network.host_address();
        let to_bridge = Hop::Link(bridge, Some(host));
        netlink
            .transact(&[
                route::set_link(bridge, true),
                route::add_address(bridge, host, self.network.node_subnet().prefix),
                route::add_route(self.network.service_range(), to_bridge),
                route::add_route(self.network.load_balancer_range(), to_bridge),
            ])
            .map_err(step("set up the bridge"))?;
        Ok(bridge)
    }

    fn raise_host_links(&self, netlink: &mut Netlink, nodes: u32) -> Result<(), FabricError> {
        let mut requests = Vec::new();
        for node in 1..=nodes {
            requests.push(route::set_link(self.host_link(netlink, node)?.index, true));
            let gateway = self.network.node_address(node)?;
            requests.push(route::add_route(self.network.pod_cidr(node)?, Hop::Via(gateway)));
        }
        netlink.transact(&requests).map_err(step("raise the links to the nodes"))
    }

    /// Addresses, routes and settings inside a node's namespace.
    fn raise_node(&self, node: u32, nodes: u32) -> Result<(), FabricError> {
        let name = self.netns_name(node);
        // Settings belong to the namespace of the thread that writes them; the socket may be used from outside later.
        let opened = netns::within_named(&name, || prepare_namespace().map(|()| Netlink::open_route()))?;
        let opened = opened.map_err(|source| FabricError::Forwarding { place: name.clone(), source })?;
        let mut netlink = opened.map_err(step("open netlink in the node"))?;
        let link = |netlink: &mut Netlink, name: &str| {
            let found = route::link(netlink, name).map_err(step("look up a link in the node"))?;
            found.ok_or_else(|| FabricError::NoLink { node, link: name.to_owned() })
        };
        let eth0 = link(&mut netlink, "eth0")?.index;
        let lo = link(&mut netlink, "lo")?.index;
        let mut requests = vec![
            route::set_link(lo, true),
            route::set_link(eth0, true),
            route::add_address(eth0, self.network.node_address(node)?, self.network.node_subnet().prefix),
            route::add_route(ANYWHERE, Hop::Via(self.network.host_address())),
        ];
        for other in 1..=nodes {
            // A packet for a pod that is gone must not go back out to the host, which would return it.
            let hop = if other == node { Hop::Unreachable } else { Hop::Via(self.network.node_address(other)?) };
            requests.push(route::add_route(self.network.pod_cidr(other)?, hop));
        }
        netlink.transact(&requests).map_err(step(format!("set up node {node}'s addresses and routes")))
    }

    /// Locally administered addresses that stay the same when a link is made again, so that neighbours need not relearn.
    fn mac(&self, node: u32) -> Mac {
        let [_, _, high, low] = plan::fnv1a(self.instance.as_bytes()).to_be_bytes();
        [0x02, 0x6d, high, low, 0, node as u8]
    }

    fn for_each_node<T: Send, E: Into<FabricError> + Send>(
        &self,
        nodes: u32,
        work: impl Fn(u32) -> Result<T, E> + Sync,
    ) -> Result<Vec<T>, FabricError> {
        let work = &work;
        thread::scope(|scope| {
            let threads: Vec<_> = (1..=nodes).map(|node| (node, scope.spawn(move || work(node)))).collect();
            let join = |(node, thread): (u32, thread::ScopedJoinHandle<'_, Result<T, E>>)| match thread.join() {
                Ok(result) => result.map_err(Into::into),
                Err(_) => Err(NetnsError::Thread(self.netns_name(node)).into()),
            };
            threads.into_iter().map(join).collect()
        })
    }
}

/// Settings of the calling thread's namespace: a node forwards for its pods, accepts packets on the link it would not use
/// itself, and has no IPv6 of its own (which would only add chatter to every link that comes up).
fn prepare_namespace() -> io::Result<()> {
    sysctl::write("ipv4/ip_forward", "1")?;
    sysctl::write("ipv4/conf/all/rp_filter", "0")?;
    sysctl::write("ipv4/conf/default/rp_filter", "0")?;
    match sysctl::write("ipv6/conf/default/disable_ipv6", "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
