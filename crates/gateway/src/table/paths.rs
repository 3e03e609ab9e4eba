//! Lookup by path, then by the other conditions of a match.

use std::cmp::Reverse;
use std::sync::Arc;

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use regex::Regex;

use super::Rule;
use super::hash::FastMap;

/// The rules of one host.
#[derive(Debug, Default)]
pub(crate) struct PathTable {
    exact: FastMap<Box<str>, Vec<Candidate>>,
    /// By prefix without a trailing slash; the empty one matches everything.
    prefix: FastMap<Box<str>, Vec<Candidate>>,
    /// Longest pattern first.
    regex: Vec<(Regex, Vec<Candidate>)>,
}

/// A path condition.
#[derive(Debug, Clone)]
pub(crate) enum PathCondition {
    /// The path itself.
    Exact(String),
    /// The path and everything below it, by whole segments.
    Prefix(String),
    /// The whole path.
    Regex(Regex),
}

/// The conditions besides the path, and the rule they lead to.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) method: Option<Method>,
    pub(crate) headers: Vec<(HeaderName, Text)>,
    pub(crate) query: Vec<(String, Text)>,
    /// Creation time, namespace/name, rule and match number: what decides between equals.
    pub(crate) age: (String, String, usize, usize),
    pub(crate) rule: Arc<Rule>,
    /// Length of the prefix that matched, for rewriting; 0 for the other kinds.
    pub(crate) prefix_len: usize,
}

/// A condition on a text.
#[derive(Debug, Clone)]
pub(crate) enum Text {
    /// The text itself.
    Exact(String),
    /// A regular expression, found anywhere unless anchored.
    Regex(Regex),
}

impl Text {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(wanted) => wanted == text,
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

/// The parts of a request that conditions look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    pub(crate) headers: &'a HeaderMap,
}

impl PathTable {
    /// Adds a candidate; [`PathTable::sort`] must follow the last.
    pub(crate) fn add(&mut self, condition: &PathCondition, mut candidate: Candidate) {
        match condition {
            PathCondition::Exact(path) => self.exact.entry(path.as_str().into()).or_default().push(candidate),
            PathCondition::Prefix(path) => {
                let path = path.trim_end_matches('/');
                candidate.prefix_len = path.len();
                self.prefix.entry(path.into()).or_default().push(candidate);
            }
            PathCondition::Regex(regex) => {
                match self.regex.iter_mut().find(|(known, _)| known.as_str() == regex.as_str()) {
                    Some((_, candidates)) => candidates.push(candidate),
                    None => self.regex.push((regex.clone(), vec![candidate])),
                }
            }
        }
    }

    /// Puts candidates in the order of precedence.
    pub(crate) fn sort(&mut self) {
        self.regex.sort_by_key(|(regex, _)| Reverse(regex.as_str().len()));
        let all = self.exact.values_mut().chain(self.prefix.values_mut());
        for candidates in all.chain(self.regex.iter_mut().map(|(_, candidates)| candidates)) {
            candidates.sort_by(|a, b| {
                let weight =
                    |it: &Candidate| (Reverse(it.method.is_some()), Reverse(it.headers.len()), Reverse(it.query.len()));
                weight(a).cmp(&weight(b)).then_with(|| a.age.cmp(&b.age))
            });
        }
    }

    /// The first candidate in the order of precedence whose conditions hold.
    pub(crate) fn find(&self, asked: &Asked<'_>) -> Option<&Candidate> {
        let first = |candidates: &'_ [Candidate]| candidates.iter().position(|candidate| candidate.holds(asked));
        if let Some(candidates) = self.exact.get(asked.path)
            && let Some(at) = first(candidates)
        {
            return candidates.get(at);
        }
        for (regex, candidates) in &self.regex {
            if regex.is_match(asked.path)
                && let Some(at) = first(candidates)
            {
                return candidates.get(at);
            }
        }
        let mut prefix = asked.path.trim_end_matches('/');
        loop {
            if let Some(candidates) = self.prefix.get(prefix)
                && let Some(at) = first(candidates)
            {
                return candidates.get(at);
            }
            prefix = &prefix[..prefix.rfind('/')?];
        }
    }
}

impl Candidate {
    fn holds(&self, asked: &Asked<'_>) -> bool {
        self.method.as_ref().is_none_or(|method| method == asked.method)
            && self.headers.iter().all(|(name, wanted)| header_holds(asked.headers, name, wanted))
            && self.query.iter().all(|(name, wanted)| query_holds(asked.query, name, wanted))
    }
}

