//! Admission: what may change or refuse a write after it is authorised and before it is stored.
//!
//! Flow of a write: decode → defaults → [`mutate`] → what the server itself keeps → validation → [`validate`] → store.
//! Both see a [`Review`] of the write. A plugin is one file here, called from one line in the two functions.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/>.

use mainstay_model::status::ApiError;
use serde_json::Value;

use crate::api::Api;
use crate::authz;
use crate::request::Call;

/// What a write does to an object, in the words of admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "plugins that look at it arrive one by one")]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
    /// A subresource that opens a connection: exec, attach, port-forward, proxy.
    Connect,
}

/// A write under review. The caller, the resource and the query are in `call`.
#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "plugins that look at it arrive one by one")]
pub(crate) struct Review<'a> {
    pub(crate) call: &'a Call,
    pub(crate) operation: Operation,
    /// The stored object that is changed or deleted.
    pub(crate) old: Option<&'a Value>,
    pub(crate) dry_run: bool,
}

/// Lets the plugins change `object`; for a deletion it is null.
///
/// # Errors
/// What the first plugin that refuses says.
#[allow(clippy::unused_async)]
pub(crate) async fn mutate(_api: &Api, _review: Review<'_>, _object: &mut Value) -> Result<(), ApiError> {
    Ok(())
}

/// Asks the plugins whether `object` may be stored, or with [`Operation::Delete`] `review.old` be deleted.
///
/// # Errors
/// What the first plugin that refuses says.
pub(crate) async fn validate(api: &Api, review: Review<'_>, object: &Value) -> Result<(), ApiError> {
    if matches!(review.operation, Operation::Create | Operation::Update) {
        authz::check_escalation(api, review.call, review.old, object).await?;
    }
    Ok(())
}
