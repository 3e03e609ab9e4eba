//! What must neither crash nor wedge an agent: a full disk, processes that hang in the kernel, an API server that is gone.
//!
//! <https://kubernetes.io/docs/concepts/architecture/nodes/>,
//! <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination>.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use serde_json::Value;

use crate::cluster::{Cluster, is_ready};

fn pod(name: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers: [{{name: c, image: mainstay.dev/host, command: [sleep, '1000']}}]\n"
    )
}

fn get(cluster: &Cluster, name: &str) -> Value {
    cluster.get(&["pod", name])
}

#[test]
fn a_full_disk_stops_new_pods_and_nothing_else() {
    let cluster = Cluster::new();
    // A small disk of its own for the node's directory; `down` unmounts whatever is mounted there.
    let disk = cluster.dir().join("nodes/node-1");
    fs::create_dir_all(&disk).unwrap();
    mount(Some("disk"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=4m")).unwrap();
    // Evictions off: they are another test's.
    let more = ["--nodes", "1", "--eviction-hard", "nodefs.available<0%,nodefs.inodesFree<0%"];
    assert!(cluster.try_start(&[], &more).status.success());
    cluster.apply(&pod("before"));
    cluster.wait("it runs", || is_ready(&get(&cluster, "before")));
    let agent = cluster.pid("node-1");
    let filler = disk.join("filler");
    let full = fs::write(&filler, vec![1_u8; 8 << 20]);
    assert!(full.is_err(), "the disk is full");
    cluster.apply(&pod("during"));
    cluster.wait("people are told why it does not run", || {
        let events = cluster.k(&["get", "events", "--field-selector", "involvedObject.name=during"]);
        events.contains("No space left on device")
    });
    assert!(cluster.k(&["exec", "before", "--", "echo", "well"]).contains("well"));
    cluster.k(&["delete", "pod", "before", "--timeout=60s"]);
    fs::remove_file(&filler).unwrap();
    cluster.wait("it runs when there is room again", || is_ready(&get(&cluster, "during")));
    assert_eq!(cluster.pid("node-1"), agent, "the agent never ended");
}

/// Processes frozen by version 1's freezer do not die by SIGKILL, as those that wait for a dead disk.
struct Frozen(PathBuf);

impl Frozen {
    fn freeze(pid: &str) -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup/freezer");
        if !root.join("cgroup.procs").exists() {
            return None;
        }
        let group = root.join(format!("mainstay-e2e-{}", std::process::id()));
        fs::create_dir_all(&group).unwrap();
        let frozen = Self(group);
        fs::write(frozen.0.join("cgroup.procs"), pid).unwrap();
        fs::write(frozen.0.join("freezer.state"), "FROZEN").unwrap();
        Some(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        for _ in 0..500 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

#[test]
fn a_process_that_does_not_die_holds_up_its_own_pod_only() {
    let cluster = Cluster::new();
    assert!(cluster.try_start(&[], &["--nodes", "1"]).status.success());
    // With no grace at all the API would forget it at once.
    let stuck = pod("stuck").replace("PeriodSeconds: 0", "PeriodSeconds: 1");
    cluster.apply(&format!("{stuck}{}", pod("other")));
    cluster.wait("both run", || is_ready(&get(&cluster, "stuck")) && is_ready(&get(&cluster, "other")));
    let uid = get(&cluster, "stuck")["metadata"]["uid"].as_str().unwrap().to_owned();
    let containers = cluster.dir().join("nodes/node-1/pods").join(uid).join("containers");
    let status = fs::read_dir(containers).unwrap().flatten().next().unwrap().path().join("status.json");
    let status: Value = serde_json::from_slice(&fs::read(status).unwrap()).unwrap();
    let Some(frozen) = Frozen::freeze(&status["pid"].to_string()) else {
        println!("skipped: this kernel has no version 1 freezer");
        return;
    };
    let agent = cluster.pid("node-1");
    cluster.k(&["delete", "pod", "stuck", "--wait=false"]);
    cluster.wait("it is ending", || !get(&cluster, "stuck")["metadata"]["deletionTimestamp"].is_null());
    cluster.apply(&pod("later"));
    cluster.wait("new pods run", || is_ready(&get(&cluster, "later")));
    cluster.k(&["delete", "pod", "later", "--timeout=60s"]);
    assert!(cluster.k(&["exec", "other", "--", "echo", "well"]).contains("well"));
    // Nor does an agent that starts anew hang on it.
    cluster.kill("node-1");
    cluster.wait("the agent is back", || cluster.try_pid("node-1").is_some_and(|pid| pid != agent));
    cluster.apply(&pod("again"));
    cluster.wait("new pods run", || is_ready(&get(&cluster, "again")));
    assert!(!get(&cluster, "stuck").is_null(), "what still runs is not forgotten");
    drop(frozen);
    cluster.wait("it ends when it can", || get(&cluster, "stuck").is_null());
}
