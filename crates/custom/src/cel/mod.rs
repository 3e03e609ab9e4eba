//! CEL, the Common Expression Language, as Kubernetes uses it in `x-kubernetes-validations` rules and admission policies.
//!
//! Flow: [`Program::compile`] reads and type-checks an expression against declared variables; [`Program::evaluate`] runs
//! it over JSON objects, which are looked into, never copied.
//!
//! Guarantees: evaluation always ends. Every step is charged to a [`Meter`], and an expression that costs more than its
//! limit ends with [`EvalError::CostLimit`]; nesting and size of expressions are limited; nothing panics.
//!
//! Why not a library: decision 40.
//!
//! Deliberately absent: protobuf messages, time zones by name.
//!
//! Source: <https://github.com/google/cel-spec/blob/master/doc/langdef.md>, <https://kubernetes.io/docs/reference/using-api/cel/>.

mod ast;
mod check;
mod cost;
mod eval;
mod functions;
mod lexer;
mod parser;
mod types;
mod value;

use std::fmt;

use ast::Expr;
pub use cost::{Meter, Sizes};
pub use functions::authz::{Asked, Check, Decision, Judge};
pub use functions::net::Url;
pub use functions::time::{parse_date_time, parse_duration};
pub use types::{AUTHORIZER, Field, JSON_PATCH, ListShape, OBJECT, ObjectType, Type};
pub(crate) use types::{schema_type, unescape};
pub use value::{Key, List, Map, Text, Val};

/// Why an expression is refused: what is wrong and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct CompileError {
    message: String,
    line: usize,
    column: usize,
    source_line: String,
}

impl CompileError {
    fn at(source: &str, at: u32, message: impl Into<String>) -> Self {
        let at = (at as usize).min(source.len());
        let before = source.get(..at).unwrap_or_default();
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let source_line = source.get(start..).unwrap_or_default().lines().next().unwrap_or_default();
        Self {
            message: message.into(),
            line: before.matches('\n').count() + 1,
            column: before.get(start..).unwrap_or_default().chars().count(),
            source_line: source_line.to_owned(),
        }
    }

    /// The sentence without the place.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "ERROR: <input>:{}:{}: {}", self.line, self.column + 1, self.message)?;
        write!(f, " | {}\n | {}^", self.source_line, ".".repeat(self.column))
    }
}

/// Why an evaluation has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// A key or field that is not there.
    #[error("no such key: {0}")]
    NoSuchKey(String),
    /// A variable that has no value.
    #[error("no such attribute(s): {0}")]
    NoSuchVariable(String),
    /// A function or operator that does not take these values.
    #[error("no such overload")]
    NoOverload,
    /// A whole number out of its range.
    #[error("integer overflow")]
    Overflow,
    /// Division by zero.
    #[error("division by zero")]
    DivisionByZero,
    /// Modulus by zero.
    #[error("modulus by zero")]
    ModulusByZero,
    /// A list has no item there.
    #[error("index out of bounds: {0}")]
    OutOfBounds(i64),
    /// More steps than allowed.
    #[error("operation cancelled: actual cost limit exceeded")]
    CostLimit,
    /// What a function says.
    #[error("{0}")]
    Other(String),
}

/// The variables an expression may use, with their types.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: Vec<(String, Type)>,
    /// Whether objects and patches can be made.
    messages: bool,
}

impl Environment {
    /// No variables.
    pub fn new() -> Self {
        Self::default()
    }

    /// One variable more; a later one of the same name hides the earlier.
    #[must_use]
    pub fn with(mut self, name: &str, variable_type: Type) -> Self {
        self.variables.retain(|(existing, _)| existing != name);
        self.variables.push((name.to_owned(), variable_type));
        self
    }

    /// Expressions that may make objects, `Object.spec{replicas: 3}`, and operations of JSON patches.
    #[must_use]
    pub fn making_objects(mut self) -> Self {
        self.messages = true;
        self
    }

    fn find(&self, name: &str) -> Option<&Type> {
        self.variables.iter().find(|(existing, _)| existing == name).map(|(_, variable_type)| variable_type)
    }
}

/// Where an evaluation finds the values of its variables.
pub trait Variables<'a> {
    /// The value of a variable; none when it is not bound.
    fn variable(&self, name: &str) -> Option<Val<'a>>;

    /// The value of `name.field`, for a variable whose fields are computed when they are first needed. None for any other
    /// variable.
    fn computed(&self, _name: &str, _field: &str, _meter: &mut Meter) -> Option<Result<Val<'a>, EvalError>> {
        None
    }
}

impl<'a> Variables<'a> for [(&str, Val<'a>)] {
    fn variable(&self, name: &str) -> Option<Val<'a>> {
        self.iter().find(|(existing, _)| *existing == name).map(|(_, value)| value.clone())
    }
}

impl<'a, const N: usize> Variables<'a> for [(&str, Val<'a>); N] {
    fn variable(&self, name: &str) -> Option<Val<'a>> {
        self.as_slice().variable(name)
    }
}

/// An expression that was read and checked.
#[derive(Debug, Clone)]
pub struct Program {
    expr: Expr,
    source: String,
    result: Type,
    names: Vec<String>,
}

impl Program {
    /// Reads and checks an expression.
    ///
    /// # Errors
    /// What is wrong with it, with the place, as kube-apiserver prints it.
    pub fn compile(source: &str, environment: &Environment) -> Result<Self, CompileError> {
        let expr = parser::parse(source)?;
        let result = check::check(&expr, source, environment)?;
        let mut names = Vec::new();
        expr.free_names(&mut Vec::new(), &mut names);
        let names = names.into_iter().map(str::to_owned).collect();
        Ok(Self { source: source.to_owned(), result, names, expr })
    }

    /// The type of its result.
    pub fn result_type(&self) -> &Type {
        &self.result
    }

    /// The expression as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it looks at a variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.names.iter().any(|name| name == variable)
    }

    /// What it may cost at the most on objects of these sizes; see [`Sizes`].
    pub fn cost_max(&self, sizes: &dyn Sizes) -> u64 {
        cost::estimate(&self.expr, sizes)
    }

    /// Runs it.
    ///
    /// # Errors
    /// When a key is missing, a value does not fit, or it costs more than the meter has left.
    pub fn evaluate<'a>(&'a self, variables: &dyn Variables<'a>, meter: &mut Meter) -> Result<Val<'a>, EvalError> {
        eval::evaluate(&self.expr, variables, meter)
    }
}

#[cfg(test)]
mod tests;
