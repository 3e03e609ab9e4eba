//! The rules of `baseline`, in kube-apiserver's order.

use serde_json::Value;

use super::{Pod, Rule, Violation, containers, found, name, plural, quoted, setters, unique};
use crate::meta;

/// The rules that `restricted` keeps.
pub(super) const RULES: &[Rule] = &[
    app_armor,
    host_namespaces,
    host_ports,
    host_probes,
    privileged,
    proc_mount,
    se_linux,
    sysctls,
    windows_host_process,
];
/// The rules that `restricted` has stricter ones for.
pub(super) const REPLACED: &[Rule] = &[capabilities, host_paths, seccomp];

const CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const SE_LINUX_TYPES: &[&str] = &["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
const SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

fn app_armor(pod: &Pod<'_>) -> Option<Violation> {
    let bad = |context: &Value| {
        !matches!(context["appArmorProfile"]["type"].as_str(), None | Some("RuntimeDefault" | "Localhost"))
    };
    let names = pod.named(|container| bad(&container["securityContext"]));
    let kind = |context: &Value| context["appArmorProfile"]["type"].as_str().unwrap_or_default().to_owned();
    let mut values: Vec<String> = Vec::new();
    if bad(pod.context()) {
        values.push(kind(pod.context()));
    }
    let contexts = pod.containers().map(|container| &container["securityContext"]);
    values.extend(contexts.filter(|context| bad(context)).map(kind));
    let mut parts = Vec::new();
    if !values.is_empty() {
        let who = setters(bad(pod.context()), &names);
        let values = quoted(&unique(values));
        parts.push(format!("{who} must not set AppArmor profile type to {values}"));
    }
    let allowed = |value: &str| value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
    let annotations = pod.annotations.as_object().into_iter().flatten();
    let wrong = annotations.filter(|(key, value)| key.starts_with(APP_ARMOR) && !value.as_str().is_some_and(allowed));
    let wrong: Vec<String> = wrong.map(|(key, value)| format!("{key}={value}")).collect();
    let count = parts.len() + wrong.len();
    if !wrong.is_empty() {
        let noun = plural("annotation", "annotations", wrong.len());
        parts.push(format!("{noun} {}", wrong.join(", ")));
    }
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", count);
    found(!parts.is_empty(), reason, || parts.join(" and "))
}

/// Capabilities that a list adds beyond `allowed`.
pub(super) fn added<'a>(container: &'a Value, allowed: &[&str]) -> Vec<&'a str> {
    let added = meta::list_at(&container["securityContext"], "capabilities.add").iter().filter_map(Value::as_str);
    added.filter(|capability| !allowed.contains(capability)).collect()
}

fn capabilities(pod: &Pod<'_>) -> Option<Violation> {
    let names = pod.named(|container| !added(container, CAPABILITIES).is_empty());
    let more = unique(pod.containers().flat_map(|container| added(container, CAPABILITIES)).collect());
    let detail =
        || format!("{} must not include {} in securityContext.capabilities.add", containers(&names), quoted(&more));
    found(!names.is_empty(), "non-default capabilities", detail)
}

fn host_namespaces(pod: &Pod<'_>) -> Option<Violation> {
    let shared = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|field| pod.spec[field] == true);
    let shared: Vec<String> = shared.map(|field| format!("{field}=true")).collect();
    found(!shared.is_empty(), "host namespaces", || shared.join(", "))
}

fn host_paths(pod: &Pod<'_>) -> Option<Violation> {
    let volumes = meta::list_at(pod.spec, "volumes").iter().filter(|volume| volume["hostPath"].is_object());
    let names: Vec<&str> = volumes.map(name).collect();
    let detail = || format!("{} {}", plural("volume", "volumes", names.len()), quoted(&names));
    found(!names.is_empty(), "hostPath volumes", detail)
}

fn host_ports(pod: &Pod<'_>) -> Option<Violation> {
    let ports = |container: &Value| -> Vec<i64> {
        let all = meta::list_at(container, "ports").iter().filter_map(|port| port["hostPort"].as_i64());
        all.filter(|port| *port != 0).collect()
    };
    let names = pod.named(|container| !ports(container).is_empty());
    let all = unique(pod.containers().flat_map(ports).collect());
    let detail = || {
        let numbers: Vec<String> = all.iter().map(ToString::to_string).collect();
        let verb = plural("uses", "use", names.len());
        format!("{} {verb} {} {}", containers(&names), plural("hostPort", "hostPorts", all.len()), numbers.join(", "))
    };
    found(!names.is_empty(), "hostPort", detail)
}

