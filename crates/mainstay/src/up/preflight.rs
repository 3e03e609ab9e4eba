//! Whether this machine can run Mainstay: one clear sentence if not, and what to do.

use std::net::{SocketAddrV4, TcpListener};
use std::time::{Duration, Instant};

use mainstay_net::fabric::{Fabric, FabricError};
use mainstay_runtime::cgroup::{CgroupError, Cgroups};

/// How long a port that is in use may take to become free, and how often it is looked at.
const PORT_PATIENCE: Duration = Duration::from_secs(1);
const PORT_RETRY: Duration = Duration::from_millis(10);

/// Why it cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// Not root.
    #[error("mainstay up needs root: it makes network namespaces and containers; run it again with sudo")]
    NotRoot,
    /// The API's port is in use.
    #[error(
        "{address} is in use by another program ({source}); stop that one, or choose another port with --api ADDRESS:PORT"
    )]
    PortTaken {
        /// The address asked for.
        address: SocketAddrV4,
        /// What the system said.
        source: std::io::Error,
    },
    /// The address range overlaps something on this machine, or the kernel lacks something.
    #[error(transparent)]
    Network(#[from] FabricError),
    /// No usable cgroups.
    #[error(transparent)]
    Cgroups(#[from] CgroupError),
}

/// Checks what can be checked before anything is changed. Without an `api` the port is known to be our own.
///
/// # Errors
/// The first thing that stands in the way.
pub fn check(api: Option<SocketAddrV4>, fabric: &Fabric) -> Result<(), PreflightError> {
    if !nix::unistd::Uid::effective().is_root() {
        return Err(PreflightError::NotRoot);
    }
    Cgroups::detect()?;
    fabric.preflight()?;
    // Asked last, and given back at once: the server binds it for good a few milliseconds later.
    let Some(address) = api else { return Ok(()) };
    let since = Instant::now();
    loop {
        match TcpListener::bind(address) {
            Ok(_) => return Ok(()),
            // A server that was killed a moment ago still holds it until the kernel is done with the process.
            Err(_) if since.elapsed() < PORT_PATIENCE => std::thread::sleep(PORT_RETRY),
            Err(source) => return Err(PreflightError::PortTaken { address, source }),
        }
    }
}
