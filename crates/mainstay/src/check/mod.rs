//! `mainstay check`: the command line of the survivability check.
//!
//! # Exit status
//! 0: checked, and every `--require` holds. 1: checked, and something required does not hold, or with `--verify` something
//! came otherwise than predicted. 2: could not be checked.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use kube::Client;
use mainstay_check::availability::{Method, Rates};
use mainstay_check::engine::{Engine, PROGRAM_START_S};
use mainstay_check::finding::Severity;
use mainstay_check::manifest::{self, Object};
use mainstay_check::topology::{NodeSize, Topology};
use mainstay_check::{FailureKind, Report, Settings, fix, output};
use serde_json::{Value, json};

use crate::AnyError;

mod verify;

/// Exit status of a check that could not be made.
const NOT_CHECKED: u8 = 2;
/// Breaches of a requirement that are written out.
const BREACHES_MAX: usize = 20;
/// Objects in one answer of the API.
const PAGE: usize = 500;

/// `mainstay check`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").args(["files", "cluster"]).required(true).multiple(true))]
pub struct CheckArgs {
    /// Manifests: a file, a directory, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    pub files: Vec<PathBuf>,
    /// Check what runs in a cluster, on its nodes; with -f, what would run there
    #[arg(long, conflicts_with_all = ["nodes", "zones", "topology"])]
    pub cluster: bool,
    /// With --cluster: the kubeconfig (default: $KUBECONFIG, or ~/.kube/config)
    #[arg(long, value_name = "FILE", requires = "cluster")]
    pub kubeconfig: Option<PathBuf>,
    /// Nodes to place the pods on
    #[arg(long, default_value_t = 3)]
    pub nodes: usize,
    /// Zones that the nodes are spread over
    #[arg(long, default_value_t = 3)]
    pub zones: usize,
    /// Processors of each node
    #[arg(long, default_value = "4", value_name = "QUANTITY")]
    pub node_cpu: String,
    /// Memory of each node
    #[arg(long, default_value = "16Gi", value_name = "QUANTITY")]
    pub node_memory: String,
    /// Servers of the control plane, on machines of their own
    #[arg(long, default_value_t = 1)]
    pub servers: usize,
    /// Nodes and zones from a file: Node objects, or kind: Topology
    #[arg(long, value_name = "FILE", conflicts_with_all = ["nodes", "zones"])]
    pub topology: Option<PathBuf>,
    /// Whose times count (default: mainstay; with --cluster, what the API says it is)
    #[arg(long, value_enum)]
    pub engine: Option<EngineName>,
    /// Seconds that programs need to start
    #[arg(long, default_value_t = PROGRAM_START_S, value_name = "SECONDS")]
    pub start_seconds: f64,
    /// A rate, such as node.failures-per-year=0.5 or person.hours=2; may be repeated
    #[arg(long, value_name = "NAME=FIGURE")]
    pub assume: Vec<String>,
    /// Seed of the estimate, where not every state can be counted
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// States drawn for the estimate, where not every state can be counted
    #[arg(long, default_value_t = Method::default().samples)]
    pub samples: usize,
    /// What must hold: survive=pod,node,zone,volume,server,two-nodes; no=error,warning; may be repeated
    #[arg(long, value_name = "WHAT", value_parser = requirement)]
    pub require: Vec<Requirement>,
    /// With --require survive: seconds that a service may be down and still count as surviving
    #[arg(long, default_value_t = 0.0, value_name = "SECONDS")]
    pub down_max: f64,
    /// Write what can be mended by machine into a directory: strategic merge patches, and new objects
    #[arg(long, value_name = "DIRECTORY")]
    pub fix: Option<PathBuf>,
    /// Then let each single failure happen on an instance of its own (root; minutes), and say where that differs
    #[arg(long, requires = "files", conflicts_with_all = ["cluster", "topology", "servers"])]
    pub verify: bool,
    /// Show notes, too
    #[arg(long)]
    pub notes: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Format,
}

/// Output formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// SARIF 2.1.0, for code review.
    Sarif,
    /// One page with a picture.
    Html,
}

/// Platforms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineName {
    /// The embedded engine.
    Mainstay,
    /// Kubernetes with its defaults.
    Kubernetes,
}

