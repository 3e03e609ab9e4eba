//! The shim: one small process per pod, the pod's sandbox and the parent of its containers.
//!
//! Flow: become the sandbox (own network, IPC, host name and mount namespaces; the pod's cgroup) → listen on
//! `shim.sock` in the pod's directory → a single `poll` loop over the agent's connections, the containers' output pipes
//! and the ends of children, until told to stop.
//!
//! Guarantees: it needs no agent — output is logged and ends are recorded while nobody is connected; it is single-threaded,
//! as `libcontainer` needs, and holds no more than one line of each output in memory.
//!
//! Deliberately absent: any decision but one. When to start what is the agent's business; but a pod that must not run twice is
//! stopped here when the node is cut off ([`crate::fence`]), because the agent may be what is dead.

mod attach;
mod children;
mod console;
mod container;
mod log;
mod pause;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use mainstay_model::fencing::LOOK_INTERVAL;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};

use crate::cgroup::{CgroupError, Cgroups};
use crate::fence::{self, FenceConfig};
use crate::image::{self, ImageError};
use crate::protocol::{
    ContainerConfig, ContainerState, ContainerStatus, LINE_BYTES_MAX, MemoryVolume, Message, Request, SandboxConfig,
    Wish,
};
use crate::spec::PidNamespace;
use attach::Attachment;
use container::Container;
pub(crate) use container::{FILTERS, RECORD, directory as container_directory, state_root as container_state_root};

/// The file with the sandbox's configuration, in the pod's directory.
pub const CONFIG: &str = "sandbox.json";
/// The socket's name in the pod's directory.
pub const SOCKET: &str = "shim.sock";
/// What containerd sets for a pod's own network: programs that are not root may ping and listen on low ports.
const NETWORK_DEFAULTS: &[(&str, &str)] =
    &[("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];
/// The longest host name, in characters.
const HOSTNAME_MAX: usize = 63;
/// Connections at a time.
const CONNECTIONS_MAX: usize = 8;
/// Connections at a time that are attached to a container.
const ATTACHMENTS_MAX: usize = 16;

/// Why the shim could not become a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The arguments are not the agent's.
    #[error("usage: mainstay shim --dir POD_DIRECTORY (it is started by a node's agent, not by hand)")]
    Usage,
    /// The configuration could not be read.
    #[error("cannot read {path}: {source}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// A kernel setting that is not the pod's.
    #[error(
        "sysctl {0:?} is not one of the pod's own namespaces; only kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.* and, without hostNetwork, net.* are"
    )]
    Sysctl(String),
    /// The cgroup could not be entered.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// What all containers share could not be made.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A system call failed.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn failed(doing: &'static str) -> impl Fn(nix::Error) -> ShimError {
    move |source| ShimError::System { doing, source: source.into() }
}

/// Runs the shim; `args` are what follows `mainstay shim`.
///
/// # Errors
/// When the sandbox cannot be made. Later failures are answers to the agent.
pub fn run(args: &[String]) -> Result<(), ShimError> {
    let [flag, dir] = args else { return Err(ShimError::Usage) };
    if flag != "--dir" {
        return Err(ShimError::Usage);
    }
    let dir = PathBuf::from(dir);
    let path = dir.join(CONFIG);
    let text = fs::read(&path).map_err(|source| ShimError::Config { path: path.clone(), source })?;
    let config: SandboxConfig =
        serde_json::from_slice(&text).map_err(|source| ShimError::Config { path, source: source.into() })?;
    become_sandbox(&config)?;
    let pause =
        if config.share_pid { Some(pause::start().map_err(failed("start the pod's first process"))?) } else { None };
    let ended = children::notify().map_err(failed("watch for ended children"))?;
    let listener = listen(&dir)?;
    let (containers, clients, attachments) = (HashMap::new(), Vec::new(), Vec::new());
    Shim { config, pause, containers, clients, attachments, stopping: false, fenced: false }.serve(&listener, &ended)
}

