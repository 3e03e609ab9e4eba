//! The Kubernetes `Status` object as the error of every API call.
//!
//! Role: one type, [`ApiError`], carries the HTTP code, the machine-readable reason and the causes that
//! clients such as `kubectl` and client-go look at; it becomes JSON in exactly one place, [`ApiError::to_status`].
//!
//! Source: <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/>.

use std::fmt;

use serde_json::{Value, json};

/// What is wrong with one field; the names are those of `StatusCause.reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldErrorKind {
    /// A value that must be given is missing.
    Required,
    /// The value breaks a rule.
    Invalid,
    /// The value is not one of the allowed ones.
    NotSupported,
    /// The value stands twice where it must be unique.
    Duplicate,
    /// The field may not be set, or not be changed, here.
    Forbidden,
    /// The value is longer than its limit.
    TooLong,
    /// The list has more items than its limit.
    TooMany,
    /// The value names something that does not exist.
    NotFound,
    /// The JSON type is not the field's type.
    TypeInvalid,
}

impl FieldErrorKind {
    /// The word in `StatusCause.reason`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::NotFound => "FieldValueNotFound",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Duplicate => "Duplicate value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::NotFound => "Not found",
        }
    }
}

/// One field's fault: where, what kind, and what to do about it.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// Path from the object's root, for example `spec.containers[0].name`.
    pub field: String,
    /// What sort of fault it is.
    pub kind: FieldErrorKind,
    /// The sentence for people.
    pub detail: String,
    /// The value that was refused, where showing it helps.
    pub value: Option<Value>,
}

impl FieldError {
    /// A fault without a value to show.
    pub fn new(field: impl Into<String>, kind: FieldErrorKind, detail: impl Into<String>) -> Self {
        Self { field: field.into(), kind, detail: detail.into(), value: None }
    }

    /// A fault that shows the value that was refused.
    pub fn with_value(field: impl Into<String>, kind: FieldErrorKind, value: Value, detail: impl Into<String>) -> Self {
        Self { field: field.into(), kind, detail: detail.into(), value: Some(value) }
    }

    /// The message of the cause: without the field's name, as Kubernetes writes it.
    fn message(&self) -> String {
        let mut text = self.kind.words().to_owned();
        if let Some(value) = &self.value {
            text = format!("{text}: {value}");
        }
        if !self.detail.is_empty() {
            text = format!("{text}: {}", self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message())
    }
}

/// The API group and kind (or plural resource) and name an error is about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct About {
    /// API group, empty for core.
    pub group: String,
    /// Plural resource (`pods`) or, for invalid objects, the kind (`Pod`).
    pub kind: String,
    /// Object name; may be empty.
    pub name: String,
}

/// An API error: what an HTTP response, and the client's message, are made from.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// `Status.reason`.
    pub reason: &'static str,
    /// `Status.message`.
    pub message: String,
    /// Which object it is about.
    pub about: Option<Box<About>>,
    /// The faults of single fields.
    pub causes: Vec<FieldError>,
    /// Causes that are no faults of values, for example who else owns a field.
    pub other_causes: Vec<Cause>,
    /// After how many seconds it is worth trying again.
    pub retry_after_seconds: Option<u32>,
    /// Where a list may go on that cannot be given as one state any more; boxed, for it is rare and errors are moved often.
    pub continue_token: Option<Box<ContinueToken>>,
}

/// What the next page of a list is asked for with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContinueToken(pub String);

/// One of `Status.details.causes` that is no fault of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// A word for programs, for example `DisruptionBudget`.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
    /// Path of the field it is about; may be empty.
    pub field: String,
}

