//! What a pod's machine looks like from outside: `status` as Kubernetes shapes it. Pure.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/>; where that page is silent, what the
//! kubelet can be observed to write.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use mainstay_model::fencing;

use crate::pod::container::{Container, Phase, Role, Termination};
use crate::pod::ending::Why;
use crate::pod::machine::{Machine, Sandbox};
use crate::pod::qos;
use crate::pod::resize::RESIZE_CONDITIONS;

/// The prefix of container ids in statuses.
pub const ID_SCHEME: &str = "mainstay://";

/// The conditions this agent owns; all others are someone else's and are kept as they are.
const OWN: [&str; 5] = ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready", "PodScheduled"];

/// The condition of a pod that ends for a reason that is not its own.
const DISRUPTED: &str = "DisruptionTarget";

/// What a status says about the node.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// The node's address.
    pub host_ip: String,
}

impl Machine {
    /// The pod's status. `last` is the status as last computed: its transition times hold where nothing changed.
    pub fn status(&self, node: &NodeFacts, last: Option<&core::PodStatus>, now: Timestamp) -> core::PodStatus {
        let seen = self.pod.status.as_ref();
        let phase = self.phase();
        let statuses = |of: fn(Role) -> bool| -> Vec<_> {
            let wanted = self.containers.iter().enumerate().filter(|(_, c)| of(c.role));
            wanted.map(|(index, container)| self.container_status(index, container)).collect()
        };
        let (init, main) = (statuses(Role::is_init), statuses(|role| role == Role::Main));
        let ephemeral = statuses(|role| role == Role::Ephemeral);
        let (reason, message) = match self.ending() {
            Some(Why::Deadline) => {
                (Some("DeadlineExceeded"), "Pod was active on the node longer than the specified deadline")
            }
            Some(Why::Stopped) => {
                let stopped = self.stopped.as_ref();
                (stopped.map(|stopped| stopped.reason.name()), stopped.map_or("", |stopped| &stopped.message))
            }
            Some(Why::Fenced) => (Some(fencing::REASON), "The node was cut off, and the pod must not run twice"),
            _ => (None, ""),
        };
        let host_network = self.pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
        let ip = if host_network { Some(node.host_ip.clone()) } else { self.ip.map(|ip| ip.to_string()) };
        let qos = seen.and_then(|status| status.qos_class.clone());
        core::PodStatus {
            conditions: Some(self.conditions(phase, &init, &main, last.or(seen), now)),
            container_statuses: Some(main),
            init_container_statuses: (!init.is_empty()).then_some(init),
            ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
            host_ip: Some(node.host_ip.clone()),
            host_ips: Some(vec![core::HostIP { ip: node.host_ip.clone() }]),
            pod_ips: ip.clone().map(|ip| vec![core::PodIP { ip }]),
            pod_ip: ip,
            phase: Some(phase.to_owned()),
            qos_class: qos.or_else(|| self.pod.spec.as_ref().map(|spec| qos::class_of(spec).name().to_owned())),
            start_time: Some(time(self.started_at)),
            observed_generation: self.pod.metadata.generation,
            reason: reason.map(str::to_owned),
            message: reason.map(|_| message.to_owned()),
            nominated_node_name: seen.and_then(|status| status.nominated_node_name.clone()),
            ..core::PodStatus::default()
        }
    }

    /// Whether a pod that comes to its end has no container running any more.
    fn is_down(&self) -> bool {
        self.ending.is_some() && !self.containers.iter().any(Container::is_up)
    }

