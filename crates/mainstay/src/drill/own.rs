//! An instance that a drill starts for itself where none runs, and takes down again.
//!
//! It is started with this very program's `up --detach`, in a directory, on a port and in an address range of its own, so that it
//! meets nothing that is there.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mainstay_net::fabric::{FORWARDING_FILE, Fabric};
use mainstay_net::plan::Network;

use super::DrillError;
use crate::up::processes;

/// Ranges that are tried, one after the other: `10.N.0.0/16`.
const RANGES: std::ops::RangeInclusive<u8> = 100..=199;

/// An instance; dropping it takes it down.
pub struct Own {
    directory: PathBuf,
}

impl Own {
    /// A place for an instance that is not started yet.
    pub fn place() -> Self {
        Self { directory: std::env::temp_dir().join(format!("mainstay-drill-{}", std::process::id())) }
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts it with the manifests, and further options of `mainstay up`, and waits until all is Ready.
    ///
    /// # Errors
    /// When there is no free range or it does not come up.
    pub fn start(&self, manifests: &[PathBuf], options: &[&str]) -> Result<(), DrillError> {
        let (api, network) = (free_api()?, free_network()?);
        let mut command = Command::new(processes::program()?);
        command.args(["up", "--detach", "--quiet", "--api", &api.to_string(), "--network", &network]);
        command.args(options).arg("--data-dir").arg(&self.directory);
        finish(command.args(named(manifests)))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if !self.directory.join("instance.json").exists() {
            return;
        }
        let down = processes::program().map(|program| {
            Command::new(program).arg("down").arg("--data-dir").arg(&self.directory).stdout(Stdio::null()).status()
        });
        match down {
            Ok(Ok(status)) if status.success() => drop(std::fs::remove_dir_all(&self.directory)),
            _ => eprintln!(
                "mainstay: take the drill's instance down: mainstay down --data-dir {}",
                self.directory.display()
            ),
        }
    }
}

/// Applies manifests to a running instance and waits until all is Ready.
///
/// # Errors
/// When they cannot be applied.
pub fn apply(data_dir: &Path, manifests: &[PathBuf]) -> Result<(), DrillError> {
    let mut command = Command::new(processes::program()?);
    finish(command.args(["up", "--detach", "--quiet"]).arg("--data-dir").arg(data_dir).args(named(manifests)))
}

fn named(manifests: &[PathBuf]) -> impl Iterator<Item = &Path> {
    manifests.iter().flat_map(|path| [Path::new("-f"), path])
}

/// What it says goes to this command's own standard error.
fn finish(command: &mut Command) -> Result<(), DrillError> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    match status.map_err(DrillError::Start)? {
        status if status.success() => Ok(()),
        _ => Err(DrillError::Up),
    }
}

fn free_api() -> Result<SocketAddrV4, DrillError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(DrillError::Start)?;
    let port = listener.local_addr().map_err(DrillError::Start)?.port();
    Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}

fn free_network() -> Result<String, DrillError> {
    let start = (std::process::id() % 100) as u8;
    let ranges = RANGES.cycle().skip(start.into()).take(RANGES.count()).map(|number| format!("10.{number}.0.0/16"));
    let is_free = |range: &String| {
        let network = Network::parse(range).ok();
        network.is_some_and(|network| Fabric::new(network, "drill", FORWARDING_FILE).preflight().is_ok())
    };
    ranges.into_iter().find(is_free).ok_or(DrillError::NoRange)
}
