//! From an object to the set of its fields, and what in an applied configuration does not fit its schema.

use std::collections::HashSet;
use std::fmt;

use serde_json::Value;

use super::element;
use super::fields::FieldSet;
use super::view::{Layout, View};

/// The most faults reported of one configuration.
const ERRORS_MAX: usize = 50;

/// Which places are in the set besides the leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inner {
    /// Keys of maps, items of lists, and what is empty.
    Named,
    /// All objects and lists.
    All,
}

/// All fields that somebody who applies `value` owns.
///
/// Leaves are in the set, keys of maps and items of lists too; objects and lists on the way are not, unless they are empty.
pub(super) fn fields_of(view: View<'_>, value: &Value) -> FieldSet {
    collect(view, value, Inner::Named)
}

/// All fields of a value that was not there before, with all objects and lists on the way and the value itself.
pub(super) fn all_of(view: View<'_>, value: &Value) -> FieldSet {
    let mut set = collect(view, value, Inner::All);
    set.own_here();
    set
}

fn collect(view: View<'_>, value: &Value, inner: Inner) -> FieldSet {
    let mut set = FieldSet::default();
    match (view.layout(Some(value)), value) {
        (Layout::Whole, _) => set.own_here(),
        (_, Value::Null) => {}
        (Layout::Fields(fields), Value::Object(map)) => {
            for (name, value) in map {
                let (view, declared) = fields.child(name).unwrap_or((View::deduced(), true));
                if inner == Inner::All && value.is_null() && view.nulls_are_absent() {
                    continue;
                }
                let mut child = collect(view, value, inner);
                if inner == Inner::All || !declared || is_empty(value) {
                    child.own_here();
                }
                set.put(element::field(name), child);
            }
        }
        (Layout::Items(items), Value::Array(list)) => {
            let Ok(elements) = items.elements(list) else { return FieldSet::here() };
            let mut seen = HashSet::new();
            for (element, item) in elements.into_iter().zip(list) {
                // Of items that stand twice only their being there is owned: what is inside cannot be told apart.
                let is_first = seen.insert(element.clone());
                let mut child = if is_first { collect(items.item, item, inner) } else { FieldSet::default() };
                child.own_here();
                set.put(element, child);
            }
        }
        // A value of another type than declared is one leaf.
        _ => set.own_here(),
    }
    set
}

/// Whether nothing is in a value that could divide.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        other => other.is_null(),
    }
}

/// What in an applied configuration does not fit its schema: path and sentence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TypeErrors(pub Vec<(String, String)>);

impl fmt::Display for TypeErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [(path, text)] => write!(f, "{path}: {text}"),
            errors => {
                f.write_str("errors:")?;
                errors.iter().try_for_each(|(path, text)| write!(f, "\n  {path}: {text}"))
            }
        }
    }
}

/// Looks for fields that are not declared, values of the wrong type, and lists whose items have no or the same keys.
pub(super) fn check(view: View<'_>, value: &Value) -> Result<(), TypeErrors> {
    let mut errors = TypeErrors::default();
    check_at(view, value, &mut String::new(), &mut errors);
    if errors.0.is_empty() { Ok(()) } else { Err(errors) }
}

fn check_at(view: View<'_>, value: &Value, path: &mut String, errors: &mut TypeErrors) {
    if errors.0.len() >= ERRORS_MAX || value.is_null() {
        return;
    }
    if let Some(wanted) = view.mismatch(value) {
        let got = match value {
            Value::Object(_) => "map".to_owned(),
            Value::Array(_) => "list".to_owned(),
            scalar => scalar.to_string(),
        };
        errors.0.push((path.clone(), format!("expected {wanted}, got {got}")));
        return;
    }
    let length = path.len();
    match (view.layout(Some(value)), value) {
        (Layout::Fields(fields), Value::Object(map)) => {
            for (name, value) in map {
                path.push('.');
                path.push_str(name);
                match fields.child(name) {
                    Some((view, _)) => check_at(view, value, path, errors),
                    None => errors.0.push((path.clone(), "field not declared in schema".to_owned())),
                }
                path.truncate(length);
            }
        }
        (Layout::Items(items), Value::Array(list)) => {
            let mut seen = HashSet::new();
            for (i, item) in list.iter().enumerate() {
                let element = match items.element(item) {
                    Ok(element) => element,
                    Err(why) => {
                        errors.0.push((path.clone(), format!("element {i}: {why}")));
                        continue;
                    }
                };
                let shown = element::shown(&element);
                if !seen.insert(element) {
                    errors.0.push((path.clone(), format!("duplicate entries for key {shown}")));
                    continue;
                }
                path.push_str(&shown);
                check_at(items.item, item, path, errors);
                path.truncate(length);
            }
        }
        _ => {}
    }
}
