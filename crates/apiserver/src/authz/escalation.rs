//! Nobody grants what he does not have.
//!
//! Who writes a role must hold every permission in it, or the verb `escalate` on roles; who binds somebody to a role must
//! hold every permission of that role, or the verb `bind` on it.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#privilege-escalation-prevention-and-bootstrapping>.

use mainstay_model::meta;
use mainstay_model::rbac::{Rule, quoted, uncovered};
use mainstay_model::status::ApiError;
use serde_json::Value;

use super::policies::{Role, role_key};
use super::{Attributes, Decision, decide};
use crate::api::Api;
use crate::authn::User;
use crate::request::Call;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks the write of a role or binding; other kinds pass.
///
/// # Errors
/// 403 with the permissions that are missing, 404 when a binding's role does not exist.
pub(crate) async fn check(api: &Api, call: &Call, old: Option<&Value>, new: &Value) -> Result<(), ApiError> {
    if call.resource.group != GROUP || call.subresource.is_some() {
        return Ok(());
    }
    let unchanged = |field: &str| old.is_some_and(|old| old[field] == new[field]);
    match call.resource.plural.as_str() {
        "roles" | "clusterroles" if unchanged("rules") && unchanged("aggregationRule") => Ok(()),
        "roles" | "clusterroles" => role(api, call, new).await,
        "rolebindings" | "clusterrolebindings" if unchanged("roleRef") && unchanged("subjects") => Ok(()),
        "rolebindings" | "clusterrolebindings" => binding(api, call, new).await,
        _ => Ok(()),
    }
}

async fn may(
    api: &Api,
    call: &Call,
    verb: &str,
    resource: &str,
    namespace: &str,
    name: &str,
) -> Result<bool, ApiError> {
    let asked = Attributes::on(verb, GROUP, resource, namespace, name);
    Ok(matches!(decide(api, &call.user, &asked).await?, Decision::Allowed(_)))
}

fn refuse(call: &Call, object: &Value, why: &str) -> ApiError {
    ApiError::forbidden(GROUP, &call.resource.plural, meta::name(object), why)
}

async fn role(api: &Api, call: &Call, object: &Value) -> Result<(), ApiError> {
    let (resource, namespace) = (&call.resource.plural, call.namespace.as_deref().unwrap_or_default());
    if may(api, call, "escalate", resource, namespace, meta::name(object)).await? {
        return Ok(());
    }
    if object["aggregationRule"].is_object() {
        let all = |field: &str| vec![field.to_owned()];
        let everything = [
            Rule { verbs: all("*"), groups: all("*"), resources: all("*"), ..Rule::default() },
            Rule { verbs: all("*"), urls: all("*"), ..Rule::default() },
        ];
        if holds(api, &call.user, namespace, &everything).await?.is_err() {
            return Err(refuse(call, object, "must have cluster-admin privileges to use an aggregationRule"));
        }
    }
    let held = holds(api, &call.user, namespace, &Rule::of_role(object)).await?;
    held.map_err(|why| refuse(call, object, &why))
}

async fn binding(api: &Api, call: &Call, object: &Value) -> Result<(), ApiError> {
    let namespace = call.namespace.as_deref().unwrap_or_default();
    let role = &object["roleRef"];
    let name = role["name"].as_str().unwrap_or_default();
    let cluster = role["kind"] == "ClusterRole";
    let (resource, scope) = if cluster { ("clusterroles", None) } else { ("roles", Some(namespace)) };
    if may(api, call, "bind", resource, namespace, name).await? {
        return Ok(());
    }
    let found = api.authoriser.policies.read(|policies| policies.role(&role_key(scope, name))).await?;
    let found = found.ok_or_else(|| ApiError::not_found(GROUP, resource, name))?;
    let Role { rules, .. } = &*found;
    holds(api, &call.user, namespace, rules).await?.map_err(|why| refuse(call, object, &why))
}

/// Whether a user has all of these rules; if not, the sentence about the missing ones.
async fn holds(api: &Api, user: &User, namespace: &str, wanted: &[Rule]) -> Result<Result<(), String>, ApiError> {
    let (owned, errors) = api.authoriser.policies.read(|policies| policies.rules_of(user, namespace)).await?;
    let missing = match uncovered(&owned, wanted) {
        Ok(missing) if missing.is_empty() => return Ok(Ok(())),
        Ok(missing) => missing,
        Err(size) => return Ok(Err(format!("its rules stand for {size} single permissions, too many to check"))),
    };
    let mut lines: Vec<String> = missing.iter().map(ToString::to_string).collect();
    lines.sort();
    let mut why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted(&user.groups),
        lines.join("\n")
    );
    if !errors.is_empty() {
        why = format!("{why}; resolution errors: [{}]", errors.join(", "));
    }
    Ok(Err(why))
}
