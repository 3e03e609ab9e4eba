//! The control thread: reads configurations, publishes them, opens sockets, checks health, answers the admin, and ends it all.
//!
//! # Flow
//! [`run`] takes sockets over from a process that is to be replaced, reads and compiles the configuration, starts the cores,
//! then waits for whatever comes: files that changed, signals, a successor that wants the sockets.
//!
//! # Guarantees
//! - A configuration that cannot be read changes nothing. One with problems is published without what is broken.
//! - On SIGTERM no new connection is taken, requests in flight are finished (at most `drain`), then the process ends.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::inotify;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};

use crate::access_log::AccessLog;
use crate::checks::Checks;
use crate::cluster::{self, ClusterOptions, World};
use crate::config::{self, Compiled, ConfigError, Objects, TlsMemo, source};
use crate::core::{Core, CoreOptions, Live};
use crate::registry::{Registry, Shared};
use crate::sockets::Sockets;
use crate::trace::{TraceOptions, Tracer};
use crate::{acme, admin};

/// Quiet time after a change of files before they are read: editors and copies change them in several steps.
const SETTLE: Duration = Duration::from_millis(20);
/// Between two readings there is so many times the time that the first one took: a configuration that changes all the time takes
/// no more than a fifth of a core from the traffic.
const REST_FACTOR: u32 = 4;
/// How often names of backends are looked up again.
const LOOK_UP: Duration = Duration::from_secs(10);

