//! Running an expression.
//!
//! `&&` and `||` give a result although one side fails, when the other side decides; so do `all` and `exists`.

use std::rc::Rc;

use super::ast::{Expr, Literal, Loop, Node};
use super::value::{List, Map, Text, Val, map_of};
use super::{EvalError, Meter, Variables, functions};

/// The value of an expression.
pub(super) fn evaluate<'a>(
    expr: &'a Expr,
    variables: &dyn Variables<'a>,
    meter: &mut Meter,
) -> Result<Val<'a>, EvalError> {
    Evaluator { variables, meter, scopes: Vec::new() }.expr(expr)
}

type Evaluated<'a> = Result<Val<'a>, EvalError>;

struct Evaluator<'a, 'v> {
    variables: &'v dyn Variables<'a>,
    meter: &'v mut Meter,
    scopes: Vec<(&'a str, Val<'a>)>,
}

impl<'a> Evaluator<'a, '_> {
    fn expr(&mut self, expr: &'a Expr) -> Evaluated<'a> {
        self.meter.charge(1)?;
        match &expr.node {
            Node::Literal(literal) => Ok(literal_value(literal)),
            Node::Ident(name) => self.ident(name),
            Node::Select { operand, field, test, optional } => self.select(operand, field, *test, *optional),
            Node::Index { operand, index, optional } => self.index(operand, index, *optional),
            Node::Call { function, target, args } => self.call(function, target.as_deref(), args),
            Node::And(left, right) => self.both(left, right, false),
            Node::Or(left, right) => self.both(left, right, true),
            Node::Conditional(test, yes, no) => match self.expr(test)? {
                Val::Bool(true) => self.expr(yes),
                Val::Bool(false) => self.expr(no),
                _ => Err(EvalError::NoOverload),
            },
            Node::List(items) => self.list(items),
            Node::Map(entries) => self.map(entries),
            Node::Message { fields, .. } => self.message(fields),
            Node::Loop { kind, range, first, second, filter, body } => {
                self.comprehension(*kind, range, (first, second.as_deref()), filter.as_deref(), body)
            }
            Node::OptionalMap { target, variable, body, flat } => match self.expr(target)? {
                Val::Optional(None) => Ok(Val::Optional(None)),
                Val::Optional(Some(inner)) => {
                    let result = self.scoped(vec![(variable, (*inner).clone())], |this| this.expr(body))?;
                    Ok(if *flat { result } else { Val::optional(Some(result)) })
                }
                _ => Err(EvalError::NoOverload),
            },
            Node::Bind { variable, value, body } => {
                let value = self.expr(value)?;
                self.scoped(vec![(variable, value)], |this| this.expr(body))
            }
        }
    }

    fn scoped<T>(&mut self, variables: Vec<(&'a str, Val<'a>)>, inner: impl FnOnce(&mut Self) -> T) -> T {
        let depth = self.scopes.len();
        self.scopes.extend(variables);
        let result = inner(self);
        self.scopes.truncate(depth);
        result
    }

    fn local(&self, name: &str) -> Option<&Val<'a>> {
        self.scopes.iter().rev().find(|(existing, _)| *existing == name).map(|(_, value)| value)
    }

    fn ident(&self, name: &'a str) -> Evaluated<'a> {
        if let Some(value) = self.local(name) {
            return Ok(value.clone());
        }
        match self.variables.variable(name) {
            Some(value) => Ok(value),
            None => functions::type_named(name).ok_or_else(|| EvalError::NoSuchVariable(name.to_owned())),
        }
    }

    fn select(&mut self, operand: &'a Expr, field: &'a str, test: bool, optional: bool) -> Evaluated<'a> {
        if let Node::Ident(name) = &operand.node
            && self.local(name).is_none()
        {
            if let Some(computed) = self.variables.computed(name, field, self.meter) {
                return if test { computed.map(|_| Val::Bool(true)) } else { computed };
            }
            if self.variables.variable(name).is_none()
                && let Some(found) = functions::type_named(&format!("{name}.{field}"))
            {
                return Ok(found);
            }
        }
        let (map, optional) = match self.expr(operand)? {
            Val::Map(map) => (map, optional),
            Val::Optional(None) | Val::Null if test => return Ok(Val::Bool(false)),
            Val::Optional(None) => return Ok(Val::Optional(None)),
            Val::Optional(Some(inner)) => match &*inner {
                Val::Map(map) => (map.clone(), true),
                _ => return Err(EvalError::NoOverload),
            },
            // A null object has no fields.
            Val::Null if optional => return Ok(Val::Optional(None)),
            _ => return Err(EvalError::NoSuchKey(field.to_owned())),
        };
        let found = map.get_field(field);
        match found {
            found if test => Ok(Val::Bool(found.is_some())),
            found if optional => Ok(match found {
                Some(already @ Val::Optional(_)) => already,
                found => Val::optional(found),
            }),
            Some(value) => Ok(value),
            None => Err(EvalError::NoSuchKey(field.to_owned())),
        }
    }

    fn index(&mut self, operand: &'a Expr, index: &'a Expr, optional: bool) -> Evaluated<'a> {
        let operand = self.expr(operand)?;
        let index = self.expr(index)?;
        let (operand, optional) = match operand {
            Val::Optional(None) => return Ok(Val::Optional(None)),
            Val::Optional(Some(inner)) => ((*inner).clone(), true),
            operand => (operand, optional),
        };
        let found = match (&operand, &index) {
            (Val::Map(map), key) => map.get(key).ok_or_else(|| EvalError::NoSuchKey(functions::format::shown(key))),
            (Val::List(list), index) => {
                let position = match index {
                    Val::Int(position) => *position,
                    Val::Uint(position) => i64::try_from(*position).unwrap_or(i64::MAX),
                    Val::Double(position) if position.fract() == 0.0 => *position as i64,
                    _ => return Err(EvalError::NoOverload),
                };
                usize::try_from(position).ok().and_then(|i| list.get(i)).ok_or(EvalError::OutOfBounds(position))
            }
            _ => return Err(EvalError::NoOverload),
        };
        if optional { Ok(Val::optional(found.ok())) } else { found }
    }

    fn call(&mut self, name: &'a str, target: Option<&'a Expr>, args: &'a [Expr]) -> Evaluated<'a> {
        let function = functions::find(name, target.is_some()).ok_or(EvalError::NoOverload)?;
        // `or` and `orValue` look at their argument only when they need it.
        if let (Some(target), "or" | "orValue") = (target, name) {
            return match self.expr(target)? {
                value @ Val::Optional(Some(_)) if name == "or" => Ok(value),
                Val::Optional(Some(inner)) => Ok((*inner).clone()),
                Val::Optional(None) => self.expr(args.first().ok_or(EvalError::NoOverload)?),
                _ => Err(EvalError::NoOverload),
            };
        }
        let mut values = Vec::with_capacity(args.len() + 1);
        for part in target.into_iter().chain(args) {
            values.push(self.expr(part)?);
        }
        self.meter.charge(function.price.of(&values))?;
        (function.run)(&values, self.meter)
    }

    /// `&&` (decided by false) and `||` (decided by true).
    fn both(&mut self, left: &'a Expr, right: &'a Expr, decides: bool) -> Evaluated<'a> {
        let as_bool = |result: Evaluated<'a>| match result {
            Ok(Val::Bool(value)) => Ok(value),
            Ok(_) => Err(EvalError::NoOverload),
            Err(error) => Err(error),
        };
        let first = as_bool(self.expr(left));
        if first == Ok(decides) {
            return Ok(Val::Bool(decides));
        }
        if first == Err(EvalError::CostLimit) {
            return Err(EvalError::CostLimit);
        }
        let second = as_bool(self.expr(right));
        match (first, second) {
            (_, Ok(value)) if value == decides => Ok(Val::Bool(decides)),
            (Err(error), _) | (_, Err(error)) => Err(error),
            _ => Ok(Val::Bool(!decides)),
        }
    }

    fn list(&mut self, items: &'a [(Expr, bool)]) -> Evaluated<'a> {
        let mut list = Vec::with_capacity(items.len());
        for (item, optional) in items {
            match (self.expr(item)?, optional) {
                (value, false) => list.push(value),
                (Val::Optional(inner), true) => list.extend(inner.map(|inner| (*inner).clone())),
                (_, true) => return Err(EvalError::NoOverload),
            }
        }
        Ok(Val::list(list))
    }

    fn map(&mut self, entries: &'a [(Expr, Expr, bool)]) -> Evaluated<'a> {
        let mut pairs = Vec::with_capacity(entries.len());
        for (key, value, optional) in entries {
            let key = self.expr(key)?;
            match (self.expr(value)?, optional) {
                (value, false) => pairs.push((key, value)),
                (Val::Optional(inner), true) => pairs.extend(inner.map(|inner| (key, (*inner).clone()))),
                (_, true) => return Err(EvalError::NoOverload),
            }
        }
        map_of(pairs)
    }

    fn message(&mut self, fields: &'a [(String, Expr, bool)]) -> Evaluated<'a> {
        let mut pairs = Vec::with_capacity(fields.len());
        for (name, value, optional) in fields {
            let name = Val::Text(Text::Borrowed(name));
            match (self.expr(value)?, optional) {
                (value, false) => pairs.push((name, value)),
                (Val::Optional(inner), true) => pairs.extend(inner.map(|inner| (name, (*inner).clone()))),
                (_, true) => return Err(EvalError::NoOverload),
            }
        }
        map_of(pairs)
    }

    fn comprehension(
        &mut self,
        kind: Loop,
        range: &'a Expr,
        (first, second): (&'a str, Option<&'a str>),
        filter: Option<&'a Expr>,
        body: &'a Expr,
    ) -> Evaluated<'a> {
        let range = self.expr(range)?;
        let mut fold = Fold::new(kind);
        let depth = self.scopes.len();
        let pairs: Box<dyn Iterator<Item = (Val<'a>, Option<Val<'a>>)>> = match range {
            Val::List(list) if second.is_some() => Box::new(list_pairs(list)),
            Val::List(list) => Box::new((0..list.len()).filter_map(move |i| list.get(i)).map(|item| (item, None))),
            Val::Map(map) => {
                let keys = map.keys();
                let two = second.is_some();
                Box::new(keys.into_iter().map(move |key| {
                    let value = if two { map.get(&key) } else { None };
                    (key, value)
                }))
            }
            _ => return Err(EvalError::NoOverload),
        };
        for (key, value) in pairs {
            self.meter.charge(1)?;
            self.scopes.truncate(depth);
            self.scopes.push((first, key.clone()));
            if let (Some(name), Some(value)) = (second, &value) {
                self.scopes.push((name, value.clone()));
            }
            let chosen = match filter {
                None => true,
                Some(filter) => match self.expr(filter)? {
                    Val::Bool(chosen) => chosen,
                    _ => return Err(EvalError::NoOverload),
                },
            };
            if chosen && fold.step(self.expr(body), &key)? {
                break;
            }
        }
        self.scopes.truncate(depth);
        fold.result()
    }
}

fn list_pairs(list: List<'_>) -> impl Iterator<Item = (Val<'_>, Option<Val<'_>>)> {
    (0..list.len()).map(move |i| (Val::Int(i as i64), list.get(i)))
}

/// The result of a loop so far.
struct Fold<'a> {
    kind: Loop,
    items: Vec<Val<'a>>,
    pairs: Vec<(Val<'a>, Val<'a>)>,
    decided: bool,
    count: usize,
    /// A failure that counts only when nothing decides.
    pending: Option<EvalError>,
}

