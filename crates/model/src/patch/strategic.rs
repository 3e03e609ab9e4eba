//! Strategic merge patch: a merge patch that knows which lists are sets of keyed items.
//!
//! Flow: walk the patch beside the original with the type of the place in hand. Objects merge; a list with a merge key
//! merges item by item; a list of primitives with the merge strategy is a set; any other list is replaced. Directives:
//! `$patch: replace|delete|merge`, `$retainKeys`, `$deleteFromPrimitiveList/FIELD`, `$setElementOrder/FIELD`. A `null`
//! removes its field. Directives never reach the result.
//!
//! Which lists merge, and by what, is data: `schema.txt`.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::PatchError;
use crate::schema::{self, Field, Merge, Shape};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Applies a strategic merge patch to an object of a built-in kind.
pub fn strategic(kind: &str, original: &Value, patch: &Value) -> Result<Value, PatchError> {
    let Value::Object(patch) = patch else { return Err(PatchError::NotAnObject) };
    if schema::fields(kind).is_none() {
        return Err(PatchError::NoStrategic(kind.to_owned()));
    }
    let mut result = original.as_object().cloned().unwrap_or_default();
    merge_object(kind, &mut result, patch, "")?;
    Ok(Value::Object(result))
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The type of what a field holds, empty where the schema says nothing.
fn inner_type(field: Option<&Field>) -> &'static str {
    match field.map(|field| &field.shape) {
        Some(Shape::Object(name)) => name,
        Some(Shape::List(inner) | Shape::Map(inner)) => match **inner {
            Shape::Object(name) => name,
            _ => "",
        },
        _ => "",
    }
}

fn merge_object(
    type_name: &str,
    original: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    path: &str,
) -> Result<(), PatchError> {
    match patch.get(PATCH).map(|directive| directive.as_str().unwrap_or_default()) {
        None | Some("merge") => {}
        Some("replace") => original.clear(),
        Some("delete") => {
            original.clear();
            return Ok(());
        }
        Some(_) => return Err(bad_directive(&patch[PATCH], path)),
    }
    retain_keys(original, patch, path)?;
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM) {
            delete_primitives(original, field, directive_list(key, value)?);
        }
    }
    for (key, value) in patch.iter().filter(|(key, _)| !is_directive(key)) {
        let at = join(path, key);
        if value.is_null() {
            original.remove(key);
            continue;
        }
        let old = original.remove(key).unwrap_or(Value::Null);
        let order = patch.get(&format!("{ORDER}{key}"));
        let new = merge_value(schema::field(type_name, key), old, value, order, &at)?;
        original.insert(key.clone(), new);
    }
    for (key, order) in patch {
        if let Some(field) = key.strip_prefix(ORDER).filter(|field| !patch.contains_key(*field)) {
            let order = directive_list(key, order)?;
            if let Some(Value::Array(items)) = original.get_mut(field) {
                reorder(schema::field(type_name, field), items, order);
            }
        }
    }
    Ok(())
}

fn is_directive(key: &str) -> bool {
    key == PATCH || key == RETAIN_KEYS || key.starts_with(DELETE_FROM) || key.starts_with(ORDER)
}

fn bad_directive(directive: &Value, path: &str) -> PatchError {
    PatchError::Directive { directive: directive.to_string(), path: path.to_owned() }
}

fn directive_list<'a>(key: &str, value: &'a Value) -> Result<&'a [Value], PatchError> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| PatchError::DirectiveNotAList(key.to_owned()))
}

fn retain_keys(original: &mut Map<String, Value>, patch: &Map<String, Value>, path: &str) -> Result<(), PatchError> {
    let Some(retained) = patch.get(RETAIN_KEYS) else { return Ok(()) };
    let retained = directive_list(RETAIN_KEYS, retained)?;
    let listed = |key: &str| retained.iter().any(|retained| retained == key);
    if let Some((key, _)) = patch.iter().find(|(key, value)| !is_directive(key) && !value.is_null() && !listed(key)) {
        return Err(PatchError::NotRetained { path: join(path, key) });
    }
    original.retain(|key, _| listed(key));
    Ok(())
}

fn delete_primitives(original: &mut Map<String, Value>, field: &str, deleted: &[Value]) {
    if let Some(items) = original.get_mut(field).and_then(Value::as_array_mut) {
        let deleted: HashSet<String> = deleted.iter().map(Value::to_string).collect();
        items.retain(|item| !deleted.contains(&item.to_string()));
    }
}

