//! Drills from outside: a short one on the shop, one that is killed in the middle, and links that are broken one way.

use std::process::Command;

use serde_json::Value;

use crate::cluster::{Cluster, MAINSTAY, ready, text};

/// A drill of a few seconds.
const SHORT: &str = "\
apiVersion: mainstay.dev/v1alpha1
kind: Drill
metadata: {name: short}
spec:
  load: {target: {service: shop/front}, rate: 100, tries: 3, timeout: 700ms, connectTimeout: 300ms}
  faults:
  - {name: pod, fault: kill, target: {pod: {service: shop/front}}, after: 1s, hold: 2s}
  - {name: one way, fault: cut-incoming, target: {node: any}, after: 1s, hold: 2s}
  - {name: server, fault: kill, target: controlPlane, after: 1s, hold: 1s}
  require: {availabilityPercent: 90}
";

#[test]
fn a_short_drill_breaks_measures_and_mends() {
    let cluster = Cluster::up(&["examples/shop"]);
    let (file, report) = (cluster.dir().join("short.yaml"), cluster.dir().join("report"));
    std::fs::write(&file, SHORT).unwrap();
    let run = |more: &[&str]| {
        let mut command = Command::new(MAINSTAY);
        command.args(["drill", "--quiet", "--report"]).arg(&report).arg("-f").arg(&file).args(more);
        command.arg("--data-dir").arg(cluster.dir()).output().unwrap()
    };
    let output = run(&[]);
    assert!(output.status.success() && text(&output).contains("passed"), "{}", text(&output));
    let json: Value = serde_json::from_slice(&std::fs::read(report.join("short.json")).unwrap()).unwrap();
    let steps = json["verdict"]["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 3);
    for step in steps {
        assert!(step["step"]["evidence"]["Ok"].is_string() && step["asked"].as_u64().unwrap() > 50, "{step}");
    }
    // The pod's death was seen in the API.
    assert!(steps[0]["detectedMs"].as_u64().is_some(), "{}", steps[0]);
    assert!(std::fs::read_to_string(report.join("short.html")).unwrap().contains("<svg"));
    assert!(cluster.ok(&["fault", "ls"]).contains("no faults"), "something is still broken");
    cluster.wait("all is Ready", || ready(&cluster.pods("shop")) == 9);

    // What cannot be made is refused before anything is broken.
    std::fs::write(&file, SHORT.replace("fault: cut-incoming", "fault: clock-skew")).unwrap();
    let refused = text(&run(&[]));
    assert!(refused.contains("spec.faults[1]") && refused.contains("wall clock"), "{refused}");
}

#[test]
fn a_killed_drill_is_undone() {
    let cluster = Cluster::up(&["examples/shop"]);
    let file = cluster.dir().join("long.yaml");
    let long = SHORT.replace(
        "fault: kill, target: {pod: {service: shop/front}}, after: 1s, hold: 2s",
        "fault: isolate, target: {node: node-2}, hold: 5m",
    );
    std::fs::write(&file, long).unwrap();
    let report = cluster.dir().join("report");
    let mut command = Command::new(MAINSTAY);
    command.args(["drill", "--quiet", "--report"]).arg(&report).arg("-f").arg(&file);
    let mut drill = command.arg("--data-dir").arg(cluster.dir()).spawn().unwrap();
    cluster.wait("the node is cut off", || cluster.ok(&["fault", "ls"]).contains("node/node-2"));
    drill.kill().unwrap();
    drill.wait().unwrap();
    assert!(cluster.ok(&["drill", "undo"]).contains("1 faults undone"));
    assert!(cluster.ok(&["fault", "ls"]).contains("no faults"));
    cluster.wait("the node is well", || !cluster.k(&["get", "node", "node-2"]).contains("NotReady"));
}
