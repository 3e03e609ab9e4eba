//! The agent's side: start a pod's shim, or find the one that lives, and talk to it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Command;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::cgroup::{CgroupError, Cgroups};
use crate::protocol::{ContainerConfig, ContainerState, ContainerStatus, Message, Request, SandboxConfig, Wish};
use crate::shim::{self, CONFIG, SOCKET};

/// How long a shim may take to come up.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a shim may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// News that may wait for the agent.
const NEWS_MAX: usize = 1024;

/// Why a sandbox did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A file of the pod's directory could not be used.
    #[error("cannot use {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The shim could not be started.
    #[error("cannot start the shim {exe}: {source}")]
    Spawn {
        /// The program.
        exe: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The shim ended or did not come up.
    #[error("the pod's shim did not come up: {0}")]
    NotUp(String),
    /// The shim vanished.
    #[error("the pod's shim is gone")]
    Gone,
    /// The shim does not answer.
    #[error("the pod's shim does not answer")]
    Silent,
    /// The shim could not do it.
    #[error("{0}")]
    Refused(String),
    /// The pod's cgroup could not be cleaned.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// Something new about a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SandboxEvent {
    /// A container changed.
    Changed(ContainerStatus),
    /// The shim is gone, and with it the agent's hold on the containers; clean up. The last event.
    Lost,
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Vec<ContainerStatus>, String>>>>>;

/// A connection to the shim of one pod.
pub struct Sandbox {
    config: SandboxConfig,
    pid: u32,
    writer: tokio::sync::Mutex<(OwnedWriteHalf, u64)>,
    waiting: Waiting,
    events: Mutex<Option<mpsc::Receiver<SandboxEvent>>>,
}

impl Sandbox {
    /// Starts a shim for a new pod and connects to it.
    ///
    /// # Errors
    /// When it does not come up; what there was of it has been cleaned up.
    pub async fn create(config: &SandboxConfig) -> Result<Self, SandboxError> {
        let created = Self::try_create(config).await;
        if created.is_err() {
            let _ = clean_up(config);
        }
        created
    }

    async fn try_create(config: &SandboxConfig) -> Result<Self, SandboxError> {
        let file = |path: PathBuf| move |source| SandboxError::File { path, source };
        fs::create_dir_all(&config.dir).map_err(file(config.dir.clone()))?;
        let path = config.dir.join(CONFIG);
        let text = serde_json::to_vec(config).unwrap_or_default();
        fs::write(&path, text).map_err(file(path.clone()))?;
        let log_path = config.dir.join("shim.log");
        let log = File::create(&log_path).map_err(file(log_path.clone()))?;
        let mut child = Command::new(&config.exe)
            .arg("shim")
            .arg("--dir")
            .arg(&config.dir)
            .current_dir("/")
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|source| SandboxError::Spawn { exe: config.exe.clone(), source })?;
        let connected = timeout(START_TIMEOUT, async {
            let mut wait = Duration::from_micros(500);
            loop {
                if let Ok(stream) = connect(&config.dir).await {
                    return Ok(stream);
                }
                if let Ok(Some(_)) = child.try_wait() {
                    let log = fs::read_to_string(&log_path).unwrap_or_default();
                    return Err(SandboxError::NotUp(log.trim().to_owned()));
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_millis(20));
            }
        });
        let stream = connected.await.map_err(|_| SandboxError::NotUp("it did not listen in time".to_owned()))??;
        // While this process lives the shim is its child and must be reaped.
        tokio::spawn(async move { child.wait().await });
        Self::attach(config.clone(), stream).await
    }

    /// Connects to the shim that lives in a pod's directory; `None` if there is none.
    ///
    /// # Errors
    /// When there is one but it does not answer.
    pub async fn adopt(dir: &Path) -> Result<Option<Self>, SandboxError> {
        let Ok(text) = fs::read(dir.join(CONFIG)) else { return Ok(None) };
        let path = dir.join(CONFIG);
        let config =
            serde_json::from_slice(&text).map_err(|error| SandboxError::File { path, source: error.into() })?;
        match connect(dir).await {
            Ok(stream) => Self::attach(config, stream).await.map(Some),
            Err(_) => Ok(None),
        }
    }

    async fn attach(config: SandboxConfig, stream: UnixStream) -> Result<Self, SandboxError> {
        let (reader, writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let mut line = String::new();
        let hello = timeout(START_TIMEOUT, reader.read_line(&mut line)).await.map_err(|_| SandboxError::Silent)?;
        hello.map_err(|_| SandboxError::Gone)?;
        let Ok(Message::Hello { pid }) = serde_json::from_str(&line) else { return Err(SandboxError::Gone) };
        let waiting = Waiting::default();
        let (news, events) = mpsc::channel(NEWS_MAX);
        tokio::spawn(listen(reader, waiting.clone(), news));
        let (writer, events) = (tokio::sync::Mutex::new((writer, 0)), Mutex::new(Some(events)));
        Ok(Self { config, pid, writer, waiting, events })
    }

    /// The process whose network namespace is the pod's.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How the sandbox was made.
    pub fn config(&self) -> &SandboxConfig {
        &self.config
    }

    /// What happens to the containers from the connection on; can be taken once.
    pub fn events(&self) -> Option<mpsc::Receiver<SandboxEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Makes and starts a container.
    ///
    /// # Errors
    /// [`SandboxError::Refused`] with what people should read.
    pub async fn start_container(&self, config: &ContainerConfig) -> Result<ContainerStatus, SandboxError> {
        let mut statuses = self.ask(Wish::Start(Box::new(config.clone()))).await?;
        statuses.pop().ok_or(SandboxError::Gone)
    }

    /// Sends a signal to a container's first process.
    ///
    /// # Errors
    /// When there is no such container or signal.
    pub async fn signal(&self, id: &str, signal: i32) -> Result<(), SandboxError> {
        self.ask(Wish::Signal { id: id.to_owned(), signal }).await.map(drop)
    }

    /// Takes a container away, running or not.
    ///
    /// # Errors
    /// When the shim is gone.
    pub async fn remove_container(&self, id: &str) -> Result<(), SandboxError> {
        self.ask(Wish::Remove { id: id.to_owned() }).await.map(drop)
    }

    /// All containers.
    ///
    /// # Errors
    /// When the shim is gone.
    pub async fn statuses(&self) -> Result<Vec<ContainerStatus>, SandboxError> {
        self.ask(Wish::Statuses).await
    }

    /// Ends everything in the sandbox and takes it away; the pod's directory stays, for its logs.
    ///
    /// # Errors
    /// When processes do not die.
    pub async fn stop(&self) -> Result<(), SandboxError> {
        match timeout(Duration::from_secs(5), self.ask(Wish::Stop)).await {
            // A shim that is gone or stuck is dealt with by force.
            Ok(_) | Err(_) => {}
        }
        let config = self.config.clone();
        tokio::task::spawn_blocking(move || clean_up(&config)).await.map_err(|_| SandboxError::Gone)?
    }

    async fn ask(&self, wish: Wish) -> Result<Vec<ContainerStatus>, SandboxError> {
        let (answer, answered) = oneshot::channel();
        {
            let mut guard = self.writer.lock().await;
            let (writer, number) = &mut *guard;
            *number += 1;
            let mut line = serde_json::to_vec(&Request { number: *number, wish }).unwrap_or_default();
            line.push(b'\n');
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(*number, answer);
            writer.write_all(&line).await.map_err(|_| SandboxError::Gone)?;
        }
        match timeout(ANSWER_TIMEOUT, answered).await {
            Ok(Ok(result)) => result.map_err(SandboxError::Refused),
            Ok(Err(_)) => Err(SandboxError::Gone),
            Err(_) => Err(SandboxError::Silent),
        }
    }
}

/// Connects through the directory's descriptor, because a socket's path may have only 107 bytes.
async fn connect(dir: &Path) -> io::Result<UnixStream> {
    let handle = File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd())).await
}

