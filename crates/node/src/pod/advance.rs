//! The way up: sandbox, init containers, containers, hooks, probes, restarts.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;

use crate::pod::backoff::go_seconds;
use crate::pod::clock::{later, seconds};
use crate::pod::container::{Phase, PostStart, Role, Termination, Waiting};
use crate::pod::io::{Action, Hook, PodEvent};
use crate::pod::machine::{Machine, Sandbox};
use crate::pod::probe::{ProbeKind, Verdict};

/// A postStart hook that takes longer is given up; Kubernetes sets no limit, but everything here has one.
const POST_START_MAX: Duration = Duration::from_secs(600);

impl Machine {
    /// Looks at the whole pod and does what is due.
    pub(super) fn advance(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        self.note_endings(now, out);
        if self.ending.is_some() {
            self.wind_down(now, out);
        } else {
            self.bring_up(now, out);
        }
        for index in 0..self.containers.len() {
            self.tend(index, now, out);
        }
    }

    /// How the pod ended by itself, if it did: no container is left that will run again.
    pub(super) fn is_finished(&self) -> bool {
        let given_up = |index: usize, role: Role| {
            let container = &self.containers[index];
            container.role == role && matches!(&container.phase, Phase::Terminated(end) if !self.restarts(index, end))
        };
        let failed = |index: usize| {
            given_up(index, Role::Init)
                && matches!(&self.containers[index].phase, Phase::Terminated(end) if end.exit_code != 0)
        };
        let indices = 0..self.containers.len();
        let mut mains = indices.clone().filter(|index| self.containers[*index].role == Role::Main).peekable();
        indices.clone().any(failed) || (mains.peek().is_some() && mains.all(|index| given_up(index, Role::Main)))
    }

    /// Whether a container that ended like this is started again.
    ///
    /// Source: <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#container-restarts>.
    pub(super) fn restarts(&self, index: usize, end: &Termination) -> bool {
        let Some(spec) = self.spec(index) else { return false };
        for rule in spec.restart_policy_rules.iter().flatten() {
            if rule.action == "Restart"
                && rule.exit_codes.as_ref().is_some_and(|codes| exit_code_matches(codes, end.exit_code))
            {
                return true;
            }
        }
        let of_pod = self.pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
        match (spec.restart_policy.as_deref().or(of_pod).unwrap_or("Always"), self.containers[index].role) {
            ("Never", _) | (_, Role::Ephemeral) => false,
            ("OnFailure", _) | (_, Role::Init) => end.exit_code != 0,
            _ => true,
        }
    }

    fn bring_up(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        match self.sandbox {
            Sandbox::Absent { retry_at } if retry_at.is_none_or(|at| at <= now) => {
                self.sandbox = Sandbox::Creating;
                out.push(Action::CreateSandbox);
            }
            Sandbox::Ready { .. } => {
                // Whatever keeps the others from running may be what is to be looked into.
                self.each(Role::Ephemeral, |machine, index| machine.try_start(index, now, out));
                if self.initialized {
                    self.each(Role::Sidecar, |machine, index| machine.try_start(index, now, out));
                } else {
                    self.initialized = self.initialize(now, out);
                }
                if self.initialized {
                    self.each(Role::Main, |machine, index| machine.try_start(index, now, out));
                }
            }
            _ => {}
        }
    }

    fn each(&mut self, role: Role, mut act: impl FnMut(&mut Self, usize)) {
        for index in 0..self.containers.len() {
            if self.containers[index].role == role {
                act(self, index);
            }
        }
    }

    /// Init containers one after the other; whether all are through.
    fn initialize(&mut self, now: Timestamp, out: &mut Vec<Action>) -> bool {
        for index in 0..self.containers.len() {
            if !self.containers[index].role.is_init() {
                break;
            }
            // A container that just came up may have nothing to wait for.
            self.tend(index, now, out);
            if self.containers[index].lets_next_go() {
                continue;
            }
            self.try_start(index, now, out);
            return false;
        }
        true
    }

