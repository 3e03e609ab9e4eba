//! Where in an object something is, and the faults found there.
//!
//! A path is a chain of steps on the stack, so that walking a large valid object allocates nothing; it becomes text only
//! when there is a fault to tell.

use std::fmt::{self, Write as _};

use mainstay_model::status::{FieldError, FieldErrorKind};
use serde_json::{Value, json};

/// One step into an object.
#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    /// The beginning; may hold a path already, for example `spec.validation.openAPIV3Schema`.
    Root(&'a str),
    /// A field of an object.
    Field(&'a str),
    /// A key of a map.
    Key(&'a str),
    /// An item of a list.
    Index(usize),
}

/// A place in an object, written as Kubernetes writes it: `spec.ports[0].name`, `spec.labels[app]`.
#[derive(Debug, Clone, Copy)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

impl<'a> Path<'a> {
    /// The beginning of paths, empty for the object itself.
    pub fn root(text: &'a str) -> Self {
        Self { parent: None, step: Step::Root(text) }
    }

    /// A field of the object here.
    #[must_use]
    pub fn field(&'a self, name: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Field(name) }
    }

    /// A key of the map here.
    #[must_use]
    pub fn key(&'a self, key: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Key(key) }
    }

    /// An item of the list here.
    #[must_use]
    pub fn index(&'a self, index: usize) -> Path<'a> {
        Path { parent: Some(self), step: Step::Index(index) }
    }

    fn write(&self, text: &mut String, bracket_keys: bool) {
        if let Some(parent) = self.parent {
            parent.write(text, bracket_keys);
        }
        let _ = match self.step {
            Step::Root(root) => text.write_str(root),
            Step::Key(key) if bracket_keys => write!(text, "[{key}]"),
            Step::Field(name) | Step::Key(name) if text.is_empty() => text.write_str(name),
            Step::Field(name) | Step::Key(name) => write!(text, ".{name}"),
            Step::Index(index) => write!(text, "[{index}]"),
        };
    }

    /// With dots before keys of maps, as the schema validator writes paths.
    pub fn dotted(&self) -> String {
        let mut text = String::new();
        self.write(&mut text, false);
        text
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write(&mut text, true);
        f.write_str(&text)
    }
}

/// Faults found so far, no more than [`Faults::MAX`].
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub(crate) list: Vec<FieldError>,
}

impl Faults {
    /// The largest number of faults kept for one object.
    pub(crate) const MAX: usize = 100;

    pub(crate) fn is_full(&self) -> bool {
        self.list.len() >= Self::MAX
    }

    pub(crate) fn push(&mut self, error: FieldError) {
        if !self.is_full() {
            self.list.push(error);
        }
    }

    pub(crate) fn required(&mut self, path: impl fmt::Display, detail: impl Into<String>) {
        self.push(FieldError::new(path.to_string(), FieldErrorKind::Required, detail));
    }

    pub(crate) fn forbidden(&mut self, path: impl fmt::Display, detail: impl Into<String>) {
        self.push(FieldError::new(path.to_string(), FieldErrorKind::Forbidden, detail));
    }

    pub(crate) fn invalid(&mut self, path: impl fmt::Display, value: &Value, detail: impl Into<String>) {
        self.push(FieldError::with_value(path.to_string(), FieldErrorKind::Invalid, shown(value), detail));
    }

    pub(crate) fn type_invalid(&mut self, path: impl fmt::Display, value: &Value, detail: impl Into<String>) {
        self.push(FieldError::with_value(path.to_string(), FieldErrorKind::TypeInvalid, shown(value), detail));
    }

    pub(crate) fn duplicate(&mut self, path: impl fmt::Display, value: &Value) {
        self.push(FieldError::with_value(path.to_string(), FieldErrorKind::Duplicate, shown(value), ""));
    }

    pub(crate) fn too_many(&mut self, path: impl fmt::Display, count: usize, max: u64) {
        let items = if max == 1 { "item" } else { "items" };
        let detail = format!("must have at most {max} {items}");
        self.push(FieldError::with_value(path.to_string(), FieldErrorKind::TooMany, json!(count), detail));
    }

    pub(crate) fn too_long(&mut self, path: impl fmt::Display, max: u64) {
        let bytes = if max == 1 { "byte" } else { "bytes" };
        let detail = format!("may not be more than {max} {bytes}");
        self.push(FieldError::new(path.to_string(), FieldErrorKind::TooLong, detail));
    }

    pub(crate) fn not_supported(&mut self, path: impl fmt::Display, value: &Value, allowed: &[&str]) {
        let allowed: Vec<_> = allowed.iter().map(|word| format!("{word:?}")).collect();
        let detail = format!("supported values: {}", allowed.join(", "));
        self.push(FieldError::with_value(path.to_string(), FieldErrorKind::NotSupported, shown(value), detail));
    }
}

/// Kubernetes prints a missing value as the text `null`.
fn shown(value: &Value) -> Value {
    if value.is_null() { json!("null") } else { value.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let root = Path::root("");
        let spec = root.field("spec");
        let labels = spec.field("labels");
        let key = labels.key("a/b");
        let item = key.index(3);
        assert_eq!(item.to_string(), "spec.labels[a/b][3]");
        assert_eq!(item.dotted(), "spec.labels.a/b[3]");
        assert_eq!(Path::root("spec.x").field("y").to_string(), "spec.x.y");
    }
}
