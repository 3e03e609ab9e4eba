//! `mainstay gateway`: the command line of the gateway.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::Node;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use mainstay_gateway::{ClusterOptions, Options, TraceOptions, ask_admin};

use crate::AnyError;

/// Where the admin listens unless told otherwise.
const ADMIN: &str = "127.0.0.1:9901";
/// How long opening a connection to the API may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// `mainstay gateway`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct GatewayArgs {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// How to serve.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// What else can be done.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Read a configuration, say what is wrong with it and where, and what it adds up to
    Check {
        /// Files and directories with Gateway API objects
        #[arg(short = 'f', long = "filename", value_name = "PATH", required = true)]
        files: Vec<PathBuf>,
    },
    /// Translate the configuration of nginx or HAProxy: objects to standard output, what is missing in them to standard error
    Import {
        /// nginx.conf or haproxy.cfg
        file: PathBuf,
    },
    /// What goes through it now: requests, errors and latency of each rule, every second
    Top {
        /// Print one table and end
        #[arg(long)]
        once: bool,
        /// The admin of the gateway
        #[arg(long, default_value = ADMIN)]
        admin: SocketAddr,
    },
    /// Degrade on purpose: `ls`, `on NAME`, `off NAME`; `noncore` switches off all non-core routes
    Degrade {
        /// ls, on or off
        action: String,
        /// The switch
        name: Option<String>,
        /// The admin of the gateway
        #[arg(long, default_value = ADMIN)]
        admin: SocketAddr,
    },
}

/// How to serve.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Files and directories with Gateway API objects, read again when they change; without any, those of a cluster are served
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    pub files: Vec<PathBuf>,
    /// Address to listen on where a Gateway names none; may be repeated
    #[arg(long = "address", value_name = "ADDRESS", default_values_t = [IpAddr::V4(Ipv4Addr::UNSPECIFIED)])]
    pub addresses: Vec<IpAddr>,
    /// Threads that carry traffic (default: one for each processor)
    #[arg(long)]
    pub cores: Option<usize>,
    /// Address of the admin: metrics, configuration, switches; `off` for none
    #[arg(long, default_value = ADMIN)]
    pub admin: String,
    /// Address where only probes and metrics are answered, for a kubelet and Prometheus
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub probes: Option<SocketAddr>,
    /// How to reach the cluster whose Gateways and Ingresses are served, if there is no -f (default: $KUBECONFIG,
    /// ~/.kube/config, or the pod's own account)
    #[arg(long, value_name = "PATH", conflicts_with = "files")]
    pub kubeconfig: Option<PathBuf>,
    /// Service of type LoadBalancer in front of the cluster's gateways: its address goes into statuses, its ports are kept
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "files")]
    pub service: Option<String>,
    /// The zone this gateway is in (default, in a pod: that of the node $NODE_NAME)
    #[arg(long)]
    pub zone: Option<String>,
    /// Access log: a file, or - for standard output
    #[arg(long, value_name = "PATH")]
    pub access_log: Option<PathBuf>,
    /// Template of a line of it, for example '{client} {method} {path} {status} {ms}'; JSON without one
    #[arg(long, value_name = "TEMPLATE")]
    pub access_log_template: Option<String>,
    /// Socket on which a new process takes the listening sockets over from the running one
    #[arg(long, value_name = "PATH")]
    pub hand_over: Option<PathBuf>,
    /// Base URL of an OpenTelemetry collector that takes traces over HTTP, for example http://collector:4318
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Share of the requests that are traced, from 0 to 1, besides those whose traceparent says so
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    pub trace_share: f64,
    /// Seconds to finish requests in flight when told to stop
    #[arg(long, default_value_t = 30)]
    pub drain: u64,
    /// Directory where ACME accounts and certificates are kept, if files are served (see the guide)
    #[arg(long, value_name = "PATH", default_value = "/var/lib/mainstay-gateway")]
    pub state: PathBuf,
    /// Port of Ingresses
    #[arg(long, default_value_t = 80)]
    pub ingress_http_port: u16,
    /// TLS port of Ingresses
    #[arg(long, default_value_t = 443)]
    pub ingress_https_port: u16,
}

