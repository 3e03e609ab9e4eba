//! Operators, `size`, `type` and `dyn`.

use std::cmp::Ordering;
use std::rc::Rc;

use jiff::SignedDuration;

use super::super::value::{List, Val, item_key};
use super::{EvalError, Meter, NO_OVERLOAD, Price, Row, function, method};
use crate::schema::ListType;

const ORDERED: &[&str] = &[
    "bool, bool -> bool",
    "int, int -> bool",
    "int, uint -> bool",
    "int, double -> bool",
    "uint, uint -> bool",
    "uint, int -> bool",
    "uint, double -> bool",
    "double, double -> bool",
    "double, int -> bool",
    "double, uint -> bool",
    "string, string -> bool",
    "bytes, bytes -> bool",
    "duration, duration -> bool",
    "timestamp, timestamp -> bool",
];

const SIZES: &[&str] = &["string -> int", "bytes -> int", "list<A> -> int", "map<A, B> -> int"];

pub(super) const ROWS: &[Row] = &[
    function("_==_", &["A, A -> bool"], Price::Scan, |args, _| pair(args).map(|(a, b)| Val::Bool(a.equals(b)))),
    function("_!=_", &["A, A -> bool"], Price::Scan, |args, _| pair(args).map(|(a, b)| Val::Bool(!a.equals(b)))),
    function("_<_", ORDERED, Price::Scan, |args, _| ordered(args, Ordering::is_lt)),
    function("_<=_", ORDERED, Price::Scan, |args, _| ordered(args, Ordering::is_le)),
    function("_>_", ORDERED, Price::Scan, |args, _| ordered(args, Ordering::is_gt)),
    function("_>=_", ORDERED, Price::Scan, |args, _| ordered(args, Ordering::is_ge)),
    function(
        "_+_",
        &[
            "int, int -> int",
            "uint, uint -> uint",
            "double, double -> double",
            "string, string -> string",
            "bytes, bytes -> bytes",
            "list<A>, list<A> -> list<A>",
            "duration, duration -> duration",
            "timestamp, duration -> timestamp",
            "duration, timestamp -> timestamp",
        ],
        Price::Scan,
        |args, _| add(args),
    ),
    function(
        "_-_",
        &[
            "int, int -> int",
            "uint, uint -> uint",
            "double, double -> double",
            "duration, duration -> duration",
            "timestamp, duration -> timestamp",
            "timestamp, timestamp -> duration",
        ],
        Price::Step,
        |args, _| subtract(args),
    ),
    function("_*_", &["int, int -> int", "uint, uint -> uint", "double, double -> double"], Price::Step, |args, _| {
        match args {
            [Val::Int(a), Val::Int(b)] => a.checked_mul(*b).map(Val::Int).ok_or(EvalError::Overflow),
            [Val::Uint(a), Val::Uint(b)] => a.checked_mul(*b).map(Val::Uint).ok_or(EvalError::Overflow),
            [Val::Double(a), Val::Double(b)] => Ok(Val::Double(a * b)),
            _ => Err(NO_OVERLOAD),
        }
    }),
    function("_/_", &["int, int -> int", "uint, uint -> uint", "double, double -> double"], Price::Step, |args, _| {
        match args {
            [Val::Int(_), Val::Int(0)] | [Val::Uint(_), Val::Uint(0)] => Err(EvalError::DivisionByZero),
            [Val::Int(a), Val::Int(b)] => a.checked_div(*b).map(Val::Int).ok_or(EvalError::Overflow),
            [Val::Uint(a), Val::Uint(b)] => Ok(Val::Uint(a / b)),
            [Val::Double(a), Val::Double(b)] => Ok(Val::Double(a / b)),
            _ => Err(NO_OVERLOAD),
        }
    }),
    function("_%_", &["int, int -> int", "uint, uint -> uint"], Price::Step, |args, _| match args {
        [Val::Int(_), Val::Int(0)] | [Val::Uint(_), Val::Uint(0)] => Err(EvalError::ModulusByZero),
        [Val::Int(a), Val::Int(b)] => a.checked_rem(*b).map(Val::Int).ok_or(EvalError::Overflow),
        [Val::Uint(a), Val::Uint(b)] => Ok(Val::Uint(a % b)),
        _ => Err(NO_OVERLOAD),
    }),
    function("@in", &["A, list<A> -> bool", "A, map<A, B> -> bool"], Price::Scan, |args, _| match args {
        [item, Val::List(list)] => Ok(Val::Bool(list.iter().any(|one| one.equals(item)))),
        [key, Val::Map(map)] => Ok(Val::Bool(map.has(key))),
        _ => Err(NO_OVERLOAD),
    }),
    function("!_", &["bool -> bool"], Price::Step, |args, _| match args {
        [Val::Bool(value)] => Ok(Val::Bool(!value)),
        _ => Err(NO_OVERLOAD),
    }),
    function("-_", &["int -> int", "double -> double"], Price::Step, |args, _| match args {
        [Val::Int(value)] => value.checked_neg().map(Val::Int).ok_or(EvalError::Overflow),
        [Val::Double(value)] => Ok(Val::Double(-value)),
        _ => Err(NO_OVERLOAD),
    }),
    function("size", SIZES, Price::Scan, size),
    method("size", SIZES, Price::Scan, size),
    function("type", &["A -> type"], Price::Step, |args, _| match args {
        [value] => Ok(Val::Type(value.type_name().into())),
        _ => Err(NO_OVERLOAD),
    }),
    function("dyn", &["A -> dyn"], Price::Step, |args, _| args.first().cloned().ok_or(NO_OVERLOAD)),
];

