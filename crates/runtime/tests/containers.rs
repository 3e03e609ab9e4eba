//! Real containers through a real shim. The test program is its own shim: `shim` and `shim-exec` as first argument.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mainstay_runtime::cgroup::{Cgroups, NodeCgroup};
use mainstay_runtime::exec::{Exec, ExecConfig, Streams};
use mainstay_runtime::image::ImageRef;
use mainstay_runtime::protocol::{ContainerConfig, ContainerState, ContainerStatus, Mount, MountKind, SandboxConfig};
use mainstay_runtime::sandbox::{Sandbox, SandboxError, SandboxEvent, clean_up, recorded};
use mainstay_runtime::{exec, shim};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("shim") => {
            if let Err(error) = shim::run(&args[1..]) {
                eprintln!("{error}");
                std::process::exit(1);
            }
        }
        Some("shim-exec") => std::process::exit(exec::run(&args[1..])),
        // What test runners ask to list the tests.
        Some("--list") => println!("containers: test"),
        _ if !nix::unistd::Uid::effective().is_root() => println!("skipped: containers need root"),
        _ => tests(),
    }
}

fn tests() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let instance = format!("t{}", std::process::id());
    let started = Instant::now();
    runtime.block_on(async {
        let world = World::new(&instance);
        ends_and_logs(&world).await;
        isolation(&world).await;
        limits(&world).await;
        commands(&world).await;
        adoption(&world).await;
        freezing(&world).await;
        no_leaks(&world).await;
        world.end();
    });
    println!("test containers ... ok ({} ms)", started.elapsed().as_millis());
    println!("\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}

struct World {
    directory: tempfile::TempDir,
    instance: String,
}

impl World {
    fn new(instance: &str) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), instance: instance.to_owned() }
    }

    fn sandbox(&self, uid: &str) -> SandboxConfig {
        SandboxConfig {
            // Longer than a socket's path may be.
            dir: self.directory.path().join("x".repeat(100)).join(uid),
            uid: uid.to_owned(),
            hostname: "a-pod".to_owned(),
            host_network: false,
            instance: self.instance.clone(),
            node: "node-1".to_owned(),
            exe: std::env::current_exe().unwrap(),
            hidden: vec![self.directory.path().to_owned()],
            sysctls: vec![],
        }
    }

    /// Whether the test is over well or not, nothing of it stays.
    fn end(&self) {
        let cgroups = Cgroups::detect().unwrap();
        cgroups.node(&self.instance, "node-1").kill().unwrap();
        cgroups.remove_instance(&self.instance).unwrap();
    }

    fn node(&self) -> NodeCgroup {
        Cgroups::detect().unwrap().node(&self.instance, "node-1")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.end();
        }
    }
}

fn container(sandbox: &SandboxConfig, id: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        id: id.to_owned(),
        name: id.to_owned(),
        image: ImageRef::Host,
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned()), ("COLOUR".to_owned(), "blue".to_owned())],
        working_dir: String::new(),
        mounts: vec![],
        cpu_request_milli: Some(100),
        cpu_limit_milli: None,
        memory_limit_bytes: None,
        pids_limit: Some(100),
        user: 0,
        group: 0,
        supplementary_groups: vec![],
        read_only_root: false,
        privileged: false,
        capabilities_add: vec![],
        capabilities_drop: vec![],
        no_new_privileges: false,
        oom_score_adj: 0,
        log_path: sandbox.dir.join("logs").join(id),
    }
}

