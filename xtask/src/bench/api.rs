//! `cargo xtask bench api`: the API server and, on the same disk in the same run, etcd.
//!
//! # Flow
//! release build → a bare fdatasync → etcd alone → the API server over its embedded store → 50,000 pods into each →
//! table.
//!
//! # What is compared
//! The API server does what kube-apiserver and etcd do together: TLS, authorisation, defaults, validation, encoding. Its
//! peer here is etcd alone, over plain HTTP/2, with the bytes of the same objects in the transactions Kubernetes uses. So
//! the comparison leans to etcd's side; kube-apiserver over it is not measured. Clients share the machine with the servers.
//!
//! The pods lie in the API unscheduled; the server's memory is that of the whole process, with the caches of its
//! controllers. etcd has Debian's defaults.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use super::memory;
use super::report::{Row, publish};
use crate::process::{Failure, Outcome, at, cargo, find_program, output, run as run_command};
use crate::workspace::Workspace;

/// Flags of `cargo xtask bench api`.
#[derive(Args)]
pub(crate) struct ApiArgs {
    /// How many pods are stored where memory is measured
    #[arg(long, default_value_t = 50_000)]
    pods: usize,
    /// Where the stores lie: the disk that is measured (default: the target directory)
    #[arg(long)]
    directory: Option<PathBuf>,
    /// A directory with the release programs `mainstay` and `examples/api_load`, instead of building them
    #[arg(long)]
    programs: Option<PathBuf>,
}

/// A durable create by one client may take this much longer than a bare fdatasync, in microseconds.
const CREATE_BEYOND_FSYNC_US: f64 = 150.0;
const CREATES_PER_S_GOAL: f64 = 10_000.0;
const FAN_OUT_MS_GOAL: f64 = 20.0;
/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);
/// Rest before memory is read.
const REST: Duration = Duration::from_secs(3);

/// The programs, and a directory for what they write.
struct Bench {
    mainstay: PathBuf,
    load: PathBuf,
    directory: PathBuf,
}

/// A server, killed when dropped, with its data directory removed.
struct Running {
    child: Child,
    port: u16,
    data: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.data);
    }
}

/// Measures and publishes the table.
pub(crate) fn run(args: &ApiArgs) -> Outcome {
    let workspace = Workspace::load()?;
    if find_program("etcd").is_none() {
        return Err(Failure::Found("etcd is missing; run `cargo xtask test --only install`".into()));
    }
    let programs = args.programs.clone().unwrap_or_else(|| workspace.target.join("release"));
    if args.programs.is_none() {
        let build = ["build", "--release", "--locked", "--package", "mainstay", "--bin", "mainstay"];
        run_command(cargo().args(build).args(["--example", "api_load"]))?;
    }
    let parent = args.directory.clone().unwrap_or_else(|| workspace.target.clone());
    let directory = parent.join(format!("bench-api-{}", std::process::id()));
    fs::create_dir_all(&directory).map_err(at(&directory))?;
    let (mainstay, load) = (programs.join("mainstay"), programs.join("examples/api_load"));
    let bench = Bench { mainstay, load, directory };
    let rows = bench.rows(args.pods);
    let _ = fs::remove_dir_all(&bench.directory);
    publish(&workspace.target, "api", &rows?)
}

impl Bench {
    fn rows(&self, pods: usize) -> Outcome<Vec<Row>> {
        let here = self.directory.display().to_string();
        let fsync = number(&self.load(&["fsync", &here])?, "fsync_us")?;
        println!("a bare write of 4 KiB with fdatasync: {fsync:.0} us");
        let etcd = self.etcd("etcd")?;
        let peer = self.load(&["etcd", &etcd.url()])?;
        drop(etcd);
        let server = self.server("server")?;
        let own = self.load(&["api", &server.kubeconfig()])?;
        drop(server);
        let row = |metric: &str, name: &str, unit| {
            Ok(Row::plain(metric, number(&own, name)?, unit).against(number(&peer, name)?))
        };
        let mut rows = vec![
            Row::plain("write of 4 KiB and fdatasync, p50", fsync, "us"),
            row("create, one client, p50", "create_us", "us")?.at_most_goal(fsync + CREATE_BEYOND_FSYNC_US),
            row("update, one client, p50", "update_us", "us")?,
            row("creates, 256 clients", "creates_per_s", "1/s")?.at_least_goal(CREATES_PER_S_GOAL),
            row("updates, 256 clients", "updates_per_s", "1/s")?,
            row("list of 10,240 objects of 2 kB, p50", "list_ms", "ms")?,
            row("create, and seen by 1,000 watchers, p50", "fan_out_ms", "ms")?.at_most_goal(FAN_OUT_MS_GOAL),
        ];
        rows.extend(self.memory(pods)?);
        Ok(rows)
    }

