//! Discovery: which groups, versions and resources there are; plain and aggregated; and the version.
//!
//! Source: <https://kubernetes.io/docs/concepts/overview/kubernetes-api/#discovery-api>.

use http::{HeaderMap, header};
use mainstay_model::resource::{BUILT_IN, Resource, Subresource, VERBS, groups};
use mainstay_model::status::ApiError;
use serde_json::{Value, json};

use crate::api::Settings;

/// The media type of aggregated discovery.
pub(crate) const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The version this server speaks.
pub(crate) fn version() -> Value {
    json!({
        "major": "1", "minor": "37", "gitVersion": "v1.37.0+mainstay", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "2026-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64",
    })
}

/// The discovery document of a path.
///
/// # Errors
/// 404 for any other path.
pub(crate) fn answer(path: &str, headers: &HeaderMap, settings: &Settings) -> Result<Value, ApiError> {
    let aggregated = wants_aggregated(headers);
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    Ok(match parts.as_slice() {
        [] => json!({"paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]}),
        ["api"] if aggregated => aggregate(&[("", "v1")]),
        ["apis"] if aggregated => aggregate(&groups()),
        ["api"] => json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": settings.advertise.to_string()}],
        }),
        ["apis"] => json!({
            "kind": "APIGroupList", "apiVersion": "v1",
            "groups": groups().iter().map(|(group, version)| group_entry(group, version)).collect::<Vec<_>>(),
        }),
        ["api", "v1"] => resource_list("", "v1"),
        ["apis", group] => {
            let (group, version) = known_group(group)?;
            let mut entry = group_entry(group, version);
            entry["kind"] = json!("APIGroup");
            entry["apiVersion"] = json!("v1");
            entry
        }
        ["apis", group, version] => match known_group(group)? {
            (group, known) if known == *version => resource_list(group, known),
            _ => return Err(ApiError::no_such_path()),
        },
        _ => return Err(ApiError::no_such_path()),
    })
}

fn wants_aggregated(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|alternative| {
        let alternative = alternative.replace(' ', "");
        alternative.contains("as=APIGroupDiscoveryList") && alternative.contains("v=v2;")
            || alternative.ends_with("v=v2")
    })
}

fn known_group(name: &str) -> Result<(&'static str, &'static str), ApiError> {
    groups().into_iter().find(|(group, _)| *group == name).ok_or_else(ApiError::no_such_path)
}

fn of(group: &str) -> impl Iterator<Item = &'static Resource> {
    BUILT_IN.iter().filter(move |r| r.group == group)
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn group_entry(group: &str, version: &str) -> Value {
    let version = json!({"groupVersion": group_version(group, version), "version": version});
    json!({"name": group, "versions": [version], "preferredVersion": version})
}

fn resource_list(group: &str, version: &str) -> Value {
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version(group, version),
        "resources": of(group).flat_map(Resource::discovery).collect::<Vec<_>>(),
    })
}

/// `apidiscovery.k8s.io/v2`: everything in one answer.
fn aggregate(groups: &[(&'static str, &'static str)]) -> Value {
    let items = groups.iter().map(|(group, version)| {
        let resources = of(group).map(aggregated_entry).collect::<Vec<_>>();
        json!({
            "metadata": {"name": group, "creationTimestamp": null},
            "versions": [{"version": version, "freshness": "Current", "resources": resources}],
        })
    });
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {},
        "items": items.collect::<Vec<_>>(),
    })
}

fn aggregated_entry(resource: &Resource) -> Value {
    let subresources = resource.subresources.iter().map(|name| {
        let shape = Subresource::of(name, resource);
        let (group, version) = shape.group_version.split_once('/').unwrap_or(("", &shape.group_version));
        json!({
            "subresource": name, "verbs": shape.verbs,
            "responseKind": {"group": group, "version": version, "kind": shape.kind},
        })
    });
    let mut entry = json!({
        "resource": resource.plural, "singularResource": resource.singular, "verbs": VERBS,
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "responseKind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
    });
    for (key, values) in [("shortNames", resource.short_names), ("categories", resource.categories)] {
        if !values.is_empty() {
            entry[key] = json!(values);
        }
    }
    let subresources = subresources.collect::<Vec<_>>();
    if !subresources.is_empty() {
        entry["subresources"] = json!(subresources);
    }
    entry
}
