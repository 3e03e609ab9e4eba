//! One container: made, watched, recorded, removed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use libcontainer::container::Container as OciContainer;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};

use super::children::End;
use super::log::Output;
use crate::cgroup::{Cgroups, PodCgroup};
use crate::image::{self, ImageRef};
use crate::protocol::{ContainerConfig, ContainerState, ContainerStatus, MountKind, SandboxConfig};
use crate::spec::{self, Machine};
use crate::workload::{Program, reason};

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

/// How long a program may take from the word "go" until it runs.
const BEGIN: Duration = Duration::from_secs(10);
/// Readings of one output at a time while a container runs, and after its end.
const TURNS: u32 = 8;
const LAST_TURNS: u32 = 1024;

impl Container {
    /// Makes and starts a container; answers when its program runs.
    ///
    /// # Errors
    /// What people should read: the program that was not found, the mount that failed.
    pub(super) fn start(sandbox: &SandboxConfig, config: &ContainerConfig) -> Result<Self, String> {
        let dir = directory(&sandbox.dir, &config.id);
        let started = Self::try_start(sandbox, config, &dir);
        if started.is_err() {
            discard(sandbox, &config.id, &dir);
        }
        started
    }

    fn try_start(sandbox: &SandboxConfig, config: &ContainerConfig, dir: &Path) -> Result<Self, String> {
        let in_words = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let cgroups = Cgroups::detect().map_err(|error| error.to_string())?;
        let state_root = state_root(&sandbox.dir);
        private_directory(dir).map_err(in_words("cannot create the container's directory"))?;
        private_directory(&state_root).map_err(in_words("cannot create the container's state directory"))?;
        let log = open_log(&config.log_path).map_err(in_words("cannot open the log"))?;
        let rootfs = match config.image {
            ImageRef::Host => image::mount_host(&sandbox.dir, dir).map_err(|error| error.to_string())?,
        };
        if !config.working_dir.is_empty() {
            image::make_working_dir(&rootfs, Path::new(&config.working_dir)).map_err(|error| error.to_string())?;
        }
        check_sources(config)?;
        // It holds the environment, and with that secrets.
        let specification = spec::build(Machine::of(&cgroups), sandbox, config, &rootfs).to_string();
        write_private(&dir.join("config.json"), specification.as_bytes())
            .map_err(in_words("cannot write the container's specification"))?;
        let pipe = || pipe().map_err(|error| format!("cannot make a pipe: {error}"));
        let ((stdout, stdout_writer), (stderr, stderr_writer), (report, reporter)) = (pipe()?, pipe()?, pipe()?);
        let null = File::open("/dev/null").map_err(in_words("cannot open /dev/null"))?;
        let program = Program { report: Some(reporter.as_raw_fd()), ..Program::default() };
        let built = ContainerBuilder::new(config.id.clone(), SyscallType::default())
            .with_executor(program)
            .with_root_path(&state_root)
            .map_err(|error| error.to_string())?
            .with_stdin(OwnedFd::from(null))
            .with_stdout(stdout_writer)
            .with_stderr(stderr_writer)
            .as_init(dir)
            .with_systemd(false)
            .with_detach(true)
            .build();
        // `libcontainer` gives this process the container's readiness to be killed, so that the container inherits it.
        super::protect();
        let mut oci = built.map_err(|error| reason(&error))?;
        drop(reporter);
        oci.start().map_err(|error| reason(&error))?;
        let pid = oci.pid().ok_or("the container has no process")?.as_raw();
        await_program(report, pid)?;
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
                output.pump(&mut self.log, TURNS);
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
            output.pump(&mut self.log, LAST_TURNS);
        }
        // By a signal, or by a shell that answers so for a child that ended by it.
        let killed = end.code == 128 + Signal::SIGKILL as i32;
        let oom_killed = killed && group(sandbox).is_some_and(|group| group.oom_kills(&self.status.id) > 0);
        self.status.state = ContainerState::Exited { code: end.code, signal: end.signal, oom_killed };
        self.status.finished_at = Some(Timestamp::now());
        self.record();
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
    if let Some(group) = group(sandbox) {
        group.forget_container(id);
    }
    let _ = fs::remove_dir_all(state.join(id));
    let _ = fs::remove_dir_all(dir);
}

fn group(sandbox: &SandboxConfig) -> Option<PodCgroup> {
    Some(Cgroups::detect().ok()?.node(&sandbox.instance, &sandbox.node).pod(&sandbox.uid))
}

/// `libcontainer` does not say which mount failed, so the usual reason is looked for first.
fn check_sources(config: &ContainerConfig) -> Result<(), String> {
    for mount in config.mounts.iter().filter(|mount| mount.kind == MountKind::Bind) {
        if let Err(error) = fs::metadata(&mount.source) {
            return Err(format!("cannot mount {} at {}: {error}", mount.source.display(), mount.destination.display()));
        }
    }
    Ok(())
}

/// A directory that only root can look into.
fn private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}

fn open_log(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// A pipe whose reading end does not block.
fn pipe() -> Result<(File, OwnedFd), nix::Error> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((File::from(read), write))
}

/// Waits until the program runs, which closes the pipe, or has told why it does not.
fn await_program(mut report: File, pid: i32) -> Result<(), String> {
    let since = Instant::now();
    let mut text = Vec::new();
    let failure = loop {
        let left = BEGIN.saturating_sub(since.elapsed());
        let mut polled = [PollFd::new(report.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, u16::try_from(left.as_millis()).unwrap_or(u16::MAX)) {
            Ok(0) => break "the program did not begin in time".to_owned(),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => break format!("cannot wait for the program: {error}"),
        }
        match report.read_to_end(&mut text) {
            Ok(_) if text.is_empty() => return Ok(()),
            Ok(_) => break String::from_utf8_lossy(&text).into_owned(),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => break format!("cannot wait for the program: {error}"),
        }
    };
    // It ends by itself, but now is when its place must be empty.
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    let _ = nix::sys::wait::waitpid(Pid::from_raw(pid), None);
    Err(failure)
}
