//! Whether this machine can run Mainstay: one clear sentence if not, and what to do.

use std::net::{SocketAddrV4, TcpListener};

use mainstay_net::fabric::{Fabric, FabricError};
use mainstay_runtime::cgroup::{CgroupError, Cgroups};

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
    TcpListener::bind(address).map(drop).map_err(|source| PreflightError::PortTaken { address, source })
}
