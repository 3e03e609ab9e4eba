//! `mainstay drill`: runs a drill on an instance here or on any cluster, and shows what came of it.
//!
//! Thin: what a drill is stands in crate `drill`. Here: the command line, which cluster, the hands of the machine, an own
//! instance where none runs, and Ctrl-C.

mod disk;
mod machine;
mod own;
pub mod resource;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use kube::Client;
use mainstay_drill::fault::breaker::Breaker;
use mainstay_drill::fault::{FaultError, Machine};
use mainstay_drill::load::measure::{self, MeasureError};
use mainstay_drill::report::live::Show;
use mainstay_drill::report::{Report, ReportError, diff, text};
use mainstay_drill::resource::standard::{self, Entry};
use mainstay_drill::resource::{Drill, DrillError as DrillFileError, time};
use mainstay_drill::run::{self, RunError, Setting};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cli::{DataDir, Output};
use crate::client::{self, ClientError};
use crate::instance::{self, Instance, InstanceError};
use crate::up::manifest::{self, Manifest, ManifestError};
use crate::up::processes::{self, ProcessError};
pub use machine::Hands;
pub use own::Own;
use resource::Told;

/// How long undoing is tried.
const UNDO_PATIENCE: Duration = Duration::from_secs(20);

/// `mainstay drill`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct DrillArgs {
    /// What else.
    #[command(subcommand)]
    verb: Option<DrillVerb>,
    /// Manifests whose service gets the standard set: they are applied first
    #[arg(value_name = "PATH", required_unless_present_any = ["file", "resource"], conflicts_with_all = ["file", "resource"])]
    paths: Vec<PathBuf>,
    /// A Drill (mainstay.dev/v1alpha1) instead of the standard set; - for standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    file: Option<PathBuf>,
    /// A Drill that is in the cluster; what comes of it goes into its status
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "file")]
    resource: Option<String>,
    /// Requests per second of the standard set (default 500), or instead of those in the file
    #[arg(long)]
    rate: Option<f64>,
    /// How often clients try an idempotent request, the first included (default 1, or as in the file)
    #[arg(long)]
    tries: Option<u8>,
    /// Of all that is drawn (default 1, or as in the file)
    #[arg(long)]
    seed: Option<u64>,
    /// Where NAME.html, NAME.json and NAME.junit.xml go
    #[arg(long, value_name = "DIRECTORY", default_value = "drill-report")]
    report: PathBuf,
    /// Output format
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
    /// No view while it runs
    #[arg(short, long)]
    quiet: bool,
    /// A cluster that is not an instance here: only what its API can do
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Which instance
    #[command(flatten)]
    data: DataDir,
}

