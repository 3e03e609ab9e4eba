//! The life of one pod as a state machine. Pure: no I/O, no async, no clock.
//!
//! Flow: [`Machine::step`] takes in one [`Input`], then looks at the whole pod and returns what to do now; see `advance`
//! for the way up (sandbox, init containers, containers, hooks, probes, restarts) and `ending` for the way down.
//! [`Machine::next_wake`] says when to come back without news.
//!
//! Guarantees: at most one start, hook and attempt of a probe is under way per container; answers about an instance that
//! is no longer the present one are ignored; after an ending has begun nothing is started; the same inputs at the same
//! times give the same actions.
//!
//! Deliberately absent: a change of a running container's image.

use std::net::Ipv4Addr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;

use crate::pod::clock::later;
use crate::pod::container::{Container, Phase, PostStart, Role, Running, Termination, Waiting};
use crate::pod::ending::Ending;
use crate::pod::io::{Action, Exit, Hook, Input, Instance, PodEvent, StartFailure, Stopped};
use crate::pod::probe::ProbeKind;

/// Where the sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sandbox {
    /// There is none; try at the given time, or at once.
    Absent {
        /// Not before this time.
        retry_at: Option<Timestamp>,
    },
    /// Being made.
    Creating,
    /// It stands; with the pod's address, unless it shares the node's network.
    Ready {
        /// The pod's address.
        ip: Option<Ipv4Addr>,
    },
    /// Being taken down.
    Stopping,
    /// Taken down for good.
    Stopped,
}

/// The life of one pod.
#[derive(Debug, Clone)]
pub struct Machine {
    pub(super) pod: Arc<core::Pod>,
    pub(super) sandbox: Sandbox,
    pub(super) sandbox_failures: u32,
    /// The pod's address; kept when the sandbox is gone, because the status still shows it.
    pub(super) ip: Option<Ipv4Addr>,
    /// Init containers in their order, then the others, then the ephemeral ones.
    pub(super) containers: Vec<Container>,
    /// The pod's ephemeral containers, in the terms of all others.
    ephemeral: Vec<core::Container>,
    /// All init containers are through; latched until the sandbox is lost.
    pub(super) initialized: bool,
    pub(super) started_at: Timestamp,
    pub(super) ending: Option<Ending>,
    /// The time of the last step.
    stepped_at: Timestamp,
    /// The end that the node put to it, if it did.
    pub(super) stopped: Option<Stopped>,
}

/// The first wait after a failed start of sandbox or container, doubled up to [`START_RETRY_MAX`].
const START_RETRY: SignedDuration = SignedDuration::from_millis(500);
const START_RETRY_MAX: SignedDuration = SignedDuration::from_secs(10);
/// The same for volumes: often what is missing is about to be made.
const VOLUME_RETRY: SignedDuration = SignedDuration::from_millis(100);
/// The same for images, whose registry may be far away.
const IMAGE_RETRY: SignedDuration = SignedDuration::from_secs(10);
const IMAGE_RETRY_MAX: SignedDuration = SignedDuration::from_secs(300);

impl Machine {
    /// A pod that was just bound to this node.
    pub fn new(pod: Arc<core::Pod>, now: Timestamp) -> Self {
        let ephemeral = ephemeral(&pod);
        let containers = roles(&pod).map(|(spec, role)| Container::new(&spec.name, role));
        let further = ephemeral.iter().map(|spec| Container::new(&spec.name, Role::Ephemeral));
        let containers = containers.chain(further).collect();
        let started_at = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map_or(now, |time| time.0);
        Self {
            pod,
            sandbox: Sandbox::Absent { retry_at: None },
            sandbox_failures: 0,
            ip: None,
            containers,
            ephemeral,
            initialized: false,
            started_at,
            ending: None,
            stepped_at: now,
            stopped: None,
        }
    }

