//! NamespaceLifecycle: the namespaces that everything else rests on stay. (That a namespace takes no new objects before it
//! exists and after it began to go is checked where objects are created.)

use mainstay_model::status::ApiError;
use serde_json::Value;

use super::{Review, forbidden};

const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

pub(super) fn validate(review: Review<'_>) -> Result<(), ApiError> {
    if IMMORTAL.contains(&review.call.name()) {
        return Err(forbidden(review, &Value::Null, "this namespace may not be deleted"));
    }
    Ok(())
}
