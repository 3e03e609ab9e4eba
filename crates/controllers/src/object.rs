//! Small facts about typed objects that several controllers need.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as apis;
use mainstay_informer::Kind;
use mainstay_model::selector::{LabelSelector, Operator, Requirement};

/// Labels or annotations.
pub(crate) type Labels = BTreeMap<String, String>;

/// The name, or nothing.
pub(crate) fn name<K: Kind>(object: &K) -> &str {
    object.meta().name.as_deref().unwrap_or_default()
}

/// The namespace, or nothing.
pub(crate) fn namespace<K: Kind>(object: &K) -> &str {
    object.meta().namespace.as_deref().unwrap_or_default()
}

/// The uid, or nothing.
pub(crate) fn uid<K: Kind>(object: &K) -> &str {
    object.meta().uid.as_deref().unwrap_or_default()
}

/// Whether its deletion has begun.
pub(crate) fn is_terminating<K: Kind>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}

/// When it was made; the epoch while it has not been.
pub(crate) fn created<K: Kind>(object: &K) -> Timestamp {
    object.meta().creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

/// One annotation.
pub(crate) fn annotation<'a, K: Kind>(object: &'a K, key: &str) -> Option<&'a str> {
    object.meta().annotations.as_ref()?.get(key).map(String::as_str)
}

/// The reference to the controller that owns the object.
pub(crate) fn controller_of<K: Kind>(object: &K) -> Option<&apis::OwnerReference> {
    object.meta().owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The reference that makes `owner` the controller of an object.
pub(crate) fn controller_reference<K: Kind>(owner: &K) -> apis::OwnerReference {
    apis::OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: name(owner).to_owned(),
        uid: uid(owner).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A reference for events and endpoints.
pub(crate) fn reference<K: Kind>(object: &K) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: object.meta().namespace.clone(),
        name: object.meta().name.clone(),
        uid: object.meta().uid.clone(),
        ..ObjectReference::default()
    }
}

/// A compiled selector; one that cannot be understood selects nothing, as does an absent one.
pub(crate) fn selector(selector: Option<&apis::LabelSelector>) -> LabelSelector {
    let Some(selector) = selector else { return LabelSelector::nothing() };
    let equal = selector.match_labels.iter().flatten();
    let equal = equal.map(|(key, value)| Requirement::new(key, Operator::In, vec![value.clone()]));
    let expressions = selector.match_expressions.iter().flatten().map(|expression| {
        let operator = match expression.operator.as_str() {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            other => return Err(mainstay_model::selector::SelectorError::Operator(other.to_owned())),
        };
        Requirement::new(&expression.key, operator, expression.values.clone().unwrap_or_default())
    });
    equal.chain(expressions).collect::<Result<_, _>>().map_or(LabelSelector::nothing(), LabelSelector::new)
}

/// Whether a selector chooses an object with these labels.
pub(crate) fn selects(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    selector.matches_with(|key| labels.and_then(|labels| labels.get(key)).map(String::as_str))
}

/// A condition of a pod.
pub(crate) fn pod_condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

/// The pod with the condition by which its owner can tell that its end was not its own fault.
///
/// Source: <https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions>.
pub(crate) fn disrupted(pod: &Pod, reason: &str, message: &str, now: Timestamp) -> Pod {
    with_condition(pod, "DisruptionTarget", "True", reason, message, now)
}

/// The pod with this condition in place of the one of its type.
pub(crate) fn with_condition(pod: &Pod, type_: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Pod {
    let mut pod = pod.clone();
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != type_);
    conditions.push(PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(time(now)),
        ..PodCondition::default()
    });
    pod
}

/// Whether the pod's `Ready` condition is true.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    pod_condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// How long until a pod has been ready for `min_ready_seconds`; zero when it is available, `None` when not ready.
pub(crate) fn until_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<std::time::Duration> {
    let ready = pod_condition(pod, "Ready").filter(|ready| ready.status == "True")?;
    if min_ready_seconds <= 0 {
        return Some(std::time::Duration::ZERO);
    }
    let since = ready.last_transition_time.as_ref()?.0;
    let due = since + jiff::SignedDuration::from_secs(i64::from(min_ready_seconds));
    Some(std::time::Duration::try_from(due.duration_since(now)).unwrap_or_default())
}

/// `status.phase`, `Pending` when absent.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Whether the pod has ended for good.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether a controller counts the pod: neither ended nor being deleted.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_terminating(pod)
}

/// The node it is bound to, or nothing.
pub(crate) fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// `now` as objects carry it: whole seconds.
pub(crate) fn time(now: Timestamp) -> apis::Time {
    apis::Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}