/// Hands answers to who waits for them and news to the agent, until the shim is gone.
async fn listen(mut reader: BufReader<OwnedReadHalf>, waiting: Waiting, news: mpsc::Sender<SandboxEvent>) {
    let mut line = String::new();
    loop {
        line.clear();
        if !reader.read_line(&mut line).await.is_ok_and(|count| count > 0) {
            break;
        }
        match serde_json::from_str(&line) {
            Ok(Message::Answer { number, result }) => {
                let who = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
                if let Some(who) = who {
                    let _ = who.send(result);
                }
            }
            Ok(Message::Changed(status)) => {
                if news.send(SandboxEvent::Changed(status)).await.is_err() {
                    // Nobody takes the news; answers are still wanted.
                }
            }
            Ok(Message::Hello { .. }) | Err(_) => {}
        }
    }
    // Whoever waits learns it by the dropped senders.
    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let _ = news.send(SandboxEvent::Lost).await;
}

/// The recorded statuses of a pod's containers, for when no shim lives to be asked. What was running then is lost: it
/// counts as killed.
pub fn recorded(dir: &Path) -> Vec<ContainerStatus> {
    let mut statuses = records(dir);
    for status in &mut statuses {
        if status.state == ContainerState::Running {
            status.state = ContainerState::Exited { code: 137, signal: Some(9), oom_killed: false };
            status.finished_at = Some(jiff::Timestamp::now());
        }
    }
    statuses
}

/// The first processes of the containers that run according to the records.
pub fn recorded_processes(dir: &Path) -> Vec<i32> {
    records(dir).into_iter().filter(|status| status.state == ContainerState::Running).map(|status| status.pid).collect()
}

fn records(dir: &Path) -> Vec<ContainerStatus> {
    let directories = fs::read_dir(dir.join("containers")).into_iter().flatten().flatten();
    let texts = directories.filter_map(|entry| fs::read(entry.path().join(shim::RECORD)).ok());
    texts.filter_map(|text| serde_json::from_slice(&text).ok()).collect()
}

/// Kills what is left of a pod and takes its mounts, cgroups and containers' files away; logs and volumes stay.
/// Blocks until it is done.
///
/// # Errors
/// When processes do not die or groups cannot be removed.
pub fn clean_up(config: &SandboxConfig) -> Result<(), SandboxError> {
    let cgroup = Cgroups::detect()?.node(&config.instance, &config.node).pod(&config.uid);
    cgroup.kill()?;
    cgroup.remove()?;
    shim::forget_mounts(&config.dir);
    for left in ["containers", "state"] {
        let path = config.dir.join(left);
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(SandboxError::File { path, source }),
            _ => {}
        }
    }
    for left in [SOCKET, CONFIG] {
        let _ = fs::remove_file(config.dir.join(left));
    }
    Ok(())
}
