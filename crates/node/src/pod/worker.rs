//! The task of one pod: it owns the pod's machine, feeds it and carries out what it asks for.
//!
//! Flow: wait for news (the pod in the API, an answer, the runtime, the machine's own time) → step the machine → remember
//! its state → carry out its actions as tasks of their own, whose answers come back as news → write the status if it
//! differs from the one in the API.
//!
//! Guarantees: one status write at a time, the newest status wins; readiness is written at once, other changes are
//! gathered for 10 ms; with the API unreachable everything but writing goes on.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use kube::Api;
use kube::api::{Patch, PatchParams};
use mainstay_runtime::protocol::{ContainerState, ContainerStatus};
use mainstay_runtime::sandbox::{Sandbox, SandboxEvent, recorded};
use serde_json::Value;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::context::{ContainerView, Context, PodView};
use crate::pod::container::Phase;
use crate::pod::dir::PodDir;
use crate::pod::io::{Exit, Input, Instance, StopReason, Stopped};
use crate::pod::machine::{Machine, ephemeral, roles};
use crate::pod::prepare::{Prepared, REFRESH};
use crate::pod::record::{Observed, Record};
use crate::pod::status::{NodeFacts, is_ready};
use crate::report;
use crate::server::log_file;
use crate::static_pods;
use crate::volumes;

/// News that may wait; a pod has at most a few actions per container under way.
const NEWS_MAX: usize = 64;
/// Status changes that are not about readiness are gathered for this long.
const GATHER: Duration = Duration::from_millis(10);
/// The wait after a status write that failed.
const WRITE_RETRY: Duration = Duration::from_millis(500);
/// The same patch is not sent twice within this time, should a server not keep what it is sent.
const REPEAT: Duration = Duration::from_secs(10);
/// A machine that waits for nothing is looked at this often all the same.
const IDLE: Duration = Duration::from_secs(3600);
/// Of a termination message, as Kubernetes limits it.
const MESSAGE_BYTES_MAX: u64 = 4096;
/// Of the log, where that takes the message's place.
const FALLBACK_BYTES_MAX: u64 = 2048;
/// And so many of its lines.
const FALLBACK_LINES_MAX: usize = 80;

/// What the API says about a pod.
#[derive(Debug, Clone)]
pub enum Desired {
    /// It is to be like this.
    Pod(Arc<core::Pod>),
    /// There is no such pod any more.
    Gone,
}

/// What comes back from the actions' tasks.
pub(super) enum News {
    /// For the machine.
    Input(Input),
    /// The sandbox stands.
    Sandbox(Arc<Sandbox>, Option<std::net::Ipv4Addr>),
    /// A container runs, or ran already.
    Container(Instance, ContainerStatus),
    /// The status was written, or not.
    Written(Box<kube::Result<core::Pod>>),
    /// The files made from objects are up to date, or could not be brought there.
    Refreshed,
    /// Nothing is left of the pod.
    Removed,
}

/// The task of one pod.
pub struct Worker {
    pub(super) context: Arc<Context>,
    pub(super) dir: PodDir,
    pub(super) machine: Machine,
    pub(super) sandbox: Option<Arc<Sandbox>>,
    pub(super) prepared: Arc<Mutex<Prepared>>,
    runtime_events: Option<mpsc::Receiver<SandboxEvent>>,
    desired: watch::Receiver<Desired>,
    /// What others in this agent want of the pod.
    door: mpsc::Receiver<Input>,
    news: (mpsc::Sender<News>, mpsc::Receiver<News>),
    tasks: JoinSet<()>,
    /// Container ids of instances that were started.
    pub(super) ids: HashMap<String, Instance>,
    /// Exits that were told before the start's own answer.
    early_exits: HashMap<String, ContainerStatus>,
    remembered: Record,
    writing: bool,
    write_at: Option<Instant>,
    last_patch: Option<(Value, Instant)>,
    last_status: Option<core::PodStatus>,
    /// When the files made from objects are brought up to date.
    refresh_at: Option<Instant>,
    over: bool,
}

impl Worker {
    /// The worker of a pod that was just bound to this node.
    pub fn new(context: Arc<Context>, pod: Arc<core::Pod>, desired: watch::Receiver<Desired>) -> Self {
        let dir = PodDir::new(&context.config.data_dir, pod.metadata.uid.as_deref().unwrap_or_default());
        let machine = Machine::new(pod, context.clock.now());
        Self::with(context, dir, machine, desired)
    }

    fn with(context: Arc<Context>, dir: PodDir, machine: Machine, desired: watch::Receiver<Desired>) -> Self {
        let door = context.open_door(&dir.uid());
        Self {
            door,
            context,
            dir,
            machine,
            sandbox: None,
            prepared: Arc::default(),
            runtime_events: None,
            desired,
            news: mpsc::channel(NEWS_MAX),
            tasks: JoinSet::new(),
            ids: HashMap::new(),
            early_exits: HashMap::new(),
            remembered: Record::default(),
            writing: false,
            write_at: None,
            last_patch: None,
            last_status: None,
            refresh_at: None,
            over: false,
        }
    }

