//! Chaos: agents, shims, containers and the server killed, pods deleted, links flapping, at random; afterwards what is wanted is
//! what is there, and nothing is left of what was.
//!
//! `MAINSTAY_CHAOS_SECONDS` sets how long (60; with `--nightly` 1800), `MAINSTAY_CHAOS_SEED` repeats the choices.
//!
//! <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/>,
//! <https://kubernetes.io/docs/concepts/architecture/nodes/>.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use fastrand::Rng;
use mainstay_net::plan;
use mainstay_runtime::cgroup::Cgroups;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::{Cluster, is_ready};

/// How long everything may take to be well again: a container that was killed often waits for up to five minutes.
const RECOVERY: Duration = Duration::from_secs(420);
/// How much more memory an agent may hold afterwards than one that did the same work in quiet, in KiB.
const GROWTH_KIB_MAX: u64 = 12 << 10;
/// Files that an agent may hold beyond those of an idle one, for connections that are not closed yet.
const FILES_MORE_MAX: usize = 24;

const WORK: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 6
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      initContainers:
      - name: first
        image: mainstay.dev/host
        command: [sh, -c, 'echo prepared > /data/x']
        volumeMounts: [{name: data, mountPath: /data}]
      - {name: side, image: mainstay.dev/host, restartPolicy: Always, command: [sleep, '100000']}
      volumes: [{name: data, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory}}, {name: settings, configMap: {name: settings}}]
      containers:
      - name: c
        image: mainstay.dev/host
        command: [sh, -c, 'trap \"exit 0\" TERM; while :; do sleep 0.2; done']
        readinessProbe: {exec: {command: [cat, /data/x]}, periodSeconds: 1}
        volumeMounts: [{name: data, mountPath: /data}, {name: memory, mountPath: /memory}, {name: settings, mountPath: /settings}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: base}
spec:
  replicas: 2
  serviceName: base
  selector: {matchLabels: {app: base}}
  template:
    metadata: {labels: {app: base}}
    spec:
      terminationGracePeriodSeconds: 1
      shareProcessNamespace: true
      containers: [{name: c, image: mainstay.dev/host, command: [sleep, '100000']}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: each}
spec:
  selector: {matchLabels: {app: each}}
  template:
    metadata: {labels: {app: each}}
    spec:
      terminationGracePeriodSeconds: 0
      hostNetwork: true
      containers: [{name: c, image: mainstay.dev/host, command: [sleep, '100000']}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {a: '1'}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
";

/// The nodes as the machine sees them.
struct Nodes {
    cgroups: Cgroups,
    instance: String,
}

impl Nodes {
    /// The processes of a node's pods: whether each is a shim, and its id.
    fn processes(&self, node: &str) -> Vec<(bool, i32)> {
        let all = self.cgroups.node(&self.instance, node).processes();
        let role = |pid: i32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = command.split(|byte| *byte == 0);
            let ours = words.next().is_some_and(|program| program.ends_with(b"mainstay"));
            match words.next() {
                Some(b"shim") if ours => Some((true, pid)),
                Some(b"node" | b"shim-exec") if ours => None,
                _ => Some((false, pid)),
            }
        };
        all.into_iter().filter_map(role).collect()
    }

    /// What is there of a node's pods, one line per thing. Containers are counted by the statuses.
    fn actual(&self, cluster: &Cluster, node: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let names = |path: &std::path::Path| -> Vec<String> {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let data = cluster.dir().join("nodes").join(node);
        found.extend(names(&data.join("pods")).into_iter().map(|uid| format!("directory {uid}")));
        let shims = self.processes(node).into_iter().filter(|(shim, _)| *shim);
        for (_, pid) in shims {
            let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let uid = group.split("/pod").nth(1).and_then(|rest| rest.split(['/', '\n']).next()).unwrap_or("?");
            found.insert(format!("shim {uid}"));
        }
        for root in names("/sys/fs/cgroup".as_ref()).into_iter().chain([String::new()]) {
            let group = format!("/sys/fs/cgroup/{root}/mainstay/{}/{node}", self.instance);
            let pods = names(group.as_ref()).into_iter().filter_map(|name| name.strip_prefix("pod").map(str::to_owned));
            found.extend(pods.map(|uid| format!("group {uid}")));
        }
        let links = fs::read_to_string(format!("/proc/{}/net/dev", cluster.pid(node))).unwrap_or_default();
        let links = links.lines().filter_map(|line| line.split(':').next()).map(str::trim);
        found.extend(links.filter(|name| name.starts_with("pod")).map(|name| format!("link {name}")));
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", cluster.pid(node))).unwrap_or_default();
        let below = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|point| point.starts_with(data.to_str().unwrap()));
        found.extend(below.map(|point| format!("mount {point}")));
        found
    }
}

/// What has to be there of the pods that the API says are on a node.
fn wanted(pods: &[Value], node: &str, actual: &BTreeSet<String>) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for pod in pods.iter().filter(|pod| pod["spec"]["nodeName"] == node) {
        let uid = pod["metadata"]["uid"].as_str().unwrap();
        all.extend(["directory", "shim", "group"].map(|what| format!("{what} {uid}")));
        if pod["spec"]["hostNetwork"] != true {
            all.insert(format!("link {}", plan::pod_link_name(uid)));
        }
        // Where volumes in memory show differs between kernels' arrangements; they must belong to a pod that is wanted.
        let own = |line: &&String| line.starts_with("mount ") && line.contains(uid);
        all.extend(actual.iter().filter(own).cloned());
    }
    all
}

fn pods_everywhere(cluster: &Cluster) -> Vec<Value> {
    cluster.get(&["pods", "-A"])["items"].as_array().cloned().unwrap_or_default()
}

