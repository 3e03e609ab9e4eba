//! `cargo xtask bench node`: what a node takes to run pods and to lead connections to them.
//!
//! # Flow
//! release build → one instance with one node →
//! 1. pods one after the other: from the moment a watcher sees a pod to the moment it sees it Ready;
//! 2. connections and bytes to an nginx in a pod, through its service and directly, in turns;
//! 3. a Deployment of 300 pods: time until all are Ready, the agent's processor time and memory, and both at rest;
//! 4. 1,000 services of 10 endpoints beside: from the moment a watcher sees an endpoint come to the first connection through the
//!    service to it.
//!
//! # How it is counted
//! The watcher is `kubectl get --raw …?watch=true`, whose lines are stamped as they arrive: what it takes to print and to read a line
//! is in every figure twice and cancels out but for its spread. Clients run in the machine's own network namespace.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::memory;
use super::report::{Row, largest, median, publish};
use crate::process::{Failure, Outcome, at, cargo, find_program, output, run as run_command};
use crate::workspace::Workspace;

/// Flags of `cargo xtask bench node`.
#[derive(Args)]
pub(crate) struct NodeArgs {
    /// Pods started one after the other
    #[arg(long, default_value_t = 40)]
    single: usize,
    /// Pods started together
    #[arg(long, default_value_t = 300)]
    pods: usize,
    /// Services beside the one whose rules are changed; each has ten endpoints
    #[arg(long, default_value_t = 1000)]
    services: usize,
    /// Seconds of load for each figure, and turns
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Where the API listens
    #[arg(long, default_value = "127.0.0.1:26446")]
    api: String,
    /// The binary to measure instead of building one
    #[arg(long)]
    binary: Option<PathBuf>,
    /// kubectl
    #[arg(long, env = "MAINSTAY_KUBECTL", default_value = "kubectl")]
    kubectl: PathBuf,
}

/// Created to Ready, for a program that is ready at once.
const READY_MS_GOAL: f64 = 60.0;
/// Through a service, beside a direct connection.
const SERVICE_RATIO_GOAL: f64 = 0.9;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// Rest before memory and processor time at rest are read.
const REST: Duration = Duration::from_secs(10);
/// Turns of each kind of load.
const TURNS: usize = 3;
/// What is read over one connection for the throughput.
const FILE_MIB: u64 = 512;
/// Endpoints of each service.
const ENDPOINTS: usize = 10;
/// Changes of rules that are measured.
const CHANGES: usize = 20;
/// Pods that a node takes unless it is told, and how many there are besides those that are measured.
const PODS_USUAL: usize = 110;
const SPARE: usize = 10;
/// Clock ticks per second of `/proc/PID/stat` on every Linux (`USER_HZ`).
const TICKS: f64 = 100.0;

/// An instance; dropping it takes it down and away.
struct Bench<'a> {
    args: &'a NodeArgs,
    binary: PathBuf,
    data: PathBuf,
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        let _ = Command::new(&self.binary).arg("down").arg("--data-dir").arg(&self.data).stdout(Stdio::null()).status();
        let _ = fs::remove_dir_all(&self.data);
    }
}

/// A watch of the API: objects and when each was seen.
struct Watch {
    child: Child,
    lines: Receiver<(Instant, Value)>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Watch {
    fn next(&self) -> Outcome<(Instant, Value)> {
        self.lines.recv_timeout(PATIENCE).map_err(|_| Failure::Found("the watch says nothing more".to_owned()))
    }
}

/// Measures all and publishes the table.
pub(crate) fn run(args: &NodeArgs) -> Outcome {
    for program in ["nginx", "wrk"] {
        if find_program(program).is_none() {
            return Err(Failure::Found(format!("{program} is missing; apt-get install {program}")));
        }
    }
    let workspace = Workspace::load()?;
    if args.binary.is_none() {
        run_command(cargo().args(["build", "--release", "--locked", "--package", "mainstay"]))?;
    }
    let binary = args.binary.clone().unwrap_or(workspace.target.join("release/mainstay"));
    let data = std::env::temp_dir().join(format!("mainstay-bench-node-{}", std::process::id()));
    fs::create_dir_all(&data).map_err(at(&data))?;
    let bench = Bench { args, binary, data };
    let mut rows = bench.measure()?;
    drop(bench);
    rows.retain(|row| row.value.is_finite());
    publish(&workspace.target, "node", &rows)
}

impl Bench<'_> {
    fn measure(&self) -> Outcome<Vec<Row>> {
        let mut up = Command::new(&self.binary);
        up.args(["up", "--detach", "-q", "--nodes", "1", "--api", &self.args.api]);
        if self.args.pods + SPARE > PODS_USUAL {
            up.args(["--node-pods", &(self.args.pods + SPARE).to_string()]);
        }
        run_command(up.arg("--data-dir").arg(&self.data))?;
        let mut rows = self.single_pods()?;
        rows.extend(self.connections()?);
        rows.extend(self.many_pods()?);
        rows.extend(self.rules()?);
        Ok(rows)
    }