    /// The worker of a pod that a former agent left behind: takes over its sandbox if that lives, cleans up if it does
    /// not. The exits that happened meanwhile are taken in before anything else.
    pub async fn adopt(
        context: Arc<Context>,
        dir: PodDir,
        pod: Arc<core::Pod>,
        record: &Record,
        desired: watch::Receiver<Desired>,
    ) -> Self {
        let now = context.clock.now();
        let adopted = Sandbox::adopt(dir.root()).await;
        let alive = match adopted {
            Ok(sandbox) => sandbox,
            Err(error) => {
                tracing::warn!(pod = %dir.uid(), %error, "sandbox not adopted; making it anew");
                None
            }
        };
        let statuses = match &alive {
            Some(sandbox) => sandbox.statuses().await.unwrap_or_default(),
            None => recorded(dir.root()),
        };
        let observed = statuses.iter().map(|status| {
            let image_id = image_id(&context, &pod, &status.name);
            let seen = Observed { id: status.id.clone(), image_id, started_at: status.started_at };
            (status.name.clone(), seen)
        });
        let observed: BTreeMap<_, _> = observed.collect();
        let machine = Machine::restore(pod, record, &observed, alive.is_some(), now);
        let lost = alive.is_none() && !machine.is_finished();
        let mut worker = Self::with(context, dir, machine, desired);
        for name in observed.keys() {
            if let Some((instance, running)) = worker.machine.running(name) {
                worker.ids.insert(running.id.clone(), instance);
            }
        }
        if let Some(sandbox) = alive {
            worker.runtime_events = sandbox.events();
            worker.sandbox = Some(Arc::new(sandbox));
            worker.plan_refresh(Duration::ZERO);
            if let Some(ip) = record.ip {
                worker.context.with_addresses(|addresses| addresses.reserve(&worker.dir.uid(), ip));
            }
        }
        for status in statuses {
            worker.container_changed(status);
        }
        if lost {
            worker.clean_up_sandbox().await;
            if worker.machine.ending().is_none() {
                worker.step(Input::SandboxLost);
            }
        }
        worker
    }

    /// Lives until nothing is left of the pod.
    pub async fn run(mut self) {
        self.step(if mainstay_runtime::fence::is_fenced(self.dir.root()) { Input::Fenced } else { Input::Tick });
        while !self.over {
            let wake = self.machine.next_wake();
            let wake = wake.map_or(IDLE, |at| self.context.clock.until(at)) + Duration::from_micros(500);
            tokio::select! {
                biased;
                changed = self.desired.changed() => {
                    let desired = self.desired.borrow_and_update().clone();
                    // A manager that is gone is an agent that ends: the pod stays as it is.
                    if changed.is_err() { return; }
                    self.renewed(desired);
                }
                Some(news) = self.news.1.recv() => self.take_news(news),
                Some(input) = self.door.recv() => self.step(input),
                event = next(&mut self.runtime_events) => match event {
                    Some(SandboxEvent::Changed(status)) => self.container_changed(status),
                    Some(SandboxEvent::Lost) | None => self.lost().await,
                },
                () = sleep_until(self.write_at) => self.write(),
                () = sleep_until(self.refresh_at) => self.refresh(),
                () = tokio::time::sleep(wake) => self.step(Input::Tick),
                Some(_) = self.tasks.join_next(), if !self.tasks.is_empty() => {}
            }
        }
        self.context.with_views(|views| views.remove(&self.dir.uid()));
        self.context.close_door(&self.dir.uid());
    }

    /// Does not run the pod at all.
    pub fn refuse(&mut self, reason: StopReason, message: String) {
        tracing::warn!(pod = %self.dir.uid(), message, "pod refused");
        self.step(Input::Stop(Stopped::refused(reason, message)));
    }

    /// The API says something new about the pod.
    fn renewed(&mut self, desired: Desired) {
        let Desired::Pod(pod) = desired else { return self.step(Input::Gone) };
        let told = |pod: &core::Pod| (pod.metadata.labels.clone(), pod.metadata.annotations.clone());
        if told(&pod) != told(self.machine.pod()) {
            self.plan_refresh(Duration::ZERO);
        }
        self.save_pod(&pod);
        self.step(Input::Pod(pod));
    }