/// The other verbs.
#[derive(Debug, Subcommand)]
enum DrillVerb {
    /// Undo what a drill that was killed has left broken
    Undo {
        /// A cluster that is not an instance here
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
        /// Where that drill's report would have gone
        #[arg(long, value_name = "DIRECTORY", default_value = "drill-report")]
        report: PathBuf,
        /// Which instance
        #[command(flatten)]
        data: DataDir,
    },
    /// Compare two reports
    Diff {
        /// NAME.json of the one
        before: PathBuf,
        /// NAME.json of the other
        after: PathBuf,
    },
    /// Only the load: no faults, no cluster
    Load {
        /// http://HOST[:PORT][/PATH]
        url: String,
        /// Requests per second
        #[arg(long, default_value_t = 100.0)]
        rate: f64,
        /// How long, such as 10s
        #[arg(long, default_value = "10s", value_parser = time::parse)]
        duration: Duration,
        /// Output format
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
}

/// Why there was no drill.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// The instance.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// Its processes.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The API.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The manifests.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The Drill.
    #[error(transparent)]
    Drill(#[from] DrillFileError),
    /// The file.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something else.
    #[error("{path} is no Drill but kind: {kind}; manifests are named without -f: mainstay drill {path}")]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: String,
    },
    /// Nothing to drill.
    #[error("there is no Service of a Deployment in {}; write a Drill that says what to ask, and name it with -f", shown(.0))]
    NoEntry(Vec<PathBuf>),
    /// Not a name.
    #[error("--resource {0}: write NAMESPACE/NAME")]
    Key(String),
    /// The object.
    #[error("cannot read drill {key}: {source}")]
    Object {
        /// Which.
        key: String,
        /// What the API said.
        source: Box<kube::Error>,
    },
    /// A program could not be started, or there is no free port.
    #[error("cannot start an instance for the drill: {0}")]
    Start(#[source] std::io::Error),
    /// The instance did not come up.
    #[error("`mainstay up` did not bring everything up; see above")]
    Up,
    /// All ranges are in use.
    #[error("no range 10.N.0.0/16 is free for an instance; start one with `mainstay up --network`, then drill it")]
    NoRange,
    /// The drill.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The undoing.
    #[error(transparent)]
    Undo(#[from] FaultError),
    /// The report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The load alone.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// Signals cannot be received.
    #[error("cannot wait for signals: {0}")]
    Signals(#[source] std::io::Error),
}

fn shown(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Runs `mainstay drill`; answers whether the verdict is good.
///
/// # Errors
/// When there is no verdict.
pub async fn run(args: &DrillArgs) -> Result<bool, DrillError> {
    match &args.verb {
        None => drill(args).await,
        Some(DrillVerb::Undo { kubeconfig, report, data }) => {
            let cluster = Cluster::find(kubeconfig.as_deref(), &data.data_dir, report).await?;
            println!("{} faults undone", undo(Breaker::new(cluster.client, cluster.machine, &cluster.journal)?).await?);
            Ok(true)
        }
        Some(DrillVerb::Diff { before, after }) => {
            print!("{}", diff::render(&Report::read(before)?, &Report::read(after)?));
            Ok(true)
        }
        Some(DrillVerb::Load { url, rate, duration, output }) => {
            let figures = measure::run(url, *rate, *duration).await?;
            match output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&figures).unwrap_or_default()),
                Output::Text => print!("{figures}"),
            }
            Ok(figures.failed == 0)
        }
    }
}

/// Undoes all that stands in the journal. The API may be away because of it: the machine's part is undone first, then it is
/// tried again for a while.
async fn undo(mut breaker: Breaker) -> Result<usize, FaultError> {
    let (count, since) = (breaker.entries().len(), Instant::now());
    loop {
        match breaker.undo_all().await {
            Ok(_) => return Ok(count),
            Err(error) if since.elapsed() > UNDO_PATIENCE => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// A drill, from what to do to what came of it.
async fn drill(args: &DrillArgs) -> Result<bool, DrillError> {
    let Some(key) = &args.resource else {
        let drill = wanted(args)?;
        // Held until the end: an own instance is taken down whatever happens.
        let (own, data_dir) = instance_for(args)?;
        let cluster = Cluster::find(args.kubeconfig.as_deref(), &data_dir, &args.report).await?;
        let done = carry_out(args, &drill, cluster).await;
        drop(own);
        let (report, page) = done?;
        return Ok(show(args, &report, &page));
    };
    let cluster = Cluster::find(args.kubeconfig.as_deref(), &args.data.data_dir, &args.report).await?;
    let told = Told::new(cluster.client.clone(), key)?;
    let drill = overridden(args, told.read().await?)?;
    told.running().await;
    let done = carry_out(args, &drill, cluster).await;
    match &done {
        Ok((report, page)) => told.ended(report, page).await,
        Err(error) => told.failed(&error.to_string()).await,
    }
    let (report, page) = done?;
    Ok(show(args, &report, &page))
}

/// Runs a drill and writes its report; answers with that and its page.
async fn carry_out(args: &DrillArgs, drill: &Drill, cluster: Cluster) -> Result<(Report, PathBuf), DrillError> {
    let show = if args.quiet {
        Show::Silent
    } else if std::io::stderr().is_terminal() {
        Show::Redrawn
    } else {
        Show::Lines
    };
    let setting = Setting {
        client: cluster.client,
        machine: cluster.machine,
        journal: cluster.journal,
        stop: told_to_stop()?,
        show,
    };
    let report = Box::pin(run::run(drill, setting)).await?;
    let page = report.write(&args.report)?;
    Ok((report, page))
}

/// Shows what came of it; answers whether the verdict is good.
fn show(args: &DrillArgs, report: &Report, page: &Path) -> bool {
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(report).unwrap_or_default()),
        Output::Text => println!("{}\nreport: {}", text::render(report), page.display()),
    }
    report.verdict.passed()
}

/// The drill of the file, or the standard set for the manifests.
fn wanted(args: &DrillArgs) -> Result<Drill, DrillError> {
    let drill = if let Some(file) = &args.file {
        let text = match file.to_str() {
            Some("-") => std::io::read_to_string(std::io::stdin()),
            _ => std::fs::read_to_string(file),
        };
        let text = text.map_err(|source| DrillError::Read { path: file.clone(), source })?;
        if let Some(kind) = kind_of(&text).filter(|kind| kind != "Drill") {
            return Err(DrillError::Kind { path: file.clone(), kind });
        }
        Drill::parse(&file.display().to_string(), &text)?
    } else {
        let manifests = manifest::read(&args.paths)?;
        let objects: Vec<_> = manifests.iter().map(Manifest::object).collect();
        let entry = Entry::among(&objects).ok_or_else(|| DrillError::NoEntry(args.paths.clone()))?;
        let name = args
            .paths
            .first()
            .and_then(|path| path.file_stem())
            .map_or_else(|| "standard".into(), |name| name.to_string_lossy());
        standard::drill(&name, &entry)
    };
    overridden(args, drill)
}

/// The kind that a manifest says it is.
fn kind_of(text: &str) -> Option<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("kind:"));
    lines.map(|kind| kind.trim().to_owned()).next()
}

