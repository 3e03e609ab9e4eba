//! The rules that `restricted` adds, in kube-apiserver's order.

use serde_json::Value;

use super::baseline::added;
use super::{Pod, Rule, Violation, containers, found, name, plural, quoted, setters, unique};
use crate::meta;

pub(super) const RULES: &[Rule] = &[privilege_escalation, capabilities, volumes, non_root, user, seccomp];

/// Kinds of volumes that hold nothing of the node.
const VOLUMES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

fn privilege_escalation(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let names = pod.named(|container| container["securityContext"]["allowPrivilegeEscalation"] != false);
    let detail = || format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&names));
    found(!names.is_empty(), "allowPrivilegeEscalation != false", detail)
}

fn capabilities(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let drops_all = |container: &Value| {
        meta::list_at(&container["securityContext"], "capabilities.drop").iter().any(|c| c == "ALL")
    };
    let allowed = &["NET_BIND_SERVICE"];
    let keeping = pod.named(|container| !drops_all(container));
    let adding = pod.named(|container| !added(container, allowed).is_empty());
    let mut parts = Vec::new();
    if !keeping.is_empty() {
        parts.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeping)));
    }
    if !adding.is_empty() {
        let more = unique(pod.containers().flat_map(|container| added(container, allowed)).collect());
        let who = containers(&adding);
        parts.push(format!("{who} must not include {} in securityContext.capabilities.add", quoted(&more)));
    }
    found(!parts.is_empty(), "unrestricted capabilities", || parts.join("; "))
}

fn volumes(pod: &Pod<'_>) -> Option<Violation> {
    // Besides its name, a volume has one field, and that is its kind.
    let kind = |volume: &Value| -> Option<String> {
        let mut fields =
            volume.as_object().into_iter().flatten().filter(|(field, value)| *field != "name" && !value.is_null());
        fields.next().map(|(field, _)| field.clone())
    };
    let bad = |volume: &Value| kind(volume).filter(|kind| !VOLUMES.contains(&kind.as_str()));
    let all = meta::list_at(pod.spec, "volumes");
    let names: Vec<&str> = all.iter().filter(|volume| bad(volume).is_some()).map(name).collect();
    let kinds = unique(all.iter().filter_map(bad).collect());
    let detail = || {
        format!(
            "{} {} {} restricted volume {} {}",
            plural("volume", "volumes", names.len()),
            quoted(&names),
            plural("uses", "use", names.len()),
            plural("type", "types", kinds.len()),
            quoted(&kinds)
        )
    };
    found(!names.is_empty(), "restricted volume types", detail)
}

fn non_root(pod: &Pod<'_>) -> Option<Violation> {
    if pod.has_own_users() {
        return None;
    }
    let reason = "runAsNonRoot != true";
    let own = &pod.context()["runAsNonRoot"];
    let refusing = pod.named(|container| container["securityContext"]["runAsNonRoot"] == false);
    let silent = pod.named(|container| container["securityContext"]["runAsNonRoot"].is_null());
    // A pod that refuses does no harm when every container says otherwise.
    let pod_refuses = *own == false && !silent.is_empty();
    if pod_refuses || !refusing.is_empty() {
        let who = setters(pod_refuses, &refusing);
        return found(true, reason, || format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let missing = *own != true && !silent.is_empty();
    let detail = || format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&silent));
    found(missing, reason, detail)
}

fn user(pod: &Pod<'_>) -> Option<Violation> {
    if pod.has_own_users() {
        return None;
    }
    let is_root = |context: &Value| context["runAsUser"] == 0;
    let names = pod.named(|container| is_root(&container["securityContext"]));
    let detail = || format!("{} must not set runAsUser=0", setters(is_root(pod.context()), &names));
    found(is_root(pod.context()) || !names.is_empty(), "runAsUser=0", detail)
}

fn seccomp(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let kind = |context: &Value| context["seccompProfile"]["type"].as_str().map(str::to_owned);
    let is_fine = |kind: &str| matches!(kind, "RuntimeDefault" | "Localhost");
    let bad = |context: &Value| kind(context).filter(|kind| !is_fine(kind));
    let refusing = pod.named(|container| bad(&container["securityContext"]).is_some());
    let own = bad(pod.context());
    if own.is_some() || !refusing.is_empty() {
        let mut values: Vec<String> = own.iter().cloned().collect();
        values.extend(pod.containers().filter_map(|container| bad(&container["securityContext"])));
        let who = setters(own.is_some(), &refusing);
        let values = quoted(&unique(values));
        return found(true, "seccompProfile", || {
            format!("{who} must not set securityContext.seccompProfile.type to {values}")
        });
    }
    let silent = pod.named(|container| kind(&container["securityContext"]).is_none());
    let missing = kind(pod.context()).is_none() && !silent.is_empty();
    let detail = || {
        let who = containers(&silent);
        format!("pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"")
    };
    found(missing, "seccompProfile", detail)
}
