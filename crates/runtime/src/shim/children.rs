//! Learning that children ended: SIGCHLD writes a byte into a pipe that the loop polls.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

/// The pipe's writing end, for the handler.
static BELL: AtomicI32 = AtomicI32::new(-1);

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) code: i32,
    pub(super) signal: Option<i32>,
}

#[allow(unsafe_code)]
extern "C" fn ring(_: i32) {
    // SAFETY: write(2) is async-signal-safe; the descriptor is a non-blocking pipe that stays open, the byte a constant.
    unsafe { libc::write(BELL.load(Ordering::Relaxed), c"!".as_ptr().cast(), 1) };
}

extern "C" fn ignore(_: i32) {}

/// Installs the handlers; the file becomes readable when a child has ended.
///
/// Other signals that would end the shim are caught by a handler that does nothing. They are not *ignored*, because that
/// would be inherited by the containers, while handlers go with `execve`.
#[allow(unsafe_code)]
pub(super) fn notify() -> Result<File, nix::Error> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    BELL.store(write.into_raw_fd(), Ordering::Relaxed);
    let flags = SaFlags::SA_RESTART | SaFlags::SA_NOCLDSTOP;
    let install = |signal, handler| {
        let action = SigAction::new(SigHandler::Handler(handler), flags, SigSet::empty());
        // SAFETY: both handlers only call async-signal-safe functions.
        unsafe { sigaction(signal, &action) }.map(drop)
    };
    install(Signal::SIGCHLD, ring)?;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE] {
        install(signal, ignore)?;
    }
    Ok(File::from(read))
}

/// Empties the pipe.
pub(super) fn drain(mut bell: &File) {
    let mut buffer = [0; 64];
    while bell.read(&mut buffer).is_ok_and(|count| count == buffer.len()) {}
    debug_assert!(bell.as_raw_fd() >= 0, "the pipe stays open");
}

/// Every child that has ended since the last call.
pub(super) fn ended() -> Vec<(i32, End)> {
    let mut all = Vec::new();
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => all.push((pid.as_raw(), End { code, signal: None })),
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                let number = signal as i32;
                all.push((pid.as_raw(), End { code: 128 + number, signal: Some(number) }));
            }
            Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return all,
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(_) => return all,
        }
    }
}
