//! `mainstay steward`: the command line of a database member's steward.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use kube::Client;
use mainstay_failover::core::timing::Timing;
use mainstay_failover::core::{MemberId, Policy};
use mainstay_failover::database::names::USERS;
use mainstay_failover::engine::User;
use mainstay_failover::engine::mysql::{self, Mysql};
use mainstay_failover::engine::postgres::{self, Postgres};
use mainstay_failover::engine::redis::{self, Redis};
use mainstay_failover::lease::LeaseStore;
use mainstay_failover::peer::Secret;
use mainstay_failover::publish::{Pods, publish};
use mainstay_failover::steward::{self, Address, Settings};
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::AnyError;
use crate::client;

/// `mainstay steward`.
#[derive(Debug, Args)]
pub struct StewardArgs {
    /// The database
    #[arg(long, value_enum, default_value = "postgres")]
    pub engine: EngineKind,
    /// This member: the name of its pod
    #[arg(long, env = "MAINSTAY_MEMBER")]
    pub member: String,
    /// Another member: NAME=HOST:STEWARD-PORT,HOST:DATABASE-PORT; may be repeated
    #[arg(long = "peer", value_name = "PEER", value_parser = peer)]
    pub peers: Vec<(MemberId, PeerAddress)>,
    /// Namespace of the Lease and the pod
    #[arg(long, default_value = "default", env = "MAINSTAY_NAMESPACE")]
    pub namespace: String,
    /// The Lease on which the members agree: the database's name
    #[arg(long, env = "MAINSTAY_DATABASE")]
    pub lease: String,
    /// Keep no labels on a pod of the member's name
    #[arg(long)]
    pub no_pod: bool,
    /// Reach the API by this file instead of the pod's service account
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Address and port on which the stewards talk, and /readyz answers
    #[arg(long, default_value = "0.0.0.0:8008")]
    pub listen: String,
    /// The data directory; its parent must be writable
    #[arg(long)]
    pub data: PathBuf,
    /// Where the database's programs are
    #[arg(long)]
    pub programs: PathBuf,
    /// Directory of the database's Unix socket
    #[arg(long, default_value = "/tmp")]
    pub socket: PathBuf,
    /// Addresses the database listens on
    #[arg(long, default_value = "*")]
    pub address: String,
    /// The database's port
    #[arg(long, default_value_t = 5432)]
    pub port: u16,
    /// Password of the superuser and of replication
    #[arg(long, value_name = "FILE")]
    pub password_file: PathBuf,
    /// The secret that the stewards share
    #[arg(long, value_name = "FILE")]
    pub secret_file: PathBuf,
    /// Run the database as this user and group, by number
    #[arg(long, value_name = "UID:GID", value_parser = user)]
    pub user: Option<(u32, u32)>,
    /// Higher is elected first among equals; 0 never
    #[arg(long, default_value_t = 100)]
    pub priority: u32,
    /// On how many replicas a write must be before it is acknowledged; 0 is asynchronous
    #[arg(long, default_value_t = 1)]
    pub synchronous: usize,
    /// Acknowledge writes with fewer replicas, or none, rather than refuse them
    #[arg(long)]
    pub available: bool,
    /// Asynchronous: a replica further behind than this many bytes is not elected
    #[arg(long, default_value_t = 1 << 20)]
    pub lag_max: u64,
    /// Milliseconds without a renewal after which others may take the Lease
    #[arg(long, default_value_t = 1500)]
    pub ttl_ms: u64,
    /// Milliseconds between renewals
    #[arg(long, default_value_t = 300)]
    pub renewal_ms: u64,
    /// A parameter of the database, NAME=VALUE; may be repeated
    #[arg(long = "parameter", value_name = "NAME=VALUE", value_parser = parameter)]
    pub parameters: Vec<(String, String)>,
    /// A user and the database it owns, NAME=DATABASE; may be repeated. The password is in a file of the user's name
    #[arg(long = "own", value_name = "NAME=DATABASE", value_parser = parameter)]
    pub users: Vec<(String, String)>,
    /// Where the users' passwords are
    #[arg(long, value_name = "DIRECTORY", default_value = USERS)]
    pub users_dir: PathBuf,
    /// Make a new database from a backup: a command for the shell that fills $PGDATA
    #[arg(long, value_name = "COMMAND")]
    pub restore: Option<String>,
    /// Replay the archived log until then, by the parameter restore_command (default: to its end)
    #[arg(long, value_name = "TIME", requires = "restore")]
    pub restore_until: Option<String>,
    /// A line for pg_hba.conf, before Mainstay's own; may be repeated
    #[arg(long = "access", value_name = "LINE")]
    pub access: Vec<String>,
}

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineKind {
    /// PostgreSQL 13 to 18.
    Postgres,
    /// Redis 7.
    Redis,
    /// MariaDB 10.11 and later.
    Mysql,
}

/// Where a peer is reached.
#[derive(Debug, Clone)]
pub struct PeerAddress(Address);

fn peer(text: &str) -> Result<(MemberId, PeerAddress), String> {
    let parts = text.split_once('=').and_then(|(name, rest)| Some((name, rest.split_once(',')?)));
    let (name, (steward, server)) = parts.ok_or("expected NAME=HOST:STEWARD-PORT,HOST:DATABASE-PORT")?;
    Ok((MemberId::new(name), PeerAddress(Address { steward: steward.to_owned(), server: server.to_owned() })))
}

