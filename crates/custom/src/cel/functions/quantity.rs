//! Resource quantities.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/cel/#kubernetes-quantity-library>.

use std::cmp::Ordering;

use mainstay_model::quantity::Quantity;

use super::super::value::Val;
use super::{EvalError, Meter, NO_OVERLOAD, Price, Row, function, method};

const COMPARE: &[&str] = &["Quantity, Quantity -> bool", "Semver, Semver -> bool"];
const SUM: &[&str] = &["Quantity, Quantity -> Quantity", "Quantity, int -> Quantity"];

pub(super) const ROWS: &[Row] = &[
    function("quantity", &["string -> Quantity"], Price::Scan, |args, _| match args {
        [Val::Text(text)] => {
            text.parse::<Quantity>().map(Val::Quantity).map_err(|error| EvalError::Other(error.to_string()))
        }
        _ => Err(NO_OVERLOAD),
    }),
    function("isQuantity", &["string -> bool"], Price::Scan, |args, _| match args {
        [Val::Text(text)] => Ok(Val::Bool(text.parse::<Quantity>().is_ok())),
        _ => Err(NO_OVERLOAD),
    }),
    method("isInteger", &["Quantity -> bool"], Price::Step, |args, _| match args {
        [Val::Quantity(quantity)] => Ok(Val::Bool(quantity.is_whole())),
        _ => Err(NO_OVERLOAD),
    }),
    method("asInteger", &["Quantity -> int"], Price::Step, |args, _| match args {
        [Val::Quantity(quantity)] if quantity.is_whole() => Ok(Val::Int(quantity.value())),
        [Val::Quantity(_)] => Err(EvalError::Other("cannot convert value to integer".to_owned())),
        _ => Err(NO_OVERLOAD),
    }),
    method("asApproximateFloat", &["Quantity -> double"], Price::Step, |args, _| match args {
        [Val::Quantity(quantity)] => Ok(Val::Double(quantity.as_f64())),
        _ => Err(NO_OVERLOAD),
    }),
    method("sign", &["Quantity -> int"], Price::Step, |args, _| match args {
        [Val::Quantity(quantity)] => Ok(Val::Int(quantity.cmp(&Quantity::ZERO) as i64)),
        _ => Err(NO_OVERLOAD),
    }),
    method("add", SUM, Price::Step, |args, _| sum(args, false)),
    method("sub", SUM, Price::Step, |args, _| sum(args, true)),
    method("isGreaterThan", COMPARE, Price::Step, |args, _| order(args).map(|order| Val::Bool(order.is_gt()))),
    method("isLessThan", COMPARE, Price::Step, |args, _| order(args).map(|order| Val::Bool(order.is_lt()))),
    method("compareTo", &["Quantity, Quantity -> int", "Semver, Semver -> int"], Price::Step, compare_to),
];

fn compare_to<'a>(args: &[Val<'a>], _: &mut Meter) -> Result<Val<'a>, EvalError> {
    order(args).map(|order| Val::Int(order as i64))
}

/// The order of two quantities, or of two versions.
fn order(args: &[Val<'_>]) -> Result<Ordering, EvalError> {
    match args {
        [Val::Quantity(a), Val::Quantity(b)] => Ok(a.cmp(b)),
        // Build metadata does not count (semver.org, rule 10).
        [Val::Semver(a), Val::Semver(b)] => Ok(a.cmp_precedence(b)),
        _ => Err(NO_OVERLOAD),
    }
}

fn sum<'a>(args: &[Val<'a>], negative: bool) -> Result<Val<'a>, EvalError> {
    let (a, b) = match args {
        [Val::Quantity(a), Val::Quantity(b)] => (*a, *b),
        [Val::Quantity(a), Val::Int(b)] => (*a, Quantity::new(*b, a.format())),
        _ => return Err(NO_OVERLOAD),
    };
    Ok(Val::Quantity(if negative { a - b } else { a + b }))
}
