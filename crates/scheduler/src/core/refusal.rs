//! Why no node would do, in kube-scheduler's words.

use std::collections::BTreeMap;
use std::fmt;

/// Why one node would not do. The order is that of kube-scheduler's filters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Cordoned.
    Unschedulable,
    /// A taint the pod does not tolerate.
    Taint,
    /// Node selector or required node affinity.
    Affinity,
    /// A host port is taken.
    Ports,
    /// No room for another pod.
    Pods,
    /// Too little of a resource.
    Insufficient(String),
    /// A volume of the pod cannot be reached from there.
    Volume,
    /// A claim of the pod could not get a volume there.
    NoVolume,
    /// Would be spread too unevenly.
    Spread,
    /// Has no label to spread by.
    SpreadLabel,
    /// Pods the pod wants to be with are not there.
    PodAffinity,
    /// Pods the pod does not want to be with are there.
    PodAntiAffinity,
    /// Pods there do not want the pod.
    ExistingAntiAffinity,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unschedulable => "node(s) were unschedulable",
            Self::Taint => "node(s) had untolerated taint(s)",
            Self::Affinity => "node(s) didn't match Pod's node affinity/selector",
            Self::Ports => "node(s) didn't have free ports for the requested pod ports",
            Self::Pods => "Too many pods",
            Self::Insufficient(resource) => return write!(f, "Insufficient {resource}"),
            Self::Volume => "node(s) didn't match PersistentVolume's node affinity",
            Self::NoVolume => "node(s) didn't find available persistent volumes to bind",
            Self::Spread => "node(s) didn't match pod topology spread constraints",
            Self::SpreadLabel => "node(s) didn't match pod topology spread constraints (missing required label)",
            Self::PodAffinity => "node(s) didn't match pod affinity rules",
            Self::PodAntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Self::ExistingAntiAffinity => "node(s) didn't satisfy existing pods anti-affinity rules",
        })
    }
}

/// Why no node would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    /// Nodes there are.
    pub nodes: usize,
    /// For each reason, how many nodes.
    pub reasons: BTreeMap<Reason, usize>,
    /// What came of looking whether others could go, once that was done.
    pub preemption: Option<NoRoom>,
}

/// Why no others are made to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// On so many nodes that would not help; on the others nobody could go.
    Hopeless(usize),
    /// The pod may not make others go.
    Never,
}

impl fmt::Display for Refusal {
    /// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s).`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        let mut parts: Vec<String> = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        parts.sort();
        write!(f, "0/{} nodes are available: {}.", self.nodes, parts.join(", "))?;
        self.preemption.map_or(Ok(()), |outcome| outcome.write(f, self.nodes))
    }
}

impl NoRoom {
    /// As kube-scheduler says it, of `nodes` nodes.
    pub(crate) fn write(self, f: &mut impl fmt::Write, nodes: usize) -> fmt::Result {
        let Self::Hopeless(hopeless) = self else {
            return f.write_str(" preemption: not eligible due to preemptionPolicy=Never.");
        };
        let parts = [
            (nodes.saturating_sub(hopeless), "No preemption victims found for incoming pod"),
            (hopeless, "Preemption is not helpful for scheduling"),
        ];
        let parts = parts.iter().filter(|(count, _)| *count > 0).map(|(count, text)| format!("{count} {text}"));
        write!(f, " preemption: 0/{nodes} nodes are available: {}.", parts.collect::<Vec<_>>().join(", "))
    }
}
