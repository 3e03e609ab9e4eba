//! HorizontalPodAutoscaler: as many pods as the load asks for.
//!
//! Flow: every [`INTERVAL`] a task [asks](observe) for the target's scale and the metrics → [`reconcile`]: what each metric
//! asks for ([`metrics`], [`replicas`]), the most of it → within what `behavior` allows ([`behavior`]) → scale, status.
//!
//! Guarantees: a metric that is missing never scales down; what was measured decides once.
//!
//! Source: <https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/>.

mod behavior;
mod metrics;
mod observe;
mod replicas;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus, MetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use mainstay_informer::ObjectKey;
use mainstay_model::selector::LabelSelector;

use self::behavior::History;
use self::metrics::Context;
use self::observe::{Observed, Scale};
use self::replicas::Tolerance;
use crate::action::{Action, Attempt, Note, Now, Object, Plan};
use crate::caches::Caches;
use crate::driver::{Controller, Wiring};
use crate::object::{is_terminating, reference, selects, time};

/// How often targets are looked at.
const INTERVAL: Duration = Duration::from_secs(5);
/// Autoscalers that are asked for at once.
const CONCURRENT_MAX: usize = 8;

/// What one look needs to see.
pub(crate) struct View {
    pub(crate) autoscaler: Arc<HorizontalPodAutoscaler>,
    pub(crate) observed: Observed,
    /// Pods that the target's selector chooses.
    pub(crate) pods: Vec<Arc<Pod>>,
}

/// Decides about one autoscaler, and notes in `history` what it decided.
pub(crate) fn reconcile(view: &View, history: &mut History, now: Now) -> Plan {
    let autoscaler = view.autoscaler.as_ref();
    let mut plan = Plan::default();
    let mut report = Report::new(autoscaler, now);
    let scale = match &view.observed.scale {
        Ok(scale) => scale,
        Err(error) => {
            let message = format!("the HPA controller was unable to get the target's current scale: {error}");
            report.condition("AbleToScale", "False", "FailedGetScale", &message);
            plan.push(warning(autoscaler, "FailedGetScale", error.clone()));
            return report.finish(autoscaler, None, plan);
        }
    };
    let able = "the HPA controller was able to get the target's current scale";
    report.condition("AbleToScale", "True", "SucceededGetScale", able);
    let spec = &autoscaler.spec;
    let (least, most) = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
    let current = scale.replicas;
    let (wanted, why) = match () {
        () if current == 0 && least != 0 => {
            let message = "scaling is disabled since the replica count of the target is zero";
            report.condition("ScalingActive", "False", "ScalingDisabled", message);
            message.clone_into(&mut plan.why);
            return report.finish(autoscaler, Some((scale, 0)), plan);
        }
        () if current > most => (most, "Current number of replicas above Spec.MaxReplicas".to_owned()),
        () if current < least => (least, "Current number of replicas below Spec.MinReplicas".to_owned()),
        () => match measure(view, scale, history, now, &mut report) {
            Ok(decided) => decided,
            Err((reason, message)) => {
                plan.why.clone_from(&message);
                plan.push(warning(autoscaler, reason, message));
                return report.finish(autoscaler, Some((scale, current)), plan);
            }
        },
    };
    plan.why = format!("{wanted} replicas wanted, {current} there: {why}");
    if wanted != current {
        history.scaled(now.monotonic, wanted - current);
        plan.push(Action::Scale(scale.target.clone(), wanted));
        let message = format!("New size: {wanted}; reason: {why}");
        plan.push(Action::Note(Note {
            regarding: reference(autoscaler),
            warning: false,
            reason: "SuccessfulRescale",
            message,
        }));
        let message = format!("the HPA controller was able to update the target scale to {wanted}");
        report.condition("AbleToScale", "True", "SucceededRescale", &message);
        report.status.last_scale_time = Some(time(now.wall));
    }
    report.finish(autoscaler, Some((scale, wanted)), plan)
}

fn warning(autoscaler: &HorizontalPodAutoscaler, reason: &'static str, message: String) -> Action {
    Action::Note(Note { regarding: reference(autoscaler), warning: true, reason, message })
}

