//! Admission policies, decided over values: ValidatingAdmissionPolicy says whether a write may pass,
//! MutatingAdmissionPolicy changes what is written.
//!
//! Flow: [`Policy::compile`] once; for each write and binding [`Policy::evaluate`] or [`Policy::mutate`] with the object, the
//! old object, the request, the parameters and the namespace. Which writes a policy is about is [`matching`].
//!
//! Guarantees: one expression costs no more than [`COST_OF_EXPRESSION_MAX`], all of one evaluation together no more than
//! [`COST_OF_POLICY_MAX`]. Deliberately absent: type checks against the schemas of matched kinds.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/>,
//! <https://kubernetes.io/docs/reference/access-authn-authz/mutating-admission-policy/>.

pub mod matching;
mod mutation;
mod validate;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use serde_json::Value;

use crate::cel::{Asked, Check, EvalError, Judge, Meter, Program, Type, Val, Variables};
use mutation::Mutation;
pub use validate::{apply_defaults, validate};

/// The kind of policies that change what is written.
pub const MUTATING: &str = "MutatingAdmissionPolicy";
/// The kind of policies that refuse.
pub const VALIDATING: &str = "ValidatingAdmissionPolicy";
/// The kinds of policies and their bindings.
pub const KINDS: &[&str] =
    &[MUTATING, "MutatingAdmissionPolicyBinding", VALIDATING, "ValidatingAdmissionPolicyBinding"];

/// What one expression may cost.
pub const COST_OF_EXPRESSION_MAX: u64 = 1_000_000;
/// What all expressions of a policy may cost together for one write.
pub const COST_OF_POLICY_MAX: u64 = 10_000_000;
/// Longest text a `messageExpression` may give, in bytes.
const MESSAGE_BYTES_MAX: usize = 5 * 1024;
/// Longest value of an audit annotation, in bytes.
const ANNOTATION_BYTES_MAX: usize = 10 * 1024;

static DYN: Type = Type::Dyn;

/// A policy, compiled.
#[derive(Debug)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// Whether what cannot be evaluated is refused (`failurePolicy: Fail`).
    pub fails_closed: bool,
    conditions: Conditions,
    variables: Vec<(String, Program)>,
    validations: Vec<Validation>,
    annotations: Vec<(String, Program)>,
    mutations: Vec<Mutation>,
    /// Whether its mutations see once more what others made of the object after them (`reinvocationPolicy: IfNeeded`).
    pub reinvoked: bool,
}

/// `matchConditions`, of policies and of webhooks: which of the writes that rules choose are meant.
#[derive(Debug, Default)]
pub struct Conditions(Vec<(String, Program)>);

impl Conditions {
    /// Whether all hold. One that does not decides, whatever fails besides.
    ///
    /// # Errors
    /// A sentence for each condition that could not be evaluated.
    pub fn hold(&self, question: Question<'_>) -> Result<bool, String> {
        let scope = Scope { question, variables: &[], known: RefCell::default() };
        let mut meter = Meter::new(COST_OF_POLICY_MAX);
        let mut broken = Vec::new();
        for (name, program) in &self.0 {
            match meter.within(COST_OF_EXPRESSION_MAX, |meter| evaluate_bool(program, &scope, meter)) {
                Ok(Some(true)) => {}
                Ok(Some(false)) => return Ok(false),
                Ok(None) => broken.push(format!("matchCondition '{name}' did not give a bool")),
                Err(error) => broken.push(format!("matchCondition '{name}': {error}")),
            }
        }
        if broken.is_empty() { Ok(true) } else { Err(broken.join(", ")) }
    }
}

#[derive(Debug)]
struct Validation {
    program: Program,
    message: Option<String>,
    message_program: Option<Program>,
    reason: Option<String>,
}

/// What a policy is asked about. Absent parts are null.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The new object; null in a deletion.
    pub object: &'a Value,
    /// The stored object; null in a creation.
    pub old: &'a Value,
    /// The attributes of the request, as in an AdmissionReview.
    pub request: &'a Value,
    /// The parameter object of the binding.
    pub params: &'a Value,
    /// The namespace object; null for cluster-scoped kinds.
    pub namespace: &'a Value,
    /// Who knows what the caller may do besides.
    pub judge: &'a dyn Judge,
}

impl<'a> Question<'a> {
    /// The resource of the request, as a question to the authorizer.
    fn request_resource(&self) -> Check<'a> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (request, resource) = (self.request, &self.request["resource"]);
        let asked = Asked {
            group: text(&resource["group"]),
            resource: text(&resource["resource"]),
            subresource: text(&request["subResource"]),
            namespace: text(&request["namespace"]),
            name: text(&request["name"]),
            ..Asked::default()
        };
        Check::of_resource(self.judge, asked)
    }
}

/// One validation that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What to say.
    pub message: String,
    /// The status reason the policy asks for.
    pub reason: Option<String>,
}