async fn end_of(sandbox: &Sandbox, id: &str) -> ContainerStatus {
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

fn code(status: &ContainerStatus) -> i32 {
    match status.state {
        ContainerState::Exited { code, .. } => code,
        ContainerState::Running => panic!("still running"),
    }
}

fn log(config: &ContainerConfig) -> Vec<String> {
    let text = fs::read_to_string(&config.log_path).unwrap();
    text.lines().map(|line| line.splitn(3, ' ').nth(2).unwrap().trim_start_matches("F ").to_owned()).collect()
}

async fn run(sandbox: &Sandbox, config: &ContainerConfig) -> (i32, Vec<String>) {
    sandbox.start_container(config).await.unwrap();
    let status = end_of(sandbox, &config.id).await;
    (code(&status), log(config))
}

async fn ends_and_logs(world: &World) {
    let config = world.sandbox("ends");
    let begun = Instant::now();
    let sandbox = Sandbox::create(&config).await.unwrap();
    let shim_ms = begun.elapsed().as_micros() as f64 / 1000.0;
    let begun = Instant::now();
    let first = container(&config, "first", "echo out; echo err >&2; echo $COLOUR; printf end; exit 3");
    if let Err(error) = sandbox.start_container(&first).await {
        panic!(
            "{error}\n{}\n{}",
            fs::read_to_string(config.dir.join("shim.log")).unwrap(),
            fs::read_to_string(&first.log_path).unwrap_or_default()
        );
    }
    println!("shim up in {shim_ms:.1} ms, container started in {:.1} ms", begun.elapsed().as_micros() as f64 / 1000.0);
    let status = fs::read_to_string(format!("/proc/{}/status", sandbox.pid())).unwrap();
    let resident = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    println!("shim {resident}");
    assert_eq!(code(&end_of(&sandbox, "first").await), 3);
    let mut lines = log(&first);
    lines.sort();
    assert_eq!(lines, ["blue", "end", "err", "out"]);
    let mut missing = container(&config, "missing", "");
    missing.command = vec!["no-such-program".to_owned()];
    let error = sandbox.start_container(&missing).await.unwrap_err();
    assert!(
        matches!(&error, SandboxError::Refused(text) if text.contains("executable file not found in $PATH")),
        "{error}"
    );
    assert!(!config.dir.join("containers/missing").exists());
    let killed = container(&config, "killed", "sleep 100");
    sandbox.start_container(&killed).await.unwrap();
    sandbox.signal("killed", 9).await.unwrap();
    let status = end_of(&sandbox, "killed").await;
    assert_eq!(status.state, ContainerState::Exited { code: 137, signal: Some(9), oom_killed: false });
    sandbox.stop().await.unwrap();
}

async fn isolation(world: &World) {
    let config = world.sandbox("isolation");
    let sandbox = Sandbox::create(&config).await.unwrap();
    let own = config.dir.parent().unwrap().parent().unwrap().display().to_string();
    let script = format!(
        "echo $$; hostname; ls -A {own} /root /home 2>/dev/null | grep -v : ; cat /etc/shadow; ls /sys/class/net; touch /made && echo wrote; [ -x /usr/local/bin/mainstay ] && echo has-program"
    );
    let (_, lines) = run(&sandbox, &container(&config, "look", &script)).await;
    let shown: Vec<&str> = lines.iter().map(String::as_str).filter(|line| !line.is_empty()).collect();
    assert_eq!(shown, ["1", "a-pod", "lo", "wrote", "has-program"]);
    assert!(!Path::new("/made").exists(), "the machine must not be written");
    let mut read_only = container(&config, "read-only", "touch /made || echo refused");
    read_only.read_only_root = true;
    assert!(run(&sandbox, &read_only).await.1.contains(&"refused".to_owned()));
    let volume = config.dir.join("volume");
    fs::create_dir_all(&volume).unwrap();
    fs::write(volume.join("file"), "text").unwrap();
    let mut mounted = container(&config, "mounted", "cat /v/file; touch /v/new; touch /r/new || echo refused; id -u");
    mounted.mounts = [("/v", false), ("/r", true)]
        .map(|(destination, read_only)| Mount {
            source: volume.clone(),
            destination: PathBuf::from(destination),
            read_only,
            kind: MountKind::Bind,
        })
        .to_vec();
    mounted.user = 1000;
    fs::set_permissions(&volume, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let (_, lines) = run(&sandbox, &mounted).await;
    assert!(lines.iter().any(|line| line == "text1000" || line == "1000"), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("refused")), "{lines:?}");
    assert!(volume.join("new").exists());
    sandbox.stop().await.unwrap();
}

async fn limits(world: &World) {
    let config = world.sandbox("limits");
    let sandbox = Sandbox::create(&config).await.unwrap();
    let mut greedy = container(&config, "greedy", "head -c 200m /dev/zero | tail | wc -c; exec tail /dev/zero");
    greedy.memory_limit_bytes = Some(32 * 1024 * 1024);
    sandbox.start_container(&greedy).await.unwrap();
    let status = end_of(&sandbox, "greedy").await;
    assert!(matches!(status.state, ContainerState::Exited { code: 137, oom_killed: true, .. }), "{status:?}");
    sandbox.stop().await.unwrap();
}

async fn commands(world: &World) {
    let config = world.sandbox("commands");
    let sandbox = Sandbox::create(&config).await.unwrap();
    sandbox.start_container(&container(&config, "c", "sleep 100")).await.unwrap();
    let command = |script: &str, tty: bool| ExecConfig {
        dir: config.dir.clone(),
        exe: config.exe.clone(),
        container_id: "c".to_owned(),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec![],
        tty,
        stdin: true,
    };
    let begun = Instant::now();
    let (mut exec, streams) = Exec::spawn(&command("read x; echo $COLOUR-$x; hostname; exit 4", false)).unwrap();
    let Streams::Pipes { stdin, mut stdout, .. } = streams else { panic!("pipes expected") };
    stdin.unwrap().write_all(b"hello\n").await.unwrap();
    let mut text = String::new();
    stdout.read_to_string(&mut text).await.unwrap();
    assert_eq!((text.as_str(), exec.wait().await.unwrap()), ("blue-hello\na-pod\n", 4));
    println!("command ran in {:.1} ms", begun.elapsed().as_micros() as f64 / 1000.0);
    let (mut exec, streams) = Exec::spawn(&command("tty -s && echo terminal; stty size", true)).unwrap();
    let Streams::Terminal(mut pty) = streams else { panic!("a terminal expected") };
    pty.resize(120, 40).unwrap();
    let mut text = String::new();
    pty.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("terminal") && exec.wait().await.unwrap() == 0, "{text}");
    // Whoever drops the helper has killed the command.
    let before = world.node().pod("commands").processes().len();
    let (exec, _streams) = Exec::spawn(&command("sleep 99", false)).unwrap();
    wait_until("the command runs", || world.node().pod("commands").processes().len() > before + 1).await;
    drop(exec);
    wait_until("the command is gone", || world.node().pod("commands").processes().len() == before).await;
    sandbox.stop().await.unwrap();
}

