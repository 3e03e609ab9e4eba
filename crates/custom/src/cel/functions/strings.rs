//! Methods of strings, regular expressions among them. Positions count characters, not bytes.
//!
//! Source: <https://pkg.go.dev/github.com/google/cel-go/ext#Strings>,
//! <https://kubernetes.io/docs/reference/using-api/cel/#kubernetes-regex-library>.

use super::super::value::{Text, Val};
use super::{EvalError, Meter, NO_OVERLOAD, Price, Row, function, method};

const TEST: &[&str] = &["string, string -> bool"];
const MAP: &[&str] = &["string -> string"];
const FIND: &[&str] = &["string, string -> int", "string, string, int -> int", "list<A>, A -> int"];

/// Longest text a function makes.
const TEXT_MAX: usize = 1 << 20;

pub(super) const ROWS: &[Row] = &[
    method("contains", TEST, Price::Scan, |args, _| test(args, |text, part| text.contains(part))),
    method("startsWith", TEST, Price::Scan, |args, _| test(args, |text, part| text.starts_with(part))),
    method("endsWith", TEST, Price::Scan, |args, _| test(args, |text, part| text.ends_with(part))),
    method("matches", TEST, Price::Product, matches),
    function("matches", TEST, Price::Product, matches),
    method("lowerAscii", MAP, Price::Scan, |args, _| map(args, str::to_ascii_lowercase)),
    method("upperAscii", MAP, Price::Scan, |args, _| map(args, str::to_ascii_uppercase)),
    method("trim", MAP, Price::Scan, |args, _| map(args, |text| text.trim().to_owned())),
    method("reverse", &["string -> string", "list<A> -> list<A>"], Price::Scan, |args, _| match args {
        [Val::Text(text)] => Ok(Val::text(text.chars().rev().collect::<String>())),
        [Val::List(list)] => {
            let mut items: Vec<_> = list.iter().collect();
            items.reverse();
            Ok(Val::list(items))
        }
        _ => Err(NO_OVERLOAD),
    }),
    function("jsonpatch.escapeKey", MAP, Price::Scan, |args, _| {
        map(args, |text| text.replace('~', "~0").replace('/', "~1"))
    }),
    function("strings.quote", MAP, Price::Scan, |args, _| map(args, |text| format!("{text:?}"))),
    method("charAt", &["string, int -> string"], Price::Scan, |args, _| match args {
        [Val::Text(text), Val::Int(at)] => {
            let count = text.chars().count() as i64;
            if *at == count {
                return Ok(Val::text(""));
            }
            let found = usize::try_from(*at).ok().and_then(|at| text.chars().nth(at));
            found.map(|c| Val::text(c.to_string())).ok_or_else(|| out_of_range(*at))
        }
        _ => Err(NO_OVERLOAD),
    }),
    method("indexOf", FIND, Price::Scan, index_of),
    method("lastIndexOf", FIND, Price::Scan, last_index_of),
    method("substring", &["string, int -> string", "string, int, int -> string"], Price::Scan, substring),
    method(
        "replace",
        &["string, string, string -> string", "string, string, string, int -> string"],
        Price::Scan,
        replace,
    ),
    method("split", &["string, string -> list<string>", "string, string, int -> list<string>"], Price::Scan, split),
    method("join", &["list<string> -> string", "list<string>, string -> string"], Price::Scan, join),
    method("find", &["string, string -> string"], Price::Product, |args, meter| match args {
        [Val::Text(text), Val::Text(pattern)] => {
            let regex = meter.regex(pattern)?;
            Ok(Val::text(regex.find(text).map_or("", |found| found.as_str())))
        }
        _ => Err(NO_OVERLOAD),
    }),
    method(
        "findAll",
        &["string, string -> list<string>", "string, string, int -> list<string>"],
        Price::Product,
        |args, meter| {
            let (text, pattern, limit) = match args {
                [Val::Text(text), Val::Text(pattern)] => (text, pattern, -1),
                [Val::Text(text), Val::Text(pattern), Val::Int(limit)] => (text, pattern, *limit),
                _ => return Err(NO_OVERLOAD),
            };
            let regex = meter.regex(pattern)?;
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let found = regex.find_iter(text).take(limit).map(|found| Val::text(found.as_str()));
            Ok(Val::list(found.collect()))
        },
    ),
];

fn test<'a>(args: &[Val<'a>], good: fn(&str, &str) -> bool) -> Result<Val<'a>, EvalError> {
    match args {
        [Val::Text(text), Val::Text(part)] => Ok(Val::Bool(good(text, part))),
        _ => Err(NO_OVERLOAD),
    }
}

fn map<'a>(args: &[Val<'a>], change: fn(&str) -> String) -> Result<Val<'a>, EvalError> {
    match args {
        [Val::Text(text)] => Ok(Val::text(change(text))),
        _ => Err(NO_OVERLOAD),
    }
}

fn matches<'a>(args: &[Val<'a>], meter: &mut Meter) -> Result<Val<'a>, EvalError> {
    match args {
        [Val::Text(text), Val::Text(pattern)] => Ok(Val::Bool(meter.regex(pattern)?.is_match(text))),
        _ => Err(NO_OVERLOAD),
    }
}

fn out_of_range(at: i64) -> EvalError {
    EvalError::Other(format!("index out of range: {at}"))
}

/// The byte of a character position.
fn byte_of(text: &str, at: i64) -> Option<usize> {
    let at = usize::try_from(at).ok()?;
    text.char_indices().map(|(byte, _)| byte).chain([text.len()]).nth(at)
}