fn parameter(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn user(text: &str) -> Result<(u32, u32), String> {
    let numbers = text.split_once(':').and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)));
    numbers.ok_or_else(|| "expected UID:GID, two numbers".to_owned())
}

fn secret(path: &Path) -> Result<String, AnyError> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let text = text.trim();
    if text.is_empty() { Err(format!("{} is empty", path.display()).into()) } else { Ok(text.to_owned()) }
}

/// Runs a member's steward until SIGTERM.
pub async fn run(args: StewardArgs) -> Result<(), AnyError> {
    let client = match &args.kubeconfig {
        Some(path) => client::named(path, "mainstay-steward").await?,
        None => Client::try_default().await?,
    };
    let timing = Timing::of(args.ttl_ms, args.renewal_ms);
    let limit = Duration::from_millis(timing.request_ms);
    let store = LeaseStore::new(client.clone(), &args.namespace, &args.lease, args.ttl_ms, limit);
    let shared = Secret::new(secret(&args.secret_file)?.as_bytes());
    let engine = match args.engine {
        EngineKind::Postgres => Either::Postgres(Postgres::new(postgres_settings(&args)?)),
        EngineKind::Redis => Either::Redis(Redis::new(redis_settings(&args)?)),
        EngineKind::Mysql => Either::Mysql(Mysql::new(mysql_settings(&args)?)),
    };
    let (report, reports) = watch::channel(None);
    let local = LocalSet::new();
    if !args.no_pod {
        let others = args.peers.iter().map(|(id, _)| id.to_string()).collect();
        let pods = Pods { client, namespace: args.namespace.clone(), own: args.member.clone(), others };
        local.spawn_local(publish(pods, reports));
    }
    let settings = settings(args, timing)?;
    match engine {
        Either::Postgres(engine) => local.run_until(steward::run(settings, engine, store, shared, report)).await?,
        Either::Redis(engine) => local.run_until(steward::run(settings, engine, store, shared, report)).await?,
        Either::Mysql(engine) => local.run_until(steward::run(settings, engine, store, shared, report)).await?,
    }
    Ok(())
}

/// One of the engines.
enum Either {
    Postgres(Postgres),
    Redis(Redis),
    Mysql(Mysql),
}

/// People's users, with their passwords.
fn users(args: &StewardArgs) -> Result<Vec<User>, AnyError> {
    let user = |(name, database): &(String, String)| {
        let plain =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        if name.is_empty() || !plain(name) || !plain(database) {
            return Err(format!("--own {name}={database}: small letters, digits and underscores only").into());
        }
        let password = secret(&args.users_dir.join(name))?;
        Ok(User { name: name.clone(), database: database.clone(), password })
    };
    args.users.iter().map(user).collect()
}

fn settings(args: StewardArgs, timing: Timing) -> Result<Settings, AnyError> {
    let program = std::env::current_exe()?.display().to_string();
    let peers: BTreeMap<MemberId, Address> = args.peers.into_iter().map(|(id, it)| (id, it.0)).collect();
    Ok(Settings {
        member: MemberId::new(args.member),
        priority: args.priority,
        policy: Policy {
            timing,
            synchronous: args.synchronous.min(peers.len()),
            strict: !args.available,
            all_vote: args.engine != EngineKind::Postgres,
            lag_max: args.lag_max,
        },
        peers,
        listen: args.listen,
        state: args.data.with_extension("steward"),
        launcher: vec![program, "steward-launch".to_owned()],
    })
}

fn postgres_settings(args: &StewardArgs) -> Result<postgres::Settings, AnyError> {
    Ok(postgres::Settings {
        member: MemberId::new(&args.member),
        data: std::path::absolute(&args.data)?,
        programs: args.programs.clone(),
        socket: std::path::absolute(&args.socket)?,
        listen: args.address.clone(),
        port: args.port,
        password: secret(&args.password_file)?,
        parameters: args.parameters.iter().cloned().collect(),
        access: args.access.clone(),
        restore: args.restore.clone().map(|command| postgres::Restore { command, until: args.restore_until.clone() }),
        user: args.user,
        users: users(args)?,
    })
}

fn redis_settings(args: &StewardArgs) -> Result<redis::Settings, AnyError> {
    Ok(redis::Settings {
        member: MemberId::new(&args.member),
        data: std::path::absolute(&args.data)?,
        programs: args.programs.clone(),
        listen: args.address.clone(),
        port: args.port,
        password: secret(&args.password_file)?,
        parameters: args.parameters.iter().cloned().collect(),
        user: args.user,
        users: users(args)?,
    })
}

fn mysql_settings(args: &StewardArgs) -> Result<mysql::Settings, AnyError> {
    let member = MemberId::new(&args.member);
    Ok(mysql::Settings {
        members: args.peers.iter().map(|(id, _)| id.clone()).chain([member.clone()]).collect(),
        member,
        data: std::path::absolute(&args.data)?,
        programs: args.programs.clone(),
        socket: std::path::absolute(&args.socket)?,
        listen: args.address.clone(),
        port: args.port,
        password: secret(&args.password_file)?,
        parameters: args.parameters.iter().cloned().collect(),
        user: args.user,
        users: users(args)?,
    })
}
