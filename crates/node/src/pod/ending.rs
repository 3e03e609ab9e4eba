//! The way down: preStop, stop signal, SIGKILL; containers first, sidecars after them in reverse order; then the sandbox.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination>.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mainstay_model::fencing;

use crate::pod::clock::{later, seconds};
use crate::pod::container::{Phase, Role, Stop, StopStage};
use crate::pod::io::{Action, Hook, PodEvent, Signal, StopReason, Stopped};
use crate::pod::machine::{Machine, Sandbox};

/// A pod that vanished from the API is someone else's by now, or was to be gone at once: its containers get this long.
const GONE_GRACE: SignedDuration = SignedDuration::from_secs(1);
/// What a preStop hook that used up the grace period leaves for the program, as in Kubernetes.
const GRACE_MIN: SignedDuration = SignedDuration::from_secs(2);
/// A process that survives SIGKILL hangs in the kernel; it is tried again in this interval.
const KILL_AGAIN: SignedDuration = SignedDuration::from_secs(5);

/// Why a pod comes to its end. Ordered: a later one overrides an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Its containers are through.
    Finished,
    /// `activeDeadlineSeconds` is over.
    Deadline,
    /// Its node put an end to it: an eviction, or a shutdown.
    Stopped,
    /// The node was cut off, and the pod must not run twice.
    Fenced,
    /// Someone deleted it.
    Deleted,
    /// It is no longer in the API.
    Gone,
}

/// An ending that is under way.
#[derive(Debug, Clone)]
pub struct Ending {
    /// Why.
    pub why: Why,
    /// When every container that still runs is killed.
    pub deadline: Timestamp,
    /// The grace period that the deadline follows from.
    pub grace: SignedDuration,
    /// The last action was given out; nothing is left to do.
    pub over: bool,
}

impl Machine {
    /// Looks whether the pod has come to its end.
    pub(super) fn note_endings(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        if self.pod.metadata.deletion_timestamp.is_some() {
            let grace = seconds(self.pod.metadata.deletion_grace_period_seconds, self.grace().as_secs());
            self.end(Why::Deleted, grace, now);
        }
        if self.ending.is_some() {
            return;
        }
        if self.active_deadline().is_some_and(|at| at <= now) {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            out.push(Action::Event(PodEvent { warning: false, reason: "DeadlineExceeded", message, container: None }));
            self.end(Why::Deadline, self.grace(), now);
        } else if self.is_finished() {
            self.end(Why::Finished, self.grace(), now);
        }
    }

    pub(super) fn end_fenced(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        if self.ending().is_none_or(|why| why < Why::Fenced) {
            let message = "The node was cut off; the pod was stopped, because it must not run twice".to_owned();
            out.push(Action::Event(PodEvent { warning: true, reason: fencing::REASON, message, container: None }));
        }
        self.end(Why::Fenced, SignedDuration::ZERO, now);
    }

    /// The node puts an end to the pod, unless it is ending anyway.
    pub(super) fn end_stopped(&mut self, stopped: Stopped, now: Timestamp, out: &mut Vec<Action>) {
        if self.ending.is_some() {
            return;
        }
        if stopped.reason != StopReason::Shutdown {
            let (reason, message) = (stopped.reason.name(), stopped.message.clone());
            out.push(Action::Event(PodEvent { warning: true, reason, message, container: None }));
        }
        self.stopped = Some(stopped);
        self.resume_stopped(now);
    }

    /// Begins the end that the node put to the pod, also after a restart of the agent.
    pub(super) fn resume_stopped(&mut self, now: Timestamp) {
        if let Some(stopped) = &self.stopped {
            let grace = seconds(Some(stopped.grace_seconds), 0).min(self.grace());
            self.end(Why::Stopped, grace, now);
        }
    }

    pub(super) fn end_gone(&mut self, now: Timestamp) {
        self.end(Why::Gone, GONE_GRACE, now);
    }

    /// Begins an ending, or makes the one under way more urgent.
    fn end(&mut self, why: Why, grace: SignedDuration, now: Timestamp) {
        let deadline = later(now, grace);
        match &mut self.ending {
            None => self.ending = Some(Ending { why, deadline, grace, over: false }),
            Some(ending) => {
                if why > ending.why {
                    (ending.why, ending.over) = (why, false);
                }
                if grace < ending.grace {
                    (ending.grace, ending.deadline) = (grace, ending.deadline.min(deadline));
                }
            }
        }
    }

    /// Why the pod is ending, if it is.
    pub fn ending(&self) -> Option<Why> {
        self.ending.as_ref().map(|ending| ending.why)
    }

    /// Whether nothing is left to do: the driver has been told to delete or forget the pod.
    pub fn is_over(&self) -> bool {
        self.ending.as_ref().is_some_and(|ending| ending.over && ending.why >= Why::Deleted)
    }

