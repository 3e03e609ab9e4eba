//! PATCH with an applied configuration: server-side apply, which also creates.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/server-side-apply/>.

use http::StatusCode;
use mainstay_model::apply;
use mainstay_model::status::ApiError;
use serde_json::{Value, json};

use super::create::create_applied;
use super::object::{meta, meta_mut};
use super::owners::{self, Owners};
use super::update::change_as;
use crate::api::Api;
use crate::authz::{self, Attributes};
use crate::decode::{Unknown, read_json, read_yaml, yaml_faults};
use crate::request::{Call, Verb};

/// The media type of applied configurations.
pub(super) const MEDIA_TYPE: &str = "application/apply-patch+yaml";

/// How often an apply that finds no object, and then one when it creates it, begins again.
const TRIES: usize = 8;

/// Applies the configuration in `body` to the object or to its subresource; a missing object is created.
pub(super) async fn apply(api: &Api, call: &Call, body: &[u8]) -> Result<(StatusCode, Value), ApiError> {
    let applied = configuration(call, body)?;
    check_kind(&applied, &call.resource.kind)?;
    let subresource = call.subresource.as_deref().unwrap_or_default();
    let on = |live: Option<&Value>| {
        owners::with_write(api, call, subresource, |write| {
            apply::apply(write, live, &applied, call.query.flag("force")).map_err(|error| ApiError::from(&error))
        })
    };
    for _ in 0..TRIES {
        match change_as(api, call, Owners::Applied, |old| on(Some(old))).await {
            Err(error) if subresource.is_empty() && error == call.not_found() => {}
            other => return other.map(|object| (StatusCode::OK, object)),
        }
        may_create(api, call).await?;
        if !meta(&applied, "uid").is_empty() {
            let why = format!(
                "uid mismatch: the provided object specified uid {}, and no existing object was found",
                meta(&applied, "uid")
            );
            return Err(ApiError::conflict(&call.resource.group, &call.resource.plural, call.name(), &why));
        }
        let creation = Call { verb: Verb::Create, ..call.clone() };
        match create_applied(api, &creation, on(None)?).await {
            Err(error) if error.reason == "AlreadyExists" => {}
            other => return other,
        }
    }
    Err(ApiError::modified(&call.resource.group, &call.resource.plural, call.name()))
}

/// Who applies what is not there must be allowed to create it.
async fn may_create(api: &Api, call: &Call) -> Result<(), ApiError> {
    let resource = &call.resource;
    let namespace = call.namespace.as_deref().unwrap_or_default();
    let asked = Attributes::on("create", &resource.group, &resource.plural, namespace, call.name());
    authz::authorise(api, &call.user, &asked).await.map(drop)
}

/// Reads the body, YAML or its subset JSON, and fits it to the URL.
pub(super) fn configuration(call: &Call, body: &[u8]) -> Result<Value, ApiError> {
    let bad = |error: &dyn std::fmt::Display| ApiError::bad_request(format!("error decoding YAML: {error}"));
    let is_json = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let as_json = if is_json { read_json(body).ok() } else { None };
    let (mut applied, repeated) = match as_json {
        Some((value, paths)) if paths.is_empty() => (value, paths),
        // Applied JSON is read as YAML, and its faults are told with their lines.
        Some((value, paths)) => (value, read_yaml(body).map_or(paths, |(_, lines)| lines)),
        None => read_yaml(body).map_err(|error| bad(&error))?,
    };
    if !repeated.is_empty() {
        match Unknown::of(call)? {
            Unknown::Refuse => {
                let why =
                    format!("error strict decoding YAML: error converting YAML to JSON: {}", yaml_faults(&repeated));
                return Err(ApiError::bad_request(why));
            }
            wish => wish.tell(call, &repeated)?,
        }
    }
    if !applied.is_object() {
        return Err(bad(&"the configuration is not an object"));
    }
    for (field, of_url) in [("name", call.name.as_deref()), ("namespace", call.namespace.as_deref())] {
        let Some(of_url) = of_url else { continue };
        match meta(&applied, field).to_owned() {
            given if given.is_empty() => drop(meta_mut(&mut applied).insert(field.to_owned(), json!(of_url))),
            given if given == of_url => {}
            given => {
                return Err(ApiError::bad_request(format!(
                    "the {field} of the object ({given}) does not match the {field} on the URL ({of_url})"
                )));
            }
        }
    }
    Ok(applied)
}

/// Refuses a configuration of another kind than the URL's.
pub(super) fn check_kind(applied: &Value, kind: &str) -> Result<(), ApiError> {
    match applied["kind"].as_str().unwrap_or_default() {
        "" => Err(ApiError::bad_request("error decoding YAML: Object 'Kind' is missing in the applied configuration")),
        given if given == kind => Ok(()),
        given => Err(ApiError::bad_request(format!(
            "the kind in the data ({given}) does not match the expected kind ({kind})"
        ))),
    }
}
