//! What a Job's `podFailurePolicy` makes of a failed pod.
//!
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy>.

use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyOnExitCodesRequirement};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::object::{name, namespace, phase, pod_condition};

/// What a failure means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts towards the back-off limits.
    Counts,
    /// It does not count.
    Ignored,
    /// Its index has failed for good.
    FailsIndex,
    /// The whole Job has failed; in words, why.
    FailsJob(String),
}

/// Judges a failed pod by the first rule that matches; without one the failure counts.
pub(super) fn judge(job: &Job, pod: &Pod) -> Verdict {
    // A pod that is only being deleted has not failed by itself.
    if phase(pod) != "Failed" {
        return Verdict::Counts;
    }
    let rules =
        job.spec.as_ref().and_then(|spec| spec.pod_failure_policy.as_ref()).map(|policy| policy.rules.as_slice());
    for (index, rule) in rules.unwrap_or_default().iter().enumerate() {
        let who = format!("{}/{}", namespace(pod), name(pod));
        let action = rule.action.as_str();
        let by_code = rule.on_exit_codes.as_ref().and_then(|wanted| exit_code(wanted, pod)).map(|(container, code)| {
            format!("Container {container} for pod {who} failed with exit code {code} matching {action} rule at index {index}")
        });
        let matched = by_code.or_else(|| {
            let mut patterns = rule.on_pod_conditions.iter().flatten();
            let pattern = patterns.find(|pattern| {
                let wanted = pattern.status.as_deref().unwrap_or("True");
                pod_condition(pod, &pattern.type_).is_some_and(|condition| condition.status == wanted)
            })?;
            Some(format!("Pod {who} has condition {} matching {action} rule at index {index}", pattern.type_))
        });
        let Some(message) = matched else { continue };
        return match action {
            "Ignore" => Verdict::Ignored,
            "FailIndex" => Verdict::FailsIndex,
            "FailJob" => Verdict::FailsJob(message),
            _ => Verdict::Counts,
        };
    }
    Verdict::Counts
}

/// The first container that ended with a code the rule is about.
fn exit_code<'a>(wanted: &PodFailurePolicyOnExitCodesRequirement, pod: &'a Pod) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let ended = |container: &'a ContainerStatus| {
        let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
        let named = wanted.container_name.as_deref().is_none_or(|name| name == container.name);
        (named && code != 0).then_some((container.name.as_str(), code))
    };
    all.filter_map(ended).find(|(_, code)| wanted.values.contains(code) == (wanted.operator == "In"))
}
