//! Rules of one container.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::faults::{Faults, get, items, text};
use super::probe;
use crate::meta::names;
use crate::quantity::Quantity;
use crate::workload;

/// Which list of the pod spec a container stands in.
#[derive(Clone, Copy)]
pub(super) enum Place {
    Init,
    Main,
    Ephemeral,
}

/// What a container refers to in its pod.
pub(super) struct Surroundings<'a> {
    pub(super) volumes: &'a HashSet<&'a str>,
    pub(super) host_network: bool,
}

pub(super) fn check(faults: &mut Faults, container: &Value, path: &str, place: Place, pod: &Surroundings) {
    match text(container, "name") {
        Some(name) => faults.named(&format!("{path}.name"), name, names::check_label(name)),
        None => faults.required(format!("{path}.name"), ""),
    }
    match text(container, "image") {
        None => faults.required(format!("{path}.image"), ""),
        Some(image) if image.trim() != image => {
            faults.invalid(format!("{path}.image"), &json!(image), "must not have leading or trailing whitespace");
        }
        Some(_) => {}
    }
    faults.one_of(container, path, "imagePullPolicy", &["Always", "IfNotPresent", "Never"]);
    faults.one_of(container, path, "terminationMessagePolicy", &["FallbackToLogsOnError", "File"]);
    faults.one_of(container, path, "restartPolicy", &["Always", "Never", "OnFailure"]);
    ports(faults, container, path, pod);
    environment(faults, container, path);
    mounts(faults, container, path, pod);
    if let Some(resources) = get(container, "resources") {
        check_resources(faults, resources, &format!("{path}.resources"));
    }
    security(faults, container, path);
    let starts_and_ends = matches!(place, Place::Init) && !workload::is_sidecar(container);
    for (field, kind) in [
        ("livenessProbe", probe::Kind::Liveness),
        ("readinessProbe", probe::Kind::Readiness),
        ("startupProbe", probe::Kind::Startup),
    ] {
        match get(container, field) {
            Some(_) if starts_and_ends => {
                faults.forbidden(
                    format!("{path}.{field}"),
                    "may not be set for init containers without restartPolicy=Always",
                );
            }
            Some(_) if matches!(place, Place::Ephemeral) => {
                faults.forbidden(format!("{path}.{field}"), "cannot be set for an Ephemeral Container");
            }
            Some(value) => probe::check(faults, value, &format!("{path}.{field}"), kind),
            None => {}
        }
    }
    match get(container, "lifecycle") {
        Some(_) if starts_and_ends => {
            faults.forbidden(
                format!("{path}.lifecycle"),
                "may not be set for init containers without restartPolicy=Always",
            );
        }
        Some(lifecycle) => {
            for hook in ["postStart", "preStop"] {
                if let Some(handler) = get(lifecycle, hook) {
                    probe::check_handler(faults, handler, &format!("{path}.lifecycle.{hook}"), probe::HOOKS);
                }
            }
        }
        None => {}
    }
}

fn ports(faults: &mut Faults, container: &Value, path: &str, pod: &Surroundings) {
    let all = items(container, "ports");
    faults.unique(all, &format!("{path}.ports"), "name");
    for (i, port) in all.iter().enumerate() {
        let at = format!("{path}.ports[{i}]");
        if let Some(name) = text(port, "name") {
            faults.named(&format!("{at}.name"), name, names::check_port_name(name));
        }
        faults.between(port, &at, "containerPort", (1, 65_535));
        faults.between(port, &at, "hostPort", (0, 65_535));
        let number = |field: &str| get(port, field).and_then(Value::as_i64).unwrap_or(0);
        if pod.host_network && number("hostPort") != number("containerPort") {
            faults.invalid(
                format!("{at}.containerPort"),
                &port["containerPort"],
                "must match `hostPort` when `hostNetwork` is true",
            );
        }
        faults.one_of(port, &at, "protocol", &["SCTP", "TCP", "UDP"]);
    }
}