    /// The same pods in an etcd, in the API server, and in the embedded store alone.
    fn memory(&self, pods: usize) -> Outcome<Vec<Row>> {
        let count = pods.to_string();
        let etcd = self.etcd("etcd")?;
        self.load(&["etcd-pods", &etcd.url(), &count])?;
        let peer = etcd.resident_mb()?;
        drop(etcd);
        let server = self.server("server")?;
        let empty = server.resident_mb()?;
        let answer = self.load(&["pods", &server.kubeconfig(), &count])?;
        let full = server.resident_mb()?;
        drop(server);
        let place = self.directory.join("store-alone");
        let alone = self.load(&["store-pods", &place.display().to_string(), &count])?;
        let store = number(&alone, "resident_mb")? - number(&alone, "before_mb")?;
        Ok(vec![
            Row::plain("pods created, 256 clients", number(&answer, "pods_per_s")?, "1/s"),
            Row::plain("size of a pod as answered", number(&answer, "bytes_each")?, "B"),
            Row::plain("resident memory, server without pods", empty, "MB"),
            Row::plain(&format!("resident memory, server with {pods} pods"), full, "MB").against(peer),
            Row::plain(&format!("resident memory, the store's with {pods} pods"), store, "MB").against(peer),
            Row::plain(&format!("list of all {pods} in the store alone"), number(&alone, "list_ms")?, "ms"),
        ])
    }

    fn load(&self, args: &[&str]) -> Outcome<Value> {
        println!("{}", args.first().copied().unwrap_or_default());
        let text = output(Command::new(&self.load).args(args))?;
        serde_json::from_str(&text).map_err(|source| Failure::Json { what: "the answer of api_load".into(), source })
    }

    fn server(&self, name: &str) -> Outcome<Running> {
        let (port, data) = (free_port()?, self.directory.join(name));
        let mut command = Command::new(&self.mainstay);
        command.args(["server", "--api", &format!("127.0.0.1:{port}"), "--data-dir"]).arg(&data);
        start(command.stderr(Stdio::null()), port, data)
    }

    fn etcd(&self, name: &str) -> Outcome<Running> {
        let (port, peer_port, data) = (free_port()?, free_port()?, self.directory.join(name));
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
        let mut command = Command::new("etcd");
        command.args(["--name", "one", "--logger", "zap", "--log-level", "error", "--data-dir"]).arg(&data);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("one={peer}")]);
        start(command.stderr(Stdio::null()), port, data)
    }
}

impl Running {
    fn url(&self) -> String {
        format!("etcd://127.0.0.1:{}", self.port)
    }

    fn kubeconfig(&self) -> String {
        self.data.join("kubeconfig").display().to_string()
    }

    fn resident_mb(&self) -> Outcome<f64> {
        std::thread::sleep(REST);
        memory::resident_mb(self.child.id()).ok_or_else(|| Failure::Found("a server died under its load".into()))
    }
}

/// Starts a server and waits until it listens.
fn start(command: &mut Command, port: u16, data: PathBuf) -> Outcome<Running> {
    let program = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let child = child.map_err(|source| Failure::Start { program: program.clone(), source })?;
    let running = Running { child, port, data };
    let since = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if since.elapsed() > PATIENCE {
            return Err(Failure::Found(format!("{program} does not listen")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(running)
}

fn free_port() -> Outcome<u16> {
    let bound = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    Ok(bound.map_err(at(Path::new("127.0.0.1:0")))?.port())
}

fn number(answer: &Value, name: &str) -> Outcome<f64> {
    answer.get(name).and_then(Value::as_f64).ok_or_else(|| Failure::Found(format!("api_load says nothing of {name}")))
}
