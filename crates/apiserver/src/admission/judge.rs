//! The authorizer of expressions: what the caller of a request may do besides.

use std::fmt;

use futures::FutureExt as _;
use mainstay_custom::cel::{Asked, Judge};

use crate::api::Api;
use crate::authn::User;
use crate::authz::{self, Attributes, Decision};

/// Answers for the caller of a request, from the roles in memory.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) api: &'a Api,
    pub(super) user: &'a User,
}

impl fmt::Debug for Caller<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("user", &self.user.name).finish_non_exhaustive()
    }
}

impl Judge for Caller<'_> {
    fn decide(&self, asked: &Asked) -> Result<(bool, String), String> {
        let attributes = match &asked.path {
            Some(path) => Attributes::at(&asked.verb, path),
            None => Attributes {
                subresource: asked.subresource.clone(),
                field_selector: asked.field_selector.clone(),
                ..Attributes::on(&asked.verb, &asked.group, &asked.resource, &asked.namespace, &asked.name)
            },
        };
        let account = asked
            .service_account
            .as_ref()
            .map(|(namespace, name)| User::service_account(namespace, name, "").authenticated());
        let decided = authz::decide(self.api, account.as_ref().unwrap_or(self.user), &attributes);
        // Roles are in memory since the request itself was authorised; only a node's volumes must be read, and an
        // expression cannot wait for that.
        match decided.now_or_never() {
            Some(Ok(Decision::Allowed(reason))) => Ok((true, reason)),
            Some(Ok(Decision::Refused(reason))) => Ok((false, reason)),
            Some(Err(error)) => Err(error.message),
            None => Err("the decision would take too long".to_owned()),
        }
    }
}
