//! The diagram of pod life in `docs/pod-life.md`, drawn from the machine itself: a seeded walk tries what can happen to pods of every
//! sort and notes each change of state with its cause. `MAINSTAY_BLESS=1` writes the page anew.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use super::world::{at, pod};
use crate::pod::container::{Container, Phase};
use crate::pod::io::{Action, Exit, Input, StartFailure, Stopped};
use crate::pod::machine::{Machine, Sandbox};

/// Walks per sort of pod, and steps of each: far more than it takes to see every change.
const WALKS: u64 = 400;
const STEPS: usize = 120;

/// From, to, and what caused it.
type Changes = BTreeMap<(&'static str, &'static str), BTreeSet<&'static str>>;

fn sandbox(machine: &Machine) -> &'static str {
    match machine.sandbox {
        Sandbox::Absent { .. } => "Absent",
        Sandbox::Creating => "Creating",
        Sandbox::Ready { .. } => "Ready",
        Sandbox::Stopping => "Stopping",
        Sandbox::Stopped => "Stopped",
    }
}

fn containers(machine: &Machine) -> Vec<&'static str> {
    let name = |phase: &Phase| match phase {
        Phase::Waiting(waiting) if waiting.reason == "CrashLoopBackOff" => "BackOff",
        Phase::Waiting(_) => "Waiting",
        Phase::Starting => "Starting",
        Phase::Running(running) if running.stop.is_some() => "Ending",
        Phase::Running(_) => "Running",
        Phase::Terminated(_) => "Terminated",
    };
    machine.containers.iter().map(|container| name(&container.phase)).collect()
}

/// What an input is called in the diagram, for the sandbox and for the container that it is about.
fn cause(input: &Input) -> &'static str {
    match input {
        Input::Pod(_) => "deleted",
        Input::Gone => "gone from the API",
        Input::Fenced => "fenced",
        Input::Stop(_) => "evicted or shut down",
        Input::SandboxReady { .. } => "made",
        Input::SandboxFailed(_) => "not made",
        Input::SandboxLost => "sandbox lost",
        Input::SandboxStopped => "taken down",
        Input::Started { .. } => "started",
        Input::StartFailed(_, StartFailure::Run(_)) => "program does not run",
        Input::StartFailed(..) => "image, volume or setting missing",
        Input::Exited(..) => "exit",
        Input::HookDone(..) => "hook failed",
        Input::Probed(..) => "probe failed",
        Input::Resized(..) => "resized",
        Input::Tick => "time",
    }
}

/// A machine, a clock, and the answers that are outstanding.
struct Walk<'a> {
    machine: Machine,
    now_ms: i64,
    outstanding: Vec<Action>,
    dice: u64,
    sandboxes: &'a mut Changes,
    phases: &'a mut Changes,
}

impl Walk<'_> {
    fn below(&mut self, end: u64) -> u64 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % end.max(1)
    }

    fn take(&mut self, input: Input) {
        let (sandbox_before, before, cause) = (sandbox(&self.machine), containers(&self.machine), cause(&input));
        let of_container = match &input {
            Input::Started { instance, .. }
            | Input::StartFailed(instance, _)
            | Input::Exited(instance, _)
            | Input::HookDone(instance, ..)
            | Input::Probed(instance, ..) => Some(instance.container.clone()),
            _ => None,
        };
        let actions = self.machine.step(input, at(self.now_ms));
        self.outstanding.extend(actions.into_iter().filter(|action| !matches!(action, Action::Event(_))));
        let now = sandbox(&self.machine);
        if now != sandbox_before {
            let own = matches!(cause, "made" | "not made" | "taken down" | "sandbox lost");
            self.sandboxes.entry((sandbox_before, now)).or_default().insert(match now {
                _ if own => cause,
                "Creating" => "its turn",
                _ => "the pod ends",
            });
        }
        let names: Vec<_> = self.machine.containers.iter().map(|container| container.name.clone()).collect();
        for ((name, from), to) in names.iter().zip(before).zip(containers(&self.machine)) {
            if from == to {
                continue;
            }
            let direct = of_container.as_ref() == Some(name);
            let word = match to {
                "Starting" => "its turn",
                "Ending" if direct => cause,
                "Ending" => "the pod ends",
                "BackOff" => "to be restarted, not yet",
                _ if direct || cause == "sandbox lost" => cause,
                _ => "its turn",
            };
            self.phases.entry((from, to)).or_default().insert(word);
        }
    }

    /// Something that may happen now.
    fn next(&mut self) -> Input {
        let waiting = self.outstanding.len() as u64;
        if waiting > 0 && self.below(4) > 0 {
            let index = self.below(waiting) as usize;
            if let Some(input) = self.answer(index) {
                return input;
            }
        }
        match self.below(60) {
            0 => Input::Gone,
            1 => {
                let mut pod = core::Pod::clone(self.machine.pod());
                pod.metadata.deletion_timestamp = Some(crate::pod::status::time(at(self.now_ms)));
                pod.metadata.deletion_grace_period_seconds = Some(5);
                Input::Pod(Arc::new(pod))
            }
            2 => Input::Stop(Stopped::evicted("low".to_owned(), SignedDuration::from_secs(1))),
            3 if matches!(self.machine.sandbox, Sandbox::Ready { .. }) => {
                self.outstanding.clear();
                Input::SandboxLost
            }
            4..20 => match self.running() {
                Some((instance, exit)) => Input::Exited(instance, exit),
                None => Input::Tick,
            },
            _ => {
                let wake = self.machine.next_wake().map_or(self.now_ms + 1_000, jiff::Timestamp::as_millisecond);
                self.now_ms = wake.max(self.now_ms);
                Input::Tick
            }
        }
    }

    fn running(&mut self) -> Option<(crate::pod::io::Instance, Exit)> {
        let all: Vec<_> =
            self.machine.containers.iter().filter(|c| c.running().is_some()).map(Container::instance).collect();
        let index = self.below(all.len() as u64) as usize;
        let code = i32::from(self.below(2) != 0);
        let exit = Exit { code, signal: None, oom_killed: false, finished_at: at(self.now_ms), message: None };
        Some((all.get(index)?.clone(), exit))
    }

    /// An answer to an action: good, or bad.
    fn answer(&mut self, index: usize) -> Option<Input> {
        let bad = self.below(4) == 0;
        let image = self.below(2) == 0;
        match self.outstanding.remove(index) {
            Action::CreateSandbox if bad => Some(Input::SandboxFailed("no".to_owned())),
            Action::CreateSandbox => Some(Input::SandboxReady { ip: None }),
            Action::Start(instance) if bad && image => {
                Some(Input::StartFailed(instance, StartFailure::Image("no".to_owned())))
            }
            Action::Start(instance) if bad => Some(Input::StartFailed(instance, StartFailure::Run("no".to_owned()))),
            Action::Start(instance) => {
                let id = instance.to_string();
                Some(Input::Started { instance, id, image_id: String::new(), at: at(self.now_ms) })
            }
            Action::Hook(instance, hook, _) => Some(Input::HookDone(instance, hook, bad.then(|| "no".to_owned()))),
            Action::Probe(instance, kind, _) => Some(Input::Probed(instance, kind, bad.then(|| "no".to_owned()))),
            Action::Resize(instance, _) => Some(Input::Resized(instance, Ok(()))),
            Action::StopSandbox => Some(Input::SandboxStopped),
            Action::Signal(instance, _) => {
                let exit =
                    Exit { code: 137, signal: None, oom_killed: false, finished_at: at(self.now_ms), message: None };
                Some(Input::Exited(instance, exit))
            }
            _ => None,
        }
    }
}

