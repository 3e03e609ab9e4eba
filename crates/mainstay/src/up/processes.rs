//! Starting, watching and ending the processes of an instance.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::instance::{Instance, InstanceError, write_private};

/// How long a process may take to end before it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Why processes could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// One could not be started.
    #[error("cannot start {role}: {source}")]
    Start {
        /// Which.
        role: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the data directory.
    #[error(transparent)]
    File(#[from] InstanceError),
    /// Another one supervises this instance.
    #[error("mainstay is already running from {0}; see `mainstay status`, or end it with `mainstay down`")]
    Running(PathBuf),
}

/// Held by the one process that supervises an instance.
pub struct Lock(#[allow(dead_code)] Flock<fs::File>);

/// Becomes the supervisor of an instance.
///
/// # Errors
/// When another process is.
pub fn lock(instance: &Instance) -> Result<Lock, ProcessError> {
    let path = instance.data_dir.join("run/supervisor.lock");
    let failed = |source| InstanceError::File { doing: "open", path: path.clone(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            write_private(&instance.pid_file("supervisor"), format!("{}\n", std::process::id()).as_bytes())?;
            Ok(Lock(lock))
        }
        Err(_) => Err(ProcessError::Running(instance.data_dir.clone())),
    }
}

/// Whether a supervisor lives.
pub fn is_supervised(instance: &Instance) -> bool {
    let file = OpenOptions::new().write(true).open(instance.data_dir.join("run/supervisor.lock"));
    file.is_ok_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err())
}

/// Starts one of the roles, in a process group of its own so that Ctrl-C at the terminal reaches only the supervisor.
///
/// # Errors
/// When it cannot be started.
pub fn start(instance: &Instance, role: &str, args: &[&str]) -> Result<Child, ProcessError> {
    let failed = |source| ProcessError::Start { role: role.to_owned(), source };
    let path = instance.log(role);
    let log = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
    let child = Command::new(program()?)
        .args(args)
        .arg("--data-dir")
        .arg(&instance.data_dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    if let Some(pid) = child.id() {
        write_private(&instance.pid_file(role), format!("{pid}\n").as_bytes())?;
    }
    Ok(child)
}

/// This program's file.
///
/// # Errors
/// When the system does not tell.
pub fn program() -> Result<PathBuf, ProcessError> {
    std::env::current_exe().map_err(|source| ProcessError::Start { role: "mainstay".to_owned(), source })
}

/// The living process of a role, if its process id file tells the truth.
pub fn find(instance: &Instance, role: &str) -> Option<Pid> {
    let pid: i32 = fs::read_to_string(instance.pid_file(role)).ok()?.trim().parse().ok()?;
    let command = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).ok()?;
    let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
    // Ids are used again: it must be ours, of this instance.
    let directory = instance.data_dir.as_os_str().as_encoded_bytes();
    let ours = role == "supervisor" || words.contains(&directory);
    (words.first()?.ends_with(b"mainstay") && ours).then(|| Pid::from_raw(pid))
}

/// Asks a process to end, and kills it when it does not; returns when it is gone.
pub fn end(pid: Pid, patience: Duration) {
    // Stopped processes do not hear; let them go on first.
    for signal in [Signal::SIGTERM, Signal::SIGCONT] {
        let _ = kill(pid, signal);
    }
    if !gone_within(pid, patience) {
        let _ = kill(pid, Signal::SIGKILL);
        gone_within(pid, END_TIMEOUT);
    }
}

fn gone_within(pid: Pid, patience: Duration) -> bool {
    let since = Instant::now();
    while is_alive(pid) {
        if since.elapsed() > patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Whether a process lives. A zombie, whose parent has not looked yet, is gone for us.
pub fn is_alive(pid: Pid) -> bool {
    state(pid).is_some_and(|state| state != 'Z' && state != 'X')
}

/// Whether a process is stopped by a signal.
pub fn is_stopped(pid: Pid) -> bool {
    state(pid) == Some('T')
}

/// The state as the kernel shows it (`man 5 proc_pid_stat`).
fn state(pid: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
}
