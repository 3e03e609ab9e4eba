//! One container of a pod, as the machine knows it. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use serde::{Deserialize, Serialize};

use crate::pod::backoff::Backoff;
use crate::pod::clock::{earliest, later};
use crate::pod::io::{Exit, Instance};
use crate::pod::probe::{Probe, ProbeKind, Verdict};
use crate::pod::resize::Resize;

/// What a container is to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to completion before the next one.
    Init,
    /// A restartable init container: has to have started before the next one, and runs as long as the pod.
    Sidecar,
    /// One of `spec.containers`.
    Main,
    /// Put into the running pod for debugging: runs once, and counts for nothing.
    Ephemeral,
}

impl Role {
    /// Whether it is one of `spec.initContainers`.
    pub fn is_init(self) -> bool {
        matches!(self, Self::Init | Self::Sidecar)
    }
}

/// A container's past and present.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// What it is to its pod.
    pub role: Role,
    /// How often it was restarted.
    pub attempt: u32,
    /// Whether it ever came as far as to count: its next start is a restart.
    pub started_before: bool,
    /// Where it is now.
    pub phase: Phase,
    /// How the previous instance ended.
    pub last: Option<Termination>,
    /// How long the next restart waits.
    pub backoff: Backoff,
    /// Starts in a row that failed before a process ran: they wait longer each time.
    pub start_failures: u32,
}

/// Where a container is.
#[derive(Debug, Clone)]
pub enum Phase {
    /// Not running, not given up.
    Waiting(Waiting),
    /// A start is under way.
    Starting,
    /// A process runs.
    Running(Box<Running>),
    /// It ended.
    Terminated(Termination),
}

/// Why a container is not running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// As in `state.waiting.reason`.
    pub reason: &'static str,
    /// As in `state.waiting.message`.
    pub message: Option<String>,
    /// When to try (again); none means as soon as it is its turn.
    pub retry_at: Option<Timestamp>,
}

impl Waiting {
    /// Waiting for its turn.
    pub fn turn(role: Role) -> Phase {
        let reason = if role.is_init() { "PodInitializing" } else { "ContainerCreating" };
        Phase::Waiting(Self { reason, message: None, retry_at: None })
    }
}

/// How far the postStart hook is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostStart {
    /// Still to be run.
    Pending,
    /// Under way.
    Running,
    /// Done, or there is none.
    Done,
}

/// A running process and what is going on with it.
#[derive(Debug, Clone)]
pub struct Running {
    /// The id in the runtime.
    pub id: String,
    /// The image's identity.
    pub image_id: String,
    /// Since when.
    pub started_at: Timestamp,
    /// How far the postStart hook is.
    pub post_start: PostStart,
    /// The startup probe; made when the hook is done.
    pub startup: Option<Probe>,
    /// The liveness probe; made when the startup probe has passed.
    pub liveness: Option<Probe>,
    /// The readiness probe; made when the startup probe has passed.
    pub readiness: Option<Probe>,
    /// The hook is done and the startup probe has passed.
    pub started: bool,
    /// It takes traffic.
    pub ready: bool,
    /// It is being stopped.
    pub stop: Option<Stop>,
    /// What it may use now.
    pub resources: Option<core::ResourceRequirements>,
    /// A change of that.
    pub resize: Resize,
}

/// A stop that is under way.
#[derive(Debug, Clone)]
pub struct Stop {
    /// How far it is.
    pub stage: StopStage,
    /// When to go to the next stage.
    pub next_at: Timestamp,
}

/// The stages of a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopStage {
    /// The preStop hook runs.
    PreStop,
    /// The stop signal was sent.
    Signalled,
    /// SIGKILL was sent.
    Killed,
}

