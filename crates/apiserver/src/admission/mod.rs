//! Admission: what may change or refuse a write after it is authorised and before it is stored.
//!
//! Flow of a write: decode → defaults → [`mutate`] → what the server itself keeps → validation → [`validate`] → store.
//! Both see a [`Review`] of the write. A plugin is one file here, called from one line in the two functions, in the order
//! of kube-apiserver: webhooks see what the plugins made, and quotas count what the webhooks left.
//!
//! Guarantees: what the server writes by itself (bindings, figures of quotas) passes the same way, as the server.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/>.

mod account;
mod account_secret;
mod certificates;
mod claim_resize;
mod default_class;
mod judge;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod node_taints;
mod pod_security;
mod policy;
mod priority;
mod quota;
mod runtime_class;
mod storage_protection;
mod tolerations;
mod webhook;

use mainstay_model::meta;
use mainstay_model::status::ApiError;
use serde_json::Value;

use crate::api::Api;
use crate::authz;
use crate::limits::DEPTH_MAX;
use crate::request::Call;

pub(crate) use policy::Policies;
pub(crate) use webhook::{Bundles, ask_webhook};

/// What a write does to an object, in the words of admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
    /// A subresource that opens a connection: exec, attach, port-forward, proxy.
    Connect,
}

/// A write under review. The caller, the resource and the query are in `call`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Review<'a> {
    pub(crate) call: &'a Call,
    pub(crate) operation: Operation,
    /// The stored object that is changed or deleted.
    pub(crate) old: Option<&'a Value>,
    pub(crate) dry_run: bool,
}

impl Review<'_> {
    /// The kind that is written, where it is the object itself and not a part of it.
    fn whole(&self) -> Option<&str> {
        self.call.subresource.is_none().then(|| self.call.resource.rules())
    }
}

/// Lets the plugins change `object`; for a deletion it is null.
///
/// # Errors
/// What the first plugin that refuses says.
pub(crate) async fn mutate(api: &Api, review: Review<'_>, object: &mut Value) -> Result<(), ApiError> {
    if review.operation == Operation::Create {
        match review.whole() {
            Some("Pod") => {
                limit_ranger::mutate(api, review, object).await?;
                account::mutate(api, review, object).await?;
                priority::mutate(api, review, object).await?;
                if let Some(seconds) = api.settings.toleration_seconds {
                    tolerations::mutate(seconds, object);
                }
                runtime_class::mutate(api, review, object).await?;
            }
            Some("Node") => node_taints::mutate(object),
            Some("Secret") => account_secret::mutate(api, review, object).await?,
            Some(kind @ ("PersistentVolumeClaim" | "PersistentVolume")) => {
                if kind == "PersistentVolumeClaim" {
                    default_class::storage(api, object).await?;
                }
                storage_protection::mutate(kind, object);
            }
            Some("Ingress") => default_class::ingress(api, object).await?,
            _ => {}
        }
    }
    // A binding is the scheduler's word about where, and no change of the pod that anybody could review.
    if review.call.subresource.as_deref() == Some("binding") {
        return Ok(());
    }
    let changed = change(api, review, object).await?;
    if changed && review.operation == Operation::Create && review.whole() == Some("Pod") {
        // What webhooks added, such as sidecars, gets what every container gets.
        limit_ranger::mutate(api, review, object).await?;
        account::mutate(api, review, object).await?;
    }
    Ok(())
}

/// Policies, webhooks, and once more those of both that asked to see what came after them; answers whether anything
/// changed.
async fn change(api: &Api, review: Review<'_>, object: &mut Value) -> Result<bool, ApiError> {
    let (policies, by_policies) = policy::mutate(api, review, object).await?;
    let (webhooks, by_webhooks) = webhook::mutate(api, review, object).await?;
    let again = policy::again(api, review, object, policies).await?;
    let and_again = webhook::again(api, review, object, webhooks).await?;
    Ok(by_policies || by_webhooks || again || and_again)
}