    fn kubectl(&self) -> Command {
        let mut kubectl = Command::new(&self.args.kubectl);
        kubectl.env("KUBECONFIG", self.data.join("kubeconfig")).env("KUBECACHEDIR", self.data.join("cache"));
        kubectl
    }

    fn get(&self, args: &[&str]) -> Outcome<Value> {
        let text = output(self.kubectl().arg("get").args(args).args(["-o", "json"]))?;
        serde_json::from_str(&text).map_err(|source| Failure::Json { what: "kubectl's answer".into(), source })
    }

    fn create(&self, object: &Value) -> Outcome {
        let mut child = self
            .kubectl()
            .args(["create", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(at(&self.args.kubectl))?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(object.to_string().as_bytes()).map_err(at(&self.args.kubectl))?;
        }
        let status = child.wait().map_err(at(&self.args.kubectl))?;
        if status.success() { Ok(()) } else { Err(Failure::Found("kubectl create failed".to_owned())) }
    }

    /// Watches objects from now on.
    fn watch(&self, path: &str) -> Outcome<Watch> {
        let mut child = self
            .kubectl()
            .args(["get", "--raw", path])
            .stdout(Stdio::piped())
            .spawn()
            .map_err(at(&self.args.kubectl))?;
        let stdout = child.stdout.take().ok_or_else(|| Failure::Found("no output of kubectl".to_owned()))?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let seen = Instant::now();
                let Ok(event) = serde_json::from_str(&line) else { continue };
                if sender.send((seen, event)).is_err() {
                    break;
                }
            }
        });
        Ok(Watch { child, lines })
    }

    /// Pods one after the other.
    fn single_pods(&self) -> Outcome<Vec<Row>> {
        let watch = self.watch("/api/v1/namespaces/default/pods?watch=true")?;
        let mut times = Vec::new();
        for number in 0..self.args.single {
            self.create(&pod(&format!("one-{number}")))?;
            let mut began = None;
            loop {
                let (seen, event) = watch.next()?;
                if event["object"]["metadata"]["name"] != format!("one-{number}") {
                    continue;
                }
                let began = *began.get_or_insert(seen);
                if is_ready(&event["object"]) {
                    times.push((seen - began).as_secs_f64() * 1e3);
                    break;
                }
            }
        }
        run_command(self.kubectl().args(["delete", "pods", "--all", "--now"]).stdout(Stdio::null()))?;
        times.sort_by(f64::total_cmp);
        let nearly_worst = times.get(times.len() * 95 / 100).copied().unwrap_or(0.0);
        Ok(vec![
            Row::at_most("pod created to Ready, median", median(&times), "ms", READY_MS_GOAL),
            Row::plain("pod created to Ready, 95 of 100 within", nearly_worst, "ms"),
            Row::plain("pod created to Ready, worst", largest(&times), "ms"),
        ])
    }

    /// Connections and bytes through a service and without.
    fn connections(&self) -> Outcome<Vec<Row>> {
        self.create(&server())?;
        run_command(
            self.kubectl().args(["wait", "pod/server", "--for=condition=Ready", "--timeout=60s"]).stdout(Stdio::null()),
        )?;
        let address = |value: &Value| -> Outcome<SocketAddr> {
            let text = format!("{}:8080", value.as_str().unwrap_or_default());
            text.parse().map_err(|_| Failure::Found(format!("{text} is no address")))
        };
        let direct = address(&self.get(&["pod", "server"])?["status"]["podIP"])?;
        let service = address(&self.get(&["service", "server"])?["spec"]["clusterIP"])?;
        await_connection(service)?;
        let (mut rates, mut bytes) = (BTreeMap::<_, Vec<f64>>::new(), BTreeMap::<_, Vec<f64>>::new());
        for _ in 0..TURNS {
            for target in [direct, service] {
                rates.entry(target).or_default().push(connection_rate(target, self.args.seconds)?);
                bytes.entry(target).or_default().push(throughput(target)?);
            }
        }
        let of = |all: &BTreeMap<SocketAddr, Vec<f64>>, target| all.get(&target).map_or(0.0, |all| median(all));
        let beside = |metric: &str, all, unit| {
            let (own, peer) = (of(all, service), of(all, direct));
            let row = Row::plain(metric, own, unit).against(peer);
            Row { goal: Some(SERVICE_RATIO_GOAL * peer), goal_met: Some(own >= SERVICE_RATIO_GOAL * peer), ..row }
        };
        let rows = vec![
            beside("connections through a service (peer: direct)", &rates, "1/s"),
            beside("bytes through a service (peer: direct)", &bytes, "MB/s"),
        ];
        run_command(
            self.kubectl()
                .args(["delete", "pod/server", "service/server", "configmap/server", "--now"])
                .stdout(Stdio::null()),
        )?;
        Ok(rows)
    }

    fn many_pods(&self) -> Outcome<Vec<Row>> {
        let agent = self.agent()?;
        let before = cpu_seconds(agent)?;
        let watch = self.watch("/api/v1/namespaces/default/pods?watch=true&labelSelector=app%3Dmany")?;
        self.create(&deployment(self.args.pods))?;
        let (mut began, mut ready, mut last) = (None, std::collections::BTreeSet::new(), None);
        while ready.len() < self.args.pods {
            let (seen, event) = watch.next()?;
            began.get_or_insert(seen);
            if is_ready(&event["object"])
                && let Some(name) = event["object"]["metadata"]["name"].as_str()
            {
                ready.insert(name.to_owned());
                last = Some(seen);
            }
        }
        let took = began.zip(last).map_or(0.0, |(began, last)| (last - began).as_secs_f64());
        let used = cpu_seconds(agent)? - before;
        std::thread::sleep(REST);
        let resting = cpu_seconds(agent)?;
        std::thread::sleep(REST);
        let at_rest = (cpu_seconds(agent)? - resting) / REST.as_secs_f64() * 100.0;
        let resident = memory::resident_mb(agent).unwrap_or(0.0);
        let count = self.args.pods;
        let rows = vec![
            Row::plain(&format!("{count} pods on one node: first created to all Ready"), took, "s"),
            Row::plain(&format!("{count} pods: the agent's processor time for them"), used, "s"),
            Row::plain(&format!("{count} pods: the agent's processor time at rest"), at_rest, "%"),
            Row::plain(&format!("{count} pods: the agent's memory, resident"), resident, "MB"),
        ];
        let begun = Instant::now();
        run_command(self.kubectl().args(["delete", "deployment/many"]).stdout(Stdio::null()))?;
        while !self.get(&["pods"])?["items"].as_array().is_none_or(Vec::is_empty) {
            if begun.elapsed() > PATIENCE {
                return Err(Failure::Found("the pods do not go".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let gone = Row::plain(&format!("{count} pods: deleted to all gone"), begun.elapsed().as_secs_f64(), "s");
        Ok(rows.into_iter().chain([gone]).collect())
    }

    /// From a changed endpoint to the first connection to it, with many services beside.
    fn rules(&self) -> Outcome<Vec<Row>> {
        self.create(&server())?;
        run_command(
            self.kubectl().args(["wait", "pod/server", "--for=condition=Ready", "--timeout=60s"]).stdout(Stdio::null()),
        )?;
        let pod = self.get(&["pod", "server"])?["status"]["podIP"].as_str().unwrap_or_default().to_owned();
        let mut rows = Vec::new();
        for services in [0, self.args.services] {
            if services > 0 {
                let all: Vec<Value> = (0..services).flat_map(others).collect();
                // kubectl sends one object after the other; four of them fill the time that each waits.
                let size = all.len().div_ceil(4);
                let list = |part: &[Value]| json!({"apiVersion": "v1", "kind": "List", "items": part});
                let parts: Vec<_> = all.chunks(size).map(list).collect();
                std::thread::scope(|scope| -> Outcome {
                    let tasks: Vec<_> = parts.iter().map(|part| scope.spawn(|| self.create(part))).collect();
                    let failed = || Err(Failure::Found("kubectl".to_owned()));
                    tasks.into_iter().try_for_each(|task| task.join().unwrap_or_else(|_| failed()))
                })?;
            }
            let times = self.changes(&pod, services)?;
            rows.push(Row::plain(
                &format!("rules: endpoint to first connection, {services} services beside, median"),
                median(&times),
                "ms",
            ));
            rows.push(Row::plain(
                &format!("rules: the same, {services} services beside, worst"),
                largest(&times),
                "ms",
            ));
        }
        Ok(rows)
    }

    fn changes(&self, pod: &str, number: usize) -> Outcome<Vec<f64>> {
        let name = format!("target-{number}");
        self.create(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 8080}]}}))?;
        let ip = self.get(&["service", &name])?["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
        let target: SocketAddr =
            format!("{ip}:8080").parse().map_err(|_| Failure::Found(format!("{ip} is no address")))?;
        let path = format!(
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?watch=true&labelSelector=kubernetes.io%2Fservice-name%3D{name}"
        );
        let watch = self.watch(&path)?;
        let mut times = Vec::new();
        for _ in 0..CHANGES {
            self.create(&slice(&name, &[pod.to_owned()]))?;
            let seen = loop {
                let (seen, event) = watch.next()?;
                if event["type"] == "ADDED" {
                    break seen;
                }
            };
            let reached = await_connection(target)?;
            times.push(reached.saturating_duration_since(seen).as_secs_f64() * 1e3);
            run_command(self.kubectl().args(["delete", "endpointslice", &name]).stdout(Stdio::null()))?;
            let begun = Instant::now();
            while TcpStream::connect_timeout(&target, Duration::from_millis(100)).is_ok() && begun.elapsed() < PATIENCE
            {
            }
        }
        Ok(times)
    }

    /// The agent's process.
    fn agent(&self) -> Outcome<u32> {
        let path = self.data.join("run/node-1.pid");
        let text = fs::read_to_string(&path).map_err(at(&path))?;
        text.trim().parse().map_err(|_| Failure::Found(format!("{} holds no number", path.display())))
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// A program that is ready at once and ends at once.
fn spec() -> Value {
    json!({"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "mainstay.dev/host", "command": ["sleep", "100000"]}]})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec()})
}

fn deployment(replicas: usize) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "many"}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": "many"}},
        "template": {"metadata": {"labels": {"app": "many"}}, "spec": spec()}}})
}