/// What must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// No service is down after any of these failures.
    Survive(Vec<FailureKind>),
    /// There is no finding of these.
    No(Vec<Severity>),
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let (name, list) = text.split_once('=').ok_or("write survive=KIND,… or no=SEVERITY,…")?;
    let words = list.split(',').map(str::trim);
    match name {
        "survive" => {
            let names = FailureKind::ALL.map(FailureKind::name).join(", ");
            let kind = |word: &str| {
                FailureKind::ALL
                    .into_iter()
                    .find(|kind| kind.name() == word)
                    .ok_or_else(|| format!("{word:?} is none of {names}"))
            };
            words.map(kind).collect::<Result<_, _>>().map(Requirement::Survive)
        }
        "no" => {
            let all = [Severity::Error, Severity::Warning, Severity::Note];
            let severity = |word: &str| {
                all.into_iter()
                    .find(|one| one.name() == word)
                    .ok_or_else(|| format!("{word:?} is none of error, warning, note"))
            };
            words.map(severity).collect::<Result<_, _>>().map(Requirement::No)
        }
        other => Err(format!("{other:?} is neither survive nor no")),
    }
}

/// Runs the command.
pub fn run(args: &CheckArgs) -> ExitCode {
    match checked(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mainstay: {error}");
            ExitCode::from(NOT_CHECKED)
        }
    }
}

fn checked(args: &CheckArgs) -> Result<bool, AnyError> {
    let mut objects = manifest::read(&args.files)?;
    let mut rates = Rates::default();
    for setting in &args.assume {
        rates.set(setting)?;
    }
    let mut engine = args.engine;
    let topology = if args.cluster {
        let runtime = crate::small_runtime()?;
        let (live, is_ours) = runtime.block_on(async { live(&client(args).await?).await })?;
        engine = engine.or(Some(if is_ours { EngineName::Mainstay } else { EngineName::Kubernetes }));
        let nodes =
            live.iter().filter(|object| object.kind() == "Node").map(|node| node.written.clone()).collect::<Vec<_>>();
        add_live(&mut objects, live);
        Topology::of_nodes(&nodes)?
    } else if let Some(file) = &args.topology {
        Topology::read(file)?
    } else {
        let size = NodeSize { cpu: args.node_cpu.clone(), memory: args.node_memory.clone(), ..NodeSize::default() };
        Topology::grid(args.nodes, args.zones, &size, args.servers)?
    };
    let engine = match engine {
        Some(EngineName::Kubernetes) => Engine::kubernetes(),
        _ => Engine::mainstay(),
    };
    let method = Method { seed: args.seed, samples: args.samples };
    let settings = Settings { engine, program_s: args.start_seconds, rates, method };
    if args.verify {
        return crate::small_runtime()?.block_on(verify::run(args, &settings));
    }
    let report = mainstay_check::check(objects, topology, &settings)?;
    show(args, &report)?;
    if let Some(directory) = &args.fix {
        let count = fix::write(directory, &report.findings)?;
        eprintln!("{count} patches in {}", directory.display());
    }
    Ok(holds(args, &report))
}

