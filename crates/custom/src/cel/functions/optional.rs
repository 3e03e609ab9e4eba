//! Optional values.
//!
//! Source: <https://pkg.go.dev/github.com/google/cel-go/cel#OptionalTypes>.

use super::super::value::Val;
use super::{EvalError, NO_OVERLOAD, Price, Row, function, method};

pub(super) const ROWS: &[Row] = &[
    function("optional.of", &["A -> optional<A>"], Price::Step, |args, _| match args {
        [value] => Ok(Val::optional(Some(value.clone()))),
        _ => Err(NO_OVERLOAD),
    }),
    function("optional.ofNonZeroValue", &["A -> optional<A>"], Price::Step, |args, _| match args {
        [value] => Ok(Val::optional((!value.is_zero()).then(|| value.clone()))),
        _ => Err(NO_OVERLOAD),
    }),
    function("optional.none", &[" -> optional<dyn>"], Price::Step, |_, _| Ok(Val::Optional(None))),
    method("hasValue", &["optional<A> -> bool"], Price::Step, |args, _| match args {
        [Val::Optional(inner)] => Ok(Val::Bool(inner.is_some())),
        _ => Err(NO_OVERLOAD),
    }),
    method("value", &["optional<A> -> A"], Price::Step, |args, _| match args {
        [Val::Optional(Some(inner))] => Ok((**inner).clone()),
        [Val::Optional(None)] => Err(EvalError::Other("optional.none() dereference".to_owned())),
        _ => Err(NO_OVERLOAD),
    }),
    // Evaluated with care for the argument they may not need; here are only their types.
    method("orValue", &["optional<A>, A -> A"], Price::Step, |_, _| Err(NO_OVERLOAD)),
    method("or", &["optional<A>, optional<A> -> optional<A>"], Price::Step, |_, _| Err(NO_OVERLOAD)),
];