impl<'a> Fold<'a> {
    fn new(kind: Loop) -> Self {
        Self { kind, items: Vec::new(), pairs: Vec::new(), decided: false, count: 0, pending: None }
    }

    /// Takes the result for one item; true when no further one matters.
    fn step(&mut self, result: Evaluated<'a>, key: &Val<'a>) -> Result<bool, EvalError> {
        let value = match result {
            Ok(value) => value,
            Err(error) if matches!(self.kind, Loop::All | Loop::Exists) && error != EvalError::CostLimit => {
                self.pending = Some(error);
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        match (self.kind, value) {
            (Loop::All, Val::Bool(value)) => self.decided = !value,
            (Loop::Exists, Val::Bool(value)) => self.decided = value,
            (Loop::ExistsOne, Val::Bool(value)) => self.count += usize::from(value),
            (Loop::Filter, Val::Bool(true)) => self.items.push(key.clone()),
            (Loop::Filter, Val::Bool(false)) => {}
            (Loop::Map, value) => self.items.push(value),
            (Loop::TransformMap, value) => self.pairs.push((key.clone(), value)),
            (Loop::TransformMapEntry, Val::Map(map)) => {
                let keys = map.keys();
                self.pairs.extend(keys.into_iter().filter_map(|key| Some((key.clone(), map.get(&key)?))));
            }
            _ => return Err(EvalError::NoOverload),
        }
        Ok(self.decided)
    }

    fn result(self) -> Evaluated<'a> {
        match (self.kind, self.pending) {
            (Loop::All | Loop::Exists, Some(error)) if !self.decided => Err(error),
            (Loop::All, _) => Ok(Val::Bool(!self.decided)),
            (Loop::Exists, _) => Ok(Val::Bool(self.decided)),
            (Loop::ExistsOne, _) => Ok(Val::Bool(self.count == 1)),
            (Loop::Filter | Loop::Map, _) => Ok(Val::list(self.items)),
            (Loop::TransformMap | Loop::TransformMapEntry, _) => map_of(self.pairs),
        }
    }
}

fn literal_value(literal: &Literal) -> Val<'_> {
    match literal {
        Literal::Null => Val::Null,
        Literal::Bool(value) => Val::Bool(*value),
        Literal::Int(value) => Val::Int(*value),
        Literal::Uint(value) => Val::Uint(*value),
        Literal::Double(value) => Val::Double(*value),
        Literal::Text(text) => Val::Text(Text::Borrowed(text)),
        Literal::Bytes(bytes) => Val::Bytes(bytes.as_slice().into()),
    }
}

impl<'a> From<Vec<Val<'a>>> for List<'a> {
    fn from(items: Vec<Val<'a>>) -> Self {
        Self::Owned(Rc::new(items))
    }
}

impl<'a> Map<'a> {
    /// Whether a key is there.
    pub(super) fn has(&self, key: &Val<'a>) -> bool {
        self.get(key).is_some()
    }
}
