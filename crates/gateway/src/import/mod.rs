//! Other proxies' configurations as Gateway API objects: `mainstay gateway import nginx.conf|haproxy.cfg`.
//!
//! # Flow
//! text → directives of one of the two languages (`nginx`, `haproxy`) → a [`Plan`] of listeners, routes and backends → objects.
//!
//! # Guarantees
//! - What cannot be translated is named with its line, never dropped in silence; what the gateway does by itself is dropped.
//! - What comes out is a configuration that compiles.
//!
//! # Deliberately absent
//! Serving files, FastCGI, uWSGI, Lua, maps, and everything that computes with variables.

mod haproxy;
mod nginx;
mod objects;
mod plan;
mod words;

use std::fmt;
use std::path::{Path, PathBuf};

use plan::Plan;

/// Why a configuration cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file could not be read.
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, #[source] std::io::Error),
    /// It is neither of the two languages.
    #[error(
        "{0} looks neither like nginx's nor like HAProxy's configuration; it needs a block `http {{` or a section `frontend`"
    )]
    Unknown(PathBuf),
    /// Its structure is broken.
    #[error("{path}:{line}: {message}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The objects could not be written as YAML.
    #[error("cannot write YAML: {0}")]
    Write(String),
}

/// Something that was not translated.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// What, and what to do instead.
    pub message: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.message)
    }
}

/// A translated configuration.
#[derive(Debug)]
pub struct Imported {
    /// Gateway API objects, as YAML documents.
    pub yaml: String,
    /// What is missing in them, in the order of the files.
    pub notes: Vec<Note>,
}

/// Translates a file, and those that it includes.
///
/// # Errors
/// See [`ImportError`].
pub fn import(path: &Path) -> Result<Imported, ImportError> {
    let text = read(path)?;
    let plan = if nginx::is(&text) {
        nginx::plan(path, &text)?
    } else if haproxy::is(&text) {
        haproxy::plan(path, &text)
    } else {
        return Err(ImportError::Unknown(path.to_owned()));
    };
    finish(&plan)
}

fn finish(plan: &Plan) -> Result<Imported, ImportError> {
    let mut notes = plan.notes.clone();
    notes.sort();
    notes.dedup();
    let mut yaml = String::new();
    for object in objects::objects(plan) {
        if !yaml.is_empty() {
            yaml.push_str("---\n");
        }
        yaml.push_str(&serde_saphyr::to_string(&object).map_err(|error| ImportError::Write(error.to_string()))?);
        if !yaml.ends_with('\n') {
            yaml.push('\n');
        }
    }
    Ok(Imported { yaml, notes })
}

fn read(path: &Path) -> Result<String, ImportError> {
    std::fs::read_to_string(path).map_err(|error| ImportError::Read(path.to_owned(), error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::{Objects, Options, compile, source};

    /// Imports a text and compiles what comes out; the YAML, the notes and the problems.
    fn imported(name: &str, text: &str) -> (String, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let Imported { yaml, notes } = import(&path).unwrap();
        let mut sources = Vec::new();
        source::parse(&path, &yaml, &mut sources).unwrap();
        let compiled = compile(&Objects::decode(&sources), &Options::default());
        let problems: Vec<String> = compiled.problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems, Vec::<String>::new(), "{yaml}");
        let notes: Vec<String> = notes.iter().map(|it| format!("{}: {}\n", it.line, it.message)).collect();
        (yaml, notes.concat())
    }

    /// Compares with what was reviewed; with `UPDATE_GOLDEN` in the environment, writes what is to be reviewed.
    fn golden(name: &str, text: &str) {
        let (yaml, notes) = imported(name, text);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import");
        for (found, kind) in [(yaml, "yaml"), (notes, "notes")] {
            let file = folder.join(name).with_extension(kind);
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(&file, &found).unwrap();
            }
            assert_eq!(found, std::fs::read_to_string(&file).unwrap(), "{}", file.display());
        }
    }

    #[test]
    fn nginx() {
        golden("nginx.conf", include_str!("../../tests/import/nginx.conf"));
    }

    #[test]
    fn haproxy() {
        golden("haproxy.cfg", include_str!("../../tests/import/haproxy.cfg"));
    }

    #[test]
    fn broken_texts_are_refused_or_translated_and_nothing_else() {
        let samples = [include_str!("../../tests/import/nginx.conf"), include_str!("../../tests/import/haproxy.cfg")];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sample");
        for seed in 0..1_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut text: Vec<char> = samples[random.usize(..2)].chars().collect();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(..text.len());
                match random.u8(0..4) {
                    0 => drop(text.remove(at)),
                    1 => text.insert(at, ['{', '}', ';', '"', '\n', ' ', '$', '(', ':'][random.usize(..9)]),
                    2 => text.truncate(at.max(1)),
                    _ => drop(text.drain(at..(at + random.usize(..40)).min(text.len()))),
                }
                if text.is_empty() {
                    text.push(' ');
                }
            }
            let text: String = text.into_iter().collect();
            let planned = if nginx::is(&text) { nginx::plan(&path, &text) } else { Ok(haproxy::plan(&path, &text)) };
            if let Ok(plan) = planned {
                finish(&plan).unwrap();
            }
        }
    }

    #[test]
    fn other_files_are_refused_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other");
        for (text, wanted) in [
            ("hello: world\n", "looks neither"),
            ("http {\n server {\n", "is never closed"),
            ("http { } }\n", "closes nothing"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = import(&path).unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
