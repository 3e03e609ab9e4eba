//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: programs of others that change or refuse writes.
//!
//! Flow: the webhooks whose rules, selectors and conditions mean the write → mutating ones one after another, each seeing what the
//! ones before made; once more those that asked for it if somebody changed the object after them → validating ones all at
//! once. A webhook that does not answer in time refuses the write, or with `failurePolicy: Ignore` is passed over.
//!
//! Guarantees: webhooks never see writes of webhook configurations, so that a broken one can be removed; nor what the
//! server writes by itself.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>.

mod call;
mod review;
mod rules;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use mainstay_custom::policy::{Conditions, Question};
use mainstay_model::status::ApiError;
use mainstay_model::{defaults, meta, patch};
use serde_json::Value;

pub(crate) use call::{Bundles, ask as ask_webhook};
pub(super) use review::question;
pub(super) use rules::word;

use self::review::Answer;
use self::rules::Subject;
use super::judge::Caller;
use super::{Operation, Review, forbidden};
use crate::api::Api;
use crate::decode::{self, Unknown};
use crate::rest;

const GROUP: &str = "admissionregistration.k8s.io";
/// Seconds a webhook gets unless its configuration says otherwise, and at most.
const SECONDS: u64 = 10;
const SECONDS_MAX: u64 = 30;
/// Who the server is when it writes by itself.
const SELF: &str = "system:apiserver";

/// A webhook that is to be asked, and in which version of the object.
struct Chosen {
    configuration: Arc<Value>,
    index: usize,
    version: String,
}

impl Chosen {
    fn webhook(&self) -> &Value {
        &self.configuration["webhooks"][self.index]
    }

    fn name(&self) -> &str {
        self.webhook()["name"].as_str().unwrap_or_default()
    }
}

/// The webhooks that are to see the object once more if others change it, with what each left behind.
#[derive(Default)]
pub(super) struct Round(Vec<(Chosen, Value)>);

/// Lets the mutating webhooks change `object`; answers also whether any did.
///
/// # Errors
/// A refusal, or a failure that the webhook's policy does not ignore.
pub(super) async fn mutate(api: &Api, review: Review<'_>, object: &mut Value) -> Result<(Round, bool), ApiError> {
    let (mut round, mut any) = (Round::default(), false);
    for webhook in choose(api, "MutatingWebhookConfiguration", review, object).await? {
        any |= change(api, &webhook, review, object).await?;
        if webhook.webhook()["reinvocationPolicy"] == "IfNeeded" {
            round.0.push((webhook, object.clone()));
        }
    }
    Ok((round, any))
}

/// Asks those webhooks of a round again that asked for it, if the object is not what they left.
///
/// # Errors
/// As for [`mutate`].
pub(super) async fn again(api: &Api, review: Review<'_>, object: &mut Value, round: Round) -> Result<bool, ApiError> {
    let mut any = false;
    for (webhook, left) in round.0 {
        if left != *object {
            any |= change(api, &webhook, review, object).await?;
        }
    }
    Ok(any)
}

/// Asks the validating webhooks.
///
/// # Errors
/// As for [`mutate`]; of several, the first in the order of the configurations.
pub(super) async fn validate(api: &Api, review: Review<'_>, object: &Value) -> Result<(), ApiError> {
    let chosen = choose(api, "ValidatingWebhookConfiguration", review, object).await?;
    let answers = join_all(chosen.iter().map(|webhook| ask(api, webhook, review, object))).await;
    answers.into_iter().try_for_each(|answer| answer.map(drop))
}

/// The webhooks that a write concerns, in order.
async fn choose(api: &Api, kind: &str, review: Review<'_>, object: &Value) -> Result<Vec<Chosen>, ApiError> {
    let (call, resource) = (review.call, &review.call.resource);
    let configurations = api.followed.list(kind, None).await?;
    if configurations.is_empty() || resource.group == GROUP || call.user.name == SELF {
        return Ok(Vec::new());
    }
    let catalogue = api.registry.now().await?;
    let same = catalogue.all().iter().filter(|other| other.group == resource.group && other.plural == resource.plural);
    let versions: Vec<String> = same.map(|other| other.version.clone()).collect();
    let subject = Subject {
        operation: review.operation,
        group: &resource.group,
        version: &resource.version,
        resource: &resource.plural,
        subresource: call.subresource.as_deref().unwrap_or_default(),
        namespaced: call.namespace.is_some(),
        versions: &versions,
    };
    let namespace = namespace_labels(api, review, object).await?;
    let labels = |object: &Value| Some(object["metadata"]["labels"].clone()).filter(Value::is_object);
    let (new, old) = (labels(object), review.old.and_then(labels));
    let mut chosen = Vec::new();
    for configuration in configurations {
        for (index, webhook) in meta::list_at(&configuration, "webhooks").iter().enumerate() {
            let Some(version) = rules::wanted_version(webhook, &subject) else { continue };
            let here =
                namespace.as_ref().is_none_or(|labels| rules::selects(&webhook["namespaceSelector"], &[Some(labels)]));
            if here && rules::selects(&webhook["objectSelector"], &[new.as_ref(), old.as_ref()]) {
                chosen.push(Chosen { configuration: configuration.clone(), index, version: version.to_owned() });
            }
        }
    }
    Ok(chosen)
}

