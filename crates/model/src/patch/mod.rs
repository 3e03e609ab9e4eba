//! The three kinds of patch: JSON patch, JSON merge patch, strategic merge patch.
//!
//! Role: `original + patch -> object`, nothing else; reading the stored object, trying again after a conflict and
//! validating the result are the API server's business. Server-side apply is [`crate::apply`].
//!
//! Guarantees: the original is never changed, an error leaves nothing half done, and no patch grows an object
//! without limit ([`OPERATIONS_MAX`], [`COPIED_BYTES_MAX`], [`DEPTH_MAX`]).
//!
//! Source: RFC 6902, RFC 7396, and the strategic merge patch document of Kubernetes' API machinery
//! (<https://kubernetes.io/docs/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch/>).

mod json;
mod strategic;

use serde_json::{Map, Value};

pub use json::{COPIED_BYTES_MAX, DEPTH_MAX, OPERATIONS_MAX, depth, json};
pub use strategic::strategic;

/// What a PATCH request's body is, by its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7396 (formerly 7386).
    Merge,
    /// Kubernetes' own, which merges lists by key.
    Strategic,
}

impl PatchType {
    /// From a `Content-Type`, parameters ignored; `None` for anything else, also for [`crate::apply`].
    pub fn from_content_type(content_type: &str) -> Option<Self> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            _ => None,
        }
    }
}

/// Why a patch could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// The body is not a JSON patch.
    #[error("the body is not a JSON patch (a list of operations): {0}")]
    Decode(#[source] serde_json::Error),
    /// Too many operations.
    #[error("the allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {0}")]
    TooManyOperations(usize),
    /// The `copy` operations make too much of what is there.
    #[error("the copy operations of the JSON patch copy more than the allowed {COPIED_BYTES_MAX} bytes in all")]
    TooMuchCopied,
    /// An operation nests the object too deeply.
    #[error("operation {operation} of the JSON patch nests the object deeper than the allowed {DEPTH_MAX}")]
    TooDeep {
        /// Index from 0.
        operation: usize,
    },
    /// A `test` operation found another value.
    #[error("testing path {path} failed: the value there is not the expected one")]
    TestFailed {
        /// JSON pointer of the operation.
        path: String,
    },
    /// An operation names a place that does not exist.
    #[error("operation {operation} of the JSON patch failed at {path}: {reason}")]
    Operation {
        /// Index from 0.
        operation: usize,
        /// JSON pointer of the operation.
        path: String,
        /// What went wrong.
        reason: String,
    },
    /// The operations leave something else than an object.
    #[error("the JSON patch does not leave an object")]
    NothingLeft,
    /// A merge or strategic merge patch must be a JSON object.
    #[error("the patch must be a JSON object")]
    NotAnObject,
    /// Strategic merge patches exist for built-in kinds only.
    #[error("strategic merge patch is not supported for {0}; send a merge patch (application/merge-patch+json)")]
    NoStrategic(String),
    /// A `$patch` value that does not exist.
    #[error("unknown $patch directive {directive} at {path}")]
    Directive {
        /// What was written.
        directive: String,
        /// Where.
        path: String,
    },
    /// A directive that needs a list holds something else.
    #[error("{0} must be a list")]
    DirectiveNotAList(String),
    /// An item of a list that merges by key lacks the key.
    #[error("an item of {path} does not contain the declared merge key: {key}")]
    NoMergeKey {
        /// The list.
        path: String,
        /// Its merge key.
        key: &'static str,
    },
    /// `$retainKeys` does not list a field that the patch itself sets.
    #[error("the patch sets {path}, which is not in $retainKeys")]
    NotRetained {
        /// The field.
        path: String,
    },
}

/// Applies a patch of any type to an object of `kind`.
pub fn apply(patch_type: PatchType, kind: &str, original: &Value, patch: &Value) -> Result<Value, PatchError> {
    match patch_type {
        PatchType::Json => json(original, patch).and_then(|new| {
            // An operation may put anything in the place of the whole.
            if new.is_object() { Ok(new) } else { Err(PatchError::NothingLeft) }
        }),
        PatchType::Merge => merge(original, patch),
        PatchType::Strategic => strategic(kind, original, patch),
    }
}

/// Applies a JSON merge patch (RFC 7396), which for API objects must be an object.
pub fn merge(original: &Value, patch: &Value) -> Result<Value, PatchError> {
    if !patch.is_object() {
        return Err(PatchError::NotAnObject);
    }
    let mut result = original.clone();
    json_patch::merge(&mut result, patch);
    Ok(result)
}

/// The merge patch that makes `to` out of `from`, when neither holds `null`. An empty object when they are equal.
pub fn merge_diff(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else { return to.clone() };
    let mut patch = Map::new();
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in to {
        match from.get(key) {
            Some(old) if old == value => {}
            Some(old) if old.is_object() && value.is_object() => {
                patch.insert(key.clone(), merge_diff(old, value));
            }
            _ => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests;
