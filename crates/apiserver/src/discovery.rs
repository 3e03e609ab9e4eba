//! Discovery: which groups, versions and resources there are; plain and aggregated; and the version.
//!
//! Source: <https://kubernetes.io/docs/concepts/overview/kubernetes-api/#discovery-api>.

use http::{HeaderMap, header};
use mainstay_model::resource::{Resource, Subresource};
use mainstay_model::status::ApiError;
use serde_json::{Value, json};

use crate::api::Settings;
use crate::registry::{Catalogue, Served};

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
pub(crate) fn answer(
    path: &str,
    headers: &HeaderMap,
    catalogue: &Catalogue,
    settings: &Settings,
) -> Result<Value, ApiError> {
    let aggregated = wants_aggregated(headers);
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let groups = catalogue.groups();
    Ok(match parts.as_slice() {
        [] => root(&groups),
        ["api"] if aggregated => aggregate(catalogue, &[("", vec!["v1"])]),
        ["apis"] if aggregated => aggregate(catalogue, &groups),
        ["api"] => json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": settings.advertise.to_string()}],
        }),
        ["apis"] => json!({
            "kind": "APIGroupList", "apiVersion": "v1",
            "groups": groups.iter().map(|(group, versions)| group_entry(group, versions)).collect::<Vec<_>>(),
        }),
        ["api", "v1"] => resource_list(catalogue, "", "v1"),
        ["apis", group] => {
            let (group, versions) = groups.iter().find(|(name, _)| name == group).ok_or_else(ApiError::no_such_path)?;
            let mut entry = group_entry(group, versions);
            entry["kind"] = json!("APIGroup");
            entry["apiVersion"] = json!("v1");
            entry
        }
        ["apis", group, version] if catalogue.of(group, version).next().is_some() => {
            resource_list(catalogue, group, version)
        }
        _ => return Err(ApiError::no_such_path()),
    })
}

/// Every path that answers something.
fn root(groups: &[(&str, Vec<&str>)]) -> Value {
    let mut paths: Vec<String> = ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2"]
        .into_iter()
        .chain(["/openapi/v3", "/readyz", "/version"])
        .map(str::to_owned)
        .collect();
    for (group, versions) in groups {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    paths.sort();
    json!({"paths": paths})
}

fn wants_aggregated(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|alternative| {
        let alternative = alternative.replace(' ', "");
        alternative.contains("as=APIGroupDiscoveryList") && alternative.contains("v=v2;")
            || alternative.ends_with("v=v2")
    })
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn group_entry(group: &str, versions: &[&str]) -> Value {
    let entry = |version: &&str| json!({"groupVersion": group_version(group, version), "version": version});
    let versions: Vec<Value> = versions.iter().map(entry).collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions[0]})
}

fn resource_list(catalogue: &Catalogue, group: &str, version: &str) -> Value {
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version(group, version),
        "resources": catalogue.of(group, version).flat_map(|served| served.discovery()).collect::<Vec<_>>(),
    })
}

/// `apidiscovery.k8s.io/v2`: everything in one answer.
fn aggregate(catalogue: &Catalogue, groups: &[(&str, Vec<&str>)]) -> Value {
    let items = groups.iter().map(|(group, versions)| {
        let versions = versions.iter().map(|version| {
            let resources = catalogue.of(group, version).map(aggregated_entry).collect::<Vec<_>>();
            json!({"version": version, "freshness": "Current", "resources": resources})
        });
        json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions.collect::<Vec<_>>()})
    });
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {},
        "items": items.collect::<Vec<_>>(),
    })
}

fn aggregated_entry(resource: &Served) -> Value {
    let subresources = resource.subresources.iter().map(|name| subresource_entry(resource, name)).collect::<Vec<_>>();
    let mut entry = json!({
        "resource": resource.plural, "singularResource": resource.singular, "verbs": resource.verbs,
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "responseKind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
    });
    for (key, values) in [("shortNames", &resource.short_names), ("categories", &resource.categories)] {
        if !values.is_empty() {
            entry[key] = json!(values);
        }
    }
    if !subresources.is_empty() {
        entry["subresources"] = json!(subresources);
    }
    entry
}

fn subresource_entry(resource: &Resource, name: &str) -> Value {
    let shape = Subresource::of(name, resource);
    let (group, version) = shape.group_version.split_once('/').unwrap_or(("", &shape.group_version));
    json!({
        "subresource": name, "verbs": shape.verbs,
        "responseKind": {"group": group, "version": version, "kind": shape.kind},
    })
}