fn char_of(text: &str, byte: Option<usize>) -> i64 {
    byte.map_or(-1, |byte| text[..byte].chars().count() as i64)
}

fn index_of<'a>(args: &[Val<'a>], _: &mut Meter) -> Result<Val<'a>, EvalError> {
    let (text, part, from) = match args {
        [Val::Text(text), Val::Text(part)] => (text, part, 0),
        [Val::Text(text), Val::Text(part), Val::Int(from)] => (text, part, *from),
        [Val::List(list), item] => {
            let found = list.iter().position(|one| one.equals(item));
            return Ok(Val::Int(found.map_or(-1, |i| i as i64)));
        }
        _ => return Err(NO_OVERLOAD),
    };
    let from = byte_of(text, from).ok_or_else(|| out_of_range(from))?;
    let found = text[from..].find(&**part).map(|byte| byte + from);
    Ok(Val::Int(char_of(text, found)))
}

fn last_index_of<'a>(args: &[Val<'a>], _: &mut Meter) -> Result<Val<'a>, EvalError> {
    let (text, part, limit) = match args {
        [Val::Text(text), Val::Text(part)] => (text, part, None),
        [Val::Text(text), Val::Text(part), Val::Int(limit)] => (text, part, Some(*limit)),
        [Val::List(list), item] => {
            let found = list.iter().enumerate().filter(|(_, one)| one.equals(item)).last();
            return Ok(Val::Int(found.map_or(-1, |(i, _)| i as i64)));
        }
        _ => return Err(NO_OVERLOAD),
    };
    let end = match limit {
        None => text.len(),
        // A match may begin there, so it may end later.
        Some(limit) => (byte_of(text, limit).ok_or_else(|| out_of_range(limit))? + part.len()).min(text.len()),
    };
    let found = text.get(..end).unwrap_or(text).rfind(&**part);
    Ok(Val::Int(char_of(text, found)))
}

fn substring<'a>(args: &[Val<'a>], _: &mut Meter) -> Result<Val<'a>, EvalError> {
    let (text, from, to) = match args {
        [Val::Text(text), Val::Int(from)] => (text, *from, None),
        [Val::Text(text), Val::Int(from), Val::Int(to)] => (text, *from, Some(*to)),
        _ => return Err(NO_OVERLOAD),
    };
    let start = byte_of(text, from).ok_or_else(|| out_of_range(from))?;
    let end = to.map_or(Ok(text.len()), |to| byte_of(text, to).ok_or_else(|| out_of_range(to)))?;
    if start > end {
        let message = format!("invalid substring range. start: {from}, end: {}", to.unwrap_or_default());
        return Err(EvalError::Other(message));
    }
    Ok(Val::text(&text[start..end]))
}

fn replace<'a>(args: &[Val<'a>], meter: &mut Meter) -> Result<Val<'a>, EvalError> {
    let (text, from, to, limit) = match args {
        [Val::Text(text), Val::Text(from), Val::Text(to)] => (text, from, to, -1),
        [Val::Text(text), Val::Text(from), Val::Text(to), Val::Int(limit)] => (text, from, to, *limit),
        _ => return Err(NO_OVERLOAD),
    };
    let count = text.matches(&**from).take(usize::try_from(limit).unwrap_or(usize::MAX)).count();
    checked_size(meter, text.len() + count * to.len())?;
    Ok(Val::text(text.replacen(&**from, to, usize::try_from(limit).unwrap_or(usize::MAX))))
}

/// Charges for a text that is about to be made, and refuses one that is too long.
fn checked_size(meter: &mut Meter, size: usize) -> Result<(), EvalError> {
    meter.charge(size as u64 / 10)?;
    if size > TEXT_MAX { Err(EvalError::CostLimit) } else { Ok(()) }
}

fn split<'a>(args: &[Val<'a>], _: &mut Meter) -> Result<Val<'a>, EvalError> {
    let (text, separator, limit) = match args {
        [Val::Text(text), Val::Text(separator)] => (text, separator, -1),
        [Val::Text(text), Val::Text(separator), Val::Int(limit)] => (text, separator, *limit),
        _ => return Err(NO_OVERLOAD),
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let parts: Vec<String> = if limit == 0 {
        Vec::new()
    } else if separator.is_empty() {
        let count = text.chars().count();
        let head = text.chars().take(limit.saturating_sub(1).min(count)).map(String::from);
        let tail: String = text.chars().skip(limit.saturating_sub(1)).collect();
        if limit < count { head.chain([tail]).collect() } else { text.chars().map(String::from).collect() }
    } else {
        text.splitn(limit, &**separator).map(str::to_owned).collect()
    };
    Ok(Val::list(parts.into_iter().map(|part| Val::Text(Text::Owned(part.into()))).collect()))
}

fn join<'a>(args: &[Val<'a>], meter: &mut Meter) -> Result<Val<'a>, EvalError> {
    let (list, separator) = match args {
        [Val::List(list)] => (list, ""),
        [Val::List(list), Val::Text(separator)] => (list, &**separator),
        _ => return Err(NO_OVERLOAD),
    };
    let mut joined = String::new();
    for (i, item) in list.iter().enumerate() {
        let Val::Text(text) = item else { return Err(NO_OVERLOAD) };
        if i > 0 {
            joined.push_str(separator);
        }
        joined.push_str(&text);
        if joined.len() > TEXT_MAX {
            return Err(EvalError::CostLimit);
        }
    }
    meter.charge(joined.len() as u64 / 10)?;
    Ok(Val::text(joined))
}
