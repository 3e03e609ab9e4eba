//! MutatingAdmissionPolicy: writes changed by expressions.
//!
//! Flow: each policy with each of its bindings changes the object in turn; what comes out is read and completed like what
//! a client sends → after the webhooks, those that asked for it see once more what others made of the object since.

use mainstay_custom::policy::{MUTATING, Question};
use mainstay_model::apply::View;
use mainstay_model::defaults;
use mainstay_model::protobuf::schema_type;
use mainstay_model::resource::Subresource;
use mainstay_model::status::{ApiError, Cause};
use serde_json::Value;

use super::{Bound, bound, namespace_of, parameters, write_of};
use crate::admission::judge::Caller;
use crate::admission::{Operation, Review, forbidden, webhook};
use crate::api::Api;
use crate::decode::{self, Unknown};
use crate::rest;

/// What was done, for those that are to see the object once more: what each left behind.
#[derive(Default)]
pub(in crate::admission) struct Round(Vec<(Bound, Value)>);

/// Lets the policies change `object`.
///
/// # Errors
/// The first failure that its policy does not ignore.
pub(in crate::admission) async fn mutate(
    api: &Api,
    review: Review<'_>,
    object: &mut Value,
) -> Result<(Round, bool), ApiError> {
    let (mut round, mut any) = (Round::default(), false);
    // Nothing is left to be changed of what is deleted.
    if object.is_null() {
        return Ok((round, any));
    }
    for bound in bound(api, review, MUTATING).await? {
        any |= change(api, review, &bound, object).await?;
        if bound.loaded.policy.reinvoked {
            round.0.push((bound, object.clone()));
        }
    }
    Ok((round, any))
}

/// Lets those policies of a round see the object again that asked for it, if it is not what they left.
///
/// # Errors
/// As for [`mutate`].
pub(in crate::admission) async fn again(
    api: &Api,
    review: Review<'_>,
    object: &mut Value,
    round: Round,
) -> Result<bool, ApiError> {
    let mut any = false;
    for (bound, left) in round.0 {
        if left != *object {
            any |= change(api, review, &bound, object).await?;
        }
    }
    Ok(any)
}

/// Lets one policy change the object, for each of the binding's parameters; answers whether it did.
async fn change(api: &Api, review: Review<'_>, bound: &Bound, object: &mut Value) -> Result<bool, ApiError> {
    let (call, null, namespace) = (review.call, Value::Null, namespace_of(api, review).await?);
    let old = review.old.unwrap_or(&null);
    if !bound.concerns(&write_of(review, object, old, &namespace)) {
        return Ok(false);
    }
    let (policy, judge) = (&bound.loaded.policy, Caller { api, user: &call.user });
    let all = match parameters(api, review, &bound.loaded.object, &bound.binding).await {
        Ok(all) => all,
        Err(message) if policy.fails_closed => return Err(refusal(review, object, bound, &message)),
        Err(message) => {
            tracing::debug!(policy = policy.name, message, "a policy is passed over");
            return Ok(false);
        }
    };
    let mut any = false;
    for params in &all {
        let request = webhook::question(review, object, &call.resource.version, &rest::new_uid());
        let question =
            Question { object, old, request: &request["request"], params, namespace: &namespace, judge: &judge };
        let (changed, failures) = policy.mutate(question, view(review));
        if let Some(failure) = failures.first() {
            return Err(refusal(review, object, bound, failure));
        }
        let Some(changed) = changed.filter(|changed| changed != object) else { continue };
        match settled(review, object, changed) {
            Ok(changed) => (*object, any) = (changed, true),
            Err(error) if policy.fails_closed => return Err(refusal(review, object, bound, &error.message)),
            Err(error) => tracing::debug!(policy = policy.name, error.message, "a policy's change is passed over"),
        }
    }
    Ok(any)
}

