//! The gateways of a cluster: started when they are needed, seen through the API, killed under load.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::authority::{self, Authority};
use crate::cluster::{Cluster, http_ask, is_ready, ready};

/// Asks all the time, each request on a connection of its own; answers how often, what failed in spite of `tries`, and the
/// longest time without an answer.
struct Clients {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(usize, Vec<String>, Duration)>,
}

impl Clients {
    fn start(address: &str, tries: usize) -> Self {
        let (stop, address) = (Arc::new(AtomicBool::new(false)), address.to_owned());
        let until = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut asked, mut failed) = (0, Vec::new());
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            while !until.load(Ordering::Relaxed) {
                asked += 1;
                let mut outcomes = (0..tries).map(|_| http_ask(&address, "shop.example.com", "/whoami"));
                match outcomes.find(|outcome| outcome.is_ok()) {
                    Some(_) => {
                        longest = longest.max(last.elapsed());
                        last = Instant::now();
                    }
                    None => failed.push(http_ask(&address, "shop.example.com", "/whoami").err().unwrap_or_default()),
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            (asked, failed, longest.max(last.elapsed()))
        });
        Self { stop, thread }
    }

    fn end(self) -> (usize, Vec<String>, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn condition<'a>(conditions: &'a Value, kind: &str) -> &'a str {
    let found = conditions.as_array().into_iter().flatten().find(|it| it["type"] == kind);
    found.and_then(|it| it["status"].as_str()).unwrap_or_default()
}

fn gateways(cluster: &Cluster) -> Vec<Value> {
    let all = cluster.get(&["pods", "-n", "kube-system", "-l", "app.kubernetes.io/name=mainstay-gateway"]);
    all["items"].as_array().cloned().unwrap_or_default()
}

fn wait_for_address(cluster: &Cluster) -> String {
    cluster.wait("the Gateway is programmed", || {
        let gateway = cluster.get(&["gateway", "shop", "-n", "shop"]);
        condition(&gateway["status"]["conditions"], "Programmed") == "True"
    });
    cluster.wait("two gateways are ready", || ready(&gateways(cluster)) == 2);
    let gateway = cluster.get(&["gateway", "shop", "-n", "shop"]);
    gateway["status"]["addresses"][0]["value"].as_str().unwrap().to_owned()
}

#[test]
fn a_cluster_has_gateways_while_it_needs_them() {
    let cluster = Cluster::up(&["examples/shop"]);
    assert!(gateways(&cluster).is_empty());
    cluster.k(&["apply", "-f", crate::cluster::example("examples/gateway").to_str().unwrap()]);
    let address = wait_for_address(&cluster);
    let nodes: BTreeSet<String> = gateways(&cluster).iter().map(|pod| pod["spec"]["nodeName"].to_string()).collect();
    assert_eq!(nodes.len(), 2, "{nodes:?}");

    // What people see.
    let shown = cluster.k(&["get", "gateway,httproute,ingress,trafficpolicy", "-n", "shop"]);
    assert!(shown.contains(&address) && shown.contains("shop.example.com"), "{shown}");
    let class = cluster.get(&["gatewayclass", "mainstay"]);
    assert_eq!(condition(&class["status"]["conditions"], "Accepted"), "True");
    let gateway = cluster.get(&["gateway", "shop", "-n", "shop"]);
    assert_eq!(gateway["status"]["listeners"][0]["attachedRoutes"], 1);
    let route = cluster.get(&["httproute", "shop", "-n", "shop"]);
    let parent = &route["status"]["parents"][0];
    assert_eq!(parent["controllerName"], "mainstay.dev/gateway");
    assert_eq!(condition(&parent["conditions"], "Accepted"), "True");
    assert_eq!(condition(&parent["conditions"], "ResolvedRefs"), "True");
    cluster.wait("the Ingress has the address", || {
        let ingress = cluster.get(&["ingress", "shop", "-n", "shop"]);
        ingress["status"]["loadBalancer"]["ingress"][0]["ip"] == *address
    });
    let policy = cluster.get(&["trafficpolicy", "shop", "-n", "shop"]);
    assert_eq!(condition(&policy["status"]["conditions"], "Accepted"), "True");

    // What clients see: routes by host and path, on the Gateway's port and on that of Ingresses.
    let (by_gateway, by_ingress) = (format!("{address}:8080"), format!("{address}:80"));
    cluster.wait("both ports answer", || {
        http_ask(&by_gateway, "shop.example.com", "/whoami").is_ok()
            && http_ask(&by_ingress, "old.example.com", "/whoami").is_ok()
    });
    assert!(http_ask(&by_gateway, "shop.example.com", "/items").unwrap().contains("price"));
    let stranger = http_ask(&by_gateway, "other.example.com", "/").unwrap_err();
    assert!(stranger.starts_with("HTTP/1.1 404"), "{stranger}");

    // A reference that leads nowhere is said where it stands, and answered with 500.
    cluster.k(&[
        "patch",
        "httproute",
        "shop",
        "-n",
        "shop",
        "--type=json",
        r#"-p=[{"op":"replace","path":"/spec/rules/0/backendRefs/0/name","value":"nowhere"}]"#,
    ]);
    cluster.wait("the route says that it leads nowhere", || {
        let route = cluster.get(&["httproute", "shop", "-n", "shop"]);
        condition(&route["status"]["parents"][0]["conditions"], "ResolvedRefs") == "False"
    });
    cluster.wait("it is answered with 500", || {
        http_ask(&by_gateway, "shop.example.com", "/items").is_err_and(|it| it.starts_with("HTTP/1.1 500"))
    });
}

