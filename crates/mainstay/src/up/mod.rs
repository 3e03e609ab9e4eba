//! `mainstay up`: from nothing to a running application.
//!
//! Flow: read the manifests (before anything is changed) → check the machine → start the supervisor, here or detached →
//! wait for the API → apply → wait until all is Ready, saying what for → a short table → stay, or return.

pub mod manifest;
mod preflight;
pub mod processes;
pub mod supervisor;
mod wait;

use std::fs::OpenOptions;
use std::io::IsTerminal as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kube::Client;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::UpArgs;
use crate::client::{self, ClientError};
use crate::instance::{self, Instance, InstanceError, write_private};
use manifest::{Manifest, ManifestError};
use preflight::PreflightError;
use processes::ProcessError;
use supervisor::{SuperviseError, Supervisor};
use wait::{Outcome, Progress, Waiting};

/// Where the API listens unless told otherwise.
const DEFAULT_API: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 6443);
/// How long the API may take to answer for the first time.
const API_TIMEOUT: Duration = Duration::from_secs(20);

/// Why `mainstay up` failed.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The data directory.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The machine cannot run it.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// The manifests.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A process could not be started.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The instance could not be started or taken down.
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
    /// The API does not answer.
    #[error("{source}\nthe last lines of {log}:\n{tail}")]
    Api {
        /// Why.
        source: ClientError,
        /// The server's log.
        log: String,
        /// Its end.
        tail: String,
    },
    /// Flags that a running instance cannot follow.
    #[error(
        "mainstay is already running from {directory} with other settings ({what}); end it with `mainstay down` first"
    )]
    Different {
        /// The data directory.
        directory: String,
        /// What differs.
        what: &'static str,
    },
    /// Not everything became Ready in time.
    #[error("not everything is Ready after {seconds} s:\n{reasons}")]
    NotReady {
        /// How long it waited.
        seconds: u64,
        /// What it still waits for.
        reasons: String,
    },
    /// Signals cannot be received.
    #[error("cannot wait for signals: {0}")]
    Signals(std::io::Error),
}

