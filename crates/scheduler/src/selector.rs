//! Selectors of typed objects, compiled.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as Written;
use mainstay_model::selector::{LabelSelector, Operator, Requirement, node_expression};

/// Labels of an object.
pub(crate) type Labels = BTreeMap<String, String>;

/// A label selector as comparable data: requirements (key, operator, values), sorted.
pub type Clauses = Vec<(String, String, Vec<String>)>;

/// The clauses of a selector; `None` for an absent one, which selects nothing.
pub fn clauses(selector: Option<&Written>) -> Option<Clauses> {
    let selector = selector?;
    let equal = selector.match_labels.iter().flatten();
    let equal = equal.map(|(key, value)| (key.clone(), "In".to_owned(), vec![value.clone()]));
    let others = selector.match_expressions.iter().flatten();
    let others = others.map(|e| (e.key.clone(), e.operator.clone(), e.values.clone().unwrap_or_default()));
    let mut all: Clauses = equal.chain(others).collect();
    all.sort();
    Some(all)
}

/// Compiles clauses; what cannot be understood selects nothing.
pub(crate) fn compile(clauses: &Clauses) -> LabelSelector {
    let requirement = |(key, operator, values): &(String, String, Vec<String>)| {
        let operator = match operator.as_str() {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            _ => return None,
        };
        Requirement::new(key, operator, values.clone()).ok()
    };
    let all: Option<Vec<_>> = clauses.iter().map(requirement).collect();
    all.map_or(LabelSelector::nothing(), LabelSelector::new)
}

/// Whether a compiled selector chooses these labels.
pub(crate) fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.matches_with(|key| labels.get(key).map(String::as_str))
}

/// A node selector term as comparable data: expressions on labels, then on fields.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeTerm {
    labels: Clauses,
    fields: Clauses,
}

impl NodeTerm {
    /// A term that every node satisfies.
    pub(crate) fn any() -> Self {
        Self { labels: Vec::new(), fields: vec![("metadata.name".to_owned(), "Exists".to_owned(), Vec::new())] }
    }

    /// From the object.
    pub fn of(term: &NodeSelectorTerm) -> Self {
        let list = |all: &Option<Vec<NodeSelectorRequirement>>| {
            let all = all.iter().flatten();
            all.map(|e| (e.key.clone(), e.operator.clone(), e.values.clone().unwrap_or_default())).collect()
        };
        Self { labels: list(&term.match_expressions), fields: list(&term.match_fields) }
    }

    /// Whether a node satisfies every expression; a term without any satisfies nothing.
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        let by_label = |clause| expression(clause, |key| labels.get(key).map(String::as_str));
        let by_field = |clause| expression(clause, |key| (key == "metadata.name").then_some(name));
        !(self.labels.is_empty() && self.fields.is_empty())
            && self.labels.iter().all(by_label)
            && self.fields.iter().all(by_field)
    }
}

fn expression<'a>(
    (key, operator, values): &(String, String, Vec<String>),
    value: impl Fn(&str) -> Option<&'a str>,
) -> bool {
    node_expression(operator, values, value(key))
}
