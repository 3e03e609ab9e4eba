//! The rows of services, endpoints, ingresses and network policies.

use serde_json::{Value, json};

use super::cells::{NONE, Row, UNSET, join, join_some, labels};
use crate::meta;

pub(super) fn service(row: &Row) -> Vec<Value> {
    let service = row.object;
    let ports: Vec<_> = row
        .list("spec.ports")
        .iter()
        .map(|port| {
            let (number, protocol) = (port["port"].as_i64().unwrap_or(0), port["protocol"].as_str().unwrap_or("TCP"));
            match port["nodePort"].as_i64().filter(|node_port| *node_port > 0) {
                Some(node_port) => format!("{number}:{node_port}/{protocol}"),
                None => format!("{number}/{protocol}"),
            }
        })
        .collect();
    let ports = if ports.is_empty() { NONE.to_owned() } else { ports.join(",") };
    vec![
        row.name(),
        json!(row.text("spec.type", "ClusterIP")),
        json!(row.text("spec.clusterIPs.0", row.text("spec.clusterIP", NONE))),
        json!(external_addresses(row)),
        json!(ports),
        row.age(),
        json!(labels(meta::map_at(service, "spec.selector"))),
    ]
}

fn external_addresses(row: &Row) -> String {
    let given = || row.list("spec.externalIPs").iter().filter_map(Value::as_str);
    match row.text("spec.type", "ClusterIP") {
        "ExternalName" => row.text("spec.externalName", "").to_owned(),
        "LoadBalancer" => {
            let assigned = balancer_addresses(row);
            let all = join(assigned.iter().copied().chain(given()));
            if all.is_empty() { "<pending>".to_owned() } else { all }
        }
        _ => {
            let all = join(given());
            if all.is_empty() { NONE.to_owned() } else { all }
        }
    }
}

/// Addresses and host names in `status.loadBalancer`.
fn balancer_addresses<'a>(row: &Row<'a>) -> Vec<&'a str> {
    let text = |entry: &'a Value, field: &str| entry[field].as_str().filter(|text| !text.is_empty());
    let entries = row.list("status.loadBalancer.ingress").iter();
    entries.filter_map(|entry| text(entry, "ip").or_else(|| text(entry, "hostname"))).collect()
}

pub(super) fn endpoint_slice(row: &Row) -> Vec<Value> {
    let ports = row.list("ports").iter().map(|port| match port["port"].as_i64() {
        Some(number) => number.to_string(),
        None => port["name"].as_str().filter(|name| !name.is_empty()).unwrap_or("*").to_owned(),
    });
    let addresses = row.list("endpoints").iter().flat_map(|endpoint| meta::list_at(endpoint, "addresses"));
    let addresses = addresses.filter_map(|address| address.as_str().map(str::to_owned));
    vec![
        row.name(),
        json!(row.text("addressType", "")),
        json!(join_some(&ports.collect::<Vec<_>>(), 3, UNSET)),
        json!(join_some(&addresses.collect::<Vec<_>>(), 3, UNSET)),
        row.age(),
    ]
}

pub(super) fn ingress(row: &Row) -> Vec<Value> {
    let hosts = row.list("spec.rules").iter().filter_map(|rule| rule["host"].as_str());
    let hosts: Vec<_> = hosts.filter(|host| !host.is_empty()).map(str::to_owned).collect();
    let ports = if row.list("spec.tls").is_empty() { "80" } else { "80, 443" };
    let old_class = meta::annotation(row.object, "kubernetes.io/ingress.class").unwrap_or(NONE);
    vec![
        row.name(),
        json!(row.text("spec.ingressClassName", old_class)),
        json!(join_some(&hosts, 3, "*")),
        json!(join(balancer_addresses(row))),
        json!(ports),
        row.age(),
    ]
}

pub(super) fn ingress_class(row: &Row) -> Vec<Value> {
    let parameters = match meta::at(row.object, "spec.parameters") {
        Some(reference) => {
            let text = |field: &str| reference[field].as_str().unwrap_or_default();
            let group = if text("apiGroup").is_empty() { String::new() } else { format!(".{}", text("apiGroup")) };
            format!("{}{group}/{}", text("kind"), text("name"))
        }
        None => NONE.to_owned(),
    };
    vec![row.name(), json!(row.text("spec.controller", "")), json!(parameters), row.age()]
}

pub(super) fn policy(row: &Row) -> Vec<Value> {
    vec![row.name(), row.selector("spec.podSelector"), row.age()]
}
