//! The rows of kinds that administrators look at: certificates, quotas, admission, storage drivers.

use serde_json::{Value, json};

use super::cells::{Row, UNKNOWN};
use crate::meta;

/// How many addresses a row names before it only counts the rest.
const ENDPOINTS_MAX: usize = 3;

/// The cells of one of these kinds; nothing for any other.
pub(super) fn cells(kind: &str, row: &Row) -> Option<Vec<Value>> {
    let own = match kind {
        "CertificateSigningRequest" => return Some(signing_request(row)),
        "LimitRange" | "CustomResourceDefinition" => {
            return Some(vec![row.name(), json!(row.text("metadata.creationTimestamp", UNKNOWN))]);
        }
        "ClusterTrustBundle" => return Some(vec![row.name(), json!(row.text("spec.signerName", "<none>"))]),
        "PodCertificateRequest" => return Some(pod_certificate(row)),
        "ComponentStatus" => return Some(component(row)),
        "APIService" => {
            let available = meta::condition(row.object, "Available").and_then(|condition| condition["status"].as_str());
            vec![json!("Local"), json!(available.unwrap_or(UNKNOWN))]
        }
        "ResourceQuota" => quota(row),
        "Endpoints" => vec![json!(endpoints(row))],
        "ControllerRevision" => vec![json!(controller(row)), json!(row.number("revision").to_string())],
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => vec![json!(row.list("webhooks").len())],
        "MutatingAdmissionPolicy" | "ValidatingAdmissionPolicy" => {
            let parameters = match row.text("spec.paramKind.kind", "") {
                "" => "<unset>".to_owned(),
                kind => format!("{}/{kind}", row.text("spec.paramKind.apiVersion", "")),
            };
            let rules = if row.list("spec.mutations").is_empty() { "spec.validations" } else { "spec.mutations" };
            vec![json!(row.list(rules).len()), json!(parameters)]
        }
        "MutatingAdmissionPolicyBinding" | "ValidatingAdmissionPolicyBinding" => {
            let reference = match (row.text("spec.paramRef.namespace", ""), row.text("spec.paramRef.name", "")) {
                ("", "") => "<unset>".to_owned(),
                ("", name) => name.to_owned(),
                (namespace, name) => format!("{namespace}/{name}"),
            };
            vec![json!(row.text("spec.policyName", "")), json!(reference)]
        }
        "CSINode" => vec![json!(row.list("spec.drivers").len())],
        "VolumeAttachment" => vec![
            json!(row.text("spec.attacher", "")),
            json!(row.text("spec.source.persistentVolumeName", "")),
            json!(row.text("spec.nodeName", "")),
            json!(meta::bool_at(row.object, "status.attached").to_string()),
        ],
        "ServiceCIDR" => vec![json!(texts(row.list("spec.cidrs")).join(","))],
        "IPAddress" => {
            let parent = ["group", "resource", "namespace", "name"]
                .map(|field| row.text(&format!("spec.parentRef.{field}"), ""));
            let parts: Vec<&str> = parent.into_iter().filter(|part| !part.is_empty()).collect();
            vec![json!(parts.join("/"))]
        }
        "VolumeAttributesClass" => vec![json!(row.text("driverName", ""))],
        _ => return None,
    };
    Some([vec![row.name()], own, vec![row.age()]].concat())
}

fn component(row: &Row) -> Vec<Value> {
    let healthy =
        row.list("conditions").iter().find(|condition| condition["type"] == "Healthy").unwrap_or(&Value::Null);
    let status = match healthy["status"].as_str() {
        Some("True") => "Healthy",
        Some("False") => "Unhealthy",
        _ => "Unknown",
    };
    let text = |field: &str| json!(healthy[field].as_str().unwrap_or_default());
    vec![row.name(), json!(status), text("message"), text("error")]
}

fn pod_certificate(row: &Row) -> Vec<Value> {
    let mut cells = vec![row.name()];
    for field in ["podName", "serviceAccountName", "nodeName", "signerName"] {
        cells.push(json!(row.text(&format!("spec.{field}"), "")));
    }
    // One of Issued, Denied and Failed ends it.
    let mut ends = row.list("status.conditions").iter().filter_map(|condition| condition["type"].as_str());
    cells.push(json!(ends.next_back().unwrap_or("Pending")));
    cells
}