/// With what the command line says instead.
fn overridden(args: &DrillArgs, mut drill: Drill) -> Result<Drill, DrillError> {
    drill.spec.load.rate = args.rate.unwrap_or(drill.spec.load.rate);
    drill.spec.load.tries = args.tries.unwrap_or(drill.spec.load.tries);
    drill.spec.seed = args.seed.unwrap_or(drill.spec.seed);
    let sense = |(field, reason)| DrillFileError::Sense { file: drill.metadata.name.clone(), field, reason };
    drill.check().map_err(sense)?;
    Ok(drill)
}

/// The data directory of the instance to drill, with the manifests applied; one of its own where none runs.
fn instance_for(args: &DrillArgs) -> Result<(Option<Own>, PathBuf), DrillError> {
    let data_dir = instance::data_dir(&args.data.data_dir)?;
    if args.paths.is_empty() || args.kubeconfig.is_some() {
        return Ok((None, data_dir));
    }
    let runs = Instance::load(&data_dir).is_ok_and(|instance| processes::is_supervised(&instance));
    if runs {
        own::apply(&data_dir, &args.paths)?;
        return Ok((None, data_dir));
    }
    let own = Own::place();
    eprintln!("no instance runs in {}; starting one in {}", data_dir.display(), own.directory().display());
    own.start(&args.paths, &[])?;
    let directory = own.directory().to_owned();
    Ok((Some(own), directory))
}

/// Ctrl-C and SIGTERM end a drill in good order.
fn told_to_stop() -> Result<watch::Receiver<bool>, DrillError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DrillError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(DrillError::Signals)?;
    let (tell, told) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        eprintln!("stopping: undoing everything first");
        let _ = tell.send(true);
        // Kept, so that the other end stays told.
        std::future::pending::<()>().await;
    });
    Ok(told)
}

/// A cluster with all hands there are for it.
struct Cluster {
    client: Client,
    machine: Option<Arc<dyn Machine>>,
    journal: PathBuf,
}

impl Cluster {
    /// By a kubeconfig, or an instance here.
    async fn find(kubeconfig: Option<&Path>, data_dir: &Path, report: &Path) -> Result<Self, DrillError> {
        if let Some(kubeconfig) = kubeconfig {
            let failed = |source| DrillError::Read { path: report.to_owned(), source };
            std::fs::create_dir_all(report).map_err(failed)?;
            let client = client::named(kubeconfig, "mainstay-drill").await?;
            return Ok(Self { client, machine: None, journal: report.join("drill.journal") });
        }
        let instance = Instance::load(&instance::data_dir(data_dir)?)?;
        // Not waited for: a drill that was killed may have left the API away, and undoing must work without it.
        let client = client::named(&instance.kubeconfig(), "mainstay-drill").await?;
        let journal = instance.data_dir.join("run/drill.journal");
        Ok(Self { client, machine: Some(Arc::new(Hands::new(instance))), journal })
    }
}