fn header_holds(headers: &HeaderMap, name: &HeaderName, wanted: &Text) -> bool {
    let mut values = headers.get_all(name).iter().map(HeaderValue::to_str);
    match (values.next(), values.next()) {
        (Some(Ok(value)), None) => wanted.matches(value),
        // Several lines of one header are one value with commas (RFC 9110, 5.3).
        (Some(_), Some(_)) => {
            let all: Vec<&str> = headers.get_all(name).iter().filter_map(|it| it.to_str().ok()).collect();
            wanted.matches(&all.join(", ")) || wanted.matches(&all.join(","))
        }
        _ => false,
    }
}

/// The first parameter of that name counts (Gateway API, HTTPQueryParamMatch).
fn query_holds(query: Option<&str>, name: &str, wanted: &Text) -> bool {
    query_value(query.unwrap_or_default(), name).is_some_and(|value| wanted.matches(&value))
}

/// The decoded value of the first query parameter of a name.
pub(crate) fn query_value(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decoded(key) == name).then(|| percent_decoded(value))
    })
}

/// `%XX` and `+` undone; what is not UTF-8 is replaced, so that it matches nothing configured.
fn percent_decoded(text: &str) -> String {
    if !text.contains(['%', '+']) {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match (bytes[at], digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (_, Some(byte)) => {
                decoded.push(byte);
                at += 2;
            }
            (b'+', None) => decoded.push(b' '),
            (byte, None) => decoded.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::table::Backends;
    use crate::table::filters::Filters;
    use crate::table::settings::RuleSettings;

    fn candidate(name: &str) -> Candidate {
        let rule = Rule {
            id: 0,
            name: name.to_owned(),
            filters: Filters::default(),
            backends: Backends::default(),
            fallback: None,
            settings: RuleSettings::default(),
        };
        let age = (String::new(), name.to_owned(), 0, 0);
        Candidate { method: None, headers: vec![], query: vec![], age, rule: Arc::new(rule), prefix_len: 0 }
    }

    fn find<'a>(table: &'a PathTable, method: &Method, uri: &str, headers: &HeaderMap) -> Option<&'a str> {
        let (path, query) = uri.split_once('?').map_or((uri, None), |(path, query)| (path, Some(query)));
        table.find(&Asked { method, path, query, headers }).map(|it| it.rule.name.as_str())
    }

    #[test]
    fn precedence_is_that_of_the_gateway_api() {
        let mut table = PathTable::default();
        table.add(&PathCondition::Prefix("/".into()), candidate("root"));
        table.add(&PathCondition::Prefix("/a".into()), candidate("a"));
        table.add(&PathCondition::Prefix("/a/b/".into()), candidate("a-b"));
        table.add(&PathCondition::Exact("/a/b".into()), candidate("exact"));
        table.add(&PathCondition::Regex(Regex::new("^/a/[0-9]+$").unwrap()), candidate("number"));
        table.add(&PathCondition::Prefix("/a".into()), Candidate { method: Some(Method::PUT), ..candidate("put") });
        let mut with_header = candidate("header");
        with_header.headers.push(("x".parse().unwrap(), Text::Exact("1".into())));
        table.add(&PathCondition::Prefix("/a".into()), with_header);
        let mut with_query = candidate("query");
        with_query.query.push(("q".into(), Text::Exact("a b".into())));
        table.add(&PathCondition::Prefix("/a".into()), with_query);
        table.sort();

        let none = HeaderMap::new();
        let x: HeaderMap = [("x".parse().unwrap(), "1".parse().unwrap())].into_iter().collect();
        for (method, uri, headers, wanted) in [
            (Method::GET, "/", &none, "root"),
            (Method::GET, "/ab", &none, "root"),
            (Method::GET, "/a", &none, "a"),
            (Method::GET, "/a/", &none, "a"),
            (Method::GET, "/a/b", &none, "exact"),
            (Method::GET, "/a/b/", &none, "a-b"),
            (Method::GET, "/a/b/c", &none, "a-b"),
            (Method::GET, "/a/7", &none, "number"),
            (Method::PUT, "/a/x", &x, "put"),
            (Method::GET, "/a?q=a+b", &x, "header"),
            (Method::GET, "/a?q=a%20b", &none, "query"),
            (Method::GET, "/a?q=c&q=a+b", &none, "a"),
        ] {
            assert_eq!(find(&table, &method, uri, headers), Some(wanted), "{method} {uri}");
        }
        assert_eq!(find(&PathTable::default(), &Method::GET, "/", &none), None);
    }

    #[test]
    fn equals_are_decided_by_age_then_name() {
        let mut table = PathTable::default();
        for (time, name) in
            [("2026-01-02T00:00:00Z", "a"), ("2026-01-01T00:00:00Z", "z"), ("2026-01-01T00:00:00Z", "b")]
        {
            let mut candidate = candidate(name);
            candidate.age.0 = time.to_owned();
            table.add(&PathCondition::Prefix("/".into()), candidate);
        }
        table.sort();
        assert_eq!(find(&table, &Method::GET, "/", &HeaderMap::new()), Some("b"));
    }
}
