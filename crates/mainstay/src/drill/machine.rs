//! The hands of the machine, for drills: what `mainstay fault` does, and links that are cut one way, lose names, or are slow.
//!
//! | fault | how | seen by |
//! |---|---|---|
//! | kill, pause, isolate | see [`crate::fault`] | there |
//! | cut-incoming, cut-outgoing, dns-failure | nftables rules in the node's or pod's namespace | the table is there |
//! | disk-full | a file in the pod's own file system (`disk`) | no further file is taken |
//! | slow-disk | limits in the control groups of the pods | the kernel took it |
//! | delay, loss, bandwidth | `netem`, `tbf` at both ends of the node's or pod's link, where the kernel has them | the kernel took it |

use std::error::Error;
use std::fs::File;
use std::os::fd::AsFd as _;

use super::disk;
use mainstay_drill::fault::{Fault, FaultKind as Kind, Machine, Target as Wanted};
use mainstay_net::fault::{Cut, Shape, cut, has_cuts, heal_cuts, shape, unshape};
use mainstay_net::netns::{open, within, within_named};
use mainstay_net::plan::{self, Cidr};

use crate::fault::{FaultError, FaultKind, Faults, Target};
use crate::instance::Instance;

type AnyError = Box<dyn Error + Send + Sync>;

/// The end of a node's link in the node, and of a pod's in the pod.
const LINK: &str = "eth0";

/// Faults on one instance's machine.
pub struct Hands(Instance);

/// What a fault asks for.
enum Deed {
    Fault(FaultKind),
    Cut(Cut),
    Shape(Shape),
    /// A path in the pod.
    DiskFull(String),
    /// Bytes per second.
    SlowDisk(u64),
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

    /// The places whose links a target means: nodes, or a pod.
    fn places(&self, wanted: &Wanted) -> Result<Vec<Place>, AnyError> {
        if let Wanted::Pod(namespace, name) = wanted {
            let (own, node, link) = self.faults()?.pod_network(namespace, name)?;
            return Ok(vec![Place { shown: wanted.to_string(), own, far: Some(node), far_link: link }]);
        }
        let nodes = self.nodes(wanted);
        if nodes.is_empty() {
            return Err(format!("there is no {wanted} here").into());
        }
        let place = |(number, name): (u32, String)| {
            let own = open(&plan::netns_name(&self.0.id(), number))?;
            Ok(Place { shown: name, own, far: None, far_link: plan::host_link_name(&self.0.id(), number) })
        };
        nodes.into_iter().map(place).collect()
    }

    /// Heals each place; a pod that is gone has taken its links along.
    fn heal_places(&self, target: &Wanted, heal: impl Fn(&Place) -> Result<(), AnyError>) -> Result<(), AnyError> {
        match self.places(target) {
            Err(error) if matches!(error.downcast_ref(), Some(FaultError::NoSuch { what: "pod", .. })) => Ok(()),
            places => places?.iter().try_for_each(heal),
        }
    }

    /// What is cut: all of it, or what comes from or goes to the peer, a node with its pods.
    fn cuts(&self, cut: Cut, peer: Option<&str>) -> Result<Vec<Cut>, AnyError> {
        let Some(peer) = peer else { return Ok(vec![cut]) };
        let found = self.0.node_names().find(|(_, name)| name == peer);
        let (number, _) = found.ok_or_else(|| format!("there is no node {peer} here"))?;
        let network = self.0.plan()?;
        let ranges = [Cidr { address: network.node_address(number)?, prefix: 32 }, network.pod_cidr(number)?];
        Ok(ranges.map(if cut == Cut::Incoming { Cut::IncomingFrom } else { Cut::OutgoingTo }).to_vec())
    }
}

/// A link that faults are made at.
struct Place {
    shown: String,
    /// The namespace that it is the link of.
    own: File,
    /// The namespace of the other end; without one, the host's.
    far: Option<String>,
    /// The name of the other end.
    far_link: String,
}

impl Place {
    fn within(&self, work: impl FnOnce() -> Result<(), AnyError> + Send) -> Result<(), AnyError> {
        within(&self.shown, self.own.as_fd(), work)?
    }

    /// At the other end.
    fn beyond(&self, work: impl FnOnce(&str) -> Result<(), AnyError> + Send) -> Result<(), AnyError> {
        match &self.far {
            None => work(&self.far_link),
            Some(namespace) => within_named(namespace, || work(&self.far_link))?,
        }
    }
}

impl Machine for Hands {
    fn make(&self, fault: &Fault) -> Result<String, AnyError> {
        let places = match deed(fault)? {
            Deed::Fault(kind) => return Ok(self.faults()?.make(kind, &target(fault)?)?.join(", ")),
            Deed::DiskFull(path) => {
                let (namespace, pod) = pod(fault)?;
                return Ok(disk::fill(&self.faults()?, &self.0.data_dir, namespace, pod, &path)?);
            }
            Deed::SlowDisk(bytes) => {
                let groups = self.faults()?.throttle(&target(fault)?, Some(bytes))?;
                if groups == 0 {
                    return Err(format!("no pod runs on {}", fault.target).into());
                }
                return Ok(format!("{bytes} bytes per second for {groups} control groups of {}", fault.target));
            }
            Deed::Cut(what) => {
                let (places, cuts) = (self.places(&fault.target)?, self.cuts(what, fault.settings.peer.as_deref())?);
                for place in &places {
                    place.within(|| {
                        cut(LINK, &cuts)?;
                        if has_cuts()? { Ok(()) } else { Err("the rules are not there".into()) }
                    })?;
                }
                places
            }
            Deed::Shape(how) => {
                let places = self.places(&fault.target)?;
                for place in &places {
                    place.within(|| Ok(shape(LINK, how)?))?;
                    place.beyond(|link| Ok(shape(link, how)?))?;
                }
                places
            }
        };
        let shown: Vec<&str> = places.iter().map(|place| place.shown.as_str()).collect();
        Ok(format!("{} on {}", fault.kind, shown.join(", ")))
    }

    fn undo(&self, fault: &Fault) -> Result<(), AnyError> {
        match deed(fault)? {
            Deed::Cut(_) => self.heal_places(&fault.target, |place| place.within(|| Ok(heal_cuts()?))),
            Deed::Shape(_) => self.heal_places(&fault.target, |place| {
                place.within(|| Ok(unshape(LINK)?))?;
                place.beyond(|link| Ok(unshape(link)?))
            }),
            Deed::DiskFull(path) => Ok(disk::empty(&self.faults()?, pod(fault)?.0, &path)?),
            Deed::SlowDisk(_) => match self.faults()?.throttle(&target(fault)?, None) {
                Err(FaultError::NoSuch { what: "pod", .. }) => Ok(()),
                other => Ok(other.map(drop)?),
            },
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
        Kind::DiskFull => Deed::DiskFull(settings.path.clone().unwrap_or_default()),
        Kind::SlowDisk => Deed::SlowDisk(u64::from(settings.kbyte_per_second.unwrap_or_default()) * 1000),
        other => return Err(format!("the machine cannot do {other}").into()),
    })
}

/// Namespace and name.
fn pod(fault: &Fault) -> Result<(&str, &str), AnyError> {
    match &fault.target {
        Wanted::Pod(namespace, name) => Ok((namespace, name)),
        other => Err(format!("{other} is no pod").into()),
    }
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
