//! Impersonation: acting as somebody else, where a role allows the verb `impersonate`.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#user-impersonation>.

use http::HeaderMap;
use mainstay_model::status::ApiError;

use super::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, User, account_groups, account_of};
use crate::api::Api;
use crate::authz::{self, Attributes};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA_PREFIX: &str = "impersonate-extra-";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// The user that `caller` wants to be; `None` without such headers.
///
/// # Errors
/// 403 when a role for one of the attributes is missing, 400 for attributes without a user.
pub(crate) async fn impersonate(api: &Api, caller: &User, headers: &HeaderMap) -> Result<Option<User>, ApiError> {
    let Some(wanted) = wanted(headers)? else { return Ok(None) };
    for attributes in asked(&wanted) {
        authz::authorise(api, caller, &attributes).await?;
    }
    Ok(Some(complete(wanted)))
}

/// What the headers say.
fn wanted(headers: &HeaderMap) -> Result<Option<User>, ApiError> {
    let all = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    };
    let first = |name: &str| all(name).into_iter().next().unwrap_or_default();
    let mut user = User { name: first(USER), uid: first(UID), groups: all(GROUP), ..User::default() };
    for header in headers.keys().map(http::HeaderName::as_str).filter(|name| name.starts_with(EXTRA_PREFIX)) {
        let key = &header[EXTRA_PREFIX.len()..];
        // Keys that are no header names come percent-encoded.
        let key = crate::request::percent_decoded(key).unwrap_or_else(|| key.to_owned());
        user.extra.entry(key).or_default().extend(all(header));
    }
    if !user.name.is_empty() {
        return Ok(Some(user));
    }
    if user.uid.is_empty() && user.groups.is_empty() && user.extra.is_empty() {
        return Ok(None);
    }
    let what = format!("requested {user:?} without impersonating a user");
    tracing::debug!(what);
    Err(ApiError::bad_request("impersonating a group, uid or extra attribute needs a user, too: add Impersonate-User"))
}

/// The permissions it takes, one for each attribute.
fn asked(wanted: &User) -> Vec<Attributes> {
    let on = |group: &str, namespace: &str, resource: &str, subresource: &str, name: &str| Attributes {
        subresource: subresource.to_owned(),
        ..Attributes::on("impersonate", group, resource, namespace, name)
    };
    let mut all = vec![match account_of(&wanted.name) {
        Some((namespace, name)) => on("", namespace, "serviceaccounts", "", name),
        None => on("", "", "users", "", &wanted.name),
    }];
    all.extend(wanted.groups.iter().map(|group| on("", "", "groups", "", group)));
    if !wanted.uid.is_empty() {
        all.push(on(AUTHENTICATION, "", "uids", "", &wanted.uid));
    }
    for (key, values) in &wanted.extra {
        all.extend(values.iter().map(|value| on(AUTHENTICATION, "", "userextras", key, value)));
    }
    all
}

/// The groups that come with a name.
fn complete(mut user: User) -> User {
    if let Some((namespace, _)) = account_of(&user.name)
        && user.groups.is_empty()
    {
        user.groups = account_groups(namespace);
    }
    let own = if user.name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    if !user.is_in(AUTHENTICATED) && !user.is_in(UNAUTHENTICATED) {
        user.groups.push(own.to_owned());
    }
    user
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn what_it_takes_to_be_somebody() {
        let headers = headers(&[(USER, "jane"), (GROUP, "a"), (GROUP, "b"), ("impersonate-extra-scopes", "view")]);
        let jane = wanted(&headers).unwrap().unwrap();
        let asked: Vec<String> =
            asked(&jane).iter().map(|a| format!("{}/{} {}", a.resource, a.subresource, a.name)).collect();
        assert_eq!(asked, ["users/ jane", "groups/ a", "groups/ b", "userextras/scopes view"]);
        assert_eq!(complete(jane).groups, ["a", "b", "system:authenticated"]);
    }

    #[test]
    fn an_account_brings_its_groups() {
        let account = wanted(&headers(&[(USER, "system:serviceaccount:shop:cart")])).unwrap().unwrap();
        assert_eq!(
            (asked(&account)[0].resource.as_str(), asked(&account)[0].namespace.as_str()),
            ("serviceaccounts", "shop")
        );
        assert!(complete(account).is_in("system:serviceaccounts:shop"));
        assert!(wanted(&headers(&[(GROUP, "a")])).is_err());
        assert!(wanted(&headers(&[])).unwrap().is_none());
    }
}
