//! Every dependency's licence against the list in `deny.toml`.
//!
//! The same rule `cargo deny check licenses` applies, without having to install it: an SPDX expression is acceptable if
//! it can be satisfied with licences from the list. <https://spdx.github.io/spdx-spec/v3.0.1/annexes/spdx-license-expressions/>

use std::collections::BTreeSet;

use crate::process::{Failure, Outcome, at, counted};
use crate::workspace::{Package, Workspace};

/// The text of the MIT licence after the copyright line, with single spaces. <https://spdx.org/licenses/MIT.html>
const MIT_TEXT: &str = "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and \
    associated documentation files (the \"Software\"), to deal in the Software without restriction, including \
    without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell \
    copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to the \
    following conditions: The above copyright notice and this permission notice shall be included in all \
    copies or substantial portions of the Software. THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF \
    ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS \
    FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE \
    LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, \
    ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.";

/// Checks all packages that are built for this platform, tests included.
pub(crate) fn check() -> Outcome {
    let workspace = Workspace::load_with_dependencies()?;
    let file = workspace.root.join("deny.toml");
    let allowed = allowed_licences(&std::fs::read_to_string(&file).map_err(at(&file))?);
    let mut refused = 0;
    for package in &workspace.packages {
        let verdict = match &package.license {
            None => text_verdict(package, &allowed),
            Some(expression) => match satisfied(expression, &allowed) {
                Some(true) => Ok(()),
                Some(false) => Err(format!("{expression} is not on the list in deny.toml")),
                None => Err(format!("{expression:?} is not an SPDX expression")),
            },
        };
        if let Err(reason) = verdict {
            refused += 1;
            println!("{} {}: {reason}", package.name, package.version);
        }
    }
    if refused > 0 {
        return Err(Failure::Found(counted(refused, "package") + " with a licence that deny.toml does not allow"));
    }
    println!("{} carry licences from deny.toml's list", counted(workspace.packages.len(), "package"));
    Ok(())
}

/// For a package that names no licence but brings a text: whether that is the MIT licence, the only text recognised.
fn text_verdict(package: &Package, allowed: &BTreeSet<String>) -> Result<(), String> {
    let file = package.license_file.as_ref().ok_or("names no licence and brings no text of one")?;
    let text = std::fs::read_to_string(package.folder().join(file)).map_err(|error| format!("{file}: {error}"))?;
    if allowed.contains("MIT") && is_mit(&text) { Ok(()) } else { Err(format!("{file} is not the MIT licence")) }
}

/// Copyright lines, then the text of the licence and nothing else.
fn is_mit(text: &str) -> bool {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let before = words.strip_suffix(MIT_TEXT).map(str::to_lowercase);
    before.is_some_and(|it| it.len() < 300 && (it.contains("copyright") || it.is_empty()))
}

/// The strings of `allow = [ … ]` in the section `[licenses]`. Reads just that much TOML.
fn allowed_licences(toml: &str) -> BTreeSet<String> {
    let lines = toml.lines().map(|line| line.split('#').next().unwrap_or_default());
    let section: Vec<_> = lines
        .skip_while(|line| line.trim() != "[licenses]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .collect();
    let text = section.join("\n");
    let list =
        text.split_once("allow").and_then(|(_, rest)| rest.split_once('[')).and_then(|(_, rest)| rest.split_once(']'));
    let list = list.map_or("", |(list, _)| list);
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether the expression can be satisfied from the list; None if it cannot be read.
fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> Option<bool> {
    // Before SPDX, crates wrote MIT/Apache-2.0 and meant OR.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut reader = Reader { words: &words, allowed };
    let verdict = reader.any_of()?;
    reader.words.is_empty().then_some(verdict)
}

/// Reads an expression word by word; OR binds weaker than AND.
struct Reader<'a> {
    words: &'a [&'a str],
    allowed: &'a BTreeSet<String>,
}

impl<'a> Reader<'a> {
    fn any_of(&mut self) -> Option<bool> {
        let mut verdict = self.all_of()?;
        while self.next_is("OR") {
            verdict |= self.all_of()?;
        }
        Some(verdict)
    }

    fn all_of(&mut self) -> Option<bool> {
        let mut verdict = self.one()?;
        while self.next_is("AND") {
            verdict &= self.one()?;
        }
        Some(verdict)
    }

    fn one(&mut self) -> Option<bool> {
        if self.next_is("(") {
            let verdict = self.any_of()?;
            return self.next_is(")").then_some(verdict);
        }
        let name = self.word()?;
        if matches!(name, ")" | "AND" | "OR" | "WITH") {
            return None;
        }
        if self.next_is("WITH") {
            let exception = self.word()?;
            return Some(self.allowed.contains(&format!("{name} WITH {exception}")));
        }
        Some(self.allowed.contains(name))
    }

    fn word(&mut self) -> Option<&'a str> {
        let (first, rest) = self.words.split_first()?;
        self.words = rest;
        Some(first)
    }

    fn next_is(&mut self, word: &str) -> bool {
        let found = self.words.first() == Some(&word);
        if found {
            self.words = &self.words[1..];
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_from_its_section_only() {
        let toml = "[bans]\nallow = [\"x\"]\n[licenses]\nallow = [ # why\n  \"MIT\", # a\n  \"Apache-2.0\",\n]\n[sources]\nallow-git = [\"y\"]";
        assert_eq!(allowed_licences(toml).into_iter().collect::<Vec<_>>(), ["Apache-2.0", "MIT"]);
    }

    #[test]
    fn the_mit_licence_is_known_by_its_text() {
        assert!(is_mit(&format!("MIT License\n\nCopyright (c) 2022 Somebody\n\n{}\n", MIT_TEXT.replace(". ", ".\n"))));
        assert!(!is_mit(&format!("Copyright (c) 2022 Somebody\n{MIT_TEXT} Except on Sundays.")));
    }

    #[test]
    fn expressions_mean_what_spdx_says() {
        let allowed = allowed_licences("[licenses]\nallow = [\"MIT\", \"ISC\", \"Apache-2.0 WITH LLVM-exception\"]");
        for (expression, expected) in [
            ("MIT", Some(true)),
            ("GPL-3.0", Some(false)),
            ("GPL-3.0/MIT", Some(true)),
            ("GPL-3.0 OR MIT AND ISC", Some(true)),
            ("(GPL-3.0 OR MIT) AND Zlib", Some(false)),
            ("Apache-2.0 WITH LLVM-exception OR Apache-2.0", Some(true)),
            ("Apache-2.0", Some(false)),
            ("(MIT", None),
            ("MIT ISC", None),
            ("", None),
        ] {
            assert_eq!(satisfied(expression, &allowed), expected, "{expression}");
        }
    }
}
