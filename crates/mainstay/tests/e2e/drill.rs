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
  - {name: neighbour, fault: cpu-pressure, target: {node: any}, after: 1s, hold: 1s, settings: {workers: 1}}
  - {name: server, fault: kill, target: controlPlane, after: 1s, hold: 1s}
  require: {availabilityPercent: 90}
";

/// A drill on a machine that has no time for it says so and fails, as it should; the product has done its part.
fn nothing_but_a_busy_machine(objections: &Value) -> bool {
    objections.as_array().unwrap().iter().all(|it| it.as_str().unwrap().starts_with("the generator itself"))
}

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
    let json: Value = serde_json::from_slice(&std::fs::read(report.join("short.json")).unwrap()).unwrap();
    assert!(nothing_but_a_busy_machine(&json["verdict"]["objections"]), "{}", text(&output));
    assert_eq!(output.status.success(), text(&output).contains("passed"), "{}", text(&output));
    let steps = json["verdict"]["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 4);
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
fn a_drill_is_an_object_of_the_cluster() {
    let cluster = Cluster::up(&["examples/shop"]);
    let named = |name: &str| SHORT.replace("{name: short}", &format!("{{name: {name}, namespace: shop}}"));
    cluster.apply(&format!("{}---\n{}", named("short"), named("wrong").replace("rate: 100", "rate: -1")));
    let status = |name: &str| cluster.get(&["drill", "-n", "shop", name])["status"].clone();
    // It kills the server, too: the verdict arrives when that is back.
    cluster.wait("the drill has its verdict", || status("short")["completionTime"].is_string());
    assert!(nothing_but_a_busy_machine(&status("short")["objections"]), "{}", status("short"));
    assert_eq!(status("short")["phase"] == "Passed", status("short")["objections"] == serde_json::json!([]));
    assert!(status("short")["asked"].as_u64().unwrap() > 500);
    let page = status("short")["report"].as_str().unwrap().to_owned();
    assert!(std::fs::read_to_string(page).unwrap().contains("<svg"));
    assert!(cluster.k(&["get", "drills", "-n", "shop"]).contains(status("short")["availability"].as_str().unwrap()));

    cluster.wait("the senseless one is refused", || status("wrong")["phase"] == "Error");
    assert!(status("wrong")["message"].as_str().unwrap().contains("spec.load.rate"), "{}", status("wrong"));
    let longer = text(
        &cluster
            .kubectl(&["patch", "drill", "-n", "shop", "short", "--type=merge", "-p", r#"{"spec":{"seed":2}}"#])
            .output()
            .unwrap(),
    );
    assert!(longer.contains("runs once"), "{longer}");
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