/// How an instance ended. Kept over restarts of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Termination {
    /// The id in the runtime; empty if no container was made.
    pub id: String,
    /// The image's identity.
    pub image_id: String,
    /// The exit code.
    pub exit_code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`.
    pub reason: String,
    /// The program's last words, or what went wrong.
    pub message: Option<String>,
    /// When it had started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

impl Termination {
    /// The end of a running container.
    pub fn of(running: &Running, exit: Exit) -> Self {
        let reason = match exit.code {
            _ if exit.oom_killed => "OOMKilled",
            0 => "Completed",
            _ => "Error",
        };
        Self {
            id: running.id.clone(),
            image_id: running.image_id.clone(),
            exit_code: exit.code,
            signal: exit.signal,
            reason: reason.to_owned(),
            message: exit.message.filter(|message| !message.is_empty()),
            started_at: Some(running.started_at),
            finished_at: exit.finished_at,
        }
    }

    /// The end of a container whose sandbox vanished: nobody saw how it ended.
    pub fn unknown(running: Option<&Running>, now: Timestamp) -> Self {
        Self {
            id: running.map(|running| running.id.clone()).unwrap_or_default(),
            image_id: running.map(|running| running.image_id.clone()).unwrap_or_default(),
            exit_code: 137,
            signal: None,
            reason: "ContainerStatusUnknown".to_owned(),
            message: Some("The container could not be located when the pod's sandbox was lost".to_owned()),
            started_at: running.map(|running| running.started_at),
            finished_at: now,
        }
    }

    /// A container whose program could not be started; containerd gives these exit code 128.
    pub fn start_error(message: String, now: Timestamp) -> Self {
        Self {
            id: String::new(),
            image_id: String::new(),
            exit_code: 128,
            signal: None,
            reason: "StartError".to_owned(),
            message: Some(message),
            started_at: None,
            finished_at: now,
        }
    }
}

impl Container {
    /// A container that never ran.
    pub fn new(name: &str, role: Role) -> Self {
        Self {
            name: name.to_owned(),
            role,
            attempt: 0,
            started_before: false,
            phase: Waiting::turn(role),
            last: None,
            backoff: Backoff::default(),
            start_failures: 0,
        }
    }

    /// The present instance.
    pub fn instance(&self) -> Instance {
        Instance { container: self.name.clone(), attempt: self.attempt }
    }

    /// The running process, if there is one.
    pub fn running(&self) -> Option<&Running> {
        if let Phase::Running(running) = &self.phase { Some(running) } else { None }
    }

    /// The running process, if there is one.
    pub fn running_mut(&mut self) -> Option<&mut Running> {
        if let Phase::Running(running) = &mut self.phase { Some(running) } else { None }
    }

    /// Whether a process runs or may be about to.
    pub fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Running(_) | Phase::Starting)
    }

    /// Whether it lets the next init container go ahead.
    pub fn lets_next_go(&self) -> bool {
        match (&self.phase, self.role) {
            (Phase::Terminated(end), Role::Init) => end.exit_code == 0,
            (Phase::Running(running), Role::Sidecar) => running.started,
            _ => false,
        }
    }

    /// When something is due after `now` without anything happening. A container that is going down is only waited for.
    pub fn next_wake(&self, now: Timestamp, ending: bool) -> Option<Timestamp> {
        let later = |at: &Timestamp| *at > now;
        match &self.phase {
            Phase::Waiting(waiting) if !ending => waiting.retry_at.filter(later),
            Phase::Running(running) => {
                let judged = !ending && running.stop.is_none();
                let probes =
                    [running.startup.as_ref().filter(|_| judged), running.liveness.as_ref().filter(|_| judged)];
                let probes = probes.into_iter().chain([running.readiness.as_ref()]);
                let due = probes.flatten().filter_map(Probe::next_at).filter(later).min();
                let again = running.resize.retry_at().filter(|at| judged && later(at));
                let due = earliest(due, again);
                earliest(due, running.stop.as_ref().map(|stop| stop.next_at).filter(later))
            }
            _ => None,
        }
    }
}

impl Running {
    /// A process that runs since `started_at`.
    pub fn new(id: String, image_id: String, started_at: Timestamp, spec: &core::Container) -> Self {
        let hook = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
        Self {
            id,
            image_id,
            started_at,
            post_start: if hook.is_some() { PostStart::Pending } else { PostStart::Done },
            startup: None,
            liveness: None,
            readiness: None,
            started: false,
            ready: false,
            stop: None,
            resources: spec.resources.clone(),
            resize: Resize::None,
        }
    }

    /// The probe of a kind, if it is under way.
    pub fn probe_mut(&mut self, kind: ProbeKind) -> Option<&mut Probe> {
        match kind {
            ProbeKind::Startup => self.startup.as_mut(),
            ProbeKind::Liveness => self.liveness.as_mut(),
            ProbeKind::Readiness => self.readiness.as_mut(),
        }
    }

    /// Goes on from hook to startup probe to the other two, and derives `started` and `ready`.
    pub fn advance(&mut self, spec: &core::Container, now: Timestamp) {
        if self.post_start != PostStart::Done {
            return;
        }
        if !self.started {
            if let (None, Some(probe)) = (&self.startup, &spec.startup_probe) {
                self.startup = Some(Probe::new(ProbeKind::Startup, probe, self.started_at.max(now)));
            }
            self.started = self.startup.as_ref().is_none_or(|probe| probe.verdict() == Verdict::Passing);
            if !self.started {
                return;
            }
            self.startup = None;
            // The initial delays count from the container's start, but nothing runs before startup has passed.
            let since = |spec: &core::Probe| later(now, -self.age(now, spec));
            let probe = |kind, spec: Option<&core::Probe>| spec.map(|spec| Probe::new(kind, spec, since(spec)));
            let liveness = probe(ProbeKind::Liveness, spec.liveness_probe.as_ref());
            let readiness = probe(ProbeKind::Readiness, spec.readiness_probe.as_ref());
            (self.liveness, self.readiness) = (liveness, readiness);
        }
        self.ready = match &self.readiness {
            None => true,
            Some(probe) => probe.verdict() == Verdict::Passing || (self.ready && probe.verdict() == Verdict::Unknown),
        };
    }

    /// How much of a probe's initial delay has already passed.
    fn age(&self, now: Timestamp, spec: &core::Probe) -> SignedDuration {
        let delay = SignedDuration::from_secs(i64::from(spec.initial_delay_seconds.unwrap_or(0).max(0)));
        now.duration_since(self.started_at).clamp(SignedDuration::ZERO, delay)
    }
}
