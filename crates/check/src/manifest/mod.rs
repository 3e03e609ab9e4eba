//! Objects with the place where they stand, from files, directories, standard input or a running cluster.
//!
//! # Flow
//! path → files, in the order of their names → documents, lists taken apart → objects, defaulted as the API server would.
//!
//! # Guarantees
//! Every object knows its file, and the line of every field that was written; of a field that was not, the line of the
//! nearest one above it. What is not a Kubernetes object is refused with its file and line.
//!
//! # Deliberately absent
//! Templates: Helm and kustomize render, this reads (`helm template . | mainstay check -f -`).

mod located;
mod read;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use mainstay_model::{defaults, meta};
use serde::Serialize;
use serde_json::Value;

pub use read::{ManifestError, documents, files, parse, read};

use located::Marks;

/// A place in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Place {
    /// The file as it was named; `-` is standard input, `(live)` a running cluster.
    pub file: String,
    /// From 1; 0 where there is no text.
    pub line: u32,
    /// From 1; 0 where there is no text.
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

/// One object.
#[derive(Debug, Clone)]
pub struct Object {
    /// As it was written.
    pub written: Value,
    /// With the defaults that the API server would give it.
    pub value: Value,
    file: Arc<str>,
    marks: Arc<Marks>,
    /// Where in its document it stands: empty, or `items[3]` in a list.
    prefix: String,
}

impl Object {
    /// An object without text, from a running cluster.
    pub fn live(value: Value) -> Self {
        Self::new(value, Arc::from("(live)"), Arc::default(), String::new())
    }

    fn new(written: Value, file: Arc<str>, marks: Arc<Marks>, prefix: String) -> Self {
        let mut value = written.clone();
        defaults::apply_defaults(meta::kind(&written), &mut value);
        Self { written, value, file, marks, prefix }
    }

    /// Whether it is of a running cluster.
    pub fn is_live(&self) -> bool {
        self.marks.is_empty()
    }

    /// Its kind.
    pub fn kind(&self) -> &str {
        meta::kind(&self.written)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        meta::name(&self.written)
    }

    /// Its namespace; `default` when it does not say.
    pub fn namespace(&self) -> &str {
        meta::namespace(&self.written).unwrap_or("default")
    }

    /// `Deployment shop/cart`.
    pub fn shown(&self) -> String {
        format!("{} {}/{}", self.kind(), self.namespace(), self.name())
    }

    /// Where a field stands, or the nearest one above it that was written.
    pub fn place(&self, path: &str) -> Place {
        let mut path = match (self.prefix.as_str(), path) {
            (prefix, "") => prefix.to_owned(),
            ("", path) => path.to_owned(),
            (prefix, path) => format!("{prefix}.{path}"),
        };
        loop {
            if let Some((line, column)) = self.marks.get(&path) {
                return Place { file: self.file.to_string(), line: *line, column: *column };
            }
            match path.rfind(['.', '[']) {
                Some(end) => path.truncate(end),
                None if path.is_empty() => return Place { file: self.file.to_string(), line: 0, column: 0 },
                None => path.clear(),
            }
        }
    }

    /// An annotation of the object itself, or of the pods it makes.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        let below = ["spec.template.metadata.annotations", "spec.jobTemplate.spec.template.metadata.annotations"];
        let of_pods = || below.iter().find_map(|path| meta::at(&self.written, path)?.get(key)?.as_str());
        meta::annotation(&self.written, key).or_else(of_pods)
    }
}