/// Pods of every sort.
fn sorts() -> Vec<Value> {
    let probed = json!({"name": "app", "image": "x",
        "livenessProbe": {"failureThreshold": 1, "periodSeconds": 1, "tcpSocket": {"port": 1}},
        "lifecycle": {"postStart": {"exec": {"command": ["x"]}}, "preStop": {"exec": {"command": ["x"]}}}});
    let plain = json!({"name": "app", "image": "x"});
    let init = json!([{"name": "first", "image": "x"}, {"name": "side", "image": "x", "restartPolicy": "Always"}]);
    vec![
        json!({"containers": [probed]}),
        json!({"containers": [plain], "initContainers": init}),
        json!({"containers": [plain], "restartPolicy": "OnFailure", "activeDeadlineSeconds": 60}),
        json!({"containers": [plain], "restartPolicy": "Never"}),
    ]
}

fn drawn(title: &str, start: &str, changes: &Changes) -> String {
    let mut text = format!("```mermaid\nstateDiagram-v2\n    %% {title}\n    [*] --> {start}\n");
    for ((from, to), causes) in changes {
        let causes: Vec<_> = causes.iter().copied().collect();
        writeln!(text, "    {from} --> {to}: {}", causes.join("; ")).unwrap();
    }
    text.push_str("```\n");
    text
}

#[test]
fn the_page_shows_the_machine_as_it_is() {
    let (mut sandboxes, mut phases) = (Changes::new(), Changes::new());
    for (sort, spec) in sorts().into_iter().enumerate() {
        for walk in 0..WALKS {
            let machine = Machine::new(Arc::new(pod(spec.clone())), at(0));
            let dice = walk * 31 + sort as u64;
            let (sandboxes, phases) = (&mut sandboxes, &mut phases);
            let mut walk = Walk { machine, now_ms: 0, outstanding: Vec::new(), dice, sandboxes, phases };
            walk.take(Input::Tick);
            for _ in 0..STEPS {
                let input = walk.next();
                walk.take(input);
            }
        }
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/pod-life.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let (begin, end) = ("<!-- drawn from the machine: begin -->\n", "<!-- drawn from the machine: end -->");
    let (head, rest) = text.split_once(begin).unwrap();
    let (_, tail) = rest.split_once(end).unwrap();
    let sandbox = drawn("the sandbox of a pod", "Absent", &sandboxes);
    let container = drawn("each of its containers", "Waiting", &phases);
    let wanted = format!(
        "{head}{begin}\nThe sandbox:\n\n{sandbox}\nEach container, once the sandbox is ready:\n\n{container}\n{end}{tail}"
    );
    if std::env::var_os("MAINSTAY_BLESS").is_some() {
        std::fs::write(&page, &wanted).unwrap();
        return;
    }
    assert_eq!(text, wanted, "docs/pod-life.md is not the machine any more; MAINSTAY_BLESS=1 draws it anew");
}