/// Probes and hooks that ask a host of their own choice come from the node's network.
fn host_probes(pod: &Pod<'_>) -> Option<Violation> {
    let hosts = |container: &Value| -> Vec<String> {
        let lifecycle = &container["lifecycle"];
        let handlers = [
            &container["livenessProbe"],
            &container["readinessProbe"],
            &container["startupProbe"],
            &lifecycle["postStart"],
            &lifecycle["preStop"],
        ];
        let hosts =
            handlers.into_iter().flat_map(|handler| [&handler["httpGet"]["host"], &handler["tcpSocket"]["host"]]);
        hosts.filter_map(Value::as_str).filter(|host| !host.is_empty()).map(str::to_owned).collect()
    };
    let names = pod.named(|container| !hosts(container).is_empty());
    let all = unique(pod.containers().flat_map(hosts).collect());
    let detail = || {
        let verb = plural("uses", "use", names.len());
        let noun = plural("probe or lifecycle host", "probe or lifecycle hosts", all.len());
        format!("{} {verb} {noun} {}", containers(&names), quoted(&all))
    };
    found(!names.is_empty(), "probe or lifecycle host", detail)
}

fn privileged(pod: &Pod<'_>) -> Option<Violation> {
    let names = pod.named(|container| container["securityContext"]["privileged"] == true);
    let detail = || format!("{} must not set securityContext.privileged=true", containers(&names));
    found(!names.is_empty(), "privileged", detail)
}

fn proc_mount(pod: &Pod<'_>) -> Option<Violation> {
    if pod.has_own_users() {
        return None;
    }
    let given = |container: &Value| container["securityContext"]["procMount"].as_str().map(str::to_owned);
    let bad = |container: &Value| given(container).filter(|mount| mount != "Default");
    let names = pod.named(|container| bad(container).is_some());
    let values = unique(pod.containers().filter_map(bad).collect());
    let detail = || format!("{} must not set securityContext.procMount to {}", containers(&names), quoted(&values));
    found(!names.is_empty(), "procMount", detail)
}

fn se_linux(pod: &Pod<'_>) -> Option<Violation> {
    let text = |context: &Value, field: &str| context["seLinuxOptions"][field].as_str().unwrap_or_default().to_owned();
    let bad_type = |context: &Value| Some(text(context, "type")).filter(|t| !SE_LINUX_TYPES.contains(&t.as_str()));
    let sets = |context: &Value, field: &str| !text(context, field).is_empty();
    let bad = |context: &Value| bad_type(context).is_some() || sets(context, "user") || sets(context, "role");
    let names = pod.named(|container| bad(&container["securityContext"]));
    if names.is_empty() && !bad(pod.context()) {
        return None;
    }
    let contexts: Vec<&Value> =
        std::iter::once(pod.context()).chain(pod.containers().map(|container| &container["securityContext"])).collect();
    let mut parts = Vec::new();
    let types = unique(contexts.iter().filter_map(|context| bad_type(context)).collect());
    if !types.is_empty() {
        parts.push(format!("{} {}", plural("type", "types", types.len()), quoted(&types)));
    }
    for field in ["user", "role"] {
        if contexts.iter().any(|context| sets(context, field)) {
            parts.push(format!("{field} may not be set"));
        }
    }
    let who = setters(bad(pod.context()), &names);
    let verb = plural("sets", "set", names.len() + usize::from(bad(pod.context())));
    found(true, "seLinuxOptions", || {
        format!("{who} {verb} forbidden securityContext.seLinuxOptions: {}", parts.join("; "))
    })
}

fn seccomp(pod: &Pod<'_>) -> Option<Violation> {
    let bad = |context: &Value| context["seccompProfile"]["type"] == "Unconfined";
    let names = pod.named(|container| bad(&container["securityContext"]));
    let detail = || {
        let who = setters(bad(pod.context()), &names);
        format!("{who} must not set securityContext.seccompProfile.type to \"Unconfined\"")
    };
    found(bad(pod.context()) || !names.is_empty(), "seccompProfile", detail)
}

fn sysctls(pod: &Pod<'_>) -> Option<Violation> {
    let names = meta::list_at(pod.context(), "sysctls").iter().map(name);
    let bad: Vec<&str> = names.filter(|name| !SYSCTLS.contains(name)).collect();
    found(!bad.is_empty(), "forbidden sysctls", || bad.join(", "))
}

fn windows_host_process(pod: &Pod<'_>) -> Option<Violation> {
    let bad = |context: &Value| context["windowsOptions"]["hostProcess"] == true;
    let names = pod.named(|container| bad(&container["securityContext"]));
    let detail = || {
        let who = setters(bad(pod.context()), &names);
        format!("{who} must not set securityContext.windowsOptions.hostProcess=true")
    };
    found(bad(pod.context()) || !names.is_empty(), "hostProcess", detail)
}
