//! What a pod's machine takes in and what it asks for.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use serde::{Deserialize, Serialize};

use crate::pod::probe::ProbeKind;
use crate::pod::resize::Refused;

/// One start of one container: its name and how often it had been restarted before.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Instance {
    /// The container's name.
    pub container: String,
    /// 0 for the first start.
    pub attempt: u32,
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.container, self.attempt)
    }
}

/// How a container's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The exit code; 128 + the signal's number for a process that a signal ended.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel's out-of-memory killer struck in the container's cgroup.
    pub oom_killed: bool,
    /// When it ended.
    pub finished_at: Timestamp,
    /// What the program left as its termination message.
    pub message: Option<String>,
}

/// Why a container did not come to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartFailure {
    /// Something the specification refers to is missing or wrong (`CreateContainerConfigError`).
    Config(String),
    /// A volume could not be made (the container goes on being created, and an event says so).
    Volume(String),
    /// The image is not there (`ErrImagePull`, then `ImagePullBackOff`).
    Image(String),
    /// The image cannot be had at all: the reason as statuses name it (`InvalidImageName`, `ErrImageNeverPull`), and why.
    NoImage(&'static str, String),
    /// The container could not be created or its program could not be executed (`StartError`).
    Run(String),
}

impl fmt::Display for StartFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Config(text) | Self::Volume(text) | Self::Image(text) | Self::NoImage(_, text) | Self::Run(text)) =
            self;
        f.write_str(text)
    }
}

/// Why a node itself puts an end to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// The node is short of something, or the pod took more than it may.
    Evicted,
    /// The pod came to a node that is short of something, and never ran.
    Refused,
    /// The pod came to a node that shuts down, and never ran.
    RefusedAtShutdown,
    /// The node shuts down.
    Shutdown,
}

impl StopReason {
    /// Whether something that ran was stopped.
    pub fn disrupts(self) -> bool {
        matches!(self, Self::Evicted | Self::Shutdown)
    }

    /// As in `status.reason`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Evicted | Self::Refused => "Evicted",
            Self::RefusedAtShutdown => "NodeShutdown",
            Self::Shutdown => "Terminated",
        }
    }
}

/// An end that the node itself puts to a pod, remembered as long as the pod is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// Why.
    pub reason: StopReason,
    /// Why, in words: as in `status.message`.
    pub message: String,
    /// How long its containers get; never longer than the pod's own grace period.
    pub grace_seconds: i64,
}

impl Stopped {
    /// An eviction.
    pub fn evicted(message: String, grace: SignedDuration) -> Self {
        Self { reason: StopReason::Evicted, message, grace_seconds: grace.as_secs() }
    }

    /// A pod that is not run.
    pub fn refused(reason: StopReason, message: String) -> Self {
        Self { reason, message, grace_seconds: 0 }
    }

    /// The node shuts down.
    pub fn shutdown(grace: SignedDuration) -> Self {
        let message = "Pod was terminated in response to imminent node shutdown.".to_owned();
        Self { reason: StopReason::Shutdown, message, grace_seconds: grace.as_secs() }
    }
}

/// Which of a container's two hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Right after the start.
    PostStart,
    /// Before SIGTERM.
    PreStop,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// The pod as the API server has it.
    Pod(Arc<Pod>),
    /// The pod is no longer in the API.
    Gone,
    /// The shim has stopped the pod for good, because the node was cut off.
    Fenced,
    /// The node puts an end to it.
    Stop(Stopped),
    /// The sandbox stands and has its address (none if the pod uses the node's network).
    SandboxReady {
        /// The pod's address.
        ip: Option<Ipv4Addr>,
    },
    /// The sandbox could not be made; what there was has been cleaned up.
    SandboxFailed(String),
    /// The sandbox vanished, and with it every container; what remained has been cleaned up.
    SandboxLost,
    /// The sandbox was stopped as asked.
    SandboxStopped,
    /// A container runs.
    Started {
        /// Which.
        instance: Instance,
        /// Its id in the runtime.
        id: String,
        /// The image it was made from, as the runtime identifies it.
        image_id: String,
        /// Since when.
        at: Timestamp,
    },
    /// A container did not come to run.
    StartFailed(Instance, StartFailure),
    /// A container ended.
    Exited(Instance, Exit),
    /// A hook ended; with what went wrong, if something did.
    HookDone(Instance, Hook, Option<String>),
    /// A probe's attempt ended; with what went wrong, if something did.
    Probed(Instance, ProbeKind, Option<String>),
    /// A container may use something else now, or may not.
    Resized(Instance, Result<(), Refused>),
    /// The time that [`Machine::next_wake`](crate::pod::machine::Machine::next_wake) named has come.
    Tick,
}

/// Something to be done. Every one but `Signal` and `Event` is answered by an input.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make the pod's sandbox: `SandboxReady` or `SandboxFailed`.
    CreateSandbox,
    /// Start a container: `Started` or `StartFailed`.
    Start(Instance),
    /// Run a hook for at most this long: `HookDone`.
    Hook(Instance, Hook, Duration),
    /// Try a probe for at most this long: `Probed`.
    Probe(Instance, ProbeKind, Duration),
    /// Send a signal to a container's first process; sooner or later `Exited` follows.
    Signal(Instance, Signal),
    /// Let a running container use what its specification says now: `Resized`.
    Resize(Instance, Option<Box<ResourceRequirements>>),
    /// Take the sandbox down: `SandboxStopped`.
    StopSandbox,
    /// Write the final status, delete the pod from the API for good and forget it here.
    DeletePod,
    /// Forget a pod that is no longer in the API.
    Forget,
    /// Tell people.
    Event(PodEvent),
}

/// A signal to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// The container's stop signal; by default SIGTERM.
    Stop(Option<String>),
    /// SIGKILL.
    Kill,
}

/// An event about a pod, or about one of its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEvent {
    /// Whether something is wrong (`Warning`) or not (`Normal`).
    pub warning: bool,
    /// The machine-readable reason, as the kubelet names it.
    pub reason: &'static str,
    /// What happened.
    pub message: String,
    /// The container it is about.
    pub container: Option<String>,
}

impl PodEvent {
    /// A `Normal` event about a container.
    pub fn normal(reason: &'static str, container: &str, message: String) -> Self {
        Self { warning: false, reason, message, container: Some(container.to_owned()) }
    }

    /// A `Warning` event about a container.
    pub fn warning(reason: &'static str, container: &str, message: String) -> Self {
        Self { warning: true, reason, message, container: Some(container.to_owned()) }
    }
}
