//! The machine itself: left as it was, and refused in one sentence where it cannot do.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::Command;

use crate::cluster::{Cluster, MAINSTAY, text};

/// Ten rounds of up and down leave no link, namespace, mount, cgroup, process or rule behind.
#[test]
fn rounds_of_up_and_down_leave_the_machine_as_it_was() {
    let rounds = 10;
    // The first round makes directories that stay, such as /run/netns.
    drop(Cluster::up(&[]));
    let before = Machine::look();
    for round in 0..rounds {
        let cluster = Cluster::up(if round == 0 { &["examples/shop"] } else { &[] });
        cluster.down();
    }
    let after = Machine::look();
    assert_eq!(before, after);
}

#[derive(Debug, PartialEq, Eq)]
struct Machine {
    links: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    processes: usize,
    routes: String,
    forwarding: String,
}

impl Machine {
    fn look() -> Self {
        let names = |path: &str| -> BTreeSet<String> {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let mounts =
            read("/proc/self/mountinfo").lines().map(|line| line.split(' ').nth(4).unwrap_or("").to_owned()).collect();
        // The dead that nobody has reaped yet have no command line.
        let is_ours = |pid: &&String| read(&format!("/proc/{pid}/cmdline")).contains("mainstay-e2e-");
        let processes = names("/proc").iter().filter(is_ours).count();
        let mut cgroups = BTreeSet::new();
        for root in names("/sys/fs/cgroup") {
            cgroups.extend(
                names(&format!("/sys/fs/cgroup/{root}/mainstay")).into_iter().map(|name| format!("{root}/{name}")),
            );
        }
        cgroups.extend(names("/sys/fs/cgroup/mainstay"));
        Self {
            links: names("/sys/class/net"),
            namespaces: names("/run/netns"),
            mounts,
            cgroups,
            processes,
            routes: read("/proc/net/route"),
            forwarding: read("/proc/sys/net/ipv4/ip_forward"),
        }
    }
}

#[test]
fn a_machine_that_cannot_run_it_gets_one_clear_sentence() {
    let cluster = Cluster::new();
    let taken = TcpListener::bind(&cluster.api).unwrap();
    let output = cluster.try_start(&[], &[]);
    let said = text(&output);
    assert!(!output.status.success() && said.contains("is in use") && said.contains("--api"), "{said}");
    drop(taken);

    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid", "65534", "--clear-groups", MAINSTAY, "up", "--data-dir", "/tmp/mainstay-nobody"]);
    let said = text(&nobody.output().unwrap());
    assert!(said.contains("needs root"), "{said}");

    let wrong = Command::new(MAINSTAY)
        .args(["up", "--network", "10.1.2.0/24", "--data-dir"])
        .arg(cluster.dir())
        .output()
        .unwrap();
    assert!(!wrong.status.success() && text(&wrong).contains("/16"), "{}", text(&wrong));
    let nothing = cluster.mainstay(&["status"]);
    assert!(!nothing.status.success() && text(&nothing).contains("mainstay up"), "{}", text(&nothing));
}
