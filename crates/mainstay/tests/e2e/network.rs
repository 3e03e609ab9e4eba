//! The network between pods: policies, host ports, traffic policies.
//!
//! <https://kubernetes.io/docs/concepts/services-networking/network-policies/>,
//! <https://kubernetes.io/docs/reference/networking/virtual-ips/#traffic-policies>,
//! <https://kubernetes.io/docs/reference/networking/virtual-ips/#traffic-distribution>.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, http_ask, http_get};

/// A pod that tells on port 8080 who asks.
fn server(name: &str, namespace: &str, more: &str) -> String {
    let program = "import http.server as h\nclass H(h.BaseHTTPRequestHandler):\n  def do_GET(s):\n    s.send_response(200); s.end_headers(); s.wfile.write(s.client_address[0].encode())\n  def log_message(*a): pass\nh.ThreadingHTTPServer(('', 8080), H).serve_forever()";
    let program = serde_json::to_string(program).unwrap();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - name: c\n    image: mainstay.dev/host\n    command: [python3, -c, {program}]\n    ports: [{{name: web, containerPort: 8080{more}}}]\n    readinessProbe: {{httpGet: {{port: 8080}}, periodSeconds: 1}}\n"
    )
}

/// Waits until asking succeeds, or fails, as it should; a rule takes a moment from the API to the kernel.
fn reaches(cluster: &Cluster, from: (&str, &str), to: &str, expected: bool) {
    let (namespace, pod) = from;
    let ask = || {
        let args = ["exec", "-n", namespace, pod, "--", "curl", "-sm1", to];
        cluster.kubectl(&args).output().unwrap().status.success()
    };
    let since = Instant::now();
    while ask() != expected {
        assert!(since.elapsed() < Duration::from_secs(10), "{pod} of {namespace} to {to}: not {expected}");
    }
}

#[test]
fn policies_say_who_may_reach_whom() {
    let cluster = Cluster::up(&[]);
    cluster.k(&["create", "namespace", "other"]);
    let pods = [
        server("db", "default", ""),
        server("web", "default", ""),
        server("job", "default", ""),
        server("web", "other", ""),
    ];
    cluster.apply(&pods.concat());
    for namespace in ["default", "other"] {
        cluster.k(&["wait", "-n", namespace, "--for=condition=Ready", "pod", "--all", "--timeout=60s"]);
    }
    cluster.k(&["expose", "pod", "db", "--port=80", "--target-port=8080"]);
    let address = |pod: &str| cluster.get(&["pod", pod])["status"]["podIP"].as_str().unwrap().to_owned();
    let db = format!("http://{}:8080", address("db"));
    reaches(&cluster, ("default", "job"), &db, true);

    // Closed for all but one, on a named port, through the service too; the node's probes go on.
    cluster.apply("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: db}\nspec:\n  podSelector: {matchLabels: {app: db}}\n  ingress:\n  - from: [{podSelector: {matchLabels: {app: web}}}]\n    ports: [{port: web}]\n",
    );
    reaches(&cluster, ("default", "job"), &db, false);
    reaches(&cluster, ("default", "web"), &db, true);
    reaches(&cluster, ("default", "web"), "http://db", true);
    reaches(&cluster, ("default", "job"), "http://db", false);
    reaches(&cluster, ("other", "web"), &db, false);
    reaches(&cluster, ("default", "db"), &db, true);
    assert!(cluster.pods("default").iter().all(crate::cluster::is_ready));

    // Another policy adds to it: who is allowed by one is allowed.
    cluster.apply("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: more}\nspec:\n  podSelector: {matchLabels: {app: db}}\n  ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}}]}]\n",
    );
    reaches(&cluster, ("other", "web"), &db, true);
    reaches(&cluster, ("default", "job"), &db, false);

    // The way out: only to one address, and names.
    let web = address("web");
    cluster.apply(&format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: out}}\nspec:\n  podSelector: {{matchLabels: {{app: job}}}}\n  policyTypes: [Egress]\n  egress: [{{to: [{{ipBlock: {{cidr: {web}/32}}}}], ports: [{{port: 8000, endPort: 8090}}]}}]\n"
        ),
    );
    let other = cluster.get(&["pod", "web", "-n", "other"])["status"]["podIP"].as_str().unwrap().to_owned();
    reaches(&cluster, ("default", "job"), &format!("http://{other}:8080"), false);
    reaches(&cluster, ("default", "job"), &format!("http://{web}:8080"), true);

    cluster.k(&["delete", "networkpolicy", "--all"]);
    reaches(&cluster, ("default", "job"), &db, true);
}

