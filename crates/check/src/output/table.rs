//! The survival table: rows that come to the same are one row, the weakest first.

use std::collections::{BTreeMap, BTreeSet};

use crate::Report;
use crate::model::Model;
use crate::survive::{Failure, FailureKind, Outcome, Prediction, Row};

/// Names written out before the rest is counted.
const NAMES_MAX: usize = 3;

/// Failures that come to the same for every service.
#[derive(Debug, Clone)]
pub struct Line<'r> {
    /// `any node (3)`, `node-1, node-2`, `any pod of shop/cart`.
    pub label: String,
    /// One of them, with all its cells.
    pub row: &'r Row,
    /// How many failures it stands for.
    pub count: usize,
}

impl Line<'_> {
    /// The cell that is worst, if any is not fine.
    pub fn worst(&self) -> Option<&Prediction> {
        self.row
            .cells
            .iter()
            .filter(|cell| cell.outcome != Outcome::Fine)
            .max_by_key(|cell| (cell.rank(), !cell.is_felt()))
    }
}

/// What failures of one line share: kind, workload of a pod, cells.
type Sameness = (FailureKind, Option<usize>, Vec<String>);

/// The table's lines.
pub fn lines(report: &Report) -> Vec<Line<'_>> {
    let model = &report.model;
    let mut groups: BTreeMap<Sameness, Vec<&Row>> = BTreeMap::new();
    for row in &report.rows {
        let workload = match row.failure {
            Failure::Pod(pod) => Some(model.pods[pod].workload),
            _ => None,
        };
        let cells = row.cells.iter().map(Prediction::shown).collect();
        groups.entry((row.failure.kind(), workload, cells)).or_default().push(row);
    }
    let mut totals: BTreeMap<(FailureKind, Option<usize>), usize> = BTreeMap::new();
    for ((kind, workload, _), rows) in &groups {
        *totals.entry((*kind, *workload)).or_default() += rows.len();
    }
    let mut lines: Vec<Line<'_>> = Vec::new();
    for ((kind, workload, _), rows) in groups {
        let is_all = totals.get(&(kind, workload)) == Some(&rows.len());
        let label = label(model, kind, workload, &rows, is_all);
        lines.push(Line { label, row: rows[0], count: rows.len() });
    }
    lines.sort_by_key(|line| {
        let (worst, hit) = line.row.weakness();
        std::cmp::Reverse((worst, std::cmp::Reverse(line.row.failure.kind()), hit))
    });
    lines
}

fn label(model: &Model, kind: FailureKind, workload: Option<usize>, rows: &[&Row], is_all: bool) -> String {
    let many = rows.len() > 1;
    match (kind, is_all && many) {
        (FailureKind::Pod, true) => {
            return workload.map_or_else(String::new, |at| format!("any pod of {}", model.workloads[at].key()));
        }
        (FailureKind::TwoNodes, true) => return format!("any two nodes ({} pairs)", rows.len()),
        (FailureKind::Server, true) => return format!("any server ({})", rows.len()),
        (kind, true) => return format!("any {kind} ({})", rows.len()),
        _ => {}
    }
    let short = |row: &&Row| match row.failure {
        Failure::TwoNodes(a, b) => format!("{} and {}", model.topology.nodes[a].name, model.topology.nodes[b].name),
        Failure::Server(at) => model.topology.servers[at].name.clone(),
        failure => {
            let target = failure.target(model);
            target.split_once('/').map_or(target.clone(), |(_, name)| name.to_owned())
        }
    };
    let names: BTreeSet<(usize, String)> = rows.iter().map(short).map(|name| (name.len(), name)).collect();
    let shown: Vec<String> = names.iter().take(NAMES_MAX).map(|(_, name)| name.clone()).collect();
    let rest = rows.len().saturating_sub(NAMES_MAX);
    let joined = shown.join(if kind == FailureKind::TwoNodes { "; " } else { ", " });
    let prefix = match kind {
        FailureKind::TwoNodes | FailureKind::Server => String::new(),
        kind => format!("{kind} "),
    };
    if rest > 0 { format!("{prefix}{joined} and {rest} more") } else { format!("{prefix}{joined}") }
}

/// Names of the services as columns: without the namespace where all are in one.
pub(super) fn columns(report: &Report) -> Vec<String> {
    let services = &report.model.services;
    let namespaces: BTreeSet<&str> = services.iter().map(|service| service.namespace.as_str()).collect();
    let name = |service: &crate::model::Service| {
        if namespaces.len() == 1 { service.name.clone() } else { service.key() }
    };
    services.iter().map(name).collect()
}
