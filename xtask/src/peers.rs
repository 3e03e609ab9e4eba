//! `cargo xtask peers`: the programs benches compare Mainstay with, and which of them are here.
//!
//! A bench measures a peer in the same run if it finds it in PATH, and leaves the column empty if it does not.

use std::process::Command;

use clap::Args;

use crate::process::{Outcome, find_program, run as run_command};

/// Flags of `cargo xtask peers`.
#[derive(Args)]
pub(crate) struct PeersArgs {
    /// Install with apt-get those that Debian has
    #[arg(long)]
    install: bool,
}

/// (program, flag that prints the version, Debian package or empty, what it is compared in).
const PEERS: [(&str, &str, &str, &str); 5] = [
    ("k3s", "--version", "", "up: time to Ready, memory"),
    ("etcd", "--version", "etcd-server", "API writes"),
    ("haproxy", "-v", "haproxy", "gateway"),
    ("nginx", "-v", "nginx", "gateway"),
    ("wrk", "-v", "wrk", "gateway: makes the load"),
];

/// Prints the table.
pub(crate) fn run(args: &PeersArgs) -> Outcome {
    if args.install {
        let missing =
            PEERS.iter().filter(|(program, _, package, _)| !package.is_empty() && find_program(program).is_none());
        let packages: Vec<&str> = missing.map(|(_, _, package, _)| *package).collect();
        if !packages.is_empty() {
            run_command(Command::new("apt-get").args(["install", "-y", "--no-install-recommends"]).args(packages))?;
        }
    }
    println!("{:<10} {:<50} compared in", "peer", "version");
    for (program, flag, _, compared) in PEERS {
        println!("{program:<10} {:<50} {compared}", version(program, flag).unwrap_or_else(|| "not installed".into()));
    }
    Ok(())
}

/// The first line a program prints about its version; nginx prints it to standard error.
fn version(program: &str, flag: &str) -> Option<String> {
    let output = Command::new(find_program(program)?).arg(flag).output().ok()?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    String::from_utf8_lossy(&text).lines().next().map(str::to_owned)
}
