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
            Self::Volume => "node(s) had volume node affinity conflict",
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
    /// Nodes where making others go would not help, once that was looked at.
    pub hopeless: Option<usize>,
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
        let Some(hopeless) = self.hopeless else { return Ok(()) };
        let parts = [
            (self.nodes.saturating_sub(hopeless), "No preemption victims found for incoming pod"),
            (hopeless, "Preemption is not helpful for scheduling"),
        ];
        let parts = parts.iter().filter(|(count, _)| *count > 0).map(|(count, text)| format!("{count} {text}"));
        write!(f, " preemption: 0/{} nodes are available: {}.", self.nodes, parts.collect::<Vec<_>>().join(", "))
    }
}