/// Runs `mainstay up`.
///
/// # Errors
/// See [`UpError`].
pub async fn run(args: &UpArgs) -> Result<(), UpError> {
    let begun = Instant::now();
    let manifests = manifest::read(&args.files)?;
    let data_dir = instance::data_dir(&args.data.data_dir)?;
    let before = match Instance::load(&data_dir) {
        Err(InstanceError::Missing(_)) => None,
        loaded => Some(loaded?),
    };
    let instance = wanted(args, data_dir, before.as_ref());
    if processes::is_supervised(&instance) {
        if let Some(what) = before.as_ref().and_then(|before| difference(before, &instance)) {
            let directory = instance.data_dir.display().to_string();
            return Err(UpError::Different { directory, what });
        }
        let client = connect(&instance).await?;
        return bring_up(args, &instance, &client, &manifests, begun).await;
    }
    let fabric = supervisor::fabric(&instance)?;
    let leftover = processes::find(&instance, "server").is_some();
    preflight::check((!leftover).then_some(instance.api), &fabric)?;
    if args.detach {
        detach(&instance)?;
        let client = connect(&instance).await?;
        return bring_up(args, &instance, &client, &manifests, begun).await;
    }
    let mut interrupt = signal(SignalKind::interrupt()).map_err(UpError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(UpError::Signals)?;
    let supervisor = Supervisor::start(instance.clone())?;
    let work = async {
        let client = connect(&instance).await?;
        match bring_up(args, &instance, &client, &manifests, begun).await {
            // In the foreground it goes on trying; people see why and can look around.
            Err(error @ UpError::NotReady { .. }) => eprintln!("{error}\nstill running; Ctrl-C ends it"),
            other => other?,
        }
        std::future::pending::<Result<(), UpError>>().await
    };
    let result = tokio::select! {
        result = work => result,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    if !args.quiet {
        eprintln!("\ntaking everything down; the data stays in {}", instance.data_dir.display());
    }
    supervisor.end().await?;
    result
}

/// Runs `mainstay supervise`, the detached half of `up`.
///
/// # Errors
/// See [`SuperviseError`].
pub async fn supervise(instance: Instance) -> Result<(), UpError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(UpError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(UpError::Signals)?;
    let supervisor = Supervisor::start(instance)?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(supervisor.end().await?)
}

/// The instance asked for: flags, else as it was before, else the defaults.
fn wanted(args: &UpArgs, data_dir: PathBuf, before: Option<&Instance>) -> Instance {
    let api = args.api.or(before.map(|before| before.api));
    let network = args.network.clone().or_else(|| before.map(|before| before.network.clone()));
    Instance {
        data_dir,
        api: api.unwrap_or(DEFAULT_API),
        network: network.unwrap_or_else(|| instance::DEFAULT_NETWORK.to_owned()),
        nodes: args.nodes.or(before.map(|before| before.nodes)).unwrap_or(3),
        zones: args.zones.or(before.map(|before| before.zones)).unwrap_or(3),
        hollow_nodes: args.hollow_nodes.or(before.map(|before| before.hollow_nodes)).unwrap_or(0),
        tuning: before.map_or_else(|| args.tuning.clone(), |before| args.tuning.or(&before.tuning)),
        node: before.map_or_else(|| args.node.clone(), |before| args.node.or(&before.node)),
        audit: args.audit.settings().or_else(|| before.and_then(|before| before.audit.clone())),
    }
}

fn difference(before: &Instance, wanted: &Instance) -> Option<&'static str> {
    if before.api != wanted.api {
        Some("--api")
    } else if before.network != wanted.network {
        Some("--network")
    } else if before.nodes != wanted.nodes {
        Some("--nodes")
    } else if before.zones != wanted.zones {
        Some("--zones")
    } else if before.hollow_nodes != wanted.hollow_nodes {
        Some("--hollow-nodes")
    } else if before.audit != wanted.audit {
        Some("--audit-log")
    } else if before.tuning != wanted.tuning {
        Some("--rebalance-every, --fill or --node-*-ms")
    } else if before.node != wanted.node {
        Some("--node-cpu, --node-memory, --node-pods, --eviction-hard, --pids-max or --shutdown-grace")
    } else {
        None
    }
}

/// Starts the supervisor in a session of its own.
fn detach(instance: &Instance) -> Result<(), UpError> {
    instance.save()?;
    let path = instance.log("supervisor");
    let failed = |source| ProcessError::Start { role: "supervisor".to_owned(), source };
    let log = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
    let mut command = Command::new(processes::program()?);
    command.arg("supervise").arg("--data-dir").arg(&instance.data_dir).stdin(Stdio::null());
    command.stdout(log.try_clone().map_err(failed)?).stderr(log).process_group(0);
    // It outlives this process, which therefore does not wait for it.
    command.spawn().map(drop).map_err(failed)?;
    Ok(())
}

/// A client of the instance's API, once that answers.
async fn connect(instance: &Instance) -> Result<Client, UpError> {
    let log = instance.log("server").display().to_string();
    client::when_ready(instance, API_TIMEOUT).await.map_err(|source| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(5)..].join("\n");
        UpError::Api { source, log, tail }
    })
}

/// Applies the manifests, waits for them, and tells the result.
async fn bring_up(
    args: &UpArgs,
    instance: &Instance,
    client: &Client,
    manifests: &[Manifest],
    begun: Instant,
) -> Result<(), UpError> {
    let show = if args.quiet {
        Progress::Silent
    } else if std::io::stderr().is_terminal() {
        Progress::Redrawn
    } else {
        Progress::Lines
    };
    let timeout = Duration::from_secs(args.timeout);
    let mut waiting = Waiting::start(client, instance, begun + timeout, show, begun).await;
    // What runs comes after the nodes, so that the scheduler spreads it over all of them.
    let (first, then) = manifests.split_at(manifests.partition_point(|manifest| !manifest.runs()));
    for manifest in first {
        manifest.apply(client).await?;
    }
    waiting.until_ready(&[]).await;
    for manifest in then {
        manifest.apply(client).await?;
    }
    match waiting.until_ready(manifests).await {
        Outcome::Ready { services } => {
            let ready_ms = begun.elapsed().as_millis();
            let record = serde_json::json!({"ready_ms": ready_ms}).to_string();
            write_private(&instance.data_dir.join("up.json"), record.as_bytes())?;
            if !args.quiet {
                print!("{}", wait::summary(instance, &services, ready_ms, args.detach));
            }
            Ok(())
        }
        Outcome::Waiting { reasons } => Err(UpError::NotReady { seconds: args.timeout, reasons: reasons.join("\n") }),
    }
}
