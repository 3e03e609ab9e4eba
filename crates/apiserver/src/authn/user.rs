//! Who calls: name, uid, groups and extra attributes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Everybody who showed who he is.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
/// Everybody else.
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";
/// May do everything, whatever the roles say.
pub(crate) const MASTERS: &str = "system:masters";
/// The nodes' agents.
pub(crate) const NODES: &str = "system:nodes";
/// The name of who did not show who he is.
pub(crate) const ANONYMOUS: &str = "system:anonymous";
/// The extra attribute that says by which credential somebody came.
pub(crate) const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

const NODE_PREFIX: &str = "system:node:";
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// A caller. Source: <https://kubernetes.io/docs/reference/access-authn-authz/authentication/>.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User name, for example `system:node:node-1`.
    pub name: String,
    /// What tells two users of the same name apart; may be empty.
    pub uid: String,
    /// Groups, for example `system:masters`.
    pub groups: Vec<String>,
    /// Further attributes, for example the pod that a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A user by name and groups.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        Self { name: name.to_owned(), groups, ..Self::default() }
    }

    /// A part of the server itself, which may do everything.
    pub fn internal(name: &str) -> Self {
        Self::new(name, &[MASTERS, AUTHENTICATED])
    }

    /// The user a verified client certificate (DER) stands for; `None` when it cannot be read or names nobody.
    pub(crate) fn from_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok().filter(|name| !name.is_empty())?.to_owned();
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
        let mut id = String::with_capacity(64);
        for byte in digest(&SHA256, der).as_ref() {
            // Writing to a text cannot fail.
            let _ = write!(id, "{byte:02x}");
        }
        let extra = BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={id}")])]);
        Some(Self { name, groups, extra, uid: String::new() }.authenticated())
    }

    /// Somebody without credentials.
    pub(crate) fn anonymous() -> Self {
        Self::new(ANONYMOUS, &[UNAUTHENTICATED])
    }

    /// A ServiceAccount.
    pub(crate) fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let groups = account_groups(namespace);
        Self { name: account_user(namespace, name), uid: uid.to_owned(), groups, ..Self::default() }.authenticated()
    }

    /// The same, in the group of everybody who showed who he is.
    pub(crate) fn authenticated(mut self) -> Self {
        if !self.is_in(AUTHENTICATED) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
    }

    pub(crate) fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node whose agent this is.
    pub(crate) fn node(&self) -> Option<&str> {
        self.name.strip_prefix(NODE_PREFIX).filter(|name| !name.is_empty() && self.is_in(NODES))
    }

    /// `UserInfo`, as reviews, audit and webhooks show it.
    pub(crate) fn to_value(&self) -> Value {
        let mut info = json!({"username": self.name});
        if !self.uid.is_empty() {
            info["uid"] = json!(self.uid);
        }
        if !self.groups.is_empty() {
            info["groups"] = json!(self.groups);
        }
        if !self.extra.is_empty() {
            info["extra"] = json!(self.extra);
        }
        info
    }
}

/// The user name of a ServiceAccount.
pub(crate) fn account_user(namespace: &str, name: &str) -> String {
    format!("{ACCOUNT_PREFIX}{namespace}:{name}")
}

/// The groups of the ServiceAccounts of a namespace.
pub(crate) fn account_groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
}

/// Namespace and name of the ServiceAccount that a user name stands for.
pub(crate) fn account_of(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix(ACCOUNT_PREFIX)?
        .split_once(':')
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_have_names_and_groups() {
        let user = User::service_account("shop", "cart", "u");
        assert_eq!(user.name, "system:serviceaccount:shop:cart");
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"]);
        assert_eq!(account_of(&user.name), Some(("shop", "cart")));
        assert_eq!(account_of("system:serviceaccount:shop:"), None);
    }

    #[test]
    fn a_node_needs_its_group() {
        assert_eq!(User::new("system:node:a", &[NODES]).node(), Some("a"));
        assert_eq!(User::new("system:node:a", &[]).node(), None);
    }
}