/// Runs the command; answers whether all is well.
pub fn run(args: GatewayArgs) -> Result<bool, AnyError> {
    match args.verb {
        Some(Verb::Check { files }) => check(&files),
        Some(Verb::Import { file }) => import(&file).map(|()| true),
        Some(Verb::Top { once, admin }) => {
            crate::small_runtime()?.block_on(crate::gateway_top::run(admin, once)).map(|()| true)
        }
        Some(Verb::Degrade { action, name, admin }) => {
            crate::small_runtime()?.block_on(degrade(admin, &action, name.as_deref())).map(|()| true)
        }
        None => serve(args.serve).map(|()| true),
    }
}

fn check(files: &[PathBuf]) -> Result<bool, AnyError> {
    let checked = mainstay_gateway::check(files)?;
    for problem in &checked.problems {
        println!("{problem}");
    }
    println!("{}", checked.summary);
    Ok(checked.errors == 0)
}

fn import(file: &std::path::Path) -> Result<(), AnyError> {
    let imported = mainstay_gateway::import(file)?;
    print!("{}", imported.yaml);
    for note in &imported.notes {
        eprintln!("{note}");
    }
    Ok(())
}

async fn degrade(admin: SocketAddr, action: &str, name: Option<&str>) -> Result<(), AnyError> {
    let answer = match (action, name) {
        ("ls", None) => ask_admin(admin, "GET", "/degrade").await?,
        ("on", Some(name)) => ask_admin(admin, "PUT", &format!("/degrade/{name}")).await?,
        ("off", Some(name)) => ask_admin(admin, "DELETE", &format!("/degrade/{name}")).await?,
        _ => return Err("write `degrade ls`, `degrade on NAME` or `degrade off NAME`".into()),
    };
    print!("{answer}");
    Ok(())
}

fn serve(args: ServeArgs) -> Result<(), AnyError> {
    crate::log_to_stderr();
    let (cluster, zone) = if args.files.is_empty() {
        let (cluster, zone) = crate::small_runtime()?.block_on(cluster(args.kubeconfig, args.service.as_deref()))?;
        (Some(cluster), args.zone.or(zone))
    } else {
        (None, args.zone)
    };
    let admin = match args.admin.as_str() {
        "off" => None,
        address => Some(address.parse().map_err(|_| format!("--admin {address}: write ADDRESS:PORT or off"))?),
    };
    let traces = args.otlp_endpoint.as_deref().map(|url| TraceOptions::of_url(url, args.trace_share));
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    mainstay_gateway::run(Options {
        files: args.files,
        cluster,
        addresses: args.addresses,
        cores: args.cores.unwrap_or(processors),
        admin,
        probes: args.probes,
        zone,
        access_log: args.access_log,
        access_log_template: args.access_log_template,
        hand_over: args.hand_over,
        traces: traces.transpose().map_err(|error| format!("--otlp-endpoint: {error}"))?,
        drain: Duration::from_secs(args.drain),
        ingress_ports: (args.ingress_http_port, args.ingress_https_port),
        state: args.state,
    })?;
    Ok(())
}

/// How the cluster is reached, and the zone of the node that this runs on, if the cluster says it.
async fn cluster(
    kubeconfig: Option<PathBuf>,
    service: Option<&str>,
) -> Result<(ClusterOptions, Option<String>), AnyError> {
    let mut config = match &kubeconfig {
        Some(path) => {
            let read = Kubeconfig::read_from(path);
            let read = read.map_err(|error| format!("cannot use {}: {error}", path.display()))?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?
        }
        None => Config::infer().await.map_err(|error| {
            format!("nothing to serve: name files with -f, or a cluster with --kubeconfig or $KUBECONFIG ({error})")
        })?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    let service = match service.map(|text| text.split_once('/').ok_or(text)) {
        None => None,
        Some(Ok((namespace, name))) => Some((namespace.to_owned(), name.to_owned())),
        Some(Err(text)) => return Err(format!("--service {text}: write NAMESPACE/NAME").into()),
    };
    let zone = match std::env::var("NODE_NAME") {
        Ok(node) => zone_of(&config, &node).await,
        Err(_) => None,
    };
    let identity = std::env::var("HOSTNAME").unwrap_or_else(|_| "gateway".to_owned());
    let identity = format!("{identity}_{}", std::process::id());
    Ok((ClusterOptions { config, service, identity }, zone))
}

async fn zone_of(config: &Config, node: &str) -> Option<String> {
    let nodes: Api<Node> = Api::all(Client::try_from(config.clone()).ok()?);
    match nodes.get(node).await {
        Ok(node) => node.metadata.labels?.remove(ZONE_LABEL),
        Err(error) => {
            tracing::warn!(node, %error, "the zone of this gateway's node is not known");
            None
        }
    }
}
