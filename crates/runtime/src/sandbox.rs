//! The agent's side: start a pod's shim, or find the one that lives, and talk to it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::cgroup::{CgroupError, Cgroups};
use crate::image::BASE;
use crate::protocol::{
    ContainerConfig, ContainerState, ContainerStatus, LINE_BYTES_MAX, Message, Request, SandboxConfig, Wish,
};
use crate::shim::{self, CONFIG, SOCKET};

mod attach;
pub use attach::{AttachReader, AttachWriter, attach};

/// How long a shim may take to come up.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a shim may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a shim may take to go when told to.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// News that may wait for the agent; what comes beyond that is dropped, as [`Sandbox::statuses`] tells it too.
const NEWS_MAX: usize = 1024;
/// Requests that may wait to be written.
const REQUESTS_MAX: usize = 64;

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

type Answer = Result<Vec<ContainerStatus>, String>;

/// Who waits for which answer.
#[derive(Clone, Default)]
struct Waiting(Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Answer>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who waits; when it is dropped, the answer is no longer wanted.
struct Turn<'a>(&'a Waiting, u64);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

/// A connection to the shim of one pod.
pub struct Sandbox {
    config: SandboxConfig,
    pid: u32,
    requests: mpsc::Sender<Vec<u8>>,
    number: AtomicU64,
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
            let _ = clean_up_aside(config).await;
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
        let mut child = spawn(config, log)?;
        let up = timeout(START_TIMEOUT, come_up(config, &mut child, &log_path)).await;
        let attached = match up {
            Ok(Ok(stream)) => Self::attach(config.clone(), stream).await,
            Ok(Err(error)) => Err(error),
            Err(_) => Err(SandboxError::NotUp("it did not listen in time".to_owned())),
        };
        if attached.is_err() {
            // It may hang before it is in the pod's cgroup, where cleaning up would find it.
            let _ = child.start_kill();
        }
        // While this process lives the shim is its child and must be reaped.
        tokio::spawn(async move { child.wait().await });
        attached
    }

    /// Connects to the shim that lives in a pod's directory; `None` if there is none.
    ///
    /// # Errors
    /// When there may be one but it cannot be reached or does not answer.
    pub async fn adopt(dir: &Path) -> Result<Option<Self>, SandboxError> {
        let path = dir.join(CONFIG);
        let Ok(text) = fs::read(&path) else { return Ok(None) };
        let config =
            serde_json::from_slice(&text).map_err(|error| SandboxError::File { path, source: error.into() })?;
        match connect(dir).await {
            Ok(stream) => Self::attach(config, stream).await.map(Some),
            // Nobody listens. Every other error says nothing about the shim, and its pod must not be taken for lost.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(source) => Err(SandboxError::File { path: dir.join(SOCKET), source }),
        }
    }

    async fn attach(config: SandboxConfig, stream: UnixStream) -> Result<Self, SandboxError> {
        let (reader, writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let hello = timeout(START_TIMEOUT, next(&mut reader)).await.map_err(|_| SandboxError::Silent)?;
        let Some(Message::Hello { pid }) = hello else { return Err(SandboxError::Gone) };
        let waiting = Waiting::default();
        let (news, events) = mpsc::channel(NEWS_MAX);
        let (requests, queue) = mpsc::channel(REQUESTS_MAX);
        tokio::spawn(listen(reader, waiting.clone(), news));
        tokio::spawn(speak(writer, waiting.clone(), queue));
        let events = Mutex::new(Some(events));
        Ok(Self { config, pid, requests, number: AtomicU64::new(0), waiting, events })
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

    /// Makes and starts a container; its program runs when this answers.
    ///
    /// # Errors
    /// [`SandboxError::Refused`] with what people should read.
    pub async fn start_container(&self, config: &ContainerConfig) -> Result<ContainerStatus, SandboxError> {
        let mut statuses = self.ask(Wish::Start(Box::new(config.clone()))).await?;
        statuses.pop().ok_or(SandboxError::Gone)
    }

    /// Sends a signal to a container's first process. One that has ended needs none.
    ///
    /// # Errors
    /// When there is no such container or signal.
    pub async fn signal(&self, id: &str, signal: i32) -> Result<(), SandboxError> {
        self.ask(Wish::Signal { id: id.to_owned(), signal }).await.map(drop)
    }

    /// Takes a container away, running or not, with its record; its log stays.
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
        // A frozen shim cannot answer. One that is gone or stuck is dealt with by force.
        let _ = Cgroups::detect()?.node(&self.config.instance, &self.config.node).pod(&self.config.uid).freeze(false);
        let _ = timeout(STOP_TIMEOUT, self.ask(Wish::Stop)).await;
        clean_up_aside(&self.config).await
    }

    async fn ask(&self, wish: Wish) -> Result<Vec<ContainerStatus>, SandboxError> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let mut line = serde_json::to_vec(&Request { number, wish }).unwrap_or_default();
        line.push(b'\n');
        if line.len() > LINE_BYTES_MAX {
            let text =
                format!("the container's description has {} bytes, at most {LINE_BYTES_MAX} are possible", line.len());
            return Err(SandboxError::Refused(text));
        }
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().insert(number, answer);
        let _turn = Turn(&self.waiting, number);
        self.requests.send(line).await.map_err(|_| SandboxError::Gone)?;
        match timeout(ANSWER_TIMEOUT, answered).await {
            Ok(Ok(result)) => result.map_err(SandboxError::Refused),
            Ok(Err(_)) => Err(SandboxError::Gone),
            Err(_) => Err(SandboxError::Silent),
        }
    }
}

