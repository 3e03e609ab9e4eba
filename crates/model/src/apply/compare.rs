//! What is different between two objects, field by field.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::element;
use super::fields::FieldSet;
use super::view::{Fields, Items, Layout, View};
use super::walk::fields_of;

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
    let layout = view.layout(new.filter(|value| !value.is_null()).or(old));
    let mut changes = Changes::default();
    match (divides(&layout, old), divides(&layout, new)) {
        // Two empty values are leaves, so that an empty object and a missing one can be told apart.
        (true, true) if !(is_empty(old) && is_empty(new)) => {
            match &layout {
                Layout::Items(items) => compare_items(*items, old, new, &mut changes),
                Layout::Fields(fields) => compare_fields(*fields, old, new, fresh, &mut changes),
                Layout::Whole => {}
            }
            match (old, new) {
                (None, _) => changes.added.own_here(),
                (_, None) => changes.removed.own_here(),
                _ => {}
            }
        }
        (old_divides, new_divides) => {
            match (old, new) {
                (None, Some(_)) => changes.added.own_here(),
                (Some(_), None) => changes.removed.own_here(),
                (old, new) if old != new => changes.modified.own_here(),
                _ => return changes,
            }
            // Where a value of another type stands now, all that was inside the old one goes.
            if let Some(old) = old.filter(|_| !new_divides) {
                changes.removed.add(inside(view, old));
            }
            if let Some(new) = new.filter(|_| !old_divides) {
                changes.added.add(inside(view, new));
            }
        }
    }
    changes
}

/// Whether the value is, or if missing could be, of the type that divides.
fn divides(layout: &Layout<'_>, value: Option<&Value>) -> bool {
    match (layout, value) {
        (Layout::Whole, _) => false,
        (_, None | Some(Value::Null)) | (Layout::Fields(_), Some(Value::Object(_))) => true,
        (Layout::Items(items), Some(Value::Array(list))) => items.elements(list).is_ok(),
        _ => false,
    }
}

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        value => value.is_none_or(Value::is_null),
    }
}

/// The fields inside a value, without the place of the value itself.
fn inside(view: View<'_>, value: &Value) -> FieldSet {
    let set = fields_of(view, value);
    if set.owns_here() { FieldSet::default() } else { set }
}

fn compare_fields(fields: Fields<'_>, old: Option<&Value>, new: Option<&Value>, fresh: bool, changes: &mut Changes) {
    let (old, new) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
    let gone = old.into_iter().flat_map(Map::keys).filter(|name| new.is_none_or(|new| !new.contains_key(*name)));
    for name in new.into_iter().flat_map(Map::keys).chain(gone) {
        let (view, _) = fields.child(name).unwrap_or((View::deduced(), true));
        let initial = if fresh { fields.initial(name) } else { None };
        let before = old.and_then(|old| old.get(name)).or(initial);
        let after = new.and_then(|new| new.get(name));
        let child = node(view, before, after, initial.is_some());
        changes.put(|| element::field(name), child);
    }
}

fn compare_items(items: Items<'_>, old: Option<&Value>, new: Option<&Value>, changes: &mut Changes) {
    let mut all: BTreeMap<String, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    for (list, is_new) in [(old, false), (new, true)] {
        let list = list.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for (element, item) in items.elements(list).unwrap_or_default().into_iter().zip(list) {
            let (before, after) = all.entry(element).or_default();
            if is_new { after.push(item) } else { before.push(item) }
        }
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
        changes.put(|| element.clone(), child);
    }
}