/// How a gateway is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Files and directories with Gateway API objects.
    pub files: Vec<PathBuf>,
    /// The cluster whose objects are served instead of files.
    pub cluster: Option<ClusterOptions>,
    /// Addresses to listen on where a Gateway names none.
    pub addresses: Vec<IpAddr>,
    /// Threads that carry traffic.
    pub cores: usize,
    /// Where the admin listens; nowhere if `None`.
    pub admin: Option<SocketAddr>,
    /// Where probes and metrics are answered, and nothing else of the admin; nowhere if `None`.
    pub probes: Option<SocketAddr>,
    /// The zone this gateway is in, for zone-aware load balancing.
    pub zone: Option<String>,
    /// Access log: a file, or `-`.
    pub access_log: Option<PathBuf>,
    /// Template of its lines; JSON if `None`.
    pub access_log_template: Option<String>,
    /// A socket on which a successor asks for the listening sockets, and on which this process asks a predecessor.
    pub hand_over: Option<PathBuf>,
    /// Where traces go; nowhere if `None`.
    pub traces: Option<TraceOptions>,
    /// Longest time to finish requests in flight when told to stop.
    pub drain: Duration,
    /// Ports of Ingresses: HTTP and HTTPS.
    pub ingress_ports: (u16, u16),
    /// Directory where ACME accounts and certificates are kept, outside a cluster.
    pub state: PathBuf,
}

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The configuration cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No event loop or thread.
    #[error("cannot start: {0}; look at the limits on open files and processes (ulimit -a)")]
    Start(#[source] io::Error),
    /// The admin's address cannot be listened on.
    #[error("cannot listen on the admin address {0}: {1}; choose another with --admin")]
    Admin(SocketAddr, #[source] io::Error),
    /// The API cannot be used at all.
    #[error("cannot use the Kubernetes API: {0}; is the kubeconfig right?")]
    Api(#[source] Box<kube::Error>),
    /// The access log cannot be opened.
    #[error("cannot open the access log {0}: {1}")]
    AccessLog(PathBuf, #[source] io::Error),
    /// No port could be listened on.
    #[error("cannot listen on {0}: {1}; is another program there, or does it need root?")]
    Listen(SocketAddr, #[source] io::Error),
}

/// What the control thread holds.
pub(crate) struct Control {
    pub(crate) options: Options,
    pub(crate) shared: Arc<Shared>,
    pub(crate) log: Option<AccessLog>,
    pub(crate) tracer: Option<Arc<Tracer>>,
    pub(crate) reload: Notify,
    pub(crate) acme: Rc<acme::Driver>,
    world: Option<Rc<World>>,
    tls: Rc<TlsMemo>,
    sockets: Arc<Sockets>,
    live: watch::Sender<Arc<Live>>,
    last: std::cell::RefCell<Rc<Compiled>>,
    /// Names of backends must be looked up now and then.
    has_names: std::cell::Cell<bool>,
    pub(crate) reloads: std::cell::Cell<(u64, u64)>,
}

/// Runs a gateway until it is told to stop.
pub fn run(options: Options) -> Result<(), GatewayError> {
    let runtime = local_runtime().map_err(GatewayError::Start)?;
    let outcome = runtime.block_on(start(options));
    runtime.shutdown_background();
    outcome
}

fn local_runtime() -> io::Result<LocalRuntime> {
    Builder::new_current_thread().enable_all().event_interval(256).build_local(LocalOptions::default())
}

async fn start(options: Options) -> Result<(), GatewayError> {
    let shared: Arc<Shared> = Arc::default();
    let sockets = Arc::new(Sockets::new(options.cores.max(1)));
    let predecessor = options.hand_over.as_deref().and_then(|path| sockets.take_over(path).ok());
    if let Some((count, _)) = &predecessor {
        tracing::info!(count, "took sockets over from the process before");
    }
    let log = match &options.access_log {
        Some(path) => {
            let opened = AccessLog::open(path, options.access_log_template.as_deref());
            Some(opened.map_err(|error| GatewayError::AccessLog(path.clone(), error))?)
        }
        None => None,
    };
    let (live, _) = watch::channel(Arc::<Live>::default());
    let world = match options.cluster.clone() {
        Some(cluster) => Some(World::start(cluster).map_err(|error| GatewayError::Api(Box::new(error)))?),
        None => None,
    };
    let mut signals = Signals::new().map_err(GatewayError::Start)?;
    if let Some(world) = &world {
        tokio::select! {
            () = world.synced() => {}
            () = signals.stop() => return Ok(()),
        }
    }
    let tracer = options.traces.clone().map(Tracer::new);
    if let Some(tracer) = tracer.clone() {
        tokio::task::spawn_local(tracer.run());
    }
    let control = Rc::new(Control {
        options,
        shared,
        log,
        tracer,
        reload: Notify::new(),
        acme: Rc::default(),
        world,
        tls: Rc::default(),
        sockets,
        live,
        last: std::cell::RefCell::default(),
        has_names: std::cell::Cell::default(),
        reloads: std::cell::Cell::default(),
    });
    let compiled = control.read().await?;
    let failed = control.publish(compiled);
    // In a cluster one Gateway's port must not keep the others from being served.
    if let Some((address, error)) = failed.into_iter().next().filter(|_| control.world.is_none()) {
        return Err(GatewayError::Listen(address, error));
    }
    let cores = control.start_cores().map_err(GatewayError::Start)?;
    control.start_others()?;
    control.taken().await;
    if let Some((_, predecessor)) = predecessor {
        // From here on the one before may stop accepting: its sockets' queues are ours.
        let _ = io::Write::write_all(&mut &predecessor, b"ready\n");
    }
    tracing::info!(ports = ?control.ports(), "the gateway is ready");
    control.serve(&mut signals).await?;
    control.drain(cores).await;
    Ok(())
}

impl Control {
    /// The configuration that is live.
    pub(crate) fn live(&self) -> Arc<Live> {
        self.live.borrow().clone()
    }

    /// What the last compilation found.
    pub(crate) fn last(&self) -> Rc<Compiled> {
        self.last.borrow().clone()
    }

    /// The addresses that are listened on.
    pub(crate) fn ports(&self) -> Vec<SocketAddr> {
        self.live().table.ports.iter().flat_map(|port| port.addresses.clone()).collect()
    }

    /// Starts what goes on beside the traffic: the admin, and certificates and statuses.
    fn start_others(self: &Rc<Self>) -> Result<(), GatewayError> {
        for (address, scope) in [(self.options.admin, admin::Scope::All), (self.options.probes, admin::Scope::Probes)] {
            let Some(address) = address else { continue };
            let listening = admin::start(self.clone(), address, scope);
            listening.map_err(|error| GatewayError::Admin(address, error))?;
        }
        let control = self.clone();
        match &self.world {
            Some(world) => drop(tokio::task::spawn_local(cluster::lead(control, world.clone()))),
            None => {
                let store = acme::Store::Directory(self.options.state.clone());
                tokio::task::spawn_local(async move { control.obtain(&store).await });
            }
        }
        Ok(())
    }

    /// Obtains and renews certificates, for ever.
    pub(crate) async fn obtain(&self, store: &acme::Store) {
        self.acme.run(store, || self.last().certificates.clone(), || self.reload.notify_one()).await;
    }

    async fn read(&self) -> Result<Compiled, ConfigError> {
        let sources = match &self.world {
            Some(world) => world.sources(),
            None => {
                // What was obtained, and then what people wrote: theirs counts.
                let state = &self.options.state;
                let mut sources = source::read(if state.is_dir() { std::slice::from_ref(state) } else { &[] })?;
                sources.extend(source::read(&self.options.files)?);
                sources
            }
        };
        let objects = Objects::decode(&sources);
        let names = config::names(&objects);
        self.has_names.set(!names.is_empty());
        let names = look_up(names).await;
        let (addresses, ingress_ports) = (self.options.addresses.clone(), self.options.ingress_ports);
        let (class_required, tls) = (self.world.is_some(), self.tls.clone());
        let options = config::Options { class_required, addresses, ingress_ports, names, tls };
        Ok(config::compile(&objects, &options))
    }

    /// Makes a configuration live. Ports that cannot be opened are answered; everything else is live all the same.
    fn publish(&self, compiled: Compiled) -> Vec<(SocketAddr, io::Error)> {
        for problem in &compiled.problems {
            tracing::warn!("{problem}");
        }
        let Compiled { table, statuses, problems, certificates } = compiled;
        let addresses: Vec<SocketAddr> = table.ports.iter().flat_map(|port| port.addresses.clone()).collect();
        let failed = self.sockets.set(&addresses);
        for (address, error) in &failed {
            tracing::error!(%address, %error, "cannot listen");
        }
        let version = self.live.borrow().version + 1;
        let live = Arc::new(Live { table, version, taken: AtomicUsize::new(0) });
        self.live.send_replace(live);
        *self.last.borrow_mut() = Rc::new(Compiled { statuses, problems, certificates, ..Compiled::default() });
        self.acme.compiled.notify_one();
        if let Some(world) = &self.world {
            self.shared.switch_all(world.switched());
            world.reportable.notify_one();
        }
        failed
    }

    fn start_cores(&self) -> io::Result<Vec<JoinHandle<()>>> {
        (0..self.options.cores.max(1))
            .map(|core| {
                let options = CoreOptions {
                    registry: Registry { shared: self.shared.clone(), core },
                    sockets: self.sockets.clone(),
                    zone: self.options.zone.as_deref().map(Into::into),
                    log: self.log.clone(),
                    tracer: self.tracer.clone(),
                };
                let (live, drain) = (self.live.subscribe(), self.options.drain);
                std::thread::Builder::new().name(format!("core-{core}")).spawn(move || match local_runtime() {
                    Ok(runtime) => runtime.block_on(Core::run(options, live, drain)),
                    Err(error) => tracing::error!(%error, "a core cannot start"),
                })
            })
            .collect()
    }

    /// Waits until every core has the live configuration, at most for a second; then what it does not name is forgotten.
    async fn taken(&self) {
        let live = self.live();
        let end = Instant::now() + Duration::from_secs(1);
        while live.taken.load(Ordering::Acquire) < self.options.cores.max(1) && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.shared.retain(&live.table);
    }

    /// Reads the configuration again and makes it live, if it can be read.
    pub(crate) async fn reload_now(&self, checks: &mut Checks) {
        let (good, bad) = self.reloads.get();
        match self.read().await {
            Ok(compiled) => {
                self.publish(compiled);
                self.taken().await;
                checks.set(&self.live().table, &self.shared);
                self.reloads.set((good + 1, bad));
            }
            Err(error) => {
                tracing::error!(%error, "the configuration stays as it was");
                self.reloads.set((good, bad + 1));
            }
        }
    }

    /// Waits for what comes, until it is time to stop.
    async fn serve(self: &Rc<Self>, signals: &mut Signals) -> Result<(), GatewayError> {
        let mut hang_up = signal(SignalKind::hangup()).map_err(GatewayError::Start)?;
        let mut checks = Checks::default();
        checks.set(&self.live().table, &self.shared);
        let files = watch_files(&self.options.files).map_err(GatewayError::Start)?;
        let succeeded = Rc::new(Notify::new());
        if let Some(path) = self.options.hand_over.clone() {
            tokio::task::spawn_local(offer(self.clone(), path, succeeded.clone()));
        }
        let mut look_up = tokio::time::interval(LOOK_UP);
        look_up.reset();
        let mut rested = Instant::now();
        loop {
            tokio::select! {
                () = signals.stop() => return Ok(()),
                () = succeeded.notified() => {
                    tracing::info!("a new process has taken over");
                    return Ok(());
                }
                _ = hang_up.recv() => {}
                () = self.reload.notified() => {}
                () = changed(&files, rested), if self.world.is_none() => {}
                () = self.world_changed(rested) => {}
                _ = look_up.tick(), if self.has_names.get() => {}
            }
            let begun = Instant::now();
            self.reload_now(&mut checks).await;
            rested = Instant::now() + begun.elapsed() * REST_FACTOR;
        }
    }

    /// Waits for a change in the cluster, and for the quiet after it.
    async fn world_changed(&self, rested: Instant) {
        let Some(world) = &self.world else { return std::future::pending().await };
        world.changed.notified().await;
        tokio::time::sleep_until(rested.max(Instant::now() + cluster::SETTLE).into()).await;
    }

    async fn drain(&self, cores: Vec<JoinHandle<()>>) {
        self.shared.draining.store(true, Ordering::Relaxed);
        self.sockets.close();
        self.live.send_modify(|_| {});
        let end = Instant::now() + self.options.drain + Duration::from_secs(1);
        while !cores.iter().all(JoinHandle::is_finished) && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The signals that end a gateway.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of them.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Offers the sockets to a successor.
async fn offer(control: Rc<Control>, path: PathBuf, succeeded: Rc<Notify>) {
    // The file may be that of a process that is no more, or that has just handed over.
    let _ = std::fs::remove_file(&path);
    let listener = match tokio::net::UnixListener::bind(&path) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(path = %path.display(), %error, "cannot offer sockets to a successor"),
    };
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let Ok(stream) = stream.into_std() else { continue };
        let sockets = control.sockets.clone();
        let handing = tokio::task::spawn_blocking(move || {
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            sockets.hand_over(&stream)?;
            // Only when the successor serves is it time to stop.
            let mut ready = [0; 6];
            io::Read::read_exact(&mut &stream, &mut ready)
        });
        match handing.await {
            Ok(Ok(())) => return succeeded.notify_one(),
            Ok(Err(error)) => tracing::warn!(%error, "a successor did not take over"),
            Err(_) => {}
        }
    }
}

/// Watches the directories that hold the files, on a thread of its own that sleeps until something happens.
fn watch_files(files: &[PathBuf]) -> io::Result<Arc<Notify>> {
    use inotify::{CreateFlags, WatchFlags};
    let events = inotify::init(CreateFlags::CLOEXEC)?;
    let flags = WatchFlags::CLOSE_WRITE | WatchFlags::MOVE | WatchFlags::DELETE | WatchFlags::CREATE;
    for path in files {
        let parent = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
        inotify::add_watch(&events, if path.is_dir() { path.as_path() } else { parent }, flags)?;
    }
    let changed: Arc<Notify> = Arc::default();
    let told = changed.clone();
    std::thread::Builder::new().name("watch-files".to_owned()).spawn(move || {
        let mut buffer = [0; 4096];
        // What has changed does not matter: everything is read again.
        while rustix::io::read(&events, &mut buffer).is_ok_and(|count| count > 0) {
            told.notify_one();
        }
    })?;
    Ok(changed)
}

/// Waits for a change, and for the quiet after it.
async fn changed(files: &Notify, rested: Instant) {
    files.notified().await;
    tokio::time::sleep_until(rested.max(Instant::now() + SETTLE).into()).await;
}

async fn look_up(names: Vec<String>) -> BTreeMap<String, Vec<IpAddr>> {
    let mut found = BTreeMap::new();
    for name in names {
        let answer = tokio::net::lookup_host((name.as_str(), 0)).await;
        match answer.map(Iterator::collect::<Vec<_>>) {
            Ok(addresses) => {
                let mut addresses: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).collect();
                addresses.sort();
                addresses.dedup();
                found.insert(name, addresses);
            }
            Err(error) => tracing::warn!(name, %error, "cannot look up the name of a backend"),
        }
    }
    found
}

/// Answers a request of the admin's own small HTTP, for `top` and `degrade`.
///
/// # Errors
/// Nobody answers there, or not with success.
pub async fn ask_admin(address: SocketAddr, method: &str, path: &str) -> io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let request = format!("{method} {path} HTTP/1.0\r\nhost: {address}\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.split(' ').nth(1).is_some_and(|status| status.starts_with('2')) {
        Ok(body.to_owned())
    } else {
        Err(io::Error::other(format!("{}: {}", head.lines().next().unwrap_or_default(), body.trim())))
    }
}
