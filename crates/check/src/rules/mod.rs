//! The rules: what is wrong in manifests, and what only shows once pods are placed and things are taken away.
//!
//! One file per subject. Each has its rules as data and one function that looks; [`RULES`] lists all, and the guide's table
//! is checked against it.

mod autoscaler;
mod budgets;
mod placed;
mod probes;
mod redundancy;
mod references;
mod resources;
mod storage;
mod updates;

use serde_json::Value;

use crate::finding::{Element, Finding, Fix, Rule, Severity, below};
use crate::manifest::Object;
use crate::model::{Model, Workload};
use crate::survive::Row;

/// What rules look at, and what they found.
pub(crate) struct Context<'m> {
    pub(crate) model: &'m Model,
    pub(crate) rows: &'m [Row],
    findings: Vec<Finding>,
}

const fn rule(
    id: &'static str,
    element: Element,
    severity: Severity,
    title: &'static str,
    peers: &'static [&'static str],
) -> Rule {
    Rule { id, element, severity, title, peers }
}

/// All rules.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    let all: [&'static [&'static Rule]; 9] = [
        placed::RULES,
        redundancy::RULES,
        budgets::RULES,
        probes::RULES,
        updates::RULES,
        resources::RULES,
        storage::RULES,
        autoscaler::RULES,
        references::RULES,
    ];
    all.into_iter().flatten().copied()
}

/// Everything that is wrong, the worst first; `rows` is what becomes of the services.
pub fn findings(model: &Model, rows: &[Row]) -> Vec<Finding> {
    let mut context = Context { model, rows, findings: Vec::new() };
    for look in [
        placed::look,
        redundancy::look,
        budgets::look,
        probes::look,
        updates::look,
        resources::look,
        storage::look,
        autoscaler::look,
        references::look,
    ] {
        look(&mut context);
    }
    let mut findings = context.findings;
    let order: Vec<&str> = rules().map(|rule| rule.id).collect();
    let place_of = |finding: &Finding| order.iter().position(|id| *id == finding.rule.id);
    findings.sort_by(|a, b| {
        let key = |one: &Finding| (one.rule.severity, place_of(one), one.place.clone());
        key(a).cmp(&key(b))
    });
    findings
}

impl<'m> Context<'m> {
    /// Notes a breach of a rule at a path of an object.
    fn say(
        &mut self,
        rule: &'static Rule,
        object: &Object,
        path: &str,
        message: String,
        change: &str,
        fix: Option<Fix>,
    ) {
        let (shown, place) = (object.shown(), object.place(path));
        self.findings.push(Finding { rule, object: shown, place, message, change: change.to_owned(), fix });
    }

    /// Workloads that serve until they are told to stop, with their objects.
    fn serving(&self) -> impl Iterator<Item = (usize, &'m Workload, &'m Object)> + use<'m> {
        let model = self.model;
        let all = model.workloads.iter().enumerate().filter(|(_, workload)| workload.kind.serves());
        all.map(move |(at, workload)| (at, workload, model.object_of(workload)))
    }

    /// Whether a Service leads to a workload.
    fn is_served(&self, workload: usize) -> bool {
        self.model.services.iter().any(|service| service.is_service && service.workloads.contains(&workload))
    }
}

/// A patch of the pod's spec of a workload.
fn patch_spec(workload: &Workload, object: &Object, spec: Value) -> Fix {
    Fix::patch(object, below(&workload.path(""), spec))
}

/// Containers of a workload with the paths of their fields in the object.
fn containers(workload: &Workload) -> Vec<(String, &Value)> {
    let all = mainstay_model::meta::list_at(workload.spec(), "containers").iter().enumerate();
    all.map(|(index, container)| (workload.path(&format!("containers[{index}]")), container)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_rules_are_their_own() {
        let mut ids: Vec<&str> = rules().map(|rule| rule.id).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count);
        assert!(rules().all(|rule| rule.title.ends_with('.') && !rule.id.contains(' ')));
    }
}
