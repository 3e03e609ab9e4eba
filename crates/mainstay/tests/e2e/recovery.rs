//! kill -9 of the server, of an agent, of everything: what runs goes on, and nothing is lost.

use crate::cluster::{Cluster, containers, http_get, ready};

#[test]
fn what_is_killed_adopts_what_still_runs() {
    let cluster = Cluster::up(&["examples/shop"]);
    cluster.k(&["create", "-f", write(&cluster, "marker", &marker("kept")).as_str()]);
    let before = containers(&cluster.pods("shop"));
    let front = cluster.front();

    for role in ["server", "node-2"] {
        let killed = cluster.pid(role);
        cluster.kill(role);
        assert!(http_get(&front, "/whoami").is_some(), "the service does not need the {role}");
        cluster.wait("it is started again", || {
            cluster.pid(role) != killed && cluster.mainstay(&["status"]).status.success()
        });
        assert_eq!(containers(&cluster.pods("shop")), before, "after killing {role}");
    }

    for role in ["supervisor", "server", "node-1", "node-2", "node-3"] {
        cluster.kill(role);
    }
    assert!(http_get(&front, "/whoami").is_some(), "the pods need none of them");
    cluster.start(&[]);
    cluster.wait("all is well", || cluster.mainstay(&["status"]).status.success());
    assert_eq!(containers(&cluster.pods("shop")), before, "after killing everything");
    assert_eq!(cluster.get(&["configmap", "kept"])["data"]["key"], "value");
}

#[test]
fn down_and_up_again_keeps_the_objects() {
    let cluster = Cluster::up(&["examples/shop"]);
    cluster.k(&["create", "-f", write(&cluster, "marker", &marker("kept")).as_str()]);
    let uid = cluster.get(&["deployment", "front", "-n", "shop"])["metadata"]["uid"].clone();
    cluster.down();
    cluster.start(&["examples/shop"]);
    assert_eq!(cluster.get(&["deployment", "front", "-n", "shop"])["metadata"]["uid"], uid);
    assert_eq!(cluster.get(&["configmap", "kept"])["data"]["key"], "value");
    cluster.wait("nine pods are Ready", || ready(&cluster.pods("shop")) == 9);
}

#[test]
fn a_program_that_crashes_is_restarted_with_growing_waits() {
    let cluster = Cluster::up(&[]);
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: crash}\nspec: {containers: [{name: c, image: mainstay.dev/host, command: [sh, -c, 'echo begun; exit 3']}]}";
    cluster.k(&["create", "-f", write(&cluster, "crash", manifest).as_str()]);
    cluster.wait("it waits in back-off", || cluster.k(&["get", "pod", "crash"]).contains("CrashLoopBackOff"));
    let status = cluster.get(&["pod", "crash"])["status"]["containerStatuses"][0].clone();
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 3, "{status}");
    assert!(cluster.k(&["logs", "crash", "--previous"]).contains("begun"));
    assert!(!cluster.mainstay(&["status"]).status.success(), "status must say that not all is well");
}

fn marker(name: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{key: value}}\n")
}

fn write(cluster: &Cluster, name: &str, manifest: &str) -> String {
    let path = cluster.dir().join(format!("{name}.yaml"));
    std::fs::write(&path, manifest).unwrap();
    path.display().to_string()
}
