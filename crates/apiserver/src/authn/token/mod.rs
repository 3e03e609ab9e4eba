//! ServiceAccount tokens: signed statements about an account that live objects must confirm.
//!
//! Flow of a check: signature (remembered for tokens seen before) → issuer, times, audience → the account, and the pod,
//! secret or node the token is bound to, must still be there with the same uid.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/>.

mod key;
mod request;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use mainstay_model::meta;
use mainstay_model::status::ApiError;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

pub use key::{KeyError, TokenKeys};
pub(crate) use request::{legacy_token, request};

use super::{CREDENTIAL_ID, Identity, Refusal, User};
use crate::api::Api;
use crate::rest;

/// The issuer of tokens that are kept in Secrets.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// Verified tokens that are remembered; more begin anew.
const REMEMBERED_MAX: usize = 1024;
/// How long after its deletion began an object still counts, in seconds: its finalizers may need the token.
const DELETION_LEEWAY_SECONDS: i64 = 60;

/// The keys, and the tokens whose signature was checked already.
pub(crate) struct Tokens {
    keys: Arc<TokenKeys>,
    verified: Mutex<HashMap<[u8; 32], Arc<Value>>>,
}

impl Tokens {
    pub(crate) fn new(keys: Arc<TokenKeys>) -> Self {
        Self { keys, verified: Mutex::default() }
    }

    /// The claims of a token with a good signature.
    fn claims(&self, token: &str) -> Option<Arc<Value>> {
        let mut id = [0; 32];
        id.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let known = self.verified.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        if known.is_some() {
            return known;
        }
        let claims = Arc::new(self.keys.verify(token)?);
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= REMEMBERED_MAX {
            verified.clear();
        }
        verified.insert(id, claims.clone());
        Some(claims)
    }
}

/// Whose token it is, if it is good for one of `audiences` (this server's, when there are none).
pub(super) async fn authenticate(api: &Api, token: &str, audiences: &[String]) -> Result<Identity, Refusal> {
    let invalid = |reason: &str| Refusal::Invalid(reason.to_owned());
    let tokens = api.tokens.as_ref().ok_or_else(|| invalid("this server knows no tokens"))?;
    let claims = tokens.claims(token).ok_or_else(|| invalid("no key verifies its signature"))?;
    let asked = if audiences.is_empty() { &tokens.keys.audiences } else { audiences };
    if claims["iss"] == LEGACY_ISSUER {
        let user = by_secret(api, &claims, token).await?;
        let own = asked.iter().filter(|asked| tokens.keys.audiences.contains(asked)).cloned().collect();
        return Ok(Identity { user, audiences: own });
    }
    let audiences = check_claims(&claims, &tokens.keys.issuer, asked, api.now()).map_err(Refusal::Invalid)?;
    let user = by_objects(api, &claims).await?;
    Ok(Identity { user, audiences })
}

/// Issuer, times and audience; answers the audiences that token and caller have in common.
fn check_claims(claims: &Value, issuer: &str, asked: &[String], now: Timestamp) -> Result<Vec<String>, String> {
    if claims["iss"] != issuer {
        return Err(format!("its issuer is {}", claims["iss"]));
    }
    let now = now.as_second();
    let Some(expires) = claims["exp"].as_i64() else { return Err("it has no end".to_owned()) };
    if expires <= now {
        return Err("token has expired".to_owned());
    }
    if claims["nbf"].as_i64().is_some_and(|begins| begins > now + 10) {
        return Err("it is not valid yet".to_owned());
    }
    let one = |value: &Value| value.as_str().map(str::to_owned);
    let given: Vec<String> = match &claims["aud"] {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        other => one(other).into_iter().collect(),
    };
    let common: Vec<String> = asked.iter().filter(|asked| given.contains(asked)).cloned().collect();
    if common.is_empty() {
        return Err(format!("token audiences {given:?} is invalid for the target audiences {asked:?}"));
    }
    Ok(common)
}

