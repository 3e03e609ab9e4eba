//! The `eviction` subresource of pods: a deletion that asks the pod's PodDisruptionBudget first.
//!
//! Flow: find the pod and its budget → take one disruption off the budget, in one compare-and-swap, so that two
//! evictions at the same moment cannot both have the last one → delete the pod. The controller counts anew when it sees
//! the pod go; until then the budget remembers the pod in `disruptedPods`.
//!
//! Source: <https://kubernetes.io/docs/concepts/scheduling-eviction/api-eviction/>,
//! <https://kubernetes.io/docs/tasks/run-application/configure-pdb/>.

use bytes::Bytes;
use http::StatusCode;
use mainstay_model::meta::format_time;
use mainstay_model::resource::known;
use mainstay_model::selector::LabelSelector;
use mainstay_model::status::{ApiError, Cause};
use mainstay_model::workload::{is_pod_finished, is_pod_ready};
use serde_json::{Value, json};

use super::delete::delete;
use super::list::{Filter, select};
use super::object::{meta, parse_body};
use super::update::change;
use crate::api::Api;
use crate::decode;
use crate::request::{Call, Verb};

/// Pods a budget remembers at most: more would say that its controller does not run.
const DISRUPTED_MAX: usize = 2000;
const VIOLATION: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// POST `eviction`.
///
/// # Errors
/// 429 when the budget allows no disruption now, 500 when several budgets cover the pod.
pub(crate) async fn evict(
    api: &Api,
    call: &Call,
    media_type: &str,
    body: &[u8],
) -> Result<(StatusCode, Value), ApiError> {
    let mut eviction = parse_body(media_type, body)?;
    decode::check_subresource(call, &mut eviction)?;
    let name = meta(&eviction, "name");
    if !name.is_empty() && name != call.name() {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    let object = Call { subresource: None, ..call.clone() };
    let mut pod = super::get(api, &object).await?;
    let mut options = eviction["deleteOptions"].clone();
    let dry_run = call.query.dry_run()? || options["dryRun"].as_array().is_some_and(|list| !list.is_empty());
    let budget = if needs_permission(&pod) { budget_of(api, call, &pod).await? } else { None };
    if let Some(budget) = &budget {
        spend(api, budget, &pod, dry_run).await?;
    }
    if !dry_run && meta(&pod, "deletionTimestamp").is_empty() {
        pod = told(api, &object, &pod, budget.is_some()).await?;
    }
    if budget.is_some() {
        // The permission was given for the pod as it was read.
        options["preconditions"]["resourceVersion"] = pod["metadata"]["resourceVersion"].clone();
    }
    if dry_run {
        options["dryRun"] = json!(["All"]);
    }
    let options = if options.is_object() { Bytes::from(options.to_string()) } else { Bytes::new() };
    delete(api, &Call { verb: Verb::Delete, ..object }, "application/json", &options).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok((StatusCode::CREATED, status))
}

/// Says in the pod's status that it is not its own fault: its owner may not count it as a failure. `guarded` by the version
/// that was read.
async fn told(api: &Api, object: &Call, pod: &Value, guarded: bool) -> Result<Value, ApiError> {
    let call = Call { verb: Verb::Update, subresource: Some("status".to_owned()), ..object.clone() };
    let now = format_time(api.now());
    let (uid, version) = (meta(pod, "uid"), meta(pod, "resourceVersion"));
    change(api, &call, |old| {
        if meta(old, "uid") != uid || (guarded && meta(old, "resourceVersion") != version) {
            return Err(ApiError::modified("", &call.resource.plural, call.name()));
        }
        let mut new = old.clone();
        let others = old["status"]["conditions"].as_array().into_iter().flatten();
        let mut conditions: Vec<Value> = others.filter(|one| one["type"] != "DisruptionTarget").cloned().collect();
        conditions.push(json!({
            "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting", "lastTransitionTime": now,
        }));
        new["status"]["conditions"] = json!(conditions);
        Ok(new)
    })
    .await
}

/// Pods that do not run any more, or are going already, cost nobody anything.
fn needs_permission(pod: &Value) -> bool {
    !is_pod_finished(pod) && pod["status"]["phase"] != "Pending" && meta(pod, "deletionTimestamp").is_empty()
}

async fn budget_of(api: &Api, call: &Call, pod: &Value) -> Result<Option<Call>, ApiError> {
    let budgets = Call::internal(Verb::List, known("PodDisruptionBudget").into(), call.namespace.as_deref());
    let (all, _) = select(api, &budgets, &Filter::of(&budgets)?).await?;
    let mut covering = all.iter().filter(|budget| covers(budget, pod));
    let Some(budget) = covering.next() else { return Ok(None) };
    if covering.next().is_some() {
        return Err(ApiError::new(
            500,
            "InternalError",
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        ));
    }
    Ok(Some(Call { name: Some(meta(budget, "name").to_owned()), verb: Verb::Update, ..budgets }))
}

fn covers(budget: &Value, pod: &Value) -> bool {
    LabelSelector::from_object(&budget["spec"]["selector"]).is_ok_and(|s| s.matches_object(pod))
}

/// Takes one disruption off the budget, unless the pod is not ready and the policy lets such pods go.
async fn spend(api: &Api, budget: &Call, pod: &Value, dry_run: bool) -> Result<(), ApiError> {
    let mut call = Call { subresource: Some("status".to_owned()), ..budget.clone() };
    if dry_run {
        call.query = crate::request::Query::parse(Some("dryRun=All"));
    }
    let now = format_time(api.now());
    change(api, &call, |old| {
        let mut new = old.clone();
        let (spec, status) = (&old["spec"], &old["status"]);
        let healthy = status["currentHealthy"].as_i64().unwrap_or(0) >= status["desiredHealthy"].as_i64().unwrap_or(0);
        let lets_go = spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow" || healthy;
        if !is_pod_ready(pod) && lets_go && status["desiredHealthy"].as_i64().is_some_and(|desired| desired > 0) {
            return Ok(new);
        }
        if status["observedGeneration"].as_i64().unwrap_or(0) < old["metadata"]["generation"].as_i64().unwrap_or(0) {
            let detail = format!("The disruption budget {} is still being processed by the server.", budget.name());
            return Err(refusal(&detail, budget, Some(10)));
        }
        let allowed = status["disruptionsAllowed"].as_i64().unwrap_or(0);
        let remembered = status["disruptedPods"].as_object().map_or(0, serde_json::Map::len);
        if allowed < 1 || remembered >= DISRUPTED_MAX {
            let detail = format!(
                "The disruption budget {} needs {} healthy pods and has {} currently",
                budget.name(),
                status["desiredHealthy"],
                status["currentHealthy"]
            );
            // Without a time: as soon as a replacement is ready. Clients that heed one would only notice much later.
            return Err(refusal(&detail, budget, None));
        }
        new["status"]["disruptionsAllowed"] = json!(allowed - 1);
        new["status"]["disruptedPods"][meta(pod, "name")] = json!(now);
        Ok(new)
    })
    .await
    .map(drop)
}

fn refusal(detail: &str, budget: &Call, retry_after_seconds: Option<u32>) -> ApiError {
    tracing::debug!(budget = budget.name(), detail, "eviction refused");
    let mut error = ApiError::new(429, "TooManyRequests", VIOLATION);
    error.retry_after_seconds = retry_after_seconds;
    error.other_causes = vec![Cause { reason: "DisruptionBudget", message: detail.to_owned(), field: String::new() }];
    error
}
