//! Reading files.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mainstay_model::meta;
use serde_json::Value;

use super::Object;
use super::located::{Located, Marks};

/// Largest file read.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Most objects taken in.
const OBJECTS_MAX: usize = 50_000;

/// Why manifests could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file or directory could not be read.
    #[error("cannot read {path}: {source}; name a file, a directory, or - for standard input")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Too large.
    #[error("{path} has {bytes} bytes; files of up to {FILE_BYTES_MAX} are read")]
    Large {
        /// Which.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A directory without manifests.
    #[error("there are no manifests (*.yaml, *.yml, *.json) in {0}")]
    Empty(PathBuf),
    /// Not YAML.
    #[error("{file}:{line}: {reason}")]
    Yaml {
        /// The file.
        file: String,
        /// From 1; 0 when the parser did not say.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// Not a Kubernetes object.
    #[error("{file}:{line}: {what}; every document must be a Kubernetes object or a List of them")]
    Object {
        /// The file.
        file: String,
        /// From 1.
        line: u32,
        /// What is missing.
        what: &'static str,
    },
    /// Too many.
    #[error("{0}: more than {OBJECTS_MAX} objects")]
    Many(String),
}

/// Reads all manifests of the given paths, files of a directory in the order of their names.
///
/// # Errors
/// The first thing that cannot be read, with its place.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Object>, ManifestError> {
    let mut objects = Vec::new();
    for path in paths {
        let files = files(path).map_err(|source| ManifestError::Read { path: path.clone(), source })?;
        if files.is_empty() {
            return Err(ManifestError::Empty(path.clone()));
        }
        for file in files {
            objects.extend(parse(&file.display().to_string(), &text(&file)?)?);
        }
    }
    Ok(objects)
}

/// Reads every document of one file as it is, Kubernetes object or not.
///
/// # Errors
/// When it cannot be read or is not YAML.
pub fn documents(path: &Path) -> Result<Vec<Value>, ManifestError> {
    let all = located(&path.display().to_string(), &text(path)?)?;
    Ok(all.into_iter().map(|(value, _)| value).collect())
}

/// The objects of a text; `file` is what places say.
///
/// # Errors
/// When it is not YAML, or holds something else than Kubernetes objects.
pub fn parse(file: &str, text: &str) -> Result<Vec<Object>, ManifestError> {
    let name: Arc<str> = Arc::from(file);
    let mut objects = Vec::new();
    for (value, marks) in located(file, text)? {
        let marks = Arc::new(marks);
        let line = marks.get("").map_or(0, |(line, _)| *line);
        let broken = |what| ManifestError::Object { file: file.to_owned(), line, what };
        if !value.is_object() {
            return Err(broken("not an object"));
        }
        let is_list = meta::kind(&value).ends_with("List") && value["items"].is_array();
        let items: Vec<(Value, String)> = if is_list {
            let items = meta::list_at(&value, "items").iter().enumerate();
            items.map(|(index, item)| (item.clone(), format!("items[{index}]"))).collect()
        } else {
            vec![(value, String::new())]
        };
        for (value, prefix) in items {
            let object = Object::new(value, name.clone(), marks.clone(), prefix);
            let line = object.place("").line;
            let broken = |what| ManifestError::Object { file: file.to_owned(), line, what };
            if object.kind().is_empty() || meta::api_version(&object.written).is_empty() {
                return Err(broken("an object without apiVersion or kind"));
            }
            if object.name().is_empty() {
                return Err(broken("an object without metadata.name"));
            }
            objects.push(object);
            if objects.len() > OBJECTS_MAX {
                return Err(ManifestError::Many(file.to_owned()));
            }
        }
    }
    Ok(objects)
}

fn located(file: &str, text: &str) -> Result<Vec<(Value, Marks)>, ManifestError> {
    // `n` and `on` are names like any other (YAML 1.2); only `true` and `false` are not.
    let options = serde_saphyr::options! {
        strict_booleans: true,
        budget: serde_saphyr::budget! { max_documents: OBJECTS_MAX, max_nodes: 20_000_000, max_events: 60_000_000, },
        with_snippet: false,
    };
    let all: Vec<Located> = serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        ManifestError::Yaml { file: file.to_owned(), line, reason: error.to_string() }
    })?;
    Ok(all.into_iter().map(Located::take_apart).filter(|(value, _)| !value.is_null()).collect())
}

fn text(file: &Path) -> Result<String, ManifestError> {
    let failed = |source| ManifestError::Read { path: file.to_owned(), source };
    if file.as_os_str() == "-" {
        let mut text = String::new();
        io::stdin().take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
        return Ok(text);
    }
    let bytes = fs::metadata(file).map_err(failed)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(ManifestError::Large { path: file.to_owned(), bytes });
    }
    fs::read_to_string(file).map_err(failed)
}

/// The files that a path stands for: those with manifests of a directory, in the order of their names, or the path itself; `-`
/// is standard input.
///
/// # Errors
/// When the directory cannot be read.
pub fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if path.as_os_str() == "-" || !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        if file.extension().is_some_and(|ext| ["yaml", "yml", "json"].iter().any(|known| ext == *known)) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}
