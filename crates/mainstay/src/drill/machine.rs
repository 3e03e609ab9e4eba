//! The hands of the machine, for drills: what `mainstay fault` does, and links that are cut one way, lose names, or are slow.
//!
//! | fault | how | seen by |
//! |---|---|---|
//! | kill, pause, isolate | see [`crate::fault`] | there |
//! | cut-incoming, cut-outgoing, dns-failure | nftables rules in the node's namespace | the table is there |
//! | delay, loss, bandwidth | `netem`, `tbf` at both ends of the node's link, where the kernel has them | the kernel took it |

use std::error::Error;

use mainstay_drill::fault::{Fault, FaultKind as Kind, Machine, Target as Wanted};
use mainstay_net::fault::{Cut, Shape, cut, has_cuts, heal_cuts, shape, unshape};
use mainstay_net::netns::within_named;
use mainstay_net::plan;

use crate::fault::{FaultError, FaultKind, Faults, Target};
use crate::instance::{Instance, node_number};

type AnyError = Box<dyn Error + Send + Sync>;

/// The node's end of its link.
const LINK: &str = "eth0";

/// Faults on one instance's machine.
pub struct Hands(Instance);

/// What a fault asks for.
enum Deed {
    Fault(FaultKind),
    Cut(Cut),
    Shape(Shape),
}

impl Hands {
    /// Those of an instance.
    pub fn new(instance: Instance) -> Self {
        Self(instance)
    }

    fn faults(&self) -> Result<Faults, FaultError> {
        Faults::new(self.0.clone())
    }

    /// Numbers and names of the nodes that a target means.
    fn nodes(&self, target: &Wanted) -> Vec<(u32, String)> {
        let is_meant = |(number, name): &(u32, String)| match target {
            Wanted::Node(wanted) => name == wanted,
            Wanted::Zone(wanted) => self.0.zone_of(*number) == *wanted,
            _ => false,
        };
        self.0.node_names().filter(is_meant).collect()
    }

    /// Does something in the namespace of every node that a target means; answers with their names.
    fn within_nodes(
        &self,
        target: &Wanted,
        work: impl Fn() -> Result<(), AnyError> + Sync,
    ) -> Result<Vec<String>, AnyError> {
        let nodes = self.nodes(target);
        if nodes.is_empty() {
            return Err(format!("there is no {target} here").into());
        }
        for (number, _) in &nodes {
            within_named(&plan::netns_name(&self.0.id(), *number), &work)??;
        }
        Ok(nodes.into_iter().map(|(_, name)| name).collect())
    }

    /// The host's ends of the links of the nodes that a target means.
    fn host_links(&self, target: &Wanted) -> Vec<String> {
        let numbers = self.nodes(target).into_iter().filter_map(|(_, name)| node_number(&name));
        numbers.map(|number| plan::host_link_name(&self.0.id(), number)).collect()
    }
}

impl Machine for Hands {
    fn make(&self, fault: &Fault) -> Result<String, AnyError> {
        let nodes = match deed(fault)? {
            Deed::Fault(kind) => return Ok(self.faults()?.make(kind, &target(fault)?)?.join(", ")),
            Deed::Cut(what) => self.within_nodes(&fault.target, || {
                cut(LINK, &[what])?;
                if has_cuts()? { Ok(()) } else { Err("the rules are not there".into()) }
            })?,
            Deed::Shape(how) => {
                let nodes = self.within_nodes(&fault.target, || Ok(shape(LINK, how)?))?;
                self.host_links(&fault.target).iter().try_for_each(|link| shape(link, how))?;
                nodes
            }
        };
        Ok(format!("{} on {}", fault.kind, nodes.join(", ")))
    }

    fn undo(&self, fault: &Fault) -> Result<(), AnyError> {
        match deed(fault)? {
            Deed::Cut(_) => self.within_nodes(&fault.target, || Ok(heal_cuts()?)).map(drop),
            Deed::Shape(_) => {
                self.within_nodes(&fault.target, || Ok(unshape(LINK)?))?;
                Ok(self.host_links(&fault.target).iter().try_for_each(|link| unshape(link))?)
            }
            Deed::Fault(_) => match self.faults()?.heal(&target(fault)?) {
                // A pod that is gone needs no healing.
                Err(FaultError::NoSuch { what: "pod", .. }) => Ok(()),
                other => Ok(other.map(drop)?),
            },
        }
    }
}

fn deed(fault: &Fault) -> Result<Deed, AnyError> {
    let settings = &fault.settings;
    Ok(match fault.kind {
        Kind::Kill => Deed::Fault(FaultKind::Kill),
        Kind::Pause => Deed::Fault(FaultKind::Pause),
        Kind::Isolate => Deed::Fault(FaultKind::Isolate),
        Kind::CutIncoming => Deed::Cut(Cut::Incoming),
        Kind::CutOutgoing => Deed::Cut(Cut::Outgoing),
        Kind::DnsFailure => Deed::Cut(Cut::Names),
        Kind::Delay => Deed::Shape(Shape::Delay(settings.delay_ms.unwrap_or_default())),
        Kind::Loss => Deed::Shape(Shape::Loss(settings.loss_percent.unwrap_or_default())),
        Kind::Bandwidth => Deed::Shape(Shape::Bandwidth(settings.kbit_per_second.unwrap_or_default())),
        other => return Err(format!("the machine cannot do {other}").into()),
    })
}

fn target(fault: &Fault) -> Result<Target, AnyError> {
    match &fault.target {
        Wanted::Pod(namespace, name) => Ok(Target::Pod { namespace: Some(namespace.clone()), name: name.clone() }),
        Wanted::Node(name) => Ok(Target::Node(name.clone())),
        Wanted::Zone(name) => Ok(Target::Zone(name.clone())),
        Wanted::ControlPlane => Ok(Target::ControlPlane),
        other => Err(format!("the machine knows no {other}").into()),
    }
}
