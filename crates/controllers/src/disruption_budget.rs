//! PodDisruptionBudget: how many pods may be evicted now.
//!
//! Source: <https://kubernetes.io/docs/tasks/run-application/configure-pdb/>.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mainstay_informer::ObjectKey;

use crate::action::{Action, Attempt, Now, Object, Plan};
use crate::caches::Caches;
use crate::deployment::number;
use crate::driver::{Controller, Wiring};
use crate::object::{controller_of, is_active, is_ready, is_terminating, name, selector, selects, time};

/// How long a granted eviction counts although its pod is still there.
const DISRUPTION_MAX: SignedDuration = SignedDuration::from_mins(2);
const ALLOWED: &str = "DisruptionAllowed";

/// What one look needs to see.
pub(crate) struct View {
    pub(crate) budget: Arc<PodDisruptionBudget>,
    /// Pods its selector chooses.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// Wanted sizes of the pods' controllers, by uid.
    pub(crate) scales: BTreeMap<String, i32>,
}

/// Decides about one budget.
pub(crate) fn reconcile(view: &View, now: Timestamp) -> Plan {
    let budget = view.budget.as_ref();
    let spec = budget.spec.clone().unwrap_or_default();
    let active: Vec<_> = view.pods.iter().filter(|pod| is_active(pod)).collect();
    let count = i32::try_from(active.len()).unwrap_or(i32::MAX);
    // Percentages, and what may be missing, are of what the controllers want, not of what is there.
    let scale = || if view.scales.is_empty() { count } else { view.scales.values().sum() };
    let (expected, desired) = match (&spec.max_unavailable, &spec.min_available) {
        (Some(missing), _) => (scale(), scale() - number(Some(missing), scale(), true)),
        (None, Some(IntOrString::Int(minimum))) => (count, *minimum),
        (None, Some(percent)) => (scale(), number(Some(percent), scale(), true)),
        (None, None) => (count, 1),
    };
    let desired = desired.max(0);
    let disrupted = disrupted(view, now);
    let is_going = |pod: &Arc<Pod>| disrupted.as_ref().is_some_and(|all| all.contains_key(name(&**pod)));
    let healthy = active.iter().filter(|pod| is_ready(pod) && !is_going(pod)).count();
    let healthy = i32::try_from(healthy).unwrap_or(i32::MAX);
    let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
    let old = budget.status.clone().unwrap_or_default();
    let new = PodDisruptionBudgetStatus {
        conditions: Some(vec![condition(budget, &old, allowed, now)]),
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(expected),
        observed_generation: budget.metadata.generation,
        disrupted_pods: disrupted,
    };
    let mut plan = Plan::nothing(format!("{healthy} healthy, {desired} needed"));
    if budget.status.as_ref() != Some(&new) && !is_terminating(budget) {
        let new = PodDisruptionBudget { status: Some(new), ..budget.clone() };
        plan.push(Action::ReplaceStatus(Object::of(&new)));
    }
    plan
}

/// Evictions that the API server has granted and whose pods are not seen to go yet: they count as gone, so that a slow
/// cache does not grant them twice. After a while they are forgotten: the pod was not deleted after all.
fn disrupted(view: &View, now: Timestamp) -> Option<BTreeMap<String, Time>> {
    let granted = view.budget.status.as_ref()?.disrupted_pods.clone()?;
    let is_there = |pod_name: &str| view.pods.iter().any(|pod| name(&**pod) == pod_name && !is_terminating(&**pod));
    let left: BTreeMap<_, _> =
        granted.into_iter().filter(|(pod, at)| is_there(pod) && at.0 + DISRUPTION_MAX > now).collect();
    (!left.is_empty()).then_some(left)
}

fn condition(budget: &PodDisruptionBudget, old: &PodDisruptionBudgetStatus, allowed: i32, now: Timestamp) -> Condition {
    let (status, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let before = old.conditions.iter().flatten().find(|c| c.type_ == ALLOWED && c.status == status);
    Condition {
        type_: ALLOWED.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
        observed_generation: budget.metadata.generation,
        last_transition_time: before.map_or_else(|| time(now), |before| before.last_transition_time.clone()),
    }
}

/// The controller of disruption budgets.
pub(crate) struct DisruptionBudgets;

impl Controller for DisruptionBudgets {
    type Key = ObjectKey;
    const NAME: &'static str = "disruption-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.disruption_budgets, |change, _| vec![change.key.clone()]);
        wiring.on(&caches.pods, |change, caches| {
            let guards = |budget: &PodDisruptionBudget| {
                let chosen = selector(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()));
                change.versions().any(|pod| selects(&chosen, pod.metadata.labels.as_ref()))
            };
            caches
                .disruption_budgets
                .in_namespace(&change.key.namespace, guards)
                .iter()
                .map(|budget| ObjectKey::of(&**budget))
                .collect()
        });
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, now: Now) -> Plan {
        let Some(budget) = caches.disruption_budgets.get_key(key) else { return Plan::nothing("it is gone") };
        let chosen = selector(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()));
        let pods = caches.pods.in_namespace(&key.namespace, |pod| selects(&chosen, pod.metadata.labels.as_ref()));
        let mut scales = BTreeMap::new();
        for owner in pods.iter().filter_map(|pod| controller_of(&**pod)) {
            let (space, name) = (key.namespace.as_str(), owner.name.as_str());
            let scale = match owner.kind.as_str() {
                "ReplicaSet" => caches.replica_sets.get(space, name).map(|set| set.spec.replicas),
                "StatefulSet" => caches.stateful_sets.get(space, name).map(|set| set.spec.replicas),
                _ => None,
            };
            if let Some(scale) = scale {
                scales.insert(owner.uid.clone(), scale.unwrap_or(1));
            }
        }
        reconcile(&View { budget, pods, scales }, now.wall)
    }
}
