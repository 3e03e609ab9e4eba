//! Conditions: `acl` lines, and what `if` makes of them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::sections::{Line, Section};
use super::untranslated;
use crate::import::plan::{Plan, whole};
use crate::import::words::Worded as _;

/// A field of a match that is no field of the Gateway API's: the hosts, which belong to the route.
pub(super) const HOSTS: &str = "#hosts";

/// Named conditions: alternatives, each a match.
#[derive(Debug, Default)]
pub(super) struct Acls {
    by_name: BTreeMap<String, Vec<Value>>,
}

impl Acls {
    /// Those of a section.
    pub(super) fn of(plan: &mut Plan, section: &Section) -> Self {
        let mut by_name: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for line in section.own("acl") {
            match condition(&line.words[2.min(line.words.len())..]) {
                // Lines of one name are alternatives.
                Some(found) => by_name.entry(line.arg(0).to_owned()).or_default().extend(found),
                None if is_of_limit(line) => {}
                None => untranslated(plan, line),
            }
        }
        Self { by_name }
    }

    /// What `if A B or C` comes down to, as alternatives; nothing if a part of it cannot be said.
    pub(super) fn matches(&self, words: &[String]) -> Option<Vec<Value>> {
        let Some((first, rest)) = words.split_first() else { return Some(Vec::new()) };
        if first != "if" {
            return None;
        }
        let mut found = Vec::new();
        for alternative in rest.split(|it| it == "or" || it == "||") {
            let mut joined = vec![json!({})];
            let mut words = alternative.iter();
            while let Some(word) = words.next() {
                let options = if word == "{" {
                    let inner: Vec<String> = words.by_ref().take_while(|it| *it != "}").cloned().collect();
                    condition(&inner)?
                } else {
                    self.by_name.get(word)?.clone()
                };
                joined = product(&joined, &options)?;
            }
            found.extend(joined);
        }
        Some(found)
    }
}

fn is_of_limit(line: &Line) -> bool {
    line.words.iter().any(|it| it.contains("http_req_rate"))
}

/// Every combination of two lists of alternatives; nothing if two of them speak of the same.
fn product(left: &[Value], right: &[Value]) -> Option<Vec<Value>> {
    let mut all = Vec::new();
    for one in left {
        for other in right {
            let mut both = one.as_object()?.clone();
            for (field, value) in other.as_object()? {
                match (both.get_mut(field), value) {
                    (None, value) => drop(both.insert(field.clone(), value.clone())),
                    (Some(Value::Array(list)), Value::Array(more)) if field != HOSTS => {
                        list.extend(more.iter().cloned());
                    }
                    _ => return None,
                }
            }
            all.push(Value::Object(both));
        }
    }
    Some(all)
}

/// `path_beg /api /v2`, `hdr(host) -i a b`, `method POST` and their like.
fn condition(words: &[String]) -> Option<Vec<Value>> {
    let (fetch, rest) = words.split_first()?;
    let mut matching = None;
    let mut values: Vec<&str> = Vec::new();
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "-i" | "--" => {}
            "-m" => matching = rest.next().map(String::as_str),
            "-f" => return None,
            value => values.push(value),
        }
    }
    let (name, argument) =
        fetch.split_once('(').map_or((fetch.as_str(), ""), |(name, rest)| (name, rest.trim_end_matches(')')));
    let (name, ending) = ["_beg", "_end", "_reg", "_sub", "_dom", "_dir"]
        .iter()
        .find_map(|ending| Some((name.strip_suffix(ending)?, &ending[1..])))
        .unwrap_or((name, "str"));
    let how = matching.unwrap_or(ending);
    let each =
        |make: &dyn Fn(&str) -> Option<Value>| values.iter().map(|value| make(value)).collect::<Option<Vec<_>>>();
    match (name, how) {
        ("hdr" | "req.hdr" | "req.fhdr", "str" | "end") if argument.eq_ignore_ascii_case("host") => {
            let host = |value: &str| match (how, value.strip_prefix('.')) {
                ("str", None) => Some(value.to_ascii_lowercase()),
                ("end", Some(rest)) => Some(format!("*.{}", rest.to_ascii_lowercase())),
                _ => None,
            };
            let hosts = values.iter().map(|value| host(value)).collect::<Option<Vec<String>>>()?;
            Some(vec![json!({ HOSTS: hosts })])
        }
        ("hdr" | "req.hdr" | "req.fhdr", "str") => {
            each(&|value| Some(json!({"headers": [{"name": argument, "value": value}]})))
        }
        ("hdr" | "req.hdr" | "req.fhdr", "reg") => each(&|value| {
            Some(json!({"headers": [{"type": "RegularExpression", "name": argument, "value": whole(value, false)}]}))
        }),
        ("path", "str") => each(&|value| Some(json!({"path": {"type": "Exact", "value": value}}))),
        ("path", "beg" | "dir") => each(&|value| {
            let value = if value.len() > 1 { value.trim_end_matches('/') } else { value };
            let value = if value.starts_with('/') { value.to_owned() } else { format!("/{value}") };
            Some(json!({"path": {"type": "PathPrefix", "value": value}}))
        }),
        ("path", "reg" | "end" | "sub") => each(&|value| {
            let pattern = match how {
                "reg" => whole(value, false),
                "end" => format!(".*{}", regex::escape(value)),
                _ => format!(".*{}.*", regex::escape(value)),
            };
            Some(json!({"path": {"type": "RegularExpression", "value": pattern}}))
        }),
        ("method", "str") => each(&|value| Some(json!({"method": value.to_ascii_uppercase()}))),
        ("url_param" | "urlp", "str") => {
            each(&|value| Some(json!({"queryParams": [{"name": argument, "value": value}]})))
        }
        _ => None,
    }
}
