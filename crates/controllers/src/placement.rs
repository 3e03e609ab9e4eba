//! Which nodes a pod's own demands allow: node selectors, node affinity and taints, for controllers that place pods
//! themselves or pin volumes to nodes.
//!
//! Source: <https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/>,
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/>.

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, PodSpec, Taint, Toleration};
use mainstay_model::selector::node_expression;

use crate::object::name;

/// Whether the pod's `nodeName`, `nodeSelector` and required node affinity allow the node.
pub(crate) fn is_wanted_on(spec: &PodSpec, node: &Node) -> bool {
    let named = spec.node_name.as_deref().is_none_or(|wanted| wanted.is_empty() || wanted == name(node));
    let labels = node.metadata.labels.as_ref();
    let mut selector = spec.node_selector.iter().flatten();
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    named
        && selector.all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
        && required.is_none_or(|required| chooses(required, node))
}

/// Whether a node selector chooses the node: one of its terms must hold whole.
pub(crate) fn chooses(selector: &NodeSelector, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let by_label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
    let by_field = |key: &str| (key == "metadata.name").then(|| name(node));
    let holds = |expression: &NodeSelectorRequirement, found: Option<&str>| {
        node_expression(&expression.operator, expression.values.as_deref().unwrap_or_default(), found)
    };
    selector.node_selector_terms.iter().any(|term| {
        let (labels, fields) = (term.match_expressions.iter().flatten(), term.match_fields.iter().flatten());
        let is_empty = labels.clone().next().is_none() && fields.clone().next().is_none();
        !is_empty
            && labels.into_iter().all(|expression| holds(expression, by_label(&expression.key)))
            && fields.into_iter().all(|expression| holds(expression, by_field(&expression.key)))
    })
}

/// Whether a toleration is for a taint; one without a key is for all, one without an effect for every effect.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (key, effect) = (text(&toleration.key), text(&toleration.effect));
    let is_same_value = || text(&toleration.value) == text(&taint.value);
    let by_operator = match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => !key.is_empty() && is_same_value(),
        Some(_) => false,
    };
    by_operator && (key.is_empty() || key == taint.key) && (effect.is_empty() || effect == taint.effect)
}

/// Whether a taint of one of these effects is tolerated by none of the tolerations.
pub(crate) fn is_repelled(node: &Node, tolerations: &[Toleration], effects: &[&str]) -> bool {
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.any(|taint| effects.contains(&taint.effect.as_str()) && !tolerations.iter().any(|t| tolerates(t, taint)))
}