/// An nginx in a pod, with a service.
fn server() -> Value {
    let config = "daemon off; worker_processes 1; error_log /dev/null; pid /tmp/pid; events { worker_connections 1024; } \
        http { access_log off; sendfile on; server { listen 8080; location /big { root /data; } location / { return 200 'ok'; } } }";
    let start = format!("head -c {FILE_MIB}M /dev/zero > /data/big && exec nginx -c /settings/nginx.conf");
    let of_pod = json!({"terminationGracePeriodSeconds": 0,
        "volumes": [{"name": "data", "emptyDir": {"medium": "Memory"}}, {"name": "settings", "configMap": {"name": "server"}}],
        "containers": [{"name": "c", "image": "mainstay.dev/host", "command": ["sh", "-c", start],
            "readinessProbe": {"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "settings", "mountPath": "/settings"}]}]});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "server"}, "data": {"nginx.conf": config}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"}, "spec": {"selector": {"app": "server"}, "ports": [{"port": 8080}]}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "server", "labels": {"app": "server"}}, "spec": of_pod}]})
}

/// A service and its endpoints, which nobody uses.
fn others(number: usize) -> [Value; 2] {
    let name = format!("other-{number}");
    let addresses: Vec<_> =
        (0..ENDPOINTS).map(|endpoint| format!("192.0.{}.{}", 2 + number % 200, 1 + endpoint)).collect();
    [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 8080}]}}),
        slice(&name, &addresses),
    ]
}

