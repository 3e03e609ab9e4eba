//! `x-kubernetes-validations`: rules in CEL about a value and, in updates, what it was before.
//!
//! Guarantees: all rules of one write together cost no more than [`COST_OF_OBJECT_MAX`], one rule no more than
//! [`COST_OF_RULE_MAX`]; a rule that fails to evaluate refuses the write.
//!
//! Source: <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#validation-rules>.

use mainstay_model::status::{FieldError, FieldErrorKind};
use serde_json::{Value, json};

use super::validate::Correlated;
use super::{Kind, ListType, Schema};
use crate::cel::{CompileError, Environment, EvalError, Meter, Program, Sizes, Type, Val};
use crate::jsonpath::JsonPath;
use crate::path::{Faults, Path};

/// What one evaluation of a rule may cost.
pub const COST_OF_RULE_MAX: u64 = 1_000_000;
/// What all rules together may cost for one write.
pub const COST_OF_OBJECT_MAX: u64 = 10_000_000;
/// Longest text a `messageExpression` may give, in bytes.
const MESSAGE_BYTES_MAX: usize = 5 * 1024;
/// Largest body of a request, from which the most items of a list without a limit follow, in bytes.
const REQUEST_BYTES_MAX: u64 = 3 * 1024 * 1024;

/// Why a rule cannot be used; each variant is about one of its fields.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// `rule` does not compile.
    #[error("compilation failed: {0}")]
    Rule(CompileError),
    /// `rule` gives no bool.
    #[error("compilation failed: cel expression must evaluate to a bool")]
    RuleType,
    /// `messageExpression` does not compile.
    #[error("messageExpression compilation failed: {0}")]
    Message(CompileError),
    /// `messageExpression` gives no string.
    #[error("messageExpression must evaluate to a string")]
    MessageType,
    /// `fieldPath` names no field of the schema.
    #[error("fieldPath must be a valid path: {0}")]
    FieldPath(String),
}

/// A rule, compiled.
#[derive(Debug)]
pub struct Rule {
    program: Program,
    message: Option<String>,
    message_program: Option<Program>,
    reason: FieldErrorKind,
    /// Fields from the value to the one the fault is reported at.
    field_path: Vec<String>,
    uses_old: bool,
    optional_old: bool,
    self_type: Type,
}

