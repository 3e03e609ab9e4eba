//! ClusterRole aggregation: a role with an `aggregationRule` has the rules of all roles that its selectors choose.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#aggregated-clusterroles>.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use mainstay_informer::ObjectKey;

use crate::action::{Action, Attempt, Now, Object, Plan};
use crate::caches::Caches;
use crate::driver::{Controller, Wiring};
use crate::object::{is_terminating, name, selector, selects};

/// Decides about one role, given all.
pub(crate) fn reconcile(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Plan {
    let Some(rule) = role.aggregation_rule.as_ref().filter(|_| !is_terminating(role)) else {
        return Plan::nothing("it does not aggregate");
    };
    let selectors: Vec<_> = rule.cluster_role_selectors.iter().flatten().map(|one| selector(Some(one))).collect();
    let is_chosen = |other: &&Arc<ClusterRole>| {
        name(&***other) != name(role) && selectors.iter().any(|one| selects(one, other.metadata.labels.as_ref()))
    };
    let mut parts: Vec<_> = all.iter().filter(is_chosen).collect();
    parts.sort_by_key(|part| name(&***part).to_owned());
    let mut rules: Vec<PolicyRule> = Vec::new();
    for rule in parts.iter().flat_map(|part| part.rules.iter().flatten()) {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    let mut plan = Plan::nothing(format!("{} rules of {} roles", rules.len(), parts.len()));
    if role.rules.as_deref().unwrap_or_default() != rules {
        plan.push(Action::Replace(Object::of(&ClusterRole { rules: Some(rules), ..role.clone() })));
    }
    plan
}

/// The controller of aggregated ClusterRoles.
pub(crate) struct ClusterRoles;

impl Controller for ClusterRoles {
    type Key = ObjectKey;
    const NAME: &'static str = "clusterrole-aggregation-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        // Any role may be part of any that aggregates; those are few.
        wiring.on(&caches.cluster_roles, |_, caches| {
            let all = caches.cluster_roles.filter(|role| role.aggregation_rule.is_some());
            all.iter().map(|role| ObjectKey::of(&**role)).collect()
        });
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, _: Now) -> Plan {
        let Some(role) = caches.cluster_roles.get_key(key) else { return Plan::nothing("it is gone") };
        reconcile(&role, &caches.cluster_roles.list())
    }
}
