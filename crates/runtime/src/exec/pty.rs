//! A terminal's near side, read and written by the agent.
//!
//! Source: pty(7).

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{FsType, fstatfs};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// `DEVPTS_SUPER_MAGIC` (`linux/magic.h`).
const DEVPTS_MAGIC: libc::__fsword_t = 0x1cd1;
/// The inode of every `/dev/pts/ptmx` (`fs/devpts/inode.c`).
const MASTER_INODE: u64 = 2;

/// The near side of a terminal.
pub struct Pty(AsyncFd<File>);

impl Pty {
    /// A new terminal among those of the container that `process` lives in, so that programs find its name there: the near
    /// side, and the far side for the command.
    ///
    /// # Errors
    /// When the container has no terminals to give.
    #[allow(unsafe_code)]
    pub fn open(process: i32) -> io::Result<(Self, OwnedFd)> {
        // Links of the container must not lead out of it.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(format!("/proc/{process}/root").as_str(), flags, Mode::empty())?;
        let how = OpenHow::new()
            .flags(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let near = openat2(&root, "dev/pts/ptmx", how)?;
        if fstatfs(&near)?.filesystem_type() != FsType(DEVPTS_MAGIC) || fstat(&near)?.st_ino != MASTER_INODE {
            return Err(io::Error::other("the container's /dev/pts/ptmx is not a terminal multiplexer"));
        }
        let unlocked: libc::c_int = 0;
        // SAFETY: the descriptor is an open terminal multiplexer, and the number lives over the call.
        nix::Error::result(unsafe { libc::ioctl(near.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
        let mode = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: as above; the answer is a descriptor or an error.
        let far = nix::Error::result(unsafe { libc::ioctl(near.as_raw_fd(), libc::TIOCGPTPEER, mode) })?;
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        let far = unsafe { OwnedFd::from_raw_fd(far) };
        // SAFETY: the file owns its descriptor, and nobody replaces or closes it while `AsyncFd` has it.
        let near = unsafe { AsyncFd::register(File::from(near)) }.map_err(io::Error::from)?;
        Ok((Self(near), far))
    }

    /// Tells the command how large the terminal is.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        resize(self.0.as_raw_fd(), columns, rows)
    }
}

/// Sets the size of a terminal.
#[allow(unsafe_code)]
pub(crate) fn resize(terminal: RawFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: whoever calls has the terminal open, and the structure is valid over the call.
    let result = unsafe { libc::ioctl(terminal, libc::TIOCSWINSZ, &raw const size) };
    nix::Error::result(result).map(drop).map_err(Into::into)
}

impl AsyncRead for Pty {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            match guard.try_io(|file| file.get_ref().read(buffer.initialize_unfilled())) {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // The far side is closed: the end, not an error.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for Pty {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            if let Ok(result) = guard.try_io(|file| file.get_ref().write(bytes)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
