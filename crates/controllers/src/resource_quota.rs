//! ResourceQuota: keeps `status.used` true.
//!
//! The API server enforces quotas when objects are created; here is counted what is there, so that what was deleted is given
//! back. Pods that have ended count as nothing but objects.
//!
//! The API server raises a figure before it stores the object. Who counts in between finds too little; so figures go down
//! only when the quota has been at rest for [`REST`], which is longer than any write takes.
//!
//! Source: <https://kubernetes.io/docs/concepts/policy/resource-quotas/>.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaSpec, ResourceQuotaStatus, Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use mainstay_informer::ObjectKey;
use mainstay_model::quantity::{Format, Quantity};
use mainstay_model::resource::BUILT_IN;
use mainstay_model::workload::{Resources, pod_limits, pod_requests};
use serde_json::json;

use crate::action::{Action, Attempt, Now, Object, Plan};
use crate::caches::Caches;
use crate::driver::{Controller, Wiring};
use crate::object::{is_finished, is_terminating, namespace};

/// The longest time between two counts, for kinds that wake nobody.
const LOOK_MAX: Duration = Duration::from_secs(30);

/// How long nobody may have changed a quota before its figures go down.
const REST: Duration = Duration::from_millis(300);

/// What one look needs to see, all of one namespace.
pub(crate) struct View {
    pub(crate) quota: Arc<ResourceQuota>,
    pub(crate) pods: Vec<Arc<Pod>>,
    pub(crate) services: Vec<Arc<Service>>,
    pub(crate) claims: Vec<Arc<PersistentVolumeClaim>>,
    /// Objects there are, by the quota's name of the kind; only of kinds that could be counted.
    pub(crate) counts: BTreeMap<String, usize>,
}

/// Decides about one quota; `at_rest` says that nobody has changed it for a while.
pub(crate) fn reconcile(view: &View, at_rest: bool) -> Plan {
    let quota = view.quota.as_ref();
    let mut plan = Plan::nothing("it is counted");
    if is_terminating(quota) {
        return plan;
    }
    let spec = quota.spec.clone().unwrap_or_default();
    let hard = spec.hard.clone().unwrap_or_default();
    let before = quota.status.as_ref().and_then(|status| status.used.clone()).unwrap_or_default();
    let sums = sums(view, &spec);
    let mut waits = false;
    let used: BTreeMap<String, Written> = hard
        .keys()
        .map(|name| {
            // What cannot be counted yet keeps its figure.
            let kept = before.get(name).and_then(|text| text.0.parse::<Quantity>().ok());
            let counted = sums.get(name).copied().or(kept).unwrap_or(Quantity::ZERO);
            let falls = !at_rest && kept.is_some_and(|kept| counted < kept);
            waits |= falls;
            (name.clone(), Written(kept.filter(|_| falls).unwrap_or(counted).to_string()))
        })
        .collect();
    let status = ResourceQuotaStatus { used: Some(used), hard: Some(hard) };
    if quota.status.as_ref() != Some(&status) {
        let new = ResourceQuota { status: Some(status), ..quota.clone() };
        plan.push(Action::ReplaceStatus(Object::of(&new)));
    }
    plan.look_again(if waits { REST } else { LOOK_MAX });
    plan
}