    /// `status.phase`.
    fn phase(&self) -> &'static str {
        let main = || self.containers.iter().filter(|container| container.role == Role::Main);
        let ended = |container: &Container| match &container.phase {
            Phase::Terminated(end) => Some(end.exit_code),
            Phase::Waiting(_) => container.last.as_ref().map(|end| end.exit_code),
            _ => None,
        };
        if self.is_down() {
            let stopped = matches!(self.ending(), Some(Why::Deadline | Why::Stopped | Why::Fenced));
            let well = !stopped && main().all(|container| ended(container) == Some(0));
            return if well { "Succeeded" } else { "Failed" };
        }
        let waiting = main().any(|c| !matches!(c.phase, Phase::Running(_)) && ended(c).is_none());
        if !self.initialized && !main().any(|c| c.is_up() || ended(c).is_some()) || waiting {
            "Pending"
        } else {
            "Running"
        }
    }

    fn container_status(&self, index: usize, container: &Container) -> core::ContainerStatus {
        let spec = self.spec(index);
        let current = match &container.phase {
            Phase::Running(running) => Some((running.id.as_str(), running.image_id.as_str())),
            Phase::Terminated(end) => Some((end.id.as_str(), end.image_id.as_str())),
            _ => container.last.as_ref().map(|end| (end.id.as_str(), end.image_id.as_str())),
        };
        let running = container.running();
        let sized = container.role != Role::Ephemeral && running.is_some();
        let completed = matches!(&container.phase, Phase::Terminated(end) if end.exit_code == 0);
        core::ContainerStatus {
            name: container.name.clone(),
            image: spec.and_then(|spec| spec.image.clone()).unwrap_or_default(),
            image_id: current.map(|(_, image)| image.to_owned()).unwrap_or_default(),
            container_id: current.filter(|(id, _)| !id.is_empty()).map(|(id, _)| format!("{ID_SCHEME}{id}")),
            ready: match container.role {
                Role::Init => completed,
                Role::Main | Role::Sidecar => running.is_some_and(|running| running.ready),
                Role::Ephemeral => false,
            },
            started: (container.role != Role::Ephemeral)
                .then(|| running.is_some_and(|running| container.role == Role::Init || running.started)),
            allocated_resources: spec.and_then(|spec| spec.resources.as_ref()?.requests.clone()).filter(|_| sized),
            resources: running.and_then(|running| running.resources.clone()).filter(|_| sized),
            restart_count: i32::try_from(container.attempt).unwrap_or(i32::MAX),
            state: Some(self.state(container)),
            last_state: Some(match (&container.last, &container.phase) {
                (Some(end), phase) if !matches!(phase, Phase::Terminated(now) if now == end) => terminated(end),
                _ => core::ContainerState::default(),
            }),
            ..core::ContainerStatus::default()
        }
    }

    fn state(&self, container: &Container) -> core::ContainerState {
        let has_init = self.containers.iter().any(|container| container.role.is_init());
        let turn = if has_init && !self.initialized && container.role != Role::Ephemeral {
            "PodInitializing"
        } else {
            "ContainerCreating"
        };
        let (reason, message) = match &container.phase {
            Phase::Running(running) => {
                let started_at = Some(time(running.started_at));
                let running = Some(core::ContainerStateRunning { started_at });
                return core::ContainerState { running, ..core::ContainerState::default() };
            }
            Phase::Terminated(end) => return terminated(end),
            Phase::Starting => (turn, None),
            Phase::Waiting(waiting) if waiting.reason == "ContainerCreating" => (turn, None),
            Phase::Waiting(waiting) => (waiting.reason, waiting.message.clone()),
        };
        let waiting = Some(core::ContainerStateWaiting { reason: Some(reason.to_owned()), message });
        core::ContainerState { waiting, ..core::ContainerState::default() }
    }

    fn conditions(
        &self,
        phase: &str,
        init: &[core::ContainerStatus],
        main: &[core::ContainerStatus],
        last: Option<&core::PodStatus>,
        now: Timestamp,
    ) -> Vec<core::PodCondition> {
        let succeeded = phase == "Succeeded";
        let mut incomplete = Vec::new();
        for (container, status) in self.containers.iter().filter(|c| c.role.is_init()).zip(init) {
            if !(container.lets_next_go() || self.initialized && container.role == Role::Sidecar || succeeded) {
                incomplete.push(status.name.as_str());
            }
        }
        let unready: Vec<_> = main.iter().filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
        let containers_ready = if succeeded || phase == "Failed" && unready.is_empty() {
            Claim::no("PodCompleted", String::new())
        } else if unready.is_empty() && incomplete.is_empty() {
            Claim::yes()
        } else {
            Claim::no("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))
        };
        let initialized = match (succeeded, incomplete.is_empty()) {
            (true, _) => Claim { status: true, reason: Some("PodCompleted"), message: None },
            (false, true) => Claim::yes(),
            (false, false) => {
                let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
                Claim::no("ContainersNotInitialized", message)
            }
        };
        let ready = if containers_ready.status { self.gates() } else { containers_ready.clone() };
        let sandbox = Claim { status: matches!(self.sandbox, Sandbox::Ready { .. }), reason: None, message: None };
        let seen = self.pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let mut all: Vec<_> = OWN
            .into_iter()
            // A pod that is here has been scheduled, whoever did it.
            .zip([sandbox, initialized, containers_ready, ready, Claim::yes()])
            .map(|(name, claim)| claim.condition(name, last, self.pod.metadata.generation, now))
            .collect();
        for (name, reason, message) in self.resize_conditions() {
            let claim = Claim { status: true, reason, message };
            all.push(claim.condition(name, last, self.pod.metadata.generation, now));
        }
        let disrupted = self.stopped.as_ref().filter(|stopped| stopped.reason.disrupts());
        if let Some(stopped) = disrupted {
            let message = Some(stopped.message.clone());
            let claim = Claim { status: true, reason: Some("TerminationByKubelet"), message };
            all.push(claim.condition(DISRUPTED, last, self.pod.metadata.generation, now));
        }
        let own = |name: &str| {
            OWN.contains(&name) || RESIZE_CONDITIONS.contains(&name) || disrupted.is_some() && name == DISRUPTED
        };
        all.extend(seen.iter().filter(|condition| !own(&condition.type_)).cloned());
        all
    }

    /// The pod's readiness gates: conditions that others set.
    fn gates(&self) -> Claim {
        let gates = self.pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_deref()).unwrap_or_default();
        let seen = self.pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        for gate in gates.iter().map(|gate| &gate.condition_type) {
            let status =
                seen.iter().find(|condition| condition.type_ == *gate).map(|condition| condition.status.as_str());
            let problem = match status {
                Some("True") => continue,
                Some(_) => format!("the status of pod readiness gate \"{gate}\" is not \"True\", but False"),
                None => format!("corresponding condition of pod readiness gate \"{gate}\" does not exist."),
            };
            return Claim::no("ReadinessGatesNotReady", problem);
        }
        Claim::yes()
    }
}

