//! The values the Kubernetes API server fills in for fields a client left out.
//!
//! Role: [`apply_defaults`] is called on every object that is written, after decoding and before validation.
//!
//! Guarantees: applying twice changes nothing the second time; a value that is there is never changed; whatever has the
//! wrong JSON type is left alone for validation to report. Deliberately absent: what depends on other objects or on
//! state, such as cluster IPs, a Job's generated selector, or a namespace's default limits.
//!
//! Source: the defaults named in <https://kubernetes.io/docs/reference/kubernetes-api/>.

mod pod;
mod workloads;

use serde_json::{Map, Value, json};

use crate::{meta, schema};

/// Fills in the defaults of an object of `kind`; kinds without defaults are left as they are.
pub fn apply_defaults(kind: &str, object: &mut Value) {
    if schema::fields(kind).is_some() {
        drop_nulls(object);
    }
    match kind {
        "Pod" => {
            with(object, "spec", pod::spec);
            // Of pods only, not of templates.
            with(object, "spec", |spec| set(spec, "enableServiceLinks", || json!(true)));
            pod::requests_from_pod_limits(object);
        }
        "PodTemplate" => with(object, "template", workloads::template),
        "Deployment" => workloads::deployment(object),
        "ReplicaSet" | "ReplicationController" => workloads::replica_set(object),
        "StatefulSet" => workloads::stateful_set(object),
        "DaemonSet" => workloads::daemon_set(object),
        "Job" => with(object, "spec", workloads::job_spec),
        "CronJob" => workloads::cron_job(object),
        "Service" => with(object, "spec", service),
        "EndpointSlice" => endpoint_slice(object),
        "HorizontalPodAutoscaler" => with(object, "spec", autoscaler),
        "PersistentVolumeClaim" => workloads::claim(object),
        "PersistentVolume" => persistent_volume(object),
        "StorageClass" => {
            set(object, "reclaimPolicy", || json!("Delete"));
            set(object, "volumeBindingMode", || json!("Immediate"));
        }
        "Secret" => set(object, "type", || json!("Opaque")),
        "LimitRange" => crate::limit_range::complete(object),
        "Namespace" => namespace(object),
        "Node" => node(object),
        "RoleBinding" | "ClusterRoleBinding" => binding(object),
        "NetworkPolicy" => with(object, "spec", network_policy),
        "PriorityClass" => set(object, "preemptionPolicy", || json!("PreemptLowerPriority")),
        _ => {}
    }
}

/// Removes null members at every depth: in the typed API null and absent are the same.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Sets a field that is absent, null or, for strings, empty: Go cannot tell the empty string from none.
pub(crate) fn set(place: &mut Value, field: &str, value: impl FnOnce() -> Value) {
    if let Some(map) = place.as_object_mut() {
        let absent = match map.get(field) {
            None | Some(Value::Null) => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(_) => false,
        };
        if absent {
            map.insert(field.to_owned(), value());
        }
    }
}

/// Changes the object in a field, when there is one.
pub(crate) fn with(place: &mut Value, field: &str, change: impl FnOnce(&mut Value)) {
    if let Some(value) = place.get_mut(field).filter(|value| value.is_object()) {
        change(value);
    }
}

/// Changes every object in a list field.
pub(crate) fn each(place: &mut Value, field: &str, change: impl FnMut(&mut Value)) {
    if let Some(items) = place.get_mut(field).and_then(Value::as_array_mut) {
        items.iter_mut().filter(|item| item.is_object()).for_each(change);
    }
}

