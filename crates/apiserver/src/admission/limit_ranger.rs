//! LimitRanger: the defaults and bounds of a namespace's LimitRanges.

use std::sync::Arc;

use mainstay_model::limit_range::{apply_defaults, violations};
use mainstay_model::status::ApiError;
use serde_json::Value;

use super::{Review, forbidden, one_or_list};
use crate::api::Api;

async fn ranges(api: &Api, review: Review<'_>) -> Result<Vec<Arc<Value>>, ApiError> {
    api.followed.list("LimitRange", review.call.namespace.as_deref()).await
}

/// Completes a new pod.
pub(super) async fn mutate(api: &Api, review: Review<'_>, pod: &mut Value) -> Result<(), ApiError> {
    let ranges = ranges(api, review).await?;
    apply_defaults(&ranges.iter().map(|range| &**range).collect::<Vec<_>>(), pod);
    Ok(())
}

/// Checks a pod or claim.
pub(super) async fn validate(api: &Api, review: Review<'_>, object: &Value) -> Result<(), ApiError> {
    let ranges = ranges(api, review).await?;
    let ranges: Vec<&Value> = ranges.iter().map(|range| &**range).collect();
    let faults = violations(&ranges, &review.call.resource.kind, object);
    if faults.is_empty() { Ok(()) } else { Err(forbidden(review, object, &one_or_list(&faults))) }
}