    /// Starts a container that is not up, if its policy wants it and its back-off is over.
    fn try_start(&mut self, index: usize, now: Timestamp, out: &mut Vec<Action>) {
        match &self.containers[index].phase {
            Phase::Waiting(waiting) if waiting.retry_at.is_none_or(|at| at <= now) => {}
            Phase::Terminated(end) if self.restarts(index, end) => {
                let end = end.clone();
                if !self.back_off(index, end, now, out) {
                    return;
                }
            }
            _ => return,
        }
        let container = &mut self.containers[index];
        if container.started_before {
            container.attempt = container.attempt.saturating_add(1);
            container.started_before = false;
            if let Some(end) = container.last.as_ref().filter(|end| container.role == Role::Main || end.exit_code != 0)
            {
                container.backoff.raise(end.finished_at, now);
            }
        }
        container.phase = Phase::Starting;
        out.push(Action::Start(container.instance()));
    }

    /// Moves an ended container towards its restart; whether that is due at once.
    fn back_off(&mut self, index: usize, end: Termination, now: Timestamp, out: &mut Vec<Action>) -> bool {
        let pod = self.full_name();
        let container = &mut self.containers[index];
        let (due, wait) = container.backoff.due(end.finished_at);
        container.last = Some(end);
        if due <= now {
            return true;
        }
        let name = &container.name;
        let message = format!("back-off {} restarting failed container={name} pod={pod}", go_seconds(wait));
        let event = format!("Back-off restarting failed container {name} in pod {pod}");
        out.push(Action::Event(PodEvent::warning("BackOff", name, event)));
        container.phase =
            Phase::Waiting(Waiting { reason: "CrashLoopBackOff", message: Some(message), retry_at: Some(due) });
        false
    }

    /// `name_namespace(uid)`, as the kubelet names a pod.
    fn full_name(&self) -> String {
        let meta = &self.pod.metadata;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid))
    }

    /// A running container: its hook, its probes, its stop.
    fn tend(&mut self, index: usize, now: Timestamp, out: &mut Vec<Action>) {
        let Some(spec) = self.spec(index).cloned() else { return };
        let ending = self.ending.is_some();
        let container = &mut self.containers[index];
        let instance = container.instance();
        let Some(running) = container.running_mut() else { return };
        if running.stop.is_some() {
            self.continue_stop(index, now, out);
        } else if running.post_start == PostStart::Pending && !ending {
            running.post_start = PostStart::Running;
            out.push(Action::Hook(instance.clone(), Hook::PostStart, POST_START_MAX));
        }
        let Some(running) = self.containers[index].running_mut() else { return };
        running.advance(&spec, now);
        let stopping = running.stop.is_some() || ending;
        let mut failed = None;
        for kind in [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness] {
            // A container that is being stopped is only asked whether it still takes traffic.
            if stopping && kind != ProbeKind::Readiness {
                continue;
            }
            let Some(probe) = running.probe_mut(kind) else { continue };
            if kind != ProbeKind::Readiness && probe.verdict() == Verdict::Failing {
                failed = Some(kind);
            } else if probe.begin(now) {
                let timeout = Duration::try_from(probe.timeout()).unwrap_or(Duration::from_secs(1));
                out.push(Action::Probe(instance.clone(), kind, timeout));
            }
        }
        if let Some(kind) = failed {
            self.restart_unhealthy(index, &spec, kind, now, out);
        }
        self.tend_resources(index, &spec, now, out);
    }

    fn restart_unhealthy(
        &mut self,
        index: usize,
        spec: &core::Container,
        kind: ProbeKind,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) {
        let probe = if kind == ProbeKind::Startup { &spec.startup_probe } else { &spec.liveness_probe };
        let own = probe.as_ref().and_then(|probe| probe.termination_grace_period_seconds);
        let grace = own.map_or_else(|| self.grace(), |own| seconds(Some(own), 0));
        let message = format!("Container {} failed {} probe, will be restarted", spec.name, kind.name().to_lowercase());
        self.begin_stop(index, grace, message, now, out);
    }

    /// `spec.terminationGracePeriodSeconds`.
    pub(super) fn grace(&self) -> SignedDuration {
        seconds(self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds), 30)
    }

    /// When `spec.activeDeadlineSeconds` is over.
    pub(super) fn active_deadline(&self) -> Option<Timestamp> {
        let limit = self.pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds)?;
        Some(later(self.started_at, seconds(Some(limit), 0)))
    }
}

fn exit_code_matches(codes: &core::ContainerRestartRuleOnExitCodes, code: i32) -> bool {
    let listed = codes.values.iter().flatten().any(|value| *value == code);
    match codes.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    }
}
