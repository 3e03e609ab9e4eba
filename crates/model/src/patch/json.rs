//! JSON patch, with limits on what a small patch can make of an object.
//!
//! Source: RFC 6902.

use json_patch::PatchOperation;
use serde_json::Value;

use super::PatchError;

/// The most operations one JSON patch may have, as in Kubernetes.
pub const OPERATIONS_MAX: usize = 10_000;
/// The most bytes that the `copy` operations of one patch may copy together, as in Kubernetes: each can double the object.
pub const COPIED_BYTES_MAX: usize = 3 << 20;
/// How deep an operation may nest an object. What is stored must be readable again, and readers give up at 128.
pub const DEPTH_MAX: usize = 100;

/// Applies a JSON patch.
pub fn json(original: &Value, patch: &Value) -> Result<Value, PatchError> {
    if let Some(count) = patch.as_array().map(Vec::len).filter(|count| *count > OPERATIONS_MAX) {
        return Err(PatchError::TooManyOperations(count));
    }
    let operations: json_patch::Patch = serde_json::from_value(patch.clone()).map_err(PatchError::Decode)?;
    let mut result = original.clone();
    let mut copied_bytes = 0;
    for (place, operation) in operations.iter().enumerate() {
        copied_bytes += copies_bytes(&result, operation);
        if copied_bytes > COPIED_BYTES_MAX {
            return Err(PatchError::TooMuchCopied);
        }
        if nests(&result, operation) > DEPTH_MAX {
            return Err(PatchError::TooDeep { operation: place });
        }
        // Without a way back: a patch that fails leaves `original` as it is.
        json_patch::patch_unsafe(&mut result, std::slice::from_ref(operation)).map_err(|error| match error.kind {
            json_patch::PatchErrorKind::TestFailed => PatchError::TestFailed { path: error.path.to_string() },
            kind => PatchError::Operation { operation: place, path: error.path.to_string(), reason: kind.to_string() },
        })?;
    }
    Ok(result)
}

/// How much a `copy` operation copies.
fn copies_bytes(object: &Value, operation: &PatchOperation) -> usize {
    let PatchOperation::Copy(copy) = operation else { return 0 };
    // A value always serialises: its keys are strings.
    object
        .pointer(copy.from.as_str())
        .map_or(0, |value| serde_json::to_vec(value).map_or(usize::MAX, |text| text.len()))
}

/// How deep the object is where the operation acts, when it has acted.
fn nests(object: &Value, operation: &PatchOperation) -> usize {
    let at = |path_steps: usize, value: Option<&Value>| path_steps + value.map_or(0, depth);
    match operation {
        PatchOperation::Add(add) => at(add.path.count(), Some(&add.value)),
        PatchOperation::Replace(replace) => at(replace.path.count(), Some(&replace.value)),
        PatchOperation::Copy(copy) => at(copy.path.count(), object.pointer(copy.from.as_str())),
        PatchOperation::Move(moved) => at(moved.path.count(), object.pointer(moved.from.as_str())),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => 0,
    }
}

/// How many objects and lists stand in each other, at most.
pub fn depth(value: &Value) -> usize {
    match value {
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
