//! Secrets of type `kubernetes.io/service-account-token`: filled with a token that lives as long as the Secret.
//!
//! Kubernetes' controller does this a moment later; here the Secret is complete when it is created. A Secret with a
//! generated name cannot be, as the token names its Secret, and is refused.
//!
//! Source: <https://kubernetes.io/docs/concepts/configuration/secret/#serviceaccount-token-secrets>.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mainstay_model::meta;
use mainstay_model::status::{ApiError, FieldError, FieldErrorKind};
use serde_json::{Value, json};

use super::Review;
use crate::api::Api;
use crate::{authn, rest};

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

pub(super) async fn mutate(api: &Api, review: Review<'_>, secret: &mut Value) -> Result<(), ApiError> {
    if secret["type"] != TYPE || api.tokens.is_none() {
        return Ok(());
    }
    let refuse = |field: &str, kind: FieldErrorKind, why: &str| {
        ApiError::invalid("", "Secret", meta::name(secret), vec![FieldError::new(field, kind, why)])
    };
    let field = format!("metadata.annotations[{ACCOUNT}]");
    let Some(name) = meta::annotation(secret, ACCOUNT).filter(|name| !name.is_empty()).map(str::to_owned) else {
        return Err(refuse(&field, FieldErrorKind::Required, ""));
    };
    if meta::name(secret).is_empty() {
        return Err(refuse("metadata.name", FieldErrorKind::Required, "a token names its Secret"));
    }
    let namespace = review.call.namespace.as_deref().unwrap_or_default();
    // Without its account the Secret stays empty, as a controller would leave it.
    let Some(account) = rest::find(api, "ServiceAccount", Some(namespace), &name).await? else { return Ok(()) };
    let token = authn::legacy_token(api, secret, &account)?;
    let mut fill = |key: &str, text: &str| {
        if secret["data"][key].is_null() {
            secret["data"][key] = json!(STANDARD.encode(text));
        }
    };
    fill("token", &token);
    fill("namespace", namespace);
    if let Some(authority) = &api.settings.authority {
        fill("ca.crt", authority);
    }
    meta::set_annotation(secret, ACCOUNT_UID, meta::uid(&account));
    Ok(())
}
