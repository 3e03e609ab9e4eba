//! What a pod is given on its node: names, files that follow their objects, a token, volumes; and what is done to it while it
//! runs: debugging, other resources, measuring.
//!
//! <https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/>,
//! <https://kubernetes.io/docs/concepts/storage/projected-volumes/>,
//! <https://kubernetes.io/docs/tasks/debug/debug-application/debug-running-pod/>,
//! <https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources/>.

use crate::cluster::{Cluster, text};

const FILES: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {a: '1'}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: files, labels: {tier: iron}}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {fsGroup: 2000, runAsUser: 1000}
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: later, configMap: {name: later, optional: true}}
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: info, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: vault, projected: {sources: [{serviceAccountToken: {path: token, expirationSeconds: 600, audience: vault}}]}}
  containers:
  - name: c
    image: mainstay.dev/host
    command: [sleep, '1000']
    volumeMounts:
    - {name: settings, mountPath: /settings}
    - {name: settings, mountPath: /one/a, subPath: a}
    - {name: later, mountPath: /later}
    - {name: data, mountPath: /data}
    - {name: info, mountPath: /info}
    - {name: vault, mountPath: /vault}
";

#[test]
fn files_follow_their_objects_and_volumes_outlive_pods() {
    let cluster = Cluster::up(&[]);
    cluster.apply(FILES);
    cluster.k(&["wait", "--for=condition=Ready", "pod/files", "--timeout=60s"]);
    let sh = |script: &str| cluster.k(&["exec", "files", "--", "sh", "-c", script]);
    assert_eq!(sh("cat /settings/a /one/a; ls /later"), "11");
    assert!(sh("cat /info/labels").contains("tier=\"iron\""));
    assert!(sh("cut -d. -f2 /vault/token").len() > 50);
    assert!(sh("echo kept > /data/file; stat -c %g /data/file").starts_with("2000"));
    assert!(sh("touch /settings/x 2>&1 || true").contains("Read-only"));
    cluster.k(&["patch", "configmap", "settings", "-p", r#"{"data":{"a":"2"}}"#]);
    cluster.k(&["create", "configmap", "later", "--from-literal=z=9"]);
    cluster.k(&["label", "pod", "files", "tier=gold", "--overwrite"]);
    cluster.wait("the files say the same", || {
        sh("cat /settings/a /one/a; ls /later; cat /info/labels") == "21z\ntier=\"gold\""
    });
    // The token that every pod has opens the API by the name of its service.
    let call = "S=/var/run/secrets/kubernetes.io/serviceaccount; curl -sS --cacert $S/ca.crt -o /dev/null -w '%{http_code}' \
        -H \"Authorization: Bearer $(cat $S/token)\" https://kubernetes.default.svc/api/v1/namespaces/$(cat $S/namespace)/pods";
    assert_eq!(sh(call), "403");
    cluster.k(&["create", "rolebinding", "view", "--clusterrole=view", "--serviceaccount=default:default"]);
    cluster.wait("the role is in force", || sh(call) == "200");
    cluster.k(&["delete", "pod", "files", "--timeout=60s"]);
    cluster.apply(FILES);
    cluster.k(&["wait", "--for=condition=Ready", "pod/files", "--timeout=60s"]);
    assert_eq!(sh("cat /data/file"), "kept\n");
    let volume = cluster.get(&["pvc", "data"])["spec"]["volumeName"].as_str().unwrap().to_owned();
    let directory = cluster.dir().join("volumes").join(&volume);
    assert!(directory.exists());
    cluster.k(&["delete", "pod/files", "pvc/data", "--timeout=60s"]);
    cluster.wait("the volume and its data are gone", || {
        !directory.exists() && cluster.get(&["pv"])["items"].as_array().is_some_and(Vec::is_empty)
    });
}

const NAMES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: peers}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: other}
spec: {type: ExternalName, externalName: web.default.svc.cluster.local}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  hostname: web-0
  subdomain: peers
  terminationGracePeriodSeconds: 0
  containers:
  - {name: http, image: mainstay.dev/host, command: [python3, -m, http.server, '8080'], workingDir: /tmp}
";

