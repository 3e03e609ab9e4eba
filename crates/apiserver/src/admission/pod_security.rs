//! PodSecurity: the Pod Security Standards that a namespace's labels ask for.
//!
//! Pods are refused by the level to `enforce`; by those to `warn` and `audit` their writer is told and it is noted in the
//! audit log, for pods and for what makes pods.
//!
//! Source: <https://kubernetes.io/docs/concepts/security/pod-security-admission/>.

use mainstay_model::pod_security::{Level, sentence, violations};
use mainstay_model::resource::known;
use mainstay_model::status::{ApiError, FieldError, FieldErrorKind};
use mainstay_model::{meta, resource};
use serde_json::{Value, json};

use super::{Operation, Review, forbidden};
use crate::api::Api;
use crate::request::{Call, Verb};
use crate::rest::{self, Filter};

const PREFIX: &str = "pod-security.kubernetes.io/";
/// Pods of a namespace that are looked at when its level is raised, and that are told.
const LOOKED_AT_MAX: usize = 3000;
const TOLD_MAX: usize = 32;

/// A level with the version it is asked for in.
struct Policy {
    level: Level,
    version: String,
}

impl Policy {
    fn of(namespace: &Value, mode: &str) -> Self {
        let label = |key: String| meta::label(namespace, &key).map(str::to_owned);
        let level = label(format!("{PREFIX}{mode}"));
        // An unknown word cannot be stored; found anyway, the strictest is the safest reading.
        let level = level.map_or(Level::Privileged, |word| Level::parse(&word).unwrap_or(Level::Restricted));
        Self { level, version: label(format!("{PREFIX}{mode}-version")).unwrap_or_else(|| "latest".to_owned()) }
    }

    fn name(&self) -> String {
        format!("{}:{}", self.level.word(), self.version)
    }

    /// What is wrong with a pod or a template of pods.
    fn broken_by(&self, pod: &Value) -> Option<String> {
        let found = violations(self.level, &pod["metadata"]["annotations"], &pod["spec"]);
        (!found.is_empty()).then(|| sentence(&found))
    }
}

/// Where the template of pods is in an object that makes pods.
fn template<'a>(kind: &str, object: &'a Value) -> Option<&'a Value> {
    Some(match kind {
        "PodTemplate" => &object["template"],
        "CronJob" => &object["spec"]["jobTemplate"]["spec"]["template"],
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" | "ReplicationController" => {
            &object["spec"]["template"]
        }
        _ => return None,
    })
}

/// Checks a pod, or what makes pods.
pub(super) async fn validate(api: &Api, review: Review<'_>, object: &Value) -> Result<(), ApiError> {
    let kind = review.call.resource.kind.as_str();
    let part = |object| if kind == "Pod" { Some(object) } else { template(kind, object) };
    let Some(pod) = part(object) else { return Ok(()) };
    // What cannot change anything about the pod was looked at when it was made.
    let old = review.old.and_then(part);
    if old.is_some_and(|old| old["spec"] == pod["spec"]) || (kind == "Pod" && is_harmless(review)) {
        return Ok(());
    }
    let namespace = review.call.namespace.as_deref().unwrap_or_default();
    let Some(namespace) = api.followed.get("Namespace", None, namespace).await? else { return Ok(()) };
    let enforced = Policy::of(&namespace, "enforce");
    if kind == "Pod" {
        if let Some(why) = enforced.broken_by(pod) {
            let why = format!("violates PodSecurity \"{}\": {why}", enforced.name());
            return Err(forbidden(review, object, &why));
        }
        review.call.notes.annotate(&format!("{PREFIX}enforce-policy"), &enforced.name());
    }
    for mode in ["audit", "warn"] {
        let policy = Policy::of(&namespace, mode);
        let Some(why) = policy.broken_by(pod) else { continue };
        let text = format!("would violate PodSecurity \"{}\": {why}", policy.name());
        if mode == "warn" {
            review.call.warnings.add(text);
        } else {
            review.call.notes.annotate(&format!("{PREFIX}audit-violations"), &text);
        }
    }
    Ok(())
}

/// An update of a pod can only bring other images, or ephemeral containers.
fn is_harmless(review: Review<'_>) -> bool {
    review.operation == Operation::Update && review.call.subresource.as_deref() != Some("ephemeralcontainers")
}

/// Checks the labels of a namespace, and warns about pods that would not be let in any more.
pub(super) async fn validate_namespace(api: &Api, review: Review<'_>, namespace: &Value) -> Result<(), ApiError> {
    let mut faults = Vec::new();
    for mode in ["enforce", "audit", "warn"] {
        let key = format!("{PREFIX}{mode}");
        if let Some(word) = meta::label(namespace, &key).filter(|word| Level::parse(word).is_none()) {
            let why = "must be one of privileged, baseline, restricted";
            let field = format!("metadata.labels[{key}]");
            faults.push(FieldError::with_value(field, FieldErrorKind::Invalid, json!(word), why));
        }
        let key = format!("{PREFIX}{mode}-version");
        if let Some(version) = meta::label(namespace, &key).filter(|version| !is_version(version)) {
            let why = "must be \"latest\" or \"v1.x\"";
            let field = format!("metadata.labels[{key}]");
            faults.push(FieldError::with_value(field, FieldErrorKind::Invalid, json!(version), why));
        }
    }
    if !faults.is_empty() {
        return Err(ApiError::invalid("", "Namespace", meta::name(namespace), faults));
    }
    let (before, after) = (review.old.map(|old| Policy::of(old, "enforce")), Policy::of(namespace, "enforce"));
    if before.is_none_or(|before| before.level >= after.level) {
        return Ok(());
    }
    let name = meta::name(namespace);
    let list = Call::internal(Verb::List, known("Pod").into(), Some(name));
    let (pods, _) = rest::select(api, &list, &Filter::of(&list)?).await?;
    let mut lines: Vec<String> = Vec::new();
    for pod in pods.iter().take(LOOKED_AT_MAX) {
        let found = violations(after.level, &pod["metadata"]["annotations"], &pod["spec"]);
        if !found.is_empty() && lines.len() < TOLD_MAX {
            let reasons: Vec<&str> = found.iter().map(|violation| violation.reason.as_str()).collect();
            lines.push(format!("{}: {}", meta::name(pod), reasons.join(", ")));
        }
    }
    if !lines.is_empty() {
        let policy = after.name();
        let text = format!("existing pods in namespace {name:?} violate the new PodSecurity enforce level {policy:?}");
        review.call.warnings.add(text);
    }
    for line in lines {
        review.call.warnings.add(line);
    }
    Ok(())
}

fn is_version(text: &str) -> bool {
    let minor = text.strip_prefix("v1.").unwrap_or_default();
    text == "latest" || (!minor.is_empty() && minor.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether a kind has something to look at.
pub(super) fn concerns(resource: &resource::Resource) -> bool {
    matches!(resource.group.as_str(), "" | "apps" | "batch")
        && (resource.kind == "Pod" || template(&resource.kind, &Value::Null).is_some())
}
