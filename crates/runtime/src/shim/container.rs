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

use super::attach::{Asked, Input};
use super::children::End;
use super::console::Console;
use super::log::{LogFile, Output};
use crate::cgroup::{Cgroups, PodCgroup};
use crate::image;
use crate::protocol::{ContainerConfig, ContainerState, ContainerStatus, MountKind, SandboxConfig};
use crate::seccomp::Filters;
use crate::spec::{self, Machine, PidNamespace};
use crate::workload::{Program, reason};

/// The filters of its system calls, for commands that are run in it later.
pub(crate) const FILTERS: &str = "filters.json";
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
    outputs: Vec<Output>,
    input: Option<Input>,
    log: LogFile,
    /// Its processes do not end with its first one, because it does not have a process namespace of its own.
    shares_pid: bool,
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
    pub(super) fn start(
        sandbox: &SandboxConfig,
        config: &ContainerConfig,
        pids: &PidNamespace,
    ) -> Result<Self, String> {
        let dir = directory(&sandbox.dir, &config.id);
        let started = Self::try_start(sandbox, config, pids, &dir);
        if started.is_err() {
            discard(sandbox, &config.id, &dir);
        }
        started
    }

    fn try_start(
        sandbox: &SandboxConfig,
        config: &ContainerConfig,
        pids: &PidNamespace,
        dir: &Path,
    ) -> Result<Self, String> {
        let in_words = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let cgroups = Cgroups::detect().map_err(|error| error.to_string())?;
        let state_root = state_root(&sandbox.dir);
        private_directory(dir).map_err(in_words("cannot create the container's directory"))?;
        private_directory(&state_root).map_err(in_words("cannot create the container's state directory"))?;
        let log = LogFile::open(&config.log_path).map_err(in_words("cannot open the log"))?;
        let rootfs = image::mount_image(&config.image, &sandbox.dir, dir).map_err(|error| error.to_string())?;
        if !config.working_dir.is_empty() {
            image::make_working_dir(&rootfs, Path::new(&config.working_dir)).map_err(|error| error.to_string())?;
        }
        check_sources(sandbox, config)?;
        // It holds the environment, and with that secrets.
        let machine = Machine::of(&cgroups);
        let filters = spec::filters(machine, config).map_err(|error| error.to_string())?;
        let specification = spec::build(machine, sandbox, config, pids, &filters, &rootfs).to_string();
        write_private(&dir.join(FILTERS), &serde_json::to_vec(&filters).unwrap_or_default())
            .map_err(in_words("cannot write the container's filters"))?;
        write_private(&dir.join("config.json"), specification.as_bytes())
            .map_err(in_words("cannot write the container's specification"))?;
        let (report, reporter) = pipe().map_err(in_words("cannot make a pipe"))?;
        let streams = Streams::make(config, dir).map_err(in_words("cannot make the standard streams"))?;
        let (oci, outputs, input) = create(config, dir, &state_root, filters, streams, &reporter)?;
        drop(reporter);
        let (pid, oci) = begin(oci, report)?;
        let status = ContainerStatus {
            id: config.id.clone(),
            name: config.name.clone(),
            pid,
            state: ContainerState::Running,
            started_at: Timestamp::now(),
            finished_at: None,
        };
        let shares_pid = !matches!(pids, PidNamespace::Own);
        let container = Self { status, dir: dir.to_owned(), oci, outputs, input, log, shares_pid };
        container.record();
        Ok(container)
    }

    /// The output pipes that are open.
    pub(super) fn outputs(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.outputs.iter().filter_map(Output::pipe).map(|pipe| pipe.as_fd())
    }

    /// Logs what the ready pipes hold; `copy` sees it too.
    pub(super) fn read_output(&mut self, ready: impl Fn(RawFd) -> bool, copy: &mut dyn FnMut(&'static str, &[u8])) {
        for output in &mut self.outputs {
            if output.pipe().is_some_and(|pipe| ready(pipe.as_raw_fd())) {
                output.pump(&mut self.log, TURNS, copy);
            }
        }
    }

    /// The end that takes input which waits.
    pub(super) fn waiting_input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().and_then(Input::fd)
    }

    /// Whether it takes input now; one without an input takes everything, and forgets it.
    pub(super) fn is_listening(&self) -> bool {
        self.input.as_ref().is_none_or(Input::is_listening)
    }

    /// Hands over input that waited.
    pub(super) fn flush_input(&mut self) {
        if self.input.as_mut().is_some_and(|input| !input.flush()) {
            self.input = None;
        }
    }

    /// Does what an attachment asks for.
    pub(super) fn serve(&mut self, asked: &Asked) {
        let Some(input) = &mut self.input else { return };
        let stays = match asked {
            Asked::Input(bytes) => input.take(bytes),
            Asked::End => input.detach(),
            Asked::Size { columns, rows } => {
                input.resize(*columns, *rows);
                true
            }
        };
        if !stays {
            self.input = None;
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
    pub(super) fn ended(&mut self, sandbox: &SandboxConfig, end: End, copy: &mut dyn FnMut(&'static str, &[u8])) {
        self.input = None;
        for output in &mut self.outputs {
            output.pump(&mut self.log, LAST_TURNS, copy);
        }
        if self.shares_pid
            && let Some(group) = group(sandbox)
        {
            group.kill_container(&self.status.id);
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
fn check_sources(sandbox: &SandboxConfig, config: &ContainerConfig) -> Result<(), String> {
    for mount in config.mounts.iter().filter(|mount| mount.kind == MountKind::Bind) {
        let memory = sandbox.memory_volumes.iter().find(|volume| mount.source.starts_with(&volume.path));
        if let Some(volume) = memory {
            // Nobody but the pod sees into it: a sub-path is made here, and must not lead out by a link.
            let inner = mount.source.strip_prefix(&volume.path).unwrap_or(Path::new(""));
            image::make_working_dir(&volume.path, inner).map_err(|error| error.to_string())?;
            let real = |path: &Path| fs::canonicalize(path).unwrap_or_default();
            let (whole, part) = (real(&volume.path), real(&mount.source));
            if whole.as_os_str().is_empty() || !part.starts_with(&whole) {
                return Err(format!("subPath {} leads out of its volume", inner.display()));
            }
        }
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

/// The near and far ends of a container's standard streams.
enum Streams {
    /// Its standard input's two ends (`/dev/null` has no near one), and the pipes for output and errors.
    Pipes { stdin: (Option<File>, OwnedFd), stdout: (File, OwnedFd), stderr: (File, OwnedFd) },
    /// One terminal, which the container makes and sends here.
    Terminal(Console),
}

impl Streams {
    fn make(config: &ContainerConfig, dir: &Path) -> io::Result<Self> {
        if config.tty {
            return Console::listen(dir).map(Self::Terminal);
        }
        let stdin = if config.stdin {
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            (Some(File::from(write)), read)
        } else {
            (None, File::open("/dev/null")?.into())
        };
        Ok(Self::Pipes { stdin, stdout: pipe()?, stderr: pipe()? })
    }
}

/// What the shim keeps of a container's streams.
type Kept = (Vec<Output>, Option<Input>);

/// Makes the container, its program not begun.
fn create(
    config: &ContainerConfig,
    dir: &Path,
    state_root: &Path,
    filters: Filters,
    streams: Streams,
    reporter: &OwnedFd,
) -> Result<(OciContainer, Vec<Output>, Option<Input>), String> {
    // Whoever becomes two has to know of the terminal; else `libcontainer` has done all there is to do with it.
    let terminal = config.init && config.tty;
    let program =
        Program { report: Some(reporter.as_raw_fd()), filters, init: config.init, terminal, ..Program::default() };
    let builder = ContainerBuilder::new(config.id.clone(), SyscallType::default())
        .with_executor(program)
        .with_root_path(state_root)
        .map_err(|error| error.to_string())?;
    let (builder, kept): (_, Box<dyn FnOnce() -> io::Result<Kept>>) = match streams {
        Streams::Pipes { stdin: (near, far), stdout, stderr } => {
            let builder = builder.with_stdin(far).with_stdout(stdout.1).with_stderr(stderr.1);
            let outputs = vec![Output::new(stdout.0, "stdout"), Output::new(stderr.0, "stderr")];
            let input = near.map(|near| Input::new(near, false, config.stdin_once));
            (builder, Box::new(|| Ok((outputs, input))))
        }
        Streams::Terminal(console) => {
            let builder = builder.with_console_socket(Some(console.path()));
            let once = config.stdin_once;
            let kept = move || {
                let near = console.receive()?;
                // Its size is set through the same end, whether or not it takes input.
                let input = near.try_clone().map(|near| Input::new(near, true, once))?;
                Ok((vec![Output::new(near, "stdout")], Some(input)))
            };
            (builder, Box::new(kept))
        }
    };
    let built = builder.as_init(dir).with_systemd(false).with_detach(true).build();
    // `libcontainer` gives this process the container's readiness to be killed, so that the container inherits it.
    super::protect();
    let oci = built.map_err(|error| reason(&error))?;
    let (outputs, input) = kept().map_err(|error| format!("cannot get the container's terminal: {error}"))?;
    Ok((oci, outputs, input))
}

/// Begins the container's program; answers its process.
fn begin(mut oci: OciContainer, report: File) -> Result<(i32, OciContainer), String> {
    oci.start().map_err(|error| reason(&error))?;
    let pid = oci.pid().ok_or("the container has no process")?.as_raw();
    await_program(report, pid)?;
    Ok((pid, oci))
}

/// A pipe whose reading end does not block.
fn pipe() -> io::Result<(File, OwnedFd)> {
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