#[test]
fn a_cluster_is_degraded_by_hand_on_all_its_gateways() {
    let cluster = Cluster::up(&["examples/shop", "examples/gateway"]);
    let address = format!("{}:8080", wait_for_address(&cluster));
    cluster.wait("the route is served", || http_ask(&address, "shop.example.com", "/whoami").is_ok());
    cluster.k(&[
        "patch",
        "trafficpolicy",
        "shop",
        "-n",
        "shop",
        "--type=merge",
        r#"-p={"spec":{"degradation":{"name":"sale","when":[],"respond":{"status":503,"body":"closed"}}}}"#,
    ]);
    cluster.ok(&["degrade", "on", "sale"]);
    assert!(cluster.ok(&["degrade", "ls"]).contains("shop/shop"));
    let closed = || http_ask(&address, "shop.example.com", "/").is_err_and(|head| head.starts_with("HTTP/1.1 503"));
    // Each connection may land on either gateway.
    cluster.wait("both are degraded", || (0..10).all(|_| closed()));
    cluster.ok(&["degrade", "off", "sale"]);
    let open = || http_ask(&address, "shop.example.com", "/whoami").is_ok();
    cluster.wait("both are as before", || (0..10).all(|_| open()));
    assert!(!cluster.mainstay(&["degrade", "on", "nothing"]).status.success());
}

#[test]
fn a_cluster_shares_the_certificate_that_one_gateway_obtains() {
    let cluster = Cluster::up(&["examples/shop"]);
    cluster.apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: shop, namespace: shop}\nspec:\n  gatewayClassName: mainstay\n  listeners:\n  - {name: http, port: 80, protocol: HTTP}\n  - {name: https, port: 443, protocol: HTTPS, hostname: shop.example.com, tls: {certificateRefs: [{name: shop-tls}]}}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: shop, namespace: shop}\nspec: {parentRefs: [{name: shop}], rules: [{backendRefs: [{name: front, port: 80}]}]}\n",
    );
    let address = wait_for_address(&cluster);
    // The machine's own address on the bridge, and the gateways' as where every name leads.
    let here = cluster.network.replace("0.0/16", "0.1").parse().unwrap();
    let authority = Authority::start(here, &address, 80, 3600);
    let ca: String = authority.ca.lines().flat_map(|line| ["    ", line, "\n"]).collect();
    cluster.apply(&format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca, namespace: shop}}\ndata:\n  ca.crt: |\n{ca}---\n\
         apiVersion: mainstay.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: acme, namespace: shop}}\nspec:\n  targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: shop, sectionName: https}}]\n  acme: {{server: '{}', caCertificateRefs: [{{name: ca}}]}}\n",
        authority.url
    ));
    cluster.wait("the listener has its certificate", || {
        let gateway = cluster.get(&["gateway", "shop", "-n", "shop"]);
        condition(&gateway["status"]["listeners"][1]["conditions"], "ResolvedRefs") == "True"
    });
    assert_eq!(cluster.get(&["secret", "shop-tls", "-n", "shop"])["type"], "kubernetes.io/tls");
    let (root, encrypted) = (authority.root(), format!("{address}:443").parse().unwrap());
    let answers =
        || authority::get(encrypted, "shop.example.com", "/whoami", &root).is_some_and(|it| it.1.contains(" 200 "));
    // Each connection may land on either gateway.
    cluster.wait("both serve it", || (0..10).all(|_| answers()));
}

#[test]
fn gateways_and_endpoints_come_and_go_under_load() {
    let cluster = Cluster::up(&["examples/shop", "examples/gateway"]);
    let address = format!("{}:8080", wait_for_address(&cluster));
    cluster.wait("the route is served", || http_ask(&address, "shop.example.com", "/whoami").is_ok());

    // All endpoints are replaced, one after the other: no request fails, though none is repeated by the client.
    let clients = Clients::start(&address, 1);
    cluster.k(&["rollout", "restart", "deployment/front", "-n", "shop"]);
    cluster.k(&["rollout", "status", "deployment/front", "-n", "shop", "--timeout=60s"]);
    let (asked, failed, gap) = clients.end();
    println!("endpoints replaced: {} of {asked} failed, longest gap {} ms", failed.len(), gap.as_millis());
    assert!(failed.is_empty(), "{failed:?}");

    // A gateway that is deleted finishes what it has, and is out of the way before it stops to listen.
    let clients = Clients::start(&address, 1);
    let name = gateways(&cluster)[0]["metadata"]["name"].as_str().unwrap().to_owned();
    cluster.k(&["delete", "pod", "-n", "kube-system", &name]);
    cluster.wait("two gateways are ready", || ready(&gateways(&cluster)) == 2);
    let (asked, failed, gap) = clients.end();
    println!("gateway deleted: {} of {asked} failed, longest gap {} ms", failed.len(), gap.as_millis());
    assert!(failed.is_empty(), "{failed:?}");

    // One that is killed takes the connections with it that it has at that moment: who asks again is answered by the other.
    let clients = Clients::start(&address, 20);
    let name = gateways(&cluster)[0]["metadata"]["name"].as_str().unwrap().to_owned();
    cluster.ok(&["fault", "kill", &format!("pod/kube-system/{name}")]);
    cluster.wait("it is restarted", || {
        let pod = cluster.get(&["pod", "-n", "kube-system", &name]);
        pod["status"]["containerStatuses"][0]["restartCount"] == 1 && is_ready(&pod)
    });
    let (asked, failed, gap) = clients.end();
    println!("gateway killed: {} of {asked} failed after repetition, longest gap {} ms", failed.len(), gap.as_millis());
    assert!(failed.is_empty(), "{failed:?}");
}
