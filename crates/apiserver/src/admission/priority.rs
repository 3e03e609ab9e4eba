//! Priority: a pod's class becomes its priority; and only one class is the default.
//!
//! Source: <https://kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption/>.

use mainstay_model::meta;
use mainstay_model::status::ApiError;
use serde_json::{Value, json};

use super::{Review, forbidden};
use crate::api::Api;

/// Resolves a new pod's class.
pub(super) async fn mutate(api: &Api, review: Review<'_>, pod: &mut Value) -> Result<(), ApiError> {
    let name = meta::str_at(pod, "spec.priorityClassName").unwrap_or_default().to_owned();
    let class = if name.is_empty() {
        let all = api.followed.list("PriorityClass", None).await?;
        let mut defaults: Vec<_> = all.into_iter().filter(|class| class["globalDefault"] == true).collect();
        // Of several, which a race can leave behind, the least counts.
        defaults.sort_by_key(|class| class["value"].as_i64());
        defaults.into_iter().next()
    } else {
        let found = api.followed.get("PriorityClass", None, &name).await?;
        let why = format!("no PriorityClass with name {name} was found");
        Some(found.ok_or_else(|| forbidden(review, pod, &why))?)
    };
    let value = class.as_ref().and_then(|class| class["value"].as_i64()).unwrap_or(0);
    let given = pod["spec"]["priority"].as_i64();
    if given.is_some_and(|given| given != value) {
        let why = format!(
            "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name",
            given.unwrap_or_default()
        );
        return Err(forbidden(review, pod, &why));
    }
    let policy = class.as_ref().and_then(|class| class["preemptionPolicy"].as_str()).unwrap_or("PreemptLowerPriority");
    let policy_given = pod["spec"]["preemptionPolicy"].as_str();
    if policy_given.is_some_and(|given| given != policy) {
        let why = format!(
            "the string value of PreemptionPolicy ({}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name",
            policy_given.unwrap_or_default()
        );
        return Err(forbidden(review, pod, &why));
    }
    let spec = &mut pod["spec"];
    if let Some(class) = &class {
        spec["priorityClassName"] = class["metadata"]["name"].clone();
    }
    spec["priority"] = json!(value);
    spec["preemptionPolicy"] = json!(policy);
    Ok(())
}

/// Refuses a second class for pods that name none.
pub(super) async fn validate(api: &Api, review: Review<'_>, class: &Value) -> Result<(), ApiError> {
    let name = meta::name(class);
    if class["globalDefault"] != true {
        return Ok(());
    }
    let all = api.followed.list("PriorityClass", None).await?;
    let other = all.iter().find(|other| other["globalDefault"] == true && meta::name(other) != name);
    other.map_or(Ok(()), |other| {
        let why =
            format!("PriorityClass {} is already marked as default. Only one default can exist", meta::name(other));
        Err(forbidden(review, class, &why))
    })
}
