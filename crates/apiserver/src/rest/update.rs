//! PUT and PATCH, on objects and on their `status` and `finalize` subresources.

use http::StatusCode;
use mainstay_model::patch::{self as patches, PatchError, PatchType};
use mainstay_model::status::ApiError;
use mainstay_model::{defaults, validate};
use mainstay_store::{Error as StoreError, Expect};
use serde_json::Value;

use super::convert::{self, from_entry};
use super::create::check_kind;
use super::object::{meta, meta_mut, parse_object};
use super::owners::{self, Owners};
use super::{apply, store_error, strategy};
use crate::admission::{self, Operation, Review};
use crate::api::Api;
use crate::custom;
use crate::decode::{self, Unknown, read_json, repeated_fields};
use crate::request::Call;

/// How often a change is computed again when others write the same object.
const CONFLICT_TRIES: usize = 32;

/// PUT: the body replaces the object; its `resourceVersion`, if given, must be the stored one.
pub(crate) async fn update(api: &Api, call: &Call, media_type: &str, body: &[u8]) -> Result<Value, ApiError> {
    owners::check_options(call, false)?;
    let mut given = parse_object(call, media_type, body)?;
    check_kind(&call.resource, &mut given)?;
    check_place(call, &given)?;
    change(api, call, |_| Ok(given.clone())).await
}

/// Whether an object that comes for a URL is the one of that URL.
fn check_place(call: &Call, object: &Value) -> Result<(), ApiError> {
    let why = match (meta(object, "name"), meta(object, "namespace"), call.namespace.as_deref()) {
        ("", ..) => {
            format!("the name of the object ({} based on URL) was undeterminable: name must be provided", call.name())
        }
        (name, ..) if name != call.name() => {
            format!("the name of the object ({name}) does not match the name on the URL ({})", call.name())
        }
        (_, given, Some(namespace)) if !given.is_empty() && given != namespace => {
            format!("the namespace of the object ({given}) does not match the namespace on the request ({namespace})")
        }
        _ => return Ok(()),
    };
    Err(ApiError::bad_request(why))
}

/// What PATCH takes.
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    apply::MEDIA_TYPE,
];

/// PATCH: JSON, merge or strategic merge patch, or apply, by media type.
pub(crate) async fn patch(
    api: &Api,
    call: &Call,
    media_type: &str,
    body: &[u8],
) -> Result<(StatusCode, Value), ApiError> {
    owners::check_options(call, media_type == apply::MEDIA_TYPE)?;
    if media_type == apply::MEDIA_TYPE {
        return apply::apply(api, call, body).await;
    }
    let kind = call.resource.rules();
    let (patch, repeated) =
        read_json(body).map_err(|error| ApiError::bad_request(format!("the patch is not valid JSON: {error}")))?;
    Unknown::of(call)?.tell(call, &repeated_fields(&repeated))?;
    let patch_type = PatchType::from_content_type(media_type);
    let patch_type = patch_type.ok_or_else(|| ApiError::unsupported_media_type(media_type, PATCHES))?;
    if call.resource.custom().is_some() && patch_type == PatchType::Strategic {
        // How lists merge is not known of custom kinds.
        let known: Vec<&str> = PATCHES.iter().copied().filter(|media| !media.contains("strategic")).collect();
        return Err(ApiError::unsupported_media_type(media_type, &known));
    }
    let new = change(api, call, |old| {
        let mut new = patches::apply(patch_type, kind, old, &patch).map_err(|error| patch_error(&error))?;
        check_kind(&call.resource, &mut new)?;
        check_place(call, &new)?;
        Ok(new)
    })
    .await?;
    Ok((StatusCode::OK, new))
}

/// A patch that does not fit the object is the object's fault (422), one that cannot be read the patch's (400).
pub(super) fn patch_error(error: &PatchError) -> ApiError {
    match error {
        PatchError::TestFailed { .. } | PatchError::Operation { .. } => {
            ApiError::new(422, "Invalid", error.to_string())
        }
        PatchError::TooManyOperations(_) => ApiError::new(413, "RequestEntityTooLarge", error.to_string()),
        _ => ApiError::bad_request(error.to_string()),
    }
}

/// Reads, computes the new object, writes if nobody was faster; else all over again. The caller owns what it changes.
pub(crate) async fn change(
    api: &Api,
    call: &Call,
    compute: impl Fn(&Value) -> Result<Value, ApiError>,
) -> Result<Value, ApiError> {
    change_as(api, call, Owners::of(call), compute).await
}

/// As [`change`], and says what becomes of the owners of the object's fields.
pub(super) async fn change_as(
    api: &Api,
    call: &Call,
    owners: Owners<'_>,
    compute: impl Fn(&Value) -> Result<Value, ApiError>,
) -> Result<Value, ApiError> {
    let resource = &call.resource;
    let unknown = Unknown::of(call)?;
    let dry_run = call.query.dry_run()?;
    for _ in 0..CONFLICT_TRIES {
        let (entry, _) = api.store.get(&call.key(), None).await.map_err(|error| store_error(call, error))?;
        let entry = entry.ok_or_else(|| call.not_found())?;
        let old = from_entry(api, resource, &entry).await?;
        let mut new = compute(&old)?;
        check_preconditions(call, &old, &new)?;
        let given = owners::take(&mut new);
        decode::check(call, &mut new, unknown)?;
        defaults::apply_defaults(resource.rules(), &mut new);
        custom::apply_defaults(resource, &mut new);
        let review = Review { call, operation: Operation::Update, old: Some(&old), dry_run };
        admission::mutate(api, review, &mut new).await?;
        strategy::prepare_update(api, call, &mut new, &old).await?;
        owners::pass_on(api, call, owners, &old, &mut new, given)?;
        let revision = meta(&old, "resourceVersion").into();
        meta_mut(&mut new).insert("resourceVersion".to_owned(), revision);
        let causes = match call.subresource.as_deref() {
            None => validate::validate_update(resource.rules(), &old, &new),
            Some("status") => validate::validate_status_update(resource.rules(), &old, &new),
            Some(subresource) => validate::validate_subresource_update(resource.rules(), subresource, &old, &new),
        };
        let causes = custom::and_faults(causes, resource, &new, Some(&old));
        if !causes.is_empty() {
            return Err(ApiError::invalid(&resource.group, &resource.kind, call.name(), causes));
        }
        admission::validate(api, review, &new).await?;
        if new == old || dry_run {
            return Ok(new);
        }
        let expect = Expect::Revision(entry.mod_revision);
        let written = if strategy::is_finished(resource, &new) {
            strategy::remove(api, &call.key(), expect).await.map(|_| new)
        } else {
            convert::put(api, resource, &call.key(), new, expect).await?
        };
        match written {
            Err(StoreError::Conflict { .. }) => {}
            other => return other.map_err(|error| store_error(call, error)),
        }
    }
    Err(ApiError::modified(&resource.group, &resource.plural, call.name()))
}

/// The `resourceVersion` and `uid` the caller assumes, where it gives them.
fn check_preconditions(call: &Call, old: &Value, new: &Value) -> Result<(), ApiError> {
    let resource = &call.resource;
    let (given, stored) = (meta(new, "resourceVersion"), meta(old, "resourceVersion"));
    if !given.is_empty() && given != stored {
        return Err(ApiError::modified(&resource.group, &resource.plural, call.name()));
    }
    let (given, stored) = (meta(new, "uid"), meta(old, "uid"));
    if !given.is_empty() && given != stored {
        let why = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {stored}");
        return Err(ApiError::conflict(&resource.group, &resource.plural, call.name(), &why));
    }
    Ok(())
}
