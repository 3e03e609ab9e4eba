//! Lookup by host name: exact, wildcard, any.

use super::hash::FastMap;

/// Values by host pattern. Patterns are lower case.
#[derive(Debug, Clone)]
pub(crate) struct HostMap<T> {
    exact: FastMap<Box<str>, T>,
    /// By what follows the `*`, for example `.example.com`.
    wildcard: FastMap<Box<str>, T>,
    any: Option<T>,
}

impl<T> Default for HostMap<T> {
    fn default() -> Self {
        Self { exact: FastMap::default(), wildcard: FastMap::default(), any: None }
    }
}

impl<T> HostMap<T> {
    /// The place of a pattern: a name, `*.suffix`, or `None` for any host.
    pub(crate) fn entry(&mut self, pattern: Option<&str>, new: impl FnOnce() -> T) -> &mut T {
        match pattern {
            None | Some("" | "*") => self.any.get_or_insert_with(new),
            Some(pattern) => match pattern.strip_prefix('*') {
                Some(suffix) => self.wildcard.entry(suffix.into()).or_insert_with(new),
                None => self.exact.entry(pattern.into()).or_insert_with(new),
            },
        }
    }

    /// The values whose pattern matches `host` (lower case, without port), most specific first. A wildcard stands for one
    /// label or more (Gateway API, Hostname).
    pub(crate) fn matching<'a, 'h>(&'a self, host: &'h str) -> impl Iterator<Item = &'a T> + use<'a, 'h, T> {
        let wildcards = host.match_indices('.').filter(|_| !self.wildcard.is_empty());
        let wildcards = wildcards.filter_map(|(at, _)| self.wildcard.get(&host[at..]));
        self.exact.get(host).into_iter().chain(wildcards).chain(self.any.as_ref())
    }

    /// The value of the most specific pattern that matches.
    pub(crate) fn get(&self, host: &str) -> Option<&T> {
        self.matching(host).next()
    }

    /// All values.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.exact.values_mut().chain(self.wildcard.values_mut()).chain(self.any.as_mut())
    }
}

/// What two patterns have in common: the more specific one if one covers the other (Gateway API, HTTPRoute `hostnames`).
pub(crate) fn intersection(a: Option<&str>, b: Option<&str>) -> Option<Option<String>> {
    let specific = |pattern: Option<&str>| pattern.filter(|it| !it.is_empty() && *it != "*").map(str::to_lowercase);
    match (specific(a), specific(b)) {
        (None, other) | (other, None) => Some(other),
        (Some(a), Some(b)) if a == b || covers(&b, &a) => Some(Some(a)),
        (Some(a), Some(b)) if covers(&a, &b) => Some(Some(b)),
        _ => None,
    }
}

/// Whether a wildcard pattern matches all that `other` matches.
fn covers(pattern: &str, other: &str) -> bool {
    pattern.strip_prefix('*').is_some_and(|suffix| {
        let other = other.strip_prefix('*').unwrap_or(other);
        other.len() > suffix.len() && other.ends_with(suffix)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_host_comes_first() {
        let mut map = HostMap::default();
        for pattern in [None, Some("*.example.com"), Some("*.a.example.com"), Some("a.example.com")] {
            map.entry(pattern, || pattern);
        }
        let found = |host: &str| map.matching(host).copied().collect::<Vec<_>>();
        assert_eq!(found("a.example.com"), [Some("a.example.com"), Some("*.example.com"), None]);
        assert_eq!(found("b.a.example.com"), [Some("*.a.example.com"), Some("*.example.com"), None]);
        assert_eq!(found("example.com"), [None]);
        assert_eq!(found(""), [None]);
    }

    #[test]
    fn patterns_intersect_as_the_gateway_api_says() {
        let cases = [
            (None, None, Some(None)),
            (Some("a.b.c"), None, Some(Some("a.b.c"))),
            (Some("*.b.c"), Some("a.b.c"), Some(Some("a.b.c"))),
            (Some("*.c"), Some("*.b.c"), Some(Some("*.b.c"))),
            (Some("*.b.c"), Some("b.c"), None),
            (Some("A.b"), Some("a.b"), Some(Some("a.b"))),
            (Some("a.b"), Some("c.b"), None),
        ];
        for (a, b, wanted) in cases {
            let wanted = wanted.map(|it| it.map(str::to_owned));
            assert_eq!(intersection(a, b), wanted, "{a:?} {b:?}");
            assert_eq!(intersection(b, a), wanted, "{b:?} {a:?}");
        }
    }
}
