//! The `mainstay` binary: parse, dispatch, report.
//!
//! Roles that need a single thread (the shim, commands in containers, entering a network namespace) are dispatched before
//! any runtime exists.

#![allow(unreachable_pub)] // a binary has no outside: `pub` here only means "of this module"

mod check;
mod cli;
mod client;
mod db;
mod definitions;
mod degrade;
mod down;
mod drill;
mod encryption;
mod fault;
mod gateway;
mod gateway_top;
mod gateways;
mod hollow;
mod image;
mod instance;
mod lead;
mod node;
mod node_tuning;
mod pki;
mod progress;
mod reaper;
mod server;
mod snapshot;
mod state;
mod status;
mod steward;
mod tuning;
mod up;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use cli::{Cli, Command};
use instance::Instance;
use tokio::runtime::{Builder, Runtime};

/// Most worker threads of the control plane: one store and one network are behind them all.
const SERVER_THREADS_MAX: usize = 8;

/// When a long-running role gives back the code that its start needed, and how often it does so again.
const AFTER_START: Duration = Duration::from_secs(2);
const NOW_AND_THEN: Duration = Duration::from_secs(60);

type AnyError = Box<dyn Error>;

fn main() -> ExitCode {
    mainstay_apiserver::contain_panics();
    // The shim and its commands first, before anything is allocated that they do not need.
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("shim") => return report(mainstay_runtime::shim::run(&args[2..]).map_err(Into::into).map(|()| true)),
        // Returns only when the server could not be run.
        Some("steward-launch") => return report(Err(mainstay_failover::server::launch(&args[2..]).into())),
        Some("shim-exec") => return exit_code(mainstay_runtime::exec::run(&args[2..])),
        Some("lead-guard") => return exit_code(mainstay_failover::lead::guard::run(&args[2..])),
        Some("lead-exec") => return exit_code(mainstay_failover::lead::guard::execute(&args[2..])),
        Some("init") if !matches!(args.get(2).map(String::as_str), Some("--help" | "-h")) => {
            return exit_code(mainstay_runtime::init::run(&args[2..]));
        }
        _ => {}
    }
    match Cli::parse().command {
        // Have exit statuses of their own.
        Command::Check(args) => check::run(&args),
        Command::Lead(args) => lead::run(&args).map_or_else(|error| report(Err(error)), exit_code),
        command => report(dispatch(command)),
    }
}

/// Runs a command; answers whether all is well.
fn dispatch(command: Command) -> Result<bool, AnyError> {
    match command {
        Command::Up(args) => small_runtime()?.block_on(up::run(&args))?,
        Command::Down(args) => down::run(&args)?,
        Command::Status(args) => return Ok(small_runtime()?.block_on(status::run(&args))?),
        Command::Kubeconfig(args) => println!("{}", Instance::load(&args.data_dir)?.kubeconfig().display()),
        Command::Fault(args) => fault::run(&args)?,
        Command::Drill(args) => return Ok(small_runtime()?.block_on(drill::run(&args))?),
        Command::Image(args) => small_runtime()?.block_on(image::run(&args))?,
        Command::Gateway(args) => return gateway::run(*args),
        Command::Degrade(args) => small_runtime()?.block_on(degrade::run(&args))?,
        Command::Db(args) => return db::run(&args),
        Command::Demo { program } => mainstay_demo::run(program)?,
        Command::Snapshot(args) => small_runtime()?.block_on(snapshot::run(&args))?,
        Command::Secrets(args) => small_runtime()?.block_on(encryption::run(&args))?,
        Command::Server(args) => {
            log_to_stderr();
            let instance = server::instance(&args)?;
            let threads =
                std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, SERVER_THREADS_MAX));
            let runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
            runtime.spawn(give_back_code());
            let result = prepare(&runtime).block_on(server::run(instance, &args));
            // What is still running is only waiting; nothing acknowledged is lost by not waiting for it.
            runtime.shutdown_background();
            result?;
        }
        Command::Node(args) => {
            log_to_stderr();
            let instance = Instance::load(&args.data.data_dir)?;
            let place = node::enter(&instance, &args.name)?;
            let runtime = small_runtime()?;
            runtime.spawn(give_back_code());
            runtime.block_on(node::run(instance, args.name, place))?;
        }
        Command::Steward(args) => {
            log_to_stderr();
            small_runtime()?.block_on(steward::run(*args))?;
        }
        Command::Supervise(args) => {
            log_to_stderr();
            let instance = Instance::load(&args.data_dir)?;
            let runtime = small_runtime()?;
            runtime.spawn(give_back_code());
            runtime.block_on(up::supervise(instance))?;
        }
        // Dispatched in `main`; here only so that `--help` knows them.
        Command::Check(_)
        | Command::Init(_)
        | Command::Lead(_)
        | Command::Shim(_)
        | Command::ShimExec(_)
        | Command::StewardLaunch(_) => {}
    }
    Ok(true)
}

/// A runtime of one thread, with the TLS provider installed.
fn small_runtime() -> std::io::Result<Runtime> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    prepare(&runtime);
    Ok(runtime)
}

fn prepare(runtime: &Runtime) -> &Runtime {
    // Already installed is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    runtime
}

/// Logs of the long-running roles; `MAINSTAY_LOG` sets what is logged, for example `debug` or `mainstay_node=trace`.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MAINSTAY_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,kube_client=off"));
    // Not even a word about a line that cannot be written: on a full disk that word would end the process.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    log.log_internal_errors(false).init();
}

/// Now and then gives back the code that only the start, or a rare task, needed.
async fn give_back_code() {
    let mut wait = AFTER_START;
    loop {
        tokio::time::sleep(wait).await;
        mainstay_runtime::memory::release_code();
        wait = NOW_AND_THEN;
    }
}

fn report(result: Result<bool, AnyError>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mainstay: {error}");
            let mut source = error.source();
            while let Some(inner) = source {
                // Transparent errors show the same text twice.
                if !error.to_string().contains(&inner.to_string()) {
                    eprintln!("  because: {inner}");
                }
                source = inner.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(255))
}
