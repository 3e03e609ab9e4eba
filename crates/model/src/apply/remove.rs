//! Takes fields out of an object, and what the removal of a manager's fields takes along.

use serde_json::{Map, Value};

use super::fields::FieldSet;
use super::view::{Layout, View};
use super::walk::fields_of;

/// What an applier once applied and no longer does, out of `merged`.
///
/// A field goes if and only if it is in `last`, what the manager applied the last time, and in no set of `kept`: the union
/// of what all managers own now. An object whose owned fields all go, goes as a whole, with the defaults the server put
/// into it.
pub(super) fn prune(view: View<'_>, merged: Value, last: &FieldSet, kept: &FieldSet) -> Value {
    let last = with_parents(view, last);
    if last.difference(&with_parents(view, kept)).is_empty() {
        return merged;
    }
    let all = with_parents(view, &fields_of(view, &merged));
    // First everything of the last time, with what it took along; then back what somebody owns; then back what the manager
    // never applied, unless it stands in an object that the manager alone brought.
    let without =
        |set: &FieldSet| take_out(view, &merged, set, Some(kept)).unwrap_or_else(|| Value::Object(Map::new()));
    let mut stays = with_parents(view, &fields_of(view, &without(&last)));
    stays.add(with_parents(view, kept));
    let owned_back = without(&all.difference(&stays));
    let stays = with_parents(view, &fields_of(view, &owned_back));
    without(&all.difference(&stays).intersection(&last))
}

/// The value without the places in `set` and all below them. An object or a list that this empties goes too, unless
/// somebody owns it as such.
fn take_out(view: View<'_>, value: &Value, set: &FieldSet, kept: Option<&FieldSet>) -> Option<Value> {
    let rest = match (view.layout(Some(value)), value) {
        (Layout::Fields(fields), Value::Object(map)) if !map.is_empty() => {
            let mut rest = Map::new();
            for (name, value) in map {
                let inner = match set.field(name) {
                    None => Some(value.clone()),
                    Some(child) if child.owns_here() => None,
                    Some(child) => {
                        let (view, _) = fields.child(name).unwrap_or((View::deduced(), true));
                        take_out(view, value, child, kept.and_then(|kept| kept.field(name)))
                    }
                };
                if let Some(inner) = inner {
                    rest.insert(name.clone(), inner);
                }
            }
            Value::Object(rest)
        }
        (Layout::Items(items), Value::Array(list)) if !list.is_empty() => {
            let Ok(elements) = items.elements(list) else { return Some(value.clone()) };
            let inner = |(element, item): (&String, &Value)| match set.child(element) {
                None => Some(item.clone()),
                Some(child) if child.owns_here() => None,
                Some(child) => take_out(items.item, item, child, kept.and_then(|kept| kept.child(element))),
            };
            Value::Array(elements.iter().zip(list).filter_map(inner).collect())
        }
        _ => return Some(value.clone()),
    };
    let is_empty = rest.as_object().is_some_and(Map::is_empty) || rest.as_array().is_some_and(Vec::is_empty);
    (!is_empty || kept.is_some_and(FieldSet::owns_here)).then_some(rest)
}

/// The set with all named fields on the way to what is in it. Keys of maps and items of lists are only in it if they were.
fn with_parents(view: View<'_>, set: &FieldSet) -> FieldSet {
    let mut whole = FieldSet::default();
    if set.owns_here() {
        whole.own_here();
    }
    let layout = view.layout(None);
    for (step, child) in set.children() {
        let (view, declared) = match (&layout, step.strip_prefix("f:")) {
            (Layout::Fields(fields), Some(name)) => fields.child(name).unwrap_or((View::deduced(), false)),
            (Layout::Items(items), None) => (items.item, false),
            _ => (View::deduced(), false),
        };
        let mut child = with_parents(view, child);
        if declared {
            child.own_here();
        }
        whole.put(step.to_owned(), child);
    }
    whole
}
