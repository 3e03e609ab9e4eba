//! Aggregation: a ClusterRole with an `aggregationRule` has the rules of all ClusterRoles that its selectors choose.
//!
//! Flow: any change of a role wakes the loop; for each collecting role the rules are computed anew and written where they
//! differ. Roles may collect from collecting roles, [`DEPTH_MAX`] deep.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#aggregated-clusterroles>.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;

use futures::future::try_join_all;
use mainstay_model::rbac::Rule;
use mainstay_model::resource::known;
use mainstay_model::status::ApiError;
use serde_json::json;

use super::policies::{Policies, Role};
use crate::api::Api;
use crate::request::{Call, Verb};
use crate::rest;

/// How long to wait after a write that failed.
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// How deep roles may collect from collecting roles.
const DEPTH_MAX: usize = 8;

/// Keeps collecting roles up to date.
pub(crate) async fn aggregate(api: &Api) -> Infallible {
    let mut changes = api.authoriser.policies.changes();
    loop {
        changes.borrow_and_update();
        if let Err(error) = once(api).await {
            tracing::warn!(%error.message, "cannot aggregate the rules of cluster roles; trying again");
            tokio::time::sleep(RETRY).await;
        } else if changes.changed().await.is_err() {
            // The sender lives as long as `api`.
            std::future::pending::<()>().await;
        }
    }
}

/// Brings all collecting roles up to date.
///
/// # Errors
/// When roles cannot be read or written.
pub(crate) async fn once(api: &Api) -> Result<(), ApiError> {
    let plan = api.authoriser.policies.read(plan).await?;
    carry_out(api, plan).await
}

/// The roles whose rules are not what they collect, with the rules they should have.
fn plan(policies: &Policies) -> Vec<(String, Vec<Rule>)> {
    let mut all: Vec<(&str, &Arc<Role>)> = policies.cluster_roles().collect();
    all.sort_by_key(|(name, _)| *name);
    let mut rules: BTreeMap<&str, Vec<Rule>> = all.iter().map(|(name, role)| (*name, role.rules.clone())).collect();
    let collecting: Vec<_> = all.iter().filter(|(_, role)| !role.collects.is_empty()).collect();
    for _ in 0..DEPTH_MAX {
        let before = rules.clone();
        for (name, role) in &collecting {
            let chosen = all.iter().filter(|(other, source)| {
                other != name && role.collects.iter().any(|selector| selector.matches(source.labels.as_object()))
            });
            let mut collected: Vec<Rule> = Vec::new();
            for rule in chosen.filter_map(|(other, _)| before.get(other)).flatten() {
                if !collected.contains(rule) {
                    collected.push(rule.clone());
                }
            }
            rules.insert(name, collected);
        }
        if rules == before {
            break;
        }
    }
    // As sets: two roles that collect each other would otherwise swap their orders forever.
    let sorted = |rules: &[Rule]| rules.iter().cloned().collect::<BTreeSet<_>>();
    let changed = collecting.into_iter().filter(|(name, role)| sorted(&rules[name]) != sorted(&role.rules));
    changed.map(|(name, _)| ((*name).to_owned(), rules[name].clone())).collect()
}

async fn carry_out(api: &Api, plan: Vec<(String, Vec<Rule>)>) -> Result<(), ApiError> {
    let writes = plan.into_iter().map(|(name, rules)| async move {
        let call = Call { name: Some(name), ..Call::internal(Verb::Update, known("ClusterRole").into(), None) };
        let rules: Vec<_> = rules.iter().map(Rule::to_value).collect();
        let written = rest::change(api, &call, |old| {
            let mut new = old.clone();
            new["rules"] = json!(rules);
            Ok(new)
        });
        match written.await {
            Err(error) if error.code != 404 => Err(error),
            _ => Ok(()),
        }
    });
    try_join_all(writes).await.map(drop)
}
