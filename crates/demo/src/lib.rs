//! Programs to run on Mainstay: a small shop, and a server that misbehaves when told to.
//!
//! # Role
//! `mainstay demo front|catalogue|cart` are the three services of `examples/shop`. `mainstay demo server` is the
//! tests' all-purpose server: its health can be switched, and it can be slow, crash, hang and eat memory. `mainstay demo
//! store` keeps keys and a log for a drill's ledgers. All are subcommands of the one binary, so that an example needs no
//! image to pull.
//!
//! # Flow
//! [`run`] builds one single-threaded runtime, `server` accepts connections, `endpoints` answers what every program
//! answers (health, control, who-am-I) and hands the rest to the program itself (`shop`, `faults`, `store`).
//!
//! # Guarantees
//! * SIGTERM and SIGINT: readiness fails at once, new connections are still taken for `--linger-ms`, requests in
//!   flight are finished (at most `--drain-ms`), and the process exits with 0.
//! * Every queue, body, wait and allocation has a limit, named where it is used.
//!
//! # Deliberately absent
//! TLS, HTTP/2, authentication, a database: these programs exist to be restarted and killed, not to be copied.

mod address;
mod client;
mod endpoints;
mod faults;
mod health;
mod identity;
mod reply;
mod server;
mod shop;
mod store;

pub use crate::address::AddressError;

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::address::Address;
use crate::endpoints::{Application, Program};
use crate::health::Health;
use crate::identity::Identity;
use crate::shop::Front;

/// The programs of `mainstay demo`.
#[derive(Debug, Clone, Subcommand)]
pub enum DemoCommand {
    /// The shop's page: asks catalogue and cart, and names which pod of each answered
    Front(ListenArgs),
    /// The shop's goods
    Catalogue(ListenArgs),
    /// The shop's cart: adds up what the customer's cookie holds
    Cart(ListenArgs),
    /// A server for tests: switchable health, latency, crash, hang, memory, echo
    Server(ListenArgs),
    /// Keys and a log in memory; can be told to break its word
    Store(StoreArgs),
    /// A release gone wrong: passes every probe and errs for everyone else
    Broken(BrokenArgs),
}

/// `mainstay demo broken`.
#[derive(Debug, Clone, Args)]
pub struct BrokenArgs {
    /// Where it listens, how it starts and stops
    #[command(flatten)]
    pub listen: ListenArgs,
    /// What everyone but probes is answered
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(400..600))]
    pub status: u16,
}

/// `mainstay demo store`.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// Where it listens, how it starts and stops
    #[command(flatten)]
    pub listen: ListenArgs,
    /// Acknowledge every Nth write and forget it (0: never)
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub lose_one_in: u64,
}

/// Where a demo program listens and how it starts and stops. The same for all of them.
#[derive(Debug, Clone, Args)]
pub struct ListenArgs {
    /// Address and port to listen on
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// Milliseconds after the start during which /startupz and /readyz still fail
    #[arg(long, default_value_t = 0)]
    pub start_delay_ms: u64,
    /// Milliseconds after SIGTERM during which new connections are still answered, so that nobody who has not heard
    /// yet is turned away
    #[arg(long, default_value_t = 200)]
    pub linger_ms: u64,
    /// Milliseconds that requests in flight get to finish once new connections are refused
    #[arg(long, default_value_t = 5_000)]
    pub drain_ms: u64,
    /// Do not print a line for every request
    #[arg(long, short)]
    pub quiet: bool,
}

/// Why a demo program could not start.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The runtime's epoll or signal descriptors could not be made.
    #[error("cannot start the event loop: {0}; look at the limit on open files (ulimit -n)")]
    Runtime(#[source] std::io::Error),
    /// The port is taken, or the address is not this machine's.
    #[error("cannot listen on {address}: {source}; choose another with --listen")]
    Listen {
        /// What `--listen` said.
        address: SocketAddr,
        /// What the kernel answered.
        source: std::io::Error,
    },
    /// `CATALOGUE_URL` or `CART_URL` is not a plain `http://` address.
    #[error("{variable}: {source}")]
    Upstream {
        /// The environment variable at fault.
        variable: &'static str,
        /// What is wrong with it.
        source: AddressError,
    },
}

/// Runs one demo program until it is told to stop.
///
/// Blocks the calling thread. Must not be called from inside a tokio runtime.
pub fn run(command: DemoCommand) -> Result<(), DemoError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2) // only name lookups use them
        .build()
        .map_err(DemoError::Runtime)?;
    let outcome = runtime.block_on(start(command));
    // A name lookup may still be waiting for a DNS server that never answers; do not wait with it.
    runtime.shutdown_background();
    outcome
}

/// From the command to a listening server, and on until a signal has been obeyed.
async fn start(command: DemoCommand) -> Result<(), DemoError> {
    let (program, args) = match command {
        DemoCommand::Front(args) => {
            let catalogue = upstream("CATALOGUE_URL", "http://catalogue")?;
            let cart = upstream("CART_URL", "http://cart")?;
            (Program::Front(Front::new(catalogue, cart)), args)
        }
        DemoCommand::Catalogue(args) => (Program::Catalogue, args),
        DemoCommand::Cart(args) => (Program::Cart, args),
        DemoCommand::Server(args) => (Program::Server(faults::Ballast::default()), args),
        DemoCommand::Broken(args) => (Program::Broken(args.status), args.listen),
        DemoCommand::Store(args) => (Program::Store(store::Store::new(args.lose_one_in)), args.listen),
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(DemoError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DemoError::Runtime)?;
    let listener =
        server::listen(args.listen).await.map_err(|source| DemoError::Listen { address: args.listen, source })?;

    let health = Health::new(args.start_delay_ms);
    let name = program.name();
    let application = Application::new(program, health, Identity::from_environment(), !args.quiet);
    endpoints::log(format_args!("{name} listens on {}", args.listen));
    let stopping =
        server::Stopping { linger: Duration::from_millis(args.linger_ms), drain: Duration::from_millis(args.drain_ms) };
    let told_to_stop = async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    server::serve(listener, application, stopping, told_to_stop).await;
    Ok(())
}

/// The address of another service from the environment, or the service's plain name.
fn upstream(variable: &'static str, default: &str) -> Result<Address, DemoError> {
    let text = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    Address::parse(&text).map_err(|source| DemoError::Upstream { variable, source })
}