/// What a condition claims.
#[derive(Clone)]
struct Claim {
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Claim {
    fn yes() -> Self {
        Self { status: true, reason: None, message: None }
    }

    fn no(reason: &'static str, message: String) -> Self {
        Self { status: false, reason: Some(reason), message: Some(message).filter(|text| !text.is_empty()) }
    }

    fn condition(
        self,
        name: &str,
        last: Option<&core::PodStatus>,
        generation: Option<i64>,
        now: Timestamp,
    ) -> core::PodCondition {
        let status = if self.status { "True" } else { "False" };
        let before = last.and_then(|last| last.conditions.iter().flatten().find(|condition| condition.type_ == name));
        let since =
            before.filter(|before| before.status == status).and_then(|before| before.last_transition_time.clone());
        core::PodCondition {
            type_: name.to_owned(),
            status: status.to_owned(),
            reason: self.reason.map(str::to_owned),
            message: self.message,
            last_transition_time: Some(since.unwrap_or_else(|| time(now))),
            last_probe_time: None,
            observed_generation: generation,
        }
    }
}

fn terminated(end: &Termination) -> core::ContainerState {
    let terminated = Some(core::ContainerStateTerminated {
        container_id: Some(&end.id).filter(|id| !id.is_empty()).map(|id| format!("{ID_SCHEME}{id}")),
        exit_code: end.exit_code,
        signal: end.signal,
        reason: Some(end.reason.clone()),
        message: end.message.clone(),
        started_at: end.started_at.map(time),
        finished_at: Some(time(end.finished_at)),
    });
    core::ContainerState { terminated, ..core::ContainerState::default() }
}

/// A time as statuses hold it: whole seconds.
pub fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// Whether a status says Ready.
pub fn is_ready(status: &core::PodStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
