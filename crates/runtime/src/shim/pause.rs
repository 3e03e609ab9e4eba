//! The first process of a process namespace that all containers of a pod share (`shareProcessNamespace`).
//!
//! It does nothing but reap orphans; when it ends, the kernel ends everything in the namespace.
//!
//! Source: <https://kubernetes.io/docs/tasks/configure-pod-container/share-process-namespace/>, pid_namespaces(7).

use std::fs::File;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::{set_name, set_pdeathsig};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pause};

/// Starts it as a child of this process, which must have one thread and no files open that the child must not have. Answers
/// its process number in the machine's numbering.
#[allow(unsafe_code)]
pub(super) fn start() -> Result<i32, nix::Error> {
    let own = File::open("/proc/self/ns/pid_for_children").map_err(|_| nix::Error::ENOENT)?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    // SAFETY: this process has one thread, so the child may go on as it is.
    let forked = unsafe { fork() };
    if matches!(forked, Ok(ForkResult::Child)) {
        live();
    }
    // Later children, the containers, are told which namespace to join.
    setns(own, CloneFlags::CLONE_NEWPID)?;
    match forked? {
        ForkResult::Parent { child } => Ok(child.as_raw()),
        ForkResult::Child => live(),
    }
}

extern "C" fn wake(_: i32) {}

#[allow(unsafe_code)]
fn live() -> ! {
    let _ = set_name(c"pause");
    // Without the shim nobody would ever end it.
    let _ = set_pdeathsig(Signal::SIGKILL);
    // SAFETY: the handler does nothing; it only makes `pause` return.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::Handler(wake)) };
    loop {
        while waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
            .is_ok_and(|status| status != nix::sys::wait::WaitStatus::StillAlive)
        {}
        pause();
    }
}
