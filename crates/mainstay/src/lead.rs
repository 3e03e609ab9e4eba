//! `mainstay lead`: the command line of leading.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use jiff::SignedDuration;
use kube::{Client, Config};
use mainstay_failover::lead::{Format, Settings, Timing, run as lead};

use crate::AnyError;
use crate::cli::Output;
use crate::instance::{DEFAULT_DATA_DIR, Instance};

/// `mainstay lead`.
#[derive(Debug, Args)]
pub struct LeadArgs {
    /// The Lease that the holders share (default: the program's name, in the namespace of the kubeconfig or pod)
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pub lease: Option<String>,
    /// Another holder starts the program when the Lease was not renewed for so long
    #[arg(long, default_value = "1.5s", value_parser = duration)]
    pub ttl: Duration,
    /// How often the Lease is renewed; three times must fit into four fifths of the ttl
    #[arg(long, default_value = "300ms", value_parser = duration)]
    pub renew: Duration,
    /// How long the program may take to stop when told to
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub grace: Duration,
    /// Who this is (default: the name of the pod or machine)
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,
    /// Command for `sh -c` before the program, once the Lease is held; if it fails, the Lease is released
    #[arg(long, value_name = "COMMAND")]
    pub pre: Option<String>,
    /// Command for `sh -c` after the program; also when the Lease was lost, and then another may have begun
    #[arg(long, value_name = "COMMAND")]
    pub post: Option<String>,
    /// How events are written to standard error
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Leads; answers the exit code.
pub fn run(args: &LeadArgs) -> Result<i32, AnyError> {
    let timing = Timing::new(args.ttl, args.renew, args.grace)?;
    crate::small_runtime()?.block_on(async {
        let config = config().await?;
        let (namespace, name) = lease(args, &config.default_namespace);
        let settings = Settings {
            namespace,
            name,
            identity: args.identity.clone().unwrap_or_else(hostname),
            timing,
            pre: args.pre.clone(),
            post: args.post.clone(),
            command: args.command.clone(),
            format: if args.output == Output::Json { Format::Json } else { Format::Text },
        };
        Ok(lead(Client::try_from(config)?, settings).await?)
    })
}

/// The cluster of the kubeconfig (`KUBECONFIG`, `~/.kube/config`), of this pod, or of this machine's instance.
pub async fn config() -> Result<Config, AnyError> {
    let inferred = match Config::infer().await {
        Ok(config) => return Ok(config),
        Err(error) => error,
    };
    let instance = Instance::load(Path::new(DEFAULT_DATA_DIR)).map_err(|_| inferred)?;
    let kubeconfig = kube::config::Kubeconfig::read_from(instance.kubeconfig())?;
    Ok(Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default()).await?)
}

/// Namespace and name of the Lease.
fn lease(args: &LeadArgs, namespace: &str) -> (String, String) {
    let program = args.command.first().map(Path::new).and_then(Path::file_name);
    let program = || program.map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let wanted = args.lease.clone().unwrap_or_else(program);
    match wanted.split_once('/') {
        Some((namespace, name)) => (namespace.to_owned(), name.to_owned()),
        None => (namespace.to_owned(), wanted),
    }
}

fn hostname() -> String {
    nix::unistd::gethostname().map_or_else(|_| "unknown".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration =
        text.parse().map_err(|error: jiff::Error| format!("{error}; write for example 1.5s"))?;
    Duration::try_from(parsed).map_err(|error| error.to_string())
}
