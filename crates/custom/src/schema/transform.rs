//! Filling in defaults and dropping unknown fields.
//!
//! Source: <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#defaulting-and-nullable>,
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#field-pruning>.

use serde_json::Value;

use super::{Additional, Schema};
use crate::path::Path;

/// Most dropped fields that are named.
const PRUNED_MAX: usize = 100;

impl Schema {
    /// Removes nulls where null is not allowed, and fills in defaults, also inside of what was filled in.
    pub fn default(&self, object: &mut Value) {
        match object {
            Value::Object(map) => {
                map.retain(|name, value| {
                    !value.is_null() || self.field(name).is_none_or(|field| field.nullable || field.default.is_some())
                });
                for (name, property) in &self.properties {
                    let Some(default) = &property.default else { continue };
                    if map.get(name).is_none_or(|value| value.is_null() && !property.nullable) {
                        map.insert(name.clone(), default.clone());
                    }
                }
                for (name, value) in map {
                    if let Some(schema) = self.field(name) {
                        schema.replace_null(value);
                        schema.default(value);
                    }
                }
            }
            Value::Array(list) => {
                let Some(items) = &self.items else { return };
                for value in list {
                    items.replace_null(value);
                    items.default(value);
                }
            }
            _ => {}
        }
    }

    fn replace_null(&self, value: &mut Value) {
        if value.is_null()
            && !self.nullable
            && let Some(default) = &self.default
        {
            *value = default.clone();
        }
    }

    /// Removes the fields that the schema does not know and returns their paths, such as `spec.x`, in no certain number
    /// beyond the first hundred.
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut pruned = Vec::new();
        prune(Some(self), object, &Path::root(""), &mut pruned);
        pruned
    }
}

fn prune(schema: Option<&Schema>, value: &mut Value, path: &Path<'_>, pruned: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            map.retain(|name, value| {
                let here = path.field(name);
                let Some(schema) = schema else { return drop_field(&here, pruned) };
                if schema.embedded && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                    return true;
                }
                match (schema.properties.get(name), schema.additional.as_deref()) {
                    (Some(property), _) => prune(Some(property), value, &here, pruned),
                    (None, Some(Additional::Schema(values))) => prune(Some(values), value, &here, pruned),
                    (None, Some(Additional::Any)) if !schema.preserve_unknown => prune(None, value, &here, pruned),
                    (None, _) if schema.preserve_unknown => {}
                    (None, _) => return drop_field(&here, pruned),
                }
                true
            });
        }
        Value::Array(list) => {
            let items = schema.and_then(|schema| schema.items.as_deref());
            // What has no schema of its own is kept where everything is kept.
            if items.is_none() && schema.is_some_and(|schema| schema.preserve_unknown) {
                return;
            }
            for (i, value) in list.iter_mut().enumerate() {
                prune(items, value, &path.index(i), pruned);
            }
        }
        _ => {}
    }
}

/// Notes a field that goes; always false.
fn drop_field(path: &Path<'_>, pruned: &mut Vec<String>) -> bool {
    if pruned.len() < PRUNED_MAX {
        pruned.push(path.dotted());
    }
    false
}