    fn take_news(&mut self, news: News) {
        match news {
            News::Input(input) => {
                if matches!(input, Input::SandboxStopped) {
                    (self.sandbox, self.runtime_events) = (None, None);
                    self.context.with_addresses(|addresses| addresses.release(&self.dir.uid()));
                }
                if matches!(input, Input::StartFailed(..)) && mainstay_runtime::fence::is_fenced(self.dir.root()) {
                    self.step(Input::Fenced);
                }
                self.step(input);
            }
            News::Sandbox(sandbox, ip) => {
                self.runtime_events = sandbox.events();
                self.sandbox = Some(sandbox);
                self.plan_refresh(REFRESH);
                self.step(Input::SandboxReady { ip });
            }
            News::Container(instance, status) => self.container_started(instance, status),
            News::Written(result) => self.written(*result),
            News::Refreshed => self.plan_refresh(REFRESH),
            News::Removed => self.over = true,
        }
    }

    /// Files made from objects follow them as long as the sandbox stands.
    fn plan_refresh(&mut self, wait: Duration) {
        let wanted = self.sandbox.is_some() && volumes::holds_objects(self.machine.pod());
        self.refresh_at = wanted.then(|| Instant::now() + wait);
    }

    fn refresh(&mut self) {
        self.refresh_at = None;
        let preparation = self.preparation();
        self.spawn(async move {
            if let Err(error) = preparation.refresh().await {
                tracing::debug!(pod = preparation.dir.uid(), error, "files made from objects not brought up to date");
            }
            News::Refreshed
        });
    }

    fn container_started(&mut self, instance: Instance, status: ContainerStatus) {
        let id = status.id.clone();
        let started = Input::Started {
            instance,
            id: id.clone(),
            image_id: image_id(&self.context, self.machine.pod(), &status.name),
            at: status.started_at,
        };
        self.step(started);
        if matches!(status.state, ContainerState::Exited { .. }) {
            self.container_changed(status);
        } else if let Some(exit) = self.early_exits.remove(&id) {
            self.container_changed(exit);
        }
    }

    /// The runtime says how a container is; only its end is news.
    fn container_changed(&mut self, status: ContainerStatus) {
        let ContainerState::Exited { code, signal, oom_killed } = status.state else { return };
        if mainstay_runtime::fence::is_fenced(self.dir.root()) {
            self.step(Input::Fenced);
        }
        let Some(instance) = self.ids.get(&status.id).cloned() else { return };
        if self.machine.running(&instance.container).is_none_or(|(running, _)| running != instance) {
            if self.machine.container(&instance.container).is_some_and(|c| matches!(c.phase, Phase::Starting)) {
                self.early_exits.insert(status.id.clone(), status);
            }
            return;
        }
        let finished_at = status.finished_at.unwrap_or_else(|| self.context.clock.now());
        let message = self.last_words(&instance, code);
        self.ids.remove(&status.id);
        self.step(Input::Exited(instance, Exit { code, signal, oom_killed, finished_at, message }));
        // Its end is remembered now, so the runtime may forget it.
        if let Some(sandbox) = self.sandbox.clone() {
            self.spawn_quietly(async move {
                let _ = sandbox.remove_container(&status.id).await;
            });
        }
    }

    /// The termination message: what the program wrote, or the end of its log.
    fn last_words(&self, instance: &Instance, code: i32) -> Option<String> {
        let own = tail(&self.dir.termination(instance), MESSAGE_BYTES_MAX);
        if !own.is_empty() {
            return Some(own);
        }
        let spec = self.machine.spec_of(&instance.container)?;
        let wanted = spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError") && code != 0;
        wanted.then(|| log_file::plain_tail(&tail(&self.dir.log(instance), FALLBACK_BYTES_MAX), FALLBACK_LINES_MAX))
    }

    /// The shim vanished.
    async fn lost(&mut self) {
        self.runtime_events = None;
        // A shim that ends because it was told to is not lost; whoever told it says so when all is down.
        if !self.machine.is_stopping() && self.sandbox.take().is_some() {
            self.clean_up_sandbox().await;
            self.ids.clear();
            self.step(Input::SandboxLost);
        }
    }

    pub(super) fn step(&mut self, input: Input) {
        let now = self.context.clock.now();
        let actions = self.machine.step(input, now);
        self.remember();
        for action in actions {
            self.act(action);
        }
        self.show();
        self.plan_write();
    }

    fn remember(&mut self) {
        let record = self.machine.record();
        // Before the sandbox is asked for there is no directory and nothing to remember.
        if record != self.remembered && self.dir.root().exists() {
            match self.dir.save_record(&record) {
                Ok(()) => self.remembered = record,
                Err(error) => tracing::warn!(pod = %self.dir.uid(), %error, "state not remembered"),
            }
        }
    }

    pub(super) fn save_pod(&self, pod: &core::Pod) {
        if self.dir.root().exists()
            && let Err(error) = self.dir.save_pod(pod)
        {
            tracing::warn!(pod = %self.dir.uid(), %error, "pod not remembered");
        }
    }