fn pair<'b, 'a>(args: &'b [Val<'a>]) -> Result<(&'b Val<'a>, &'b Val<'a>), EvalError> {
    match args {
        [a, b] => Ok((a, b)),
        _ => Err(NO_OVERLOAD),
    }
}

fn ordered<'a>(args: &[Val<'a>], good: fn(Ordering) -> bool) -> Result<Val<'a>, EvalError> {
    let (a, b) = pair(args)?;
    match a.compare(b) {
        Some(order) => Ok(Val::Bool(good(order))),
        // Not-a-number is neither more nor less.
        None if matches!((a, b), (Val::Double(_), Val::Double(_))) => Ok(Val::Bool(false)),
        None => Err(NO_OVERLOAD),
    }
}

fn size<'a>(args: &[Val<'a>], _: &mut Meter) -> Result<Val<'a>, EvalError> {
    let size = match args {
        [Val::Text(text)] => text.chars().count(),
        [Val::Bytes(bytes)] => bytes.len(),
        [Val::List(list)] => list.len(),
        [Val::Map(map)] => map.len(),
        _ => return Err(NO_OVERLOAD),
    };
    Ok(Val::Int(size as i64))
}

fn add<'a>(args: &[Val<'a>]) -> Result<Val<'a>, EvalError> {
    Ok(match args {
        [Val::Int(a), Val::Int(b)] => Val::Int(a.checked_add(*b).ok_or(EvalError::Overflow)?),
        [Val::Uint(a), Val::Uint(b)] => Val::Uint(a.checked_add(*b).ok_or(EvalError::Overflow)?),
        [Val::Double(a), Val::Double(b)] => Val::Double(a + b),
        [Val::Text(a), Val::Text(b)] => Val::text([&**a, &**b].concat()),
        [Val::Bytes(a), Val::Bytes(b)] => Val::Bytes([&**a, &**b].concat().into()),
        [Val::List(a), Val::List(b)] => join_lists(a, b),
        [Val::Duration(a), Val::Duration(b)] => Val::Duration(a.checked_add(*b).ok_or(EvalError::Overflow)?),
        [Val::Timestamp(time), Val::Duration(by)] | [Val::Duration(by), Val::Timestamp(time)] => {
            Val::Timestamp(time.checked_add(*by).map_err(|_| EvalError::Overflow)?)
        }
        _ => return Err(NO_OVERLOAD),
    })
}

fn subtract<'a>(args: &[Val<'a>]) -> Result<Val<'a>, EvalError> {
    Ok(match args {
        [Val::Int(a), Val::Int(b)] => Val::Int(a.checked_sub(*b).ok_or(EvalError::Overflow)?),
        [Val::Uint(a), Val::Uint(b)] => Val::Uint(a.checked_sub(*b).ok_or(EvalError::Overflow)?),
        [Val::Double(a), Val::Double(b)] => Val::Double(a - b),
        [Val::Duration(a), Val::Duration(b)] => Val::Duration(a.checked_sub(*b).ok_or(EvalError::Overflow)?),
        [Val::Timestamp(time), Val::Duration(by)] => {
            Val::Timestamp(time.checked_sub(*by).map_err(|_| EvalError::Overflow)?)
        }
        [Val::Timestamp(a), Val::Timestamp(b)] => {
            let nanos = a.as_nanosecond() - b.as_nanosecond();
            let seconds = i64::try_from(nanos / 1_000_000_000).map_err(|_| EvalError::Overflow)?;
            Val::Duration(SignedDuration::new(seconds, (nanos % 1_000_000_000) as i32))
        }
        _ => return Err(NO_OVERLOAD),
    })
}

/// Sets join to a set, lists that are maps by their keys, the right one winning; all others end to end.
fn join_lists<'a>(a: &List<'a>, b: &List<'a>) -> Val<'a> {
    let mut items: Vec<Val<'a>> = a.iter().collect();
    match a.kind() {
        ListType::Atomic => items.extend(b.iter()),
        ListType::Set => {
            for item in b.iter() {
                if !items.iter().any(|one| one.equals(&item)) {
                    items.push(item);
                }
            }
        }
        ListType::Map(keys) => {
            for item in b.iter() {
                let key = item_key(&item, keys);
                match items.iter_mut().find(|one| key.is_some() && item_key(one, keys) == key) {
                    Some(place) => *place = item,
                    None => items.push(item),
                }
            }
        }
    }
    Val::List(List::Owned(Rc::new(items)))
}
