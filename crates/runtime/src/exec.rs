//! Commands run inside a running container: for `kubectl exec`, hooks and probes.
//!
//! Flow: the agent starts `mainstay shim-exec` ([`run`]), a process of its own because joining namespaces needs a single
//! thread; it joins the pod's network, IPC and host name, lets `libcontainer` join the rest and start the command, waits and
//! ends with the command's exit code. Its own standard streams are the command's.
//!
//! Guarantees: helper and command share a cgroup of their own and are killed together when the [`Exec`] is dropped (a
//! probe's timeout, a closed connection), at whatever point of the start they are. They also die with the agent's thread
//! that started them: start them on a thread that stays. What a command that ended by itself leaves running in the background
//! goes on as part of the container, as in Kubernetes.
//!
//! A command has the container's user, groups, capabilities, environment and working directory.

mod pty;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sched::{CloneFlags, setns};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::wait::{WaitStatus, waitpid};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use crate::cgroup::{Cgroups, CommandCgroup};
use crate::protocol::{ContainerState, ContainerStatus, SandboxConfig};
use crate::seccomp::Filters;
use crate::shim::{CONFIG, FILTERS, RECORD, container_directory, container_state_root};
use crate::workload::{Program, reason};
pub use pty::Pty;
pub(crate) use pty::resize as resize_terminal;

/// Exit code of the helper when the command could not be started, as shells use it.
const NOT_STARTED: i32 = 126;
/// Exit code of the helper when there is no such command.
const NOT_FOUND: i32 = 127;

/// How often, and how long apart, a killed command's group is tried to be removed.
const LEAVE_TRIES: u32 = 100;
const LEAVE_WAIT: std::time::Duration = std::time::Duration::from_millis(5);

/// A command to run in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecConfig {
    /// The pod's directory.
    pub dir: PathBuf,
    /// The mainstay program.
    pub exe: PathBuf,
    /// The container.
    pub container_id: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Variables besides the container's own.
    pub env: Vec<(String, String)>,
    /// Give it a terminal.
    pub tty: bool,
    /// Give it a standard input.
    pub stdin: bool,
}

/// Where a running command reads and writes.
pub enum Streams {
    /// Three pipes; no standard input unless asked for.
    Pipes {
        /// What it reads.
        stdin: Option<ChildStdin>,
        /// What it says.
        stdout: ChildStdout,
        /// What it complains about.
        stderr: ChildStderr,
    },
    /// One terminal for all.
    Terminal(Pty),
}

/// A running command; dropping it kills the command.
pub struct Exec {
    child: Child,
    group: Option<CommandCgroup>,
}

impl ExecConfig {
    /// The container's first process.
    fn process(&self) -> io::Result<i32> {
        let record = container_directory(&self.dir, &self.container_id).join(RECORD);
        let status: ContainerStatus = read_json(&record).map_err(io::Error::other)?;
        Ok(status.pid)
    }
}

impl Exec {
    /// Starts a command.
    ///
    /// # Errors
    /// When the helper cannot be started; a command that cannot be started shows in its standard error and exit code.
    pub fn spawn(config: &ExecConfig) -> io::Result<(Self, Streams)> {
        let mut command = Command::new(&config.exe);
        command.arg("shim-exec").arg(serde_json::to_string(config).unwrap_or_default());
        command.current_dir("/").env_clear().kill_on_drop(true);
        let group = |child: &Child| command_group(config, child.id()?);
        if config.tty {
            let (pty, other) = Pty::open(config.process()?)?;
            command.stdin(other.try_clone()?).stdout(other.try_clone()?).stderr(other);
            let child = command.spawn()?;
            return Ok((Self { group: group(&child), child }, Streams::Terminal(pty)));
        }
        command.stdin(if config.stdin { Stdio::piped() } else { Stdio::null() });
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let missing = || io::Error::other("the helper has no output pipe");
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        Ok((Self { group: group(&child), child }, Streams::Pipes { stdin, stdout, stderr }))
    }

    /// Waits for the end; answers the command's exit code. What the command left running is the container's from then on.
    ///
    /// # Errors
    /// When the helper cannot be waited for.
    pub async fn wait(&mut self) -> io::Result<i32> {
        use std::os::unix::process::ExitStatusExt as _;
        let status = self.child.wait().await?;
        if let Some(group) = self.group.take_if(|_| status.code().is_some()) {
            group.dissolve();
        }
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        let Some(group) = self.group.take() else { return };
        let over = self.child.id().is_none();
        // The helper first, that it starts nothing more; it may not have entered its group yet.
        let _ = self.child.start_kill();
        group.kill();
        if over && group.try_remove() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                for _ in 0..LEAVE_TRIES {
                    tokio::time::sleep(LEAVE_WAIT).await;
                    group.kill();
                    if group.try_remove() {
                        break;
                    }
                }
            });
        }
    }
}

