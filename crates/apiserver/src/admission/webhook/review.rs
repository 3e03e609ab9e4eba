//! The AdmissionReview that a webhook gets, and what its answer means. Pure.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/#request>.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mainstay_model::meta;
use mainstay_model::resource::Subresource;
use mainstay_model::status::ApiError;
use serde_json::{Value, json};

use super::rules::word;
use crate::admission::{Operation, Review};

/// The question, about the object in `version`.
pub(in crate::admission) fn question(review: Review<'_>, object: &Value, version: &str, uid: &str) -> Value {
    let (call, resource) = (review.call, &review.call.resource);
    let (kind, group_version) = match call.subresource.as_deref() {
        Some(part) => {
            let shape = Subresource::of(part, resource);
            (shape.kind, shape.group_version)
        }
        None => (resource.kind.clone(), resource.api_version()),
    };
    let (group, kind_version) = group_version.split_once('/').unwrap_or(("", &group_version));
    let request_kind = json!({"group": group, "version": kind_version, "kind": kind});
    let mut sent_kind = request_kind.clone();
    let in_version = |object: &Value| {
        let mut object = object.clone();
        if version != resource.version && object.is_object() {
            object["apiVersion"] = json!(format!("{}/{version}", resource.group));
        }
        object
    };
    if version != resource.version {
        sent_kind["version"] = json!(version);
    }
    let name = Some(call.name()).filter(|name| !name.is_empty()).unwrap_or(meta::name(object));
    let plural = |version: &str| json!({"group": resource.group, "version": version, "resource": resource.plural});
    let mut request = json!({
        "uid": uid, "kind": sent_kind, "resource": plural(version), "requestKind": request_kind,
        "requestResource": plural(&resource.version), "operation": word(review.operation),
        "userInfo": call.user.to_value(), "dryRun": review.dry_run, "object": in_version(object),
        "oldObject": review.old.map(in_version), "options": options(review),
    });
    for (field, value) in [
        ("name", name),
        ("namespace", call.namespace.as_deref().unwrap_or_default()),
        ("subResource", call.subresource.as_deref().unwrap_or_default()),
        ("requestSubResource", call.subresource.as_deref().unwrap_or_default()),
    ] {
        if !value.is_empty() {
            request[field] = json!(value);
        }
    }
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request})
}

fn options(review: Review<'_>) -> Value {
    let kind = match review.operation {
        Operation::Create => "CreateOptions",
        Operation::Update if review.call.verb.word() == "patch" => "PatchOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => return Value::Null,
    };
    let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    if review.dry_run {
        options["dryRun"] = json!(["All"]);
    }
    if let Some(manager) = review.call.query.get("fieldManager") {
        options["fieldManager"] = json!(manager);
    }
    options
}

/// What a webhook said, when what it said can be understood.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// `None` when the write is allowed.
    pub(super) refusal: Option<ApiError>,
    /// A JSON patch (RFC 6902).
    pub(super) patch: Option<Value>,
    pub(super) warnings: Vec<String>,
    pub(super) annotations: Vec<(String, String)>,
}

/// Reads an answer to the question `uid` of the webhook `name`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn answer(name: &str, uid: &str, review: &Value) -> Result<Answer, String> {
    let response = &review["response"];
    if review["kind"] != "AdmissionReview" || !response.is_object() {
        return Err("the answer is not an AdmissionReview with a response".to_owned());
    }
    if response["uid"] != uid {
        return Err(format!("expected response.uid={uid:?}, got {}", response["uid"]));
    }
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let annotations = response["auditAnnotations"].as_object().into_iter().flatten();
    let mut answer = Answer {
        warnings: texts(&response["warnings"]),
        annotations: annotations
            .filter_map(|(key, value)| Some((format!("{name}/{key}"), value.as_str()?.to_owned())))
            .collect(),
        ..Answer::default()
    };
    if response["allowed"] != true {
        answer.refusal = Some(refusal(name, &response["status"]));
        return Ok(answer);
    }
    if let Some(patch) = response["patch"].as_str().filter(|patch| !patch.is_empty()) {
        if response["patchType"] != "JSONPatch" {
            return Err(format!("unsupported patch type {}", response["patchType"]));
        }
        let bytes = STANDARD.decode(patch).map_err(|error| format!("the patch is not base64: {error}"))?;
        answer.patch = Some(serde_json::from_slice(&bytes).map_err(|error| format!("the patch is not JSON: {error}"))?);
    }
    Ok(answer)
}

/// Reasons that clients know.
const REASONS: &[&str] = &[
    "AlreadyExists",
    "BadRequest",
    "Conflict",
    "Expired",
    "Forbidden",
    "Gone",
    "InternalError",
    "Invalid",
    "MethodNotAllowed",
    "NotAcceptable",
    "NotFound",
    "RequestEntityTooLarge",
    "ServerTimeout",
    "ServiceUnavailable",
    "Timeout",
    "TooManyRequests",
    "Unauthorized",
    "UnsupportedMediaType",
];

fn refusal(name: &str, status: &Value) -> ApiError {
    let text = |field: &str| status[field].as_str().unwrap_or_default();
    let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(0);
    let code = if (400..600).contains(&code) { code } else { 400 };
    let reason = REASONS.iter().find(|reason| **reason == text("reason")).copied().unwrap_or_default();
    let denied = format!("admission webhook {name:?} denied the request");
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    ApiError::new(code, reason, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn said(response: &Value) -> Result<Answer, String> {
        answer("hook", "u", &json!({"kind": "AdmissionReview", "response": response}))
    }

    #[test]
    fn refusals_name_the_webhook() {
        let refused =
            |status: Value| said(&json!({"uid": "u", "allowed": false, "status": status})).unwrap().refusal.unwrap();
        let plain = refused(Value::Null);
        assert_eq!(
            (plain.code, plain.message.as_str()),
            (400, "admission webhook \"hook\" denied the request without explanation")
        );
        let full = refused(json!({"code": 403, "reason": "Forbidden", "message": "no"}));
        assert_eq!((full.code, full.reason), (403, "Forbidden"));
        assert_eq!(full.message, "admission webhook \"hook\" denied the request: no");
        assert_eq!(refused(json!({"code": 200})).code, 400);
    }

    #[test]
    fn answers_must_be_to_the_question() {
        assert!(said(&json!({"uid": "v", "allowed": true})).is_err());
        assert!(said(&json!({"uid": "u", "allowed": true, "patch": "W10="})).is_err());
        let patched =
            said(&json!({"uid": "u", "allowed": true, "patchType": "JSONPatch", "patch": "W10=", "warnings": ["w"],
            "auditAnnotations": {"k": "v"}}));
        let patched = patched.unwrap();
        assert_eq!(patched.patch, Some(json!([])));
        assert_eq!((patched.warnings[0].as_str(), patched.annotations[0].0.as_str()), ("w", "hook/k"));
    }
}
