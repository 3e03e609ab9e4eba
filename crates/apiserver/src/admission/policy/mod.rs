//! Admission policies: writes changed and judged by expressions, without a program of anybody's.
//!
//! Flow: the policies of a kind ([`mutating`], [`validating`]) with their bindings → those that choose the write → the
//! binding's parameters, if the policy takes some → what the policy makes or says of the object, once for each.
//!
//! Guarantees: policies never see writes of policies, bindings and webhook configurations, so that a broken one can be
//! removed; nor what the server writes by itself. A policy that cannot be compiled is not in force.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/>,
//! <https://kubernetes.io/docs/reference/access-authn-authz/mutating-admission-policy/>.

mod mutating;
mod validating;

use std::collections::BTreeMap;
use std::sync::Arc;

use mainstay_custom::policy::matching::{Write, matches};
use mainstay_custom::policy::{MUTATING, Policy, VALIDATING};
use mainstay_model::meta;
use mainstay_model::resource::known;
use mainstay_model::status::ApiError;
use mainstay_store::{Entry, Revision, Store};
use serde_json::Value;

use super::{Review, webhook};
use crate::api::Api;
use crate::follow::{Follower, View};
use crate::registry::Served;
use crate::request::{Call, Query, Verb};
use crate::rest::{self, Filter, decode_entry};

pub(super) use mutating::{again, mutate};
pub(super) use validating::validate;

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
        let kind = if key.starts_with(&known(MUTATING).key_prefix()) { MUTATING } else { VALIDATING };
        let object = decode_entry(known(kind), entry);
        match Policy::compile(kind, &object) {
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
pub(crate) struct Policies {
    mutating: Follower<Compiled>,
    validating: Follower<Compiled>,
}

impl Policies {
    /// The policies in `store`.
    pub(crate) fn new(store: &Arc<dyn Store>) -> Self {
        let follower = |kind: &str| Follower::new(store.clone(), known(kind).key_prefix());
        Self { mutating: follower(MUTATING), validating: follower(VALIDATING) }
    }

    /// Waits until a change of a policy is in force.
    pub(crate) async fn settle(&self, key: &str, revision: Revision) {
        self.mutating.settle(key, revision).await;
        self.validating.settle(key, revision).await;
    }

    async fn all(&self, kind: &str) -> Result<Vec<Arc<Loaded>>, ApiError> {
        let of = if kind == MUTATING { &self.mutating } else { &self.validating };
        of.read(|compiled| compiled.by_key.values().cloned().collect()).await
    }
}

/// A policy with one of its bindings.
struct Bound {
    loaded: Arc<Loaded>,
    binding: Arc<Value>,
}

impl Bound {
    /// Whether both choose a write.
    fn concerns(&self, write: &Write<'_>) -> bool {
        matches(&self.loaded.object["spec"]["matchConstraints"], write)
            && matches(&self.binding["spec"]["matchResources"], write)
    }

    /// The name of the binding.
    fn name(&self) -> &str {
        meta::name(&self.binding)
    }
}

/// The policies of a kind that may have to do with a write, in the order of their names and their bindings'.
async fn bound(api: &Api, review: Review<'_>, kind: &str) -> Result<Vec<Bound>, ApiError> {
    let policies = api.policies.all(kind).await?;
    if policies.is_empty() || review.call.resource.group == GROUP || review.call.user.name == SELF {
        return Ok(Vec::new());
    }
    let bindings = api.followed.list(&format!("{kind}Binding"), None).await?;
    let mut all = Vec::new();
    for loaded in policies {
        let own = |binding: &&Arc<Value>| binding["spec"]["policyName"] == *loaded.policy.name;
        let of = |binding: &Arc<Value>| Bound { loaded: loaded.clone(), binding: binding.clone() };
        all.extend(bindings.iter().filter(own).map(of));
    }
    Ok(all)
}

/// The namespace object of a write; null where it has none.
async fn namespace_of(api: &Api, review: Review<'_>) -> Result<Arc<Value>, ApiError> {
    let found = match review.call.namespace.as_deref() {
        Some(name) => api.followed.get("Namespace", None, name).await?,
        None => None,
    };
    Ok(found.unwrap_or_default())
}

/// A write as rules see it.
fn write_of<'a>(review: Review<'a>, object: &'a Value, old: &'a Value, namespace: &'a Value) -> Write<'a> {
    let call = review.call;
    Write {
        operation: webhook::word(review.operation),
        resource: &call.resource,
        subresource: call.subresource.as_deref().unwrap_or_default(),
        name: Some(call.name()).filter(|name| !name.is_empty()).unwrap_or(meta::name(object)),
        namespace,
        object,
        old,
    }
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
