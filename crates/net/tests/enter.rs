//! Entering a node's namespace (needs root). Without the test harness, whose threads forbid it: this process makes a
//! cluster and starts itself again as the node.
#![allow(clippy::unwrap_used)]

mod support;

use std::{env, net::TcpListener, process::Command, thread};

use mainstay_net::netns::{self, NetnsError};
use support::Cluster;

fn main() {
    if let (Ok(name), Ok(address)) = (env::var("ENTER"), env::var("ADDRESS")) {
        netns::enter(&name).unwrap();
        // Only where the address is the namespace's own can it be bound; threads started later are inside too.
        thread::spawn(move || TcpListener::bind((address, 0)).unwrap()).join().unwrap();
        return;
    }
    let cluster = Cluster::up(225);
    let name = cluster.fabric.netns_name(2);
    assert!(netns::exists(&name) && !netns::exists("ms-none-node-1") && !netns::exists("../passwd"));
    assert_eq!(netns::list(name.trim_end_matches('2')).unwrap().len(), 3);
    let node = Command::new(env::current_exe().unwrap())
        .env("ENTER", &name)
        .env("ADDRESS", cluster.network.node_address(2).unwrap().to_string())
        .status();
    assert!(node.unwrap().success());
    let refusal = thread::spawn(move || netns::enter(&name)).join().unwrap();
    assert!(matches!(refusal, Err(NetnsError::Threads { .. })), "{refusal:?}");
}