#[test]
fn host_ports_and_local_traffic_policies_keep_to_the_node() {
    let cluster = Cluster::up(&[]);
    cluster.apply(&server("one", "default", ", hostPort: 18080"));
    cluster.k(&["wait", "--for=condition=Ready", "pod/one", "--timeout=60s"]);
    let service = r#"{"spec":{"type":"NodePort","externalTrafficPolicy":"Local","selector":{"app":"one"},"ports":[{"port":80,"targetPort":8080,"nodePort":30199}]}}"#;
    cluster.k(&["create", "service", "nodeport", "local", "--tcp=80:8080"]);
    cluster.k(&["patch", "service", "local", "--type=merge", "-p", service]);
    let own = cluster.get(&["pod", "one"])["status"]["hostIP"].as_str().unwrap().to_owned();
    let gateway = cluster.network.replace("0.0/16", "0.1");
    for port in [18080, 30199] {
        let ask = || http_get(&format!("{own}:{port}"), "/");
        cluster.wait("the pod answers at its node's port", || ask().is_some());
        // Who asks is seen.
        assert_eq!(ask().as_deref(), Some(gateway.as_str()), "port {port}");
    }
    let nodes = cluster.get(&["nodes"]);
    let others = nodes["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["status"]["addresses"][0]["address"].as_str().unwrap());
    for node in others.filter(|address| *address != own) {
        assert_eq!(http_get(&format!("{node}:30199"), "/"), None, "{node} has no endpoint of its own");
    }
}

#[test]
fn a_load_balancer_outside_is_told_which_nodes_have_endpoints() {
    let cluster = Cluster::up(&[]);
    cluster.apply(&server("one", "default", ""));
    cluster.k(&["wait", "--for=condition=Ready", "pod/one", "--timeout=60s"]);
    cluster.apply("apiVersion: v1\nkind: Service\nmetadata: {name: out}\nspec: {type: LoadBalancer, externalTrafficPolicy: Local, selector: {app: one}, ports: [{port: 80, targetPort: 8080}]}\n",
    );
    let port = cluster.get(&["service", "out"])["spec"]["healthCheckNodePort"].as_u64().unwrap();
    let own = cluster.get(&["pod", "one"])["status"]["hostIP"].clone();
    for node in cluster.get(&["nodes"])["items"].as_array().unwrap() {
        let address = &node["status"]["addresses"][0]["address"];
        let at = format!("{}:{port}", address.as_str().unwrap());
        let expected = if *address == own { "\"localEndpoints\":1" } else { "503" };
        cluster.wait("the node says what it has", || {
            http_ask(&at, &at, "/healthz").unwrap_or_else(|refused| refused).contains(expected)
        });
    }
    cluster.k(&["patch", "service", "out", "-p", r#"{"spec":{"externalTrafficPolicy":"Cluster"}}"#]);
    assert!(cluster.get(&["service", "out"])["spec"]["healthCheckNodePort"].is_null());
}

#[test]
fn traffic_stays_near_where_that_is_asked_for() {
    let cluster = Cluster::up(&[]);
    let tells = |name: &str, node: &str| {
        let pod = server(name, "default", "").replace("s.client_address[0]", "__import__('socket').gethostname()");
        pod.replace("spec:\n", &format!("spec:\n  nodeName: {node}\n")).replace(&format!("app: {name}"), "app: each")
    };
    let pods: Vec<_> = (1..=3).map(|number| tells(&format!("p{number}"), &format!("node-{number}"))).collect();
    cluster.apply(&pods.concat());
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: each}\nspec: {trafficDistribution: WHAT, selector: {app: each}, ports: [{port: 80, targetPort: 8080}]}\n";
    cluster.k(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"]);
    let ask = |from: &str, to: &str| {
        cluster.k(&[
            "exec",
            from,
            "--",
            "sh",
            "-c",
            &format!("for i in 1 2 3 4 5 6 7 8; do curl -sm2 http://{to}; echo; done"),
        ])
    };
    for what in ["PreferSameNode", "PreferClose"] {
        let _ = cluster.kubectl(&["delete", "service", "each"]).output();
        cluster.apply(&service.replace("WHAT", what));
        let address = cluster.get(&["service", "each"])["spec"]["clusterIP"].as_str().unwrap().to_owned();
        for name in ["p1", "p3"] {
            let only_near = |answers: &str| answers.lines().count() == 8 && answers.lines().all(|line| line == name);
            cluster.wait("the pod of the same place answers", || only_near(&ask(name, &address)));
        }
    }
    // Without its own there are the others.
    let address = cluster.get(&["service", "each"])["spec"]["clusterIP"].as_str().unwrap().to_owned();
    cluster.k(&["label", "pod", "p1", "app=none", "--overwrite"]);
    cluster.wait("others answer", || {
        let answers = ask("p1", &address);
        answers.lines().count() == 8 && answers.lines().all(|line| line == "p2" || line == "p3")
    });
}