/// Starts the shim's process.
fn spawn(config: &SandboxConfig, log: File) -> Result<Child, SandboxError> {
    Command::new(&config.exe)
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
        .map_err(|source| SandboxError::Spawn { exe: config.exe.clone(), source })
}

/// Waits until the shim listens or has ended.
async fn come_up(config: &SandboxConfig, child: &mut Child, log_path: &Path) -> Result<UnixStream, SandboxError> {
    let mut wait = Duration::from_micros(500);
    loop {
        if let Ok(stream) = connect(&config.dir).await {
            return Ok(stream);
        }
        if let Ok(Some(_)) = child.try_wait() {
            let log = fs::read_to_string(log_path).unwrap_or_default();
            return Err(SandboxError::NotUp(log.trim().to_owned()));
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_millis(8));
    }
}

/// Connects through the directory's descriptor, because a socket's path may have only 107 bytes.
async fn connect(dir: &Path) -> io::Result<UnixStream> {
    let handle = File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd())).await
}

/// The shim's next message; `None` when it is gone or talks nonsense.
pub(crate) async fn next(reader: &mut BufReader<OwnedReadHalf>) -> Option<Message> {
    let mut line = Vec::new();
    reader.take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line).await.ok()?;
    serde_json::from_slice(&line).ok()
}

/// Hands answers to who waits for them and news to the agent, until the shim is gone.
async fn listen(mut reader: BufReader<OwnedReadHalf>, waiting: Waiting, news: mpsc::Sender<SandboxEvent>) {
    while let Some(message) = next(&mut reader).await {
        match message {
            Message::Answer { number, result } => {
                let who = waiting.lock().remove(&number);
                if let Some(who) = who {
                    let _ = who.send(result);
                }
            }
            Message::Changed(status) => {
                // Never wait here: answers must come through whether or not somebody takes the news.
                if let Err(mpsc::error::TrySendError::Full(_)) = news.try_send(SandboxEvent::Changed(status)) {
                    tracing::warn!("news of a container was dropped: too many wait to be taken");
                }
            }
            Message::Hello { .. } => {}
        }
    }
    // Whoever waits learns it by the dropped senders.
    waiting.lock().clear();
    let _ = news.send(SandboxEvent::Lost).await;
}

/// Writes requests. A task of its own, so that one who stops waiting does not leave half a line behind.
async fn speak(mut writer: OwnedWriteHalf, waiting: Waiting, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = queue.recv().await {
        if writer.write_all(&line).await.is_err() {
            break;
        }
    }
    queue.close();
    waiting.lock().clear();
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

async fn clean_up_aside(config: &SandboxConfig) -> Result<(), SandboxError> {
    let config = config.clone();
    tokio::task::spawn_blocking(move || clean_up(&config)).await.map_err(|_| SandboxError::Gone)?
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
    for left in ["containers", "state", BASE] {
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