fn slice(service: &str, addresses: &[String]) -> Value {
    let endpoints: Vec<_> =
        addresses.iter().map(|address| json!({"addresses": [address], "conditions": {"ready": true}})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}

/// Connects until it works; when it did.
fn await_connection(target: SocketAddr) -> Outcome<Instant> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if TcpStream::connect_timeout(&target, Duration::from_millis(100)).is_ok() {
            return Ok(Instant::now());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Err(Failure::Found(format!("{target} does not answer")))
}

/// Connections a second, one request each.
fn connection_rate(target: SocketAddr, seconds: u32) -> Outcome<f64> {
    let duration = format!("{seconds}s");
    let url = format!("http://{target}/");
    let text = output(Command::new("wrk").args(["-t1", "-c16", "-H", "Connection: close", "-d", &duration, &url]))?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    line.and_then(|number| number.trim().parse().ok()).ok_or_else(|| Failure::Found("wrk says no rate".to_owned()))
}

/// Megabytes a second over one connection.
fn throughput(target: SocketAddr) -> Outcome<f64> {
    let failed = |error: std::io::Error| Failure::Found(format!("reading from {target}: {error}"));
    let mut stream = TcpStream::connect(target).map_err(failed)?;
    stream.write_all(b"GET /big HTTP/1.0\r\n\r\n").map_err(failed)?;
    let (begun, mut count, mut buffer) = (Instant::now(), 0_u64, vec![0; 256 << 10]);
    loop {
        match stream.read(&mut buffer).map_err(failed)? {
            0 => break,
            more => count += more as u64,
        }
    }
    if count < FILE_MIB << 20 {
        return Err(Failure::Found(format!("only {count} bytes came from {target}")));
    }
    Ok(count as f64 / 1e6 / begun.elapsed().as_secs_f64())
}

/// Processor time that a process has used.
fn cpu_seconds(pid: u32) -> Outcome<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).map_err(at(Path::new(&path)))?;
    // Fields 14 and 15, counted after the name, which may hold spaces: `man 5 proc_pid_stat`.
    let after = text.rsplit(')').next().unwrap_or_default();
    let ticks =
        |index: usize| after.split_whitespace().nth(index).and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0);
    Ok((ticks(11) + ticks(12)) / TICKS)
}
