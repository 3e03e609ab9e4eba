//! The control plane's state: in etcd, in snapshots, encrypted, on a full disk.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use crate::cluster::{PATIENCE, text};
use crate::control_plane::ControlPlane;
use crate::etcd::Etcd;

const SECRET: &str = "correct-horse-battery-staple";

fn apply(plane: &ControlPlane, manifest: &str) {
    let mut child = plane.kubectl(&["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{}", plane.log());
}

fn contains(directory: &Path, text: &str) -> bool {
    let files = fs::read_dir(directory).unwrap().flatten().filter(|entry| entry.path().is_file());
    files
        .into_iter()
        .any(|file| fs::read(file.path()).unwrap().windows(text.len()).any(|found| found == text.as_bytes()))
}

fn revision(plane: &ControlPlane, what: &[&str]) -> u64 {
    let object: Value = serde_json::from_str(&plane.k(&[&["get", "-o", "json"], what].concat())).unwrap();
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

const DEPLOYMENT: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: mainstay.dev/host}]}
";

#[test]
fn servers_on_one_etcd_share_one_state_and_outlive_kill_9() {
    let place = tempfile::tempdir().unwrap();
    let etcd = Etcd::start();
    let url = format!("etcd://127.0.0.1:{}/shop", etcd.port);
    let mut one = ControlPlane::start(&place.path().join("one"), &["--store", &url]);
    apply(&one, DEPLOYMENT);
    one.k(&["create", "secret", "generic", "db", &format!("--from-literal=password={SECRET}")]);
    one.k(&["wait", "--for=create", "pod", "-l", "app=web", "--timeout=30s"]);
    one.kill();
    one.restart();
    let pods = one.k(&["get", "deployment,pods,secret", "-o", "name"]);
    assert!(pods.contains("deployment.apps/web") && pods.contains("pod/web-") && pods.contains("secret/db"), "{pods}");

    // A second server, with the same authority and keys.
    let second = place.path().join("two");
    fs::create_dir_all(second.join("pki")).unwrap();
    for file in fs::read_dir(one.directory.join("pki")).unwrap().flatten() {
        fs::copy(file.path(), second.join("pki").join(file.file_name())).unwrap();
    }
    fs::copy(one.directory.join("encryption.yaml"), second.join("encryption.yaml")).unwrap();
    let two = ControlPlane::start(&second, &["--store", &url]);
    assert!(two.k(&["get", "secret", "db", "-o", "jsonpath={.data.password}"]).starts_with("Y29ycmVjd"));
    // What is written through one is seen by a watch through the other.
    let waiting = two.kubectl(&["wait", "--for=jsonpath={.data.x}=2", "configmap/c", "--timeout=30s"]);
    one.k(&["create", "configmap", "c", "--from-literal=x=1"]);
    let mut waiting = { waiting }.stdout(Stdio::piped()).spawn().unwrap();
    one.k(&["patch", "configmap", "c", "-p", r#"{"data":{"x":"2"}}"#]);
    assert!(waiting.wait().unwrap().success(), "{}", two.log());
    one.kill();
    two.k(&["delete", "deployment", "web"]);
    one.restart();
    let left = one.k(&["get", "deployments", "-o", "name"]);
    assert!(!left.contains("web"), "{left}");
}

#[test]
fn a_snapshot_taken_while_running_brings_everything_back_encrypted_as_it_was() {
    let place = tempfile::tempdir().unwrap();
    let mut plane = ControlPlane::start(&place.path().join("one"), &[]);
    plane.k(&["create", "secret", "generic", "db", &format!("--from-literal=password={SECRET}")]);
    plane.k(&["create", "configmap", "c", "--from-literal=x=may-be-seen"]);
    let file = place.path().join("state.snap");
    let file = file.to_str().unwrap();
    plane.ok(&["snapshot", "save", file]);
    let again = plane.mainstay(&["snapshot", "save", file]);
    assert!(!again.status.success() && text(&again).contains("exists already"), "{}", text(&again));
    let before = revision(&plane, &["secret", "db"]);
    plane.k(&["create", "configmap", "later", "--from-literal=x=1"]);
    let latest = revision(&plane, &["configmap", "later"]);

    // No plain text: base64 as in the object, in neither the store nor the snapshot.
    let encoded = "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5LXN0YXBsZQ==";
    assert!(contains(&plane.directory.join("store"), "may-be-seen"));
    for directory in [plane.directory.join("store").as_path(), place.path()] {
        assert!(!contains(directory, encoded) && !contains(directory, SECRET), "{}", directory.display());
    }
    let status: Value = serde_json::from_str(&plane_free(&["snapshot", "status", file, "-o", "json"])).unwrap();
    assert!(
        status["encrypted_with"][0].as_str().unwrap().starts_with("key-1-") && status["entries"]["core/secrets"] == 1
    );

    // Restored elsewhere, with the keys: everything is there and newer than anything anybody saw.
    plane.kill();
    let second = place.path().join("two");
    fs::create_dir_all(&second).unwrap();
    fs::copy(plane.directory.join("encryption.yaml"), second.join("encryption.yaml")).unwrap();
    plane_free(&["snapshot", "restore", file, "--data-dir", second.to_str().unwrap()]);
    let restored = ControlPlane::start(&second, &[]);
    assert!(restored.k(&["get", "secret", "db", "-o", "jsonpath={.data.password}"]).contains(encoded));
    assert!(!restored.k(&["get", "configmaps", "-o", "name"]).contains("later"));
    assert!(revision(&restored, &["secret", "db"]) > latest && latest > before);
    let old = format!("/api/v1/configmaps?watch=true&resourceVersion={before}");
    let told = text(&restored.kubectl(&["get", "--raw", &old]).output().unwrap());
    assert!(told.contains("410") || told.contains("too old") || told.contains("Expired"), "{told}");
    let refused = restored.mainstay(&["snapshot", "restore", file]);
    assert!(!refused.status.success() && text(&refused).contains("in use"), "{}", text(&refused));
}

fn plane_free(args: &[&str]) -> String {
    let output = std::process::Command::new(crate::cluster::MAINSTAY).args(args).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

#[test]
fn keys_are_rotated_while_running() {
    let place = tempfile::tempdir().unwrap();
    let mut plane = ControlPlane::start(&place.path().join("one"), &[]);
    for i in 0..5 {
        plane.k(&["create", "secret", "generic", &format!("s{i}"), &format!("--from-literal=password={SECRET}")]);
    }
    let status = |plane: &ControlPlane, args: &[&str]| -> Value {
        serde_json::from_str(&plane.ok(&[args, &["-o", "json"]].concat())).unwrap()
    };
    // All under one key, the one with this number.
    let under = |answer: &Value, number: u32, count: u64| {
        let by_key = answer["byKey"].as_object().unwrap();
        by_key.len() == 1 && by_key.iter().all(|(name, n)| name.starts_with(&format!("key-{number}-")) && *n == count)
    };
    assert!(under(&status(&plane, &["secrets", "status"]), 1, 5));
    let answer = status(&plane, &["secrets", "rotate"]);
    assert!(under(&answer, 2, 5) && answer["rewritten"] == 5 && answer["outdated"] == 0, "{answer}");
    let answer = status(&plane, &["secrets", "rotate", "--forget-old"]);
    assert!(under(&answer, 3, 5) && answer["forgotten"].as_array().unwrap().len() == 2, "{answer}");
    plane.kill();
    plane.restart();
    assert!(plane.k(&["get", "secret", "s3", "-o", "jsonpath={.data.password}"]).starts_with("Y29ycmVjd"));
    // Without the key there is a clear word, not nonsense; and everything else goes on.
    plane.kill();
    let file = plane.directory.join("encryption.yaml");
    fs::rename(&file, file.with_extension("away")).unwrap();
    plane.restart();
    let said = text(&plane.kubectl(&["get", "secret", "s3"]).output().unwrap());
    assert!(said.contains("key-3-") && said.contains("which the configuration does not have"), "{said}");
    plane.k(&["get", "configmaps", "-A"]);
}

/// A small disk of its own, gone when dropped.
struct SmallDisk<'a>(&'a Path);

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_refuses_writes_and_heals_by_itself() {
    let place = tempfile::tempdir().unwrap();
    let small = place.path().join("small");
    fs::create_dir(&small).unwrap();
    mount(Some("tmpfs"), &small, Some("tmpfs"), MsFlags::empty(), Some("size=48m")).unwrap();
    let disk = SmallDisk(&small);
    // The server's log is on it, too: a line that cannot be written must not end it.
    let plane = ControlPlane::start(&small.join("data"), &[]);
    plane.k(&["create", "configmap", "before", "--from-literal=x=1"]);
    let filler = small.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);
    let value = format!("--from-literal=x={}", "x".repeat(100_000));
    let mut written = 0;
    let said = loop {
        let output = plane.kubectl(&["create", "configmap", &format!("c{written}"), &value]).output().unwrap();
        if !output.status.success() {
            break text(&output);
        }
        written += 1;
        assert!(written < 1000);
    };
    assert!(said.contains("no space left on the disk"), "{said}\n{}", plane.log());
    // Reads go on, and nothing acknowledged is missing.
    let names = plane.k(&["get", "configmaps", "-o", "name"]);
    assert!(names.contains("configmap/before") && names.matches("configmap/c").count() == written, "{names}");
    plane.k(&["get", "--raw", "/readyz"]);
    fs::remove_file(&filler).unwrap();
    let since = Instant::now();
    while !plane.kubectl(&["create", "configmap", "after", &value]).output().unwrap().status.success() {
        assert!(since.elapsed() < PATIENCE, "writes do not work again:\n{}", plane.log());
    }
    drop(plane);
    drop(disk);
}
