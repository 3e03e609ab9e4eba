//! The sentences of Pod Security.

#![allow(clippy::needless_pass_by_value)] // `json!` makes values

use serde_json::{Value, json};

use super::{Level, sentence, violations};

fn said(level: Level, spec: Value) -> String {
    sentence(&violations(level, &json!({}), &spec))
}

fn container(context: Value) -> Value {
    json!({"containers": [{"name": "c", "securityContext": context}]})
}

#[test]
fn a_plain_pod_is_baseline_and_not_restricted() {
    let plain = json!({"containers": [{"name": "c"}]});
    assert_eq!(said(Level::Baseline, plain.clone()), "");
    assert_eq!(
        said(Level::Restricted, plain),
        "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), \
         unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), \
         runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), \
         seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
    );
}

#[test]
fn a_careful_pod_is_restricted() {
    let spec = json!({
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}],
        "volumes": [{"name": "v", "emptyDir": {}}],
    });
    assert_eq!(said(Level::Restricted, spec), "");
}

#[test]
fn what_baseline_forbids() {
    let cases = [
        (json!({"hostNetwork": true, "hostPID": true}), "host namespaces (hostNetwork=true, hostPID=true)"),
        (
            json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}]}, {"name": "b", "ports": [{"hostPort": 90}]}]}),
            "hostPort (containers \"a\", \"b\" use hostPorts 80, 90)",
        ),
        (
            container(json!({"privileged": true})),
            "privileged (container \"c\" must not set securityContext.privileged=true)",
        ),
        (
            container(json!({"capabilities": {"add": ["NET_RAW", "CHOWN"]}})),
            "non-default capabilities (container \"c\" must not include \"NET_RAW\" in securityContext.capabilities.add)",
        ),
        (json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), "hostPath volumes (volume \"v\")"),
        (
            container(json!({"procMount": "Unmasked"})),
            "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")",
        ),
        (
            container(json!({"seLinuxOptions": {"type": "spc_t", "user": "u"}})),
            "seLinuxOptions (container \"c\" sets forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)",
        ),
        (
            json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
            "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_rmem"}]}}),
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            json!({"containers": [{"name": "c", "livenessProbe": {"httpGet": {"host": "10.0.0.1"}}}]}),
            "probe or lifecycle host (container \"c\" uses probe or lifecycle host \"10.0.0.1\")",
        ),
        (
            container(json!({"appArmorProfile": {"type": "Unconfined"}})),
            "forbidden AppArmor profile (container \"c\" must not set AppArmor profile type to \"Unconfined\")",
        ),
        (
            json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(said(Level::Baseline, spec), expected);
    }
}

#[test]
fn what_restricted_forbids_besides() {
    let only = |spec: Value, reason: &str| {
        let all = violations(Level::Restricted, &json!({}), &spec);
        all.iter().find(|violation| violation.reason == reason).map(ToString::to_string).unwrap_or_default()
    };
    assert_eq!(
        only(json!({"volumes": [{"name": "a", "hostPath": {}}, {"name": "b", "nfs": {}}]}), "restricted volume types"),
        "restricted volume types (volumes \"a\", \"b\" use restricted volume types \"hostPath\", \"nfs\")"
    );
    let mut spec = container(json!({"runAsNonRoot": false, "runAsUser": 0}));
    spec["securityContext"] = json!({"runAsUser": 0});
    assert_eq!(
        only(spec.clone(), "runAsNonRoot != true"),
        "runAsNonRoot != true (container \"c\" must not set securityContext.runAsNonRoot=false)"
    );
    assert_eq!(only(spec, "runAsUser=0"), "runAsUser=0 (pod and container \"c\" must not set runAsUser=0)");
}
