//! Reading and writing the common parts of any object: `metadata`, paths, names, times.
//!
//! Role: small helpers over `serde_json::Value`, so that nobody spells out the same chain of lookups twice. Reading
//! never fails: what is absent or of the wrong type reads as absent. Writing creates the objects on the way.

mod hash;
pub mod names;
mod time;

use serde_json::{Map, Value, json};

pub use hash::{canonical_json, encode_safe, fnv1a_32, pod_template_hash};
pub use names::{generate_name, random_suffix};
pub use time::{age, format_micro_time, format_time, human_duration, parse_time};

/// The value at a dotted path such as `spec.containers.0.name`; `null` reads as absent.
///
/// Keys with dots in them (labels, annotations) cannot be reached this way; use [`label`] and [`annotation`].
pub fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let mut value = object;
    for step in path.split('.') {
        value = match value {
            Value::Object(map) => map.get(step)?,
            Value::Array(items) => items.get(step.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    (!value.is_null()).then_some(value)
}

/// The string at a path.
pub fn str_at<'a>(object: &'a Value, path: &str) -> Option<&'a str> {
    at(object, path)?.as_str()
}

/// The integer at a path.
pub fn i64_at(object: &Value, path: &str) -> Option<i64> {
    at(object, path)?.as_i64()
}

/// The boolean at a path, false when absent.
pub fn bool_at(object: &Value, path: &str) -> bool {
    at(object, path).and_then(Value::as_bool).unwrap_or(false)
}

/// The items of the list at a path, none when absent.
pub fn list_at<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    at(object, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The map at a path.
pub fn map_at<'a>(object: &'a Value, path: &str) -> Option<&'a Map<String, Value>> {
    at(object, path)?.as_object()
}

/// The time at a path.
pub fn time_at(object: &Value, path: &str) -> Option<jiff::Timestamp> {
    parse_time(str_at(object, path)?)
}

/// Sets the value at a dotted path, making objects on the way; a scalar in the way is replaced.
pub fn set_at(object: &mut Value, path: &str, value: Value) {
    let mut place = object;
    for step in path.split('.') {
        place = ensure_map(place).entry(step).or_insert(Value::Null);
    }
    *place = value;
}

/// Removes the value at a dotted path of objects, and returns it.
pub fn remove_at(object: &mut Value, path: &str) -> Option<Value> {
    match path.rsplit_once('.') {
        Some((parent, last)) => {
            let pointer = format!("/{}", parent.replace('.', "/"));
            object.pointer_mut(&pointer)?.as_object_mut()?.remove(last)
        }
        None => object.as_object_mut()?.remove(path),
    }
}

/// The map in `place`, made empty first when it holds anything else.
pub fn ensure_map(place: &mut Value) -> &mut Map<String, Value> {
    if !place.is_object() {
        *place = Value::Object(Map::new());
    }
    match place {
        Value::Object(map) => map,
        _ => unreachable!("just made an object"),
    }
}

/// `kind`, empty when absent.
pub fn kind(object: &Value) -> &str {
    str_at(object, "kind").unwrap_or_default()
}

/// `apiVersion`, empty when absent.
pub fn api_version(object: &Value) -> &str {
    str_at(object, "apiVersion").unwrap_or_default()
}

/// `metadata.name`, empty when absent.
pub fn name(object: &Value) -> &str {
    str_at(object, "metadata.name").unwrap_or_default()
}

/// `metadata.namespace`.
pub fn namespace(object: &Value) -> Option<&str> {
    str_at(object, "metadata.namespace").filter(|namespace| !namespace.is_empty())
}

/// `metadata.uid`, empty when absent.
pub fn uid(object: &Value) -> &str {
    str_at(object, "metadata.uid").unwrap_or_default()
}

/// `metadata.resourceVersion`, empty when absent.
pub fn resource_version(object: &Value) -> &str {
    str_at(object, "metadata.resourceVersion").unwrap_or_default()
}

/// `metadata.generation`, 0 when absent.
pub fn generation(object: &Value) -> i64 {
    i64_at(object, "metadata.generation").unwrap_or(0)
}

/// `metadata.creationTimestamp`.
pub fn creation_timestamp(object: &Value) -> Option<jiff::Timestamp> {
    time_at(object, "metadata.creationTimestamp")
}

/// `metadata.deletionTimestamp`.
pub fn deletion_timestamp(object: &Value) -> Option<jiff::Timestamp> {
    time_at(object, "metadata.deletionTimestamp")
}

/// Whether deletion has begun.
pub fn is_being_deleted(object: &Value) -> bool {
    at(object, "metadata.deletionTimestamp").is_some()
}

/// Sets one field of `metadata`.
pub fn set_metadata(object: &mut Value, field: &str, value: Value) {
    ensure_map(ensure_map(object).entry("metadata").or_insert(Value::Null)).insert(field.to_owned(), value);
}

/// `metadata.labels`.
pub fn labels(object: &Value) -> Option<&Map<String, Value>> {
    map_at(object, "metadata.labels")
}

/// One label.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    labels(object)?.get(key)?.as_str()
}

/// `metadata.annotations`.
pub fn annotations(object: &Value) -> Option<&Map<String, Value>> {
    map_at(object, "metadata.annotations")
}

/// One annotation.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    annotations(object)?.get(key)?.as_str()
}

/// Sets one label.
pub fn set_label(object: &mut Value, key: &str, value: &str) {
    set_in_metadata(object, "labels", key, value);
}

/// Sets one annotation.
pub fn set_annotation(object: &mut Value, key: &str, value: &str) {
    set_in_metadata(object, "annotations", key, value);
}

/// Removes one annotation.
pub fn remove_annotation(object: &mut Value, key: &str) -> Option<Value> {
    object.pointer_mut("/metadata/annotations")?.as_object_mut()?.remove(key)
}

