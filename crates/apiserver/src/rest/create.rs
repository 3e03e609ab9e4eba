//! POST to a collection.

use http::StatusCode;
use mainstay_model::resource::{Resource, known};
use mainstay_model::status::ApiError;
use mainstay_model::{defaults, meta as names, validate};
use mainstay_store::{Error as StoreError, Expect};
use serde_json::{Value, json};

use super::convert::{to_bytes, written};
use super::object::{meta, meta_mut, parse_object};
use super::owners;
use super::{decode_entry, store_error, strategy};
use crate::admission::{self, Operation, Review};
use crate::api::Api;
use crate::custom;
use crate::decode::{self, Unknown};
use crate::request::Call;

/// How often a generated name is tried again when it is taken.
const GENERATE_TRIES: usize = 8;

/// Creates the object in the body and answers it as stored.
pub(crate) async fn create(
    api: &Api,
    call: &Call,
    media_type: &str,
    body: &[u8],
) -> Result<(StatusCode, Value), ApiError> {
    owners::check_options(call, false)?;
    let object = parse_object(call, media_type, body)?;
    make(api, call, object, false).await
}

/// Creates an object that was applied, and comes with its owners.
pub(super) async fn create_applied(api: &Api, call: &Call, object: Value) -> Result<(StatusCode, Value), ApiError> {
    make(api, call, object, true).await
}

async fn make(api: &Api, call: &Call, mut object: Value, is_applied: bool) -> Result<(StatusCode, Value), ApiError> {
    let resource = &call.resource;
    if resource.custom().is_some_and(|custom| custom.terminating) {
        let why = "create not allowed while custom resource definition is terminating";
        return Err(ApiError::new(405, "MethodNotAllowed", why));
    }
    check_envelope(call, &mut object)?;
    let given = owners::take(&mut object);
    decode::check(call, &mut object, Unknown::of(call)?)?;
    if let Some(namespace) = call.namespace.as_deref() {
        namespace_takes_objects(api, call, namespace).await?;
    }
    defaults::apply_defaults(resource.rules(), &mut object);
    custom::apply_defaults(resource, &mut object);
    strategy::fold(resource, &mut object);
    if is_applied {
        owners::put(&mut object, given.unwrap_or(Value::Null));
    } else {
        owners::begin(api, call, &mut object, given)?;
    }
    let review = Review { call, operation: Operation::Create, old: None, dry_run: call.query.dry_run()? };
    admission::mutate(api, review, &mut object).await?;
    strategy::prepare_create(api, call, &mut object).await?;
    let generated = meta(&object, "name").is_empty();
    for _ in 0..GENERATE_TRIES {
        if generated {
            let name = names::generate_name(meta(&object, "generateName"), fastrand::u64(..));
            meta_mut(&mut object).insert("name".to_owned(), json!(name));
        }
        strategy::complete(resource, &mut object);
        match store_new(api, review, &mut object).await {
            Err(error) if generated && error.reason == "AlreadyExists" => {}
            other => return other.map(|object| (StatusCode::CREATED, object)),
        }
    }
    Err(ApiError::already_exists(&resource.group, &resource.plural, meta(&object, "name")))
}

/// Stores the object unless it is refused. Taken from the caller only when it is stored.
async fn store_new(api: &Api, review: Review<'_>, object: &mut Value) -> Result<Value, ApiError> {
    let call = review.call;
    let resource = &call.resource;
    let name = meta(object, "name");
    let causes = custom::and_faults(validate::validate_create(resource.rules(), object), resource, object, None);
    if !causes.is_empty() {
        return Err(ApiError::invalid(&resource.group, &resource.kind, name, causes));
    }
    admission::validate(api, review, object).await?;
    let key = resource.key(call.namespace.as_deref(), name);
    if review.dry_run {
        return Ok(object.clone());
    }
    let bytes = match to_bytes(api, resource, object).await {
        Ok(bytes) => bytes,
        Err(error) => {
            admission::undo(api, review, object).await;
            return Err(error);
        }
    };
    match strategy::put(api, resource, &key, bytes, Expect::Absent).await {
        Ok(entry) => written(api, resource, object.take(), &entry).await,
        Err(error) => {
            admission::undo(api, review, object).await;
            Err(match error {
                StoreError::Conflict { .. } => {
                    ApiError::already_exists(&resource.group, &resource.plural, meta(object, "name"))
                }
                error => store_error(call, error),
            })
        }
    }
}

/// Kind, version, namespace and name of the body against those of the URL; fills in what the server keeps.
fn check_envelope(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    let resource = &call.resource;
    check_kind(resource, object)?;
    let given = meta(object, "namespace");
    match call.namespace.as_deref() {
        Some(namespace) if !given.is_empty() && given != namespace => {
            return Err(ApiError::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request: {given:?} and {namespace:?}"
            )));
        }
        Some(namespace) => {
            let namespace = json!(namespace);
            meta_mut(object).insert("namespace".to_owned(), namespace);
        }
        None if resource.namespaced => {
            return Err(ApiError::bad_request("an empty namespace may not be set during creation"));
        }
        None => {
            meta_mut(object).remove("namespace");
        }
    }
    if meta(object, "name").is_empty() && meta(object, "generateName").is_empty() {
        let cause = mainstay_model::status::FieldError::new(
            "metadata.name",
            mainstay_model::status::FieldErrorKind::Required,
            "name or generateName is required",
        );
        return Err(ApiError::invalid(&resource.group, &resource.kind, "", vec![cause]));
    }
    if !meta(object, "resourceVersion").is_empty() {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let metadata = meta_mut(object);
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        metadata.remove(field);
    }
    Ok(())
}

/// The body's `apiVersion` and `kind`, filled in when missing.
///
/// # Errors
/// 400 when they are another resource's.
pub(super) fn check_kind(resource: &Resource, object: &mut Value) -> Result<(), ApiError> {
    for (field, expected) in [("apiVersion", resource.api_version()), ("kind", resource.kind.clone())] {
        match object[field].as_str() {
            None | Some("") => object[field] = json!(expected),
            Some(given) if given == expected => {}
            Some(given) => {
                return Err(ApiError::bad_request(format!(
                    "the {field} in the data ({given}) does not match the expected {field} ({expected})"
                )));
            }
        }
    }
    Ok(())
}

/// New objects need a namespace that exists and is not being deleted.
async fn namespace_takes_objects(api: &Api, call: &Call, namespace: &str) -> Result<(), ApiError> {
    let namespaces = known("Namespace");
    let (entry, _) =
        api.store.get(&namespaces.key(None, namespace), None).await.map_err(|error| store_error(call, error))?;
    let entry = entry.ok_or_else(|| ApiError::not_found("", "namespaces", namespace))?;
    // Events about what is being deleted may still be told.
    if names::is_being_deleted(&decode_entry(namespaces, &entry)) && call.resource.kind != "Event" {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        return Err(ApiError::forbidden(&call.resource.group, &call.resource.plural, call.name(), &why));
    }
    Ok(())
}