fn become_sandbox(config: &SandboxConfig) -> Result<(), ShimError> {
    // Not the agent's session: a signal to the agent's terminal is not for the pod.
    let _ = nix::unistd::setsid();
    Cgroups::detect()?.node(&config.instance, &config.node).pod(&config.uid).enter()?;
    let mut namespaces = CloneFlags::CLONE_NEWNS;
    namespaces.set(CloneFlags::CLONE_NEWIPC, !config.host_ipc);
    // A node is a host of its own, with a name of its own, also where it shares a machine with others.
    namespaces |= CloneFlags::CLONE_NEWUTS;
    namespaces.set(CloneFlags::CLONE_NEWNET, !config.host_network);
    unshare(namespaces).map_err(failed("make the pod's namespaces"))?;
    // What the machine unmounts goes here too; what is mounted here stays here.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(failed("separate the pod's mounts"))?;
    image::make_base(&config.dir, &config.hidden)?;
    for volume in &config.memory_volumes {
        mount_memory(volume).map_err(|source| ShimError::System { doing: "mount a volume in memory", source })?;
    }
    let hostname = if config.host_network { &config.node } else { &config.hostname };
    nix::unistd::sethostname(short(hostname)).map_err(failed("set the pod's host name"))?;
    if !config.host_network {
        for (name, value) in NETWORK_DEFAULTS {
            // A kernel without the setting has the ability or does not; the pod runs either way.
            let _ = fs::write(sysctl(name), value);
        }
    }
    for (name, value) in &config.sysctls {
        let allowed = is_namespaced(name, config.host_network);
        let path = allowed.then(|| sysctl(name)).ok_or_else(|| ShimError::Sysctl(name.clone()))?;
        fs::write(&path, value).map_err(|source| ShimError::Config { path, source })?;
    }
    nix::sys::prctl::set_child_subreaper(true).map_err(failed("become the reaper of the pod's processes"))?;
    protect();
    // Not the agent's habits: what containers create gets the permissions they ask for.
    umask(Mode::from_bits_truncate(0o022));
    Ok(())
}

/// Here and not on the machine: there a mount would have to find its way to where the pod lives, and somebody would have to
/// take it away.
fn mount_memory(volume: &MemoryVolume) -> io::Result<()> {
    fs::create_dir_all(&volume.path)?;
    let mode = if volume.group.is_some() { "2777" } else { "0777" };
    let size = volume.size_bytes.map(|size| format!(",size={size}")).unwrap_or_default();
    let group = volume.group.map(|group| format!(",gid={group}")).unwrap_or_default();
    let options = format!("mode={mode}{size}{group}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), &volume.path, Some("tmpfs"), flags, Some(options.as_str())).map_err(Into::into)
}

/// The kernel shall rather kill a container than the shim; where the right to ask for that is missing, it is at least no
/// readier to be killed than others.
fn protect() {
    let adjust = |value| fs::write("/proc/self/oom_score_adj", value);
    let _ = adjust("-998").or_else(|_| adjust("0"));
}

fn sysctl(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name.replace('.', "/"))
}

/// Whether a setting is the pod's own and not the whole machine's: the list of the Kubernetes page "Using sysctls".
fn is_namespaced(name: &str, host_network: bool) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) && !name.contains("..");
    let of = |prefix: &str| name.starts_with(prefix);
    plain
        && (of("kernel.shm")
            || of("kernel.msg")
            || name == "kernel.sem"
            || of("fs.mqueue.")
            || (of("net.") && !host_network))
}

/// A host name has 63 characters at most, a pod's name may have more; it is cut as the kubelet does.
fn short(hostname: &str) -> &str {
    let end = hostname.char_indices().nth(HOSTNAME_MAX).map_or(hostname.len(), |(end, _)| end);
    hostname[..end].trim_end_matches(['-', '.'])
}

/// Binds the socket through the directory's descriptor, because a socket's path may have only 107 bytes.
fn listen(dir: &Path) -> Result<UnixListener, ShimError> {
    let doing = "listen on the pod's socket";
    let system = |source| ShimError::System { doing, source };
    let handle = File::open(dir).map_err(system)?;
    let _ = fs::remove_file(dir.join(SOCKET));
    let path = format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd());
    // Who may write to the socket may start processes as root: nobody but root.
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound.map_err(system)?;
    listener.set_nonblocking(true).map_err(system)?;
    Ok(listener)
}

