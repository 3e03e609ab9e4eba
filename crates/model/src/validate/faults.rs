//! The list of faults being gathered, with one method per rule that many fields share.

use std::collections::HashSet;

use serde_json::Value;

use crate::meta;
use crate::status::{FieldError, FieldErrorKind};

/// Faults found so far.
#[derive(Default)]
pub(super) struct Faults {
    pub(super) list: Vec<FieldError>,
}

/// The member of an object, null reading as absent.
pub(super) fn get<'a>(object: &'a Value, field: &str) -> Option<&'a Value> {
    object.get(field).filter(|value| !value.is_null())
}

/// The text in a field, empty reading as absent, as in Go.
pub(super) fn text<'a>(object: &'a Value, field: &str) -> Option<&'a str> {
    get(object, field)?.as_str().filter(|text| !text.is_empty())
}

/// The items of a list field.
pub(super) fn items<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    get(object, field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The path of a field; an empty path is the object itself.
fn below(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

impl Faults {
    fn push(
        &mut self,
        path: impl Into<String>,
        kind: FieldErrorKind,
        value: Option<&Value>,
        detail: impl Into<String>,
    ) {
        let path = path.into();
        // The schema may have asked for the same field.
        let twice = |e: &FieldError| e.kind == FieldErrorKind::Required && kind == e.kind && e.field == path;
        if !self.list.iter().any(twice) {
            self.list.push(FieldError { field: path, kind, detail: detail.into(), value: value.cloned() });
        }
    }

    pub(super) fn required(&mut self, path: impl Into<String>, detail: impl Into<String>) {
        self.push(path, FieldErrorKind::Required, None, detail);
    }

    pub(super) fn invalid(&mut self, path: impl Into<String>, value: &Value, detail: impl Into<String>) {
        self.push(path, FieldErrorKind::Invalid, Some(value), detail);
    }

    pub(super) fn forbidden(&mut self, path: impl Into<String>, detail: impl Into<String>) {
        self.push(path, FieldErrorKind::Forbidden, None, detail);
    }

    pub(super) fn duplicate(&mut self, path: impl Into<String>, value: &Value) {
        self.push(path, FieldErrorKind::Duplicate, Some(value), "");
    }

    pub(super) fn not_found(&mut self, path: impl Into<String>, value: &Value) {
        self.push(path, FieldErrorKind::NotFound, Some(value), "");
    }

    pub(super) fn too_long(&mut self, path: impl Into<String>, max: usize) {
        self.push(path, FieldErrorKind::TooLong, None, format!("may not be more than {max} bytes"));
    }

    pub(super) fn too_many(&mut self, path: impl Into<String>, count: usize, max: usize) {
        let count = Value::from(count);
        self.push(path, FieldErrorKind::TooMany, Some(&count), format!("must have at most {max} items"));
    }

    pub(super) fn not_supported(&mut self, path: impl Into<String>, value: &Value, allowed: &[&str]) {
        let allowed: Vec<_> = allowed.iter().map(|word| format!("\"{word}\"")).collect();
        let detail = format!("supported values: {}", allowed.join(", "));
        self.push(path, FieldErrorKind::NotSupported, Some(value), detail);
    }

    /// Each broken rule of a name check as a fault of its own.
    pub(super) fn named(&mut self, path: &str, value: &str, rules: Vec<String>) {
        for rule in rules {
            self.invalid(path, &Value::from(value), rule);
        }
    }

    /// A text field, when it is given, is one of `allowed`.
    pub(super) fn one_of(&mut self, object: &Value, path: &str, field: &str, allowed: &[&str]) {
        if let Some(value) = text(object, field).filter(|value| !allowed.contains(value)) {
            self.not_supported(below(path, field), &Value::from(value), allowed);
        }
    }

    /// An integer field, when it is given, is not below zero.
    pub(super) fn not_negative(&mut self, object: &Value, path: &str, field: &str) {
        if let Some(value) = get(object, field).filter(|value| value.as_i64().is_some_and(|n| n < 0)) {
            self.invalid(below(path, field), value, "must be greater than or equal to 0");
        }
    }

    /// An integer field, when it is given, is within bounds.
    pub(super) fn between(&mut self, object: &Value, path: &str, field: &str, (low, high): (i64, i64)) {
        let outside = |value: &&Value| value.as_i64().is_some_and(|n| n < low || n > high);
        if let Some(value) = get(object, field).filter(outside) {
            self.invalid(format!("{path}.{field}"), value, format!("must be between {low} and {high}, inclusive"));
        }
    }

    /// A port number or the name of a port.
    pub(super) fn port(&mut self, path: &str, value: &Value) {
        match value {
            Value::String(name) => self.named(path, name, meta::names::check_port_name(name)),
            _ if value.as_i64().is_some_and(|n| (1..=65_535).contains(&n)) => {}
            _ => self.invalid(path, value, "must be between 1 and 65535, inclusive"),
        }
    }

    /// A whole number or a percentage, neither below zero.
    pub(super) fn int_or_percent(&mut self, object: &Value, path: &str, field: &str) {
        let Some(value) = get(object, field) else { return };
        let path = format!("{path}.{field}");
        match value {
            Value::String(percent) => {
                let digits = percent.strip_suffix('%').unwrap_or_default();
                if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                    let rule = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or \
                                '93%', regex used for validation is '[0-9]+%')";
                    self.invalid(path, value, rule);
                }
            }
            _ if value.as_i64().is_some_and(|n| n < 0) => {
                self.invalid(path, value, "must be greater than or equal to 0");
            }
            _ => {}
        }
    }

    /// A percentage that may not be above the whole.
    pub(super) fn at_most_all(&mut self, object: &Value, path: &str, field: &str) {
        let percent = text(object, field).and_then(|text| text.strip_suffix('%')?.parse::<i64>().ok());
        if let (Some(value), true) = (get(object, field), percent.is_some_and(|percent| percent > 100)) {
            self.invalid(format!("{path}.{field}"), value, "must not be greater than 100%");
        }
    }

    /// No two items of a list have the same text in `field`.
    pub(super) fn unique(&mut self, list: &[Value], path: &str, field: &str) {
        let mut seen = HashSet::new();
        for (i, item) in list.iter().enumerate() {
            if let Some(value) = text(item, field).filter(|value| !seen.insert(*value)) {
                self.duplicate(format!("{path}[{i}].{field}"), &Value::from(value));
            }
        }
    }

    /// The value at a path did not change; absent and null are the same.
    pub(super) fn unchanged(&mut self, old: &Value, new: &Value, path: &str, detail: &str) {
        let (before, after) = (meta::at(old, path), meta::at(new, path));
        if before != after {
            self.invalid(path, after.unwrap_or(&Value::Null), detail);
        }
    }
}
