//! A configuration laid over an object by somebody who owns nothing: an admission policy.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/mutating-admission-policy/#patch-type-apply-configuration>.

use serde_json::Value;

use super::merge::merge;
use super::view::{Layout, View};
use super::walk::{self, TypeErrors};

/// Why a configuration cannot be laid over an object.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// It does not fit the kind's schema.
    #[error("{0}")]
    Typed(TypeErrors),
    /// It has values that are owned as a whole, so that what it leaves out of them would be lost.
    #[error("may not mutate atomic arrays, maps or structs: {}", .0.join(", "))]
    Atomic(Vec<String>),
}

/// The object with all values of the configuration, merged as server-side apply merges. Owners stay as they are.
///
/// # Errors
/// When the configuration does not fit the schema, or replaces what does not divide.
pub fn overlay(view: View<'_>, object: &Value, config: &Value) -> Result<Value, OverlayError> {
    walk::check(view, config).map_err(OverlayError::Typed)?;
    let mut atomic = Vec::new();
    find_atomic(view, config, &mut String::new(), &mut atomic);
    if atomic.is_empty() { Ok(merge(view, Some(object), config)) } else { Err(OverlayError::Atomic(atomic)) }
}

/// The places of objects and lists that do not divide.
fn find_atomic(view: View<'_>, value: &Value, path: &mut String, found: &mut Vec<String>) {
    let length = path.len();
    match (view.layout(Some(value)), value) {
        (Layout::Whole, Value::Object(_) | Value::Array(_)) => found.push(path.clone()),
        (Layout::Fields(fields), Value::Object(map)) => {
            for (name, value) in map {
                let Some((view, _)) = fields.child(name) else { continue };
                path.push('.');
                path.push_str(name);
                find_atomic(view, value, path, found);
                path.truncate(length);
            }
        }
        (Layout::Items(items), Value::Array(list)) => {
            path.push_str("[]");
            for item in list {
                find_atomic(items.item, item, path, found);
            }
            path.truncate(length);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_merge_by_their_keys_and_what_is_atomic_is_refused() {
        let view = View::built_in("Pod");
        let pod = json!({"metadata": {"name": "a", "labels": {"x": "1"}},
            "spec": {"containers": [{"name": "c", "image": "i", "args": ["a"]}]}});
        let with = overlay(
            view,
            &pod,
            &json!({"metadata": {"labels": {"y": "2"}}, "spec": {"containers": [{"name": "c", "tty": true}, {"name": "d", "image": "j"}]}}),
        );
        assert_eq!(
            with.unwrap(),
            json!({"metadata": {"name": "a", "labels": {"x": "1", "y": "2"}}, "spec": {"containers": [
                {"name": "c", "image": "i", "args": ["a"], "tty": true}, {"name": "d", "image": "j"}]}})
        );
        let said = |config: Value| overlay(view, &pod, &config).unwrap_err().to_string();
        assert_eq!(
            said(json!({"spec": {"containers": [{"name": "c", "args": ["b"]}]}})),
            "may not mutate atomic arrays, maps or structs: .spec.containers[].args"
        );
        assert_eq!(said(json!({"spec": {"nonsense": 1}})), ".spec.nonsense: field not declared in schema");
    }
}
