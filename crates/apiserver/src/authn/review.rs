//! Reviews about identity: whose a token is, and who I am.
//!
//! Source: <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/>.

use mainstay_model::status::ApiError;
use serde_json::{Value, json};

use super::{Refusal, by_token};
use crate::api::Api;
use crate::request::Call;

/// Answers a TokenReview.
pub(crate) async fn token_review(api: &Api, mut review: Value) -> Result<Value, ApiError> {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences: Vec<String> = review["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    review["status"] = match by_token(api, token, &audiences).await {
        Ok(identity) => {
            let mut status = json!({"authenticated": true, "user": identity.user.to_value()});
            if !identity.audiences.is_empty() {
                status["audiences"] = json!(identity.audiences);
            }
            status
        }
        Err(Refusal::Invalid(reason)) => {
            json!({"user": {}, "error": format!("[invalid bearer token, {reason}]")})
        }
        Err(Refusal::Failed(error)) => return Err(error),
    };
    Ok(review)
}

/// Answers a SelfSubjectReview: what `kubectl auth whoami` shows.
pub(crate) fn self_subject_review(api: &Api, call: &Call) -> Value {
    json!({
        "kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"creationTimestamp": mainstay_model::meta::format_time(api.now())},
        "status": {"userInfo": call.user.to_value()},
    })
}
