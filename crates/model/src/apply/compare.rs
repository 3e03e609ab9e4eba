//! What is different between two objects, field by field.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::element;
use super::fields::FieldSet;
use super::view::{Fields, Items, Layout, View};
use super::walk::{all_of, fields_of, is_empty};

/// The fields that differ.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Changes {
    /// In the new object only.
    pub(super) added: FieldSet,
    /// In both, with another value.
    pub(super) modified: FieldSet,
    /// In the old object only.
    pub(super) removed: FieldSet,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    /// What is below one step, whose text is only made where something differs.
    fn put(&mut self, element: impl Fn() -> String, child: Self) {
        for (set, child) in
            [(&mut self.added, child.added), (&mut self.modified, child.modified), (&mut self.removed, child.removed)]
        {
            if !child.is_empty() {
                set.put(element(), child);
            }
        }
    }
}

/// Compares; without an old object everything in the new one is added.
pub(super) fn compare(view: View<'_>, old: Option<&Value>, new: &Value) -> Changes {
    let empty = Value::Object(Map::new());
    node(view, Some(old.unwrap_or(&empty)), Some(new), old.is_none())
}

/// `fresh`: the object is new, and nobody wrote what stands on the way here.
fn node(view: View<'_>, old: Option<&Value>, new: Option<&Value>, fresh: bool) -> Changes {
    let there = |value: &&Value| !(value.is_null() && view.nulls_are_absent());
    let (old, new) = (old.filter(there), new.filter(there));
    let mut changes = Changes::default();
    // Most of most objects: what is equal as a whole need not be divided.
    let (old, new) = match (old, new) {
        (old, new) if old == new => return changes,
        (None, Some(new)) => {
            changes.added = all_of(view, new);
            return changes;
        }
        (Some(old), None) => {
            changes.removed = all_of(view, old);
            return changes;
        }
        (Some(old), Some(new)) => (old, new),
        (None, None) => return changes,
    };
    let layout = view.layout(Some(if new.is_null() { old } else { new }));
    match (parts(&layout, old), parts(&layout, new)) {
        // Two empty values are leaves, so that an empty object and a null can be told apart.
        (Some(_), Some(_)) if is_empty(old) && is_empty(new) => changes.modified.own_here(),
        (Some(Parts::Items(items, before)), Some(Parts::Items(_, after))) => {
            compare_items(items, &before, &after, &mut changes);
        }
        (Some(Parts::Fields(fields, before)), Some(Parts::Fields(_, after))) => {
            compare_fields(fields, before, after, fresh, &mut changes);
        }
        (before, after) => {
            changes.modified.own_here();
            // Where a value of another type stands now, all that was inside the old one goes.
            if after.is_none() {
                changes.removed = inside(view, old);
            }
            if before.is_none() {
                changes.added = inside(view, new);
            }
        }
    }
    changes
}

/// What a value divides into.
enum Parts<'a, 'v> {
    Fields(Fields<'a>, Option<&'v Map<String, Value>>),
    Items(Items<'a>, Vec<(String, &'v Value)>),
}

/// Divides a value that is of the type that divides; null divides into nothing.
fn parts<'a, 'v>(layout: &Layout<'a>, value: &'v Value) -> Option<Parts<'a, 'v>> {
    match (layout, value) {
        (Layout::Fields(fields), Value::Null) => Some(Parts::Fields(*fields, None)),
        (Layout::Fields(fields), Value::Object(map)) => Some(Parts::Fields(*fields, Some(map))),
        (Layout::Items(items), Value::Null) => Some(Parts::Items(*items, Vec::new())),
        (Layout::Items(items), Value::Array(list)) => {
            let elements = items.elements(list).ok()?;
            Some(Parts::Items(*items, elements.into_iter().zip(list).collect()))
        }
        _ => None,
    }
}

/// The fields inside a value, without the place of the value itself.
fn inside(view: View<'_>, value: &Value) -> FieldSet {
    let set = fields_of(view, value);
    if set.owns_here() { FieldSet::default() } else { set }
}

fn compare_fields(
    fields: Fields<'_>,
    old: Option<&Map<String, Value>>,
    new: Option<&Map<String, Value>>,
    fresh: bool,
    changes: &mut Changes,
) {
    let gone = old.into_iter().flatten().filter(|(name, _)| new.is_none_or(|new| !new.contains_key(*name)));
    for name in new.into_iter().flatten().chain(gone).map(|(name, _)| name) {
        let (before, after) = (old.and_then(|old| old.get(name)), new.and_then(|new| new.get(name)));
        if before == after {
            continue;
        }
        let (view, _) = fields.child(name).unwrap_or((View::deduced(), true));
        let initial = if fresh { fields.initial(name) } else { None };
        changes.put(|| element::field(name), node(view, before.or(initial), after, initial.is_some()));
    }
}

fn compare_items(items: Items<'_>, old: &[(String, &Value)], new: &[(String, &Value)], changes: &mut Changes) {
    let mut all: BTreeMap<&str, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    for (element, item) in old {
        all.entry(element).or_default().0.push(item);
    }
    for (element, item) in new {
        all.entry(element).or_default().1.push(item);
    }
    for (element, (before, after)) in all {
        let compared =
            |before: Option<&&Value>, after: Option<&&Value>| node(items.item, before.copied(), after.copied(), false);
        // Items that stand twice are one thing: they are equal, or not.
        let child = match (before.len(), after.len()) {
            (0 | 1, 0 | 1) => compared(before.first(), after.first()),
            (2.., 2..) if before == after => continue,
            (2.., 2..) => Changes { modified: FieldSet::here(), ..Changes::default() },
            (2.., _) => {
                let mut child = after.first().map(|item| compared(None, Some(item))).unwrap_or_default();
                child.removed.own_here();
                child
            }
            (_, _) => {
                let mut child = before.first().map(|item| compared(Some(item), None)).unwrap_or_default();
                child.added.own_here();
                child
            }
        };
        changes.put(|| element.to_owned(), child);
    }
}