/// Everything a quota can limit, as it is now.
fn sums(view: &View, spec: &ResourceQuotaSpec) -> Resources {
    let mut sums: Resources = view
        .counts
        .iter()
        .map(|(name, count)| (name.clone(), Quantity::new(*count as i64, Format::DecimalSi)))
        .collect();
    for name in ["requests.cpu", "requests.memory", "limits.cpu", "limits.memory", "cpu", "memory", "requests.storage"]
    {
        sums.insert(name.to_owned(), Quantity::ZERO);
    }
    let one = Quantity::new(1, Format::DecimalSi);
    for pod in view.pods.iter().filter(|pod| in_scope(pod, spec)) {
        if is_finished(pod) {
            continue;
        }
        add(&mut sums, "pods", one);
        let value = json!(**pod);
        for (name, amount) in pod_requests(&value) {
            add(&mut sums, &format!("requests.{name}"), amount);
            // `cpu` and `memory` are short for the requests.
            add(&mut sums, &name, amount);
        }
        for (name, amount) in pod_limits(&value) {
            add(&mut sums, &format!("limits.{name}"), amount);
        }
    }
    sums.entry("pods".to_owned()).or_insert(Quantity::ZERO);
    for service in &view.services {
        let spec = service.spec.as_ref();
        let kind = spec.and_then(|spec| spec.type_.as_deref()).unwrap_or("ClusterIP");
        let ports = spec.and_then(|spec| spec.ports.as_ref()).map_or(0, Vec::len) as i64;
        let allocates = spec.and_then(|spec| spec.allocate_load_balancer_node_ports).unwrap_or(true);
        if kind == "LoadBalancer" {
            add(&mut sums, "services.loadbalancers", one);
        }
        if kind == "NodePort" || (kind == "LoadBalancer" && allocates) {
            add(&mut sums, "services.nodeports", Quantity::new(ports, Format::DecimalSi));
        }
    }
    for claim in &view.claims {
        let Some(spec) = &claim.spec else { continue };
        let asked = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get("storage"));
        let asked = asked.and_then(|text| text.0.parse::<Quantity>().ok()).unwrap_or(Quantity::ZERO);
        add(&mut sums, "requests.storage", asked);
        if let Some(class) = &spec.storage_class_name {
            let prefix = format!("{class}.storageclass.storage.k8s.io");
            add(&mut sums, &format!("{prefix}/requests.storage"), asked);
            add(&mut sums, &format!("{prefix}/persistentvolumeclaims"), one);
        }
    }
    sums
}

fn add(sums: &mut Resources, name: &str, amount: Quantity) {
    let sum = sums.entry(name.to_owned()).or_insert(Quantity::ZERO);
    *sum = *sum + amount;
}

/// Whether the quota's scopes take in the pod; all must.
fn in_scope(pod: &Pod, spec: &ResourceQuotaSpec) -> bool {
    let pod_spec = pod.spec.as_ref();
    let terminating = pod_spec.is_some_and(|spec| spec.active_deadline_seconds.is_some());
    let best_effort = mainstay_model::workload::qos_class(&json!(*pod)) == "BestEffort";
    let class = pod_spec.and_then(|spec| spec.priority_class_name.as_deref()).unwrap_or_default();
    let affinity = pod_spec.and_then(|spec| spec.affinity.as_ref());
    let crosses = affinity.is_some_and(|affinity| {
        let with = affinity
            .pod_affinity
            .iter()
            .flat_map(|a| a.required_during_scheduling_ignored_during_execution.iter().flatten());
        let apart = affinity
            .pod_anti_affinity
            .iter()
            .flat_map(|a| a.required_during_scheduling_ignored_during_execution.iter().flatten());
        with.chain(apart)
            .any(|term| term.namespaces.as_ref().is_some_and(|n| !n.is_empty()) || term.namespace_selector.is_some())
    });
    let holds = |scope: &str| match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "PriorityClass" => !class.is_empty(),
        "CrossNamespacePodAffinity" => crosses,
        _ => false,
    };
    let selected = spec.scope_selector.iter().flat_map(|selector| selector.match_expressions.iter().flatten());
    let mut selected = selected.map(|expression| {
        let values = expression.values.as_deref().unwrap_or_default();
        match expression.operator.as_str() {
            "In" => values.iter().any(|value| value == class),
            "NotIn" => values.iter().all(|value| value != class),
            "DoesNotExist" => !holds(&expression.scope_name),
            _ => holds(&expression.scope_name),
        }
    });
    spec.scopes.iter().flatten().all(|scope| holds(scope)) && selected.all(|holds| holds)
}