/// One connected agent.
struct Client {
    stream: UnixStream,
    /// The beginning of a line that is not complete.
    partial: Vec<u8>,
    gone: bool,
    /// It is to carry a container's streams from now on: the container, and whether it feeds it.
    attach: Option<(String, bool)>,
}

struct Shim {
    config: SandboxConfig,
    /// The first process of the process namespace that all containers share, if they do.
    pause: Option<i32>,
    containers: HashMap<String, Container>,
    clients: Vec<Client>,
    attachments: Vec<Attachment>,
    /// Told to stop.
    stopping: bool,
    /// The node was cut off: nothing may run here any more.
    fenced: bool,
}

impl Shim {
    fn serve(mut self, listener: &UnixListener, ended: &File) -> Result<(), ShimError> {
        while !self.stopping {
            let ready = self.wait(listener, ended)?;
            self.keep_promise();
            if ready.contains(&ended.as_raw_fd()) {
                children::drain(ended);
            }
            // Output first: what a container wrote before its end belongs into the log before the end is told.
            for (id, container) in &mut self.containers {
                let attachments = &mut self.attachments;
                container
                    .read_output(|fd| ready.contains(&fd), &mut |stream, bytes| copy(attachments, id, stream, bytes));
                if container.waiting_input().is_some_and(|fd| ready.contains(&fd.as_raw_fd())) {
                    container.flush_input();
                }
            }
            self.reap();
            self.serve_attachments(&ready);
            if ready.contains(&listener.as_raw_fd()) {
                self.accept(listener);
            }
            for index in 0..self.clients.len() {
                if ready.contains(&self.clients[index].stream.as_raw_fd()) {
                    self.read(index);
                }
            }
            self.attach();
            self.clients.retain(|client| !client.gone);
        }
        self.take_down();
        Ok(())
    }