    /// Takes in what happened and says what to do.
    pub fn step(&mut self, input: Input, now: Timestamp) -> Vec<Action> {
        self.stepped_at = now;
        let mut actions = Vec::new();
        self.take_in(input, now, &mut actions);
        self.advance(now, &mut actions);
        actions
    }

    /// When [`Input::Tick`] is due. It may be past: what came due since the last step is due at once, not forgotten.
    pub fn next_wake(&self) -> Option<Timestamp> {
        let now = self.stepped_at;
        let ending = self.ending.is_some();
        let sandbox = match self.sandbox {
            Sandbox::Absent { retry_at } => retry_at,
            _ => None,
        };
        let own = [sandbox, self.active_deadline()].into_iter().flatten().filter(|at| !ending && *at > now);
        own.chain(self.containers.iter().filter_map(|container| container.next_wake(now, ending))).min()
    }

    /// Whether the sandbox is being taken down as asked.
    pub fn is_stopping(&self) -> bool {
        self.sandbox == Sandbox::Stopping
    }

    /// The pod as last taken in.
    pub fn pod(&self) -> &Arc<core::Pod> {
        &self.pod
    }

    /// The present instance of a container and its running process.
    pub fn running(&self, name: &str) -> Option<(Instance, &Running)> {
        let container = self.containers.iter().find(|container| container.name == name)?;
        Some((container.instance(), container.running()?))
    }

    /// A container of the pod.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// The pod's address.
    pub fn ip(&self) -> Option<Ipv4Addr> {
        self.ip
    }

    /// The specification of the container at `index`.
    pub(super) fn spec(&self, index: usize) -> Option<&core::Container> {
        let spec = self.pod.spec.as_ref()?;
        let init = spec.init_containers.as_deref().unwrap_or_default();
        init.iter().chain(&spec.containers).chain(&self.ephemeral).nth(index)
    }

    /// The specification of a container of any sort.
    pub fn spec_of(&self, name: &str) -> Option<&core::Container> {
        self.containers.iter().position(|container| container.name == name).and_then(|index| self.spec(index))
    }

    /// The specifications of all containers.
    pub fn specs(&self) -> impl Iterator<Item = &core::Container> {
        (0..self.containers.len()).filter_map(|index| self.spec(index))
    }

    /// The pod as the API has it now; ephemeral containers may have come.
    fn renew(&mut self, pod: Arc<core::Pod>) {
        self.ephemeral = ephemeral(&pod);
        self.pod = pod;
        for spec in &self.ephemeral {
            if !self.containers.iter().any(|container| container.name == spec.name) {
                self.containers.push(Container::new(&spec.name, Role::Ephemeral));
            }
        }
    }

    fn take_in(&mut self, input: Input, now: Timestamp, actions: &mut Vec<Action>) {
        match input {
            Input::Pod(pod) => self.renew(pod),
            Input::Gone => self.end_gone(now),
            Input::Fenced => self.end_fenced(now, actions),
            Input::Stop(stopped) => self.end_stopped(stopped, now, actions),
            Input::SandboxReady { ip } => {
                (self.sandbox, self.sandbox_failures, self.ip) = (Sandbox::Ready { ip }, 0, ip);
            }
            Input::SandboxFailed(message) => self.sandbox_failed(&message, now, actions),
            Input::SandboxLost => self.sandbox_lost(now, actions),
            Input::SandboxStopped => self.sandbox = Sandbox::Stopped,
            Input::Started { instance, id, image_id, at } => {
                self.container_started(&instance, id, image_id, at, actions);
            }
            Input::StartFailed(instance, failure) => self.start_failed(&instance, failure, now, actions),
            Input::Exited(instance, exit) => self.exited(&instance, exit),
            Input::HookDone(instance, hook, error) => self.hook_done(&instance, hook, error.as_deref(), now, actions),
            Input::Probed(instance, kind, error) => self.probed(&instance, kind, error, now, actions),
            Input::Resized(instance, result) => self.resized(&instance, result, now, actions),
            Input::Tick => {}
        }
    }

