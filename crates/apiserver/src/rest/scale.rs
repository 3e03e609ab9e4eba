//! The `scale` subresource: how many replicas, in one shape for every kind that has some.
//!
//! Source: <https://kubernetes.io/docs/reference/kubernetes-api/autoscaling-resources/scale-v1/>.

use mainstay_model::apply::{self as field_owners, Write};
use mainstay_model::patch as patches;
use mainstay_model::selector::LabelSelector;
use mainstay_model::status::{ApiError, FieldError, FieldErrorKind};
use serde_json::{Value, json};

use super::apply;
use super::object::parse_body;
use super::owners::{self, Owners};
use super::update::{change_as, patch_error};
use crate::api::Api;
use crate::custom;
use crate::decode;
use crate::request::{Call, Verb};

/// GET, PUT and PATCH of `scale`.
pub(crate) async fn scale(api: &Api, call: &Call, media_type: &str, body: &[u8]) -> Result<Value, ApiError> {
    let is_apply = media_type == apply::MEDIA_TYPE;
    if call.verb != Verb::Get {
        owners::check_options(call, is_apply)?;
    }
    // The change itself is one of the object's main resource, so that generation and validation apply.
    let whole = Call { subresource: None, ..call.clone() };
    if call.verb == Verb::Get {
        return super::get(api, &whole).await.and_then(|object| view(call, &object));
    }
    if is_apply {
        return apply_scale(api, call, &whole, body).await;
    }
    let given = match call.verb {
        Verb::Update => {
            let mut given = parse_body(media_type, body)?;
            decode::check_subresource(call, &mut given)?;
            given
        }
        // A JSON patch is a list; the other patches are objects like the body of an update.
        _ => serde_json::from_slice(body)
            .map_err(|error| ApiError::bad_request(format!("the patch is not valid JSON: {error}")))?,
    };
    let media_type = media_type.to_owned();
    let object = change_as(api, &whole, Owners::Track("scale"), |old| {
        let mut new = old.clone();
        let wanted = match call.verb {
            Verb::Update => given.clone(),
            _ if media_type == "application/json-patch+json" => {
                patches::json(&view(call, old)?, &given).map_err(|error| patch_error(&error))?
            }
            _ => patches::merge(&view(call, old)?, &given).map_err(|error| patch_error(&error))?,
        };
        let replicas = json!(replicas(call, &wanted)?);
        match call.resource.custom() {
            Some(custom) => custom::set_replicas(custom, &mut new, replicas),
            None => new["spec"]["replicas"] = replicas,
        }
        if let Some(revision) = wanted["metadata"]["resourceVersion"].as_str() {
            new["metadata"]["resourceVersion"] = json!(revision);
        }
        Ok(new)
    })
    .await?;
    view(call, &object)
}

/// An applied Scale is an applied object of which only the number of replicas counts.
async fn apply_scale(api: &Api, call: &Call, whole: &Call, body: &[u8]) -> Result<Value, ApiError> {
    let applied = apply::configuration(call, body)?;
    apply::check_kind(&applied, "Scale")?;
    let (version, metadata) = (whole.resource.api_version(), &applied["metadata"]);
    let mut config = json!({"apiVersion": version, "kind": whole.resource.kind, "metadata": metadata});
    if !applied["spec"]["replicas"].is_null() {
        let replicas = json!(replicas(call, &applied)?);
        match call.resource.custom() {
            Some(custom) => custom::set_replicas(custom, &mut config, replicas),
            None => config["spec"]["replicas"] = replicas,
        }
    }
    let object = change_as(api, whole, Owners::Applied, |old| {
        let applied = |write: &Write<'_>| field_owners::apply(write, Some(old), &config, call.query.flag("force"));
        owners::with_write(api, whole, "scale", applied).map_err(|error| ApiError::from(&error))
    })
    .await?;
    view(call, &object)
}

fn replicas(call: &Call, scale: &Value) -> Result<i64, ApiError> {
    match &scale["spec"]["replicas"] {
        Value::Null => Ok(0),
        value => value.as_i64().filter(|n| *n >= 0).ok_or_else(|| {
            let detail = "must be greater than or equal to 0";
            let cause = FieldError::with_value("spec.replicas", FieldErrorKind::Invalid, value.clone(), detail);
            ApiError::invalid("autoscaling", "Scale", call.name(), vec![cause])
        }),
    }
}

/// The object as a Scale.
///
/// # Errors
/// 500 when a custom object has nothing where its definition says the replicas are.
fn view(call: &Call, object: &Value) -> Result<Value, ApiError> {
    let metadata = &object["metadata"];
    let (wanted, there, selector) = if let Some(custom) = call.resource.custom() {
        custom::scale_of(custom, object)?
    } else {
        let selector = LabelSelector::from_object(&object["spec"]["selector"]).map(|s| s.to_string());
        let count = |part: &str| object[part]["replicas"].as_i64().unwrap_or(0);
        (count("spec"), count("status"), selector.unwrap_or_default())
    };
    Ok(json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": wanted},
        "status": {"replicas": there, "selector": selector},
    }))
}