    pub(super) fn wind_down(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let Some(Ending { deadline, .. }) = self.ending.clone() else { return };
        let up = |role_is: fn(Role) -> bool| {
            let wanted = self.containers.iter().enumerate();
            wanted.filter(move |(_, c)| role_is(c.role) && c.is_up()).map(|(index, _)| index).collect::<Vec<_>>()
        };
        let mains = up(|role| role != Role::Sidecar);
        let sidecars = up(|role| role == Role::Sidecar);
        let all: Vec<_> = mains.iter().chain(&sidecars).copied().collect();
        let next = if mains.is_empty() { sidecars.last().copied().into_iter().collect() } else { mains };
        for index in next {
            let stopping = self.containers[index].running().is_none_or(|running| running.stop.is_some());
            if !stopping {
                let grace = deadline.duration_since(now).max(SignedDuration::ZERO);
                let message = format!("Stopping container {}", self.containers[index].name);
                self.begin_stop(index, grace, message, now, out);
            }
        }
        for index in &all {
            self.hurry(*index, deadline);
        }
        if all.is_empty() {
            self.take_down(out);
        }
    }

    /// No container is up any more: the sandbox goes, then the pod.
    fn take_down(&mut self, out: &mut Vec<Action>) {
        match self.sandbox {
            Sandbox::Ready { .. } => {
                self.sandbox = Sandbox::Stopping;
                out.push(Action::StopSandbox);
            }
            Sandbox::Absent { .. } => self.sandbox = Sandbox::Stopped,
            Sandbox::Creating | Sandbox::Stopping | Sandbox::Stopped => {}
        }
        let Some(ending) = self.ending.as_mut().filter(|ending| self.sandbox == Sandbox::Stopped && !ending.over)
        else {
            return;
        };
        ending.over = true;
        match ending.why {
            Why::Deleted => out.push(Action::DeletePod),
            Why::Gone => out.push(Action::Forget),
            // Its status and logs stay until somebody deletes it.
            Why::Finished | Why::Deadline | Why::Stopped | Why::Fenced => {}
        }
    }

    /// Begins to stop a running container that is not being stopped yet.
    pub(super) fn begin_stop(
        &mut self,
        index: usize,
        grace: SignedDuration,
        message: String,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) {
        let hook = self.spec(index).and_then(|spec| spec.lifecycle.as_ref()?.pre_stop.as_ref()).is_some();
        let container = &mut self.containers[index];
        let instance = container.instance();
        let Some(running) = container.running_mut().filter(|running| running.stop.is_none()) else { return };
        out.push(Action::Event(PodEvent::normal("Killing", &instance.container, message)));
        let stage = if hook && !grace.is_zero() { StopStage::PreStop } else { StopStage::Signalled };
        running.stop = Some(Stop { stage, next_at: later(now, grace) });
        if stage == StopStage::PreStop {
            let limit = Duration::try_from(grace).unwrap_or(Duration::ZERO);
            out.push(Action::Hook(instance, Hook::PreStop, limit));
        } else if !grace.is_zero() {
            out.push(Action::Signal(instance, self.stop_signal(index)));
        }
        self.continue_stop(index, now, out);
    }

    /// A preStop hook ended: on to the stop signal.
    pub(super) fn pre_stop_done(&mut self, index: usize, now: Timestamp, out: &mut Vec<Action>) {
        let signal = self.stop_signal(index);
        let container = &mut self.containers[index];
        let instance = container.instance();
        let Some(stop) = container.running_mut().and_then(|running| running.stop.as_mut()) else { return };
        if stop.stage == StopStage::PreStop {
            *stop = Stop { stage: StopStage::Signalled, next_at: stop.next_at.max(later(now, GRACE_MIN)) };
            out.push(Action::Signal(instance, signal));
        }
    }

    /// Goes to the next stage of a stop when its time has come.
    pub(super) fn continue_stop(&mut self, index: usize, now: Timestamp, out: &mut Vec<Action>) {
        let container = &mut self.containers[index];
        let instance = container.instance();
        let Some(stop) = container.running_mut().and_then(|running| running.stop.as_mut()) else { return };
        if stop.next_at > now {
            return;
        }
        if stop.stage == StopStage::PreStop {
            self.pre_stop_done(index, now, out);
            return;
        }
        *stop = Stop { stage: StopStage::Killed, next_at: later(now, KILL_AGAIN) };
        out.push(Action::Signal(instance, Signal::Kill));
    }

    /// Brings a stop that was begun with more time under the pod's deadline.
    fn hurry(&mut self, index: usize, deadline: Timestamp) {
        let stop = self.containers[index].running_mut().and_then(|running| running.stop.as_mut());
        if let Some(stop) = stop.filter(|stop| stop.stage == StopStage::PreStop) {
            stop.next_at = stop.next_at.min(deadline);
        } else if let Phase::Running(running) = &mut self.containers[index].phase
            && let Some(stop) = running.stop.as_mut().filter(|stop| stop.stage == StopStage::Signalled)
        {
            // What a hook left over is already the minimum.
            stop.next_at = stop.next_at.min(later(deadline, GRACE_MIN));
        }
    }

    fn stop_signal(&self, index: usize) -> Signal {
        let own = self.spec(index).and_then(|spec| spec.lifecycle.as_ref()?.stop_signal.clone());
        Signal::Stop(own)
    }
}