async fn adoption(world: &World) {
    let config = world.sandbox("adoption");
    let sandbox = Sandbox::create(&config).await.unwrap();
    let started = sandbox.start_container(&container(&config, "stays", "sleep 100")).await.unwrap();
    sandbox.start_container(&container(&config, "ends", "exit 7")).await.unwrap();
    drop(sandbox);
    wait_until("the end is recorded", || {
        recorded(&config.dir)
            .iter()
            .any(|s| s.id == "ends" && matches!(s.state, ContainerState::Exited { code: 7, .. }))
    })
    .await;
    let sandbox = Sandbox::adopt(&config.dir).await.unwrap().unwrap();
    let statuses = sandbox.statuses().await.unwrap();
    assert_eq!(statuses.iter().find(|status| status.id == "stays"), Some(&started));
    // A shim that dies is noticed, and what it leaves can be cleaned.
    let mut events = sandbox.events().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(sandbox.pid() as i32), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    while events.recv().await.unwrap() != SandboxEvent::Lost {}
    assert!(Sandbox::adopt(&config.dir).await.unwrap().is_none());
    clean_up(&config).unwrap();
    assert!(world.node().pod("adoption").processes().is_empty());
}

async fn freezing(world: &World) {
    let config = world.sandbox("freezing");
    let sandbox = Sandbox::create(&config).await.unwrap();
    let tick = container(&config, "tick", "while true; do echo tick; sleep 0.01; done");
    sandbox.start_container(&tick).await.unwrap();
    wait_until("it ticks", || fs::read(&tick.log_path).is_ok_and(|text| !text.is_empty())).await;
    let pod = world.node().pod("freezing");
    pod.freeze(true).unwrap();
    pod.freeze(false).unwrap();
    pod.kill_containers().unwrap();
    assert_eq!(code(&end_of(&sandbox, "tick").await), 137);
    sandbox.stop().await.unwrap();
}

async fn no_leaks(world: &World) {
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for round in 0..10 {
        let config = world.sandbox(&format!("round{round}"));
        let sandbox = Sandbox::create(&config).await.unwrap();
        sandbox.start_container(&container(&config, "c", "sleep 100")).await.unwrap();
        sandbox.stop().await.unwrap();
        assert!(!config.dir.join("containers").exists() && !config.dir.join("shim.sock").exists());
    }
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    assert!(world.node().processes().is_empty());
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
