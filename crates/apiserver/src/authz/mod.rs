//! Authorisation: whether a user may do what he asks for.
//!
//! Flow: `system:masters` may do everything; a node may do what its own pods need ([`node`]); for everybody, a rule of a
//! role bound to the user or to one of the user's groups must allow it ([`policies`]). Nothing ever forbids what one of
//! them allows.
//!
//! Guarantees: a decision reads memory only; a change of a role is in force when its writer has the answer.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/authorization/>,
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/>.

mod aggregate;
mod attributes;
mod defaults;
mod escalation;
mod node;
mod policies;
mod review;

use std::sync::Arc;

use mainstay_model::status::ApiError;
use mainstay_store::{Revision, Store};

pub(crate) use attributes::Attributes;
pub(crate) use defaults::reconcile as reconcile_defaults;
pub(crate) use escalation::check as check_escalation;
pub(crate) use review::{access_review, rules_review};

use crate::api::Api;
use crate::authn::{MASTERS, User};
use crate::follow::Follower;
use node::NodePods;
use policies::Policies;

/// The views that decisions are made from.
pub(crate) struct Authoriser {
    policies: Follower<Policies>,
    pods: Follower<NodePods>,
}

/// What came of a question; with a reason for people, which may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    Allowed(String),
    Refused(String),
}

impl Authoriser {
    /// Views over `store`.
    pub(crate) fn new(store: &Arc<dyn Store>) -> Self {
        Self {
            policies: Follower::new(store.clone(), policies::PREFIX),
            pods: Follower::new(store.clone(), node::PREFIX),
        }
    }

    /// Waits until a change is in the views.
    pub(crate) async fn settle(&self, key: &str, revision: Revision) {
        self.policies.settle(key, revision).await;
        self.pods.settle(key, revision).await;
    }
}

/// Whether `user` may do it.
///
/// # Errors
/// 500 when roles could not be read.
pub(crate) async fn decide(api: &Api, user: &User, asked: &Attributes) -> Result<Decision, ApiError> {
    if user.is_in(MASTERS) {
        return Ok(Decision::Allowed(String::new()));
    }
    let mut reasons = Vec::new();
    if let Some(node) = user.node() {
        match node::decide(api, node, asked).await? {
            Decision::Refused(reason) => reasons.push(reason),
            allowed @ Decision::Allowed(_) => return Ok(allowed),
        }
    }
    match api.authoriser.policies.read(|policies| policies.decide(user, asked)).await? {
        Ok(reason) => return Ok(Decision::Allowed(reason)),
        Err(errors) if errors.is_empty() => {}
        Err(errors) if errors.len() == 1 => reasons.push(format!("RBAC: {}", errors[0])),
        Err(errors) => reasons.push(format!("RBAC: [{}]", errors.join(", "))),
    }
    reasons.retain(|reason| !reason.is_empty());
    Ok(Decision::Refused(reasons.join("\n")))
}

/// [`decide`], as a result: the reason, which may be empty.
///
/// # Errors
/// 403 in kube-apiserver's words.
pub(crate) async fn authorise(api: &Api, user: &User, asked: &Attributes) -> Result<String, ApiError> {
    match decide(api, user, asked).await? {
        Decision::Allowed(reason) => Ok(reason),
        Decision::Refused(reason) => Err(asked.forbidden(user, &reason)),
    }
}

#[cfg(test)]
mod tests;
