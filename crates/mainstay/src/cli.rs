//! The command line: what people type.

mod image;
mod state;

use std::net::SocketAddrV4;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::fault::{FaultKind, Target};
use crate::instance::{AuditSettings, DEFAULT_DATA_DIR};
use crate::node_tuning::NodeTuning;
use crate::tuning::Tuning;

pub use image::{ImageArgs, ImageVerb};
pub use state::{SecretsArgs, SecretsVerb, ServerArgs, SnapshotArgs, SnapshotVerb, StoreArgs};

/// Keeps services up: a Kubernetes-compatible platform in one binary.
#[derive(Debug, Parser)]
#[command(name = "mainstay", version, arg_required_else_help = true, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start everything on this machine: control plane, nodes, and your manifests
    #[command(
        after_help = "Examples:\n  mainstay up -f examples/shop            start and stay in the foreground; Ctrl-C ends it\n  mainstay up -f app.yaml --detach        return when all is Ready\n  kubectl kustomize . | mainstay up -f -  read manifests from standard input"
    )]
    Up(UpArgs),
    /// End what `mainstay up` started; the data stays
    #[command(after_help = "Example:\n  mainstay down")]
    Down(DataDir),
    /// What runs, what does not, and why
    #[command(after_help = "Examples:\n  mainstay status\n  mainstay status -o json")]
    Status(StatusArgs),
    /// Print the path of the kubeconfig
    #[command(after_help = "Example:\n  export KUBECONFIG=$(mainstay kubeconfig)")]
    Kubeconfig(DataDir),
    /// Break things on purpose: kill, pause or cut off a pod, node, zone or the control plane
    #[command(
        after_help = "Examples:\n  mainstay fault kill node/node-2     its link goes down and every process on it dies\n  mainstay fault pause pod/shop/front-6d5f-x2x7z\n  mainstay fault isolate zone/zone-b\n  mainstay fault ls\n  mainstay fault heal node/node-2"
    )]
    Fault(FaultArgs),
    /// Real faults under real load, and what the users saw of them
    #[command(
        after_help = "Examples:\n  mainstay drill examples/shop             the standard set; starts an instance of its own if none runs\n  mainstay drill examples/shop examples/gateway   the same, through the gateway\n  mainstay drill -f drill.yaml -o json\n  mainstay drill -f drill.yaml --kubeconfig ~/.kube/config    any cluster: what the API can do\n  mainstay drill diff before.json after.json\n  mainstay drill load http://10.90.120.1/ --rate 1000 --duration 10s\n  mainstay drill undo                      after a drill was killed"
    )]
    Drill(Box<crate::drill::DrillArgs>),
    /// Images of containers: list, import, export, pull, remove
    #[command(
        after_help = "Examples:\n  mainstay image import app.tar                  what `docker save` or an OCI builder wrote\n  mainstay image pull registry.example.org/app:1.2\n  mainstay image ls"
    )]
    Image(ImageArgs),
    /// A traffic gateway, configured with Gateway API objects: from files, or from a cluster
    #[command(
        after_help = "Examples:\n  mainstay gateway -f gateway/            serve; files are read again when they change\n  mainstay gateway check -f gateway/      what is wrong with them, and where\n  mainstay gateway degrade on noncore"
    )]
    Gateway(Box<crate::gateway::GatewayArgs>),
    /// Find what would take it down: place the pods, take every node and zone away, and see what is left
    #[command(
        after_help = "Examples:\n  mainstay check -f examples/shop                         on three nodes in three zones\n  mainstay check -f app.yaml --nodes 6 --zones 2 --notes  and everything that could be better\n  helm template . | mainstay check -f - --engine kubernetes\n  mainstay check --cluster                                what runs now, where it runs\n  mainstay check -f app.yaml --require survive=node,zone  exit status 1 if a service would be down\n  mainstay check -f examples/shop --verify                then break it, and compare (root)\n  mainstay check -f app.yaml --fix patches -o html > report.html\n\nExit status: 0 checked, and what is required holds; 1 something required does not hold; 2 could not be checked."
    )]
    Check(Box<crate::check::CheckArgs>),
    /// Degrade on purpose: canned answers, older versions or no answers for what is not core, as TrafficPolicies say
    #[command(
        after_help = "Examples:\n  mainstay degrade ls\n  mainstay degrade on noncore\n  mainstay degrade off noncore"
    )]
    Degrade(crate::degrade::DegradeArgs),
    /// Databases: who is primary, move it, restart, pause
    #[command(
        after_help = "Examples:\n  mainstay db ls\n  mainstay db status shop\n  mainstay db switchover shop --to shop-1"
    )]
    Db(crate::db::DbArgs),
    /// Run a program on exactly one of the machines or pods that run this
    #[command(
        after_help = "Examples:\n  mainstay lead -- /usr/bin/my-daemon --verbose\n  mainstay lead --lease jobs/billing --pre 'mount /data' --post 'umount /data' -- billing\n\nExit code: that of the program (128 and the signal's number for a signal), 0 when told to stop, 126 or 127 when it cannot be run."
    )]
    Lead(crate::lead::LeadArgs),
    /// Programs to try Mainstay with: the example shop, and a test server that misbehaves when told to
    Demo {
        /// Which program.
        #[command(subcommand)]
        program: mainstay_demo::DemoCommand,
    },
    /// Save the control plane's state to a file, and restore it
    #[command(
        after_help = "Examples:\n  mainstay snapshot save /backup/state.snap\n  mainstay snapshot status /backup/state.snap\n  mainstay snapshot restore /backup/state.snap --data-dir /var/lib/mainstay"
    )]
    Snapshot(SnapshotArgs),
    /// Encryption of Secrets at rest: its keys
    #[command(after_help = "Examples:\n  mainstay secrets status\n  mainstay secrets rotate")]
    Secrets(SecretsArgs),
    /// The control plane alone; `up` starts one by itself
    #[command(
        after_help = "Examples:\n  mainstay server --api 10.0.0.5:6443 --store etcd://10.0.0.1:2379,10.0.0.2:2379\n  mainstay server --api 127.0.0.1:6443 --data-dir /tmp/control-plane    state in a file, no nodes"
    )]
    Server(ServerArgs),
    /// A container's first process: forwards signals to a program's process group and reaps orphans
    #[command(
        after_help = "Examples:\n  mainstay init -- nginx -g 'daemon off;'     as an image's entry point\n\nPods need no such file: with the annotation mainstay.dev/init: \"true\" their containers get one.\nThe exit status is the program's, or 128 and the number of the signal that ended it."
    )]
    Init(RawArgs),
    /// A node's agent (started by `up`)
    #[command(hide = true)]
    Node(NodeArgs),
    /// Keeps the processes of `up` running when it is detached (started by `up`)
    #[command(hide = true)]
    Supervise(DataDir),
    /// Beside one server of a database: agrees with its peers which of them is the primary
    #[command(
        after_help = "Example:\n  mainstay steward --member db-0 --lease db --data /var/lib/db/data --programs /usr/lib/postgresql/15/bin \\\n    --peer db-1=db-1.db:8008,db-1.db:5432 --peer db-2=db-2.db:8008,db-2.db:5432 \\\n    --password-file /etc/db/password --secret-file /etc/db/secret"
    )]
    Steward(Box<crate::steward::StewardArgs>),
    /// Becomes a database server that dies with its steward (started by a steward)
    #[command(hide = true)]
    StewardLaunch(RawArgs),
    /// The parent of one pod's containers (started by a node's agent)
    #[command(hide = true)]
    Shim(RawArgs),
    /// Runs a command in a container (started by a node's agent)
    #[command(hide = true)]
    ShimExec(RawArgs),
}

