//! Who may do what: kubectl's view of accounts, tokens, roles, quotas and Pod Security, and the audit log.

use std::process::Output;

use crate::cluster::{Cluster, text};

/// `kubectl` with nothing but a token.
fn with_token(cluster: &Cluster, token: &str, args: &[&str]) -> Output {
    let server = format!("--server=https://{}", cluster.api);
    let token = format!("--token={token}");
    let authority = format!("--certificate-authority={}", cluster.dir().join("pki/ca.crt").display());
    let mut all = args.to_vec();
    all.extend(["--kubeconfig=/dev/null", &server, &token, &authority]);
    cluster.kubectl(&all).output().unwrap()
}

fn refused(cluster: &Cluster, args: &[&str]) -> String {
    let output = cluster.kubectl(args).output().unwrap();
    assert!(!output.status.success(), "{args:?} should be refused: {}", text(&output));
    text(&output)
}

#[test]
fn accounts_act_within_their_roles() {
    let cluster = Cluster::up(&[]);
    assert!(cluster.k(&["auth", "whoami"]).contains("kubernetes-admin"));
    cluster.k(&["create", "namespace", "team"]);
    cluster.k(&["create", "serviceaccount", "bot", "-n", "team"]);
    let token = cluster.k(&["create", "token", "bot", "-n", "team", "--duration=20m"]).trim().to_owned();
    let me = text(&with_token(&cluster, &token, &["auth", "whoami"]));
    assert!(me.contains("system:serviceaccount:team:bot") && me.contains("system:serviceaccounts:team"), "{me}");
    let pods = ["get", "pods", "-n", "team"];
    let said = text(&with_token(&cluster, &token, &pods));
    let expected = r#"Error from server (Forbidden): pods is forbidden: User "system:serviceaccount:team:bot" cannot list resource "pods" in API group "" in the namespace "team""#;
    assert_eq!(said.trim(), expected);
    cluster.k(&["create", "role", "reader", "--verb=get,list", "--resource=pods,pods/log", "-n", "team"]);
    cluster.k(&["create", "rolebinding", "bots", "--role=reader", "--serviceaccount=team:bot", "-n", "team"]);
    assert!(with_token(&cluster, &token, &pods).status.success());
    let account = "--as=system:serviceaccount:team:bot";
    assert_eq!(cluster.k(&["auth", "can-i", "list", "pods", "-n", "team", account]).trim(), "yes");
    assert!(refused(&cluster, &["auth", "can-i", "delete", "pods", "-n", "team", account]).contains("no"));
    let list = cluster.k(&["auth", "can-i", "--list", "-n", "team", account]);
    assert!(list.contains("pods/log") && list.contains("selfsubjectaccessreviews"), "{list}");
    let file = cluster.dir().join("rbac.yaml");
    let role = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: reader, namespace: team}\nrules: [{apiGroups: [''], resources: [configmaps], verbs: [get]}]\n";
    std::fs::write(&file, role).unwrap();
    let said = cluster.k(&["auth", "reconcile", "-f", file.to_str().unwrap()]);
    assert!(said.contains("role.rbac.authorization.k8s.io/reader reconciled"), "{said}");
    assert_eq!(cluster.k(&["auth", "can-i", "list", "pods", "-n", "team", account]).trim(), "yes");
    assert_eq!(cluster.k(&["auth", "can-i", "get", "configmaps", "-n", "team", account]).trim(), "yes");
    // Nobody makes himself more than he is.
    cluster.k(&["create", "rolebinding", "jane", "--clusterrole=admin", "--user=jane", "-n", "team"]);
    let said = refused(
        &cluster,
        &["create", "rolebinding", "up", "--clusterrole=cluster-admin", "--user=jane", "-n", "team", "--as=jane"],
    );
    assert!(said.contains("is attempting to grant RBAC permissions not currently held"), "{said}");
    cluster.k(&["delete", "serviceaccount", "bot", "-n", "team"]);
    assert!(text(&with_token(&cluster, &token, &pods)).contains("Unauthorized"));
}

#[test]
fn namespaces_have_bounds() {
    let cluster = Cluster::up(&[]);
    cluster.k(&["create", "namespace", "team"]);
    cluster.k(&[
        "label",
        "namespace",
        "team",
        "pod-security.kubernetes.io/enforce=baseline",
        "pod-security.kubernetes.io/warn=restricted",
    ]);
    let run = ["run", "a", "-n", "team", "--image=mainstay.dev/host", "--restart=Never", "--", "sleep", "1"];
    let said = cluster.kubectl(&run).output().unwrap();
    assert!(said.status.success(), "{}", text(&said));
    assert!(text(&said).contains("Warning: would violate PodSecurity \"restricted:latest\""), "{}", text(&said));
    let privileged = ["run", "b", "-n", "team", "--image=mainstay.dev/host", "--privileged"];
    let said = refused(&cluster, &privileged);
    assert!(said.contains("violates PodSecurity \"baseline:latest\": privileged (container \"b\" must not set securityContext.privileged=true)"), "{said}");
    cluster.k(&["create", "quota", "few", "-n", "team", "--hard=configmaps=2"]);
    cluster.wait("the quota is counted", || {
        cluster.get(&["quota", "few", "-n", "team"])["status"]["used"]["configmaps"] == "1"
    });
    cluster.k(&["create", "configmap", "one", "-n", "team"]);
    let said = refused(&cluster, &["create", "configmap", "two", "-n", "team"]);
    assert!(
        said.contains("exceeded quota: few, requested: configmaps=1, used: configmaps=2, limited: configmaps=2"),
        "{said}"
    );
    cluster.k(&["delete", "configmap", "one", "-n", "team"]);
    cluster.wait("the quota gets its place back", || {
        cluster.kubectl(&["create", "configmap", "two", "-n", "team"]).output().unwrap().status.success()
    });
}

#[test]
fn the_audit_log_says_who_did_what() {
    let cluster = Cluster::new();
    let log = cluster.dir().join("audit.log");
    let started = cluster.try_start(&[], &["--audit-log", log.to_str().unwrap()]);
    assert!(started.status.success(), "{}", text(&started));
    cluster.k(&["create", "configmap", "noted"]);
    cluster.wait("the log tells of it", || {
        let lines = std::fs::read_to_string(&log).unwrap_or_default();
        lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).any(|event| {
            event["verb"] == "create"
                && event["objectRef"]["resource"] == "configmaps"
                && event["user"]["username"] == "kubernetes-admin"
        })
    });
}
