//! Reviews about permission: may he, may I, and what may I.
//!
//! Source: <https://kubernetes.io/docs/reference/kubernetes-api/authorization-resources/>.

use std::collections::BTreeMap;

use mainstay_model::rbac::{Rule, compact};
use mainstay_model::status::{ApiError, FieldError, FieldErrorKind};
use serde_json::{Value, json};

use super::{Attributes, Decision, decide};
use crate::api::Api;
use crate::authn::{MASTERS, User};
use crate::request::Call;

const GROUP: &str = "authorization.k8s.io";

/// Answers SubjectAccessReview, LocalSubjectAccessReview and SelfSubjectAccessReview.
///
/// # Errors
/// 422 for a review that asks for nothing, for two things at once, or about nobody.
pub(crate) async fn access_review(api: &Api, call: &Call, mut review: Value) -> Result<Value, ApiError> {
    let kind = call.resource.kind.as_str();
    let faults = faults(call, &review["spec"]);
    if !faults.is_empty() {
        return Err(ApiError::invalid(GROUP, kind, "", faults));
    }
    let spec = &review["spec"];
    let user = if kind == "SelfSubjectAccessReview" { (*call.user).clone() } else { subject(spec) };
    let decision = decide(api, &user, &asked(spec)).await?;
    let (allowed, reason) = match decision {
        Decision::Allowed(reason) => (true, reason),
        Decision::Refused(reason) => (false, reason),
    };
    review["status"] = json!({"allowed": allowed});
    if !reason.is_empty() {
        review["status"]["reason"] = json!(reason);
    }
    Ok(review)
}

fn faults(call: &Call, spec: &Value) -> Vec<FieldError> {
    let (resource, path) = (spec["resourceAttributes"].is_object(), spec["nonResourceAttributes"].is_object());
    let text = |field: &str| spec[field].as_str().unwrap_or_default();
    let mut faults = Vec::new();
    let both = "cannot be specified in combination with resourceAttributes";
    if resource && path {
        faults.push(FieldError::new("spec.nonResourceAttributes", FieldErrorKind::Invalid, both));
    }
    if !resource && !path {
        let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        faults.push(FieldError::new("spec.resourceAttributes", FieldErrorKind::Invalid, why));
    }
    let about_others = call.resource.kind != "SelfSubjectAccessReview";
    if about_others && text("user").is_empty() && spec["groups"].as_array().is_none_or(Vec::is_empty) {
        let why = "at least one of user or group must be specified";
        faults.push(FieldError::new("spec.user", FieldErrorKind::Required, why));
    }
    if let Some(namespace) = call.namespace.as_deref() {
        let given = spec["resourceAttributes"]["namespace"].as_str().unwrap_or_default();
        if given != namespace {
            let why = "must match metadata.namespace";
            let at = "spec.resourceAttributes.namespace";
            faults.push(FieldError::with_value(at, FieldErrorKind::Invalid, json!(given), why));
        }
    }
    faults
}

fn subject(spec: &Value) -> User {
    let list = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let extra = spec["extra"].as_object().into_iter().flatten();
    User {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups: list(&spec["groups"]),
        extra: extra.map(|(key, values)| (key.clone(), list(values))).collect::<BTreeMap<_, _>>(),
    }
}

fn asked(spec: &Value) -> Attributes {
    let path = &spec["nonResourceAttributes"];
    if path.is_object() {
        return Attributes::at(path["verb"].as_str().unwrap_or_default(), path["path"].as_str().unwrap_or_default());
    }
    let text = |field: &str| spec["resourceAttributes"][field].as_str().unwrap_or_default();
    // Some people write the subresource behind the resource.
    let (resource, subresource) = text("resource").split_once('/').unwrap_or((text("resource"), text("subresource")));
    let terms = spec["resourceAttributes"]["fieldSelector"]["requirements"].as_array().into_iter().flatten();
    let term = |term: &Value| {
        let value = (term["operator"] == "In").then(|| term["values"][0].as_str()).flatten()?;
        Some(format!("{}={value}", term["key"].as_str()?))
    };
    Attributes {
        version: text("version").to_owned(),
        subresource: subresource.to_owned(),
        field_selector: terms.filter_map(term).collect::<Vec<_>>().join(","),
        ..Attributes::on(text("verb"), text("group"), resource, text("namespace"), text("name"))
    }
}

/// Answers a SelfSubjectRulesReview: what `kubectl auth can-i --list` shows.
///
/// # Errors
/// 400 without a namespace.
pub(crate) async fn rules_review(api: &Api, call: &Call, mut review: Value) -> Result<Value, ApiError> {
    let namespace = review["spec"]["namespace"].as_str().unwrap_or_default().to_owned();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let (mut rules, errors) = api.authoriser.policies.read(|p| p.rules_of(&call.user, &namespace)).await?;
    if call.user.is_in(MASTERS) {
        let all = || vec!["*".to_owned()];
        rules.push(Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() });
        rules.push(Rule { verbs: all(), urls: all(), ..Rule::default() });
    }
    let (paths, resources): (Vec<Rule>, Vec<Rule>) = rules.into_iter().partition(|rule| !rule.urls.is_empty());
    // The node authoriser cannot list what it would allow.
    let incomplete = call.user.node().is_some();
    review["status"] = json!({
        "resourceRules": compact(resources).iter().map(Rule::to_value).collect::<Vec<_>>(),
        "nonResourceRules": paths.iter().map(Rule::to_value).collect::<Vec<_>>(),
        "incomplete": incomplete || !errors.is_empty(),
    });
    if incomplete {
        review["status"]["evaluationError"] = json!("node authorizer does not support user rule resolution");
    } else if !errors.is_empty() {
        review["status"]["evaluationError"] = json!(errors.join(", "));
    }
    Ok(review)
}
