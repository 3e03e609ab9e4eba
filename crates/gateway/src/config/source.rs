//! Where objects come from: files with lines, or the API.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ConfigError;
use super::locate::line_of;

/// Largest configuration file, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// One object, with what is needed to say where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) value: Arc<Value>,
    /// The YAML it was read from; `None` for an item of a List.
    text: Option<Arc<str>>,
    file: Option<Arc<Path>>,
    first_line: usize,
}

/// A place in a file, or an object of the API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place(String);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Source {
    /// An object of the API.
    pub(crate) fn of_api(value: Value) -> Self {
        Self { value: Arc::new(value), text: None, file: None, first_line: 0 }
    }

    fn str_at(&self, pointer: &str) -> &str {
        self.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn kind(&self) -> &str {
        self.str_at("/kind")
    }

    /// The API group; empty for core kinds.
    pub(crate) fn group(&self) -> &str {
        self.str_at("/apiVersion").rsplit_once('/').map_or("", |(group, _)| group)
    }

    /// The object as a typed one.
    ///
    /// # Errors
    /// What does not fit, with its line.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<T, (Place, String)> {
        match &self.text {
            Some(text) => {
                let options = serde_saphyr::options! { strict_booleans: true };
                serde_saphyr::from_str_with_options(text, options).map_err(|error| {
                    let line = error.location().map_or(1, |at| at.line() as usize);
                    (self.place(self.first_line + line - 1), plain(&error.to_string()))
                })
            }
            None => T::deserialize(&*self.value).map_err(|error| (self.place(self.first_line), error.to_string())),
        }
    }

    /// The place of a field, for example `["spec", "rules", "0"]`; of the nearest one above it that can be found.
    pub(crate) fn place_of(&self, path: &[&str]) -> Place {
        self.place(self.text.as_ref().map_or(self.first_line, |text| self.first_line + line_of(text, path) - 1))
    }

    fn place(&self, line: usize) -> Place {
        match &self.file {
            Some(file) => Place(format!("{}:{line}", file.display())),
            None => Place(format!(
                "{} {}/{}",
                self.kind(),
                self.value.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or("default"),
                self.str_at("/metadata/name")
            )),
        }
    }
}

/// The first line of a parser's message, without its picture of the place.
fn plain(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

/// Reads all objects of the paths: files, or directories of `*.yaml`, `*.yml` and `*.json` (not below).
///
/// # Errors
/// The first file that cannot be read or is not YAML. Objects that do not fit their kind are found later.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<Source>, ConfigError> {
    let mut sources = Vec::new();
    for path in paths {
        for file in files(path)? {
            let failed = |source| ConfigError::Read { path: file.clone(), source };
            let bytes = fs::metadata(&file).map_err(failed)?.len();
            if bytes > FILE_BYTES_MAX {
                return Err(ConfigError::TooLarge { path: file, bytes, max: FILE_BYTES_MAX });
            }
            let text = fs::read_to_string(&file).map_err(failed)?;
            parse(&file, &text, &mut sources)?;
        }
    }
    Ok(sources)
}

/// The files that a path stands for, sorted by name.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let hidden = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && file.extension().is_some_and(|ext| ["yaml", "yml", "json"].iter().any(|known| ext == *known)) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// Splits a file into documents and takes the objects out of them.
pub(crate) fn parse(path: &Path, text: &str, sources: &mut Vec<Source>) -> Result<(), ConfigError> {
    let file: Arc<Path> = path.into();
    for (first_line, document) in documents(text) {
        let options = serde_saphyr::options! { strict_booleans: true };
        let value: Value = serde_saphyr::from_str_with_options(document, options).map_err(|error| {
            let line = first_line - 1 + error.location().map_or(1, |at| at.line() as usize);
            ConfigError::Yaml { path: path.to_owned(), line, reason: plain(&error.to_string()) }
        })?;
        let source = |value, text| Source { value: Arc::new(value), text, file: Some(file.clone()), first_line };
        match value {
            Value::Null => {}
            Value::Object(_) if value["kind"] == "List" => {
                let items = value["items"].as_array().into_iter().flatten();
                sources.extend(items.map(|item| source(item.clone(), None)));
            }
            Value::Object(_) if value["kind"].is_string() && value["apiVersion"].is_string() => {
                sources.push(source(value, Some(document.into())));
            }
            _ => {
                let reason = "every document must be an object with apiVersion and kind".to_owned();
                return Err(ConfigError::Yaml { path: path.to_owned(), line: first_line, reason });
            }
        }
    }
    Ok(())
}

/// The documents of a YAML stream, each with the number of its first line.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 1, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker = line.trim_end();
        if marker == "---" || marker.starts_with("--- ") || marker == "..." {
            documents.push((start_line, &text[start..at]));
            // What follows the marker on its own line is only ever a comment in manifests.
            (start, start_line) = (at + line.len(), number + 2);
        }
        at += line.len();
    }
    documents.push((start_line, &text[start..]));
    documents.retain(|(_, document)| {
        document.lines().any(|line| !line.trim_start().starts_with('#') && !line.trim().is_empty())
    });
    documents
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::api::Object;
    use crate::api::gateway::GatewaySpec;

    #[test]
    fn an_unknown_field_is_named_with_file_and_line() {
        let text = "# a comment\n---\napiVersion: v1\nkind: Gateway\nmetadata: {name: a}\nspec:\n  gatewayClassName: m\n  listener: []\n";
        let mut sources = Vec::new();
        parse(Path::new("a.yaml"), text, &mut sources).unwrap();
        assert_eq!(sources.len(), 1);
        let (place, reason) = sources[0].decode::<Object<GatewaySpec>>().unwrap_err();
        assert_eq!(place.to_string(), "a.yaml:8");
        assert!(reason.contains("listener"), "{reason}");
        assert_eq!(sources[0].place_of(&["spec", "gatewayClassName"]).to_string(), "a.yaml:7");
    }

    #[test]
    fn broken_yaml_is_named_with_file_and_line() {
        let error = parse(Path::new("a.yaml"), "kind: A\napiVersion: v1\n---\na: [1\n", &mut Vec::new()).unwrap_err();
        assert!(error.to_string().starts_with("a.yaml:4") || error.to_string().starts_with("a.yaml:5"), "{error}");
    }
}
