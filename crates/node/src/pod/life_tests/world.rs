//! A pod, a virtual clock and a simulated world that answers the machine's actions.
//!
//! A transcript line is `+MS action` or `+MS = status`. The simulated world answers sandbox and container starts at once
//! unless a test says otherwise.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use crate::pod::clock::later;
use crate::pod::io::{Action, Exit, Input, Signal, StartFailure};
use crate::pod::machine::Machine;
use crate::pod::probe::ProbeKind;
use crate::pod::status::NodeFacts;

/// A pod, a clock and a world that answers.
pub(super) struct World {
    pub(super) machine: Machine,
    pub(super) now_ms: i64,
    pub(super) transcript: String,
    /// Containers whose start fails.
    pub(super) failing_starts: BTreeMap<String, StartFailure>,
    /// Containers that end at SIGTERM.
    pub(super) obedient: bool,
    /// Hooks that never answer.
    pub(super) hooks_hang: bool,
    /// Probes that fail: container and kind.
    pub(super) sick: BTreeSet<(String, ProbeKind)>,
    pub(super) quiet_probes: bool,
    /// What becomes of a resize.
    pub(super) resize: Result<(), crate::pod::resize::Refused>,
    pub(super) last_status: Option<core::PodStatus>,
}

pub(super) fn pod(spec: Value) -> core::Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "generation": 1},
        "spec": spec,
    }))
    .unwrap()
}

pub(super) fn at(ms: i64) -> Timestamp {
    later(Timestamp::UNIX_EPOCH, SignedDuration::from_millis(ms))
}

impl World {
    pub(super) fn new(spec: Value) -> Self {
        Self {
            machine: Machine::new(Arc::new(pod(spec)), at(0)),
            now_ms: 0,
            transcript: String::new(),
            failing_starts: BTreeMap::new(),
            obedient: true,
            hooks_hang: false,
            sick: BTreeSet::new(),
            quiet_probes: true,
            resize: Ok(()),
            last_status: None,
        }
    }

    pub(super) fn note(&mut self, line: &str) {
        writeln!(self.transcript, "+{} {line}", self.now_ms).unwrap();
    }

    pub(super) fn input(&mut self, input: Input) {
        let mut inputs = std::collections::VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for action in self.machine.step(input, at(self.now_ms)) {
                inputs.extend(self.carry_out(action));
            }
        }
        self.note_status();
    }

    pub(super) fn carry_out(&mut self, action: Action) -> Option<Input> {
        match action {
            Action::CreateSandbox => {
                self.note("create sandbox");
                Some(Input::SandboxReady { ip: Some([10, 0, 2, 5].into()) })
            }
            Action::Start(instance) => {
                self.note(&format!("start {instance}"));
                if let Some(failure) = self.failing_starts.get(&instance.container) {
                    return Some(Input::StartFailed(instance, failure.clone()));
                }
                let id = instance.to_string();
                Some(Input::Started { instance, id, image_id: "i".to_owned(), at: at(self.now_ms) })
            }
            Action::Hook(instance, hook, limit) => {
                self.note(&format!("{hook:?} {instance} within {limit:?}"));
                (!self.hooks_hang).then_some(Input::HookDone(instance, hook, None))
            }
            Action::Probe(instance, kind, _) => {
                if !self.quiet_probes {
                    self.note(&format!("{kind:?} {instance}"));
                }
                let sick = self.sick.contains(&(instance.container.clone(), kind));
                Some(Input::Probed(instance, kind, sick.then(|| "no".to_owned())))
            }
            Action::Signal(instance, signal) => {
                self.note(&format!("{signal:?} {instance}"));
                (self.obedient || signal == Signal::Kill)
                    .then(|| Input::Exited(instance, self.exit(if signal == Signal::Kill { 137 } else { 0 })))
            }
            Action::Resize(instance, _) => {
                self.note(&format!("resize {instance}"));
                Some(Input::Resized(instance, self.resize.clone()))
            }
            Action::StopSandbox => {
                self.note("stop sandbox");
                Some(Input::SandboxStopped)
            }
            Action::DeletePod => {
                self.note("delete pod");
                None
            }
            Action::Forget => {
                self.note("forget");
                None
            }
            Action::Event(event) => {
                if !matches!(event.reason, "Pulled" | "Created" | "Started") {
                    self.note(&format!("event {}: {}", event.reason, event.message));
                }
                None
            }
        }
    }

    pub(super) fn exit(&self, code: i32) -> Exit {
        Exit { code, signal: None, oom_killed: false, finished_at: at(self.now_ms), message: None }
    }

    pub(super) fn exited(&mut self, container: &str, code: i32) {
        let instance = self.machine.container(container).unwrap().instance();
        let exit = self.exit(code);
        self.note(&format!("! {instance} exits {code}"));
        self.input(Input::Exited(instance, exit));
    }

    pub(super) fn delete(&mut self, grace: i64) {
        let mut pod = core::Pod::clone(self.machine.pod());
        pod.metadata.deletion_timestamp = Some(crate::pod::status::time(at(self.now_ms)));
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        self.note("! deleted");
        self.input(Input::Pod(Arc::new(pod)));
    }

    /// Lets time pass; every wake-up is a tick.
    pub(super) fn until(&mut self, ms: i64) {
        while let Some(wake) = self.machine.next_wake().filter(|wake| *wake <= at(ms)) {
            self.now_ms = wake.as_millisecond();
            self.input(Input::Tick);
        }
        self.now_ms = ms;
    }

    pub(super) fn note_status(&mut self) {
        let node = NodeFacts { host_ip: "10.0.0.11".to_owned() };
        let status = self.machine.status(&node, self.last_status.as_ref(), at(self.now_ms));
        let line = short(&status);
        if self.last_status.as_ref().map(short).as_ref() != Some(&line) {
            self.note(&line);
        }
        self.last_status = Some(status);
    }

    pub(super) fn expect(&self, expected: &str) {
        let clean =
            |text: &str| text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
        assert_eq!(clean(&self.transcript), clean(expected), "\n--- transcript:\n{}", self.transcript);
    }
}

/// `= Running ready app:running(1)`.
pub(super) fn short(status: &core::PodStatus) -> String {
    let mut text = format!("= {}", status.phase.as_deref().unwrap());
    if crate::pod::status::is_ready(status) {
        text.push_str(" ready");
    }
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    for container in lists.into_iter().flatten().flatten() {
        let state = container.state.as_ref().unwrap();
        let word = match (&state.running, &state.terminated, &state.waiting) {
            (Some(_), _, _) => "running".to_owned(),
            (_, Some(end), _) => format!("{}/{}", end.reason.as_deref().unwrap(), end.exit_code),
            (_, _, Some(waiting)) => waiting.reason.clone().unwrap(),
            _ => "?".to_owned(),
        };
        write!(text, " {}:{word}({})", container.name, container.restart_count).unwrap();
    }
    text
}
