//! What all tests need: a directory, a group of cgroups, sandboxes and containers to begin with.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mainstay_runtime::cgroup::{Cgroups, NodeCgroup, PodCgroup};
use mainstay_runtime::image::ImageRef;
use mainstay_runtime::protocol::{ContainerConfig, ContainerState, ContainerStatus, SandboxConfig};
use mainstay_runtime::sandbox::Sandbox;

pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) instance: String,
}

impl World {
    pub(crate) fn new(instance: &str) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), instance: instance.to_owned() }
    }

    pub(crate) fn sandbox(&self, uid: &str) -> SandboxConfig {
        SandboxConfig {
            // Longer than a socket's path may be, and with what mount options give a meaning to.
            dir: self.directory.path().join("x".repeat(100) + ",:\\ ").join(uid),
            uid: uid.to_owned(),
            hostname: "a-pod".to_owned(),
            host_network: false,
            instance: self.instance.clone(),
            node: "node-1".to_owned(),
            exe: std::env::current_exe().unwrap(),
            hidden: vec![self.directory.path().to_owned()],
            sysctls: vec![],
            memory_volumes: vec![],
            host_pid: false,
            host_ipc: false,
            share_pid: false,
            fence: None,
        }
    }

    pub(crate) fn node(&self) -> NodeCgroup {
        Cgroups::detect().unwrap().node(&self.instance, "node-1")
    }

    pub(crate) fn pod(&self, uid: &str) -> PodCgroup {
        self.node().pod(uid)
    }

    /// All groups of the world in all hierarchies, without the machine's own.
    pub(crate) fn groups(&self) -> Vec<PathBuf> {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
        let mut open: Vec<PathBuf> = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]).collect();
        open = open
            .into_iter()
            .map(|root| root.join("mainstay").join(&self.instance))
            .filter(|top| top.is_dir())
            .collect();
        let mut found = Vec::new();
        while let Some(group) = open.pop() {
            let entries = fs::read_dir(&group).into_iter().flatten().flatten();
            open.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
            found.push(group);
        }
        found
    }

    /// Whether the test went well or not, nothing of it stays.
    pub(crate) fn end(&self) {
        let cgroups = Cgroups::detect().unwrap();
        self.node().kill().unwrap();
        cgroups.remove_instance(&self.instance).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for pod in fs::read_dir(self.sandbox("x").dir.parent().unwrap()).into_iter().flatten().flatten() {
                let log = fs::read_to_string(pod.path().join("shim.log")).unwrap_or_default();
                eprintln!("{}: {log}", pod.file_name().display());
            }
            self.end();
        }
    }
}

/// A container that runs a shell script.
pub(crate) fn container(sandbox: &SandboxConfig, id: &str, script: &str) -> ContainerConfig {
    // Version 2 has no controllers in these tests.
    let limited = !fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap();
    ContainerConfig {
        id: id.to_owned(),
        name: id.to_owned(),
        image: ImageRef::Host,
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec![("COLOUR".to_owned(), "blue".to_owned())],
        working_dir: String::new(),
        mounts: vec![],
        cpu_request_milli: Some(100),
        cpu_limit_milli: None,
        memory_limit_bytes: None,
        pids_limit: limited.then_some(100),
        user: 0,
        group: 0,
        supplementary_groups: vec![],
        read_only_root: false,
        seccomp: mainstay_runtime::seccomp::Seccomp::Unconfined,
        privileged: false,
        capabilities_add: vec![],
        capabilities_drop: vec![],
        no_new_privileges: false,
        oom_score_adj: 0,
        log_path: sandbox.dir.join("logs").join(id),
        stdin: false,
        stdin_once: false,
        tty: false,
        init: false,
        pid_of: None,
    }
}

pub(crate) async fn end_of(sandbox: &Sandbox, id: &str) -> ContainerStatus {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let all = sandbox.statuses().await.unwrap();
        let status = all.into_iter().find(|status| status.id == id).unwrap();
        if status.state != ContainerState::Running {
            return status;
        }
        assert!(Instant::now() < deadline, "{id} does not end");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) fn code(status: &ContainerStatus) -> i32 {
    match status.state {
        ContainerState::Exited { code, .. } => code,
        ContainerState::Running => panic!("still running"),
    }
}

/// What a container wrote, without times, streams and tags.
pub(crate) fn log(config: &ContainerConfig) -> Vec<String> {
    let text = fs::read_to_string(&config.log_path).unwrap();
    text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap().to_owned()).collect()
}

pub(crate) async fn run(sandbox: &Sandbox, config: &ContainerConfig) -> (i32, Vec<String>) {
    sandbox.start_container(config).await.unwrap();
    let status = end_of(sandbox, &config.id).await;
    (code(&status), log(config))
}

pub(crate) async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A number from a line such as `VmRSS:  4000 kB` of a file.
pub(crate) fn number_in(file: &str, field: &str) -> i64 {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}
