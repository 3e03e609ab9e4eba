//! TokenRequest: a token for a ServiceAccount, for a time, an audience, and as long as an object lives.
//!
//! Source: <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-request-v1/>.

use jiff::{SignedDuration, Timestamp};
use mainstay_model::meta::{self, format_time};
use mainstay_model::status::{ApiError, FieldError, FieldErrorKind};
use serde_json::{Value, json};

use super::{LEGACY_ISSUER, Tokens};
use crate::api::Api;
use crate::authn::account_user;
use crate::request::Call;
use crate::rest;

const DEFAULT_SECONDS: i64 = 3600;
const SECONDS_MIN: i64 = 600;
const SECONDS_MAX: i64 = 1 << 32;
/// What the token volume of a pod asks for. Old programs read their token only once, so such a token lives a year; from
/// `warnafter` on its use is a sign of such a program.
const VOLUME_SECONDS: i64 = 3607;
const YEAR_SECONDS: i64 = 365 * 24 * 3600;

/// Answers POST `serviceaccounts/NAME/token`.
///
/// # Errors
/// 404 for the account or the bound object, 422 for times out of range.
pub(crate) async fn request(api: &Api, call: &Call, mut request: Value) -> Result<Value, ApiError> {
    let tokens = api.tokens.as_ref().ok_or_else(|| ApiError::unavailable("this server has no key for tokens"))?;
    let (namespace, name) = (call.namespace.as_deref().unwrap_or_default(), call.name());
    let given = request["metadata"]["name"].as_str().filter(|given| !given.is_empty());
    if given.is_some_and(|given| given != name) {
        return Err(ApiError::bad_request("the name of the TokenRequest is not the name of the service account"));
    }
    let account = Call { subresource: None, ..call.clone() };
    let account = rest::get(api, &account).await?;
    let seconds = seconds(&request)?;
    request["spec"]["expirationSeconds"] = json!(seconds);
    if request["spec"]["audiences"].as_array().is_none_or(Vec::is_empty) {
        request["spec"]["audiences"] = json!(tokens.keys.audiences);
    }
    let mut own = json!({
        "namespace": namespace,
        "serviceaccount": {"name": name, "uid": account["metadata"]["uid"]},
    });
    bind(api, namespace, name, &request["spec"]["boundObjectRef"], &mut own).await?;
    let now = api.now();
    let is_volume = seconds == VOLUME_SECONDS && own["pod"].is_object();
    let extended = is_volume && request["spec"]["audiences"] == json!(tokens.keys.audiences);
    if extended {
        own["warnafter"] = json!(now.as_second() + seconds);
    }
    let lives = if extended { YEAR_SECONDS } else { seconds };
    let token = sign(tokens, &own, &request["spec"]["audiences"], now, lives)?;
    request["kind"] = json!("TokenRequest");
    request["apiVersion"] = json!("authentication.k8s.io/v1");
    request["metadata"] = json!({"name": name, "namespace": namespace, "creationTimestamp": format_time(now)});
    let expires = now + SignedDuration::from_secs(seconds);
    request["status"] = json!({"token": token, "expirationTimestamp": format_time(expires)});
    Ok(request)
}

fn sign(tokens: &Tokens, own: &Value, audiences: &Value, now: Timestamp, seconds: i64) -> Result<String, ApiError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let claims = json!({
        "aud": audiences, "exp": now.as_second() + seconds, "iat": now.as_second(), "iss": tokens.keys.issuer,
        "jti": rest::new_uid(), "kubernetes.io": own, "nbf": now.as_second(),
        "sub": account_user(&text(&own["namespace"]), &text(&own["serviceaccount"]["name"])),
    });
    tokens.keys.sign(&claims).map_err(ApiError::internal)
}

fn seconds(request: &Value) -> Result<i64, ApiError> {
    let given = &request["spec"]["expirationSeconds"];
    let seconds = if given.is_null() { DEFAULT_SECONDS } else { given.as_i64().unwrap_or(0) };
    let fault = match seconds {
        ..SECONDS_MIN => "may not specify a duration less than 10 minutes",
        _ if seconds > SECONDS_MAX => "may not specify a duration larger than 2^32 seconds",
        _ => return Ok(seconds),
    };
    let cause = FieldError::with_value("spec.expirationSeconds", FieldErrorKind::Invalid, given.clone(), fault);
    Err(ApiError::invalid("authentication.k8s.io", "TokenRequest", "", vec![cause]))
}

/// Adds the object the token is bound to; for a pod, also where it runs.
async fn bind(api: &Api, namespace: &str, account: &str, bound: &Value, own: &mut Value) -> Result<(), ApiError> {
    if bound.is_null() {
        return Ok(());
    }
    let text = |field: &str| bound[field].as_str().unwrap_or_default();
    let (kind, name) = (text("kind"), text("name"));
    let (claim, plural, scope) = match (text("apiVersion"), kind) {
        ("v1" | "", "Pod") => ("pod", "pods", Some(namespace)),
        ("v1" | "", "Secret") => ("secret", "secrets", Some(namespace)),
        ("v1" | "", "Node") => ("node", "nodes", None),
        (version, kind) => {
            return Err(ApiError::bad_request(format!("cannot bind token to object of type {version}, Kind={kind}")));
        }
    };
    let object = rest::find(api, kind, scope, name).await?.ok_or_else(|| ApiError::not_found("", plural, name))?;
    let uid = meta::uid(&object);
    if !text("uid").is_empty() && text("uid") != uid {
        let why = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            text("uid")
        );
        return Err(ApiError::conflict("", plural, name, &why));
    }
    own[claim] = json!({"name": name, "uid": uid});
    if kind != "Pod" {
        return Ok(());
    }
    let runs_as = meta::str_at(&object, "spec.serviceAccountName").unwrap_or("default");
    if runs_as != account {
        return Err(ApiError::bad_request(format!(
            "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
        )));
    }
    if let Some(node) = meta::str_at(&object, "spec.nodeName").filter(|node| !node.is_empty()) {
        own["node"] = json!({"name": node});
        if let Some(object) = rest::find(api, "Node", None, node).await? {
            own["node"]["uid"] = json!(meta::uid(&object));
        }
    }
    Ok(())
}

/// The token for a Secret of type `kubernetes.io/service-account-token`: it has no end but the Secret's.
///
/// # Errors
/// Without a key.
pub(crate) fn legacy_token(api: &Api, secret: &Value, account: &Value) -> Result<String, ApiError> {
    let tokens = api.tokens.as_ref().ok_or_else(|| ApiError::unavailable("this server has no key for tokens"))?;
    let (namespace, name) = (meta::namespace(account).unwrap_or_default(), meta::name(account));
    let claims = json!({
        "iss": LEGACY_ISSUER, "sub": account_user(namespace, name),
        "kubernetes.io/serviceaccount/namespace": namespace,
        "kubernetes.io/serviceaccount/secret.name": meta::name(secret),
        "kubernetes.io/serviceaccount/service-account.name": name,
        "kubernetes.io/serviceaccount/service-account.uid": meta::uid(account),
    });
    tokens.keys.sign(&claims).map_err(ApiError::internal)
}
