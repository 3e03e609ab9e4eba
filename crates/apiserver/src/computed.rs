//! Kinds that are not stored, for what they tell the server knows: `componentstatuses` and `apiservices`.
//!
//! Both can be read and nothing else. Deliberately absent: the aggregation of other API servers, for which APIServices
//! would be written; custom resources serve the same purpose here.
//!
//! Source: <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/api-service-v1/>,
//! <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/component-status-v1/>.

use mainstay_custom::definition::by_priority;
use mainstay_model::meta::{self, format_time};
use mainstay_model::status::ApiError;
use mainstay_store::Revision;
use serde_json::{Value, json};

use crate::api::Api;
use crate::registry::Served;
use crate::request::{Call, Form, Verb};
use crate::rest;

/// How far before others a group stands in discovery: the core group, built-in groups, those of custom resources.
const PRIORITIES: [i64; 3] = [18_000, 17_000, 1_000];

/// Whether the answer is computed here.
pub(crate) fn answers(resource: &Served) -> bool {
    matches!(resource.rules(), "APIService" | "ComponentStatus")
}

/// Answers a get or a list.
///
/// # Errors
/// 404 for one object that is not there, 400 for a selector that cannot be read.
pub(crate) async fn answer(api: &Api, call: &Call, form: Form) -> Result<Value, ApiError> {
    let all = if call.resource.kind == "APIService" {
        services(api).await?
    } else {
        call.warnings.add("v1 ComponentStatus is deprecated in v1.19+");
        components(api).await
    };
    if let Some(name) = call.name.as_deref() {
        return all.into_iter().find(|object| meta::name(object) == name).ok_or_else(|| call.not_found());
    }
    let filter = rest::Filter::of(&Call { verb: Verb::List, ..call.clone() })?;
    let items = all.into_iter().filter(|object| filter.matches(object)).collect();
    let revision = api.store.revision().await.map_err(|error| rest::store_error(call, error))?;
    Ok(list(api, call, form, items, revision))
}

/// Objects that are not stored, as the answer to a list.
pub(crate) fn list(api: &Api, call: &Call, form: Form, mut items: Vec<Value>, revision: Revision) -> Value {
    let metadata = json!({"resourceVersion": revision.to_string()});
    if form != Form::Object {
        let include = call.query.get("includeObject").unwrap_or("Metadata");
        return rest::to_form(&call.resource, rest::list_of(items, metadata), form, include, api.now());
    }
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        // As in every list, the items have no kind of their own.
        item.remove("kind");
        item.remove("apiVersion");
    }
    json!({
        "kind": call.resource.list_kind, "apiVersion": call.resource.api_version(), "metadata": metadata, "items": items,
    })
}

/// Scheduler and controllers are parts of this process, which ends when one of them does: whoever gets this answer can be
/// told that they run. Whether the store answers is tried.
async fn components(api: &Api) -> Vec<Value> {
    let store = api.store.revision().await.err().map(|error| error.to_string());
    let component = |name: &str, fault: Option<String>| {
        let condition = match fault {
            None => json!({"type": "Healthy", "status": "True", "message": "ok"}),
            Some(error) => json!({"type": "Healthy", "status": "False", "error": error}),
        };
        json!({
            "kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name, "creationTimestamp": null},
            "conditions": [condition],
        })
    };
    vec![component("controller-manager", None), component("etcd-0", store), component("scheduler", None)]
}

/// One for each group and version, all served here.
async fn services(api: &Api) -> Result<Vec<Value>, ApiError> {
    let catalogue = api.registry.now().await?;
    let mut seen: Vec<&Served> = Vec::new();
    for row in catalogue.all() {
        if !seen.iter().any(|other| other.group == row.group && other.version == row.version) {
            seen.push(row);
        }
    }
    let started = format_time(api.started);
    let service = |row: &&Served| {
        let custom = row.custom().is_some();
        let [core, built_in, others] = PRIORITIES;
        let priority = if row.group.is_empty() { core } else { [built_in, others][usize::from(custom)] };
        // The better one of two versions of a group has the higher number.
        let lower =
            seen.iter().filter(|other| other.group == row.group && by_priority(&row.version, &other.version).is_lt());
        let condition = json!({"type": "Available", "status": "True", "reason": "Local", "lastTransitionTime": started,
            "message": "Local APIServices are always available"});
        json!({
            "kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
            "metadata": {
                "name": format!("{}.{}", row.version, row.group), "creationTimestamp": started,
                "labels": {"kube-aggregator.kubernetes.io/automanaged": if custom { "true" } else { "onstart" }},
            },
            "spec": {"group": row.group, "version": row.version, "groupPriorityMinimum": priority,
                "versionPriority": 15 + lower.count()},
            "status": {"conditions": [condition]},
        })
    };
    let mut all: Vec<Value> = seen.iter().map(service).collect();
    all.sort_by(|a, b| meta::name(a).cmp(meta::name(b)));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::testing::{World, admin};

    const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

    #[tokio::test]
    async fn groups_are_services_and_parts_are_components() {
        let world = World::new().await;
        let apps = world.get(&format!("{SERVICES}/v1.apps")).await;
        assert_eq!(
            (&apps["spec"]["group"], &apps["status"]["conditions"][0]["status"]),
            (&json!("apps"), &json!("True"))
        );
        let core = world.get(&format!("{SERVICES}?fieldSelector=metadata.name=v1.")).await;
        assert_eq!(core["items"].as_array().map(Vec::len), Some(1), "{core}");
        let missing = world.call(admin(), "GET", &format!("{SERVICES}/v1.nothing"), &Value::Null).await;
        assert_eq!(missing.refused(404), "apiservices.apiregistration.k8s.io \"v1.nothing\" not found");
        let made = world.call(admin(), "POST", SERVICES, &json!({"metadata": {"name": "v1.mine"}})).await;
        made.refused(405);
        let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
        let components = world.call_with(admin(), "GET", "/api/v1/componentstatuses", &Value::Null, &table).await;
        assert_eq!(components.warnings(), ["299 - \"v1 ComponentStatus is deprecated in v1.19+\""]);
        assert_eq!(components.body["rows"][1]["cells"], json!(["etcd-0", "Healthy", "ok", ""]));
    }
}
