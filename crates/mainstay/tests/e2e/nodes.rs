//! What a node does by itself: evictions, static pods, a graceful shutdown, first processes, what commands leave behind.
//!
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/>,
//! <https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/#local-ephemeral-storage>,
//! <https://kubernetes.io/docs/tasks/configure-pod-container/static-pod/>,
//! <https://kubernetes.io/docs/concepts/cluster-administration/node-shutdown/>,
//! <https://kubernetes.io/docs/tasks/debug/debug-application/get-shell-running-container/>,
//! <https://kubernetes.io/docs/concepts/policy/pid-limiting/>.

use serde_json::Value;

use crate::cluster::{Cluster, is_ready};

fn pod(cluster: &Cluster, name: &str) -> Value {
    cluster.get(&["pod", name])
}

fn condition(object: &Value, name: &str) -> Value {
    let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|condition| condition["type"] == name).unwrap_or_default()
}

/// Started with more flags than usual.
fn up(more: &[&str]) -> Cluster {
    let cluster = Cluster::new();
    let output = cluster.try_start(&[], more);
    assert!(output.status.success(), "{}", crate::cluster::text(&output));
    cluster
}

const HUNGRY: &str = "
apiVersion: v1
kind: Pod
metadata: {name: modest}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: mainstay.dev/host, command: [sleep, '1000'], resources: {limits: {cpu: 100m, memory: 64Mi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: mainstay.dev/host, command: [sh, -c, 'head -c 350M /dev/zero | tail -c 350M | { sleep 1000; cat >/dev/null; }']}
";

#[test]
fn who_takes_too_much_is_evicted_and_the_node_says_why() {
    let cluster = up(&["--nodes", "1", "--node-memory", "400Mi"]);
    let node = cluster.get(&["node", "node-1"]);
    assert_eq!(node["status"]["allocatable"]["memory"], "300Mi", "what must stay free is nobody's");
    assert!(node["status"]["capacity"]["ephemeral-storage"].is_string());
    cluster.apply(HUNGRY);
    cluster.wait("the greedy pod is evicted", || pod(&cluster, "greedy")["status"]["phase"] == "Failed");
    let greedy = pod(&cluster, "greedy");
    assert_eq!(greedy["status"]["reason"], "Evicted");
    assert!(greedy["status"]["message"].as_str().unwrap().starts_with("The node was low on resource: memory."));
    assert_eq!(condition(&greedy, "DisruptionTarget")["reason"], "TerminationByKubelet");
    assert!(is_ready(&pod(&cluster, "modest")), "who has what it asked for stays");
    cluster.wait("the node says so and new pods are kept away", || {
        let node = cluster.get(&["node", "node-1"]);
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        condition(&node, "MemoryPressure")["status"] == "True"
            && taints.iter().any(|taint| taint["key"] == "node.kubernetes.io/memory-pressure")
    });
    assert!(cluster.k(&["describe", "pod", "greedy"]).contains("Evicted"));
}

const FILLING: &str = "
apiVersion: v1
kind: Pod
metadata: {name: volume}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: v, emptyDir: {sizeLimit: 1Mi}}]
  containers:
  - name: c
    image: mainstay.dev/host
    command: [sh, -c, 'head -c 3M /dev/zero > /v/file; sleep 1000']
    volumeMounts: [{name: v, mountPath: /v}]
---
apiVersion: v1
kind: Pod
metadata: {name: layer}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: mainstay.dev/host
    command: [sh, -c, 'head -c 3M /dev/zero > /var/file; sleep 1000']
    resources: {limits: {ephemeral-storage: 1Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: within}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: v, emptyDir: {sizeLimit: 10Mi}}]
  containers:
  - name: c
    image: mainstay.dev/host
    command: [sh, -c, 'head -c 3M /dev/zero > /v/file; sleep 1000']
    resources: {limits: {ephemeral-storage: 20Mi}}
    volumeMounts: [{name: v, mountPath: /v}]
---
apiVersion: v1
kind: Pod
metadata: {name: forks}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: mainstay.dev/host
    command: [sh, -c, 'i=0; while [ $i -lt 100 ]; do sleep 1000 & i=$((i+1)); done; sleep 1000']
";

#[test]
fn disks_and_process_ids_have_limits() {
    let cluster = up(&["--nodes", "1", "--pids-max", "50"]);
    cluster.apply(FILLING);
    for (name, words) in
        [("volume", "Usage of EmptyDir volume \"v\" exceeds"), ("layer", "Container c exceeded its local ephemeral")]
    {
        cluster.wait("it is evicted", || pod(&cluster, name)["status"]["reason"] == "Evicted");
        let message = pod(&cluster, name)["status"]["message"].clone();
        assert!(message.as_str().unwrap().contains(words), "{message}");
    }
    assert!(is_ready(&pod(&cluster, "within")));
    cluster.wait("the shell cannot fork any more", || cluster.k(&["logs", "forks"]).to_lowercase().contains("fork"));
    assert!(is_ready(&pod(&cluster, "within")), "and nobody else minds");
}

const WORKING: &str = "
apiVersion: v1
kind: Pod
metadata: {name: first, annotations: {mainstay.dev/init: 'true'}}
spec:
  terminationGracePeriodSeconds: 30
  containers: [{name: c, image: mainstay.dev/host, command: [sleep, '1000']}]