/// The group of a command; `None` when the sandbox is gone, and then so is the command.
fn command_group(config: &ExecConfig, helper: u32) -> Option<CommandCgroup> {
    let sandbox: SandboxConfig = read_json(&config.dir.join(CONFIG)).ok()?;
    let pod = Cgroups::detect().ok()?.node(&sandbox.instance, &sandbox.node).pod(&sandbox.uid);
    Some(pod.command(&config.container_id, helper))
}

/// Runs the helper; `args` are what follows `mainstay shim-exec`. Answers the process's exit code.
pub fn run(args: &[String]) -> i32 {
    let config: ExecConfig = match args {
        [text] => match serde_json::from_str(text) {
            Ok(config) => config,
            Err(error) => return complain(&format!("cannot read the command: {error}"), NOT_STARTED),
        },
        _ => return complain("it is started by a node's agent, not by hand", NOT_STARTED),
    };
    match start(&config) {
        Ok(pid) => loop {
            match waitpid(pid, None) {
                Ok(WaitStatus::Exited(_, code)) => return code,
                Ok(WaitStatus::Signaled(_, signal, _)) => return 128 + signal as i32,
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return complain(&format!("cannot wait for the command: {error}"), NOT_STARTED),
            }
        },
        Err(error) => {
            let missing = error.contains("file not found") || error.contains("no such file");
            let code = if missing { NOT_FOUND } else { NOT_STARTED };
            complain(&error, code)
        }
    }
}

fn complain(text: &str, code: i32) -> i32 {
    eprintln!("exec failed: {text}");
    code
}

fn start(config: &ExecConfig) -> Result<nix::unistd::Pid, String> {
    let dir = container_directory(&config.dir, &config.container_id);
    let status: ContainerStatus = read_json(&dir.join(RECORD))?;
    if status.state != ContainerState::Running {
        // Its process number may be another process's by now.
        return Err("container not running".to_owned());
    }
    // Should the agent die, so does this process, and with it the command.
    let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    let group = command_group(config, std::process::id()).ok_or("the pod's sandbox is gone")?;
    group.enter().map_err(|error| error.to_string())?;
    let process = process(config, &dir)?;
    for (name, kind) in
        [("net", CloneFlags::CLONE_NEWNET), ("ipc", CloneFlags::CLONE_NEWIPC), ("uts", CloneFlags::CLONE_NEWUTS)]
    {
        let path = format!("/proc/{}/ns/{name}", status.pid);
        let namespace = File::open(&path).map_err(|_| "container not running".to_owned())?;
        setns(namespace, kind).map_err(|error| format!("cannot join the pod's {name} namespace: {error}"))?;
    }
    // A container of a former version has none.
    let filters = if dir.join(FILTERS).exists() { read_json(&dir.join(FILTERS))? } else { Filters::default() };
    let program = Program { terminal: config.tty, dies_with_parent: true, filters, ..Program::default() };
    let tenant = ContainerBuilder::new(config.container_id.clone(), SyscallType::default())
        .with_root_path(container_state_root(&config.dir))
        .map_err(|error| error.to_string())?
        .with_executor(program)
        .as_tenant()
        .with_container_args(config.command.clone())
        .with_process(Some(format!("/proc/self/fd/{}", process.as_raw_fd())))
        // Where `libcontainer` moves processes in the hierarchy that kills, the command must stay in its own group.
        .with_sub_cgroup(group.below_container())
        .with_detach(false)
        .build();
    let pid = tenant.map_err(|error| reason(&error))?;
    Ok(nix::unistd::Pid::from_raw(pid.as_raw()))
}

/// The command's description in memory: the container's own — user, capabilities, directory, environment — with another
/// program.
fn process(config: &ExecConfig, container: &Path) -> Result<File, String> {
    let mut specification: Value = read_json(&container.join("config.json"))?;
    let mut process = specification["process"].take();
    let mut variables = config.env.clone();
    if config.tty && !variables.iter().any(|(name, _)| name == "TERM") {
        variables.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    let given = process["env"].as_array().cloned().unwrap_or_default();
    let replaced = |variable: &Value| {
        let name = variable.as_str().and_then(|text| text.split('=').next()).unwrap_or_default();
        variables.iter().any(|(other, _)| other == name)
    };
    let mut env: Vec<Value> = given.into_iter().filter(|variable| !replaced(variable)).collect();
    env.extend(variables.iter().map(|(name, value)| Value::from(format!("{name}={value}"))));
    process["env"] = env.into();
    process["args"] = config.command.clone().into();
    let failed = |error: io::Error| format!("cannot describe the command: {error}");
    let memory = memfd_create(c"process", MFdFlags::MFD_CLOEXEC).map_err(|error| failed(error.into()))?;
    let mut file = File::from(memory);
    file.write_all(process.to_string().as_bytes()).map_err(failed)?;
    Ok(file)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, String> {
    let text = fs::read(path).map_err(|_| "container not found".to_owned())?;
    serde_json::from_slice(&text).map_err(|error| format!("cannot read {}: {error}", path.display()))
}
