//! Defaults of pod specs, containers, probes and volumes.

use serde_json::{Map, Value, json};

use super::{each, set, with};

/// A pod spec, of a Pod or of a template.
pub(super) fn spec(spec: &mut Value) {
    set(spec, "restartPolicy", || json!("Always"));
    set(spec, "terminationGracePeriodSeconds", || json!(30));
    set(spec, "dnsPolicy", || json!("ClusterFirst"));
    set(spec, "schedulerName", || json!("default-scheduler"));
    set(spec, "securityContext", || json!({}));
    service_account(spec);
    let host_network = spec["hostNetwork"] == true;
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        each(spec, field, |one| container(one, host_network));
    }
    each(spec, "volumes", volume);
    each(spec, "topologySpreadConstraints", |constraint| {
        set(constraint, "whenUnsatisfiable", || json!("DoNotSchedule"));
    });
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are kept equal.
fn service_account(spec: &mut Value) {
    for (from, to) in [("serviceAccountName", "serviceAccount"), ("serviceAccount", "serviceAccountName")] {
        if let Some(name) = spec.get(from).filter(|name| name.is_string()).cloned() {
            set(spec, to, || name);
        }
    }
}

/// The pull policy of an image whose manifest names none: `Always` for the tag `latest` or none, unless a digest is given.
fn pull_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains('@') {
        return "IfNotPresent";
    }
    match last.split_once(':') {
        None | Some((_, "latest" | "")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn container(container: &mut Value, host_network: bool) {
    let policy = pull_policy(container["image"].as_str().unwrap_or_default());
    set(container, "imagePullPolicy", || json!(policy));
    set(container, "terminationMessagePath", || json!("/dev/termination-log"));
    set(container, "terminationMessagePolicy", || json!("File"));
    set(container, "resources", || json!({}));
    with(container, "resources", requests_from_limits);
    each(container, "ports", |port| {
        set(port, "protocol", || json!("TCP"));
        if let Some(number) = port.get("containerPort").filter(|number| host_network && number.is_i64()).cloned() {
            set(port, "hostPort", || number);
        }
    });
    each(container, "env", |variable| {
        with(variable, "valueFrom", |source| {
            with(source, "fieldRef", |field| set(field, "apiVersion", || json!("v1")));
        });
    });
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        with(container, name, probe);
    }
    with(container, "lifecycle", |lifecycle| {
        with(lifecycle, "postStart", handler);
        with(lifecycle, "preStop", handler);
    });
}

fn requests_from_limits(resources: &mut Value) {
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    if limits.is_empty() {
        return;
    }
    set(resources, "requests", || Value::Object(Map::new()));
    with(resources, "requests", |requests| {
        for (name, amount) in limits {
            set(requests, &name, || amount);
        }
    });
}

/// Pod-level limits (`spec.resources`) give pod-level requests where none are set.
pub(super) fn requests_from_pod_limits(pod: &mut Value) {
    with(pod, "spec", |spec| with(spec, "resources", requests_from_limits));
}

fn probe(probe: &mut Value) {
    // Zero cannot be told from absent in Go, so it means the default too.
    for (field, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if probe.get(field).is_some_and(|given| given == 0) {
            probe[field] = Value::Null;
        }
        set(probe, field, || json!(value));
    }
    handler(probe);
}

fn handler(handler: &mut Value) {
    with(handler, "httpGet", |get| {
        set(get, "path", || json!("/"));
        set(get, "scheme", || json!("HTTP"));
    });
    with(handler, "grpc", |grpc| {
        if grpc.get("service").is_none_or(Value::is_null) {
            grpc["service"] = json!("");
        }
    });
}

fn volume(volume: &mut Value) {
    let mode = || json!(0o644);
    let has_source =
        volume.as_object().is_some_and(|map| map.iter().any(|(key, value)| key != "name" && !value.is_null()));
    if !has_source {
        set(volume, "emptyDir", || json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        with(volume, source, |source| set(source, "defaultMode", mode));
    }
    with(volume, "downwardAPI", |source| each(source, "items", field_reference));
    with(volume, "projected", |projected| {
        each(projected, "sources", |source| {
            with(source, "serviceAccountToken", |token| set(token, "expirationSeconds", || json!(3600)));
            with(source, "downwardAPI", |api| each(api, "items", field_reference));
        });
    });
    with(volume, "hostPath", |path| super::set_empty(path, "type"));
    with(volume, "ephemeral", |ephemeral| {
        with(ephemeral, "volumeClaimTemplate", |template| {
            with(template, "spec", |spec| set(spec, "volumeMode", || json!("Filesystem")));
        });
    });
}

fn field_reference(item: &mut Value) {
    with(item, "fieldRef", |field| set(field, "apiVersion", || json!("v1")));
}