    pub(super) fn find(&self, instance: &Instance) -> Option<usize> {
        let is_it = |c: &Container| c.name == instance.container && c.attempt == instance.attempt;
        self.containers.iter().position(is_it)
    }

    fn sandbox_failed(&mut self, message: &str, now: Timestamp, actions: &mut Vec<Action>) {
        let retry_at = later(now, doubled(START_RETRY, START_RETRY_MAX, self.sandbox_failures));
        self.sandbox_failures = self.sandbox_failures.saturating_add(1);
        self.sandbox = Sandbox::Absent { retry_at: Some(retry_at) };
        let message = format!("Failed to create pod sandbox: {message}");
        actions.push(Action::Event(PodEvent {
            warning: true,
            reason: "FailedCreatePodSandBox",
            message,
            container: None,
        }));
    }

    fn sandbox_lost(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        if matches!(self.sandbox, Sandbox::Stopping | Sandbox::Stopped) {
            self.sandbox = Sandbox::Stopped;
        } else {
            self.sandbox = Sandbox::Absent { retry_at: None };
        }
        if self.ending.is_none() {
            let message = "Pod sandbox changed, it will be killed and re-created.".to_owned();
            actions.push(Action::Event(PodEvent {
                warning: false,
                reason: "SandboxChanged",
                message,
                container: None,
            }));
        }
        self.initialized = false;
        for container in &mut self.containers {
            if container.is_up() {
                let unknown = Termination::unknown(container.running(), now);
                container.phase = Phase::Terminated(unknown);
            } else if let (Phase::Terminated(end), Role::Init) = (&container.phase, container.role)
                && end.exit_code == 0
            {
                // Init containers prepare a sandbox; a new one has to be prepared again.
                container.last = Some(end.clone());
                container.phase = Waiting::turn(Role::Init);
            }
        }
    }

    fn container_started(
        &mut self,
        instance: &Instance,
        id: String,
        image_id: String,
        at: Timestamp,
        out: &mut Vec<Action>,
    ) {
        let Some(index) = self.find(instance) else { return };
        let Some(running) = self.spec(index).map(|spec| Running::new(id, image_id, at, spec)) else { return };
        let container = &mut self.containers[index];
        if !matches!(container.phase, Phase::Starting) {
            return;
        }
        container.start_failures = 0;
        container.started_before = true;
        container.phase = Phase::Running(Box::new(running));
        let name = &instance.container;
        for (reason, message) in
            [("Created", format!("Created container: {name}")), ("Started", format!("Started container {name}"))]
        {
            out.push(Action::Event(PodEvent::normal(reason, name, message)));
        }
    }

    fn start_failed(&mut self, instance: &Instance, failure: StartFailure, now: Timestamp, out: &mut Vec<Action>) {
        let Some(index) = self.find(instance) else { return };
        let image = self.spec(index).and_then(|spec| spec.image.clone()).unwrap_or_default();
        let container = &mut self.containers[index];
        if !matches!(container.phase, Phase::Starting) {
            return;
        }
        let failures = container.start_failures;
        container.start_failures = failures.saturating_add(1);
        let message = match failure {
            StartFailure::Config(message) => {
                let retry_at = Some(later(now, doubled(START_RETRY, START_RETRY_MAX, failures)));
                let reason = "CreateContainerConfigError";
                container.phase = Phase::Waiting(Waiting { reason, message: Some(message.clone()), retry_at });
                format!("Error: {message}")
            }
            StartFailure::Volume(message) => {
                let retry_at = Some(later(now, doubled(VOLUME_RETRY, START_RETRY_MAX, failures)));
                let Phase::Waiting(waiting) = Waiting::turn(container.role) else { return };
                container.phase = Phase::Waiting(Waiting { retry_at, ..waiting });
                out.push(Action::Event(PodEvent { warning: true, reason: "FailedMount", message, container: None }));
                return;
            }
            StartFailure::Image(message) => {
                let retry_at = Some(later(now, doubled(IMAGE_RETRY, IMAGE_RETRY_MAX, failures)));
                let reason = if failures == 0 { "ErrImagePull" } else { "ImagePullBackOff" };
                let shown = if failures == 0 {
                    message.clone()
                } else {
                    format!("Back-off pulling image \"{image}\": {message}")
                };
                container.phase = Phase::Waiting(Waiting { reason, message: Some(shown), retry_at });
                format!("Failed to pull image \"{image}\": {message}")
            }
            StartFailure::NoImage(reason, message) => {
                let retry_at = Some(later(now, doubled(IMAGE_RETRY, IMAGE_RETRY_MAX, failures)));
                container.phase = Phase::Waiting(Waiting { reason, message: Some(message.clone()), retry_at });
                message
            }
            StartFailure::Run(message) => {
                container.started_before = true;
                container.phase = Phase::Terminated(Termination::start_error(message.clone(), now));
                format!("Error: {message}")
            }
        };
        out.push(Action::Event(PodEvent::warning("Failed", &instance.container, message)));
    }

