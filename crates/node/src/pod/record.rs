//! What has to be remembered of a pod over a restart of the agent, and how its machine is put together again. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use serde::{Deserialize, Serialize};

use crate::pod::backoff::Backoff;
use crate::pod::container::{Container, Phase, PostStart, Running, Termination, Waiting};
use crate::pod::io::Stopped;
use crate::pod::machine::{Machine, Sandbox};

/// The memory of a pod, written to its directory whenever it changes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The pod's address.
    pub ip: Option<Ipv4Addr>,
    /// When the pod began on this node.
    pub started_at: Option<Timestamp>,
    /// All init containers were through.
    pub initialized: bool,
    /// The end that the node put to it, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
    /// Its containers by name.
    pub containers: BTreeMap<String, ContainerRecord>,
}

/// The memory of one container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    attempt: u32,
    started_before: bool,
    running: Option<RunningRecord>,
    ended: Option<Termination>,
    last: Option<Termination>,
    backoff: Backoff,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct RunningRecord {
    id: String,
    image_id: String,
    started_at: Timestamp,
    hook_done: bool,
    started: bool,
    ready: bool,
    /// What it may use; none in the records of former versions.
    #[serde(default)]
    resources: Option<core::ResourceRequirements>,
}

/// A container that the runtime still knows: running, or ended and not yet removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Its id.
    pub id: String,
    /// Its image's identity.
    pub image_id: String,
    /// Since when it runs.
    pub started_at: Timestamp,
}

impl Machine {
    /// What has to be remembered.
    pub fn record(&self) -> Record {
        let containers = self.containers.iter().map(|container| {
            let running = container.running().map(|running| RunningRecord {
                id: running.id.clone(),
                image_id: running.image_id.clone(),
                started_at: running.started_at,
                hook_done: running.post_start == PostStart::Done,
                started: running.started,
                ready: running.ready,
                resources: running.resources.clone(),
            });
            let ended = if let Phase::Terminated(end) = &container.phase { Some(end.clone()) } else { None };
            let record = ContainerRecord {
                attempt: container.attempt,
                started_before: container.started_before,
                running,
                ended,
                last: container.last.clone(),
                backoff: container.backoff.clone(),
            };
            (container.name.clone(), record)
        });
        Record {
            ip: self.ip,
            started_at: Some(self.started_at),
            initialized: self.initialized,
            stopped: self.stopped.clone(),
            containers: containers.collect(),
        }
    }

    /// The machine of a pod whose sandbox outlived the agent. `observed` are the containers the runtime has, by name;
    /// how those ended that did is taken in as ordinary inputs afterwards.
    ///
    /// With `sandbox_alive` false an unfinished machine waits for `SandboxLost` before it makes a new sandbox: the exits come
    /// first, and the remains have to be cleaned up.
    pub fn restore(
        pod: Arc<core::Pod>,
        record: &Record,
        observed: &BTreeMap<String, Observed>,
        sandbox_alive: bool,
        now: Timestamp,
    ) -> Self {
        let mut machine = Self::new(pod, now);
        machine.ip = record.ip;
        machine.started_at = record.started_at.unwrap_or(machine.started_at);
        machine.initialized = record.initialized;
        for index in 0..machine.containers.len() {
            let Some(spec) = machine.spec(index).cloned() else { continue };
            let container = &mut machine.containers[index];
            if let Some(record) = record.containers.get(&container.name) {
                container.restore(record, observed.get(&spec.name), &spec, now);
            }
        }
        machine.stopped.clone_from(&record.stopped);
        machine.resume_stopped(now);
        machine.sandbox = if sandbox_alive {
            Sandbox::Ready { ip: record.ip }
        } else if machine.is_finished() || machine.ending().is_some() {
            Sandbox::Absent { retry_at: None }
        } else {
            Sandbox::Creating
        };
        machine
    }
}

impl Container {
    fn restore(
        &mut self,
        record: &ContainerRecord,
        observed: Option<&Observed>,
        spec: &core::Container,
        now: Timestamp,
    ) {
        self.attempt = record.attempt;
        self.started_before = record.started_before;
        self.last.clone_from(&record.last);
        self.backoff = record.backoff.clone();
        self.phase = match (&record.running, observed, &record.ended) {
            (Some(known), Some(seen), _) if known.id == seen.id => {
                let mut running = Running::new(known.id.clone(), known.image_id.clone(), known.started_at, spec);
                // A hook that was cut short is not run twice.
                running.post_start = PostStart::Done;
                running.resume(spec, known.started, known.ready, now);
                running.resources = known.resources.clone().or_else(|| spec.resources.clone());
                Phase::Running(Box::new(running))
            }
            // It was being started when the agent ended.
            (None, Some(seen), None) => {
                self.started_before = true;
                Phase::Running(Box::new(Running::new(seen.id.clone(), seen.image_id.clone(), seen.started_at, spec)))
            }
            (Some(known), _, _) => {
                let running = Running::new(known.id.clone(), known.image_id.clone(), known.started_at, spec);
                Phase::Terminated(Termination::unknown(Some(&running), now))
            }
            (None, _, Some(end)) => Phase::Terminated(end.clone()),
            (None, None, None) => Waiting::turn(self.role),
        };
    }
}

impl Running {
    /// Takes up what the previous agent had found out, so that readiness does not flicker.
    fn resume(&mut self, spec: &core::Container, started: bool, ready: bool, now: Timestamp) {
        if started {
            let without = core::Container { startup_probe: None, ..spec.clone() };
            self.advance(&without, now);
            self.ready = ready;
        }
    }
}
