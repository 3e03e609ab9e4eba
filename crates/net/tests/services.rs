//! Services on the real kernel (needs root): every way to reach one, refusal, distribution, change under load.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use mainstay_net::services::{Protocol, ServicePort, ServiceTable};
use support::{Cluster, Place, cluster_address, external_address, service};

#[test]
fn a_service_is_reached_by_every_address_from_everywhere() {
    let cluster = Cluster::up(218);
    let server = cluster.pod(1, 5);
    let neighbour = cluster.pod(1, 6);
    let distant = cluster.pod(2, 5);
    let web = service(&cluster, 1, &[&server]);
    cluster.apply(std::slice::from_ref(&web));
    let node_port = |node| SocketAddrV4::new(cluster.network.node_address(node).unwrap(), web.node_port.unwrap());
    let addresses =
        [server.endpoint(), cluster_address(&web), external_address(&web), node_port(1), node_port(2), node_port(3)];
    let (node1, node3) = (cluster.node(1), cluster.node(3));
    // The last is the pod itself, through its own service and back.
    for place in [&Place::HOST, &node1, &node3, &neighbour.place, &distant.place, &server.place] {
        for address in addresses {
            assert_eq!(place.who(address), server.ip.to_string());
        }
    }
    // Pods are seen under their own address, through the service too.
    for address in [server.endpoint(), cluster_address(&web), external_address(&web)] {
        assert_eq!(neighbour.place.connect(address).unwrap().client, neighbour.ip.to_string());
        assert_eq!(distant.place.connect(address).unwrap().client, distant.ip.to_string());
        assert_eq!(Place::HOST.connect(address).unwrap().client, cluster.network.host_address().to_string());
    }

    let dns = ServicePort { name: "default/dns:udp".to_owned(), protocol: Protocol::Udp, ..web };
    cluster.apply(std::slice::from_ref(&dns));
    for place in [&Place::HOST, &node3, &neighbour.place, &distant.place, &server.place] {
        for address in [cluster_address(&dns), external_address(&dns), node_port(2)] {
            assert_eq!(place.udp_who(address).unwrap(), server.ip.to_string());
        }
        place.refused(cluster_address(&dns));
    }
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let cluster = Cluster::up(219);
    let client = cluster.pod(1, 5);
    let mut empty = service(&cluster, 1, &[]);
    empty.external_ips.push(Ipv4Addr::new(203, 0, 113, 7));
    cluster.apply(std::slice::from_ref(&empty));
    let node2 = SocketAddrV4::new(cluster.network.node_address(2).unwrap(), empty.node_port.unwrap());
    let outside = SocketAddrV4::new(empty.external_ips[1], 80);
    let nobody = SocketAddrV4::new(cluster.network.dns_service_address(), 53);
    for place in [&Place::HOST, &cluster.node(2), &client.place] {
        for address in [cluster_address(&empty), external_address(&empty), node2, outside, nobody] {
            place.refused(address);
        }
        // From where the packet would leave, the kernel says "not permitted" instead of sending itself an ICMP message.
        let refusals = [std::io::ErrorKind::ConnectionRefused, std::io::ErrorKind::PermissionDenied];
        assert!(refusals.contains(&place.udp_who(nobody).unwrap_err().kind()));
    }
}

#[test]
fn connections_spread_and_stick_and_survive_changes() {
    let cluster = Cluster::up(220);
    let pods = [cluster.pod(1, 5), cluster.pod(2, 5), cluster.pod(3, 5)];
    let all = [&pods[0], &pods[1], &pods[2]];
    let mut web = service(&cluster, 1, &all);
    cluster.apply(std::slice::from_ref(&web));
    let mut counts = BTreeMap::<String, u32>::new();
    for _ in 0..300 {
        *counts.entry(Place::HOST.who(cluster_address(&web))).or_default() += 1;
    }
    // 100 each expected, standard deviation 8: 50 is more than six away.
    assert!(counts.len() == 3 && counts.values().all(|count| *count > 50), "{counts:?}");

    // A connection outlives its rules: the same again, its endpoint taken away, the service taken away.
    let mut connection = pods[0].place.connect(cluster_address(&web)).unwrap();
    cluster.apply(std::slice::from_ref(&web));
    assert!(connection.says("same rules"));
    let others: Vec<_> = all.into_iter().filter(|pod| pod.ip.to_string() != connection.who).collect();
    cluster.apply(&[service(&cluster, 1, &others)]);
    assert!(connection.says("endpoint gone"));
    assert!((0..30).all(|_| pods[0].place.who(cluster_address(&web)) != connection.who));
    cluster.apply(&[]);
    assert!(connection.says("service gone"));
    pods[0].place.refused(cluster_address(&web));

    // With affinity a client stays where it is, on every node the same.
    web.affinity = Some(Duration::from_secs(10800));
    cluster.apply(std::slice::from_ref(&web));
    for pod in &pods {
        let answers: BTreeSet<_> = (0..20).map(|_| pod.place.who(cluster_address(&web))).collect();
        assert_eq!(answers.len(), 1, "{answers:?}");
    }
}