/// Asks about a subresource that opens a connection, with its options as the object.
///
/// # Errors
/// What the first webhook that refuses says.
pub(crate) async fn connect(api: &Api, call: &Call, mut options: Value) -> Result<(), ApiError> {
    let review = Review { call, operation: Operation::Connect, old: None, dry_run: false };
    change(api, review, &mut options).await?;
    policy::validate(api, review, &options).await?;
    webhook::validate(api, review, &options).await
}

/// Asks the plugins whether `object` may be stored, or with [`Operation::Delete`] `review.old` be deleted.
///
/// # Errors
/// What the first plugin that refuses says.
pub(crate) async fn validate(api: &Api, review: Review<'_>, object: &Value) -> Result<(), ApiError> {
    check_depth(object)?;
    node_restriction::validate(api, review, object).await?;
    match (review.operation, review.call.resource.rules()) {
        (Operation::Delete, "Namespace") if review.whole().is_some() => namespace_lifecycle::validate(review)?,
        (Operation::Create | Operation::Update, kind) => {
            authz::check_escalation(api, review.call, review.old, object).await?;
            written(api, review, kind, object).await?;
        }
        _ => {}
    }
    if review.operation == Operation::Delete {
        change(api, review, &mut Value::Null).await?;
    }
    if review.call.subresource.as_deref() != Some("binding") {
        policy::validate(api, review, object).await?;
        webhook::validate(api, review, object).await?;
    }
    quota::validate(api, review, object).await
}

/// The plugins for what is created or changed.
async fn written(api: &Api, review: Review<'_>, kind: &str, object: &Value) -> Result<(), ApiError> {
    let (whole, new) = (review.whole().is_some(), review.operation == Operation::Create);
    match kind {
        "Pod" if whole && new => limit_ranger::validate(api, review, object).await?,
        "Pod" if review.call.subresource.as_deref() == Some("resize") => {
            limit_ranger::validate(api, review, object).await?;
        }
        "PersistentVolumeClaim" if whole => {
            limit_ranger::validate(api, review, object).await?;
            claim_resize::validate(api, review, object).await?;
        }
        "PriorityClass" => priority::validate(api, review, object).await?,
        "CertificateSigningRequest" => certificates::validate(api, review, object).await?,
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => webhook::check(review, object)?,
        "Namespace" if whole => pod_security::validate_namespace(api, review, object).await?,
        _ => {}
    }
    if pod_security::concerns(&review.call.resource) && (whole || kind == "Pod") {
        pod_security::validate(api, review, object).await?;
    }
    Ok(())
}

/// What is read back from the store must not be deeper than a reader goes.
fn check_depth(object: &Value) -> Result<(), ApiError> {
    let mut open = vec![(object, 1)];
    while let Some((value, depth)) = open.pop() {
        if depth > DEPTH_MAX {
            return Err(ApiError::bad_request(format!("the object is nested more than {DEPTH_MAX} levels deep")));
        }
        match value {
            Value::Object(map) => open.extend(map.values().map(|value| (value, depth + 1))),
            Value::Array(list) => open.extend(list.iter().map(|value| (value, depth + 1))),
            _ => {}
        }
    }
    Ok(())
}

/// Takes back what [`validate`] did for an object that was not stored after all.
pub(crate) async fn undo(api: &Api, review: Review<'_>, object: &Value) {
    if let Err(error) = quota::undo(api, review, object).await {
        tracing::warn!(%error.message, "could not give back to a quota; its controller will");
    }
}

/// 403 about the object of a review, in kube-apiserver's words.
fn forbidden(review: Review<'_>, object: &Value, why: &str) -> ApiError {
    let resource = &review.call.resource;
    let generated = || meta::str_at(object, "metadata.generateName");
    let name = Some(meta::name(object)).filter(|name| !name.is_empty()).or_else(generated);
    ApiError::forbidden(&resource.group, &resource.plural, name.unwrap_or(review.call.name()), why)
}

/// One sentence as it is, several in brackets.
fn one_or_list(sentences: &[String]) -> String {
    match sentences {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

#[cfg(test)]
mod tests;
