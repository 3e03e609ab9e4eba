//! Other requests and limits for a container that goes on running. Pure.
//!
//! Flow: what a container may use differs from what its specification says now → the driver is asked to change it, or, where
//! `resizePolicy` says so, the container is stopped and started again → a refusal is shown in the pod's conditions and tried
//! again later.
//!
//! Source: <https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources/>.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;

use crate::pod::clock::later;
use crate::pod::container::Role;
use crate::pod::io::{Action, Instance, PodEvent};
use crate::pod::machine::Machine;
use crate::pod::qos::Resources;

/// The conditions that are there while a resize is.
pub const RESIZE_CONDITIONS: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];
/// The wait before a resize that was refused is tried again.
const RETRY: SignedDuration = SignedDuration::from_secs(5);

/// Why a container goes on with what it had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The node will never have so much.
    Infeasible(String),
    /// The node does not have so much now.
    Deferred(String),
    /// The kernel does not do it.
    Failed(String),
}

/// How far a resize is.
#[derive(Debug, Clone, PartialEq)]
pub enum Resize {
    /// There is none.
    None,
    /// Under way, to this.
    Running(Option<Box<core::ResourceRequirements>>),
    /// Not now.
    Refused {
        /// Why.
        why: Refused,
        /// What was refused.
        wanted: Resources,
        /// When to try again.
        retry_at: Timestamp,
    },
}

impl Resize {
    /// When to try again.
    pub fn retry_at(&self) -> Option<Timestamp> {
        if let Self::Refused { retry_at, .. } = self { Some(*retry_at) } else { None }
    }
}

impl Machine {
    /// A running container that may use something else than its specification says.
    pub(super) fn tend_resources(
        &mut self,
        index: usize,
        spec: &core::Container,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) {
        let ending = self.ending.is_some();
        let container = &mut self.containers[index];
        let (instance, role) = (container.instance(), container.role);
        let Some(running) = container.running_mut().filter(|running| running.stop.is_none() && !ending) else { return };
        let wanted = Resources::of(spec.resources.as_ref());
        if matches!(role, Role::Init | Role::Ephemeral) || Resources::of(running.resources.as_ref()) == wanted {
            running.resize = Resize::None;
            return;
        }
        match &running.resize {
            Resize::Running(_) => return,
            Resize::Refused { wanted: refused, retry_at, .. } if *refused == wanted && *retry_at > now => return,
            _ => {}
        }
        if needs_restart(spec, Resources::of(running.resources.as_ref()), wanted) {
            let message = format!("Container {} resize requires restart", spec.name);
            let grace = self.grace();
            self.begin_stop(index, grace, message, now, out);
            return;
        }
        let resources = spec.resources.clone().map(Box::new);
        running.resize = Resize::Running(resources.clone());
        out.push(Action::Resize(instance, resources));
    }

    /// The driver's answer.
    pub(super) fn resized(
        &mut self,
        instance: &Instance,
        result: Result<(), Refused>,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) {
        let Some(index) = self.find(instance) else { return };
        let Some(running) = self.containers[index].running_mut() else { return };
        let Resize::Running(resources) = std::mem::replace(&mut running.resize, Resize::None) else { return };
        let resources = resources.map(|resources| *resources);
        running.resize = match result {
            Ok(()) => {
                running.resources = resources;
                let message = format!("Container {} resized", instance.container);
                out.push(Action::Event(PodEvent::normal("ResizeCompleted", &instance.container, message)));
                Resize::None
            }
            Err(why) => Resize::Refused { why, wanted: Resources::of(resources.as_ref()), retry_at: later(now, RETRY) },
        };
    }

    /// What the pod's conditions say about resizes: name, reason, message.
    pub(super) fn resize_conditions(&self) -> Vec<(&'static str, Option<&'static str>, Option<String>)> {
        let [pending, in_progress] = RESIZE_CONDITIONS;
        let mut found: Vec<(_, _, _)> = Vec::new();
        for running in self.containers.iter().filter_map(|container| container.running()) {
            let condition = match &running.resize {
                Resize::None => continue,
                Resize::Running(_) => (in_progress, None, None),
                Resize::Refused { why: Refused::Infeasible(text), .. } => {
                    (pending, Some("Infeasible"), Some(text.clone()))
                }
                Resize::Refused { why: Refused::Deferred(text), .. } => (pending, Some("Deferred"), Some(text.clone())),
                Resize::Refused { why: Refused::Failed(text), .. } => (in_progress, Some("Error"), Some(text.clone())),
            };
            if !found.iter().any(|(name, ..)| *name == condition.0) {
                found.push(condition);
            }
        }
        found
    }
}

/// Whether the container's policy wants a restart for a resource that changes.
fn needs_restart(spec: &core::Container, from: Resources, to: Resources) -> bool {
    let changed = |name: &str| match name {
        "cpu" => (from.cpu_request_milli, from.cpu_limit_milli) != (to.cpu_request_milli, to.cpu_limit_milli),
        "memory" => {
            (from.memory_request_bytes, from.memory_limit_bytes) != (to.memory_request_bytes, to.memory_limit_bytes)
        }
        _ => false,
    };
    let policies = spec.resize_policy.iter().flatten();
    policies.filter(|policy| policy.restart_policy == "RestartContainer").any(|policy| changed(&policy.resource_name))
}

/// Whether the node has room for a pod that may use `pod` (requests), where the others of the node use `others`; `node` is
/// all that it has. CPU in thousandths, memory in bytes.
///
/// # Errors
/// Why not.
pub fn fits(pod: (i64, i64), others: (i64, i64), node: (i64, i64)) -> Result<(), Refused> {
    for (name, wanted, taken, all) in [("cpu", pod.0, others.0, node.0), ("memory", pod.1, others.1, node.1)] {
        if wanted > all {
            let text = format!("Node didn't have enough capacity: {name}, requested: {wanted}, capacity: {all}");
            return Err(Refused::Infeasible(text));
        }
        if wanted + taken > all {
            let text = format!(
                "Node didn't have enough resource: {name}, requested: {wanted}, used: {taken}, capacity: {all}"
            );
            return Err(Refused::Deferred(text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_on_the_node() {
        assert_eq!(fits((500, 10), (500, 10), (1000, 20)), Ok(()));
        assert!(matches!(fits((501, 10), (500, 10), (1000, 20)), Err(Refused::Deferred(text)) if text.contains("cpu")));
        assert!(matches!(fits((1, 21), (0, 0), (1000, 20)), Err(Refused::Infeasible(text)) if text.contains("memory")));
    }
}