fn show(args: &CheckArgs, report: &Report) -> Result<(), AnyError> {
    use std::io::Write as _;
    let text = match args.output {
        Format::Text => output::text(report, args.notes),
        Format::Json => serde_json::to_string_pretty(&output::json(report))? + "\n",
        Format::Sarif => serde_json::to_string_pretty(&output::sarif(report, env!("CARGO_PKG_VERSION")))? + "\n",
        Format::Html => output::html(report),
    };
    // Whoever reads only the first lines closes the pipe.
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Whether everything required holds; what does not is told on standard error.
fn holds(args: &CheckArgs, report: &Report) -> bool {
    let mut breaches = Vec::new();
    for requirement in &args.require {
        match requirement {
            Requirement::Survive(kinds) => {
                for kind in kinds {
                    let cells = report.not_survived(*kind, args.down_max);
                    breaches.extend(
                        cells
                            .iter()
                            .map(|cell| format!("{} takes {} down: {}", cell.failure, cell.service, cell.shown())),
                    );
                }
            }
            Requirement::No(severities) => {
                let of = report.findings.iter().filter(|finding| severities.contains(&finding.rule.severity));
                breaches
                    .extend(of.map(|finding| format!("{}: {}: {}", finding.place, finding.rule.id, finding.message)));
            }
        }
    }
    let bold = if std::io::stderr().is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    for breach in breaches.iter().take(BREACHES_MAX) {
        eprintln!("{}required, and does not hold:{} {breach}", bold.0, bold.1);
    }
    if breaches.len() > BREACHES_MAX {
        eprintln!("and {} more", breaches.len() - BREACHES_MAX);
    }
    breaches.is_empty()
}

/// What is read of a cluster: path of the list, `apiVersion`, kind.
const LIVE: &[(&str, &str, &str)] = &[
    ("/api/v1/nodes", "v1", "Node"),
    ("/api/v1/namespaces", "v1", "Namespace"),
    ("/api/v1/pods", "v1", "Pod"),
    ("/api/v1/services", "v1", "Service"),
    ("/api/v1/configmaps", "v1", "ConfigMap"),
    ("/api/v1/persistentvolumes", "v1", "PersistentVolume"),
    ("/api/v1/persistentvolumeclaims", "v1", "PersistentVolumeClaim"),
    ("/apis/apps/v1/deployments", "apps/v1", "Deployment"),
    ("/apis/apps/v1/replicasets", "apps/v1", "ReplicaSet"),
    ("/apis/apps/v1/statefulsets", "apps/v1", "StatefulSet"),
    ("/apis/apps/v1/daemonsets", "apps/v1", "DaemonSet"),
    ("/apis/batch/v1/cronjobs", "batch/v1", "CronJob"),
    ("/apis/policy/v1/poddisruptionbudgets", "policy/v1", "PodDisruptionBudget"),
    ("/apis/autoscaling/v2/horizontalpodautoscalers", "autoscaling/v2", "HorizontalPodAutoscaler"),
    ("/apis/networking.k8s.io/v1/ingresses", "networking.k8s.io/v1", "Ingress"),
    ("/apis/scheduling.k8s.io/v1/priorityclasses", "scheduling.k8s.io/v1", "PriorityClass"),
    ("/apis/storage.k8s.io/v1/storageclasses", "storage.k8s.io/v1", "StorageClass"),
];

/// The cluster to look at.
async fn client(args: &CheckArgs) -> Result<Client, AnyError> {
    Ok(match &args.kubeconfig {
        Some(file) => crate::client::from_file(file).await?,
        None => Client::try_default().await?,
    })
}

/// Everything that counts in a cluster, and whether its nodes are Mainstay's own.
async fn live(client: &Client) -> Result<(Vec<Object>, bool), AnyError> {
    let mut all = Vec::new();
    for (path, api_version, kind) in LIVE {
        let mut next = String::new();
        loop {
            let uri = format!(
                "{path}?limit={PAGE}{}",
                if next.is_empty() { String::new() } else { format!("&continue={next}") }
            );
            let request = http::Request::get(&uri).body(Vec::new())?;
            let text =
                client.request_text(request).await.map_err(|error| format!("cannot list {kind} objects: {error}"))?;
            let list: Value = serde_json::from_str(&text)?;
            for mut item in list["items"].as_array().cloned().unwrap_or_default() {
                item["apiVersion"] = json!(api_version);
                item["kind"] = json!(kind);
                all.push(Object::live(item));
            }
            list["metadata"]["continue"].as_str().unwrap_or_default().clone_into(&mut next);
            if next.is_empty() {
                break;
            }
        }
    }
    let is_ours =
        |object: &Object| object.kind() == "Node" && object.annotation(mainstay_model::fencing::ANNOTATION).is_some();
    let ours = all.iter().any(is_ours);
    Ok((all, ours))
}

/// What runs beside the manifests: all but what they replace.
fn add_live(objects: &mut Vec<Object>, live: Vec<Object>) {
    let key = |object: &Object| (object.kind().to_owned(), object.namespace().to_owned(), object.name().to_owned());
    let written: std::collections::BTreeSet<_> = objects.iter().map(key).collect();
    objects.extend(live.into_iter().filter(|object| !written.contains(&key(object))));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times that predictions rest on are those the engine has.
    #[test]
    fn the_engine_is_as_fast_as_is_said() {
        let (said, is) = (Engine::mainstay(), mainstay_controllers::HeartbeatSettings::default());
        assert!((said.suspect_s - is.suspect_after.as_secs_f64()).abs() < 1e-9);
        assert!((said.dead_s - is.dead_after.as_secs_f64()).abs() < 1e-9);
        let fence = mainstay_model::fencing::Fence { stop_after: mainstay_model::fencing::STOP_AFTER };
        assert!((said.once_s.unwrap_or_default() - fence.replace_after().as_secs_f64()).abs() < 0.01);
    }

    #[test]
    fn requirements_are_read() {
        let kinds = vec![FailureKind::Node, FailureKind::TwoNodes];
        assert_eq!(requirement("survive=node,two-nodes"), Ok(Requirement::Survive(kinds)));
        assert_eq!(requirement("no=error"), Ok(Requirement::No(vec![Severity::Error])));
        for wrong in ["survive", "survive=moon", "no=fun", "yes=1"] {
            assert!(requirement(wrong).is_err(), "{wrong}");
        }
    }
}
