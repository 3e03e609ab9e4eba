//! What one does with this repository: `cargo xtask test | tidy | guest-test | bench | peers`.
//!
//! One file per command. Everything is done with the programs at hand (cargo, apt-get, pip, nft); nothing is linked
//! that the workspace does not already build. A command prints what it does and ends with 1, naming what failed.
//!
//! Deliberately absent: anything about how Mainstay itself works. The commands look at it from outside, as a user
//! would.

mod bench;
mod guest;
mod install;
mod leaks;
mod licences;
mod peers;
mod process;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The repository's own tasks.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct CommandLine {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Everything continuous integration runs: format, lints, licences, tidy, unit and end-to-end tests, leaks
    Test(test::TestArgs),
    /// The rules of the house that clippy does not know: floors, sizes, module docs, unsafe
    Tidy(tidy::TidyArgs),
    /// The end-to-end tests in a Debian guest under qemu: another kernel, cgroup version 2
    GuestTest(guest::GuestArgs),
    /// Measures, prints a table and writes target/bench/NAME.json
    Bench(bench::BenchArgs),
    /// Which programs to compare with are installed here
    Peers(peers::PeersArgs),
}

fn main() -> ExitCode {
    let outcome = match CommandLine::parse().task {
        Task::Test(args) => test::run(&args),
        Task::Tidy(args) => tidy::run(&args),
        Task::GuestTest(args) => guest::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Peers(args) => peers::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::FAILURE
        }
    }
}