/// Why not all is as it is to be; nothing if it is.
fn differences(cluster: &Cluster, nodes: &Nodes, wanted_ready: usize) -> Vec<String> {
    let pods = pods_everywhere(cluster);
    let mut all = Vec::new();
    let well = pods.iter().filter(|pod| is_ready(pod) && pod["metadata"]["deletionTimestamp"].is_null()).count();
    if well != wanted_ready || pods.len() != wanted_ready {
        all.push(format!("{well} of {} pods are Ready, {wanted_ready} are wanted", pods.len()));
    }
    for node in ["node-1", "node-2", "node-3"] {
        let actual = nodes.actual(cluster, node);
        let wanted = wanted(&pods, node, &actual);
        all.extend(actual.difference(&wanted).map(|thing| format!("{node}: not wanted: {thing}")));
        all.extend(wanted.difference(&actual).map(|thing| format!("{node}: missing: {thing}")));
    }
    all
}

fn wait_until_well(cluster: &Cluster, nodes: &Nodes, ready: usize) -> Duration {
    let since = Instant::now();
    loop {
        let differences = differences(cluster, nodes, ready);
        if differences.is_empty() {
            return since.elapsed();
        }
        if since.elapsed() > RECOVERY {
            let pods = cluster.kubectl(&["get", "pods", "-A", "-o", "wide"]).output().unwrap();
            panic!("not well again:\n{}\n{}", differences.join("\n"), crate::cluster::text(&pods));
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// Resident memory of the largest agent in KiB, and the most files one holds.
fn agents(cluster: &Cluster) -> (u64, usize) {
    let one = |node| {
        let pid = cluster.pid(node);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or("0");
        let kib = line.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0);
        (kib, fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().count())
    };
    ["node-1", "node-2", "node-3"].map(one).into_iter().fold((0, 0), |most, one| (most.0.max(one.0), most.1.max(one.1)))
}

fn strike(cluster: &Cluster, nodes: &Nodes, random: &mut Rng) -> String {
    let node = format!("node-{}", 1 + random.u64(..3));
    let end = |pid: i32| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok();
    match random.u64(..10) {
        0 | 1 => {
            // It may be down from the strike before.
            let killed = cluster.try_pid(&node).is_some_and(end);
            format!("agent of {node} killed: {killed}")
        }
        2 => format!("server killed: {}", cluster.try_pid("server").is_some_and(end)),
        kind @ 3..=6 => {
            let shims = kind == 3;
            let those: Vec<_> = nodes.processes(&node).into_iter().filter(|(shim, _)| *shim == shims).collect();
            let killed = random.choice(&those).is_some_and(|(_, pid)| end(*pid));
            format!("a {} of {node} killed: {killed}", if shims { "shim" } else { "container's process" })
        }
        7 | 8 => {
            let pods = cluster.pods("default");
            let Some(pod) = random.choice(&pods) else { return "no pod to delete".to_owned() };
            let name = pod["metadata"]["name"].as_str().unwrap();
            let done = cluster.kubectl(&["delete", "pod", name, "--wait=false"]).output().unwrap();
            format!("pod {name} deleted: {}", done.status.success())
        }
        _ => {
            let long = random.u64(..4) == 0;
            let ms = 50 + random.u64(..if long { 6_000 } else { 1_500 });
            let target = format!("node/{node}");
            let down = cluster.mainstay(&["fault", "isolate", &target]).status.success();
            std::thread::sleep(Duration::from_millis(ms));
            let up = cluster.mainstay(&["fault", "heal", &target]).status.success();
            format!("link of {node} down for {ms} ms: {down} {up}")
        }
    }
}

#[test]
fn after_chaos_what_is_wanted_is_there_and_nothing_else() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("MAINSTAY_CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let usual = if std::env::var_os("MAINSTAY_NIGHTLY").is_some() { 1_800 } else { 60 };
    let lasts = Duration::from_secs(number("MAINSTAY_CHAOS_SECONDS").unwrap_or(usual));
    println!("MAINSTAY_CHAOS_SEED={seed}");
    let cluster = Cluster::up(&[]);
    let nodes = Nodes { cgroups: Cgroups::detect().unwrap(), instance: plan::instance_id(cluster.dir()) };
    cluster.apply(WORK);
    let ready = 6 + 2 + 3;
    wait_until_well(&cluster, &nodes, ready);
    let before = agents(&cluster);

    let mut random = Rng::with_seed(seed);
    let (began, mut strikes) = (Instant::now(), 0);
    while began.elapsed() < lasts {
        let done = strike(&cluster, &nodes, &mut random);
        println!("{:6.1} s {done}", began.elapsed().as_secs_f64());
        strikes += 1;
        std::thread::sleep(Duration::from_millis(100 + random.u64(..1_200)));
    }
    let took = wait_until_well(&cluster, &nodes, ready);
    println!("{strikes} strikes; all as wanted {:.1} s after the last", took.as_secs_f64());

    // What ends leaves nothing.
    let (memory, files) = agents(&cluster);
    let file = cluster.dir().join("manifests.yaml");
    cluster.k(&["delete", "-f", file.to_str().unwrap(), "--timeout=60s"]);
    let took = wait_until_well(&cluster, &nodes, 0);
    println!(
        "all gone {:.1} s after the deletion; largest agent {} KiB before, {memory} KiB after",
        took.as_secs_f64(),
        before.0
    );
    assert!(memory < before.0 + GROWTH_KIB_MAX, "an agent has grown from {} to {memory} KiB", before.0);
    assert!(files < before.1 + FILES_MORE_MAX, "an agent held {} files, now {files}", before.1);
}
