//! All of Mainstay's kernel networking, spoken over netlink.
//!
//! Role: the hands that give nodes, pods and services their network. Nothing here knows Kubernetes objects; callers hand
//! over addresses, process ids and endpoint lists.
//!
//! Flow, from the whole to the part:
//!
//! - [`plan`]: which address belongs to what. Pure arithmetic on one IPv4 /16.
//! - [`fabric`]: the host side. One bridge, one network namespace per node, a veth pair between them, plain routes.
//! - [`netns`]: named network namespaces, as `ip netns` keeps them.
//! - [`pod`]: inside a node: one routed veth pair per pod (the way Calico wires them), no bridge.
//! - [`services`]: service addresses, load-balancer addresses and node ports as kernel NAT; one nftables transaction.
//! - [`fault`]: links that lose packets one way, lose lookups of names, or are slow, for drills.
//! - [`policy`]: who may talk with which pod.
//! - [`nft`]: the encoder for the nf_tables messages that these need.
//! - [`netlink`]: one blocking netlink socket that sends a batch and names the request that failed.
//!
//! Guarantees: every operation can be repeated (an agent restart repeats them all) and leaves established connections
//! alone. Every call is synchronous: the kernel works a netlink request off inside the `send` itself, so there is nothing
//! to await; only [`services`] with thousands of endpoints takes tens of milliseconds and belongs on a blocking thread.
//!
//! Deliberately absent: IPv6, tunnels between machines, conntrack surgery, an `nft` or `ip` program,
//! `unsafe` code.

#![forbid(unsafe_code)]

pub mod fabric;
pub mod fault;
mod forwarding;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod plan;
pub mod pod;
pub mod policy;
mod route;
pub mod services;
mod sysctl;