/// The account of a token, if it and what the token is bound to are there.
async fn by_objects(api: &Api, claims: &Value) -> Result<User, Refusal> {
    let own = &claims["kubernetes.io"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let namespace = text(&own["namespace"]);
    let (name, uid) = (text(&own["serviceaccount"]["name"]), text(&own["serviceaccount"]["uid"]));
    let mut user = User::service_account(&namespace, &name, &uid);
    if name.is_empty() || claims["sub"].as_str() != Some(&user.name) {
        return Err(Refusal::Invalid("its subject is not its account".to_owned()));
    }
    must_live(api, "ServiceAccount", Some(&namespace), &own["serviceaccount"]).await?;
    for (claim, kind) in [("pod", "Pod"), ("secret", "Secret")] {
        if own[claim].is_object() {
            must_live(api, kind, Some(&namespace), &own[claim]).await?;
        }
    }
    // With a pod, the node only says where the pod was; the pod goes with it.
    if own["node"].is_object() && !own["pod"].is_object() {
        must_live(api, "Node", None, &own["node"]).await?;
    }
    let mut note = |key: &str, value: String| {
        if !value.is_empty() {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        }
    };
    for (key, claim, field) in [
        ("pod-name", "pod", "name"),
        ("pod-uid", "pod", "uid"),
        ("node-name", "node", "name"),
        ("node-uid", "node", "uid"),
    ] {
        note(key, text(&own[claim][field]));
    }
    if let Some(id) = claims["jti"].as_str() {
        user.extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("JTI={id}")]);
    }
    Ok(user)
}

/// Refuses when the object is gone, on its way for a while, or another one of the same name.
async fn must_live(api: &Api, kind: &str, namespace: Option<&str>, bound: &Value) -> Result<Value, Refusal> {
    let name = bound["name"].as_str().unwrap_or_default();
    let gone = |how: &str| Refusal::Invalid(format!("{kind} {}/{name} {how}", namespace.unwrap_or_default()));
    let object = rest::find(api, kind, namespace, name).await?.ok_or_else(|| gone("has been deleted"))?;
    let leeway = jiff::SignedDuration::from_secs(DELETION_LEEWAY_SECONDS);
    if meta::deletion_timestamp(&object).is_some_and(|since| since + leeway < api.now()) {
        return Err(gone("is being deleted"));
    }
    if bound["uid"].as_str().is_some_and(|uid| uid != meta::uid(&object)) {
        return Err(gone("is another one now"));
    }
    Ok(object)
}

/// The account of a token that a Secret holds; it is good as long as the Secret holds it.
async fn by_secret(api: &Api, claims: &Value, token: &str) -> Result<User, Refusal> {
    use base64::Engine as _;
    let text = |field: &str| claims[format!("kubernetes.io/serviceaccount/{field}")].as_str().unwrap_or_default();
    let (namespace, name, uid) = (text("namespace"), text("service-account.name"), text("service-account.uid"));
    let secret = must_live(api, "Secret", Some(namespace), &json!({"name": text("secret.name")})).await?;
    let kept = base64::engine::general_purpose::STANDARD.decode(secret["data"]["token"].as_str().unwrap_or_default());
    if kept.ok().as_deref() != Some(token.as_bytes()) {
        return Err(Refusal::Invalid("its Secret holds another token".to_owned()));
    }
    must_live(api, "ServiceAccount", Some(namespace), &json!({"name": name, "uid": uid})).await?;
    Ok(User::service_account(namespace, name, uid))
}

/// What others need to verify tokens by themselves: the OIDC discovery document and the keys, with their media type.
///
/// # Errors
/// 404 for other paths, and without keys.
pub(crate) fn discovery_document(api: &Api, path: &str) -> Result<(&'static str, Value), ApiError> {
    let keys = &api.tokens.as_ref().ok_or_else(ApiError::no_such_path)?.keys;
    match path.trim_end_matches('/') {
        "/openid/v1/jwks" => Ok(("application/jwk-set+json", keys.web_keys())),
        "/.well-known/openid-configuration" => {
            let document = json!({
                "issuer": keys.issuer,
                "jwks_uri": format!("https://{}/openid/v1/jwks", api.settings.advertise),
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": keys.algorithms(),
            });
            Ok(("application/json", document))
        }
        _ => Err(ApiError::no_such_path()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_must_hold_now() {
        let now = Timestamp::from_second(1_000).unwrap_or_default();
        let claims = json!({"iss": "i", "aud": ["a", "b"], "exp": 1_001, "nbf": 900});
        let check = |claims: &Value, asked: &str| check_claims(claims, "i", &[asked.to_owned()], now);
        assert_eq!(check(&claims, "b"), Ok(vec!["b".to_owned()]));
        assert!(check(&claims, "c").is_err());
        for (field, value) in [("iss", json!("j")), ("exp", json!(1_000)), ("exp", Value::Null), ("nbf", json!(1_011))]
        {
            let mut wrong = claims.clone();
            wrong[field] = value;
            assert!(check(&wrong, "b").is_err(), "{field}");
        }
    }
}
