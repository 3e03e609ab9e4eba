//! ValidatingAdmissionPolicy: writes judged by expressions, without a program of anybody's.
//!
//! Flow: the policies that choose the write → each of their bindings that chooses it → the binding's parameters, if the
//! policy takes some → the verdict, once for each parameter object → what the binding says shall be done about it: deny,
//! warn, tell the audit log.
//!
//! Guarantees: policies never see writes of policies, bindings and webhook configurations, so that a broken one can be
//! removed; nor what the server writes by itself. A policy that cannot be compiled is not in force.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/>.

use std::collections::BTreeMap;
use std::sync::Arc;

use mainstay_custom::policy::matching::{Write, matches};
use mainstay_custom::policy::{Failure, Policy, Question};
use mainstay_model::meta;
use mainstay_model::resource::known;
use mainstay_model::status::{ApiError, Cause};
use mainstay_store::{Entry, Revision, Store};
use serde_json::{Value, json};

use super::{Review, forbidden, webhook};
use crate::api::Api;
use crate::follow::{Follower, View};
use crate::registry::Served;
use crate::request::{Call, Query, Verb};
use crate::rest::{self, Filter, decode_entry};

const KIND: &str = "ValidatingAdmissionPolicy";
const GROUP: &str = "admissionregistration.k8s.io";
/// Who the server is when it writes by itself.
const SELF: &str = "system:apiserver";

/// A policy that was compiled, and its object.
struct Loaded {
    policy: Policy,
    object: Value,
}

#[derive(Default)]
struct Compiled {
    by_key: BTreeMap<String, Arc<Loaded>>,
}

impl View for Compiled {
    fn take(&mut self, key: &str, entry: Option<&Entry>) {
        self.by_key.remove(key);
        let Some(entry) = entry else { return };
        let object = decode_entry(known(KIND), entry);
        match Policy::compile(&object) {
            Ok(policy) => drop(self.by_key.insert(key.to_owned(), Arc::new(Loaded { policy, object }))),
            Err(faults) => {
                let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
                tracing::error!(
                    policy = meta::name(&object),
                    ?faults,
                    "a policy cannot be compiled and is not in force"
                );
            }
        }
    }
}

/// The policies in the store, compiled.
pub(crate) struct Policies(Follower<Compiled>);

impl Policies {
    /// The policies in `store`.
    pub(crate) fn new(store: &Arc<dyn Store>) -> Self {
        Self(Follower::new(store.clone(), known(KIND).key_prefix()))
    }

    /// Waits until a change of a policy is in force.
    pub(crate) async fn settle(&self, key: &str, revision: Revision) {
        self.0.settle(key, revision).await;
    }

    async fn all(&self) -> Result<Vec<Arc<Loaded>>, ApiError> {
        self.0.read(|compiled| compiled.by_key.values().cloned().collect()).await
    }
}

/// Asks the policies.
///
/// # Errors
/// The first refusal, in the order of policies and bindings.
pub(super) async fn validate(api: &Api, review: Review<'_>, object: &Value) -> Result<(), ApiError> {
    let (call, resource) = (review.call, &review.call.resource);
    let policies = api.policies.all().await?;
    if policies.is_empty() || resource.group == GROUP || call.user.name == SELF {
        return Ok(());
    }
    let namespace = match call.namespace.as_deref() {
        Some(name) => api.followed.get("Namespace", None, name).await?,
        None => None,
    };
    let null = Value::Null;
    let namespace = namespace.as_deref().unwrap_or(&null);
    let old = review.old.unwrap_or(&null);
    let write = Write {
        operation: webhook::word(review.operation),
        resource,
        subresource: call.subresource.as_deref().unwrap_or_default(),
        name: Some(call.name()).filter(|name| !name.is_empty()).unwrap_or(meta::name(object)),
        namespace,
        object,
        old,
    };
    let bindings = api.followed.list("ValidatingAdmissionPolicyBinding", None).await?;
    let request = webhook::question(review, object, &resource.version, &rest::new_uid());
    for loaded in policies.iter().filter(|loaded| matches(&loaded.object["spec"]["matchConstraints"], &write)) {
        let own = |binding: &&Arc<Value>| {
            let spec = &binding["spec"];
            spec["policyName"] == *loaded.policy.name && matches(&spec["matchResources"], &write)
        };
        for binding in bindings.iter().filter(own) {
            let question = Question { object, old, request: &request["request"], params: &null, namespace };
            apply(api, review, loaded, binding, question).await?;
        }
    }
    Ok(())
}

/// One binding's verdict and what follows from it.
async fn apply(
    api: &Api,
    review: Review<'_>,
    loaded: &Loaded,
    binding: &Value,
    question: Question<'_>,
) -> Result<(), ApiError> {
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
    let (policy, name) = (&loaded.policy.name, meta::name(binding));
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

/// The parameter objects of a binding; a single null where the policy takes none.
///
/// # Errors
/// A sentence why there are none though there must be some.
async fn parameters(api: &Api, review: Review<'_>, policy: &Value, binding: &Value) -> Result<Vec<Value>, String> {
    let (kind, reference) = (&policy["spec"]["paramKind"], &binding["spec"]["paramRef"]);
    if kind.is_null() || reference.is_null() {
        return Ok(vec![Value::Null]);
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&kind["apiVersion"]), text(&kind["kind"]));
    let catalogue = api.registry.now().await.map_err(|error| error.message)?;
    let found = catalogue.all().iter().find(|served| served.api_version() == version && served.kind == kind);
    let resource: Served = found
        .cloned()
        .ok_or_else(|| format!("failed to configure policy: paramKind kind '{version}, {kind}' not known"))?;
    let given = reference["namespace"].as_str().filter(|namespace| !namespace.is_empty());
    let namespace = match (resource.namespaced, given.or(review.call.namespace.as_deref())) {
        (false, _) => None,
        (true, Some(namespace)) => Some(namespace),
        (true, None) => {
            return Err("failed to configure binding: cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned());
        }
    };
    let call = Call::internal(Verb::List, resource, namespace);
    let params = if let Some(name) = reference["name"].as_str().filter(|name| !name.is_empty()) {
        let one = Call { verb: Verb::Get, name: Some(name.to_owned()), query: Query::default(), ..call };
        match rest::get(api, &one).await {
            Ok(object) => vec![object],
            Err(error) if error.code == 404 => Vec::new(),
            Err(error) => return Err(error.message),
        }
    } else {
        let selector = mainstay_model::selector::LabelSelector::from_object(&reference["selector"]);
        let selector = selector.map_err(|error| error.to_string())?;
        let filter = Filter::of(&call).map_err(|error| error.message)?;
        let (mut all, _) = rest::select(api, &call, &filter).await.map_err(|error| error.message)?;
        all.retain(|object| selector.matches_object(object));
        all
    };
    if params.is_empty() && reference["parameterNotFoundAction"] != "Allow" {
        let words = "no params found for policy binding with `Deny` parameterNotFoundAction";
        return Err(format!("failed to configure binding: {words}"));
    }
    Ok(params)
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
