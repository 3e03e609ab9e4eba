//! The fabric on the real kernel (needs root): up, faults, down.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    net::SocketAddrV4,
    time::{Duration, Instant},
};

use mainstay_net::{
    fabric::{FORWARDING_FILE, Fabric, FabricError},
    pod,
    services::ServiceTable,
};
use support::{Cluster, NODES, Place, service, traces};

#[test]
fn ten_rounds_leave_the_machine_as_it_was() {
    let cluster = Cluster::new(214);
    let rules = cluster.rules(0, &[service(&cluster, 1, &[])]);
    for round in 0..10 {
        assert_eq!(traces(&cluster), [""; 0], "round {round}");
        let start = Instant::now();
        cluster.fabric.up(NODES).unwrap();
        let up = start.elapsed();
        ServiceTable::new(&cluster.instance).apply(&rules).unwrap();
        assert!(traces(&cluster).len() > 10);
        // What is there already is kept.
        cluster.fabric.up(NODES).unwrap();
        let start = Instant::now();
        cluster.fabric.down().unwrap();
        println!("round {round}: up {up:?}, down {:?}", start.elapsed());
        cluster.fabric.down().unwrap();
    }
    assert_eq!(traces(&cluster), [""; 0]);
}

#[test]
fn an_overlapping_network_is_refused_by_name() {
    let cluster = Cluster::up(215);
    cluster.fabric.preflight().unwrap();
    let other = Fabric::new(cluster.network, "0000", FORWARDING_FILE);
    let error = other.preflight().unwrap_err();
    assert!(matches!(&error, FabricError::Overlap { interface, .. } if interface.starts_with("ms-")), "{error}");
    assert!(error.to_string().contains("--network"), "{error}");
}

#[test]
fn a_link_down_cuts_the_node_off_and_up_restores_it() {
    let cluster = Cluster::up(216);
    let pods = [cluster.pod(1, 5), cluster.pod(2, 5)];
    let is_cut_off = |from: &Place, to: SocketAddrV4| from.connect_within(to, Duration::from_millis(500)).is_err();
    // Long enough for the kernel to ask for a neighbour, or to send the first packet, again.
    let reach = |from: &Place, to: SocketAddrV4| from.connect_within(to, Duration::from_secs(10)).is_ok();
    assert!(reach(&Place::HOST, pods[0].endpoint()) && reach(&pods[1].place, pods[0].endpoint()));
    assert!(cluster.fabric.link_is_up(1).unwrap());

    cluster.fabric.set_link(1, false).unwrap();
    assert!(!cluster.fabric.link_is_up(1).unwrap());
    assert!(cluster.fabric.link_is_up(2).unwrap());
    assert!(is_cut_off(&Place::HOST, pods[0].endpoint()));
    assert!(is_cut_off(&pods[1].place, pods[0].endpoint()));
    assert!(reach(&Place::HOST, pods[1].endpoint()));

    cluster.fabric.set_link(1, true).unwrap();
    assert!(cluster.fabric.link_is_up(1).unwrap());
    assert!(reach(&Place::HOST, pods[0].endpoint()));
    assert!(reach(&pods[1].place, pods[0].endpoint()));
    assert!(reach(&pods[0].place, pods[1].endpoint()));
}

#[test]
fn a_pod_can_be_attached_again_and_is_gone_when_detached() {
    let cluster = Cluster::up(217);
    let pod = cluster.pod(1, 5);
    let attach = || {
        let start = Instant::now();
        pod::attach(pod.pid(), &pod.uid, pod.ip).unwrap();
        start.elapsed()
    };
    let mut connection = Place::HOST.connect(pod.endpoint()).unwrap();
    println!("attached again in {:?}", cluster.node(1).run(attach));
    assert!(connection.says("still there"));

    cluster.node(1).run(|| pod::detach(&pod.uid).unwrap());
    cluster.node(1).run(|| pod::detach(&pod.uid).unwrap());
    // The node says so at once instead of letting the client wait.
    let start = Instant::now();
    assert!(Place::HOST.connect(pod.endpoint()).is_err());
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());

    println!("attached anew in {:?}", cluster.node(1).run(attach));
    assert!(Place::HOST.connect(pod.endpoint()).is_ok());
    assert!(matches!(pod::attach(std::process::id(), "x", pod.ip), Err(pod::PodError::NodeNamespace { .. })));
}
