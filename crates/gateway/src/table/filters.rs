//! Compiled filters of a rule or of one of its backends.

use std::sync::Arc;

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};

/// Filters in the order in which they act: CORS, redirect, header changes, rewriting, mirrors.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filters {
    pub(crate) request_headers: HeaderChanges,
    pub(crate) response_headers: HeaderChanges,
    pub(crate) rewrite: Option<Rewrite>,
    pub(crate) redirect: Option<Redirect>,
    pub(crate) mirrors: Vec<Mirror>,
    pub(crate) cors: Option<Arc<Cors>>,
}

/// Changes to headers.
#[derive(Debug, Clone, Default)]
pub(crate) struct HeaderChanges {
    pub(crate) set: Vec<(HeaderName, HeaderValue)>,
    pub(crate) add: Vec<(HeaderName, HeaderValue)>,
    pub(crate) remove: Vec<HeaderName>,
}

impl HeaderChanges {
    /// Makes the changes: set, then add, then remove.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

/// A change of path.
#[derive(Debug, Clone)]
pub(crate) enum PathChange {
    /// The whole path.
    Full(String),
    /// What matched of it.
    Prefix(String),
}

impl PathChange {
    /// The new path, where `prefix_len` bytes of the old one matched.
    pub(crate) fn apply(&self, path: &str, prefix_len: usize) -> String {
        match self {
            Self::Full(full) => full.clone(),
            Self::Prefix(new) => {
                let rest = path.get(prefix_len..).unwrap_or_default();
                let new = new.trim_end_matches('/');
                match (new.is_empty(), rest.starts_with('/')) {
                    (_, true) => format!("{new}{rest}"),
                    (true, false) => format!("/{rest}"),
                    (false, false) if rest.is_empty() => new.to_owned(),
                    (false, false) => format!("{new}/{rest}"),
                }
            }
        }
    }
}

/// What the backend is asked for instead.
#[derive(Debug, Clone)]
pub(crate) struct Rewrite {
    pub(crate) host: Option<HeaderValue>,
    pub(crate) path: Option<PathChange>,
}

/// A redirect.
#[derive(Debug, Clone)]
pub(crate) struct Redirect {
    pub(crate) scheme: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) path: Option<PathChange>,
    pub(crate) status: StatusCode,
}

/// A copy of a share of the requests.
#[derive(Debug, Clone)]
pub(crate) struct Mirror {
    pub(crate) upstream: usize,
    /// `numerator` of `denominator` requests are copied.
    pub(crate) numerator: u32,
    pub(crate) denominator: u32,
}

/// Cross-origin resource sharing (Fetch standard, 3.3).
#[derive(Debug, Clone)]
pub(crate) struct Cors {
    /// `*`, whole origins, or with one wildcard: `https://*.example.com`.
    pub(crate) origins: Vec<String>,
    pub(crate) credentials: bool,
    pub(crate) methods: Vec<String>,
    pub(crate) headers: Vec<String>,
    pub(crate) expose: Option<HeaderValue>,
    pub(crate) max_age_s: u32,
}

impl Cors {
    /// Whether an origin is allowed.
    pub(crate) fn allows(&self, origin: &str) -> bool {
        self.origins.iter().any(|pattern| match pattern.split_once('*') {
            Some(("", "")) => true,
            Some((before, after)) => {
                origin.len() > before.len() + after.len() && origin.starts_with(before) && origin.ends_with(after)
            }
            None => pattern.eq_ignore_ascii_case(origin),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_replaced_as_the_gateway_api_shows() {
        // The table of HTTPPathModifier, replacePrefixMatch.
        for (path, prefix, new, wanted) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/bar", "", "/xyz", "/xyz/bar"),
        ] {
            assert_eq!(PathChange::Prefix(new.into()).apply(path, prefix.len()), wanted, "{path} {prefix} {new}");
        }
    }

    #[test]
    fn origins_match_whole_or_by_one_wildcard() {
        let cors = |origin: &str| Cors {
            origins: vec![origin.to_owned()],
            credentials: false,
            methods: vec![],
            headers: vec![],
            expose: None,
            max_age_s: 5,
        };
        assert!(cors("https://*.example.com").allows("https://a.example.com"));
        assert!(!cors("https://*.example.com").allows("https://example.com"));
        assert!(!cors("https://*.example.com").allows("http://a.example.com"));
        assert!(!cors("https://example.com").allows("https://example.com.evil.org"));
        assert!(cors("*").allows("null"));
    }
}