fn service(spec: &mut Value) {
    set(spec, "type", || json!("ClusterIP"));
    set(spec, "sessionAffinity", || json!("None"));
    if spec["sessionAffinity"] == "ClientIP" {
        set(spec, "sessionAffinityConfig", || json!({}));
        with(spec, "sessionAffinityConfig", |config| {
            set(config, "clientIP", || json!({}));
            with(config, "clientIP", |client| set(client, "timeoutSeconds", || json!(10_800)));
        });
    }
    each(spec, "ports", |port| {
        set(port, "protocol", || json!("TCP"));
        let number = port.get("port").cloned();
        if matches!(port.get("targetPort"), Some(Value::Number(n)) if n.as_i64() == Some(0)) {
            port["targetPort"] = Value::Null;
        }
        if let Some(number) = number.filter(Value::is_i64) {
            set(port, "targetPort", || number);
        }
    });
    let service_type = spec["type"].as_str().unwrap_or_default().to_owned();
    if service_type == "ExternalName" {
        return;
    }
    set(spec, "internalTrafficPolicy", || json!("Cluster"));
    if matches!(service_type.as_str(), "NodePort" | "LoadBalancer") {
        set(spec, "externalTrafficPolicy", || json!("Cluster"));
    }
    if service_type == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", || json!(true));
    }
    set(spec, "ipFamilyPolicy", || json!("SingleStack"));
    let six = spec["clusterIP"].as_str().is_some_and(|ip| ip.contains(':'));
    set(spec, "ipFamilies", || json!([if six { "IPv6" } else { "IPv4" }]));
}

fn endpoint_slice(slice: &mut Value) {
    each(slice, "ports", |port| {
        set(port, "name", || json!(""));
        set(port, "protocol", || json!("TCP"));
    });
}

fn autoscaler(spec: &mut Value) {
    set(spec, "minReplicas", || json!(1));
    set(
        spec,
        "metrics",
        || json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]),
    );
    with(spec, "behavior", |behavior| {
        set(behavior, "scaleUp", || json!({}));
        set(behavior, "scaleDown", || json!({}));
        with(behavior, "scaleUp", |rules| {
            set(rules, "stabilizationWindowSeconds", || json!(0));
            set(rules, "selectPolicy", || json!("Max"));
            set(
                rules,
                "policies",
                || json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]),
            );
        });
        with(behavior, "scaleDown", |rules| {
            set(rules, "selectPolicy", || json!("Max"));
            set(rules, "policies", || json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]));
        });
    });
}

fn persistent_volume(volume: &mut Value) {
    with(volume, "spec", |spec| {
        set(spec, "persistentVolumeReclaimPolicy", || json!("Retain"));
        set(spec, "volumeMode", || json!("Filesystem"));
        with(spec, "hostPath", |path| set_empty(path, "type"));
    });
    set_at_phase(volume, "Pending");
}

/// `hostPath.type` defaults to the empty string, which [`set`] would count as absent for ever.
fn set_empty(place: &mut Value, field: &str) {
    if let Some(map) = place.as_object_mut() {
        let entry = map.entry(field).or_insert(Value::Null);
        if entry.is_null() {
            *entry = json!("");
        }
    }
}

fn set_at_phase(object: &mut Value, phase: &str) {
    set(object, "status", || Value::Object(Map::new()));
    with(object, "status", |status| set(status, "phase", || json!(phase)));
}

fn namespace(namespace: &mut Value) {
    let name = meta::name(namespace).to_owned();
    if !name.is_empty() && namespace.get("metadata").is_some_and(Value::is_object) {
        meta::set_label(namespace, "kubernetes.io/metadata.name", &name);
    }
    set(namespace, "spec", || Value::Object(Map::new()));
    if !meta::is_being_deleted(namespace) {
        with(namespace, "spec", |spec| set(spec, "finalizers", || json!(["kubernetes"])));
    }
    set_at_phase(namespace, "Active");
}

fn node(node: &mut Value) {
    set(node, "status", || Value::Object(Map::new()));
    with(node, "status", |status| {
        if let Some(capacity) = status.get("capacity").cloned() {
            set(status, "allocatable", || capacity);
        }
    });
}

fn binding(binding: &mut Value) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    with(binding, "roleRef", |role| set(role, "apiGroup", || json!(GROUP)));
    each(binding, "subjects", |subject| {
        if matches!(subject["kind"].as_str(), Some("User" | "Group")) {
            set(subject, "apiGroup", || json!(GROUP));
        }
    });
}

fn network_policy(spec: &mut Value) {
    let egress = spec["egress"].as_array().is_some_and(|rules| !rules.is_empty());
    set(spec, "policyTypes", || if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
    for rules in ["ingress", "egress"] {
        each(spec, rules, |rule| each(rule, "ports", |port| set(port, "protocol", || json!("TCP"))));
    }
}

#[cfg(test)]
mod tests;