#[test]
fn connections_to_an_endpoint_that_is_gone_are_cut_where_that_is_asked_for() {
    let cluster = Cluster::up(226);
    let pods = [cluster.pod(1, 5), cluster.pod(2, 5), cluster.pod(3, 5)];
    let primary = |at: usize| ServicePort { cut: true, ..service(&cluster, 1, &[&pods[at]]) };
    cluster.apply(&[primary(0)]);
    for place in [&pods[1].place, &pods[2].place, &Place::HOST, &cluster.node(3)] {
        let mut connection = place.connect(cluster_address(&primary(0))).unwrap();
        cluster.apply(&[primary(0), service(&cluster, 2, &[])]);
        assert!(connection.says("still the same"));
        cluster.apply(&[primary(1)]);
        assert!(!connection.says("another is primary"));
        let mut again = place.connect(cluster_address(&primary(1))).unwrap();
        assert!(again.says("the new one"));
        cluster.apply(&[]);
        cluster.apply(&[primary(0)]);
        assert!(!again.says("and back"));
    }
}

#[test]
fn a_thousand_services_in_one_transaction() {
    let cluster = Cluster::up(221);
    let server = cluster.pod(1, 5);
    let [a, b, ..] = cluster.network.cidr().address.octets();
    let many = |endpoints: u16| -> Vec<_> {
        let one = |number: u16| {
            let [high, low] = number.to_be_bytes();
            ServicePort {
                name: format!("default/service-{number}:http"),
                cluster_ip: Some(Ipv4Addr::new(a, b, 200 + high, low)),
                external_ips: vec![],
                node_port: Some(30000 + number),
                // Many ports, of which only one answers: the last service has only that.
                endpoints: (0..endpoints).map(|port| SocketAddrV4::new(server.ip, 8080 + port)).collect(),
                ..service(&cluster, 1, &[&server])
            }
        };
        (0..1000).map(one).collect()
    };
    let mut services = many(10);
    services.last_mut().unwrap().endpoints.truncate(1);
    let mut table = ServiceTable::new(&cluster.instance);
    for _ in 0..3 {
        let start = Instant::now();
        assert!(table.apply(&cluster.rules(0, &services)).unwrap());
        println!("1,000 services of 10 endpoints: {:?}", start.elapsed());
        services.rotate_left(1);
        assert!(!table.apply(&cluster.rules(0, &services)).unwrap(), "order alone is no change");
        services[0].endpoints.pop();
    }
    assert_eq!(Place::HOST.who(SocketAddrV4::new(Ipv4Addr::new(a, b, 203, 231), 80)), server.ip.to_string());
}

#[test]
fn a_refused_transaction_names_its_message_and_changes_nothing() {
    use mainstay_net::nft::{self, Message};
    let cluster = Cluster::up(222);
    let table = mainstay_net::plan::table_name(&cluster.instance);
    let rule = Message::NewRule("no-such-chain".to_owned(), vec![]);
    let error = nft::commit(&table, &[Message::NewTable, rule]).unwrap_err();
    assert!(error.to_string().contains("append a rule to chain no-such-chain"), "{error}");
    assert_eq!(error.refused_errno(), Some(2));
    assert!(!nft::table_names().unwrap().contains(&table));
}

/// The host is the way out: what is outside sees the host. Another cluster plays the outside.
#[test]
fn pods_leave_the_cluster_with_the_hosts_address() {
    let (inside, outside) = (Cluster::up(223), Cluster::up(224));
    let (pod, server) = (inside.pod(1, 5), outside.pod(2, 5));
    assert_eq!(pod.place.connect(server.endpoint()).unwrap().client, pod.ip.to_string());
    inside.apply(&[]);
    let seen = pod.place.connect(server.endpoint()).unwrap().client;
    assert_eq!(seen, outside.network.host_address().to_string());
    // Not so within the cluster.
    let neighbour = inside.pod(2, 5);
    assert_eq!(pod.place.connect(neighbour.endpoint()).unwrap().client, pod.ip.to_string());
}
