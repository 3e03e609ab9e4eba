//! Owners' sets after the schema of a custom resource changed how its objects divide.

use serde_json::Value;

use super::fields::FieldSet;
use super::view::{Layout, View};
use super::walk::fields_of;

/// The set as it would be had the schema always been as it is now: who owned a part of what is now one value owns it
/// whole, and who owned a value that now divides owns all its parts.
///
/// Source: <https://kubernetes.io/docs/reference/using-api/server-side-apply/#compatibility-across-toplogy-changes>.
pub(super) fn reconcile(view: View<'_>, set: &FieldSet, live: Option<&Value>) -> FieldSet {
    if !view.may_change() {
        return set.clone();
    }
    let layout = view.layout(live);
    let divided = set.has_children();
    if matches!(layout, Layout::Whole) {
        return if divided && view.is_declared() { FieldSet::here() } else { set.clone() };
    }
    let mut whole = FieldSet::default();
    if set.owns_here() {
        whole.own_here();
        if let Some(live) = live.filter(|_| !divided) {
            whole.add(fields_of(view, live));
        }
    }
    for (step, child) in set.children() {
        let inner = match (&layout, step.strip_prefix("f:")) {
            (Layout::Fields(fields), Some(name)) => {
                fields.child(name).map(|(view, _)| reconcile(view, child, live.and_then(|live| live.get(name))))
            }
            // An item is owned with its keys: that its fields are not is no sign of another schema.
            (Layout::Items(_), _) if !child.has_children() => None,
            (Layout::Items(items), None) => {
                let list = live.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                let item = list.iter().find(|item| items.element(item).is_ok_and(|element| element == step));
                Some(reconcile(items.item, child, item))
            }
            _ => None,
        };
        whole.put(step.to_owned(), inner.unwrap_or_else(|| child.clone()));
    }
    whole
}
