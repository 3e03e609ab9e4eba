//! MutatingAdmissionPolicy: what its mutations make of an object.
//!
//! Flow: for each mutation in turn, the expression over the object as the ones before left it → a configuration that is
//! merged as server-side apply merges, or a JSON patch. A mutation that fails changes nothing, and its failure is told
//! unless the policy ignores failures; those after it still run.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/mutating-admission-policy/>.

use std::cell::RefCell;

use mainstay_model::apply::{View, overlay};
use mainstay_model::patch::{self, PatchType};
use serde_json::{Value, json};

use super::validate::expression;
use super::{COST_OF_EXPRESSION_MAX, COST_OF_POLICY_MAX, Policy, Question, Scope};
use crate::cel::{Environment, JSON_PATCH, Meter, OBJECT, Program, Type};
use crate::path::{Faults, Path};

const PATCH_TYPES: &[&str] = &["ApplyConfiguration", "JSONPatch"];

/// One change, compiled.
#[derive(Debug)]
pub(super) enum Mutation {
    /// Gives a configuration to be applied.
    Configuration(Program),
    /// Gives the operations of a JSON patch.
    Patch(Program),
}

/// Compiles `spec.mutations`.
pub(super) fn compile(spec: &Value, environment: &Environment, faults: &mut Faults) -> Vec<Mutation> {
    let list = Path::root("spec.mutations");
    let mut all = Vec::new();
    for (i, mutation) in spec["mutations"].as_array().into_iter().flatten().enumerate() {
        let path = list.index(i);
        let given = mutation["patchType"].as_str().unwrap_or_default();
        let (field, other) = match given {
            "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
            "JSONPatch" => ("jsonPatch", "applyConfiguration"),
            "" => {
                faults.required(path.field("patchType"), "");
                continue;
            }
            _ => {
                faults.not_supported(path.field("patchType"), &json!(given), PATCH_TYPES);
                continue;
            }
        };
        if !mutation[other].is_null() {
            faults.forbidden(path.field(other), format!("may not be specified when patchType is {given}"));
        }
        let here = path.field(field);
        if mutation[field].is_null() {
            faults.required(here, format!("must be specified when patchType is {given}"));
            continue;
        }
        let wanted = if given == "JSONPatch" {
            vec![Type::list(Type::Message(JSON_PATCH.into())), Type::list(Type::Dyn), Type::Dyn]
        } else {
            vec![Type::Message(OBJECT.into()), Type::Dyn]
        };
        let program = expression(&mutation[field], "expression", &wanted, environment, &here, faults);
        all.extend(program.map(if given == "JSONPatch" { Mutation::Patch } else { Mutation::Configuration }));
    }
    all
}

impl Policy {
    /// What becomes of `question.object`, and what went wrong that the policy does not ignore. The object has the shape
    /// that `view` says.
    pub fn mutate(&self, question: Question<'_>, view: View<'_>) -> (Option<Value>, Vec<String>) {
        match self.conditions.hold(question) {
            Ok(true) => {}
            Err(broken) if self.fails_closed => return (None, vec![broken]),
            _ => return (None, Vec::new()),
        }
        let mut meter = Meter::new(COST_OF_POLICY_MAX);
        let (mut changed, mut failures) = (None, Vec::new());
        for mutation in &self.mutations {
            let object = changed.as_ref().unwrap_or(question.object);
            match self.apply(mutation, Question { object, ..question }, view, &mut meter) {
                Ok(object) => changed = Some(object),
                Err(failure) => failures.push(failure),
            }
        }
        if !self.fails_closed {
            failures.clear();
        }
        (changed, failures)
    }

    fn apply(
        &self,
        mutation: &Mutation,
        question: Question<'_>,
        view: View<'_>,
        meter: &mut Meter,
    ) -> Result<Value, String> {
        let (Mutation::Configuration(program) | Mutation::Patch(program)) = mutation;
        let scope = Scope { question, variables: &self.variables, known: RefCell::default() };
        let made = meter.within(COST_OF_EXPRESSION_MAX, |meter| {
            program.evaluate(&scope, meter).and_then(|value| value.to_json(meter))
        });
        let mut made = made.map_err(|error| format!("expression '{}' resulted in error: {error}", program.source()))?;
        match mutation {
            Mutation::Configuration(_) if !made.is_object() => {
                Err("the expression must evaluate to an object of type Object".to_owned())
            }
            Mutation::Configuration(_) => {
                for field in ["apiVersion", "kind"] {
                    made[field] = question.object[field].clone();
                }
                let merged = overlay(view, question.object, &made);
                merged.map_err(|error| format!("Invalid ApplyConfiguration: {error}"))
            }
            Mutation::Patch(_) => {
                let applied = patch::apply(PatchType::Json, "", question.object, &made);
                applied.map_err(|error| format!("JSON Patch: {error}"))
            }
        }
    }
}