    /// Shows the pod to the agent's server.
    fn show(&self) {
        let pod = self.machine.pod().clone();
        let view = |spec: &core::Container, container: &crate::pod::container::Container| ContainerView {
            stdin: spec.stdin.unwrap_or(false),
            waiting: if let Phase::Waiting(waiting) = &container.phase { Some(waiting.reason) } else { None },
            attempt: container.attempt,
            running: container.running().map(|running| running.id.clone()),
            since: container.running().map(|running| running.started_at),
            has_run: container.running().is_some() || container.started_before || container.attempt > 0,
        };
        let known = self
            .machine
            .specs()
            .filter_map(|spec| Some((spec.name.clone(), view(spec, self.machine.container(&spec.name)?))));
        let (containers, sandbox) = (known.collect(), self.sandbox.as_ref().map(|sandbox| sandbox.pid()));
        self.context
            .with_views(|views| views.insert(self.dir.uid(), PodView { pod: pod.clone(), containers, sandbox }));
    }

    /// Runs something beside the worker; its answer comes back as news.
    pub(super) fn spawn(&mut self, work: impl Future<Output = News> + Send + 'static) {
        let sender = self.news.0.clone();
        self.tasks.spawn(async move {
            let _ = sender.send(work.await).await;
        });
    }

    /// The pod's status now.
    pub(super) fn status(&self) -> core::PodStatus {
        let node = NodeFacts { host_ip: self.context.config.address.to_string() };
        self.machine.status(&node, self.last_status.as_ref(), self.context.clock.now())
    }

    /// Decides when the status is to be written.
    fn plan_write(&mut self) {
        let status = self.status();
        let differs = report::patch(self.machine.pod(), &status).is_some();
        if !differs || self.machine.is_over() {
            self.write_at = None;
        } else {
            let shown = self.machine.pod().status.as_ref().is_some_and(is_ready);
            let wait = if shown == is_ready(&status) { GATHER } else { Duration::ZERO };
            let at = Instant::now() + wait;
            self.write_at = Some(self.write_at.map_or(at, |planned| planned.min(at)));
        }
        self.last_status = Some(status);
    }

    fn write(&mut self) {
        self.write_at = None;
        if self.writing || self.machine.is_over() {
            return;
        }
        let Some(patch) = report::patch(self.machine.pod(), &self.status()) else { return };
        if let Some((sent, at)) = &self.last_patch
            && *sent == patch
            && at.elapsed() < REPEAT
        {
            self.write_at = Some(*at + REPEAT);
            return;
        }
        self.last_patch = Some((patch.clone(), Instant::now()));
        self.writing = true;
        let (api, name) = self.api();
        self.spawn(async move {
            News::Written(Box::new(api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await))
        });
    }

    pub(super) fn api(&self) -> (Api<core::Pod>, String) {
        let meta = &self.machine.pod().metadata;
        let namespace = meta.namespace.as_deref().unwrap_or("default");
        (Api::namespaced(self.context.config.client.clone(), namespace), meta.name.clone().unwrap_or_default())
    }

    fn written(&mut self, result: kube::Result<core::Pod>) {
        self.writing = false;
        match result {
            Ok(pod) if pod.metadata.uid.as_deref() == static_pods::api_uid(self.machine.pod()) => {
                self.context.pods.observe(pod.clone());
                if static_pods::is_static(self.machine.pod()) {
                    // What was written is the copy's; the manager brings it here.
                    return;
                }
                // Later changes may have arrived by the watch meanwhile; an older answer must not undo them.
                let revision =
                    |pod: &core::Pod| pod.metadata.resource_version.as_ref().and_then(|text| text.parse::<u64>().ok());
                if revision(&pod) >= revision(self.machine.pod()) {
                    self.step(Input::Pod(Arc::new(pod)));
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(pod = %self.dir.uid(), %error, "status not written");
                self.last_patch = None;
                self.write_at = Some(Instant::now() + WRITE_RETRY);
            }
        }
    }

    /// Runs something beside the worker that nobody waits for.
    pub(super) fn spawn_quietly(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }
}

/// How the runtime identifies the image of a container.
fn image_id(context: &Context, pod: &core::Pod, container: &str) -> String {
    let further = ephemeral(pod);
    let mut specs = roles(pod).map(|(spec, _)| spec).chain(&further);
    let image = specs.find(|spec| spec.name == container).and_then(|spec| spec.image.clone()).unwrap_or_default();
    context.images.id(&image)
}

async fn next(events: &mut Option<mpsc::Receiver<SandboxEvent>>) -> Option<SandboxEvent> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The last bytes of a file; empty if there is none.
fn tail(path: &std::path::Path, bytes_max: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let skip = file.metadata()?.len().saturating_sub(bytes_max);
        file.seek(SeekFrom::Start(skip))?;
        let mut text = Vec::new();
        file.take(bytes_max).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    read().unwrap_or_default()
}