/// What the metrics ask for, within what is allowed: replicas, and why. The error is a condition's reason and message.
fn measure(
    view: &View,
    scale: &Scale,
    history: &mut History,
    now: Now,
    report: &mut Report,
) -> Result<(i32, String), (&'static str, String)> {
    let spec = &view.autoscaler.spec;
    let (up, down) = behavior::of(spec);
    let tolerance = Tolerance { up: up.tolerance, down: down.tolerance };
    let context = Context { current: scale.replicas, pods: &view.pods, tolerance, now: now.wall };
    let mut best: Option<(i32, String)> = None;
    let mut failed: Option<(&'static str, String)> = None;
    let mut shown = Vec::new();
    for (metric, measured) in &view.observed.metrics {
        let asked =
            measured.as_ref().map_err(Clone::clone).and_then(|measured| metrics::ask(metric, measured, &context));
        match asked {
            Ok(asked) => {
                if best.as_ref().is_none_or(|(replicas, _)| asked.replicas > *replicas) {
                    best = Some((asked.replicas, asked.named));
                }
                shown.push(asked.status);
            }
            Err(error) => failed = failed.or(Some((metrics::failure(metric), error))),
        }
    }
    report.metrics = Some(shown).filter(|all: &Vec<MetricStatus>| !all.is_empty());
    // A metric that is missing could have asked for more than there is, never for less than what the others ask for.
    let (asked, named) = match (best, failed) {
        (Some((replicas, named)), None) => (replicas, named),
        (Some((replicas, named)), Some(_)) if replicas >= scale.replicas => (replicas, named),
        (_, Some((reason, error))) => {
            let message = format!("the HPA was unable to compute the replica count: {error}");
            report.condition("ScalingActive", "False", reason, &message);
            return Err((reason, message));
        }
        (None, None) => return Err(("InvalidMetricSourceType", "there is no metric".to_owned())),
    };
    let message = format!("the HPA was able to successfully calculate a replica count from {named}");
    report.condition("ScalingActive", "True", "ValidMetricFound", &message);
    let bounds = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
    let allowed = behavior::allow((&up, &down), bounds, scale.replicas, asked, history, now.monotonic);
    report.condition("AbleToScale", "True", allowed.able.0, allowed.able.1);
    if let Some((reason, message)) = allowed.limited {
        report.condition("ScalingLimited", "True", reason, message);
    } else {
        let message = "the desired count is within the acceptable range";
        report.condition("ScalingLimited", "False", "DesiredWithinRange", message);
    }
    let why = match () {
        () if allowed.replicas > scale.replicas => format!("{named} above target"),
        () if allowed.replicas < scale.replicas => "All metrics below target".to_owned(),
        () => "as it should be".to_owned(),
    };
    Ok((allowed.replicas, why))
}

/// The status while it is being written.
struct Report {
    status: HorizontalPodAutoscalerStatus,
    metrics: Option<Vec<MetricStatus>>,
    now: Now,
}

impl Report {
    fn new(autoscaler: &HorizontalPodAutoscaler, now: Now) -> Self {
        Self { status: autoscaler.status.clone().unwrap_or_default(), metrics: None, now }
    }

    fn condition(&mut self, type_: &str, status: &str, reason: &str, message: &str) {
        let all = self.status.conditions.get_or_insert_default();
        let since = all.iter().find(|one| one.type_ == type_ && one.status == status);
        let since = since.and_then(|one| one.last_transition_time.clone()).unwrap_or_else(|| time(self.now.wall));
        let new = HorizontalPodAutoscalerCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: Some(since),
            observed_generation: None,
        };
        match all.iter_mut().find(|one| one.type_ == type_) {
            Some(old) => *old = new,
            None => all.push(new),
        }
    }

    fn finish(mut self, autoscaler: &HorizontalPodAutoscaler, sizes: Option<(&Scale, i32)>, mut plan: Plan) -> Plan {
        if let Some((scale, wanted)) = sizes {
            (self.status.current_replicas, self.status.desired_replicas) = (Some(scale.actual), wanted);
        }
        self.status.current_metrics = self.metrics.or(self.status.current_metrics);
        self.status.observed_generation = autoscaler.metadata.generation;
        if autoscaler.status.as_ref() != Some(&self.status) {
            let new = HorizontalPodAutoscaler { status: Some(self.status), ..autoscaler.clone() };
            plan.push(Action::ReplaceStatus(Object::of(&new)));
        }
        plan
    }
}

/// What is remembered of one autoscaler.
#[derive(Default)]
struct Memory {
    observed: Option<Observed>,
    history: History,
}

/// The controller of autoscalers.
#[derive(Default)]
pub(crate) struct Autoscalers {
    memories: Arc<Mutex<HashMap<ObjectKey, Memory>>>,
}

#[cfg(test)]
impl Autoscalers {
    /// Notes what was measured, as the task that asks does.
    pub(crate) fn told(&self, key: &ObjectKey, observed: Observed) {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner).entry(key.clone()).or_default().observed =
            Some(observed);
    }
}

impl Controller for Autoscalers {
    type Key = ObjectKey;
    const NAME: &'static str = "horizontal-pod-autoscaler";

    fn wire(&self, wiring: &mut Wiring<ObjectKey>) {
        let (caches, client, inbox) = (wiring.caches.clone(), wiring.client.clone(), wiring.inbox.clone());
        let memories = self.memories.clone();
        wiring.tasks.spawn(async move {
            use futures::StreamExt as _;
            loop {
                let all = caches.autoscalers.list();
                let ask = |autoscaler: Arc<HorizontalPodAutoscaler>| {
                    let (caches, client) = (&caches, &client);
                    async move { (ObjectKey::of(&*autoscaler), observe::observe(client, caches, &autoscaler).await) }
                };
                let mut answers = futures::stream::iter(all).map(ask).buffer_unordered(CONCURRENT_MAX);
                while let Some((key, observed)) = answers.next().await {
                    let mut memories = memories.lock().unwrap_or_else(PoisonError::into_inner);
                    memories.entry(key.clone()).or_default().observed = Some(observed);
                    drop(memories);
                    inbox.add([key]);
                }
                drop(answers);
                tokio::time::sleep(INTERVAL).await;
            }
        });
    }

    fn plan(&self, caches: &Caches, key: &ObjectKey, _: &Attempt, now: Now) -> Plan {
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(autoscaler) = caches.autoscalers.get_key(key).filter(|found| !is_terminating(&**found)) else {
            memories.remove(key);
            return Plan::nothing("it is gone");
        };
        let memory = memories.entry(key.clone()).or_default();
        let Some(observed) = memory.observed.take() else { return Plan::nothing("nothing new was measured") };
        let chosen = observed.scale.as_ref().ok().and_then(|scale| LabelSelector::parse(&scale.selector).ok());
        let pods = chosen.map_or_else(Vec::new, |chosen| {
            caches.pods.in_namespace(&key.namespace, |pod| selects(&chosen, pod.metadata.labels.as_ref()))
        });
        reconcile(&View { autoscaler, observed, pods }, &mut memory.history, now)
    }
}