fn texts(list: &[Value]) -> Vec<&str> {
    list.iter().filter_map(Value::as_str).collect()
}

fn signing_request(row: &Row) -> Vec<Value> {
    let has = |wanted: &str| row.list("status.conditions").iter().any(|condition| condition["type"] == wanted);
    let mut state = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied".to_owned(),
        (_, true) => "Approved".to_owned(),
        _ => "Pending".to_owned(),
    };
    if has("Failed") {
        state.push_str(",Failed");
    }
    if !row.text("status.certificate", "").is_empty() {
        state.push_str(",Issued");
    }
    let duration = match meta::i64_at(row.object, "spec.expirationSeconds") {
        Some(seconds) => meta::human_duration(seconds),
        None => "<none>".to_owned(),
    };
    vec![
        row.name(),
        row.age(),
        json!(row.text("spec.signerName", "<none>")),
        json!(row.text("spec.username", "")),
        json!(duration),
        json!(state),
    ]
}

/// What is used of what is allowed; limits in a column of their own.
fn quota(row: &Row) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (name, hard) in meta::map_at(row.object, "status.hard").into_iter().flatten() {
        let used = row.object["status"]["used"][name].as_str().unwrap_or("0");
        let text = format!("{name}: {used}/{}", hard.as_str().unwrap_or_default());
        if name.starts_with("limits") { limits.push(text) } else { requests.push(text) }
    }
    vec![json!(requests.join(", ")), json!(limits.join(", "))]
}

fn endpoints(row: &Row) -> String {
    let mut all = Vec::new();
    for subset in row.list("subsets") {
        let addresses = subset["addresses"].as_array().into_iter().flatten();
        let ports: Vec<&Value> = subset["ports"].as_array().into_iter().flatten().collect();
        for address in addresses.filter_map(|address| address["ip"].as_str()) {
            if ports.is_empty() {
                all.push(address.to_owned());
            }
            all.extend(ports.iter().map(|port| format!("{address}:{}", port["port"])));
        }
    }
    super::cells::join_some(&all, ENDPOINTS_MAX, super::cells::NONE)
}

/// `statefulset.apps/db`.
fn controller(row: &Row) -> String {
    let Some(owner) = meta::controller_of(row.object) else { return "<none>".to_owned() };
    let text = |field: &str| owner[field].as_str().unwrap_or_default();
    let group = text("apiVersion").split_once('/').map(|(group, _)| format!(".{group}")).unwrap_or_default();
    format!("{}{group}/{}", text("kind").to_lowercase(), text("name"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::table::row;
    use serde_json::json;

    #[test]
    fn rows_as_kubectl_shows_them() {
        let now = "2026-01-01T00:00:10Z".parse().unwrap();
        let created = json!({"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"});
        let request = json!({"metadata": created, "spec": {"signerName": "example.com/s", "username": "jane",
            "expirationSeconds": 3600}, "status": {"certificate": "eA==", "conditions": [{"type": "Approved"}]}});
        assert_eq!(
            row("CertificateSigningRequest", &request, now),
            [json!("a"), json!("10s"), json!("example.com/s"), json!("jane"), json!("60m"), json!("Approved,Issued")]
        );
        let quota = json!({"metadata": created, "status": {"hard": {"pods": "2", "limits.cpu": "4"},
            "used": {"pods": "1", "limits.cpu": "0"}}});
        let cells = row("ResourceQuota", &quota, now);
        assert_eq!((&cells[1], &cells[2]), (&json!("pods: 1/2"), &json!("limits.cpu: 0/4")));
        let endpoints = json!({"metadata": created, "subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}],
            "ports": [{"port": 80}, {"port": 81}]}]});
        assert_eq!(row("Endpoints", &endpoints, now)[1], "10.0.0.1:80,10.0.0.1:81,10.0.0.2:80 + 1 more...");
    }
}
