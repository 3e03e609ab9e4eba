//! Where a container sends the near end of its terminal while it is made.
//!
//! The terminal is made inside the container, so that programs find its name (`tty`) in their own `/dev/pts`.
//!
//! Source: <https://github.com/opencontainers/runc/blob/main/docs/terminals.md>, "detached".

use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// The socket's name in the container's directory.
const SOCKET: &str = "console.sock";
/// How long the container may take to send it; it has, when it is made.
const WAIT: Duration = Duration::from_secs(5);

/// The place.
pub(super) struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    /// Opens it in the container's directory.
    pub(super) fn listen(dir: &Path) -> io::Result<Self> {
        // Through the directory's descriptor, because a socket's path may have only 107 bytes.
        let handle = File::open(dir)?;
        let _ = fs::remove_file(dir.join(SOCKET));
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd()))?;
        Ok(Self { listener, path: dir.join(SOCKET) })
    }

    /// What the container is told.
    pub(super) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// The near end, which does not block. The container must have been made.
    #[allow(unsafe_code)]
    pub(super) fn receive(&self) -> io::Result<File> {
        self.listener.set_nonblocking(true)?;
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(WAIT))?;
        let mut name = [0; 64];
        let mut data = [IoSliceMut::new(&mut name)];
        let mut space = nix::cmsg_space!([i32; 1]);
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let rights = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
            _ => None,
        });
        let descriptor = rights.ok_or_else(|| io::Error::other("the container sent no terminal"))?;
        // SAFETY: the kernel has just made this descriptor for this process, and nobody else knows it.
        let near = unsafe { OwnedFd::from_raw_fd(descriptor) };
        fcntl(&near, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(File::from(near))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
