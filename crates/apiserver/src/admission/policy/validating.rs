//! ValidatingAdmissionPolicy: writes judged by expressions.
//!
//! Flow: the verdict of each policy with each of its bindings, once for each parameter object → what the binding says
//! shall be done about it: deny, warn, tell the audit log.

use mainstay_custom::policy::{Failure, Question, VALIDATING};
use mainstay_model::meta;
use mainstay_model::status::{ApiError, Cause};
use serde_json::{Value, json};

use super::{Bound, bound, namespace_of, parameters, write_of};
use crate::admission::judge::Caller;
use crate::admission::{Review, forbidden, webhook};
use crate::api::Api;
use crate::rest;

/// Asks the policies.
///
/// # Errors
/// The first refusal, in the order of policies and bindings.
pub(in crate::admission) async fn validate(api: &Api, review: Review<'_>, object: &Value) -> Result<(), ApiError> {
    let all = bound(api, review, VALIDATING).await?;
    if all.is_empty() {
        return Ok(());
    }
    let (null, namespace) = (Value::Null, namespace_of(api, review).await?);
    let old = review.old.unwrap_or(&null);
    let write = write_of(review, object, old, &namespace);
    let judge = Caller { api, user: &review.call.user };
    let request = webhook::question(review, object, &review.call.resource.version, &rest::new_uid());
    for bound in all.iter().filter(|bound| bound.concerns(&write)) {
        let (request, params, namespace) = (&request["request"], &null, &*namespace);
        let question = Question { object, old, request, params, namespace, judge: &judge };
        apply(api, review, bound, question).await?;
    }
    Ok(())
}

/// One binding's verdict and what follows from it.
async fn apply(api: &Api, review: Review<'_>, bound: &Bound, question: Question<'_>) -> Result<(), ApiError> {
    let (loaded, binding) = (&bound.loaded, &bound.binding);
    let mut failures = Vec::new();
    match parameters(api, review, &loaded.object, binding).await {
        Ok(all) => {
            for params in &all {
                let outcome = loaded.policy.evaluate(Question { params, ..question });
                failures.extend(outcome.failures);
                for (key, value) in &outcome.annotations {
                    review.call.notes.annotate(&format!("{}/{key}", loaded.policy.name), value);
                }
            }
        }
        Err(message) if loaded.policy.fails_closed => failures.push(Failure { message, reason: None }),
        Err(message) => tracing::debug!(policy = loaded.policy.name, message, "a policy is passed over"),
    }
    let (policy, name) = (&loaded.policy.name, bound.name());
    let does = |action: &str| meta::list_at(binding, "spec.validationActions").iter().any(|given| given == action);
    for failure in &failures {
        if does("Warn") {
            let text = &failure.message;
            let warning =
                format!("Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{name}': {text}");
            review.call.warnings.add(warning);
        }
        if does("Audit") {
            let value = json!([{"message": failure.message, "policy": policy, "binding": name,
                "validationActions": binding["spec"]["validationActions"]}]);
            review.call.notes.annotate("validation.policy.admission.k8s.io/validation_failure", &value.to_string());
        }
    }
    match failures.first().filter(|_| does("Deny")) {
        Some(failure) => Err(refusal(review, question.object, policy, name, failure)),
        None => Ok(()),
    }
}

fn refusal(review: Review<'_>, object: &Value, policy: &str, binding: &str, failure: &Failure) -> ApiError {
    let why =
        format!("ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {}", failure.message);
    let (code, reason) = match failure.reason.as_deref() {
        Some("Unauthorized") => (401, "Unauthorized"),
        Some("Forbidden") => (403, "Forbidden"),
        Some("RequestEntityTooLarge") => (413, "RequestEntityTooLarge"),
        _ => (422, "Invalid"),
    };
    let mut error = forbidden(review, object, &why);
    (error.code, error.reason) = (code, reason);
    error.other_causes.push(Cause { reason: "", message: failure.message.clone(), field: String::new() });
    error
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{World, admin};

    const BASE: &str = "/apis/admissionregistration.k8s.io/v1";
    const MAPS: &str = "/api/v1/namespaces/default/configmaps";

    async fn world(spec: Value, binding: Value) -> World {
        let world = World::new().await;
        let mut policy = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE", "DELETE"], "resources": ["configmaps"]}]}}});
        for (field, value) in spec.as_object().unwrap() {
            policy["spec"][field] = value.clone();
        }
        world.post(&format!("{BASE}/validatingadmissionpolicies"), policy).await;
        let mut object = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}});
        for (field, value) in binding.as_object().unwrap() {
            object["spec"][field] = value.clone();
        }
        world.post(&format!("{BASE}/validatingadmissionpolicybindings"), object).await;
        world
    }

    fn map(name: &str, value: &str) -> Value {
        json!({"metadata": {"name": name}, "data": {"v": value}})
    }

    #[tokio::test]
    async fn a_policy_refuses_what_its_expression_does_not_allow() {
        let spec = json!({"variables": [{"name": "v", "expression": "object.data.v"}],
            "validations": [{"expression": "request.operation == 'DELETE' || variables.v != 'bad'", "message": "not bad", "reason": "Forbidden"},
                {"expression": "request.operation != 'DELETE' || oldObject.data.v == 'free'"}]});
        let world = world(spec, json!({})).await;
        world.post(MAPS, map("a", "good")).await;
        let refused = world.call(admin(), "POST", MAPS, &map("b", "bad")).await;
        assert_eq!(
            refused.refused(403),
            "configmaps \"b\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: not bad"
        );
        let refused = world.call(admin(), "DELETE", &format!("{MAPS}/a"), &Value::Null).await;
        assert!(refused.refused(422).contains("failed expression: request.operation"), "{}", refused.message());
        // A binding that is gone binds nobody.
        world.call(admin(), "DELETE", &format!("{BASE}/validatingadmissionpolicybindings/b"), &Value::Null).await.ok();
        world.post(MAPS, map("b", "bad")).await;
    }

    #[tokio::test]
    async fn parameters_and_warnings() {
        let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "Secret"},
            "validations": [{"expression": "object.metadata.name.size() <= int(params.metadata.labels.max)"}]});
        let binding = json!({"validationActions": ["Warn", "Audit"],
            "paramRef": {"name": "limits", "namespace": "kube-system", "parameterNotFoundAction": "Deny"}});
        let world = world(spec, binding).await;
        let without = world.call(admin(), "POST", MAPS, &map("a", "")).await;
        assert!(without.warnings()[0].contains("no params found"), "{:?}", without.warnings());
        let limits = json!({"metadata": {"name": "limits", "labels": {"max": "3"}}});
        world.post("/api/v1/namespaces/kube-system/secrets", limits).await;
        assert_eq!(world.call(admin(), "POST", MAPS, &map("abc", "")).await.warnings(), Vec::<String>::new());
        let warned = world.call(admin(), "POST", MAPS, &map("abcd", "")).await;
        assert!(warned.warnings()[0].contains("Validation failed for ValidatingAdmissionPolicy 'p'"));
    }

    #[tokio::test]
    async fn a_policy_that_does_not_compile_is_refused() {
        let world = World::new().await;
        let policy = json!({"metadata": {"name": "p"}, "spec": {"validations": [{"expression": "object.x =="}],
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["*"]}]}}});
        let refused = world.call(admin(), "POST", &format!("{BASE}/validatingadmissionpolicies"), &policy).await;
        assert!(refused.refused(422).contains("compilation failed: ERROR: <input>:1:12"), "{}", refused.message());
    }
}
