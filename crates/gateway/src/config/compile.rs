//! The whole compilation, in order, and what it gathers on the way.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::listeners::OpenListener;
use super::objects::{Held, Objects};
use super::policies::Policies;
use super::status::Statuses;
use super::{Problem, Severity, attach, ingress, listeners};
use crate::table::{Rule, Table, Upstream};

/// What a gateway is told besides objects.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Gateways must be of a class whose controller is ours: in a cluster. Alone, every gateway is ours.
    pub(crate) class_required: bool,
    /// Where to listen if a Gateway names no addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Ports of Ingresses: HTTP, HTTPS.
    pub(crate) ingress_ports: (u16, u16),
    /// Names that were looked up.
    pub(crate) names: BTreeMap<String, Vec<IpAddr>>,
}

impl Default for Options {
    fn default() -> Self {
        let addresses = vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
        Self { class_required: false, addresses, ingress_ports: (80, 443), names: BTreeMap::new() }
    }
}

/// A compiled configuration.
#[derive(Debug, Default)]
pub(crate) struct Compiled {
    pub(crate) table: Table,
    pub(crate) statuses: Statuses,
    pub(crate) problems: Vec<Problem>,
}

/// What is gathered while compiling.
pub(super) struct Work<'a> {
    pub(super) objects: &'a Objects,
    pub(super) options: &'a Options,
    pub(super) policies: Policies<'a>,
    pub(super) problems: Vec<Problem>,
    pub(super) statuses: Statuses,
    pub(super) listeners: Vec<OpenListener>,
    pub(super) rules: Vec<Arc<Rule>>,
    pub(super) upstreams: Vec<Arc<Upstream>>,
    pub(super) upstream_index: HashMap<String, usize>,
}

impl Work<'_> {
    /// Notes a problem with an object.
    pub(super) fn problem<T>(&mut self, held: &Held<T>, path: &[&str], severity: Severity, message: impl Into<String>) {
        let problem = Problem { place: held.place(path), severity, object: held.shown(), message: message.into() };
        self.problems.push(problem);
    }
}

/// Compiles objects into a routing table.
pub(crate) fn compile(objects: &Objects, options: &Options) -> Compiled {
    let mut work = Work {
        objects,
        options,
        policies: Policies::new(objects),
        problems: objects.problems.clone(),
        statuses: Statuses::default(),
        listeners: Vec::new(),
        rules: Vec::new(),
        upstreams: Vec::new(),
        upstream_index: HashMap::new(),
    };
    listeners::open(&mut work);
    attach::http_routes(&mut work);
    attach::stream_routes(&mut work);
    ingress::attach(&mut work);
    let unused = work.policies.unused();
    for (policy, message) in unused {
        work.problem(policy, &["spec", "targetRefs"], Severity::Warning, message);
    }
    let ports = listeners::close(&mut work);
    let mut problems = work.problems;
    problems.sort();
    problems.dedup();
    let table = Table { ports, upstreams: work.upstreams, rules: work.rules };
    Compiled { table, statuses: work.statuses, problems }
}