#[test]
fn names_are_answered_on_every_node_by_itself() {
    let cluster = Cluster::up(&[]);
    cluster.apply(NAMES);
    cluster.k(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]);
    let ip = cluster.get(&["service", "web"])["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let pod = cluster.get(&["pod", "web"])["status"]["podIP"].as_str().unwrap().to_owned();
    let found = |name: &str| {
        let output = cluster.kubectl(&["exec", "web", "--", "getent", "ahostsv4", name]).output().unwrap();
        text(&output).split_whitespace().next().unwrap_or_default().to_owned()
    };
    cluster.wait("the pod has its name", || found("web-0.peers") == pod);
    assert_eq!(
        (found("web"), found("web.default"), found("other"), found("peers")),
        (ip.clone(), ip.clone(), ip.clone(), pod)
    );
    let back = cluster.k(&["exec", "web", "--", "getent", "hosts", &ip]);
    assert!(back.contains("web.default.svc.cluster.local"), "{back}");
    let own = cluster.get(&["pod", "web"])["spec"]["nodeName"].as_str().unwrap().to_owned();
    for node in ["node-1", "node-2", "node-3"].iter().filter(|node| **node != own) {
        cluster.ok(&["fault", "kill", &format!("node/{node}")]);
    }
    assert_eq!(found("web"), ip, "no other node is needed");
    // Nor is the server: a pod keeps asking while it dies and comes back.
    let asker = format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: asker}}\nspec:\n  nodeName: {own}\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: c, image: mainstay.dev/host, command: [sh, -c, 'while sleep 0.02; do getent ahostsv4 web >/dev/null && echo found || echo lost; done']}}\n"
    );
    cluster.apply(&asker);
    let asked = || text(&cluster.kubectl(&["logs", "asker"]).output().unwrap());
    cluster.wait("the pod asks", || asked().contains("found\n"));
    cluster.kill("server");
    cluster.wait("it has asked on", || asked().matches("found\n").count() > 50);
    assert!(!asked().contains("lost"), "{}", asked());
}

#[test]
fn running_pods_are_debugged_resized_and_measured() {
    let cluster = Cluster::up(&[]);
    let sized = "
apiVersion: v1
kind: Pod
metadata: {name: busy}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: spin, image: mainstay.dev/host, command: [sh, -c, 'while :; do :; done'],
     resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}}
";
    cluster.apply(sized);
    cluster.k(&["wait", "--for=condition=Ready", "pod/busy", "--timeout=60s"]);
    let look = ["cat", "/proc/1/comm"];
    let debug = ["debug", "busy", "--image=mainstay.dev/host", "--target=spin", "-c", "look", "--"];
    cluster.k(&[&debug[..], &look].concat());
    cluster.wait("the ephemeral container has looked at its target", || {
        text(&cluster.kubectl(&["logs", "busy", "-c", "look"]).output().unwrap()) == "sh\n"
    });
    let patch = r#"{"spec":{"containers":[{"name":"spin","resources":{"requests":{"cpu":"150m"},"limits":{"cpu":"300m","memory":"96Mi"}}}]}}"#;
    cluster.k(&["patch", "pod", "busy", "--subresource", "resize", "--patch", patch]);
    let status = || cluster.get(&["pod", "busy"])["status"]["containerStatuses"][0].clone();
    cluster.wait("the resources are those asked for", || status()["resources"]["limits"]["cpu"] == "300m");
    assert_eq!((&status()["restartCount"], &status()["allocatedResources"]["cpu"]), (&0.into(), &"150m".into()));
    let limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    assert_eq!(cluster.k(&["exec", "busy", "-c", "spin", "--", "sh", "-c", limit]).trim(), (96 << 20).to_string());
    let much =
        r#"{"spec":{"containers":[{"name":"spin","resources":{"requests":{"cpu":"1000"},"limits":{"cpu":"1000"}}}]}}"#;
    cluster.k(&["patch", "pod", "busy", "--subresource", "resize", "--patch", much]);
    cluster.wait("the node says that it will never have so much", || {
        cluster.k(&["get", "pod", "busy", "-o", "jsonpath={.status.conditions[?(@.type=='PodResizePending')].reason}"])
            == "Infeasible"
    });
    let measured = |args: &[&str]| text(&cluster.kubectl(args).output().unwrap());
    cluster.wait("usage is measured", || {
        measured(&["top", "pod", "busy", "--containers", "--no-headers"]).contains("spin")
    });
    cluster.wait("nodes are measured", || measured(&["top", "node", "--no-headers"]).lines().count() == 3);
    let node = cluster.get(&["pod", "busy"])["spec"]["nodeName"].as_str().unwrap().to_owned();
    let metrics = cluster.k(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/metrics/resource")]);
    assert!(metrics.contains("container_cpu_usage_seconds_total{container=\"spin\""), "{metrics}");
}