fn environment(faults: &mut Faults, container: &Value, path: &str) {
    const SOURCES: [&str; 5] = ["configMapKeyRef", "fieldRef", "fileKeyRef", "resourceFieldRef", "secretKeyRef"];
    for (i, variable) in items(container, "env").iter().enumerate() {
        let at = format!("{path}.env[{i}]");
        match text(variable, "name") {
            Some(name) => faults.named(&format!("{at}.name"), name, names::check_env_name(name)),
            None => faults.required(format!("{at}.name"), ""),
        }
        let Some(source) = get(variable, "valueFrom") else { continue };
        let at = format!("{at}.valueFrom");
        let given: Vec<_> = SOURCES.into_iter().filter(|name| get(source, name).is_some()).collect();
        if text(variable, "value").is_some() && !given.is_empty() {
            faults.invalid(&at, &json!(""), "may not be specified when `value` is not empty");
        }
        match given.as_slice() {
            [] => {
                let rule = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
                faults.invalid(&at, &json!(""), rule);
            }
            ["fieldRef"] => field_reference(faults, &source["fieldRef"], &format!("{at}.fieldRef")),
            [name @ ("configMapKeyRef" | "secretKeyRef")] => {
                for field in ["name", "key"] {
                    if text(&source[name], field).is_none() {
                        faults.required(format!("{at}.{name}.{field}"), "");
                    }
                }
            }
            [_] => {}
            _ => faults.invalid(&at, &json!(""), "may not have more than one field specified at a time"),
        }
    }
    for (i, source) in items(container, "envFrom").iter().enumerate() {
        let count = ["configMapRef", "secretRef"].iter().filter(|name| get(source, name).is_some()).count();
        if count != 1 {
            let rule = if count == 0 {
                "must specify one of: `configMapRef` or `secretRef`"
            } else {
                "may not have more than one field specified at a time"
            };
            faults.invalid(format!("{path}.envFrom[{i}]"), &json!(""), rule);
        }
    }
}

/// The pod fields a variable may take its value from.
fn field_reference(faults: &mut Faults, reference: &Value, path: &str) {
    const FIELDS: &[&str] = &[
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    let Some(field) = text(reference, "fieldPath") else {
        return faults.required(format!("{path}.fieldPath"), "");
    };
    let subscript = ["metadata.labels['", "metadata.annotations['"].iter().any(|start| field.starts_with(start))
        && field.ends_with("']");
    if !subscript && !FIELDS.contains(&field) {
        faults.not_supported(format!("{path}.fieldPath"), &json!(field), FIELDS);
    }
}

fn mounts(faults: &mut Faults, container: &Value, path: &str, pod: &Surroundings) {
    let mut seen = HashSet::new();
    for (i, mount) in items(container, "volumeMounts").iter().enumerate() {
        let at = format!("{path}.volumeMounts[{i}]");
        match text(mount, "name") {
            None => faults.required(format!("{at}.name"), ""),
            Some(name) if !pod.volumes.contains(name) => faults.not_found(format!("{at}.name"), &json!(name)),
            Some(_) => {}
        }
        match text(mount, "mountPath") {
            None => faults.required(format!("{at}.mountPath"), ""),
            Some(place) if !seen.insert(place) => {
                faults.invalid(format!("{at}.mountPath"), &json!(place), "must be unique");
            }
            Some(_) => {}
        }
        if let Some(inner) = text(mount, "subPath") {
            super::volume::check_relative(faults, inner, &format!("{at}.subPath"));
        }
    }
}

/// Resources without a domain are Kubernetes' own.
fn is_standard_resource(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}

/// `requests` and `limits`: none negative, no request above its limit.
pub(super) fn check_resources(faults: &mut Faults, resources: &Value, path: &str) {
    let limits = workload::resources(get(resources, "limits"));
    for field in ["limits", "requests"] {
        for (name, amount) in workload::resources(get(resources, field)) {
            let at = format!("{path}.{field}[{name}]");
            faults.named(&at, &name, names::check_qualified_name(&name));
            if !name.contains('/') && !is_standard_resource(&name) {
                faults.invalid(&at, &json!(name), "must be a standard resource for containers");
            }
            if amount.is_negative() {
                faults.invalid(&at, &json!(amount.to_string()), "must be greater than or equal to 0");
            }
            if name.contains('/') && !amount.is_whole() {
                faults.invalid(&at, &json!(amount.to_string()), "must be an integer");
            }
        }
    }
    for (name, request) in workload::resources(get(resources, "requests")) {
        let above = |limit: &&Quantity| request > **limit;
        if let Some(limit) = limits.get(&name).filter(above) {
            let rule = format!("must be less than or equal to {name} limit of {limit}");
            faults.invalid(format!("{path}.requests"), &json!(request.to_string()), rule);
        }
    }
}

fn security(faults: &mut Faults, container: &Value, path: &str) {
    let Some(context) = get(container, "securityContext") else { return };
    let path = format!("{path}.securityContext");
    for field in ["runAsUser", "runAsGroup"] {
        faults.between(context, &path, field, (0, i64::from(i32::MAX)));
    }
    faults.one_of(context, &path, "procMount", &["Default", "Unmasked"]);
    if context["privileged"] == true && context["allowPrivilegeEscalation"] == false {
        let rule = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        faults.invalid(path, &json!(""), rule);
    }
}
