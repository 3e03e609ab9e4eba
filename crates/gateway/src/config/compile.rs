//! The whole compilation, in order, and what it gathers on the way.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;

use super::listeners::OpenListener;
use super::objects::{Held, Objects};
use super::policies::Policies;
use super::secrets::TlsMemo;
use super::status::Statuses;
use super::{Problem, Severity, acme, attach, ingress, listeners};
use crate::acme::Entry;
use crate::api::Key;
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
    /// TLS configurations of the last compilation.
    pub(crate) tls: Rc<TlsMemo>,
}

impl Default for Options {
    fn default() -> Self {
        let addresses = vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
        Self { class_required: false, addresses, ingress_ports: (80, 443), names: BTreeMap::new(), tls: Rc::default() }
    }
}

/// A compiled configuration.
#[derive(Debug, Default)]
pub(crate) struct Compiled {
    pub(crate) table: Table,
    pub(crate) statuses: Statuses,
    pub(crate) problems: Vec<Problem>,
    /// Certificates that are to be obtained, or were.
    pub(crate) certificates: Rc<Vec<Entry>>,
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
    pub(super) certificates: BTreeMap<Key, Entry>,
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
        certificates: BTreeMap::new(),
    };
    listeners::open(&mut work);
    attach::http_routes(&mut work);
    attach::stream_routes(&mut work);
    ingress::attach(&mut work);
    acme::check_port(&mut work);
    let unused = work.policies.unused();
    for (policy, message) in unused {
        work.problem(policy, &["spec", "targetRefs"], Severity::Warning, message);
    }
    let ports = listeners::close(&mut work);
    options.tls.sweep();
    let mut problems = work.problems;
    problems.sort();
    problems.dedup();
    let certificates: Vec<Entry> = work.certificates.into_values().collect();
    let challenges = acme::challenges(&certificates);
    let table = Table { ports, upstreams: work.upstreams, rules: work.rules, challenges };
    Compiled { table, statuses: work.statuses, problems, certificates: Rc::new(certificates) }
}
