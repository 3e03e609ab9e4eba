//! The first process of a container that asks for one: forwards signals to its program's process group and reaps orphans.
//!
//! Many programs are no good first process: the kernel gives that one no default actions for signals, so that SIGTERM does
//! nothing to a program without a handler, and nobody else collects the processes whose parents have ended.
//!
//! Flow: one process becomes two. The child leads a process group of its own, gets the terminal if there is one, and becomes
//! the program. The parent waits for signals: SIGCHLD makes it reap, every other one goes to the child's group. When the
//! child ends, so does the parent, with the child's exit code (128 + the signal's number), and with it whatever else is left in
//! the process namespace.
//!
//! Two ways in: `mainstay init -- CMD` ([`run`]), for images that bring the program along, and pods with the annotation
//! `mainstay.dev/init: "true"`, for which the last step into the container takes it ([`crate::workload`]); that needs no file in
//! the image.
//!
//! Guarantees: the parent holds no files but its standard streams, and nobody inside can open its program file or look into
//! its memory without being allowed to trace every process.
//!
//! Sources: pid_namespaces(7), PR_SET_CHILD_SUBREAPER(2const).

use std::ffi::CString;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;

use nix::sys::prctl::{set_child_subreaper, set_dumpable};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, execvp, fork, getpid, setpgid, tcsetpgrp};

/// Exit code for a program that cannot be executed, and for one that is not there, as shells use them.
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// Runs `mainstay init`; `args` are what follows it. Answers the program's exit code; must be called by a single thread.
pub fn run(args: &[String]) -> i32 {
    let words = if args.first().is_some_and(|word| word == "--") { &args[1..] } else { args };
    let Ok(words) = words.iter().map(|word| CString::new(word.as_bytes())).collect::<Result<Vec<_>, _>>() else {
        eprintln!("mainstay init: an argument holds a NUL character");
        return NOT_EXECUTABLE;
    };
    let Some(program) = words.first() else {
        eprintln!("mainstay init: say which program to run: mainstay init -- PROGRAM [ARGUMENT...]");
        return NOT_EXECUTABLE;
    };
    if let Err(error) = split(io::stdin().is_terminal()) {
        eprintln!("mainstay init: cannot become the parent of {program:?}: {error}");
        return NOT_EXECUTABLE;
    }
    let Err(error) = execvp(program, &words);
    eprintln!("mainstay init: cannot run {program:?}: {}", error.desc());
    if error == nix::Error::ENOENT { NOT_FOUND } else { NOT_EXECUTABLE }
}

/// Becomes two processes and returns in the child, which is to become the program; the parent ends when the child does. The
/// process must have a single thread.
///
/// # Errors
/// When the kernel gives no second process; then there is only the caller.
#[allow(unsafe_code)]
pub(crate) fn split(terminal: bool) -> Result<(), nix::Error> {
    let mut before = SigSet::empty();
    // Nothing is lost between the fork and the wait, and the child may give itself the terminal.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // SAFETY: this process has one thread, so the child may go on as it is.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
            if terminal {
                // Without a controlling terminal there is none to hand over.
                let _ = tcsetpgrp(io::stdin().as_fd(), getpid());
            }
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)
        }
        Ok(ForkResult::Parent { child }) => std::process::exit(live(child)),
        Err(error) => {
            let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
            Err(error)
        }
    }
}

/// Forwards and reaps until the child has ended; answers its exit code.
fn live(child: Pid) -> i32 {
    close_files();
    // Neither must fail for the rest to work.
    let _ = set_dumpable(false);
    let _ = set_child_subreaper(true);
    // The child does the same; whoever is first, a signal finds the group.
    let _ = setpgid(child, child);
    let Ok(signals) = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC) else { return NOT_EXECUTABLE };
    loop {
        let Ok(Some(signal)) = signals.read_signal() else { continue };
        if signal.ssi_signo == Signal::SIGCHLD as u32 {
            if let Some(code) = reap(child) {
                return code;
            }
        } else {
            forward(child, signal.ssi_signo);
        }
    }
}

/// Collects everybody who has ended; the child's exit code if it is among them.
fn reap(child: Pid) -> Option<i32> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, number)) if pid == child => code = Some(number),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => code = Some(128 + signal as i32),
            Ok(WaitStatus::StillAlive) => return code,
            // Also a stopped process, or one that a signal without a name ended.
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(_) => return code.or(Some(NOT_EXECUTABLE)),
        }
    }
}

/// Passes a signal on; real-time ones have numbers only.
#[allow(unsafe_code)]
fn forward(child: Pid, number: u32) {
    let Ok(number) = i32::try_from(number) else { return };
    // SAFETY: a plain system call; a group that is gone makes it fail, and then there is nobody to tell.
    unsafe { libc::kill(-child.as_raw(), number) };
}

/// Closes everything but the standard streams: above all the pipe whose end says that the program runs.
#[allow(unsafe_code)]
fn close_files() {
    // SAFETY: nothing of this process uses a descriptor from here on but those it opens itself.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
}
