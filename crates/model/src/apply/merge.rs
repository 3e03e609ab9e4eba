//! An applied configuration laid over the live object.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::view::{Fields, Items, Layout, View};

/// The live object with all values of the configuration.
///
/// A `null` in the configuration of a built-in kind takes the field out; elsewhere it is a value.
pub(super) fn merge(view: View<'_>, live: Option<&Value>, config: &Value) -> Value {
    match (view.layout(Some(config)), live, config) {
        (Layout::Fields(fields), live, Value::Object(config)) => {
            Value::Object(merge_fields(fields, live.and_then(Value::as_object), config))
        }
        (Layout::Items(items), Some(Value::Array(live)), Value::Array(config)) => {
            merge_items(items, live, config).map_or_else(|| Value::Array(config.clone()), Value::Array)
        }
        (Layout::Items(items), _, Value::Array(config)) => {
            Value::Array(config.iter().map(|item| merge(items.item, None, item)).collect())
        }
        _ => config.clone(),
    }
}

fn merge_fields(
    fields: Fields<'_>,
    live: Option<&Map<String, Value>>,
    config: &Map<String, Value>,
) -> Map<String, Value> {
    let mut merged = live.cloned().unwrap_or_default();
    for (name, value) in config {
        let (view, _) = fields.child(name).unwrap_or((View::deduced(), true));
        if value.is_null() && view.nulls_are_absent() {
            merged.remove(name);
            continue;
        }
        let old = merged.remove(name);
        merged.insert(name.clone(), merge(view, old.as_ref(), value));
    }
    merged
}

/// Merges item by item. The items of the configuration keep their order among themselves; items that only the live list
/// has keep their place between those that both have. Nothing when an item has no place in this list.
fn merge_items(items: Items<'_>, live: &[Value], config: &[Value]) -> Option<Vec<Value>> {
    let live_elements = items.elements(live).ok()?;
    let config_elements = items.elements(config).ok()?;
    let configured: HashSet<&String> = config_elements.iter().collect();
    // Of items that stand twice in the live list the first is merged and the others go.
    let mut by_element: HashMap<&String, &Value> = HashMap::new();
    for (element, item) in live_elements.iter().zip(live) {
        by_element.entry(element).or_insert(item);
    }
    let mut shared = config_elements.iter().filter(|element| by_element.contains_key(element));
    let mut next_shared = shared.next();
    let mut rest = live_elements.iter().zip(live).peekable();
    let mut merged = Vec::with_capacity(live.len().max(config.len()));
    for (element, item) in config_elements.iter().zip(config) {
        // Items of the configuration that stand earlier in the live list come in their turn, and are passed over here.
        while let Some((passed, own)) = rest.next_if(|(live, _)| Some(*live) != next_shared) {
            if !configured.contains(passed) {
                merged.push(own.clone());
            }
        }
        merged.push(merge(items.item, by_element.get(element).copied(), item));
        if next_shared == Some(element) {
            next_shared = shared.next();
        }
    }
    merged.extend(rest.filter(|(element, _)| !configured.contains(element)).map(|(_, own)| own.clone()));
    Some(merged)
}