/// Merges one field. `old` is null where the original has none, so that new values lose their directives and nulls.
fn merge_value(
    field: Option<&Field>,
    old: Value,
    patch: &Value,
    order: Option<&Value>,
    path: &str,
) -> Result<Value, PatchError> {
    match patch {
        Value::Object(patch) => {
            let mut map = match old {
                Value::Object(map) => map,
                _ => Map::new(),
            };
            // A map from strings to objects has the type of its values one step further down.
            if let Some(Field { shape: Shape::Map(inner), .. }) = field {
                merge_map(inner, &mut map, patch, path)?;
            } else {
                merge_object(inner_type(field), &mut map, patch, path)?;
            }
            Ok(Value::Object(map))
        }
        Value::Array(items) => {
            let old = match old {
                Value::Array(items) => items,
                _ => Vec::new(),
            };
            let order = order.map(|order| directive_list(ORDER, order)).transpose()?;
            match field.map_or(Merge::Default, |field| field.merge) {
                Merge::Default => Ok(patch.clone()),
                Merge::Set => Ok(Value::Array(merge_set(&old, items, order))),
                Merge::ByKey(key) => merge_keyed(inner_type(field), key, &old, items, order, path).map(Value::Array),
            }
        }
        scalar => Ok(scalar.clone()),
    }
}

fn merge_map(
    shape: &Shape,
    original: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    path: &str,
) -> Result<(), PatchError> {
    // Without a type for the values there is nothing to know: plain merge, directives included.
    let Shape::Object(type_name) = shape else { return merge_object("", original, patch, path) };
    for (key, value) in patch {
        match value {
            Value::Null => {
                original.remove(key);
            }
            Value::Object(value) => {
                let mut inner = original.get(key).and_then(Value::as_object).cloned().unwrap_or_default();
                merge_object(type_name, &mut inner, value, &join(path, key))?;
                original.insert(key.clone(), Value::Object(inner));
            }
            _ => {
                original.insert(key.clone(), value.clone());
            }
        }
    }
    Ok(())
}

fn merge_set(old: &[Value], patch: &[Value], order: Option<&[Value]>) -> Vec<Value> {
    let mut seen = HashSet::new();
    let merged = old.iter().chain(patch).filter(|item| seen.insert(item.to_string())).cloned().collect();
    arrange(merged, order.unwrap_or(patch), old, Value::to_string)
}

fn merge_keyed(
    type_name: &str,
    key: &'static str,
    old: &[Value],
    patch: &[Value],
    order: Option<&[Value]>,
    path: &str,
) -> Result<Vec<Value>, PatchError> {
    let id_of = |item: &Value| item[key].to_string();
    let replace = patch.iter().any(|item| item[PATCH] == "replace");
    // A deleted item leaves a hole, so that the places in `index` stay good.
    let mut merged: Vec<Option<Value>> = if replace { Vec::new() } else { old.iter().cloned().map(Some).collect() };
    let mut index: HashMap<String, usize> = HashMap::new();
    for (place, item) in merged.iter().flatten().enumerate() {
        index.entry(id_of(item)).or_insert(place);
    }
    let mut named = Vec::new();
    for item in patch {
        // The directive of the whole list stands in an item of its own.
        if item[PATCH] == "replace" {
            continue;
        }
        let Some(item_map) = item.as_object().filter(|map| map.get(key).is_some_and(|id| !id.is_null())) else {
            return Err(PatchError::NoMergeKey { path: path.to_owned(), key });
        };
        let id = id_of(item);
        if item[PATCH] == "delete" {
            if let Some(place) = index.remove(&id) {
                merged[place] = None;
            }
            continue;
        }
        named.push(item.clone());
        let place = *index.entry(id.clone()).or_insert_with(|| {
            merged.push(Some(Value::Object(Map::new())));
            merged.len() - 1
        });
        if let Some(Some(Value::Object(existing))) = merged.get_mut(place) {
            merge_object(type_name, existing, item_map, &format!("{path}[{id}]"))?;
        }
    }
    let merged = merged.into_iter().flatten().collect();
    Ok(arrange(merged, order.unwrap_or(&named), old, id_of))
}

fn reorder(field: Option<&Field>, items: &mut Vec<Value>, order: &[Value]) {
    let taken = std::mem::take(items);
    let live = taken.clone();
    *items = match field.map_or(Merge::Default, |field| field.merge) {
        Merge::Default => taken,
        Merge::Set => arrange(taken, order, &live, Value::to_string),
        Merge::ByKey(key) => arrange(taken, order, &live, |item| item[key].to_string()),
    };
}

/// Puts items in the order the patch asks for; the others keep their live order, each before the first item of the
/// patch that stood behind it.
fn arrange(items: Vec<Value>, order: &[Value], live: &[Value], id: impl Fn(&Value) -> String) -> Vec<Value> {
    let ranks = |list: &[Value]| -> HashMap<String, usize> {
        // In reverse, so that the first of equal items counts.
        list.iter().enumerate().rev().map(|(rank, item)| (id(item), rank)).collect()
    };
    let (order, live) = (ranks(order), ranks(live));
    let (mut ordered, others): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| order.contains_key(&id(item)));
    ordered.sort_by_cached_key(|item| order.get(&id(item)).copied());
    let mut result = Vec::with_capacity(ordered.len() + others.len());
    let mut others = others.into_iter().peekable();
    for item in ordered {
        let place = live.get(&id(&item));
        let stood_before = |other: &Value| live.get(&id(other)).zip(place).is_some_and(|(other, place)| other < place);
        while let Some(other) = others.next_if(stood_before) {
            result.push(other);
        }
        result.push(item);
    }
    result.extend(others);
    result
}
