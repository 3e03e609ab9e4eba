//! What evaluation costs, so that no expression runs for long.
//!
//! A step is one node of the tree; functions that look at whole texts and lists cost a tenth of their sizes more. The
//! figures follow the order of magnitude of Kubernetes' own, so that its limits can be used as they are.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/cel/#resource-constraints>.

use std::collections::HashMap;
use std::rc::Rc;

use regex::Regex;

use super::EvalError;
use super::ast::{Expr, Node};

/// Most expressions a meter keeps compiled.
const REGEXES_MAX: usize = 64;

/// What is left to be spent, and what was already worked out.
#[derive(Debug)]
pub struct Meter {
    left: u64,
    regexes: HashMap<String, Rc<Regex>>,
}

impl Meter {
    /// A meter with this much to spend.
    pub fn new(limit: u64) -> Self {
        Self { left: limit, regexes: HashMap::new() }
    }

    /// What is left.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Runs with no more than `limit` of what is left, and takes what it cost from it.
    pub fn within<T>(&mut self, limit: u64, run: impl FnOnce(&mut Self) -> T) -> T {
        let kept = self.left.saturating_sub(limit);
        self.left -= kept;
        let result = run(self);
        self.left += kept;
        result
    }

    /// Spends.
    pub(super) fn charge(&mut self, cost: u64) -> Result<(), EvalError> {
        if let Some(left) = self.left.checked_sub(cost) {
            self.left = left;
            Ok(())
        } else {
            self.left = 0;
            Err(EvalError::CostLimit)
        }
    }

    /// A compiled regular expression, compiled once per meter.
    pub(super) fn regex(&mut self, text: &str) -> Result<Rc<Regex>, EvalError> {
        if let Some(regex) = self.regexes.get(text) {
            return Ok(regex.clone());
        }
        self.charge(100 + text.len() as u64 * 10)?;
        let regex = crate::pattern::compile(text).map_err(|_| {
            EvalError::Other(format!("error parsing regexp: {}", crate::pattern::check(text).err().unwrap_or_default()))
        })?;
        let regex = Rc::new(regex);
        if self.regexes.len() < REGEXES_MAX {
            self.regexes.insert(text.to_owned(), regex.clone());
        }
        Ok(regex)
    }
}

/// How many items lists and maps can have, by where they are in an object.
pub trait Sizes {
    /// The largest number of items of what a chain of names leads to; the first is a variable, `*` an item.
    fn items_max(&self, path: &[&str]) -> u64;
}

/// The most an expression can cost: each loop as often as its range has items.
pub(super) fn estimate(expr: &Expr, sizes: &dyn Sizes) -> u64 {
    Estimate { sizes, scopes: Vec::new() }.expr(expr)
}

struct Estimate<'a> {
    sizes: &'a dyn Sizes,
    /// Variables of loops and the places their values come from.
    scopes: Vec<(&'a str, Vec<&'a str>)>,
}

impl<'a> Estimate<'a> {
    fn sum(&mut self, parts: impl IntoIterator<Item = &'a Expr>) -> u64 {
        parts.into_iter().fold(0, |sum: u64, part| sum.saturating_add(self.expr(part)))
    }

    fn expr(&mut self, expr: &'a Expr) -> u64 {
        let inner = match &expr.node {
            Node::Literal(_) | Node::Ident(_) => 0,
            Node::Message { fields, .. } => self.sum(fields.iter().map(|(_, value, _)| value)),
            Node::Select { operand, .. } => self.expr(operand),
            Node::Index { operand, index, .. } => self.sum([&**operand, &**index]),
            Node::Call { target, args, .. } => self.sum(target.as_deref().into_iter().chain(args)),
            Node::And(left, right) | Node::Or(left, right) => self.sum([&**left, &**right]),
            Node::Conditional(test, yes, no) => self.expr(test).saturating_add(self.expr(yes).max(self.expr(no))),
            Node::List(items) => self.sum(items.iter().map(|(item, _)| item)),
            Node::Map(entries) => self.sum(entries.iter().flat_map(|(key, value, _)| [key, value])),
            Node::Loop { range, first, second, filter, body, .. } => {
                let path = self.path(range);
                let count = path.as_ref().map_or(1, |path| self.sizes.items_max(path));
                let before = self.scopes.len();
                let item = path.unwrap_or_default().into_iter().chain(["*"]).collect::<Vec<_>>();
                self.scopes.push((first, item.clone()));
                self.scopes.extend(second.as_deref().map(|second| (second, item)));
                let each = self.sum(filter.as_deref().into_iter().chain([&**body])).saturating_add(1);
                self.scopes.truncate(before);
                self.expr(range).saturating_add(count.saturating_mul(each))
            }
            Node::OptionalMap { target: value, body, .. } | Node::Bind { value, body, .. } => {
                self.sum([&**value, &**body])
            }
        };
        inner.saturating_add(1)
    }

    /// Where the value of an expression comes from, if it is part of an object.
    fn path(&self, expr: &'a Expr) -> Option<Vec<&'a str>> {
        let below = |operand: &'a Expr, step: &'a str| {
            let mut path = self.path(operand)?;
            path.push(step);
            Some(path)
        };
        match &expr.node {
            Node::Ident(name) => match self.scopes.iter().rev().find(|(existing, _)| existing == name) {
                Some((_, path)) => Some(path.clone()),
                None => Some(vec![name]),
            },
            Node::Select { operand, field, .. } => below(operand, field),
            Node::Index { operand, .. } => below(operand, "*"),
            // What is filtered is no longer than what it is filtered from.
            Node::Loop { kind: super::ast::Loop::Filter, range, .. } => self.path(range),
            _ => None,
        }
    }
}