impl Rule {
    /// Compiles one entry of `x-kubernetes-validations` on a value of this type.
    pub(crate) fn compile(rule: &Value, self_type: &Type) -> Result<Self, RuleError> {
        let optional_old = rule["optionalOldSelf"].as_bool().unwrap_or(false);
        let old_type = if optional_old { Type::optional(self_type.clone()) } else { self_type.clone() };
        let environment = Environment::new().with("self", self_type.clone()).with("oldSelf", old_type);
        let program =
            Program::compile(rule["rule"].as_str().unwrap_or_default(), &environment).map_err(RuleError::Rule)?;
        if !matches!(program.result_type(), Type::Bool | Type::Dyn) {
            return Err(RuleError::RuleType);
        }
        let message_program = match rule["messageExpression"].as_str().filter(|text| !text.is_empty()) {
            None => None,
            Some(text) => {
                let program = Program::compile(text, &environment).map_err(RuleError::Message)?;
                if !matches!(program.result_type(), Type::String | Type::Dyn) {
                    return Err(RuleError::MessageType);
                }
                Some(program)
            }
        };
        let field_path = match rule["fieldPath"].as_str().filter(|text| !text.is_empty()) {
            None => Vec::new(),
            Some(text) => field_path(text)?,
        };
        Ok(Self {
            uses_old: program.uses("oldSelf"),
            program,
            message: rule["message"].as_str().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()),
            message_program,
            reason: match rule["reason"].as_str() {
                Some("FieldValueForbidden") => FieldErrorKind::Forbidden,
                Some("FieldValueRequired") => FieldErrorKind::Required,
                Some("FieldValueDuplicate") => FieldErrorKind::Duplicate,
                _ => FieldErrorKind::Invalid,
            },
            field_path,
            optional_old,
            self_type: self_type.clone(),
        })
    }

    /// Whether it compares with the value before.
    pub(crate) fn uses_old(&self) -> bool {
        self.uses_old
    }

    /// The most it can cost on a value of `schema`.
    pub(crate) fn cost_max(&self, schema: &Schema) -> u64 {
        self.program.cost_max(&SchemaSizes(schema))
    }

    /// What stands for the rule in messages about it.
    fn named(&self) -> &str {
        self.message.as_deref().unwrap_or_else(|| self.program.source().trim())
    }

    /// Runs it; false when no further rule may run.
    fn run(
        &self,
        schema: &Schema,
        value: &Value,
        old: Option<&Value>,
        path: &Path<'_>,
        meter: &mut Meter,
        faults: &mut Faults,
    ) -> bool {
        if self.uses_old && old.is_none() && !self.optional_old {
            return true;
        }
        let old_value = old.map(|old| Val::of(old, &self.self_type));
        let old_value = if self.optional_old { Some(Val::optional(old_value)) } else { old_value };
        let mut variables = vec![("self", Val::of(value, &self.self_type))];
        variables.extend(old_value.map(|old| ("oldSelf", old)));
        let variables = Bound(variables);
        let type_word = json!(schema.kind.map_or("", Kind::word));
        let invalid = |detail: String, faults: &mut Faults| faults.invalid(path, &type_word, detail);
        if meter.left() == 0 {
            let words = "validation failed due to running out of cost budget, no further validation rules will be run";
            invalid(words.to_owned(), faults);
            return false;
        }
        match meter.within(COST_OF_RULE_MAX, |meter| self.program.evaluate(&variables, meter)) {
            Ok(Val::Bool(true)) => return true,
            Ok(Val::Bool(false)) => {}
            Err(error @ EvalError::CostLimit) => {
                let words = "no further validation rules will be run due to call cost exceeds limit for rule";
                invalid(format!("'{error}': {words}: {}", self.named()), faults);
                return false;
            }
            Ok(_) | Err(EvalError::NoOverload) => {
                let words = "call arguments did not match a supported operator, function or macro signature for rule";
                invalid(format!("'{}': {words}: {}", EvalError::NoOverload, self.named()), faults);
                return true;
            }
            Err(error) => {
                invalid(format!("{error} evaluating rule: {}", self.named()), faults);
                return true;
            }
        }
        let detail = self.detail(&variables, meter);
        self.report(schema, value, path, detail, faults);
        true
    }

    /// What is said about a value that breaks the rule.
    fn detail(&self, variables: &Bound<'_>, meter: &mut Meter) -> String {
        let computed = self.message_program.as_ref().and_then(|program| {
            match meter.within(COST_OF_RULE_MAX, |meter| program.evaluate(variables, meter)) {
                Ok(Val::Text(text)) => Some(text.trim().to_owned()),
                _ => None,
            }
        });
        computed
            .filter(|text| !text.is_empty() && !text.contains('\n') && text.len() <= MESSAGE_BYTES_MAX)
            .or_else(|| self.message.clone())
            .unwrap_or_else(|| format!("failed rule: {}", self.program.source().trim()))
    }

    fn report(&self, schema: &Schema, value: &Value, path: &Path<'_>, detail: String, faults: &mut Faults) {
        let mut place = path.to_string();
        let mut at = Some(schema);
        for name in &self.field_path {
            // A key of a map stands in brackets, a field behind a dot.
            let declared = at.is_none_or(|schema| schema.properties.contains_key(name));
            place = match (declared, place.is_empty()) {
                (true, true) => name.clone(),
                (true, false) => format!("{place}.{name}"),
                (false, _) => format!("{place}[{name}]"),
            };
            at = at.and_then(|schema| schema.field(name));
        }
        if place.is_empty() {
            "<nil>".clone_into(&mut place);
        }
        let shown = match self.reason {
            FieldErrorKind::Forbidden | FieldErrorKind::Required => None,
            _ => (!value.is_object() && !value.is_array()).then(|| value.clone()),
        };
        let detail = if self.reason == FieldErrorKind::Duplicate { String::new() } else { detail };
        faults.push(FieldError { field: place, kind: self.reason, detail, value: shown });
    }
}

struct Bound<'a>(Vec<(&'static str, Val<'a>)>);

impl<'a> crate::cel::Variables<'a> for Bound<'a> {
    fn variable(&self, name: &str) -> Option<Val<'a>> {
        self.0.iter().find(|(existing, _)| *existing == name).map(|(_, value)| value.clone())
    }
}

/// The field names of a `fieldPath`.
fn field_path(text: &str) -> Result<Vec<String>, RuleError> {
    if !text.starts_with(['.', '[']) {
        return Err(RuleError::FieldPath(format!("expected [ or . but got: {text}")));
    }
    let path = JsonPath::parse(text).map_err(|error| RuleError::FieldPath(error.to_string()))?;
    let names = path.simple().ok_or_else(|| RuleError::FieldPath("array notation is not allowed".to_owned()))?;
    Ok(names.into_iter().map(str::to_owned).collect())
}

