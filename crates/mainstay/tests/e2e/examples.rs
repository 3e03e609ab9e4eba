//! The examples come up, are spread, and answer on every kind of address.

use std::collections::BTreeSet;

use crate::cluster::{Cluster, http_get, ready};

#[test]
fn the_shop_comes_up_spread_and_answers() {
    let cluster = Cluster::up(&["examples/shop"]);
    let pods = cluster.pods("shop");
    assert_eq!(ready(&pods), 9);
    for service in ["front", "catalogue", "cart"] {
        let of_service = pods.iter().filter(|pod| pod["metadata"]["labels"]["app"] == service);
        let nodes: BTreeSet<&str> = of_service.map(|pod| pod["spec"]["nodeName"].as_str().unwrap()).collect();
        assert_eq!(nodes.len(), 3, "{service} must run in every zone");
    }
    // The host reaches load-balancer addresses, cluster addresses, node ports and pods directly.
    assert!(http_get(&cluster.front(), "/?format=json").unwrap().contains("answered_by"));
    let service = cluster.get(&["service", "catalogue", "-n", "shop"]);
    let cluster_ip =
        format!("{}:{}", service["spec"]["clusterIP"].as_str().unwrap(), service["spec"]["ports"][0]["port"]);
    assert!(http_get(&cluster_ip, "/whoami").is_some(), "cluster address {cluster_ip}");
    let pod = pods[0]["status"]["podIP"].as_str().unwrap();
    assert!(http_get(&format!("{pod}:8080"), "/whoami").is_some(), "pod address {pod}");
    let front = cluster.get(&["service", "front", "-n", "shop"]);
    let node_port = &front["spec"]["ports"][0]["nodePort"];
    for node in cluster.get(&["nodes"])["items"].as_array().unwrap() {
        let address = format!("{}:{node_port}", node["status"]["addresses"][0]["address"].as_str().unwrap());
        assert!(http_get(&address, "/whoami").is_some(), "node port {address}");
    }
    // Requests reach all three of a service's pods.
    let who = |_| http_get(&cluster_ip, "/whoami").unwrap_or_default();
    let answered: BTreeSet<String> = (0..60).map(who).filter_map(|text| pod_of(&text)).collect();
    assert_eq!(answered.len(), 3, "{answered:?}");
    assert!(cluster.ok(&["status"]).contains("all is well"));
}

fn pod_of(whoami: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(whoami).ok()?;
    value["pod"].as_str().map(str::to_owned)
}

#[test]
fn installed_nginx_and_redis_run_as_pods() {
    let cluster = Cluster::up(&["examples/nginx-redis"]);
    let services = cluster.get(&["services", "-n", "nginx-redis"]);
    let address = |name: &str| {
        let service = services["items"].as_array().unwrap().iter().find(|s| s["metadata"]["name"] == name).unwrap();
        format!("{}:{}", service["spec"]["clusterIP"].as_str().unwrap(), service["spec"]["ports"][0]["port"])
    };
    assert!(http_get(&address("nginx"), "/").is_some());
    let pong = cluster.k(&["exec", "-n", "nginx-redis", "deploy/redis", "--", "redis-cli", "ping"]);
    assert_eq!(pong.trim(), "PONG");
}
