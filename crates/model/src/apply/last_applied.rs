//! From client-side to server-side apply: what `kubectl apply` wrote down is `kubectl apply --server-side`'s to change.
//!
//! `kubectl apply` keeps what it applied in an annotation. When the manager `kubectl` applies on the server, fields that
//! stand in that annotation and still have that value are no conflict, and the annotation is kept up to date as long as it
//! is there, so that going back works too. Other managers do not get this.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/server-side-apply/#upgrading-from-client-side-apply-to-server-side-apply>.

use serde_json::Value;

use super::compare::compare;
use super::fields::FieldSet;
use super::view::View;
use super::walk::fields_of;

/// The manager name of `kubectl apply --server-side`.
pub(super) const MANAGER: &str = "kubectl";

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The largest annotation written, in bytes: that of all annotations of an object together.
const ANNOTATION_BYTES_MAX: usize = 256 * 1024;

fn annotation(object: &Value) -> Option<&str> {
    object["metadata"]["annotations"][ANNOTATION].as_str().filter(|text| !text.is_empty())
}

/// The fields of `live` that still are as `kubectl apply` left them.
pub(super) fn unchanged(view: View<'_>, live: &Value) -> FieldSet {
    let Some(applied) = annotation(live).and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
        return FieldSet::default();
    };
    let mut fields = fields_of(view, &applied);
    let changes = compare(view, Some(&applied), live);
    for changed in [&changes.modified, &changes.added, &changes.removed] {
        fields.subtract(changed);
    }
    fields
}

/// Writes `applied` into the annotation of `object`, if it has one.
pub(super) fn sync(object: &mut Value, applied: &Value) {
    if annotation(object).is_none() {
        return;
    }
    let mut applied = applied.clone();
    if let Some(annotations) = applied.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(ANNOTATION);
    }
    let text = format!("{applied}\n");
    let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) else { return };
    let others = |(key, value): (&String, &Value)| key.len() + value.as_str().map_or(0, str::len);
    let size: usize = annotations.iter().filter(|(key, _)| *key != ANNOTATION).map(others).sum();
    if size + ANNOTATION.len() + text.len() > ANNOTATION_BYTES_MAX {
        annotations.remove(ANNOTATION);
    } else {
        annotations.insert(ANNOTATION.to_owned(), Value::String(text));
    }
}
