//! `cargo xtask bench scheduler`: how many pods a second find their nodes, through the pure core and through the API.
//!
//! # Flow
//! release build → the core alone over 5,000 nodes and 10,000 pods, plain and with zone spread and host anti-affinity → the
//! whole control plane with as many hollow nodes: ten Deployments of a thousand pods each; the clock runs from `kubectl
//! apply` until every pod is Ready, so that it counts controllers, scheduler, API and store; and what the server holds in memory
//! before and after.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::memory;
use super::report::{Row, publish};
use crate::process::{Failure, Outcome, at, cargo, run as run_command};
use crate::workspace::Workspace;

/// Pods a second, plain and constrained.
const PLAIN_GOAL: f64 = 10_000.0;
const CONSTRAINED_GOAL: f64 = 2_000.0;
const DEPLOYMENTS: usize = 10;
/// How long the control plane may take for all of it.
const PATIENCE: Duration = Duration::from_secs(600);

/// Flags of `cargo xtask bench scheduler`.
#[derive(Args)]
pub(crate) struct SchedulerArgs {
    /// Hollow nodes of the run through the API; 0 leaves that run out
    #[arg(long, default_value_t = 5_000)]
    hollow_nodes: usize,
    /// Pods of the run through the API
    #[arg(long, default_value_t = 10_000)]
    pods: usize,
    /// Where the API listens; not the default, so that a Mainstay in use is not in the way
    #[arg(long, default_value = "127.0.0.1:26443")]
    api: String,
    /// The binary to measure instead of building one
    #[arg(long)]
    binary: Option<PathBuf>,
    /// kubectl
    #[arg(long, env = "MAINSTAY_KUBECTL", default_value = "kubectl")]
    kubectl: PathBuf,
}

/// Measures and publishes the table.
pub(crate) fn run(args: &SchedulerArgs) -> Outcome {
    let workspace = Workspace::load()?;
    let mut rows = core()?;
    if args.hollow_nodes > 0 {
        let built = workspace.target.join("release/mainstay");
        if args.binary.is_none() {
            run_command(cargo().args(["build", "--release", "--locked", "--package", "mainstay"]))?;
        }
        let data = std::env::temp_dir().join(format!("mainstay-bench-scheduler-{}", std::process::id()));
        let binary = args.binary.clone().unwrap_or(built);
        let measured = whole(args, &binary, &data);
        // Whatever happened, nothing stays behind.
        let down = run_command(Command::new(&binary).arg("down").arg("--data-dir").arg(&data));
        let _ = fs::remove_dir_all(&data);
        rows.extend(measured?);
        down?;
    }
    publish(&workspace.target, "scheduler", &rows)
}

fn core() -> Outcome<Vec<Row>> {
    let mut example = cargo();
    example.args(["run", "--release", "--quiet", "--package", "mainstay-scheduler", "--example", "bench"]);
    let output = example.stdout(Stdio::piped()).output().map_err(at(Path::new("cargo")))?;
    let figures: Value = serde_json::from_slice(&output.stdout)
        .map_err(|source| Failure::Json { what: "the figures of the scheduler's core".into(), source })?;
    let figure = |name: &str| figures[name].as_f64().unwrap_or(0.0);
    Ok(vec![
        Row::plain("core, plain", figure("plain"), "pods/s").at_least_goal(PLAIN_GOAL),
        Row::plain("core, zone spread and host anti-affinity", figure("constrained"), "pods/s")
            .at_least_goal(CONSTRAINED_GOAL),
    ])
}

/// Pods a second through the whole control plane, and the server's memory.
fn whole(args: &SchedulerArgs, binary: &Path, data: &Path) -> Outcome<Vec<Row>> {
    fs::create_dir_all(data).map_err(at(data))?;
    let mut up = Command::new(binary);
    up.arg("up").args(["--nodes", "1", "--detach", "-q", "--api", &args.api]).arg("--data-dir").arg(data);
    run_command(up.args(["--hollow-nodes", &args.hollow_nodes.to_string()]))?;
    let kubectl = || {
        let mut kubectl = Command::new(&args.kubectl);
        kubectl.env("KUBECONFIG", data.join("kubeconfig")).env("KUBECACHEDIR", data.join("cache"));
        kubectl
    };
    let wait = |what: &str, is_done: &dyn Fn() -> bool| {
        let since = Instant::now();
        while !is_done() {
            if since.elapsed() > PATIENCE {
                return Err(Failure::Found(format!("waited in vain until {what}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(since.elapsed())
    };
    let shown = |args: &[&str]| {
        let output = kubectl().args(args).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    };
    let nodes = || shown(&["get", "nodes", "-o", "name"]).lines().count();
    wait("the hollow nodes are there", &|| nodes() > args.hollow_nodes)?;
    let server = || {
        let pid = fs::read_to_string(data.join("run/server.pid")).ok()?.trim().parse().ok()?;
        memory::resident_mb(pid)
    };
    let before = server().unwrap_or(0.0);
    let each = args.pods / DEPLOYMENTS;
    let items: Vec<Value> = (0..DEPLOYMENTS).map(|index| deployment(index, each)).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    let began = Instant::now();
    let mut apply = kubectl()
        .args(["apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(at(&args.kubectl))?;
    if let Some(input) = apply.stdin.as_mut() {
        input.write_all(list.as_bytes()).map_err(at(&args.kubectl))?;
    }
    apply.wait().map_err(at(&args.kubectl))?;
    let ready = || {
        let counts = shown(&["get", "deployments", "-o", "jsonpath={.items[*].status.readyReplicas}"]);
        counts.split_whitespace().filter_map(|count| count.parse::<usize>().ok()).sum::<usize>()
    };
    wait("every pod is Ready", &|| ready() >= each * DEPLOYMENTS)?;
    let rate = (each * DEPLOYMENTS) as f64 / began.elapsed().as_secs_f64();
    Ok(vec![
        Row::plain("through the API, apply to all Ready", rate, "pods/s"),
        Row::plain("server, resident, with the nodes", before, "MB"),
        Row::plain("server, resident, with nodes and pods", server().unwrap_or(0.0), "MB"),
    ])
}

fn deployment(index: usize, replicas: usize) -> Value {
    let app = format!("app-{index}");
    let container = json!({"name": "main", "image": "mainstay.dev/host", "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}});
    // Only hollow nodes have no architecture.
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": app, "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": app}}, "template": {
            "metadata": {"labels": {"app": app}},
            "spec": {"containers": [container], "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "DoesNotExist"}]}]}}}},
        }},
    })
}