/// The shape of what is written: the kind's own, or that of the subresource's body.
fn view(review: Review<'_>) -> View<'_> {
    let resource = &review.call.resource;
    match review.call.subresource.as_deref().map(|part| Subresource::of(part, resource)) {
        Some(shape) if shape.kind != resource.kind => View::built_in(schema_type(&shape.group_version, &shape.kind)),
        _ => resource.view(),
    }
}

/// A changed object as if a client had sent it: read by its schema, with its defaults.
fn settled(review: Review<'_>, before: &Value, mut changed: Value) -> Result<Value, ApiError> {
    changed["apiVersion"] = before["apiVersion"].clone();
    if review.operation != Operation::Connect {
        decode::check(review.call, &mut changed, Unknown::Ignore)?;
        defaults::apply_defaults(review.call.resource.rules(), &mut changed);
    }
    Ok(changed)
}

fn refusal(review: Review<'_>, object: &Value, bound: &Bound, failure: &str) -> ApiError {
    let (policy, binding) = (&bound.loaded.policy.name, bound.name());
    let why = format!("policy '{policy}' with binding '{binding}' denied request: {failure}");
    let mut error = forbidden(review, object, &why);
    error.other_causes.push(Cause { reason: "", message: why, field: String::new() });
    error
}

#[cfg(test)]
mod tests {
    #![allow(clippy::needless_pass_by_value)]
    use serde_json::{Value, json};

    use crate::testing::{World, admin};

    const BASE: &str = "/apis/admissionregistration.k8s.io/v1";
    const MAPS: &str = "/api/v1/namespaces/default/configmaps";

    async fn policy(world: &World, name: &str, more: Value, binding: Value) {
        let rules = json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps", "pods"]}]);
        let mut policy = json!({"metadata": {"name": name}, "spec": {"matchConstraints": {"resourceRules": rules}}});
        for (field, value) in more.as_object().into_iter().flatten() {
            policy["spec"][field] = value.clone();
        }
        world.post(&format!("{BASE}/mutatingadmissionpolicies"), policy).await;
        let mut object = json!({"metadata": {"name": name}, "spec": {"policyName": name}});
        for (field, value) in binding.as_object().into_iter().flatten() {
            object["spec"][field] = value.clone();
        }
        world.post(&format!("{BASE}/mutatingadmissionpolicybindings"), object).await;
    }

    fn label(expression: &str) -> Value {
        json!([{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
            format!("Object{{metadata: Object.metadata{{labels: {{{expression}}}}}}}")}}])
    }

    #[tokio::test]
    async fn policies_change_what_is_written_and_again_after_others() {
        let world = World::new().await;
        // The first in order asks to see what the second does.
        let seen = label("'seen': string(has(object.metadata.labels) && 'second' in object.metadata.labels)");
        policy(&world, "a", json!({"mutations": seen, "reinvocationPolicy": "IfNeeded"}), json!({})).await;
        policy(&world, "b", json!({"mutations": label("'second': request.operation")}), json!({})).await;
        let made = world.post(MAPS, json!({"metadata": {"name": "m"}})).await;
        assert_eq!(made["metadata"]["labels"], json!({"seen": "true", "second": "CREATE"}));
        let patched = world.call(admin(), "PATCH", &format!("{MAPS}/m"), &json!({"data": {"x": "y"}})).await.ok();
        assert_eq!(patched["metadata"]["labels"]["second"], "UPDATE");
        let other = world.post("/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "s"}})).await;
        assert_eq!(other["metadata"]["labels"], Value::Null);
        let stored = world.get(&format!("{BASE}/mutatingadmissionpolicies/b")).await;
        assert_eq!(
            (&stored["spec"]["failurePolicy"], &stored["spec"]["reinvocationPolicy"]),
            (&json!("Fail"), &json!("Never"))
        );
    }

    #[tokio::test]
    async fn what_a_policy_adds_is_completed_and_judged_like_all_else() {
        let world = World::new().await;
        let container = json!([{"patchType": "JSONPatch", "jsonPatch": {"expression":
            "[JSONPatch{op: 'add', path: '/spec/initContainers', value: [Object.spec.initContainers{name: params.data.name, image: 'mesh:1'}]}]"}}]);
        let spec = json!({"mutations": container, "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConditions": [{"name": "pods", "expression": "object.kind == 'Pod'"}]});
        let reference =
            json!({"paramRef": {"name": "mesh", "namespace": "default", "parameterNotFoundAction": "Deny"}});
        policy(&world, "mesh", spec, reference).await;
        world.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
        let pods = "/api/v1/namespaces/default/pods";
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let refused = world.call(admin(), "POST", pods, &pod).await;
        assert!(
            refused
                .refused(403)
                .starts_with("pods \"p\" is forbidden: policy 'mesh' with binding 'mesh' denied request: "),
            "{}",
            refused.message()
        );
        // The configuration of the policy is a map itself, which its conditions leave out; but it has to be there first.
        let bindings = format!("{BASE}/mutatingadmissionpolicybindings/mesh");
        world
            .call(admin(), "PATCH", &bindings, &json!({"spec": {"paramRef": {"parameterNotFoundAction": "Allow"}}}))
            .await
            .ok();
        world.post(MAPS, json!({"metadata": {"name": "mesh"}, "data": {"name": "proxy"}})).await;
        let made = world.post(pods, pod.clone()).await;
        let added = &made["spec"]["initContainers"][0];
        assert_eq!(
            (&added["name"], &added["terminationMessagePath"]),
            (&json!("proxy"), &json!("/dev/termination-log"))
        );
        world.call(admin(), "PATCH", &format!("{MAPS}/mesh"), &json!({"data": {"name": "Not A Name"}})).await.ok();
        let mut other = pod;
        other["metadata"]["name"] = json!("q");
        let refused = world.call(admin(), "POST", pods, &other).await;
        assert!(refused.refused(422).contains("spec.initContainers[0].name"), "{}", refused.message());
    }
}
