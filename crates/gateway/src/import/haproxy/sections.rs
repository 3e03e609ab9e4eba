//! HAProxy's language: lines of words, gathered in sections.

use std::path::{Path, PathBuf};

use crate::import::words::Worded;

const SECTIONS: &[&str] = &[
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "userlist",
    "peers",
    "resolvers",
    "mailers",
    "cache",
    "ring",
    "program",
    "http-errors",
    "fcgi-app",
    "crt-list",
    "log-forward",
];

/// A line.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) path: PathBuf,
    pub(super) number: usize,
    pub(super) words: Vec<String>,
}

impl Worded for Line {
    fn words(&self) -> &[String] {
        &self.words
    }
}

/// A section with the lines of the `defaults` before it.
#[derive(Debug, Clone)]
pub(super) struct Section {
    pub(super) path: PathBuf,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) lines: Vec<Line>,
    defaults: Vec<Line>,
}

impl Section {
    /// Its own lines of a name.
    pub(super) fn own<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Line> {
        self.lines.iter().filter(move |it| it.name() == name)
    }

    /// Lines of the defaults, then its own.
    pub(super) fn lines_and_defaults(&self) -> impl Iterator<Item = &Line> {
        self.defaults.iter().chain(&self.lines)
    }

    /// The line of a name that counts.
    pub(super) fn last(&self, name: &str) -> Option<&Line> {
        self.lines_and_defaults().filter(|it| it.name() == name).last()
    }

    /// The `option` of a name.
    pub(super) fn last_option(&self, name: &str) -> Option<&Line> {
        self.lines_and_defaults().filter(|it| it.name() == "option" && it.arg(0) == name).last()
    }
}

/// The sections of a file.
pub(super) fn sections(path: &Path, text: &str) -> Vec<Section> {
    let mut found: Vec<Section> = Vec::new();
    let mut defaults = Vec::new();
    for (at, text) in text.lines().enumerate() {
        let words = words(text);
        let Some(first) = words.first() else { continue };
        if SECTIONS.contains(&first.as_str()) {
            if let Some(before) = found.last().filter(|it| it.kind == "defaults") {
                defaults.clone_from(&before.lines);
            }
            found.push(Section {
                path: path.to_owned(),
                kind: first.clone(),
                name: words.get(1).cloned().unwrap_or_default(),
                line: at + 1,
                lines: Vec::new(),
                defaults: defaults.clone(),
            });
        } else if let Some(section) = found.last_mut() {
            section.lines.push(Line { path: path.to_owned(), number: at + 1, words });
        }
    }
    found
}

/// The words of a line: quotes hold them together, a backslash takes the next character as it is, `#` begins a comment.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match (char, quote) {
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(chars.next()),
            (it, Some(open)) if it == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            ('#', None) => break,
            (it, None) if it.is_whitespace() => words.extend(word.take()),
            (it, _) => word.get_or_insert_default().push(it),
        }
    }
    words.extend(word);
    words
}
