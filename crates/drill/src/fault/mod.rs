//! Faults: which there are, on what, who can make them, and making and undoing them.
//!
//! Two kinds of hands: the Kubernetes API, which works on any cluster (`api`), and the machine that an embedded instance runs
//! on ([`Machine`], implemented by the binary). [`FaultKind::hands`] is the table of who can do what; what neither can do is
//! refused with the reason, before the drill begins.
//!
//! Flow of one fault: resolve the target → write the undoing into the journal, on disk → make → look that it has taken effect →
//! later, undo → strike it from the journal. A drill that dies in between leaves the journal; `mainstay drill undo` reads it.

mod api;
pub mod breaker;
pub mod certificate;
pub mod journal;
mod pressure;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::resource::FaultSettings;

/// What can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// Processes die at once.
    Kill,
    /// Processes stand still, as in a hang.
    Pause,
    /// The link is down.
    Isolate,
    /// Packets to it are lost, packets from it arrive.
    CutIncoming,
    /// Packets from it are lost, packets to it arrive.
    CutOutgoing,
    /// Names cannot be looked up.
    DnsFailure,
    /// Every packet takes longer.
    Delay,
    /// Some packets are lost.
    Loss,
    /// The link is slow.
    Bandwidth,
    /// A pod of busy processes beside those that are there.
    CpuPressure,
    /// A pod that holds memory beside those that are there.
    MemoryPressure,
    /// No room in the file system at a path of the pod.
    DiskFull,
    /// Its disk is slow.
    SlowDisk,
    /// Its clock is wrong.
    ClockSkew,
    /// A version that never becomes ready, one that does and errs, or any change of the pod template.
    BadRelease,
    /// All pods replaced, as by a release of the same version.
    Rollout,
    /// Pods evicted and the node closed, as for maintenance.
    Drain,
    /// A certificate that has run out in place of the one in a Secret.
    CertificateExpiry,
}

/// Whose hands a fault takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hands {
    /// The Kubernetes API: any cluster.
    Api,
    /// The machine's, else the API in another way (a pod killed is a pod deleted without grace).
    Either,
    /// The machine's: only an embedded instance.
    Machine,
    /// Nobody's, for this reason.
    Nobody(&'static str),
}

/// To what it is done, as the drill says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum TargetSpec {
    /// A pod of a Service or with a name: `service: NAMESPACE/NAME` or `name: NAMESPACE/NAME`.
    Pod(PodSpec),
    /// A node by name; `any`: one that runs a pod of the load's Service.
    Node(String),
    /// All nodes of a zone; `any`: the zone of one that runs a pod of the load's Service.
    Zone(String),
    /// A Deployment, `NAMESPACE/NAME`.
    Deployment(String),
    /// A Secret, `NAMESPACE/NAME`.
    Secret(String),
    /// The API server.
    ControlPlane,
}

/// Which pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum PodSpec {
    /// A ready one behind this Service, `NAMESPACE/NAME`, drawn by the seed.
    Service(String),
    /// This one, `NAMESPACE/NAME`.
    Name(String),
}

impl fmt::Display for FaultKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = serde_json::to_value(self).ok().and_then(|value| value.as_str().map(str::to_owned));
        formatter.pad(&name.unwrap_or_default())
    }
}

impl fmt::Display for TargetSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(PodSpec::Service(service)) => write!(formatter, "pod of {service}"),
            Self::Pod(PodSpec::Name(name)) => write!(formatter, "pod/{name}"),
            Self::Node(name) => write!(formatter, "node/{name}"),
            Self::Zone(name) => write!(formatter, "zone/{name}"),
            Self::Deployment(name) => write!(formatter, "deployment/{name}"),
            Self::Secret(name) => write!(formatter, "secret/{name}"),
            Self::ControlPlane => formatter.write_str("control plane"),
        }
    }
}

impl FaultKind {
    /// Who can do this to that, or why nobody can.
    pub fn hands(self, target: &TargetSpec) -> Hands {
        use FaultKind as F;
        use TargetSpec as T;
        match (self, target) {
            (F::Kill, T::Pod(_)) => Hands::Either,
            (F::DiskFull, T::Pod(_))
            | (F::Kill | F::Pause, T::ControlPlane)
            | (
                F::Kill
                | F::Pause
                | F::Isolate
                | F::SlowDisk
                | F::CutIncoming
                | F::CutOutgoing
                | F::DnsFailure
                | F::Delay
                | F::Loss
                | F::Bandwidth,
                T::Pod(_) | T::Node(_) | T::Zone(_),
            ) => Hands::Machine,
            (F::BadRelease | F::Rollout, T::Deployment(_))
            | (F::CertificateExpiry, T::Secret(_))
            | (F::Drain | F::CpuPressure | F::MemoryPressure, T::Node(_)) => Hands::Api,
            (F::ClockSkew, _) => Hands::Nobody(
                "Linux has one wall clock for all processes of a machine (time namespaces shift only the monotonic ones); \
                 set the clock of a machine of its own",
            ),
            (F::DiskFull, T::Node(_) | T::Zone(_)) => Hands::Nobody(
                "the nodes of one machine share its disk, so filling it would hit everything else on it; \
                 fill the volume of a pod that has a file system of its own: target: {pod: ...}",
            ),
            _ => Hands::Nobody("this cannot be done to that kind of target"),
        }
    }

