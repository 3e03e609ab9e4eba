//! The generic path of every kind: create, get, list, update, patch, delete and the subresources.
//!
//! Flow of a write: decode → check the shape ([`crate::decode`]) → defaults → the kind's few rules ([`strategy`]) →
//! validation → compare-and-swap in the store. A patch is an update whose new object is computed from the stored one and
//! is computed again when somebody else was faster.

mod apply;
#[cfg(test)]
mod apply_tests;
mod convert;
mod create;
mod delete;
mod eviction;
mod list;
#[cfg(test)]
mod list_tests;
mod object;
mod options;
mod owners;
mod resize;
mod scale;
mod shape;
mod strategy;
mod subresource;
pub(crate) mod text;
mod update;
#[cfg(test)]
mod wrong_tests;

pub(crate) use convert::{from_entries, from_entry};
pub(crate) use create::create;
pub(crate) use delete::{delete, delete_collection};
pub(crate) use eviction::evict;
pub(crate) use list::{Filter, Walk, list, select};
#[cfg(test)]
pub(crate) use object::parse_object;
pub(crate) use object::{decode, decode_entry, new_uid, parse_body};
pub(crate) use options::ListOptions;
pub(crate) use scale::scale;
pub(crate) use shape::{list_of, shape_one, table_of, to_form};
pub(crate) use subresource::{bind, bind_named};
pub(crate) use update::{change, patch, update};

use mainstay_model::resource::known;
use mainstay_model::status::ApiError;
use mainstay_store::Error as StoreError;
use serde_json::Value;

use crate::api::Api;
use crate::request::Call;

/// One object, or its `status` subresource, which is the whole object too.
pub(crate) async fn get(api: &Api, call: &Call) -> Result<Value, ApiError> {
    let (entry, _) = api.store.get(&call.key(), None).await.map_err(|error| store_error(call, error))?;
    from_entry(api, &call.resource, &entry.ok_or_else(|| call.not_found())?).await
}

/// An object by kind and name, whoever asks; `None` when there is none.
pub(crate) async fn find(
    api: &Api,
    kind: &str,
    namespace: Option<&str>,
    name: &str,
) -> Result<Option<Value>, ApiError> {
    let resource = known(kind);
    let found = api.store.get(&resource.key(namespace, name), None).await;
    let (entry, _) = found.map_err(|error| ApiError::internal(format!("store: {error}")))?;
    Ok(entry.map(|entry| decode_entry(resource, &entry)))
}

/// A store's refusal in the API's words.
pub(crate) fn store_error(call: &Call, error: StoreError) -> ApiError {
    let resource = &call.resource;
    match error {
        StoreError::Conflict { .. } => ApiError::modified(&resource.group, &resource.plural, call.name()),
        StoreError::Compacted { oldest } => ApiError::expired(format!(
            "the resource version asked for is too old: it was compacted; the oldest kept is {oldest}; list again"
        )),
        StoreError::Future { current } => {
            options::too_new(call.query.number("resourceVersion").ok().flatten().unwrap_or(0), current)
        }
        StoreError::Busy => ApiError::too_many_requests(error.to_string(), 1),
        StoreError::ValueTooLarge { max, .. } => ApiError::too_large(max),
        // No time to try again: somebody must make room first (RFC 4918 section 11.5).
        StoreError::DiskFull { .. } | StoreError::EtcdFull => {
            ApiError::new(507, "InsufficientStorage", error.to_string())
        }
        StoreError::Closed => ApiError::unavailable(error.to_string()),
        StoreError::Storage { ref source, .. } => ApiError::internal(format!("store: {error}: {source}")),
        error => ApiError::internal(format!("store: {error}")),
    }
}