/// The controller of ResourceQuotas.
#[derive(Default)]
pub(crate) struct ResourceQuotas {
    /// The version of each quota that was seen last, and when it was seen first.
    seen: Mutex<HashMap<ObjectKey, (String, Duration)>>,
}

impl ResourceQuotas {
    fn is_at_rest(&self, key: &ObjectKey, quota: &ResourceQuota, now: Now) -> bool {
        let version = quota.metadata.resource_version.clone().unwrap_or_default();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = seen.entry(key.clone()).or_insert_with(|| (version.clone(), now.monotonic));
        if entry.0 != version {
            *entry = (version, now.monotonic);
        }
        now.monotonic.saturating_sub(entry.1) >= REST
    }
}

impl Controller for ResourceQuotas {
    type Key = ObjectKey;
    const NAME: &'static str = "resourcequota-controller";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let caches = wiring.caches.clone();
        wiring.on(&caches.quotas, |change, _| vec![change.key.clone()]);
        let (mut heard, inbox, all) = (caches.others.listen(), wiring.inbox.clone(), caches.clone());
        wiring.tasks.spawn(async move {
            while let Some(changed) = heard.recv().await {
                if changed.before.is_none() || changed.after.is_none() {
                    let own = all.quotas.filter(|quota| namespace(quota) == changed.key.namespace);
                    inbox.add(own.iter().map(|quota| ObjectKey::of(&**quota)));
                }
            }
        });
        caches.on_every(wiring, |change, caches| {
            let ends = change.before.is_none() || change.after.is_none();
            let pod = change.kind == "Pod";
            if !(ends || pod) {
                return Vec::new();
            }
            let quotas = caches.quotas.filter(|quota| namespace(quota) == change.key.namespace);
            quotas.iter().map(|quota| ObjectKey::of(&**quota)).collect()
        });
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, now: Now) -> Plan {
        let Some(quota) = caches.quotas.get_key(key) else {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
            return Plan::nothing("it is gone");
        };
        let at_rest = self.is_at_rest(key, &quota, now);
        let space = key.namespace.as_str();
        let mut counts = BTreeMap::new();
        let hard = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
        for name in hard.into_iter().flat_map(BTreeMap::keys) {
            // `count/deployments.apps`, or the old names of a few core kinds.
            let (plural, group) = name
                .strip_prefix("count/")
                .unwrap_or(name)
                .split_once('.')
                .unwrap_or((name.strip_prefix("count/").unwrap_or(name), ""));
            let row = BUILT_IN.iter().find(|row| row.plural == plural && row.group == group && row.namespaced);
            let is_count = name.starts_with("count/") || (group.is_empty() && plural != "pods");
            if let Some(count) = row.filter(|_| is_count).and_then(|row| caches.count(row, space)) {
                counts.insert(name.clone(), count);
            }
        }
        let view = View {
            quota,
            pods: caches.pods.in_namespace(space, |_| true),
            services: caches.services.in_namespace(space, |_| true),
            claims: caches.claims.in_namespace(space, |_| true),
            counts,
        };
        reconcile(&view, at_rest)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn view(used: &str, pods: usize) -> View {
        let quota = json!({
            "metadata": {"name": "q", "namespace": "a"}, "spec": {"hard": {"pods": "5"}},
            "status": {"hard": {"pods": "5"}, "used": {"pods": used}},
        });
        View {
            quota: Arc::new(serde_json::from_value(quota).unwrap()),
            pods: (0..pods).map(|_| Arc::new(Pod::default())).collect(),
            services: Vec::new(),
            claims: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    #[test]
    fn figures_rise_at_once_and_fall_at_rest() {
        assert_eq!(reconcile(&view("1", 2), false).actions.len(), 1);
        let waiting = reconcile(&view("3", 2), false);
        assert!(waiting.actions.is_empty() && waiting.requeue_after == Some(REST));
        assert_eq!(reconcile(&view("3", 2), true).actions.len(), 1);
    }
}
