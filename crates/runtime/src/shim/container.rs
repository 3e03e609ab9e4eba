//! One container: made, watched, recorded, removed.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use libcontainer::container::Container as OciContainer;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};

use super::children::End;
use super::log::Output;
use crate::cgroup::Cgroups;
use crate::image::{self, ImageRef};
use crate::protocol::{ContainerConfig, ContainerState, ContainerStatus, SandboxConfig};
use crate::spec;

/// The record of a container's end, in its directory.
pub(crate) const RECORD: &str = "status.json";

/// The directory of a container in its pod's directory.
pub(crate) fn directory(pod: &Path, id: &str) -> PathBuf {
    pod.join("containers").join(id)
}

/// Where `libcontainer` keeps its own state.
pub(crate) fn state_root(pod: &Path) -> PathBuf {
    pod.join("state")
}

pub(super) struct Container {
    pub(super) status: ContainerStatus,
    dir: PathBuf,
    oci: OciContainer,
    outputs: [Output; 2],
    log: File,
}

impl Container {
    /// Makes and starts a container.
    ///
    /// # Errors
    /// What people should read: the program that was not found, the mount that failed.
    pub(super) fn start(sandbox: &SandboxConfig, config: ContainerConfig) -> Result<Self, String> {
        let dir = directory(&sandbox.dir, &config.id);
        let started = Self::try_start(sandbox, &config, &dir);
        if started.is_err() {
            discard(sandbox, &config.id, &dir);
        }
        started
    }

    fn try_start(sandbox: &SandboxConfig, config: &ContainerConfig, dir: &Path) -> Result<Self, String> {
        let in_words = |what: &str| {
            let what = what.to_owned();
            move |error: std::io::Error| format!("{what}: {error}")
        };
        fs::create_dir_all(dir).map_err(in_words("cannot create the container's directory"))?;
        let state_root = state_root(&sandbox.dir);
        fs::create_dir_all(&state_root).map_err(in_words("cannot create the container's state directory"))?;
        if let Some(parent) = config.log_path.parent() {
            fs::create_dir_all(parent).map_err(in_words("cannot create the log's directory"))?;
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&config.log_path)
            .map_err(in_words("cannot open the log"))?;
        let rootfs = match config.image {
            ImageRef::Host => image::mount_host(dir, &sandbox.hidden).map_err(|error| error.to_string())?,
        };
        let specification = spec::build(sandbox, config, &rootfs).to_string();
        fs::write(dir.join("config.json"), specification)
            .map_err(in_words("cannot write the container's specification"))?;
        let (stdout, stdout_writer) = output_pipe().map_err(|error| format!("cannot make a pipe: {error}"))?;
        let (stderr, stderr_writer) = output_pipe().map_err(|error| format!("cannot make a pipe: {error}"))?;
        let null = File::open("/dev/null").map_err(in_words("cannot open /dev/null"))?;
        let mut oci = ContainerBuilder::new(config.id.clone(), SyscallType::default())
            .with_root_path(&state_root)
            .map_err(|error| error.to_string())?
            .with_stdin(OwnedFd::from(null))
            .with_stdout(stdout_writer)
            .with_stderr(stderr_writer)
            .as_init(dir)
            .with_systemd(false)
            .with_detach(true)
            .build()
            .map_err(|error| reason(&error, config))?;
        oci.start().map_err(|error| reason(&error, config))?;
        let pid = oci.pid().map_or(0, |pid| pid.as_raw());
        let status = ContainerStatus {
            id: config.id.clone(),
            name: config.name.clone(),
            pid,
            state: ContainerState::Running,
            started_at: Timestamp::now(),
            finished_at: None,
        };
        let outputs = [Output::new(stdout, "stdout"), Output::new(stderr, "stderr")];
        let container = Self { status, dir: dir.to_owned(), oci, outputs, log };
        container.record();
        Ok(container)
    }

    /// The output pipes that are open.
    pub(super) fn outputs(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.outputs.iter().filter_map(Output::pipe).map(|pipe| pipe.as_fd())
    }

    /// Logs what the ready pipes hold.
    pub(super) fn read_output(&mut self, ready: impl Fn(RawFd) -> bool) {
        for output in &mut self.outputs {
            if output.pipe().is_some_and(|pipe| ready(pipe.as_raw_fd())) {
                output.pump(&mut self.log);
            }
        }
    }

    /// Sends a signal to the container's first process. One that has ended needs none.
    pub(super) fn signal(&self, signal: i32) -> Result<(), String> {
        if self.status.state != ContainerState::Running {
            return Ok(());
        }
        let signal = Signal::try_from(signal).map_err(|_| format!("there is no signal {signal}"))?;
        match kill(Pid::from_raw(self.status.pid), signal) {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
            Err(error) => Err(format!("cannot send {signal}: {error}")),
        }
    }

    /// Takes in that the first process ended: the last output, the record.
    pub(super) fn ended(&mut self, sandbox: &SandboxConfig, end: End) {
        for output in &mut self.outputs {
            output.pump(&mut self.log);
        }
        let oom_killed = end.signal == Some(Signal::SIGKILL as i32) && self.oom_kills(sandbox) > 0;
        self.status.state = ContainerState::Exited { code: end.code, signal: end.signal, oom_killed };
        self.status.finished_at = Some(Timestamp::now());
        self.record();
    }

    fn oom_kills(&self, sandbox: &SandboxConfig) -> u64 {
        let cgroups = Cgroups::detect().ok();
        cgroups.map_or(0, |c| c.node(&sandbox.instance, &sandbox.node).pod(&sandbox.uid).oom_kills(&self.status.id))
    }

    /// Writes the status down, so that it survives the shim.
    fn record(&self) {
        let text = serde_json::to_vec(&self.status).unwrap_or_default();
        let draft = self.dir.join("status.new");
        // A full disk costs the record, not the container.
        if fs::write(&draft, text).is_ok() {
            let _ = fs::rename(&draft, self.dir.join(RECORD));
        }
    }

    /// Ends what still runs and takes everything away.
    pub(super) fn remove(mut self, sandbox: &SandboxConfig) {
        if self.status.state == ContainerState::Running {
            let _ = kill(Pid::from_raw(self.status.pid), Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(Pid::from_raw(self.status.pid), None);
        }
        // Also removes its cgroups; what it leaves, `discard` takes.
        let _ = self.oci.delete(true);
        discard(sandbox, &self.status.id, &self.dir);
    }
}

/// Takes a container's mounts, files and state away, whatever there is of them.
fn discard(sandbox: &SandboxConfig, id: &str, dir: &Path) {
    image::unmount(dir);
    let state = state_root(&sandbox.dir);
    if let Ok(mut left) = OciContainer::load(state.join(id)) {
        let _ = left.delete(true);
    }
    let _ = fs::remove_dir_all(state.join(id));
    let _ = fs::remove_dir_all(dir);
}

/// A pipe whose reading end does not block.
fn output_pipe() -> Result<(File, OwnedFd), nix::Error> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((File::from(read), write))
}

/// The innermost reason, in words that name the program.
fn reason(error: &libcontainer::error::LibcontainerError, config: &ContainerConfig) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    let program = config.command.first().map_or("", String::as_str);
    if text.contains("not found in $PATH") {
        return format!("exec: {program:?}: executable file not found in $PATH");
    }
    if text.contains("does not have correct permissions") {
        return format!("exec: {program:?}: permission denied");
    }
    text
}
