//! Authentication: who calls.
//!
//! Flow: a verified client certificate or the part of the server that calls → else a bearer token (a ServiceAccount's
//! JWT, or a bootstrap token) → else nobody, `system:anonymous`. Then the impersonation headers, for those who may.
//!
//! Guarantees: a token that is given and not valid is refused (401), never treated as none; why it is not valid is
//! logged here and not told.
//!
//! Deliberately absent: OIDC, static passwords, request headers of a front proxy.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/authentication/>.

mod bootstrap_token;
mod impersonate;
mod review;
mod token;
mod user;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, header};
use mainstay_model::status::ApiError;

pub(crate) use impersonate::impersonate;
pub(crate) use review::{self_subject_review, token_review};
pub use token::{KeyError, TokenKeys};
pub(crate) use token::{Tokens, discovery_document, legacy_token, request as token_request};
pub use user::User;
pub(crate) use user::{
    ANONYMOUS, AUTHENTICATED, CREDENTIAL_ID, MASTERS, NODES, UNAUTHENTICATED, account_groups, account_of, account_user,
};

use crate::api::Api;

/// The longest bearer token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Browsers can send a token only in the name of a WebSocket protocol.
const PROTOCOL_PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// Finds out who calls.
///
/// # Errors
/// 401 for a token that is not valid.
pub(crate) async fn authenticate(api: &Api, connection: Option<User>, headers: &HeaderMap) -> Result<User, ApiError> {
    if let Some(user) = connection {
        return Ok(user.authenticated());
    }
    let Some(token) = bearer(headers) else { return Ok(User::anonymous()) };
    match by_token(api, &token, &[]).await {
        Ok(identity) => Ok(identity.user),
        Err(Refusal::Invalid(reason)) => {
            tracing::info!(reason, "a bearer token was refused");
            Err(ApiError::unauthorized())
        }
        Err(Refusal::Failed(error)) => Err(error),
    }
}

/// Whose token it is.
struct Identity {
    user: User,
    /// For whom the token is good, of those asked for; empty for tokens that do not say.
    audiences: Vec<String>,
}

/// Why a token was not accepted.
enum Refusal {
    /// It is not valid, for this reason.
    Invalid(String),
    /// It could not be found out.
    Failed(ApiError),
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

/// The owner of a bearer token that is good for one of `audiences`, or without any, for this server.
async fn by_token(api: &Api, token: &str, audiences: &[String]) -> Result<Identity, Refusal> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Refusal::Invalid("it is too long".to_owned()));
    }
    if let Some((id, secret)) = bootstrap_token::parts(token) {
        let user = bootstrap_token::authenticate(api, id, secret).await?;
        return Ok(Identity { user, audiences: Vec::new() });
    }
    token::authenticate(api, token, audiences).await
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let from_header = given.and_then(|text| {
        let (scheme, token) = text.trim().split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
    });
    from_header.or_else(|| from_protocol(headers)).filter(|token| !token.is_empty())
}

fn from_protocol(headers: &HeaderMap) -> Option<String> {
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let encoded = protocols.flat_map(|text| text.split(',')).find_map(|p| p.trim().strip_prefix(PROTOCOL_PREFIX))?;
    String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok()
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod header_tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn where_a_token_may_stand() {
        let with = |name: header::HeaderName, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            bearer(&headers)
        };
        assert_eq!(with(header::AUTHORIZATION, "bearer  abc ").as_deref(), Some("abc"));
        assert_eq!(with(header::AUTHORIZATION, "Basic abc"), None);
        let protocol = "base64url.bearer.authorization.k8s.io.YWJj, v5.channel.k8s.io";
        assert_eq!(with(header::SEC_WEBSOCKET_PROTOCOL, protocol).as_deref(), Some("abc"));
    }
}