    fn exited(&mut self, instance: &Instance, exit: Exit) {
        let Some(index) = self.find(instance) else { return };
        let container = &mut self.containers[index];
        if let Some(running) = container.running() {
            let end = Termination::of(running, exit);
            container.phase = Phase::Terminated(end);
        }
    }

    fn hook_done(
        &mut self,
        instance: &Instance,
        hook: Hook,
        error: Option<&str>,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) {
        let Some(index) = self.find(instance) else { return };
        let reason = match hook {
            Hook::PostStart => "FailedPostStartHook",
            Hook::PreStop => "FailedPreStopHook",
        };
        if let Some(error) = error {
            out.push(Action::Event(PodEvent::warning(reason, &instance.container, error.to_owned())));
        }
        if hook == Hook::PreStop {
            self.pre_stop_done(index, now, out);
            return;
        }
        let Some(running) = self.containers[index].running_mut() else { return };
        running.post_start = PostStart::Done;
        if error.is_some() && running.stop.is_none() {
            let grace = self.grace();
            self.begin_stop(
                index,
                grace,
                format!("FailedPostStartHook: container {} will be restarted", instance.container),
                now,
                out,
            );
        }
    }

    fn probed(
        &mut self,
        instance: &Instance,
        kind: ProbeKind,
        error: Option<String>,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) {
        let Some(index) = self.find(instance) else { return };
        let Some(running) = self.containers[index].running_mut() else { return };
        let Some(probe) = running.probe_mut(kind) else { return };
        let counted = probe.finish(error.is_none(), now);
        if let Some(error) = error.filter(|_| counted) {
            let message = format!("{} probe failed: {error}", kind.name());
            out.push(Action::Event(PodEvent::warning("Unhealthy", &instance.container, message)));
        }
    }
}

/// A pod's containers with their roles: init containers in their order, then the others.
pub fn roles(pod: &core::Pod) -> impl Iterator<Item = (&core::Container, Role)> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let main = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let role = |c: &core::Container| {
        if c.restart_policy.as_deref() == Some("Always") { Role::Sidecar } else { Role::Init }
    };
    init.iter().map(move |c| (c, role(c))).chain(main.iter().map(|c| (c, Role::Main)))
}

/// A pod's ephemeral containers in the terms of all others.
pub fn ephemeral(pod: &core::Pod) -> Vec<core::Container> {
    let specs = pod.spec.iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten());
    // They have the same fields, but for the target, so that none is lost.
    specs.filter_map(|spec| serde_json::from_value(serde_json::to_value(spec).ok()?).ok()).collect()
}

fn doubled(first: SignedDuration, max: SignedDuration, times: u32) -> SignedDuration {
    (first * (1 << times.min(10))).min(max)
}
