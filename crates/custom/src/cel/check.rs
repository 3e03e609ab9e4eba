//! Types of all parts of an expression, so that mistakes show when a rule is written and not when it is first run.
//!
//! `dyn` fits everything. Messages are those of cel-go, which people search for.

use super::ast::{Expr, Literal, Loop, Node};
use super::functions::{self, Signature};
use super::types::{AUTHORIZER, JSON_PATCH, OBJECT, RESOURCE_CHECK, Type};
use super::{CompileError, Environment};

/// The type of a whole expression.
pub(super) fn check(expr: &Expr, source: &str, environment: &Environment) -> Result<Type, CompileError> {
    Checker { source, environment, scopes: Vec::new(), mixed: false }.expr(expr)
}

/// Names of types that can be used as values.
const TYPE_NAMES: &[&str] =
    &["bool", "bytes", "double", "dyn", "int", "list", "map", "null_type", "optional_type", "string", "type", "uint"];

type Checked = Result<Type, CompileError>;

struct Checker<'e> {
    source: &'e str,
    environment: &'e Environment,
    /// Variables of the loops around the current place.
    scopes: Vec<(String, Type)>,
    /// Whether literals may hold values of several types, as the arguments of `format` do.
    mixed: bool,
}

impl Checker<'_> {
    fn error(&self, expr: &Expr, message: impl Into<String>) -> CompileError {
        CompileError::at(self.source, expr.at, message)
    }

    fn expr(&mut self, expr: &Expr) -> Checked {
        Ok(match &expr.node {
            Node::Literal(literal) => literal_type(literal),
            Node::Ident(name) => return self.ident(expr, name),
            Node::Select { operand, field, test, optional } => {
                return self.select(expr, operand, field, *test, *optional);
            }
            Node::Index { operand, index, optional } => return self.index(expr, operand, index, *optional),
            Node::Call { function, target, args } => return self.call(expr, function, target.as_deref(), args),
            Node::And(left, right) | Node::Or(left, right) => {
                let name = if matches!(expr.node, Node::And(..)) { "_&&_" } else { "_||_" };
                let types = vec![self.expr(left)?, self.expr(right)?];
                if !types.iter().all(|operand| matches!(operand, Type::Bool | Type::Dyn)) {
                    return Err(self.no_overload(expr, name, false, &types));
                }
                Type::Bool
            }
            Node::Conditional(test, yes, no) => {
                let types = [self.expr(test)?, self.expr(yes)?, self.expr(no)?];
                let joined = join(&types[1], &types[2]);
                match joined {
                    Some(joined) if matches!(types[0], Type::Bool | Type::Dyn) => joined,
                    _ => return Err(self.no_overload(expr, "_?_:_", false, &types)),
                }
            }
            Node::List(items) => {
                let mut item_type = None;
                for (item, optional) in items {
                    let found = self.expr(item)?;
                    let found = if *optional { unwrap_optional(found) } else { found };
                    item_type = Some(self.same(item, item_type, found)?);
                }
                Type::list(item_type.unwrap_or(Type::Dyn))
            }
            Node::Map(entries) => {
                let (mut key_type, mut value_type) = (None, None);
                for (key, value, optional) in entries {
                    let (found_key, found) = (self.expr(key)?, self.expr(value)?);
                    let found = if *optional { unwrap_optional(found) } else { found };
                    key_type = Some(self.same(key, key_type, found_key)?);
                    value_type = Some(self.same(value, value_type, found)?);
                }
                Type::map(key_type.unwrap_or(Type::Dyn), value_type.unwrap_or(Type::Dyn))
            }
            Node::Message { name, fields } => return self.message(expr, name, fields),
            Node::Loop { kind, range, first, second, filter, body } => {
                return self.comprehension(*kind, range, (first, second.as_deref()), filter.as_deref(), body);
            }
            Node::OptionalMap { target, variable, body, flat } => {
                let inner = match self.expr(target)? {
                    Type::Optional(inner) => (*inner).clone(),
                    Type::Dyn => Type::Dyn,
                    other => {
                        return Err(self.no_overload(
                            expr,
                            if *flat { "optFlatMap" } else { "optMap" },
                            true,
                            &[other],
                        ));
                    }
                };
                let body_type = self.scoped(vec![(variable.clone(), inner)], |checker| checker.expr(body))?;
                if *flat { body_type } else { Type::optional(body_type) }
            }
            Node::Bind { variable, value, body } => {
                let bound = self.expr(value)?;
                return self.scoped(vec![(variable.clone(), bound)], |checker| checker.expr(body));
            }
        })
    }

    /// An object that a mutation makes: a patch, or a part of an applied configuration. Of those only the names are
    /// known: the type of a field is that of the object it stands in, with its own name behind.
    fn message(&mut self, expr: &Expr, name: &str, fields: &[(String, Expr, bool)]) -> Checked {
        let is_patch = name == JSON_PATCH;
        if !self.environment.messages || !(is_patch || name == OBJECT || name.starts_with("Object.")) {
            return Err(self.undeclared(expr, name));
        }
        for (field, value, optional) in fields {
            let found = self.expr(value)?;
            let found = if *optional { unwrap_optional(found) } else { found };
            if is_patch {
                let wanted = match field.as_str() {
                    "from" | "op" | "path" => Type::String,
                    "value" => Type::Dyn,
                    _ => return Err(self.error(value, format!("undefined field '{field}'"))),
                };
                if join(&wanted, &found).is_none() {
                    let rule = format!("expected type of field '{field}' is '{wanted}' but provided type is '{found}'");
                    return Err(self.error(value, rule));
                }
            } else if let Some(inner) = made_of(&found).filter(|inner| **inner != *format!("{name}.{field}")) {
                let rule = format!(
                    "unexpected type name \"{inner}\", expected \"{name}.{field}\", which matches field name path from root Object type"
                );
                return Err(self.error(value, rule));
            }
        }
        Ok(Type::Message(name.into()))
    }

    fn scoped<T>(&mut self, variables: Vec<(String, Type)>, inner: impl FnOnce(&mut Self) -> T) -> T {
        let depth = self.scopes.len();
        self.scopes.extend(variables);
        let result = inner(self);
        self.scopes.truncate(depth);
        result
    }

    fn undeclared(&self, expr: &Expr, name: &str) -> CompileError {
        self.error(expr, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn no_overload(&self, expr: &Expr, name: &str, member: bool, types: &[Type]) -> CompileError {
        let list = |types: &[Type]| types.iter().map(Type::to_string).collect::<Vec<_>>().join(", ");
        let applied = match types {
            [target, rest @ ..] if member => format!("{target}.({})", list(rest)),
            _ => format!("({})", list(types)),
        };
        self.error(expr, format!("found no matching overload for '{name}' applied to '{applied}'"))
    }

    /// The type of items of a literal, which must all be of one.
    fn same(&self, expr: &Expr, before: Option<Type>, found: Type) -> Checked {
        let Some(before) = before else { return Ok(found) };
        let message = || format!("expected type '{before}' but found '{found}'");
        join(&before, &found).or(self.mixed.then_some(Type::Dyn)).ok_or_else(|| self.error(expr, message()))
    }

    fn ident(&self, expr: &Expr, name: &str) -> Checked {
        if let Some((_, found)) = self.scopes.iter().rev().find(|(existing, _)| existing == name) {
            return Ok(found.clone());
        }
        match self.environment.find(name) {
            Some(found) => Ok(found.clone()),
            None if TYPE_NAMES.contains(&name) => Ok(Type::Type),
            None => Err(self.undeclared(expr, name)),
        }
    }

    fn select(&mut self, expr: &Expr, operand: &Expr, field: &str, test: bool, optional: bool) -> Checked {
        // Types of libraries have a dot in their name.
        if let Node::Ident(name) = &operand.node
            && self.ident(operand, name).is_err()
            && matches!((name.as_str(), field), ("net", "IP" | "CIDR") | ("kubernetes", _))
        {
            return Ok(Type::Type);
        }
        let operand_type = self.expr(operand)?;
        let (inner, already_optional) = match operand_type {
            Type::Optional(inner) => ((*inner).clone(), true),
            other => (other, false),
        };
        let found = match &inner {
            Type::Dyn | Type::Message(_) => Type::Dyn,
            Type::Opaque(AUTHORIZER) if field == "requestResource" => Type::Opaque(RESOURCE_CHECK),
            Type::Map(entry) => entry.1.clone(),
            Type::Object(object) => match object.fields.get(field) {
                Some(field) => field.field_type.clone(),
                None => return Err(self.error(expr, format!("undefined field '{field}'"))),
            },
            other => return Err(self.error(expr, format!("type '{other}' does not support field selection"))),
        };
        Ok(match (test, optional || already_optional) {
            (true, _) => Type::Bool,
            (false, true) if matches!(found, Type::Optional(_)) => found,
            (false, true) => Type::optional(found),
            (false, false) => found,
        })
    }

    fn index(&mut self, expr: &Expr, operand: &Expr, index: &Expr, optional: bool) -> Checked {
        let (operand_type, index_type) = (self.expr(operand)?, self.expr(index)?);
        let (inner, already_optional) = match &operand_type {
            Type::Optional(inner) => ((**inner).clone(), true),
            other => (other.clone(), false),
        };
        let found = match &inner {
            Type::Dyn => Some(Type::Dyn),
            Type::List(shape) => {
                matches!(index_type, Type::Int | Type::Uint | Type::Double | Type::Dyn).then(|| shape.item.clone())
            }
            Type::Map(entry) => join(&entry.0, &index_type).map(|_| entry.1.clone()),
            _ => None,
        };
        let name = if optional { "_[?_]" } else { "_[_]" };
        let found = found.ok_or_else(|| self.no_overload(expr, name, false, &[operand_type, index_type]))?;
        Ok(if optional || already_optional { Type::optional(found) } else { found })
    }

    fn call(&mut self, expr: &Expr, name: &str, target: Option<&Expr>, args: &[Expr]) -> Checked {
        let member = target.is_some();
        let Some(function) = functions::find(name, member) else {
            // Say what is wrong with the parts first: it is the likelier mistake.
            for part in target.into_iter().chain(args) {
                self.expr(part)?;
            }
            return Err(self.undeclared(expr, name));
        };
        let mut types = Vec::with_capacity(args.len() + 1);
        let outside = self.mixed;
        self.mixed |= name == "format";
        for part in target.into_iter().chain(args) {
            types.push(self.expr(part)?);
        }
        self.mixed = outside;
        let mut results = function.signatures.iter().filter_map(|signature| signature.result(&types));
        let Some(first) = results.next() else { return Err(self.no_overload(expr, name, member, &types)) };
        // Arguments that are known only at run time may fit several.
        Ok(if results.any(|other| other != first) { Type::Dyn } else { first })
    }

    fn comprehension(
        &mut self,
        kind: Loop,
        range: &Expr,
        (first, second): (&str, Option<&str>),
        filter: Option<&Expr>,
        body: &Expr,
    ) -> Checked {
        let range_type = self.expr(range)?;
        let (first_type, second_type) = match (&range_type, second) {
            (Type::Dyn, _) => (Type::Dyn, Type::Dyn),
            (Type::List(shape), None) => (shape.item.clone(), Type::Dyn),
            (Type::List(shape), Some(_)) => (Type::Int, shape.item.clone()),
            (Type::Map(entry), _) => (entry.0.clone(), entry.1.clone()),
            (other, _) => {
                let rule = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                return Err(self.error(range, rule));
            }
        };
        let mut variables = vec![(first.to_owned(), first_type.clone())];
        variables.extend(second.map(|second| (second.to_owned(), second_type)));
        let body_type = self.scoped(variables, |checker| {
            if let Some(filter) = filter {
                let found = checker.expr(filter)?;
                checker.must_be_bool(filter, &found)?;
            }
            checker.expr(body)
        })?;
        Ok(match kind {
            Loop::All | Loop::Exists | Loop::ExistsOne => {
                self.must_be_bool(body, &body_type)?;
                Type::Bool
            }
            Loop::Filter => {
                self.must_be_bool(body, &body_type)?;
                Type::list(first_type)
            }
            Loop::Map => Type::list(body_type),
            Loop::TransformMap if matches!(range_type, Type::List(_)) => Type::map(Type::Int, body_type),
            Loop::TransformMap => Type::map(first_type, body_type),
            Loop::TransformMapEntry if matches!(body_type, Type::Map(_) | Type::Dyn) => body_type,
            Loop::TransformMapEntry => return Err(self.error(body, "the result of transformMapEntry must be a map")),
        })
    }

    fn must_be_bool(&self, expr: &Expr, found: &Type) -> Result<(), CompileError> {
        match found {
            Type::Bool | Type::Dyn => Ok(()),
            other => Err(self.error(expr, format!("expected type 'bool' but found '{other}'"))),
        }
    }
}

/// The name of the messages that a value is or holds.
fn made_of(found: &Type) -> Option<&str> {
    match found {
        Type::Message(name) => Some(name),
        Type::List(shape) => made_of(&shape.item),
        Type::Optional(inner) => made_of(inner),
        _ => None,
    }
}

fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::Text(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}

fn unwrap_optional(found: Type) -> Type {
    match found {
        Type::Optional(inner) => (*inner).clone(),
        other => other,
    }
}

/// The type that values of both have, if there is one. Null goes with everything, as fields may be nullable.
fn join(a: &Type, b: &Type) -> Option<Type> {
    let mut open = [const { None }; 2];
    match (a, b) {
        (Type::Dyn, _) | (_, Type::Dyn) => Some(Type::Dyn),
        (Type::Null, other) | (other, Type::Null) => Some(other.clone()),
        _ => fits(a, b, &mut open).then(|| if has_dyn(a) { b.clone() } else { a.clone() }),
    }
}

fn has_dyn(found: &Type) -> bool {
    match found {
        Type::Dyn => true,
        Type::List(shape) => has_dyn(&shape.item),
        Type::Map(entry) => has_dyn(&entry.0) || has_dyn(&entry.1),
        Type::Optional(inner) => has_dyn(inner),
        _ => false,
    }
}

/// Whether an argument of type `given` can stand where `wanted` is asked for; binds open types.
fn fits(wanted: &Type, given: &Type, open: &mut [Option<Type>; 2]) -> bool {
    match (wanted, given) {
        (Type::Parameter(number), given) => {
            let place = usize::from(*number).min(1);
            let Some(bound) = open[place].clone() else {
                open[place] = Some(given.clone());
                return true;
            };
            let joined = join(&bound, given);
            let fits = joined.is_some();
            open[place] = joined;
            fits
        }
        (Type::Dyn, _) | (_, Type::Dyn) => true,
        (Type::List(wanted), Type::List(given)) => fits(&wanted.item, &given.item, open),
        (Type::Map(wanted), Type::Map(given)) => fits(&wanted.0, &given.0, open) && fits(&wanted.1, &given.1, open),
        (Type::Optional(wanted), Type::Optional(given)) => fits(wanted, given, open),
        (wanted, given) => wanted == given,
    }
}

impl Signature {
    /// The result for these arguments, if they fit.
    fn result(&self, args: &[Type]) -> Option<Type> {
        let mut open = [const { None }; 2];
        let good = self.args.len() == args.len()
            && self.args.iter().zip(args).all(|(wanted, given)| fits(wanted, given, &mut open));
        good.then(|| fill(&self.result, &open))
    }
}

fn fill(wanted: &Type, open: &[Option<Type>; 2]) -> Type {
    match wanted {
        Type::Parameter(number) => open[usize::from(*number).min(1)].clone().unwrap_or(Type::Dyn),
        Type::List(shape) => Type::list(fill(&shape.item, open)),
        Type::Map(entry) => Type::map(fill(&entry.0, open), fill(&entry.1, open)),
        Type::Optional(inner) => Type::optional(fill(inner, open)),
        other => other.clone(),
    }
}
