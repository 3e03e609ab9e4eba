//! Who owns which fields of what is written: `metadata.managedFields`, on every write of every kind.
//!
//! The rules are in `mainstay_model::apply`; here is what they need to know of a request, and where in a write they act:
//! after the defaults, which belong to whoever did not give a value, and before admission and what the server itself adds,
//! which belong to nobody.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/server-side-apply/>.

use mainstay_model::apply::{self, Reach, Write};
use mainstay_model::status::{ApiError, FieldError, FieldErrorKind};
use serde_json::Value;

use super::object::meta_mut;
use crate::api::Api;
use crate::request::{Call, Verb};

/// How a change of an object changes its owners.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Owners<'a> {
    /// Whoever writes owns what is different now, through this subresource; empty for the object itself.
    Track(&'a str),
    /// The new object comes with its owners: it was applied.
    Applied,
    /// They stay.
    Keep,
}

impl<'a> Owners<'a> {
    /// How a write to the object or the subresource of `call` does.
    pub(super) fn of(call: &'a Call) -> Self {
        match call.subresource.as_deref() {
            Some("binding") => Self::Keep,
            subresource => Self::Track(subresource.unwrap_or_default()),
        }
    }
}

/// Calls `act` with the description of a write.
pub(super) fn with_write<T>(api: &Api, call: &Call, subresource: &str, act: impl FnOnce(&Write<'_>) -> T) -> T {
    let reach = match subresource {
        "" if call.resource.has_subresource("status") => Reach::Without("status"),
        "status" => Reach::Only(&["status"]),
        "scale" => Reach::Only(&["spec", "replicas"]),
        "approval" => Reach::Only(&["status", "conditions"]),
        "ephemeralcontainers" => Reach::Only(&["spec", "ephemeralContainers"]),
        "finalize" => Reach::Only(&["spec", "finalizers"]),
        "resize" => Reach::Only(&["spec"]),
        _ => Reach::Whole,
    };
    act(&Write {
        view: call.resource.view(),
        manager: call.manager(),
        api_version: &call.resource.api_version(),
        subresource,
        reach,
        now: api.now(),
    })
}

/// Takes `managedFields` out of an object.
pub(super) fn take(object: &mut Value) -> Option<Value> {
    meta_mut(object).remove("managedFields")
}

/// Sets `managedFields`, or takes them out when they are null.
pub(super) fn put(object: &mut Value, fields: Value) {
    if fields.is_null() {
        take(object);
    } else {
        meta_mut(object).insert("managedFields".to_owned(), fields);
    }
}

/// The owners of a new object; `given` is what the client sent as `managedFields`.
///
/// # Errors
/// 422 when that breaks the rules.
pub(super) fn begin(api: &Api, call: &Call, object: &mut Value, given: Option<Value>) -> Result<(), ApiError> {
    check(call, given.as_ref())?;
    let fields = with_write(api, call, "", |write| apply::update(write, None, object, given));
    put(object, fields);
    Ok(())
}

/// The owners of a changed object; `given` is what came as `managedFields` of `new`.
///
/// # Errors
/// 422 when that breaks the rules.
pub(super) fn pass_on(
    api: &Api,
    call: &Call,
    owners: Owners<'_>,
    old: &Value,
    new: &mut Value,
    given: Option<Value>,
) -> Result<(), ApiError> {
    let stored = &old["metadata"]["managedFields"];
    let fields = match owners {
        Owners::Keep => stored.clone(),
        Owners::Applied => given.unwrap_or(Value::Null),
        Owners::Track(subresource) => {
            if subresource.is_empty() && given.as_ref().is_some_and(|given| given != stored) {
                check(call, given.as_ref())?;
            }
            with_write(api, call, subresource, |write| apply::update(write, Some(old), new, given))
        }
    };
    put(new, fields);
    apply::settle(old, new);
    Ok(())
}

fn check(call: &Call, given: Option<&Value>) -> Result<(), ApiError> {
    let errors = given.map(apply::validate).unwrap_or_default();
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(&call.resource.group, &call.resource.kind, call.name(), errors))
}

/// Checks the query parameters that name the manager.
///
/// # Errors
/// 422 for a name that breaks the rules, an apply without one, and `force` with anything but an apply.
pub(super) fn check_options(call: &Call, is_apply: bool) -> Result<(), ApiError> {
    let manager = call.query.get("fieldManager");
    let mut errors = apply::check_manager(manager.unwrap_or_default(), "fieldManager");
    if is_apply && manager.is_none() {
        errors.push(FieldError::new("fieldManager", FieldErrorKind::Required, "is required for apply patch"));
    }
    if !is_apply && call.verb == Verb::Patch && call.query.get("force").is_some() {
        errors.push(FieldError::new("force", FieldErrorKind::Forbidden, "may not be specified for non-apply patch"));
    }
    if errors.is_empty() {
        return Ok(());
    }
    let kind = match call.verb {
        Verb::Create => "CreateOptions",
        Verb::Patch => "PatchOptions",
        _ => "UpdateOptions",
    };
    Err(ApiError::invalid("meta.k8s.io", kind, "", errors))
}
