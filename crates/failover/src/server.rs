//! The server's process: started so that it cannot outlive its steward, and killed so that nothing of it is left.
//!
//! The server is started by way of [`launch`], which asks the kernel to kill it when the steward dies. In a pod the steward is
//! process 1, and the kernel ends all processes of the pod with it anyway. [`Process::fence`] kills the server and everything it
//! started, found by descent: servers give their children sessions and process groups of their own, so a signal to the group would
//! not reach them. The steward adopts orphans, so descent never loses one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getppid};

use crate::engine::ServerCommand;

/// How long a killed process may take to be gone before the steward says so and goes on trying.
const GONE: Duration = Duration::from_secs(5);

/// What did not work.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It did not start.
    #[error("cannot start {program}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Processes are left, in the kernel's hands.
    #[error("processes {0:?} of the server are still there {GONE:?} after SIGKILL")]
    Left(BTreeSet<i32>),
}

/// The server.
#[derive(Debug)]
pub struct Process {
    launcher: Vec<String>,
    child: Option<Child>,
}

impl Process {
    /// None yet. `launcher` is the command that ends in [`launch`].
    pub fn new(launcher: Vec<String>) -> Self {
        // Without it orphans go to process 1, and in a pod that is the steward too.
        if let Err(error) = prctl::set_child_subreaper(true) {
            tracing::warn!(%error, "cannot adopt orphans of the server");
        }
        Self { launcher, child: None }
    }

    /// Starts it. The steward must do so on its main thread: the kernel's promise is about the thread that started the server.
    pub fn start(&mut self, command: &ServerCommand) -> Result<(), ServerError> {
        let failed = |source| ServerError::Start { program: command.program.clone(), source };
        let [program, arguments @ ..] = &self.launcher[..] else {
            return Err(failed(std::io::Error::other("no launcher is set")));
        };
        let mut start = Command::new(program);
        start.args(arguments).arg(std::process::id().to_string()).arg(&command.program).args(&command.arguments);
        start.envs(command.environment.iter().map(|(name, value)| (name, value))).stdin(Stdio::null()).current_dir("/");
        if let Some((user, group)) = command.user {
            start.uid(user).gid(group);
        }
        self.child = Some(start.spawn().map_err(failed)?);
        Ok(())
    }

    /// Whether it runs; reaps it when it has ended.
    pub fn runs(&mut self) -> bool {
        let ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        if self.child.as_mut().is_some_and(ended) {
            self.child = None;
        }
        self.child.is_some()
    }

    /// Whether it was stopped by a signal, and does nothing.
    pub fn stopped(&self) -> bool {
        let pid = self.child.as_ref().map(|child| child.id() as i32);
        pid.and_then(status).is_some_and(|it| it.state == 'T')
    }

    /// Sends a signal to the server, not to its children.
    pub fn signal(&self, signal: i32) {
        if let (Some(child), Ok(signal)) = (&self.child, Signal::try_from(signal)) {
            let _ = kill(Pid::from_raw(child.id() as i32), signal);
        }
    }

    /// Whether there is one, as far as is known.
    pub fn exists(&self) -> bool {
        self.child.is_some()
    }

    /// Kills it and everything it started; returns when none of it is left. Also for a server that has ended by itself: its
    /// children may be left. While it runs the steward runs no other program, so all that descends from the steward is the server's.
    pub fn fence(&mut self) -> Result<(), ServerError> {
        let me = std::process::id() as i32;
        let begin = Instant::now();
        if let Some(child) = &mut self.child {
            let _ = child.kill();
        }
        loop {
            // Who was started in between is a child of one of these, or by now of the steward.
            let family: BTreeSet<i32> = descendants(me).into_iter().filter(|pid| *pid != me).collect();
            let server = self.child.as_ref().map(|child| child.id() as i32);
            let alive = |pid: &i32| status(*pid).is_some_and(|it| it.state != 'Z');
            for pid in family.iter().filter(|pid| alive(pid)) {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            for pid in family.iter().filter(|pid| Some(**pid) != server) {
                let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
            }
            let left: BTreeSet<i32> = family.into_iter().filter(alive).collect();
            if !self.runs() && left.is_empty() {
                return Ok(());
            }
            if begin.elapsed() > GONE {
                return Err(ServerError::Left(left));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.fence() {
            tracing::error!(%error, "the server could not be killed");
        }
    }
}

/// A process: its state and its parent.
struct Status {
    state: char,
    parent: i32,
}

/// From `/proc/PID/stat`: `pid (name) state parent ...`; the name may contain anything.
fn status(pid: i32) -> Option<Status> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    Some(Status { state: fields.next()?.chars().next()?, parent: fields.next()?.parse().ok()? })
}

/// A process and all below it.
fn descendants(root: i32) -> BTreeSet<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        if let Some(status) = status(pid) {
            children.entry(status.parent).or_default().push(pid);
        }
    }
    let (mut found, mut next) = (BTreeSet::new(), vec![root]);
    while let Some(pid) = next.pop() {
        if found.insert(pid) {
            next.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
}

/// Becomes the server: asks the kernel for SIGKILL when the steward (process `arguments[0]`) dies, then runs `arguments[1..]`.
/// Returns only when that did not work.
pub fn launch(arguments: &[String]) -> std::io::Error {
    let [parent, program, arguments @ ..] = arguments else {
        return std::io::Error::other("usage: STEWARD-PID PROGRAM [ARGUMENT...]");
    };
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGKILL) {
        return error.into();
    }
    // It may have died before the kernel was asked.
    if getppid().to_string() != *parent {
        return std::io::Error::other("the steward is gone already");
    }
    Command::new(program).args(arguments).exec()
}
