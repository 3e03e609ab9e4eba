//! NodeRestriction: a node writes only about itself and its own pods.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction>.

use mainstay_model::meta;
use mainstay_model::status::ApiError;
use serde_json::{Map, Value};

use super::{Operation, Review, forbidden};
use crate::api::Api;
use crate::rest;

const MIRROR: &str = "kubernetes.io/config.mirror";
/// Labels under Kubernetes' own names that a node may set on itself, besides those under [`OWN_PREFIXES`].
const OWN_LABELS: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
const OWN_PREFIXES: &[&str] = &["kubelet.kubernetes.io/", "node.kubernetes.io/"];

/// Checks what a node's agent writes; others pass.
pub(super) async fn validate(api: &Api, review: Review<'_>, new: &Value) -> Result<(), ApiError> {
    let Some(node) = review.call.user.node() else { return Ok(()) };
    let (call, refuse) = (review.call, |why: String| Err(forbidden(review, new, &why)));
    match (call.resource.group.as_str(), call.resource.plural.as_str(), call.subresource.as_deref()) {
        ("", "pods", None | Some("status")) => pod(review, node, new),
        ("", "nodes", None | Some("status")) => own_node(review, node, new),
        ("", "serviceaccounts", Some("token")) => token(api, review, node, new).await,
        ("coordination.k8s.io", "leases", _) | ("storage.k8s.io", "csinodes", _) => {
            let name = if new.is_null() { call.name() } else { meta::name(new) };
            let in_place = call.resource.plural != "leases" || call.namespace.as_deref() == Some("kube-node-lease");
            if name == node && in_place {
                return Ok(());
            }
            refuse(format!("can only access {} with the same name as the requesting node", call.resource.plural))
        }
        _ => Ok(()),
    }
}

fn pod(review: Review<'_>, node: &str, new: &Value) -> Result<(), ApiError> {
    let refuse = |why: String| Err(forbidden(review, new, &why));
    let on_node = |pod: &Value| meta::str_at(pod, "spec.nodeName") == Some(node);
    let is_own = review.old.is_some_and(on_node);
    match review.operation {
        Operation::Create if meta::annotation(new, MIRROR).is_none() => {
            refuse(format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"))
        }
        Operation::Create if !on_node(new) => {
            refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself"))
        }
        Operation::Delete if !is_own => {
            refuse(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
        }
        Operation::Update if !is_own => {
            refuse(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"))
        }
        Operation::Update if review.old.is_some_and(|old| meta::labels(old) != meta::labels(new)) => {
            refuse(format!("node {node:?} cannot update labels through pod status"))
        }
        _ => Ok(()),
    }
}

fn own_node(review: Review<'_>, node: &str, new: &Value) -> Result<(), ApiError> {
    let refuse = |why: String| Err(forbidden(review, new, &why));
    let name = if new.is_null() { review.call.name() } else { meta::name(new) };
    if name != node {
        return refuse(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    let foreign = foreign_labels(review.old.and_then(meta::labels), meta::labels(new));
    match review.operation {
        Operation::Create if !foreign.is_empty() => {
            let list = foreign.join(", ");
            refuse(format!("node {node:?} is not allowed to set the following labels: {list}"))
        }
        Operation::Update if !foreign.is_empty() => {
            let list = foreign.join(", ");
            refuse(format!("is not allowed to modify labels: {list}"))
        }
        Operation::Update if review.old.is_some_and(|old| taints(old) != taints(new)) => {
            refuse(format!("node {node:?} is not allowed to modify taints"))
        }
        Operation::Update
            if review.old.is_some_and(|old| meta::owner_references(old) != meta::owner_references(new)) =>
        {
            refuse(format!("node {node:?} is not allowed to modify ownerReferences"))
        }
        _ => Ok(()),
    }
}

fn taints(node: &Value) -> &[Value] {
    meta::list_at(node, "spec.taints")
}

/// Labels that changed, under Kubernetes' names, and are not for nodes to set.
fn foreign_labels(old: Option<&Map<String, Value>>, new: Option<&Map<String, Value>>) -> Vec<String> {
    let of = |labels: Option<&Map<String, Value>>, key: &str| labels.and_then(|labels| labels.get(key)).cloned();
    let mut keys: Vec<&String> = old.into_iter().chain(new).flat_map(Map::keys).collect();
    keys.sort();
    keys.dedup();
    let changed = keys.into_iter().filter(|key| of(old, key) != of(new, key));
    changed.filter(|key| is_kubernetes(key) && !is_own(key)).cloned().collect()
}

fn is_kubernetes(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    ["kubernetes.io", "k8s.io"].iter().any(|own| domain == *own || domain.ends_with(&format!(".{own}")))
}

fn is_own(key: &str) -> bool {
    OWN_LABELS.contains(&key) || OWN_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

/// A node gets tokens only for the pods it runs.
async fn token(api: &Api, review: Review<'_>, node: &str, request: &Value) -> Result<(), ApiError> {
    let refuse = |why: &str| Err(forbidden(review, &Value::Null, why));
    let bound = &request["spec"]["boundObjectRef"];
    let text = |field: &str| bound[field].as_str().unwrap_or_default();
    if text("kind") != "Pod" || text("name").is_empty() {
        return refuse("node requested token not bound to a pod");
    }
    if text("uid").is_empty() {
        return refuse("node requested token with a pod binding without a uid");
    }
    let pod = rest::find(api, "Pod", review.call.namespace.as_deref(), text("name")).await?.unwrap_or_default();
    if meta::uid(&pod) != text("uid") {
        return refuse("the UID in the bound object reference does not match the pod's");
    }
    if meta::str_at(&pod, "spec.nodeName") != Some(node) {
        return refuse("node requested token bound to a pod scheduled on a different node");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_that_are_not_for_nodes() {
        let old = json!({"a": "1", "node-role.kubernetes.io/control-plane": ""});
        let new = json!({"a": "2", "topology.kubernetes.io/zone": "z", "node-restriction.kubernetes.io/x": "", "node.kubernetes.io/y": ""});
        assert_eq!(
            foreign_labels(old.as_object(), new.as_object()),
            ["node-restriction.kubernetes.io/x", "node-role.kubernetes.io/control-plane"]
        );
    }
}