impl ApiError {
    /// An error with the given code, reason and message, about nothing in particular.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            about: None,
            causes: Vec::new(),
            other_causes: Vec::new(),
            retry_after_seconds: None,
            continue_token: None,
        }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.about = Some(Box::new(About { group: group.to_owned(), kind: kind.to_owned(), name: name.to_owned() }));
        self
    }

    /// 404 for an object.
    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} \"{name}\" not found", qualified(plural, group)))
            .about(group, plural, name)
    }

    /// 404 for a path that names no resource.
    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// 409: an object of this name exists already.
    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", qualified(plural, group)))
            .about(group, plural, name)
    }

    /// 409: the object is not in the state the caller assumed.
    pub fn conflict(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let what = qualified(plural, group);
        Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {what} \"{name}\": {why}"))
            .about(group, plural, name)
    }

    /// 409 for an update whose `resourceVersion` is not the stored one.
    pub fn modified(group: &str, plural: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, plural, name, why)
    }

    /// 422: the object breaks the rules of its kind.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<FieldError>) -> Self {
        let list = causes.iter().map(ToString::to_string).collect::<Vec<_>>();
        let text = if list.len() == 1 { list[0].clone() } else { format!("[{}]", list.join(", ")) };
        let what = qualified(kind, group);
        let mut error =
            Self::new(422, "Invalid", format!("{what} \"{name}\" is invalid: {text}")).about(group, kind, name);
        error.causes = causes;
        error
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401: the caller could not be identified.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403: the caller may not do this.
    pub fn forbidden(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let what = qualified(plural, group);
        let named = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
        Self::new(403, "Forbidden", format!("{what}{named} is forbidden: {why}")).about(group, plural, name)
    }

    /// 405: the resource does not have this verb.
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    /// 410: the revision asked for is no longer kept; list again.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413: the body is over the limit.
    pub fn too_large(limit_bytes: usize) -> Self {
        let text = format!("the request is larger than the limit of {limit_bytes} bytes");
        Self::new(413, "RequestEntityTooLarge", text)
    }

    /// 415: the body's media type is not understood.
    pub fn unsupported_media_type(got: &str, supported: &[&str]) -> Self {
        let text = format!(
            "the body of the request was in an unknown format - {got:?}; accepted media types include: {}",
            supported.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", text)
    }

    /// 429: too much at once; try again later.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self { retry_after_seconds: Some(retry_after_seconds), ..Self::new(429, "TooManyRequests", message) }
    }

    /// 500: something failed on this side.
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {message}"))
    }

    /// 503: not able to serve this now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { retry_after_seconds: Some(1), ..Self::new(503, "ServiceUnavailable", message) }
    }

    /// The `Status` object sent to the client.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(token) = &self.continue_token {
            status["metadata"]["continue"] = json!(token.0);
        }
        let mut details = serde_json::Map::new();
        if let Some(about) = &self.about {
            for (key, value) in [("name", &about.name), ("group", &about.group), ("kind", &about.kind)] {
                if !value.is_empty() {
                    details.insert(key.to_owned(), json!(value));
                }
            }
        }
        let entry = |reason: &str, message: String, field: &str| {
            let mut cause = json!({"reason": reason, "message": message});
            if !field.is_empty() {
                cause["field"] = json!(field);
            }
            cause
        };
        let faults = self.causes.iter().map(|c| entry(c.kind.reason(), c.message(), &c.field));
        let others = self.other_causes.iter().map(|c| entry(c.reason, c.message.clone(), &c.field));
        let causes: Vec<Value> = faults.chain(others).collect();
        if !causes.is_empty() {
            details.insert("causes".to_owned(), json!(causes));
        }
        if let Some(seconds) = self.retry_after_seconds {
            details.insert("retryAfterSeconds".to_owned(), json!(seconds));
        }
        if !details.is_empty() {
            status["details"] = Value::Object(details);
        }
        status
    }
}

/// `deployments.apps`, or just `pods` in the core group.
fn qualified(resource: &str, group: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_object_names_field_and_value() {
        let cause = FieldError::with_value(
            "spec.replicas",
            FieldErrorKind::Invalid,
            json!(-1),
            "must be greater than or equal to 0",
        );
        let error = ApiError::invalid("apps", "Deployment", "web", vec![cause]);
        assert_eq!(
            error.message,
            "Deployment.apps \"web\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
        let status = error.to_status();
        assert_eq!(status["details"]["causes"][0]["reason"], "FieldValueInvalid");
        assert_eq!(status["details"]["group"], "apps");
        assert_eq!(status["code"], 422);
    }

    #[test]
    fn not_found_reads_as_kubectl_prints_it() {
        assert_eq!(ApiError::not_found("", "pods", "a").message, "pods \"a\" not found");
        assert_eq!(ApiError::not_found("apps", "deployments", "a").message, "deployments.apps \"a\" not found");
    }
}
