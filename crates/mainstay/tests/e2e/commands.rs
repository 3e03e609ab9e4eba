//! What people type: kubectl's verbs against the running shop.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use crate::cluster::{Cluster, ready};

#[test]
fn kubectl_gets_describes_scales_and_deletes() {
    let cluster = Cluster::up(&["examples/shop"]);
    let wide = cluster.k(&["get", "pods", "-n", "shop", "-o", "wide"]);
    assert!(wide.contains("NOMINATED NODE") && wide.contains("1/1") && wide.contains("Running"), "{wide}");
    let all = cluster.k(&["get", "all", "-A"]);
    assert!(all.contains("deployment.apps/front") && all.contains("service/front"), "{all}");
    let nodes = cluster.k(&["get", "nodes", "-o", "wide"]);
    assert_eq!(nodes.matches(" Ready ").count(), 3, "{nodes}");
    let pod = cluster.pods("shop")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let described = cluster.k(&["describe", "pod", "-n", "shop", &pod]);
    for part in ["Readiness:", "PodScheduled                True", "Events:", "Scheduled", "Started", "QoS Class:"] {
        assert!(described.contains(part), "{part} is missing in\n{described}");
    }
    assert!(cluster.k(&["describe", "node", "node-1"]).contains("topology.kubernetes.io/zone=zone-a"));
    assert!(
        cluster
            .k(&["apply", "-f", crate::cluster::example("examples/shop").to_str().unwrap()])
            .contains("deployment.apps/front")
    );
    cluster.k(&["scale", "-n", "shop", "deploy/cart", "--replicas", "5"]);
    let status = cluster.k(&["rollout", "status", "-n", "shop", "deploy/cart", "--timeout=60s"]);
    assert!(status.contains("successfully rolled out"), "{status}");
    assert_eq!(ready(&cluster.pods("shop")), 11);
    cluster.k(&["wait", "-n", "shop", "--for=condition=Available", "deploy", "--all", "--timeout=60s"]);
    cluster.k(&["set", "env", "-n", "shop", "deploy/catalogue", "VERSION=2"]);
    cluster.k(&["rollout", "status", "-n", "shop", "deploy/catalogue", "--timeout=60s"]);
    cluster.k(&["rollout", "undo", "-n", "shop", "deploy/catalogue"]);
    cluster.k(&["rollout", "status", "-n", "shop", "deploy/catalogue", "--timeout=60s"]);
    let front =
        cluster.pods("shop").iter().find(|p| p["metadata"]["labels"]["app"] == "front").unwrap()["metadata"]["name"]
            .clone();
    cluster.k(&["delete", "pod", "-n", "shop", front.as_str().unwrap(), "--timeout=60s"]);
    cluster.wait("a replacement is Ready", || ready(&cluster.pods("shop")) == 11);
    // The namespace takes everything with it, so that the later files find nothing left to delete.
    let files = crate::cluster::example("examples/shop");
    cluster.k(&["delete", "-f", files.to_str().unwrap(), "--ignore-not-found", "--timeout=60s"]);
    cluster.wait("nothing of the shop is left", || cluster.pods("shop").is_empty());
}

#[test]
fn kubectl_follows_logs_watches_and_executes() {
    let cluster = Cluster::up(&["examples/shop"]);
    let pod = cluster.pods("shop")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let out = cluster.k(&["exec", "-n", "shop", &pod, "--", "sh", "-c", "echo $POD_NAME; hostname"]);
    assert_eq!(out.lines().collect::<Vec<_>>(), [&pod, &pod]);
    let failed = cluster.kubectl(&["exec", "-n", "shop", &pod, "--", "sh", "-c", "exit 7"]).output().unwrap();
    assert_eq!(failed.status.code(), Some(7));
    let line = format!("exec -it -n shop {pod} -- sh -c 'tty -s && echo has-terminal'");
    let output = cluster.on_terminal(&line).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("has-terminal"), "{output:?}");

    let mut follow = cluster.kubectl(&["logs", "-f", "-n", "shop", &pod]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(!first.is_empty());
    let tail = cluster.k(&["logs", "-n", "shop", &pod, "--tail=1", "--timestamps"]);
    assert!(tail.starts_with("20"), "{tail}");
    follow.kill().unwrap();
    follow.wait().unwrap();

    let mut watch = cluster.kubectl(&["get", "pods", "-n", "shop", "-w"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let header = lines.next().unwrap().unwrap();
    assert!(header.starts_with("NAME"), "{header}");
    cluster.k(&["scale", "-n", "shop", "deploy/cart", "--replicas", "4"]);
    assert!(lines.any(|line| line.unwrap().contains("ContainerCreating")), "the watch must show the new pod");
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn wrong_input_is_refused_with_the_reason() {
    let cluster = Cluster::up(&[]);
    let file = cluster.dir().join("bad.yaml");
    let refuse = |manifest: &str| {
        std::fs::write(&file, manifest).unwrap();
        let output = cluster.kubectl(&["apply", "-f", file.to_str().unwrap()]).output().unwrap();
        assert!(!output.status.success());
        crate::cluster::text(&output)
    };
    let unknown = refuse("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, imagee: x}]}");
    assert!(unknown.contains("spec.containers[0].imagee"), "{unknown}");
    let invalid = refuse(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: A_b}\nspec: {containers: [{name: c, image: mainstay.dev/host}]}",
    );
    assert!(invalid.contains("metadata.name"), "{invalid}");
    let missing = cluster.kubectl(&["get", "pod", "nobody"]).output().unwrap();
    assert!(crate::cluster::text(&missing).contains("pods \"nobody\" not found"));
    // A pod that cannot start says why, and `up` says so too.
    std::fs::write(&file, "apiVersion: v1\nkind: Pod\nmetadata: {name: lost}\nspec: {containers: [{name: c, image: 'example.com/none:1'}]}").unwrap();
    let output = cluster.try_start(&[file.to_str().unwrap()], &["--timeout", "3"]);
    let said = crate::cluster::text(&output);
    assert!(
        !output.status.success() && said.contains("pod/default/lost") && said.contains("example.com/none:1"),
        "{said}"
    );
}
