//! Bootstrap tokens: how a new node shows that somebody invited it.
//!
//! A token `id.secret` is a Secret `bootstrap-token-<id>` of type `bootstrap.kubernetes.io/token` in `kube-system`.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mainstay_model::meta::{is_being_deleted, parse_time};
use ring::digest::{SHA256, digest};
use serde_json::Value;

use super::{Refusal, User};
use crate::api::Api;
use crate::rest;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";

/// Id and secret, if the text has the form of such a token: six and sixteen small letters and digits.
pub(super) fn parts(token: &str) -> Option<(&str, &str)> {
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    token.split_once('.').filter(|(id, secret)| id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret))
}

/// The user a token stands for.
pub(super) async fn authenticate(api: &Api, id: &str, secret: &str) -> Result<User, Refusal> {
    let invalid = |reason: &str| Err(Refusal::Invalid(format!("bootstrap token {id}: {reason}")));
    let name = format!("bootstrap-token-{id}");
    let Some(object) = rest::find(api, "Secret", Some(NAMESPACE), &name).await? else {
        return invalid("there is no such token");
    };
    let data = |field: &str| text(&object["data"][field]).unwrap_or_default();
    // Digests of equal length take the same time to compare, wherever they differ.
    let same = |a: &str, b: &str| digest(&SHA256, a.as_bytes()).as_ref() == digest(&SHA256, b.as_bytes()).as_ref();
    if object["type"] != TYPE
        || is_being_deleted(&object)
        || data("token-id") != id
        || !same(&data("token-secret"), secret)
    {
        return invalid("it does not match its Secret");
    }
    let expiration = data("expiration");
    if !expiration.is_empty() && parse_time(&expiration).is_none_or(|end| end <= api.now()) {
        return invalid("it has expired");
    }
    if data("usage-bootstrap-authentication") != "true" {
        return invalid("it is not for authentication");
    }
    let mut user = User::new(&format!("system:bootstrap:{id}"), &[GROUP]);
    let more = data("auth-extra-groups");
    let more = more.split(',').map(str::trim).filter(|group| group.starts_with("system:bootstrappers:"));
    user.groups.extend(more.map(str::to_owned));
    Ok(user.authenticated())
}

fn text(value: &Value) -> Option<String> {
    String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_a_token() {
        assert_eq!(parts("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        assert_eq!(parts("abcdef.0123456789abcde"), None);
        assert_eq!(parts("ABCDEF.0123456789abcdef"), None);
    }
}
