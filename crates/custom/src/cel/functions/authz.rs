//! The authorizer: whether who sent the request may do something else besides.
//!
//! Flow: `authorizer` → the path, or group, resource and so on, one after another → `check` with a verb, which asks the
//! [`Judge`] → a decision that can be looked into.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/cel/#kubernetes-authorizer-library>.

use std::fmt;
use std::rc::Rc;

use super::super::value::Val;
use super::{EvalError, Meter, NO_OVERLOAD, Price, Row, method};

/// What one decision costs: as much as in Kubernetes, so that an expression cannot ask for more than a few.
const CHECK_COST: u64 = 350_000;

/// Who decides.
pub trait Judge: fmt::Debug + Sync {
    /// Whether it is allowed, with a reason that may be empty.
    ///
    /// # Errors
    /// Why there is no decision.
    fn decide(&self, asked: &Asked) -> Result<(bool, String), String>;
}

/// What a decision is asked about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Namespace and name of the ServiceAccount that is meant instead of who sent the request.
    pub service_account: Option<(String, String)>,
    /// What shall be done.
    pub verb: String,
    /// A path that is no resource; then the fields below mean nothing.
    pub path: Option<String>,
    /// The group of the resource.
    pub group: String,
    /// The resource.
    pub resource: String,
    /// A part of it.
    pub subresource: String,
    /// The namespace; empty for all.
    pub namespace: String,
    /// The name; empty for any.
    pub name: String,
    /// Fields that are selected.
    pub field_selector: String,
    /// Labels that are selected.
    pub label_selector: String,
}

/// A question that is being put together.
#[derive(Debug, Clone)]
pub struct Check<'a> {
    judge: &'a dyn Judge,
    stage: Stage,
    asked: Asked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Authorizer,
    Path,
    Group,
    Resource,
}

/// What came of a question.
pub type Decision = Result<(bool, String), String>;

impl<'a> Check<'a> {
    /// The beginning of questions.
    pub fn begin(judge: &'a dyn Judge) -> Self {
        Self { judge, stage: Stage::Authorizer, asked: Asked::default() }
    }

    /// A question about a resource, to which only the verb is missing.
    pub fn of_resource(judge: &'a dyn Judge, asked: Asked) -> Self {
        Self { judge, stage: Stage::Resource, asked }
    }

    /// The name of its type.
    pub(in crate::cel) fn type_name(&self) -> &'static str {
        match self.stage {
            Stage::Authorizer => "kubernetes.authorization.Authorizer",
            Stage::Path => "kubernetes.authorization.PathCheck",
            Stage::Group => "kubernetes.authorization.GroupCheck",
            Stage::Resource => "kubernetes.authorization.ResourceCheck",
        }
    }
}

const PART: &[&str] = &["ResourceCheck, string -> ResourceCheck"];

pub(super) const ROWS: &[Row] = &[
    method("path", &["Authorizer, string -> PathCheck"], Price::Step, |args, _| {
        step(args, (Stage::Authorizer, Stage::Path), |asked, text| asked.path = Some(text))
    }),
    method("group", &["Authorizer, string -> GroupCheck"], Price::Step, |args, _| {
        step(args, (Stage::Authorizer, Stage::Group), |asked, text| asked.group = text)
    }),
    method("serviceAccount", &["Authorizer, string, string -> Authorizer"], Price::Step, |args, _| match args {
        [Val::Check(check), Val::Text(namespace), Val::Text(name)] if check.stage == Stage::Authorizer => {
            let mut check = (**check).clone();
            check.asked.service_account = Some((namespace.to_string(), name.to_string()));
            Ok(Val::Check(Rc::new(check)))
        }
        _ => Err(NO_OVERLOAD),
    }),
    method("resource", &["GroupCheck, string -> ResourceCheck"], Price::Step, |args, _| {
        step(args, (Stage::Group, Stage::Resource), |asked, text| asked.resource = text)
    }),
    method("subresource", PART, Price::Step, |args, _| part(args, |asked, text| asked.subresource = text)),
    method("namespace", PART, Price::Step, |args, _| part(args, |asked, text| asked.namespace = text)),
    method("name", PART, Price::Step, |args, _| part(args, |asked, text| asked.name = text)),
    method("fieldSelector", PART, Price::Step, |args, _| part(args, |asked, text| asked.field_selector = text)),
    method("labelSelector", PART, Price::Step, |args, _| part(args, |asked, text| asked.label_selector = text)),
    method("check", &["PathCheck, string -> Decision", "ResourceCheck, string -> Decision"], Price::Step, check),
    method("allowed", &["Decision -> bool"], Price::Step, |args, _| {
        decision(args, |decision| Val::Bool(matches!(decision, Ok((true, _)))))
    }),
    method("errored", &["Decision -> bool"], Price::Step, |args, _| {
        decision(args, |decision| Val::Bool(decision.is_err()))
    }),
    method("reason", &["Decision -> string"], Price::Step, |args, _| {
        decision(args, |decision| Val::text(decision.as_ref().map_or("", |(_, reason)| reason)))
    }),
    method("error", &["Decision -> string"], Price::Step, |args, _| {
        decision(args, |decision| Val::text(decision.as_ref().err().map_or("", String::as_str)))
    }),
];

fn step<'a>(
    args: &[Val<'a>],
    (from, to): (Stage, Stage),
    put: impl FnOnce(&mut Asked, String),
) -> Result<Val<'a>, EvalError> {
    match args {
        [Val::Check(check), Val::Text(text)] if check.stage == from => {
            let mut check = (**check).clone();
            check.stage = to;
            put(&mut check.asked, text.to_string());
            Ok(Val::Check(Rc::new(check)))
        }
        _ => Err(NO_OVERLOAD),
    }
}

fn part<'a>(args: &[Val<'a>], put: impl FnOnce(&mut Asked, String)) -> Result<Val<'a>, EvalError> {
    step(args, (Stage::Resource, Stage::Resource), put)
}

fn check<'a>(args: &[Val<'a>], meter: &mut Meter) -> Result<Val<'a>, EvalError> {
    match args {
        [Val::Check(check), Val::Text(verb)] if matches!(check.stage, Stage::Path | Stage::Resource) => {
            meter.charge(CHECK_COST)?;
            let asked = Asked { verb: verb.to_string(), ..check.asked.clone() };
            Ok(Val::Decision(Rc::new(check.judge.decide(&asked))))
        }
        _ => Err(NO_OVERLOAD),
    }
}

fn decision<'a>(args: &[Val<'a>], of: impl FnOnce(&Decision) -> Val<'a>) -> Result<Val<'a>, EvalError> {
    match args {
        [Val::Decision(decision)] => Ok(of(decision)),
        _ => Err(NO_OVERLOAD),
    }
}
