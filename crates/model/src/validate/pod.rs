//! Rules of pod specs, alone and in templates.

use std::collections::HashSet;

use serde_json::Value;

use super::faults::{Faults, get, items, text};
use super::{container, metadata, scheduling, volume};
use crate::meta::names;

/// A Pod.
pub(super) fn check(faults: &mut Faults, pod: &Value) {
    if let Some(spec) = get(pod, "spec") {
        check_spec(faults, spec, "spec");
    } else {
        faults.required("spec.containers", "");
    }
}

/// What holds only when a pod is created.
pub(super) fn check_new(faults: &mut Faults, pod: &Value) {
    if !items(&pod["spec"], "ephemeralContainers").is_empty() {
        faults.forbidden("spec.ephemeralContainers", "cannot be set on create");
    }
}

/// A pod template: its labels and spec.
pub(super) fn check_template(faults: &mut Faults, template: &Value, path: &str) {
    metadata::labels_and_annotations(faults, &template["metadata"], &format!("{path}.metadata"));
    if let Some(spec) = get(template, "spec") {
        check_spec(faults, spec, &format!("{path}.spec"));
        if !items(spec, "ephemeralContainers").is_empty() {
            faults.forbidden(
                format!("{path}.spec.ephemeralContainers"),
                "ephemeral containers not allowed in pod template",
            );
        }
    } else {
        faults.required(format!("{path}.spec.containers"), "");
    }
}

fn check_spec(faults: &mut Faults, spec: &Value, path: &str) {
    let volumes = volume::check_all(faults, spec, path);
    containers(faults, spec, path, &volumes);
    faults.one_of(spec, path, "restartPolicy", &["Always", "OnFailure", "Never"]);
    faults.one_of(spec, path, "dnsPolicy", &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]);
    faults.one_of(spec, path, "preemptionPolicy", &["Never", "PreemptLowerPriority"]);
    if spec["dnsPolicy"] == "None" && items(&spec["dnsConfig"], "nameservers").is_empty() {
        let rule = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        faults.required(format!("{path}.dnsConfig.nameservers"), rule);
    }
    faults.between(spec, path, "activeDeadlineSeconds", (1, i64::from(i32::MAX)));
    faults.not_negative(spec, path, "terminationGracePeriodSeconds");
    for (field, rule) in [
        ("nodeName", names::check_subdomain as fn(&str) -> Vec<String>),
        ("serviceAccountName", names::check_subdomain),
        ("priorityClassName", names::check_subdomain),
        ("schedulerName", names::check_qualified_name),
        ("hostname", names::check_label),
        ("subdomain", names::check_label),
        ("runtimeClassName", names::check_subdomain),
    ] {
        if let Some(name) = text(spec, field) {
            faults.named(&format!("{path}.{field}"), name, rule(name));
        }
    }
    for (i, alias) in items(spec, "hostAliases").iter().enumerate() {
        if text(alias, "ip").is_none_or(|ip| ip.parse::<std::net::IpAddr>().is_err()) {
            faults.invalid(format!("{path}.hostAliases[{i}].ip"), &alias["ip"], "must be a valid IP address");
        }
    }
    if let Some(context) = get(spec, "securityContext") {
        for field in ["runAsUser", "runAsGroup", "fsGroup"] {
            faults.between(context, &format!("{path}.securityContext"), field, (0, i64::from(i32::MAX)));
        }
        if spec["shareProcessNamespace"] == true && spec["hostPID"] == true {
            let rule = "ShareProcessNamespace and HostPID cannot both be enabled";
            faults.invalid(format!("{path}.shareProcessNamespace"), &Value::Bool(true), rule);
        }
    }
    scheduling::check(faults, spec, path);
}

fn containers(faults: &mut Faults, spec: &Value, path: &str, volumes: &HashSet<&str>) {
    if items(spec, "containers").is_empty() {
        faults.required(format!("{path}.containers"), "");
    }
    let mut seen = HashSet::new();
    let mut host_ports = HashSet::new();
    let pod = container::Surroundings { volumes, host_network: spec["hostNetwork"] == true };
    for (field, place) in [
        ("initContainers", container::Place::Init),
        ("containers", container::Place::Main),
        ("ephemeralContainers", container::Place::Ephemeral),
    ] {
        for (i, one) in items(spec, field).iter().enumerate() {
            let at = format!("{path}.{field}[{i}]");
            if let Some(name) = text(one, "name").filter(|name| !seen.insert(*name)) {
                faults.duplicate(format!("{at}.name"), &Value::from(name));
            }
            container::check(faults, one, &at, place, &pod);
            for (j, port) in items(one, "ports").iter().enumerate() {
                let Some(number) = get(port, "hostPort").and_then(Value::as_i64).filter(|number| *number > 0) else {
                    continue;
                };
                let key = (number, text(port, "protocol").unwrap_or("TCP"), text(port, "hostIP").unwrap_or_default());
                if matches!(place, container::Place::Main) && !host_ports.insert(key) {
                    faults.duplicate(format!("{at}.ports[{j}].hostPort"), &Value::from(format!("{}/{}", key.1, key.0)));
                }
            }
        }
    }
}