/// Which instance.
#[derive(Debug, Clone, Args)]
pub struct DataDir {
    /// Directory with the instance's state
    #[arg(long, default_value = DEFAULT_DATA_DIR, env = "MAINSTAY_DATA_DIR")]
    pub data_dir: PathBuf,
}

/// The audit log.
#[derive(Debug, Clone, Default, Args)]
pub struct AuditArgs {
    /// Write to this file who did what through the API (default: nowhere, or as before)
    #[arg(long, value_name = "PATH")]
    pub audit_log: Option<PathBuf>,
    /// What is written: an audit.k8s.io/v1 Policy (default: writes with their bodies, reads of secrets, no heartbeats)
    #[arg(long, value_name = "FILE", requires = "audit_log")]
    pub audit_policy: Option<PathBuf>,
}

impl AuditArgs {
    /// As settings, with absolute paths: the server starts elsewhere.
    pub fn settings(&self) -> Option<AuditSettings> {
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let log = self.audit_log.as_ref().map(absolute)?;
        Some(AuditSettings { log, policy: self.audit_policy.as_ref().map(absolute) })
    }
}

/// `mainstay up`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)]
pub struct UpArgs {
    /// Manifests to apply: a file, a directory, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    pub files: Vec<PathBuf>,
    /// Number of nodes on this machine (default 3, or as before)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=50))]
    pub nodes: Option<u32>,
    /// Number of zones the nodes are spread over (default 3, or as before)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=50))]
    pub zones: Option<u32>,
    /// Further nodes that only pretend to run pods, for work at scale (default none, or as before)
    #[arg(long)]
    pub hollow_nodes: Option<u32>,
    /// Which instance
    #[command(flatten)]
    pub data: DataDir,
    /// Address and port of the Kubernetes API (default 127.0.0.1:6443, or as before)
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub api: Option<SocketAddrV4>,
    /// The /16 that nodes, pods and services share (default 10.90.0.0/16, or as before)
    #[arg(long, value_name = "CIDR")]
    pub network: Option<String>,
    /// Who did what
    #[command(flatten)]
    pub audit: AuditArgs,
    /// Scheduling and silent nodes
    #[command(flatten)]
    pub tuning: Tuning,
    /// The nodes
    #[command(flatten)]
    pub node: NodeTuning,
    /// Return when all is Ready instead of staying in the foreground
    #[arg(long)]
    pub detach: bool,
    /// Seconds to wait for all to be Ready
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub timeout: u64,
    /// No progress, only errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// `mainstay status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Which instance
    #[command(flatten)]
    pub data: DataDir,
    /// Output format
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

/// How a command prints its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// `mainstay fault`.
#[derive(Debug, Args)]
pub struct FaultArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: FaultVerb,
    /// Which instance
    #[arg(long, global = true, default_value = DEFAULT_DATA_DIR, env = "MAINSTAY_DATA_DIR")]
    pub data_dir: PathBuf,
}