impl Schema {
    /// Whether a rule's `fieldPath` leads to a field of this schema.
    pub(crate) fn check_field_path(&self, text: &str) -> Result<(), RuleError> {
        let names = field_path(text)?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        match self.at(&names) {
            Some(_) => Ok(()),
            None => Err(RuleError::FieldPath("does not refer to a valid field".to_owned())),
        }
    }

    /// Runs all rules over an object that keeps to its schema otherwise.
    pub(super) fn run_rules(&self, object: &Value, old: Option<&Value>, faults: &mut Faults) {
        let mut meter = Meter::new(COST_OF_OBJECT_MAX);
        self.walk_rules(object, old, &Path::root(""), &mut meter, faults);
    }

    /// False when no further rule may run.
    fn walk_rules(
        &self,
        value: &Value,
        old: Option<&Value>,
        path: &Path<'_>,
        meter: &mut Meter,
        faults: &mut Faults,
    ) -> bool {
        if !self.has_rules || value.is_null() || faults.is_full() {
            return true;
        }
        let old = old.filter(|old| !old.is_null());
        let unchanged = old == Some(value);
        for rule in self.rules.iter().filter(|rule| !unchanged || rule.uses_old) {
            if !rule.run(self, value, old, path, meter, faults) {
                return false;
            }
        }
        match value {
            Value::Object(map) => map.iter().all(|(name, value)| {
                let (declared, Some(schema)) = (self.properties.contains_key(name), self.field(name)) else {
                    return true;
                };
                let old = old.and_then(|old| old.get(name)).filter(|_| !self.atomic_map);
                let here = if declared { path.field(name) } else { path.key(name) };
                schema.walk_rules(value, old, &here, meter, faults)
            }),
            Value::Array(list) => {
                let Some(items) = self.items.as_deref().filter(|items| items.has_rules) else { return true };
                let old = Correlated::of(self, old);
                list.iter()
                    .enumerate()
                    .all(|(i, value)| items.walk_rules(value, old.find(value), &path.index(i), meter, faults))
            }
            _ => true,
        }
    }

    /// The fewest bytes a value takes in JSON.
    fn bytes_min(&self) -> u64 {
        match self.kind {
            Some(Kind::String) => 2 + self.limits.as_ref().and_then(|limits| limits.length_min).unwrap_or(0),
            Some(Kind::Boolean) => 4,
            Some(Kind::Array) => 2,
            Some(Kind::Object) => {
                let required = self.limits.as_ref().map_or(&[][..], |limits| &limits.required);
                let field = |name: &String| name.len() as u64 + 4 + self.field(name).map_or(1, Self::bytes_min);
                2 + required.iter().map(field).sum::<u64>()
            }
            _ => 1,
        }
    }

    /// The most items a list or map can have: its own limit, or what fits into a request.
    pub(crate) fn items_max(&self) -> u64 {
        let limits = self.limits.as_ref();
        let fitting =
            |schema: Option<&Schema>, extra: u64| REQUEST_BYTES_MAX / (schema.map_or(1, Self::bytes_min) + extra);
        match self.kind {
            Some(Kind::Array) => {
                limits.and_then(|limits| limits.items_max).unwrap_or_else(|| fitting(self.items.as_deref(), 1))
            }
            // A key is two quotes, a colon and a comma at least.
            Some(Kind::Object) if self.additional.is_some() => {
                limits.and_then(|limits| limits.properties_max).unwrap_or_else(|| fitting(self.additional_schema(), 4))
            }
            Some(Kind::Object) => self.properties.len() as u64,
            _ => 1,
        }
    }

    /// Whether parts of it can be found again in the object before.
    pub(crate) fn parts_correlate(&self) -> bool {
        match self.kind {
            Some(Kind::Array) => matches!(self.list_type, ListType::Map(_)),
            _ => !self.atomic_map,
        }
    }
}

/// The sizes of values of a schema, by the paths of expressions.
struct SchemaSizes<'a>(&'a Schema);

impl Sizes for SchemaSizes<'_> {
    fn items_max(&self, path: &[&str]) -> u64 {
        let steps = path.iter().skip(1);
        let place = steps.into_iter().try_fold(self.0, |schema, step| match *step {
            "*" => schema.items.as_deref().or_else(|| schema.additional_schema()),
            name => schema.field(name).or_else(|| schema.field(&crate::cel::unescape(name))),
        });
        place.map_or(1, Schema::items_max)
    }
}