/// What came of an evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Validations that did not hold; failures to evaluate are among them unless `failurePolicy` is `Ignore`.
    pub failures: Vec<Failure>,
    /// Audit annotations, by key.
    pub annotations: Vec<(String, String)>,
}

impl Outcome {
    fn fail(message: String) -> Self {
        Self { failures: vec![Failure { message, reason: None }], annotations: Vec::new() }
    }
}

struct Scope<'a> {
    question: Question<'a>,
    variables: &'a [(String, Program)],
    /// Variables that were worked out already.
    known: RefCell<HashMap<&'a str, Result<Val<'a>, EvalError>>>,
}

impl<'a> Variables<'a> for Scope<'a> {
    fn variable(&self, name: &str) -> Option<Val<'a>> {
        let value = match name {
            "object" => self.question.object,
            "oldObject" => self.question.old,
            "request" => self.question.request,
            "params" => self.question.params,
            "namespaceObject" => self.question.namespace,
            "authorizer" => return Some(Val::Check(Rc::new(Check::begin(self.question.judge)))),
            _ => return None,
        };
        Some(Val::of(value, &DYN))
    }

    fn computed(&self, name: &str, field: &str, meter: &mut Meter) -> Option<Result<Val<'a>, EvalError>> {
        if name == "authorizer" && field == "requestResource" {
            return Some(Ok(Val::Check(Rc::new(self.question.request_resource()))));
        }
        if name != "variables" {
            return None;
        }
        let variables: &'a [(String, Program)] = self.variables;
        let (key, program) = variables.iter().find(|(existing, _)| existing == field)?;
        if let Some(known) = self.known.borrow().get(key.as_str()) {
            return Some(known.clone());
        }
        // A variable sees only those before it, which the compiler has made sure of: this ends.
        let value = program.evaluate(self, meter);
        self.known.borrow_mut().insert(key.as_str(), value.clone());
        Some(value)
    }
}

impl Policy {
    /// Decides a write that the policy is about.
    pub fn evaluate(&self, question: Question<'_>) -> Outcome {
        let scope = Scope { question, variables: &self.variables, known: RefCell::default() };
        let mut meter = Meter::new(COST_OF_POLICY_MAX);
        match self.conditions.hold(question) {
            Ok(true) => {}
            Err(broken) if self.fails_closed => return Outcome::fail(broken),
            _ => return Outcome::default(),
        }
        let mut outcome = Outcome::default();
        for validation in &self.validations {
            let result =
                meter.within(COST_OF_EXPRESSION_MAX, |meter| evaluate_bool(&validation.program, &scope, meter));
            match result {
                Ok(Some(true)) => {}
                Ok(_) => {
                    let message = validation.message(&scope, &mut meter);
                    outcome.failures.push(Failure { message, reason: validation.reason.clone() });
                }
                Err(error) if self.fails_closed => {
                    let message = format!("expression '{}' resulted in error: {error}", validation.program.source());
                    outcome.failures.push(Failure { message, reason: None });
                }
                Err(_) => {}
            }
        }
        self.annotate(&scope, &mut meter, &mut outcome);
        outcome
    }

    fn annotate<'a>(&'a self, scope: &Scope<'a>, meter: &mut Meter, outcome: &mut Outcome) {
        for (key, program) in &self.annotations {
            match meter.within(COST_OF_EXPRESSION_MAX, |meter| program.evaluate(scope, meter)) {
                Ok(Val::Text(text)) if !text.is_empty() => {
                    outcome.annotations.push((key.clone(), crate::head(&text, ANNOTATION_BYTES_MAX).to_owned()));
                }
                Err(error) if self.fails_closed => {
                    let message = format!("auditAnnotation '{key}' resulted in error: {error}");
                    outcome.failures.push(Failure { message, reason: None });
                }
                Ok(_) | Err(_) => {}
            }
        }
    }
}

fn evaluate_bool<'a>(program: &'a Program, scope: &Scope<'a>, meter: &mut Meter) -> Result<Option<bool>, EvalError> {
    match program.evaluate(scope, meter)? {
        Val::Bool(value) => Ok(Some(value)),
        _ => Ok(None),
    }
}

impl Validation {
    fn message<'a>(&'a self, scope: &Scope<'a>, meter: &mut Meter) -> String {
        let computed = self.message_program.as_ref().and_then(|program| {
            match meter.within(COST_OF_EXPRESSION_MAX, |meter| program.evaluate(scope, meter)) {
                Ok(Val::Text(text)) => Some(text.trim().to_owned()),
                _ => None,
            }
        });
        computed
            .filter(|text| !text.is_empty() && !text.contains('\n') && text.len() <= MESSAGE_BYTES_MAX)
            .or_else(|| self.message.clone())
            .unwrap_or_else(|| format!("failed expression: {}", self.program.source().trim()))
    }
}

#[cfg(test)]
mod tests;