---
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: mainstay.dev/host
    command: [sleep, '1000']
    lifecycle: {postStart: {exec: {command: [sh, -c, 'sleep 777 >/dev/null 2>&1 &']}}}
";

#[test]
fn what_is_left_running_stays_and_a_first_process_forwards_and_reaps() {
    let cluster = up(&["--nodes", "1"]);
    cluster.apply(WORKING);
    cluster.k(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"]);
    let sh = |name: &str, script: &str| cluster.k(&["exec", name, "--", "sh", "-c", script]);
    sh("plain", "sleep 888 >/dev/null 2>&1 & setsid sleep 999 >/dev/null 2>&1 &");
    let seen = sh("plain", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '");
    assert!(["sleep 777", "sleep 888", "sleep 999"].iter().all(|one| seen.contains(one)), "{seen}");
    // An agent that starts anew knows nothing of them, and leaves them alone.
    let agent = cluster.pid("node-1");
    cluster.kill("node-1");
    cluster
        .wait("the agent is back", || cluster.pid("node-1") != agent && cluster.mainstay(&["status"]).status.success());
    let seen = sh("plain", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '");
    assert!(["sleep 777", "sleep 888", "sleep 999"].iter().all(|one| seen.contains(one)), "{seen}");
    // `sleep` alone, as the first process, would not heed SIGTERM, and nobody would reap.
    sh("first", "(sleep 0.01 & sleep 0.01 &); sleep 0.2");
    assert_eq!(sh("first", "cat /proc/[0-9]*/stat | grep -c ' Z ' || true").trim(), "0");
    let begun = std::time::Instant::now();
    cluster.k(&["delete", "pod", "first", "--timeout=60s"]);
    assert!(begun.elapsed().as_secs() < 10, "SIGTERM reached the program: {:?}", begun.elapsed());
}

const STATIC: &str = "
apiVersion: v1
kind: Pod
metadata: {name: fixed, labels: {app: fixed}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: mainstay.dev/host, command: [sh, -c, 'echo here; exec sleep 1000']}]
";

#[test]
fn static_pods_run_by_their_files() {
    let cluster = up(&["--nodes", "1"]);
    let directory = cluster.dir().join("nodes/node-1/manifests");
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("fixed.yaml");
    std::fs::write(&file, STATIC).unwrap();
    let name = "fixed-node-1";
    cluster.wait("its copy is Ready", || is_ready(&pod(&cluster, name)));
    let copy = pod(&cluster, name);
    assert_eq!(copy["metadata"]["ownerReferences"][0]["kind"], "Node");
    assert!(copy["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string());
    assert!(cluster.k(&["logs", name]).contains("here"));
    assert!(cluster.k(&["exec", name, "--", "id"]).contains("uid=0"));
    // Deleting the copy does nothing to the pod.
    let container = copy["status"]["containerStatuses"][0]["containerID"].clone();
    cluster.k(&["delete", "pod", name, "--timeout=60s"]);
    cluster.wait("there is a copy again", || {
        let now = pod(&cluster, name);
        is_ready(&now) && now["metadata"]["uid"] != copy["metadata"]["uid"]
    });
    assert_eq!(pod(&cluster, name)["status"]["containerStatuses"][0]["containerID"], container);
    // Another content is another pod.
    std::fs::write(&file, STATIC.replace("echo here", "echo there")).unwrap();
    cluster.wait("the new one runs", || {
        is_ready(&pod(&cluster, name))
            && cluster.kubectl(&["logs", name]).output().is_ok_and(|out| crate::cluster::text(&out).contains("there"))
    });
    std::fs::remove_file(&file).unwrap();
    cluster.wait("it is gone", || pod(&cluster, name).is_null());
}

const ORDERED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: polite}
spec:
  volumes: [{name: out, hostPath: {path: OUT}}]
  containers:
  - name: c
    image: mainstay.dev/host
    command: [sh, -c, 'trap \"echo ended >> /out/words; exit 0\" TERM; while :; do sleep 0.05; done']
    lifecycle: {preStop: {exec: {command: [sh, -c, 'echo hook >> /out/words']}}}
    volumeMounts: [{name: out, mountPath: /out}]
";

#[test]
fn a_node_that_shuts_down_lets_its_pods_end() {
    let cluster = up(&["--nodes", "1", "--shutdown-grace", "9"]);
    let out = tempfile::tempdir().unwrap();
    cluster.apply(&ORDERED.replace("OUT", out.path().to_str().unwrap()));
    cluster.k(&["wait", "--for=condition=Ready", "pod/polite", "--timeout=60s"]);
    cluster.down();
    assert_eq!(std::fs::read_to_string(out.path().join("words")).unwrap(), "hook\nended\n");
    cluster.start(&[]);
    let polite = pod(&cluster, "polite");
    assert_eq!((&polite["status"]["phase"], &polite["status"]["reason"]), (&"Failed".into(), &"Terminated".into()));
    assert!(polite["status"]["message"].as_str().unwrap().contains("imminent node shutdown"));
    cluster.wait("the node takes pods again", || {
        condition(&cluster.get(&["node", "node-1"]), "Ready")["status"] == "True"
    });
}
