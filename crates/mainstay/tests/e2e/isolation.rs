//! What containers may not do: attempts to escape, and the limits they run in.
//!
//! <https://kubernetes.io/docs/tasks/configure-pod-container/security-context/>,
//! <https://kubernetes.io/docs/tutorials/security/seccomp/>,
//! <https://kubernetes.io/docs/tasks/configure-pod-container/quality-service-pod/>.

use crate::cluster::Cluster;

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: mainstay.dev/host, command: [sleep, '1000']}]
---
apiVersion: v1
kind: Pod
metadata: {name: strict}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, seccompProfile: {type: RuntimeDefault}}
  volumes: [{name: m, emptyDir: {medium: Memory, sizeLimit: 8Mi}}]
  containers:
  - name: c
    image: mainstay.dev/host
    command: [sleep, '1000']
    # Guaranteed: requests are the limits.
    resources: {limits: {cpu: 200m, memory: 64Mi}}
    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    volumeMounts: [{name: m, mountPath: /m}]
---
apiVersion: v1
kind: Pod
metadata: {name: filtered}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: mainstay.dev/host
    command: [sleep, '1000']
    securityContext: {seccompProfile: {type: RuntimeDefault}, capabilities: {add: [SYS_PTRACE]}}
";

/// Every command that must fail, in a pod whose programs are root.
const ESCAPES: &[&str] = &[
    "echo 1 > /proc/sys/kernel/panic",
    "echo c > /proc/sysrq-trigger",
    "test -s /proc/kcore",
    "mount -t tmpfs x /mnt",
    "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk",
    "for d in /sys/fs/cgroup/*/ /sys/fs/cgroup; do mkdir $d/x 2>/dev/null && exit 0; done; false",
    "for f in /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max; do echo 1000000000 > $f && exit 0; done; false",
    "nsenter -t 1 -m -p true 2>/dev/null && test -e /proc/1/root/sbin/init && test $(cat /proc/1/comm) = init",
    "ls /var/lib/mainstay/*",
    "test -s /etc/shadow",
    "ls /root/* 2>/dev/null",
    "kill -0 $(seq 300 400) 2>/dev/null",
    "test -c /dev/kmsg && echo test > /dev/kmsg",
    "date -s 2001-01-01",
    "hostname other",
];

#[test]
fn containers_stay_within_their_walls() {
    let cluster = Cluster::up(&[]);
    cluster.apply(PODS);
    cluster.k(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"]);
    let run = |pod: &str, script: &str| {
        let output = cluster.kubectl(&["exec", pod, "--", "sh", "-c", script]).output().unwrap();
        (output.status.success(), crate::cluster::text(&output))
    };
    for script in ESCAPES {
        let (escaped, said) = run("plain", script);
        assert!(!escaped, "{script}: {said}");
    }
    // The instance's own directory, wherever it is.
    let (seen, said) = run("plain", &format!("ls {}/pki", cluster.dir().display()));
    assert!(!seen, "{said}");

    let (_, said) = run(
        "strict",
        "id; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; touch /x; echo y > /m/y && cat /m/y; ls -ln /m | tail -1; head -c 9000000 /dev/zero > /m/big",
    );
    for words in [
        "uid=1000",
        "gid=3000",
        "2000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "Read-only file system",
        "No space left",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(cluster.get(&["pod", "strict"])["status"]["qosClass"], "Guaranteed");

    // Without "no new privileges" the filter stands as well, and the right that it took to install it is gone.
    let (_, said) = run(
        "filtered",
        "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; unshare -U true; grep Seccomp: /proc/1/status",
    );
    for words in [
        "CapEff:\t00000000a80c25fb",
        "CapBnd:\t00000000a80c25fb",
        "NoNewPrivs:\t0",
        "Seccomp:\t2",
        "unshare failed: Operation not permitted",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}
