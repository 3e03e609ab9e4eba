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

/// What releases, certificates, disks and links do to a shop behind a gateway with TLS.
const FURTHER: &str = "\
apiVersion: mainstay.dev/v1alpha1
kind: Drill
metadata: {name: further}
spec:
  load: {target: {gateway: shop/secure}, tls: {secret: shop/secure}, keepAlive: false, rate: 50, timeout: 700ms}
  faults:
  - {name: certificate, fault: certificate-expiry, target: {secret: shop/secure}, after: 1s, hold: 1s}
  - {name: errs, fault: bad-release, target: {deployment: shop/front}, settings: {status: 503}, after: 1s, hold: 4s}
  - {name: full, fault: disk-full, target: {pod: {name: shop/keeper}}, settings: {path: /cache}, after: 1s, hold: 500ms}
  - {name: slow, fault: slow-disk, target: {node: any}, settings: {kbytePerSecond: 1000}, after: 500ms, hold: 500ms}
  - {name: one link, fault: cut-outgoing, target: {node: node-1}, settings: {peer: node-2}, after: 500ms, hold: 1s}
  - {name: names, fault: dns-failure, target: {pod: {service: shop/front}}, after: 500ms, hold: 1s}
  require: {availabilityPercent: 0}
";

/// A gateway with a certificate, and a pod that has a file system of its own.
fn secure() -> String {
    let made = rcgen::generate_simple_self_signed(vec!["shop.example.com".to_owned()]).unwrap();
    let indented = |text: String| text.replace('\n', "\n    ");
    format!(
        "\
apiVersion: v1
kind: Secret
metadata: {{name: secure, namespace: shop}}
type: kubernetes.io/tls
stringData:
  tls.crt: |
    {}
  tls.key: |
    {}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: secure, namespace: shop}}
spec:
  gatewayClassName: mainstay
  listeners:
  - name: https
    port: 8443
    protocol: HTTPS
    hostname: shop.example.com
    tls: {{certificateRefs: [{{name: secure}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: secure, namespace: shop}}
spec:
  parentRefs: [{{name: secure}}]
  rules: [{{backendRefs: [{{name: front, port: 80}}]}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: keeper, namespace: shop}}
spec:
  containers:
  - name: keeper
    image: mainstay.dev/host
    command: [sleep, '86400']
    volumeMounts: [{{name: cache, mountPath: /cache}}]
  volumes:
  - name: cache
    emptyDir: {{medium: Memory, sizeLimit: 1Mi}}
",
        indented(made.cert.pem()),
        indented(made.signing_key.serialize_pem())
    )
}

#[test]
fn releases_certificates_disks_and_links_break_and_are_mended() {
    let cluster = Cluster::up(&["examples/shop"]);
    cluster.apply(&secure());
    let certificate = || cluster.get(&["secret", "-n", "shop", "secure"])["data"].clone();
    let before = certificate();
    cluster.wait("the gateway and the keeper are there", || {
        let programmed = cluster.get(&["gateway", "-n", "shop", "secure"])["status"]["addresses"][0].is_object();
        programmed && crate::cluster::is_ready(&cluster.get(&["pod", "-n", "shop", "keeper"]))
    });
    let (file, report) = (cluster.dir().join("further.yaml"), cluster.dir().join("report"));
    std::fs::write(&file, FURTHER).unwrap();
    let mut command = Command::new(MAINSTAY);
    command.args(["drill", "--quiet", "--report"]).arg(&report).arg("-f").arg(&file);
    let said = text(&command.arg("--data-dir").arg(cluster.dir()).output().unwrap());
    let json: Value = serde_json::from_slice(&std::fs::read(report.join("further.json")).expect(&said)).unwrap();
    assert!(nothing_but_a_busy_machine(&json["verdict"]["objections"]), "{said}");
    let steps = json["verdict"]["steps"].as_array().unwrap();
    assert!(steps.iter().all(|step| step["step"]["evidence"]["Ok"].is_string()), "{said}");
    assert!(steps[0]["failures"]["certificate refused"].as_u64() > Some(5), "{said}");
    assert!(steps[1]["failures"]["status 503"].as_u64() > Some(5), "{said}");
    assert!(steps[2]["step"]["evidence"]["Ok"].as_str().unwrap().contains("full"), "{said}");
    assert_eq!(certificate(), before);
    let keep = ["exec", "-n", "shop", "keeper", "--", "dd", "if=/dev/zero", "of=/cache/x", "bs=64k", "count=8"];
    assert!(cluster.kubectl(&keep).status().unwrap().success(), "there is no room after the drill");

    // What others have, too, is not filled.
    let one = FURTHER.lines().filter(|line| !line.starts_with("  - {name") || line.contains("name: full"));
    let shared = one.collect::<Vec<_>>().join("\n").replace("path: /cache", "path: /tmp");
    std::fs::write(&file, shared).unwrap();
    let mut command = Command::new(MAINSTAY);
    command.args(["drill", "--quiet", "--report"]).arg(&report).arg("-f").arg(&file);
    let said = text(&command.arg("--data-dir").arg(cluster.dir()).output().unwrap());
    assert!(said.contains("disk of this machine"), "{said}");
}
