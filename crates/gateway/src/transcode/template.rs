//! Path templates of `google.api.http` (`google/api/http.proto`, "Path template syntax").

use percent_encoding::percent_decode_str;
use regex::Regex;

/// A template: `/v1/{name=shelves/*}/books/{id}:archive` and its like.
#[derive(Debug, Clone)]
pub(super) struct Template {
    pattern: Regex,
    /// Field paths, in the order of the pattern's groups.
    fields: Vec<String>,
}

impl Template {
    /// Reads a template; nothing if it is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut pattern = String::from("^");
        let mut fields = Vec::new();
        let mut rest = text.strip_prefix('/').map(|_| text)?;
        while let Some(next) = rest.chars().next() {
            match next {
                '{' => {
                    let end = rest.find('}')?;
                    let (name, inner) = rest[1..end].split_once('=').unwrap_or((&rest[1..end], "*"));
                    if name.is_empty() {
                        return None;
                    }
                    fields.push(name.to_owned());
                    pattern.push('(');
                    wildcards(inner, &mut pattern);
                    pattern.push(')');
                    rest = &rest[end + 1..];
                }
                _ => {
                    let end = rest.find('{').unwrap_or(rest.len());
                    if rest[..end].contains('}') {
                        return None;
                    }
                    wildcards(&rest[..end], &mut pattern);
                    rest = &rest[end..];
                }
            }
        }
        pattern.push('$');
        Some(Self { pattern: Regex::new(&pattern).ok()?, fields })
    }

    /// The fields that a path sets; nothing if it does not fit.
    pub(super) fn matches(&self, path: &str) -> Option<Vec<(String, String)>> {
        let found = self.pattern.captures(path)?;
        let value = |at: usize| percent_decode_str(found.get(at + 1).map_or("", |it| it.as_str())).decode_utf8_lossy();
        Some(self.fields.iter().enumerate().map(|(at, name)| (name.clone(), value(at).into_owned())).collect())
    }
}

/// `*` is one segment, `**` any number of them, the rest is itself.
fn wildcards(text: &str, pattern: &mut String) {
    let mut rest = text;
    while let Some(at) = rest.find('*') {
        pattern.push_str(&regex::escape(&rest[..at]));
        let (wildcard, length) = if rest[at..].starts_with("**") { (".*", 2) } else { ("[^/]+", 1) };
        pattern.push_str(wildcard);
        rest = &rest[at + length..];
    }
    pattern.push_str(&regex::escape(rest));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_set_fields() {
        for (template, path, wanted) in [
            ("/v1/books", "/v1/books", Some(vec![])),
            ("/v1/books/{id}", "/v1/books/a%20b", Some(vec![("id", "a b")])),
            ("/v1/books/{id}", "/v1/books/a/b", None),
            ("/v1/{name=shelves/*/books/*}", "/v1/shelves/1/books/2", Some(vec![("name", "shelves/1/books/2")])),
            ("/v1/{book.id}:archive", "/v1/7:archive", Some(vec![("book.id", "7")])),
            ("/files/{path=**}", "/files/a/b/c", Some(vec![("path", "a/b/c")])),
            ("/a.b", "/axb", None),
            ("/v1/*/x", "/v1/any/x", Some(vec![])),
        ] {
            let found = Template::parse(template).unwrap().matches(path);
            let wanted: Option<Vec<(String, String)>> =
                wanted.map(|it| it.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect());
            assert_eq!(found, wanted, "{template} {path}");
        }
        for wrong in ["v1", "/a{b", "/a}b", "/{}"] {
            assert!(Template::parse(wrong).is_none(), "{wrong}");
        }
    }
}
