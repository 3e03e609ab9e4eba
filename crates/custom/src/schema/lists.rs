//! What list types promise: items of a set are unique, items of a map are unique by their keys.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/server-side-apply/#custom-resources>.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{ListType, Schema};
use crate::path::{Faults, Path};

/// The values of the keys of an item, defaults filled in; absent keys are left out.
pub(crate) fn key_of(item: &Value, keys: &[String], schema: Option<&Schema>) -> Value {
    let default = |key: &String| schema.and_then(|schema| schema.properties.get(key)?.default.as_ref());
    let pairs = keys.iter().filter_map(|key| Some((key.clone(), item.get(key).or_else(|| default(key))?.clone())));
    Value::Object(pairs.collect::<Map<_, _>>())
}

/// The items of a list by their keys, the first of equal ones.
pub(crate) fn by_key<'a>(list: &'a [Value], keys: &[String], schema: Option<&Schema>) -> HashMap<String, &'a Value> {
    let mut found = HashMap::new();
    for item in list {
        found.entry(key_of(item, keys, schema).to_string()).or_insert(item);
    }
    found
}

/// Reports items that stand twice.
pub(super) fn check_unique(schema: &Schema, list: &[Value], path: &Path<'_>, faults: &mut Faults) {
    let items = schema.items.as_deref();
    let key = |item: &Value| match &schema.list_type {
        ListType::Atomic => None,
        ListType::Set => Some(item.clone()),
        ListType::Map(keys) => item.is_object().then(|| key_of(item, keys, items)),
    };
    if schema.list_type == ListType::Atomic {
        return;
    }
    let mut seen: HashMap<String, bool> = HashMap::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        let Some(key) = key(item) else { continue };
        // Each value is reported once, where it stands the second time.
        match seen.get_mut(&key.to_string()) {
            None => drop(seen.insert(key.to_string(), false)),
            Some(reported @ false) => {
                *reported = true;
                faults.duplicate(path.index(i), &key);
            }
            Some(true) => {}
        }
    }
}
