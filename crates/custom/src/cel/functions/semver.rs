//! Semantic versions. Comparisons stand with those of quantities.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/cel/#kubernetes-semver-library>.

use std::rc::Rc;

use semver::Version;

use super::super::value::Val;
use super::{EvalError, NO_OVERLOAD, Price, Row, function, method};

const PART: &[&str] = &["Semver -> int"];

pub(super) const ROWS: &[Row] = &[
    function("semver", &["string -> Semver", "string, bool -> Semver"], Price::Scan, |args, _| {
        parse(args).map(|version| Val::Semver(Rc::new(version)))
    }),
    function("isSemver", &["string -> bool", "string, bool -> bool"], Price::Scan, |args, _| match parse(args) {
        Err(NO_OVERLOAD) => Err(NO_OVERLOAD),
        result => Ok(Val::Bool(result.is_ok())),
    }),
    method("major", PART, Price::Step, |args, _| part(args, |version| version.major)),
    method("minor", PART, Price::Step, |args, _| part(args, |version| version.minor)),
    method("patch", PART, Price::Step, |args, _| part(args, |version| version.patch)),
];

fn parse(args: &[Val<'_>]) -> Result<Version, EvalError> {
    let (text, normalize) = match args {
        [Val::Text(text)] => (text, false),
        [Val::Text(text), Val::Bool(normalize)] => (text, *normalize),
        _ => return Err(NO_OVERLOAD),
    };
    let text = if normalize { normalized(text) } else { text.to_string() };
    Version::parse(&text)
        .map_err(|error| EvalError::Other(format!("Semver parse error during conversion from string: {error}")))
}

/// Without a leading `v`, with three numbers, without leading zeroes.
fn normalized(text: &str) -> String {
    let text = text.trim().trim_start_matches('v');
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let mut numbers: Vec<String> = text[..end]
        .split('.')
        .map(|number| match number.trim_start_matches('0') {
            "" if !number.is_empty() => "0".to_owned(),
            plain => plain.to_owned(),
        })
        .collect();
    while numbers.len() < 3 {
        numbers.push("0".to_owned());
    }
    format!("{}{}", numbers.join("."), &text[end..])
}

fn part<'a>(args: &[Val<'a>], of: fn(&Version) -> u64) -> Result<Val<'a>, EvalError> {
    match args {
        [Val::Semver(version)] => i64::try_from(of(version)).map(Val::Int).map_err(|_| EvalError::Overflow),
        _ => Err(NO_OVERLOAD),
    }
}