/// The fault verbs.
#[derive(Debug, Subcommand)]
pub enum FaultVerb {
    /// Kill every process of a pod; of a node or zone, take its link down too, until healed
    Kill {
        /// pod/NAME, pod/NAMESPACE/NAME, node/NAME, zone/NAME or control-plane
        #[arg(required = true)]
        targets: Vec<Target>,
    },
    /// Freeze every process, as a hang would, until healed
    Pause {
        /// pod/NAME, pod/NAMESPACE/NAME, node/NAME, zone/NAME or control-plane
        #[arg(required = true)]
        targets: Vec<Target>,
    },
    /// Take the network link down, until healed
    Isolate {
        /// pod/NAME, pod/NAMESPACE/NAME, node/NAME, zone/NAME or control-plane
        #[arg(required = true)]
        targets: Vec<Target>,
    },
    /// Undo faults; without a target, all
    Heal {
        /// pod/NAME, pod/NAMESPACE/NAME, node/NAME, zone/NAME or control-plane
        targets: Vec<Target>,
    },
    /// The faults in force
    Ls {
        /// Output format
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
}

impl FaultVerb {
    /// The fault this verb makes, and on what; `None` for the verbs that make none.
    pub fn fault(&self) -> Option<(FaultKind, &[Target])> {
        match self {
            Self::Kill { targets } => Some((FaultKind::Kill, targets)),
            Self::Pause { targets } => Some((FaultKind::Pause, targets)),
            Self::Isolate { targets } => Some((FaultKind::Isolate, targets)),
            Self::Heal { .. } | Self::Ls { .. } => None,
        }
    }
}

/// `mainstay node`.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// Which instance
    #[command(flatten)]
    pub data: DataDir,
    /// The node's name
    #[arg(long)]
    pub name: String,
}

/// Arguments that another part of the program reads.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct RawArgs {
    /// Passed through
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}
