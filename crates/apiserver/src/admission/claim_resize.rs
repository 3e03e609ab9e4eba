//! PersistentVolumeClaimResize: a claim grows only where its class says that its volumes can.

use mainstay_model::meta;
use mainstay_model::quantity::Quantity;
use mainstay_model::status::ApiError;
use serde_json::Value;

use super::{Review, forbidden};
use crate::api::Api;

pub(super) async fn validate(api: &Api, review: Review<'_>, new: &Value) -> Result<(), ApiError> {
    let size = |claim: &Value| Quantity::from_value(&claim["spec"]["resources"]["requests"]["storage"]).ok();
    let (before, after) = (review.old.and_then(size), size(new));
    let (Some(before), Some(after)) = (before, after) else { return Ok(()) };
    if after <= before {
        return Ok(());
    }
    let class = meta::str_at(new, "spec.storageClassName").unwrap_or_default();
    let class = api.followed.get("StorageClass", None, class).await?;
    if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
        return Ok(());
    }
    let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
    Err(forbidden(review, new, why))
}
