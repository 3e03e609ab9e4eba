//! Regular expressions as Kubernetes means them: RE2 syntax, run by the crate `regex`.
//!
//! Both guarantee time linear in the text. They differ in a few spellings, which [`translate`] bridges: RE2's `\d`, `\w`,
//! `\s` and `\b` are ASCII; its character classes know no nesting and no set operations; `\Q…\E` quotes.
//!
//! Source: <https://github.com/google/re2/wiki/Syntax>, <https://docs.rs/regex/latest/regex/#syntax>.

use std::sync::OnceLock;

use regex::{Regex, RegexBuilder};

/// Largest compiled program, in bytes, of one expression.
const PROGRAM_BYTES_MAX: usize = 1 << 20;

/// An expression that is compiled when it is first needed: many definitions hold hundreds that never are.
#[derive(Debug)]
pub struct Pattern {
    text: String,
    compiled: OnceLock<Option<Regex>>,
}

impl Pattern {
    /// Keeps the expression, which [`check`] has found good.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), compiled: OnceLock::new() }
    }

    /// The expression as it was given.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it matches anywhere in `text`; an expression that does not compile matches nothing.
    pub fn is_match(&self, text: &str) -> bool {
        self.compiled.get_or_init(|| compile(&self.text).ok()).as_ref().is_some_and(|regex| regex.is_match(text))
    }
}

/// Compiles an expression in RE2's syntax.
///
/// # Errors
/// In the words of the crate `regex`.
pub fn compile(text: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(&translate(text)).size_limit(PROGRAM_BYTES_MAX).build()
}

/// Why an expression is not one, in one line.
pub fn check(text: &str) -> Result<(), String> {
    compile(text).map(drop).map_err(|error| {
        let text = error.to_string();
        text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })
}

/// RE2's spelling in that of `regex`.
fn translate(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut characters = text.chars().peekable();
    let mut class = false;
    let mut class_start = false;
    while let Some(c) = characters.next() {
        let first = std::mem::take(&mut class_start);
        match c {
            '\\' => match characters.next() {
                Some('d') => out.push_str("[0-9]"),
                Some('D') => out.push_str("[^0-9]"),
                Some('w') => out.push_str("[0-9A-Za-z_]"),
                Some('W') => out.push_str("[^0-9A-Za-z_]"),
                Some('s') => out.push_str("[\\t\\n\\x0c\\r ]"),
                Some('S') => out.push_str("[^\\t\\n\\x0c\\r ]"),
                Some('b') if !class => out.push_str("(?-u:\\b)"),
                Some('B') if !class => out.push_str("(?-u:\\B)"),
                Some('Q') if !class => quote(&mut characters, &mut out),
                Some(next @ ('<' | '>')) => out.push(next),
                Some(next) => out.extend(['\\', next]),
                None => out.push('\\'),
            },
            '[' if !class => {
                (class, class_start) = (true, true);
                out.push('[');
                if characters.peek() == Some(&'^') {
                    characters.next();
                    out.push('^');
                }
            }
            // Kept as it is: a POSIX class such as [:alpha:].
            '[' if characters.peek() == Some(&':') => {
                out.push('[');
                for c in characters.by_ref() {
                    out.push(c);
                    if c == ']' {
                        break;
                    }
                }
            }
            ']' if class && first => out.push_str("\\]"),
            ']' => {
                class = false;
                out.push(']');
            }
            '[' | '&' | '~' if class => out.extend(['\\', c]),
            _ => out.push(c),
        }
    }
    out
}

fn quote(characters: &mut std::iter::Peekable<std::str::Chars<'_>>, out: &mut String) {
    while let Some(c) = characters.next() {
        if c == '\\' && characters.peek() == Some(&'E') {
            characters.next();
            return;
        }
        out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn as_re2() {
        for (pattern, text, expected) in [
            (r"^\d+$", "12", true),
            (r"^\d+$", "١٢", false),
            (r"^[\w-]+$", "a_b-c", true),
            (r"^[[a]+$", "[a", true),
            (r"^[]a]+$", "]a", true),
            (r"^[^]a]+$", "b", true),
            (r"^[a&&b]+$", "a&b", true),
            (r"\Qa.b\E+", "a.b", true),
            (r"\Qa.b\E", "axb", false),
            (r"^[[:alpha:]]+$", "ab", true),
            (r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?\.)*x$", "a-b.x", true),
            (r"^\/a\-b$", "/a-b", true),
            (r"\bfoo\b", "a foo b", true),
            (r"^[^\s]+$", "a b", false),
        ] {
            assert_eq!(compile(pattern).unwrap().is_match(text), expected, "{pattern} on {text}");
        }
        assert!(check("(").unwrap_err().contains("unclosed"), "{:?}", check("("));
        assert!(check("(?=a)").is_err() && check(r"(a)\1").is_err());
    }
}
