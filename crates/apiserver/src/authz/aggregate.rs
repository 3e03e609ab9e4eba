//! Aggregation: a ClusterRole with an `aggregationRule` has the rules of all ClusterRoles that its selectors choose.
//!
//! Done once, before the server answers, for the default roles; afterwards a controller does it whenever a role changes.
//! Roles may collect from collecting roles, [`DEPTH_MAX`] deep.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#aggregated-clusterroles>.

use std::collections::{BTreeMap, BTreeSet};
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

/// How deep roles may collect from collecting roles.
const DEPTH_MAX: usize = 8;

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