    /// Whether target and settings belong to this fault.
    ///
    /// # Errors
    /// What is missing or impossible.
    pub fn fits(self, target: &TargetSpec, settings: &FaultSettings) -> Result<(), String> {
        if let Hands::Nobody(reason) = self.hands(target) {
            return Err(format!("{self} on {target}: {reason}"));
        }
        let names = match target {
            TargetSpec::Pod(PodSpec::Service(name) | PodSpec::Name(name))
            | TargetSpec::Deployment(name)
            | TargetSpec::Secret(name) => name.split('/').filter(|part| !part.is_empty()).count() == 2,
            TargetSpec::Node(name) | TargetSpec::Zone(name) => !name.is_empty(),
            TargetSpec::ControlPlane => true,
        };
        if !names {
            return Err(format!("target {target}: write NAMESPACE/NAME"));
        }
        let needs = match self {
            Self::Delay => settings.delay_ms.is_none().then_some("delayMs"),
            Self::Loss => settings.loss_percent.is_none_or(|loss| loss > 100).then_some("lossPercent (0 to 100)"),
            Self::MemoryPressure => settings.megabytes.is_none_or(|size| size == 0).then_some("megabytes"),
            Self::DiskFull => settings.path.is_none().then_some("path (in the pod)"),
            Self::SlowDisk => settings.kbyte_per_second.is_none_or(|rate| rate == 0).then_some("kbytePerSecond"),
            Self::BadRelease => {
                settings.status.is_some_and(|it| !(400..600).contains(&it)).then_some("status from 400 to 599")
            }
            Self::Bandwidth => settings.kbit_per_second.is_none_or(|rate| rate == 0).then_some("kbitPerSecond"),
            _ => None,
        };
        needs.map_or(Ok(()), |field| Err(format!("{self} needs settings.{field}")))
    }
}

/// A fault on something that has been found: what is made, undone, and written into the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// To what, by name.
    pub target: Target,
    /// The numbers it takes.
    #[serde(default)]
    pub settings: FaultSettings,
}

/// To what it is done, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// A pod: namespace and name.
    Pod(String, String),
    /// A node.
    Node(String),
    /// All nodes of a zone.
    Zone(String),
    /// A Deployment: namespace and name.
    Deployment(String, String),
    /// A Secret: namespace and name.
    Secret(String, String),
    /// The API server.
    ControlPlane,
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(namespace, name) => write!(formatter, "pod/{namespace}/{name}"),
            Self::Node(name) => write!(formatter, "node/{name}"),
            Self::Zone(name) => write!(formatter, "zone/{name}"),
            Self::Deployment(namespace, name) => write!(formatter, "deployment/{namespace}/{name}"),
            Self::Secret(namespace, name) => write!(formatter, "secret/{namespace}/{name}"),
            Self::ControlPlane => formatter.write_str("control plane"),
        }
    }
}

/// What a fault could not be made, seen or undone for.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// Nobody here can do it.
    #[error("{fault} on {target} cannot be done here: {reason}")]
    Hands {
        /// What.
        fault: FaultKind,
        /// To what.
        target: String,
        /// Why not, and where it could.
        reason: String,
    },
    /// Nothing there that the target means.
    #[error("{target}: {reason}")]
    Target {
        /// What was meant.
        target: String,
        /// What is missing.
        reason: String,
    },
    /// The API.
    #[error("{doing}: {source}")]
    Api {
        /// The step.
        doing: String,
        /// What the API said.
        source: Box<kube::Error>,
    },
    /// The machine.
    #[error("{doing}: {source}")]
    Machine {
        /// The step.
        doing: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It was made, but nothing shows that it has taken effect.
    #[error("{fault} has not taken effect after {seconds} s: {seen}")]
    NoEffect {
        /// What.
        fault: String,
        /// How long was waited.
        seconds: u64,
        /// What was seen instead.
        seen: String,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] journal::JournalError),
}

/// How long a fault may take until it shows.
pub(crate) const EFFECT_PATIENCE: Duration = Duration::from_secs(15);

/// The hands of the machine that an embedded instance runs on. Calls block; every one may be repeated.
pub trait Machine: Send + Sync {
    /// Makes the fault and looks that it has taken effect; answers with what shows it.
    ///
    /// # Errors
    /// What went wrong; nothing may be left half done that [`undo`](Self::undo) would not undo.
    fn make(&self, fault: &Fault) -> Result<String, Box<dyn std::error::Error + Send + Sync>>;

    /// Undoes it. What was never made, or is undone already, is fine.
    ///
    /// # Errors
    /// What is still broken.
    fn undo(&self, fault: &Fault) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_can_do_is_refused_with_the_reason() {
        let settings = FaultSettings::default();
        let refused = |kind: FaultKind, target: TargetSpec| kind.fits(&target, &settings).err().unwrap_or_default();
        assert!(refused(FaultKind::ClockSkew, TargetSpec::Node("any".into())).contains("wall clock"));
        assert!(refused(FaultKind::Drain, TargetSpec::ControlPlane).contains("cannot be done"));
        assert!(refused(FaultKind::Delay, TargetSpec::Node("any".into())).contains("delayMs"));
        assert!(refused(FaultKind::Rollout, TargetSpec::Deployment("front".into())).contains("NAMESPACE/NAME"));
        assert_eq!(refused(FaultKind::Kill, TargetSpec::Zone("any".into())), "");
    }
}
