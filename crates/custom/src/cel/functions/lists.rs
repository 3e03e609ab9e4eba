//! Methods of lists, and lists as sets.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/cel/#kubernetes-list-library>,
//! <https://pkg.go.dev/github.com/google/cel-go/ext#Sets>, <https://pkg.go.dev/github.com/google/cel-go/ext#Lists>.

use std::cmp::Ordering;

use super::super::value::{List, Val};
use super::{EvalError, NO_OVERLOAD, Price, Row, function, method};

const SETS: &[&str] = &["list<A>, list<A> -> bool"];

pub(super) const ROWS: &[Row] = &[
    method("isSorted", &["list<A> -> bool"], Price::Scan, |args, _| {
        let items = items(args)?;
        for two in items.windows(2) {
            if two[0].compare(&two[1]).ok_or(NO_OVERLOAD)? == Ordering::Greater {
                return Ok(Val::Bool(false));
            }
        }
        Ok(Val::Bool(true))
    }),
    method(
        "sum",
        &["list<int> -> int", "list<uint> -> uint", "list<double> -> double", "list<duration> -> duration"],
        Price::Scan,
        |args, meter| {
            let mut items = items(args)?.into_iter();
            let add = super::find("_+_", false).ok_or(NO_OVERLOAD)?;
            let Some(mut sum) = items.next() else { return Ok(Val::Int(0)) };
            for item in items {
                sum = (add.run)(&[sum, item], meter)?;
            }
            Ok(sum)
        },
    ),
    method("min", &["list<A> -> A"], Price::Scan, |args, _| extreme(args, "min", Ordering::Less)),
    method("max", &["list<A> -> A"], Price::Scan, |args, _| extreme(args, "max", Ordering::Greater)),
    method("slice", &["list<A>, int, int -> list<A>"], Price::Scan, |args, _| match args {
        [Val::List(list), Val::Int(from), Val::Int(to)] => {
            let bounds = usize::try_from(*from).ok().zip(usize::try_from(*to).ok());
            let (from, to) = bounds.filter(|(from, to)| from <= to && *to <= list.len()).ok_or_else(|| {
                EvalError::Other(format!("cannot slice({from}, {to}), list is length {}", list.len()))
            })?;
            Ok(Val::list(list.iter().skip(from).take(to - from).collect()))
        }
        _ => Err(NO_OVERLOAD),
    }),
    method("distinct", &["list<A> -> list<A>"], Price::Scan, |args, meter| {
        let mut distinct: Vec<Val<'_>> = Vec::new();
        for item in items(args)? {
            meter.charge(distinct.len() as u64)?;
            if !distinct.iter().any(|one| one.equals(&item)) {
                distinct.push(item);
            }
        }
        Ok(Val::list(distinct))
    }),
    method("flatten", &["list<list<A>> -> list<A>"], Price::Scan, |args, _| {
        let flat = items(args)?.into_iter().flat_map(|item| match item {
            Val::List(list) => list.iter().collect::<Vec<_>>(),
            other => vec![other],
        });
        Ok(Val::list(flat.collect()))
    }),
    method("sort", &["list<A> -> list<A>"], Price::Scan, |args, meter| {
        let mut items = items(args)?;
        meter.charge(items.len() as u64 * 2)?;
        if items.windows(2).any(|two| two[0].compare(&two[1]).is_none()) {
            return Err(NO_OVERLOAD);
        }
        items.sort_by(|a, b| a.compare(b).unwrap_or(Ordering::Equal));
        Ok(Val::list(items))
    }),
    function("sets.contains", SETS, Price::Product, |args, _| sets(args, |a, b| b.iter().all(|item| has(a, &item)))),
    function("sets.equivalent", SETS, Price::Product, |args, _| {
        sets(args, |a, b| b.iter().all(|item| has(a, &item)) && a.iter().all(|item| has(b, &item)))
    }),
    function("sets.intersects", SETS, Price::Product, |args, _| sets(args, |a, b| b.iter().any(|item| has(a, &item)))),
];

fn items<'a>(args: &[Val<'a>]) -> Result<Vec<Val<'a>>, EvalError> {
    match args {
        [Val::List(list)] => Ok(list.iter().collect()),
        _ => Err(NO_OVERLOAD),
    }
}

fn extreme<'a>(args: &[Val<'a>], name: &str, wanted: Ordering) -> Result<Val<'a>, EvalError> {
    let mut items = items(args)?.into_iter();
    let first = items.next().ok_or_else(|| EvalError::Other(format!("{name} called on empty list")))?;
    items.try_fold(first, |best, item| {
        let order = item.compare(&best).ok_or(NO_OVERLOAD)?;
        Ok(if order == wanted { item } else { best })
    })
}

fn sets<'a>(args: &[Val<'a>], good: fn(&List<'a>, &List<'a>) -> bool) -> Result<Val<'a>, EvalError> {
    match args {
        [Val::List(a), Val::List(b)] => Ok(Val::Bool(good(a, b))),
        _ => Err(NO_OVERLOAD),
    }
}

fn has<'a>(list: &List<'a>, item: &Val<'a>) -> bool {
    list.iter().any(|one| one.equals(item))
}