    /// Waits until something is ready, or an attachment has been patient enough.
    fn wait(&self, listener: &UnixListener, ended: &File) -> Result<Vec<RawFd>, ShimError> {
        let input = PollFlags::POLLIN;
        let mut polled = vec![PollFd::new(listener.as_fd(), input), PollFd::new(ended.as_fd(), input)];
        polled.extend(self.clients.iter().map(|client| PollFd::new(client.stream.as_fd(), input)));
        for (id, container) in &self.containers {
            let mut own = self.attachments.iter().filter(|attachment| attachment.container == *id);
            if !own.any(Attachment::is_behind) {
                polled.extend(container.outputs().map(|fd| PollFd::new(fd, input)));
            }
            polled.extend(container.waiting_input().map(|fd| PollFd::new(fd, PollFlags::POLLOUT)));
        }
        for attachment in &self.attachments {
            let listening = self.containers.get(&attachment.container).is_none_or(Container::is_listening);
            polled.push(PollFd::new(attachment.fd(), attachment.interest(listening)));
        }
        let deadline = self.attachments.iter().filter_map(Attachment::deadline).min();
        let left = deadline.map(|at| at.saturating_duration_since(std::time::Instant::now()).as_millis() + 1);
        // A pod that must not run twice asks ten times a second whether it may still run.
        let look = self.config.fence.as_ref().filter(|_| !self.fenced).map(|_| LOOK_INTERVAL.as_millis());
        let left = left.into_iter().chain(look).min();
        let timeout = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        match poll(&mut polled, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(failed("wait for something to do")(error)),
        }
        let ready = polled.iter().filter(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        Ok(ready.map(|fd| fd.as_fd().as_raw_fd()).collect())
    }

    /// Stops the pod for good when its node has been cut off for too long.
    fn keep_promise(&mut self) {
        if !self.fenced && self.config.fence.as_ref().is_some_and(FenceConfig::is_over) {
            self.fenced = true;
            fence::stop(&self.config);
        }
    }

    /// Input from the attachments, output to them.
    fn serve_attachments(&mut self, ready: &[RawFd]) {
        for attachment in &mut self.attachments {
            let container = self.containers.get_mut(&attachment.container);
            let listening = container.as_ref().is_none_or(|container| container.is_listening());
            let interest = attachment.interest(listening);
            attachment.flush();
            if !ready.contains(&attachment.fd().as_raw_fd()) {
                continue;
            }
            // Ready although nothing was waited for: the other side is gone.
            attachment.gone |= interest.is_empty();
            if interest.contains(PollFlags::POLLIN) {
                let asked = attachment.read();
                if let Some(container) = container.filter(|_| attachment.feeds) {
                    for asked in &asked {
                        container.serve(asked);
                    }
                }
            }
        }
        for gone in self.attachments.extract_if(.., |attachment| attachment.gone) {
            if let Some(container) = self.containers.get_mut(&gone.container).filter(|_| gone.feeds) {
                container.serve(&attach::Asked::End);
            }
        }
    }

    /// Connections that asked for a container's streams stop being clients.
    fn attach(&mut self) {
        for mut client in self.clients.extract_if(.., |client| client.attach.is_some() && !client.gone) {
            let Some((container, feeds)) = client.attach.take() else { continue };
            if let Ok(attachment) = Attachment::new(client.stream, client.partial, container, feeds) {
                self.attachments.push(attachment);
            }
        }
    }

    fn accept(&mut self, listener: &UnixListener) {
        while let Ok((stream, _)) = listener.accept() {
            if self.clients.len() >= CONNECTIONS_MAX || stream.set_nonblocking(false).is_err() {
                continue;
            }
            // A stuck agent must not hold the shim up for ever.
            let _ = stream.set_write_timeout(Some(std::time::Duration::from_secs(2)));
            let mut client = Client { stream, partial: Vec::new(), gone: false, attach: None };
            client.say(&Message::Hello { pid: std::process::id() });
            self.clients.push(client);
        }
    }

    fn read(&mut self, index: usize) {
        let mut buffer = [0; 8192];
        let client = &mut self.clients[index];
        match client.stream.read(&mut buffer) {
            Ok(0) | Err(_) => client.gone = true,
            Ok(count) => client.partial.extend_from_slice(&buffer[..count]),
        }
        if client.partial.len() > LINE_BYTES_MAX {
            client.gone = true;
        }
        // What follows a request to attach is the container's.
        while let Some(end) = self.clients[index].partial.iter().position(|byte| *byte == b'\n')
            && self.clients[index].attach.is_none()
        {
            let line: Vec<u8> = self.clients[index].partial.drain(..=end).collect();
            match serde_json::from_slice::<Request>(&line) {
                Ok(request) => {
                    let attach = match &request.wish {
                        Wish::Attach { id, stdin } => Some((id.clone(), *stdin)),
                        _ => None,
                    };
                    let result = self.fulfil(request.wish);
                    self.clients[index].attach = attach.filter(|_| result.is_ok());
                    self.clients[index].say(&Message::Answer { number: request.number, result });
                }
                Err(_) => self.clients[index].gone = true,
            }
        }
    }

    fn fulfil(&mut self, wish: Wish) -> Result<Vec<ContainerStatus>, String> {
        match wish {
            Wish::Start(_) if self.fenced => Err("the node was cut off; the pod was stopped for good".to_owned()),
            Wish::Start(config) => {
                if self.containers.contains_key(&config.id) {
                    return Err(format!("container {} exists already", config.id));
                }
                let pids = self.pid_namespace(&config)?;
                let container = Container::start(&self.config, &config, &pids)?;
                let status = container.status.clone();
                self.containers.insert(status.id.clone(), container);
                // Making a container takes much code that waiting for its end does not.
                crate::memory::release_code();
                Ok(vec![status])
            }
            Wish::Signal { id, signal } => {
                let container = self.containers.get(&id).ok_or_else(|| format!("there is no container {id}"))?;
                container.signal(signal).map(|()| vec![])
            }
            Wish::Remove { id } => {
                if let Some(container) = self.containers.remove(&id) {
                    container.remove(&self.config);
                }
                Ok(vec![])
            }
            Wish::Attach { id, .. } => {
                let running = |container: &&Container| container.status.state == ContainerState::Running;
                let container = self.containers.get(&id).filter(running).ok_or("the container is not running")?;
                if self.attachments.len() >= ATTACHMENTS_MAX {
                    return Err(format!("{ATTACHMENTS_MAX} connections are attached to this pod already"));
                }
                Ok(vec![container.status.clone()])
            }
            Wish::Statuses => Ok(self.containers.values().map(|container| container.status.clone()).collect()),
            Wish::Stop => {
                self.stopping = true;
                Ok(vec![])
            }
        }
    }

    /// The process namespace of a container to be made.
    fn pid_namespace(&self, config: &ContainerConfig) -> Result<PidNamespace, String> {
        if self.config.host_pid {
            return Ok(PidNamespace::Machine);
        }
        let process = match (&config.pid_of, self.pause) {
            (Some(target), _) => {
                let running = |container: &&Container| container.status.state == ContainerState::Running;
                let target = self.containers.get(target).filter(running);
                Some(target.ok_or("the target container is not running")?.status.pid)
            }
            (None, pause) => pause,
        };
        Ok(process.map_or(PidNamespace::Own, PidNamespace::Of))
    }

    /// Takes in every child that has ended.
    fn reap(&mut self) {
        for (pid, end) in children::ended() {
            // The shared process namespace is dead, and with it everything in it: the sandbox has to be made anew.
            self.stopping |= self.pause == Some(pid);
            let Some((id, container)) = self.containers.iter_mut().find(|(_, c)| c.status.pid == pid) else { continue };
            let attachments = &mut self.attachments;
            container.ended(&self.config, end, &mut |stream, bytes| copy(attachments, id, stream, bytes));
            attachments.iter_mut().filter(|a| a.container == *id).for_each(Attachment::finish);
            let news = Message::Changed(container.status.clone());
            for client in &mut self.clients {
                client.say(&news);
            }
        }
    }

    fn take_down(&mut self) {
        for (_, container) in self.containers.drain() {
            container.remove(&self.config);
        }
        let _ = fs::remove_file(self.config.dir.join(SOCKET));
    }
}

/// Output of a container, to all who are attached to it.
fn copy(attachments: &mut [Attachment], container: &str, stream: &str, bytes: &[u8]) {
    for attachment in attachments.iter_mut().filter(|attachment| attachment.container == container) {
        attachment.say(stream, bytes);
    }
}

impl Client {
    fn say(&mut self, message: &Message) {
        // Messages always serialise: they hold only text and numbers.
        let mut line = serde_json::to_vec(message).unwrap_or_default();
        line.push(b'\n');
        if self.stream.write_all(&line).is_err() {
            self.gone = true;
        }
    }
}

/// What is left of a pod whose shim is gone: mounts went with the shim's namespace; this takes the rest.
pub(crate) fn forget_mounts(dir: &Path) {
    for entry in fs::read_dir(dir.join("containers")).into_iter().flatten().flatten() {
        image::unmount(&entry.path());
    }
}

#[cfg(test)]
mod tests {
    use super::{is_namespaced, short};

    #[test]
    fn only_the_pods_own_settings_may_be_set() {
        for name in ["net.core.somaxconn", "kernel.shmmax", "kernel.sem", "fs.mqueue.msg_max"] {
            assert!(is_namespaced(name, false), "{name}");
        }
        for name in ["vm.swappiness", "/etc/passwd", "net/../vm/swappiness", "net....vm.swappiness", "kernel.hostname"]
        {
            assert!(!is_namespaced(name, false), "{name}");
        }
        assert!(!is_namespaced("net.core.somaxconn", true));
    }

    #[test]
    fn long_host_names_are_cut_cleanly() {
        assert_eq!(short("front"), "front");
        assert_eq!(short(&format!("{}-abc", "x".repeat(62))), "x".repeat(62));
    }
}
