//! Who calls, and whether they may.
//!
//! Authentication: client certificates; the subject's common name is the user, its organisations are the groups
//! (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/>). The TLS layer has verified the chain.
//!
//! Authorisation is a short fixed table until RBAC objects arrive: `system:masters` may do everything; a node
//! (`system:nodes`) may do what a kubelet does; anyone may ask for health and version.

use mainstay_model::status::ApiError;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::request::{Call, Verb};

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User name, for example `system:node:node-1`.
    pub name: String,
    /// Groups, for example `system:masters`.
    pub groups: Vec<String>,
}

impl User {
    /// A part of the server itself, which may do everything.
    pub fn internal(name: &str) -> Self {
        Self { name: name.to_owned(), groups: vec!["system:masters".to_owned()] }
    }

    /// The user a verified client certificate (DER) stands for; `None` when it cannot be read.
    pub(crate) fn from_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
        Some(Self { name, groups })
    }

    /// Somebody without credentials.
    pub(crate) fn anonymous() -> Self {
        Self { name: "system:anonymous".to_owned(), groups: vec!["system:unauthenticated".to_owned()] }
    }

    fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// What a node may write: its own registration, its heartbeat, its pods' states, and events about them.
const NODE_WRITES: &[(&str, &[Verb])] = &[
    ("nodes", &[Verb::Create, Verb::Update, Verb::Patch]),
    ("pods", &[Verb::Create, Verb::Update, Verb::Patch, Verb::Delete]),
    ("leases", &[Verb::Create, Verb::Update, Verb::Patch]),
    ("events", &[Verb::Create, Verb::Update, Verb::Patch]),
];

/// Whether `user` may make this call.
///
/// # Errors
/// 401 without a user, 403 when the table does not allow it.
pub(crate) fn authorise(user: Option<&User>, call: &Call) -> Result<(), ApiError> {
    let user = user.ok_or_else(ApiError::unauthorized)?;
    if user.is_in("system:masters") {
        return Ok(());
    }
    if user.is_in("system:nodes") {
        let may_write =
            NODE_WRITES.iter().any(|(plural, verbs)| *plural == call.resource.plural && verbs.contains(&call.verb));
        if !call.verb.mutates() || may_write {
            return Ok(());
        }
    }
    let scope = call
        .namespace
        .as_ref()
        .map_or_else(|| "at the cluster scope".to_owned(), |namespace| format!("in the namespace {namespace:?}"));
    let (resource, verb) = (&call.resource, call.verb.word());
    let why = format!(
        "User {:?} cannot {verb} resource {:?} in API group {:?} {scope}",
        user.name, resource.plural, resource.group
    );
    Err(ApiError::forbidden(&resource.group, &resource.plural, call.name(), &why))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::request::{Target, parse};

    fn may(group: &str, method: &str, path: &str) -> bool {
        let user = User { name: "u".to_owned(), groups: vec![group.to_owned()] };
        let catalogue = crate::registry::Registry::default().now();
        let Target::Resource(call) = parse(&method.parse().unwrap(), &path.parse().unwrap(), &catalogue).unwrap()
        else {
            panic!()
        };
        authorise(Some(&user), &call).is_ok()
    }

    #[test]
    fn nodes_may_do_what_a_kubelet_does() {
        assert!(may("system:nodes", "GET", "/api/v1/namespaces/a/secrets/s"));
        assert!(may("system:nodes", "PATCH", "/api/v1/namespaces/a/pods/p/status"));
        assert!(!may("system:nodes", "DELETE", "/apis/apps/v1/namespaces/a/deployments/d"));
        assert!(!may("strangers", "GET", "/api/v1/pods"));
        assert!(may("system:masters", "DELETE", "/api/v1/namespaces/a"));
    }
}
