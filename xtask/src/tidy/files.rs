//! One source file: how long it is, how long its functions are, and whether it explains itself.

use std::fs;
use std::path::{Path, PathBuf};

use super::mask::mask;
use crate::process::{Outcome, at};

/// Longest file, in lines.
const FILE_LINES_MAX: usize = 600;
/// Longest function, in lines from `fn` to the closing brace.
const FUNCTION_LINES_MAX: usize = 70;
/// The only crates with code the compiler cannot vouch for.
const UNSAFE_ALLOWED: [&str; 2] = ["crates/runtime/", "crates/net/"];

/// What the rules need to know about a file.
pub(crate) struct SourceFile {
    /// Relative to the workspace.
    pub(crate) path: String,
    pub(crate) lines: usize,
    /// Lines from `#[cfg(test)]` at the left margin to the end of the file, where unit tests are.
    pub(crate) test_lines: usize,
    functions: Vec<(String, usize)>,
    has_module_docs: bool,
    unsafe_lines: Vec<usize>,
}

/// Something longer than it should be; the ratchet may know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Excess {
    /// A path, or `path::function`.
    pub(crate) what: String,
    pub(crate) lines: usize,
    pub(crate) limit: usize,
}

impl SourceFile {
    pub(crate) fn new(path: String, text: &str) -> Self {
        let masked = mask(text);
        let unsafe_lines =
            masked.lines().enumerate().filter(|(_, line)| has_word(line, "unsafe")).map(|(number, _)| number + 1);
        Self {
            path,
            lines: text.lines().count(),
            test_lines: text.lines().skip_while(|line| *line != "#[cfg(test)]").count(),
            functions: functions(&masked),
            has_module_docs: text.lines().any(|line| line.starts_with("//!")),
            unsafe_lines: unsafe_lines.collect(),
        }
    }
}

/// The rules without exceptions.
pub(crate) fn check(file: &SourceFile) -> Vec<String> {
    let mut violations = Vec::new();
    if !file.has_module_docs {
        violations.push(format!("{}: no module docs (//!): what is its role?", file.path));
    }
    if !UNSAFE_ALLOWED.iter().any(|folder| file.path.starts_with(folder)) {
        let lines = file.unsafe_lines.iter();
        violations.extend(lines.map(|line| format!("{}:{line}: unsafe is for crates runtime and net", file.path)));
    }
    violations
}

/// What is too long, known to the ratchet or not.
pub(crate) fn excesses(file: &SourceFile) -> Vec<Excess> {
    let whole = Excess { what: file.path.clone(), lines: file.lines, limit: FILE_LINES_MAX };
    let functions = file.functions.iter().map(|(name, lines)| Excess {
        what: format!("{}::{name}", file.path),
        lines: *lines,
        limit: FUNCTION_LINES_MAX,
    });
    std::iter::once(whole).chain(functions).filter(|it| it.lines > it.limit).collect()
}

/// All files below a folder that belong to the repository: nothing hidden by a leading full stop, no build results.
pub(crate) fn walk(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(at(&folder))? {
            let path = entry.map_err(at(&folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let skipped = name == "target" || (name.starts_with('.') && name != ".ci");
            if skipped {
                continue;
            }
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Every function with a body: its name and its length in lines.
fn functions(masked: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (at, _) in masked.match_indices("fn ") {
        if masked[..at].ends_with(is_word) {
            continue;
        }
        let rest = &masked[at..];
        let name: String = rest[3..].trim_start().chars().take_while(|c| is_word(*c)).collect();
        // No name: a function type such as `fn (u8)`. No brace before the semicolon: a declaration in a trait.
        let body = body_start(rest);
        if let (false, Some(body)) = (name.is_empty(), body) {
            found.push((name, rest[..body + block_length(&rest[body..])].lines().count()));
        }
    }
    found
}

/// Where the body's brace is; None for a declaration. The semicolon of an array type, `[u8; 4]`, ends nothing.
fn body_start(signature: &str) -> Option<usize> {
    let mut brackets = 0_usize;
    for (at, character) in signature.char_indices() {
        match character {
            '[' => brackets += 1,
            ']' => brackets = brackets.saturating_sub(1),
            '{' if brackets == 0 => return Some(at),
            ';' if brackets == 0 => return None,
            _ => {}
        }
    }
    None
}

/// Bytes from an opening brace to the one that closes it.
fn block_length(text: &str) -> usize {
    let mut depth = 0_usize;
    for (at, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            return at + 1;
        }
    }
    text.len()
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word))
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_measured_from_fn_to_brace() {
        let text = "trait T {\n    fn declared(&self);\n    fn one(&self) {\n        \"}\";\n    }\n}\n\
                    fn two(f: fn(u8)) -> [u8; 2]\nwhere\n    Self: T,\n{\n    // }\n    [0; 2]\n}\n";
        assert_eq!(functions(&mask(text)), [("one".to_owned(), 3), ("two".to_owned(), 7)]);
        assert_eq!(functions("async fn x() {\n}\n"), [("x".to_owned(), 2)]);
    }

    #[test]
    fn unsafe_is_a_word_and_not_part_of_one() {
        let plain = |text: &str| check(&SourceFile::new("crates/model/src/a.rs".into(), text)).len();
        assert_eq!(plain("//! Docs.\n#![deny(unsafe_code)]\n// unsafe\n"), 0);
        assert_eq!(plain("//! Docs.\nfn f() { unsafe { g() } }\n"), 1);
        assert_eq!(plain("fn f() {}\n"), 1);
        let allowed = SourceFile::new("crates/net/src/a.rs".into(), "//! Docs.\nunsafe fn f() {}\n");
        assert!(check(&allowed).is_empty());
    }

    #[test]
    fn long_files_and_functions_are_named() {
        let text = format!("//! Docs.\nfn long() {{\n{}}}\n", "    x();\n".repeat(600));
        let found = excesses(&SourceFile::new("a.rs".into(), &text));
        assert_eq!(
            found.iter().map(|it| (it.what.as_str(), it.lines)).collect::<Vec<_>>(),
            [("a.rs", 603), ("a.rs::long", 602)]
        );
    }
}