fn set_in_metadata(object: &mut Value, map: &str, key: &str, value: &str) {
    let metadata = ensure_map(ensure_map(object).entry("metadata").or_insert(Value::Null));
    ensure_map(metadata.entry(map).or_insert(Value::Null)).insert(key.to_owned(), json!(value));
}

/// `metadata.ownerReferences`.
pub fn owner_references(object: &Value) -> &[Value] {
    list_at(object, "metadata.ownerReferences")
}

/// The owner reference with `controller: true`.
pub fn controller_of(object: &Value) -> Option<&Value> {
    owner_references(object).iter().find(|owner| owner["controller"] == true)
}

/// Whether the controlling owner has this uid.
pub fn is_controlled_by(object: &Value, owner_uid: &str) -> bool {
    controller_of(object).is_some_and(|owner| owner["uid"] == owner_uid)
}

/// An owner reference to `owner`, which must carry `apiVersion`, `kind`, name and uid.
///
/// With `controller`, it also blocks the owner's foreground deletion, as the built-in controllers do.
pub fn owner_reference(owner: &Value, controller: bool) -> Value {
    let mut reference = json!({
        "apiVersion": api_version(owner), "kind": kind(owner), "name": name(owner), "uid": uid(owner),
    });
    if controller {
        reference["controller"] = json!(true);
        reference["blockOwnerDeletion"] = json!(true);
    }
    reference
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Value) -> Vec<&str> {
    list_at(object, "metadata.finalizers").iter().filter_map(Value::as_str).collect()
}

/// Whether a finalizer is there.
pub fn has_finalizer(object: &Value, finalizer: &str) -> bool {
    finalizers(object).contains(&finalizer)
}

/// Adds a finalizer; false when it was there.
pub fn add_finalizer(object: &mut Value, finalizer: &str) -> bool {
    if has_finalizer(object, finalizer) {
        return false;
    }
    let mut all = list_at(object, "metadata.finalizers").to_vec();
    all.push(json!(finalizer));
    set_metadata(object, "finalizers", Value::Array(all));
    true
}

/// Removes a finalizer, and the field when none is left; false when it was not there.
pub fn remove_finalizer(object: &mut Value, finalizer: &str) -> bool {
    if !has_finalizer(object, finalizer) {
        return false;
    }
    let left: Vec<_> = list_at(object, "metadata.finalizers").iter().filter(|f| *f != finalizer).cloned().collect();
    if left.is_empty() {
        remove_at(object, "metadata.finalizers");
    } else {
        set_metadata(object, "finalizers", Value::Array(left));
    }
    true
}

/// The entry of `status.conditions` of this type.
pub fn condition<'a>(object: &'a Value, condition_type: &str) -> Option<&'a Value> {
    list_at(object, "status.conditions").iter().find(|condition| condition["type"] == condition_type)
}

/// Whether the condition of this type has status `True`.
pub fn is_condition_true(object: &Value, condition_type: &str) -> bool {
    condition(object, condition_type).is_some_and(|condition| condition["status"] == "True")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths() {
        let mut object = json!({"spec": {"containers": [{"name": "a"}], "x": null}});
        assert_eq!(str_at(&object, "spec.containers.0.name"), Some("a"));
        assert_eq!(at(&object, "spec.x"), None);
        assert_eq!(at(&object, "spec.containers.1"), None);
        set_at(&mut object, "status.phase", json!("Running"));
        assert_eq!(str_at(&object, "status.phase"), Some("Running"));
        assert_eq!(remove_at(&mut object, "status.phase"), Some(json!("Running")));
        assert_eq!(remove_at(&mut object, "status"), Some(json!({})));
        assert_eq!(remove_at(&mut object, "nothing.here"), None);
        set_at(&mut object, "spec.x.y", json!(1));
        assert_eq!(i64_at(&object, "spec.x.y"), Some(1));
    }

    #[test]
    fn metadata_fields() {
        let mut object = json!({});
        assert_eq!((name(&object), namespace(&object), generation(&object)), ("", None, 0));
        set_metadata(&mut object, "name", json!("a"));
        set_label(&mut object, "example.com/x", "y");
        set_annotation(&mut object, "k", "v");
        assert_eq!(
            (name(&object), label(&object, "example.com/x"), annotation(&object, "k")),
            ("a", Some("y"), Some("v"))
        );
        assert_eq!(remove_annotation(&mut object, "k"), Some(json!("v")));
        assert!(!is_being_deleted(&object));
        set_metadata(&mut object, "deletionTimestamp", json!("2026-01-02T15:04:05Z"));
        assert!(is_being_deleted(&object) && deletion_timestamp(&object).is_some());
    }

    #[test]
    fn owners() {
        let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "rs", "uid": "u1"}});
        let mut object = json!({});
        set_metadata(&mut object, "ownerReferences", json!([owner_reference(&owner, true)]));
        assert!(is_controlled_by(&object, "u1") && !is_controlled_by(&object, "u2"));
        assert_eq!(owner_references(&object)[0]["blockOwnerDeletion"], true);
        assert_eq!(owner_reference(&owner, false).get("controller"), None);
    }

    #[test]
    fn finalizer_set() {
        let mut object = json!({"metadata": {}});
        assert!(add_finalizer(&mut object, "a") && !add_finalizer(&mut object, "a") && add_finalizer(&mut object, "b"));
        assert_eq!(finalizers(&object), ["a", "b"]);
        assert!(remove_finalizer(&mut object, "a") && !remove_finalizer(&mut object, "a"));
        assert!(remove_finalizer(&mut object, "b"));
        assert_eq!(at(&object, "metadata.finalizers"), None);
    }
}