/// The labels that a namespace selector looks at; `None` where it does not apply, which is to objects without one.
async fn namespace_labels(api: &Api, review: Review<'_>, object: &Value) -> Result<Option<Value>, ApiError> {
    let call = review.call;
    if call.resource.rules() == "Namespace" {
        let own = if object.is_null() { review.old.unwrap_or(object) } else { object };
        return Ok(Some(own["metadata"]["labels"].clone()));
    }
    let Some(namespace) = call.namespace.as_deref() else { return Ok(None) };
    let namespace = api.followed.get("Namespace", None, namespace).await?;
    Ok(Some(namespace.map(|namespace| namespace["metadata"]["labels"].clone()).unwrap_or_default()))
}

/// Asks one mutating webhook and takes its patch; answers whether it changed anything.
async fn change(api: &Api, webhook: &Chosen, review: Review<'_>, object: &mut Value) -> Result<bool, ApiError> {
    let Some(changes) = ask(api, webhook, review, object).await?.patch else { return Ok(false) };
    if object.is_null() {
        return Ok(false);
    }
    let failed = |error: &dyn std::fmt::Display| {
        let name = webhook.name();
        ApiError::internal(format!("failed calling webhook {name:?}: the patch cannot be applied: {error}"))
    };
    let (call, own_version) = (review.call, object["apiVersion"].clone());
    let mut changed = patch::apply(patch::PatchType::Json, "", object, &changes).map_err(|error| failed(&error))?;
    changed["apiVersion"] = own_version;
    if review.operation != Operation::Connect {
        decode::check(call, &mut changed, Unknown::Ignore).map_err(|error| failed(&error.message))?;
        defaults::apply_defaults(call.resource.rules(), &mut changed);
    }
    let any = changed != *object;
    *object = changed;
    Ok(any)
}

/// Checks the conditions of a webhook configuration that is written.
///
/// # Errors
/// 422 for conditions that cannot be compiled.
pub(super) fn check(review: Review<'_>, configuration: &Value) -> Result<(), ApiError> {
    let mut faults = Vec::new();
    for (i, webhook) in meta::list_at(configuration, "webhooks").iter().enumerate() {
        let path = format!("webhooks[{i}].matchConditions");
        faults.extend(Conditions::compile(&webhook["matchConditions"], &path).err().into_iter().flatten());
    }
    let kind = &review.call.resource.kind;
    if faults.is_empty() { Ok(()) } else { Err(ApiError::invalid(GROUP, kind, meta::name(configuration), faults)) }
}

/// Whether the webhook's `matchConditions` hold; one that cannot be evaluated decides by the webhook's policy.
async fn is_meant(
    api: &Api,
    webhook: &Value,
    review: Review<'_>,
    object: &Value,
    request: &Value,
) -> Result<bool, ApiError> {
    if meta::list_at(webhook, "matchConditions").is_empty() {
        return Ok(true);
    }
    let namespace = match review.call.namespace.as_deref() {
        Some(name) => api.followed.get("Namespace", None, name).await?,
        None => None,
    };
    let null = Value::Null;
    let question = Question {
        object,
        old: review.old.unwrap_or(&null),
        request,
        params: &null,
        namespace: namespace.as_deref().unwrap_or(&null),
        judge: &Caller { api, user: &review.call.user },
    };
    let compiled = Conditions::compile(&webhook["matchConditions"], "matchConditions");
    let compiled = compiled.map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    match compiled.and_then(|conditions| conditions.hold(question)) {
        Ok(holds) => Ok(holds),
        Err(_) if webhook["failurePolicy"] == "Ignore" => Ok(false),
        Err(reason) => Err(forbidden(review, object, &reason)),
    }
}

/// Asks one webhook; what it says besides goes to the caller and the audit log.
async fn ask(api: &Api, webhook: &Chosen, review: Review<'_>, object: &Value) -> Result<Answer, ApiError> {
    let (definition, name) = (webhook.webhook(), webhook.name());
    let seconds = definition["timeoutSeconds"].as_u64().unwrap_or(SECONDS).clamp(1, SECONDS_MAX);
    let uid = rest::new_uid();
    let question = question(review, object, &webhook.version, &uid);
    if !is_meant(api, definition, review, object, &question["request"]).await? {
        return Ok(Answer::default());
    }
    if review.dry_run && !matches!(definition["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")) {
        return Err(ApiError::bad_request(format!("admission webhook {name:?} does not support dry run")));
    }
    let asked = call::ask(api, &definition["clientConfig"], &question, Duration::from_secs(seconds)).await;
    let answer = asked.map_err(|error| format!("failed to call webhook: {error}"));
    match answer.and_then(|answer| review::answer(name, &uid, &answer)) {
        Ok(answer) => {
            answer.warnings.iter().for_each(|text| review.call.warnings.add(text));
            answer.annotations.iter().for_each(|(key, value)| review.call.notes.annotate(key, value));
            match answer.refusal {
                Some(refusal) => Err(refusal),
                None => Ok(answer),
            }
        }
        Err(reason) if definition["failurePolicy"] == "Ignore" => {
            tracing::warn!(webhook = name, reason, "a webhook failed and is ignored, as its policy says");
            review.call.notes.annotate(&format!("failed-open.admission.k8s.io/{name}"), &reason);
            Ok(Answer::default())
        }
        Err(reason) => Err(ApiError::internal(format!("failed calling webhook {name:?}: {reason}"))),
    }
}

#[cfg(test)]
mod tests;
