//! The shim's life: without an agent, killed, frozen, for long; and what is left at the end.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use mainstay_runtime::protocol::{ContainerState, SandboxConfig};
use mainstay_runtime::sandbox::{Sandbox, SandboxEvent, clean_up, recorded};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::world::{World, code, container, end_of, log, number_in, wait_until};

pub(crate) async fn nobody_connected(world: &World) {
    let config = world.sandbox("adoption");
    assert!(Sandbox::adopt(&config.dir).await.unwrap().is_none());
    let sandbox = Sandbox::create(&config).await.unwrap();
    let mut events = sandbox.events().unwrap();
    let started = sandbox.start_container(&container(&config, "stays", "exec sleep 100")).await.unwrap();
    sandbox.start_container(&container(&config, "seen", "exit 6")).await.unwrap();
    match events.recv().await.unwrap() {
        SandboxEvent::Changed(status) => assert_eq!((status.id.as_str(), code(&status)), ("seen", 6)),
        SandboxEvent::Lost => panic!("the shim is gone"),
    }
    let go = config.dir.join("go");
    fs::create_dir_all(&go).unwrap();
    let mut waits = container(&config, "ends", "until [ -e /go/now ]; do sleep 0.01; done; exit 7");
    waits.mounts = vec![crate::isolation::volume(&go, "/go", true, mainstay_runtime::protocol::MountKind::Bind)];
    sandbox.start_container(&waits).await.unwrap();
    drop((sandbox, events));
    fs::write(go.join("now"), "").unwrap();
    let ended = |code| {
        move |dir: &Path| {
            recorded(dir).iter().any(|s| matches!(s.state, ContainerState::Exited { code: c, .. } if c == code))
        }
    };
    wait_until("the end is recorded", || ended(7)(&config.dir)).await;
    let sandbox = Sandbox::adopt(&config.dir).await.unwrap().unwrap();
    let statuses = sandbox.statuses().await.unwrap();
    assert_eq!(statuses.iter().find(|status| status.id == "stays"), Some(&started));
    assert_eq!(code(statuses.iter().find(|status| status.id == "ends").unwrap()), 7);
    // Several may be connected at once.
    let other = Sandbox::adopt(&config.dir).await.unwrap().unwrap();
    assert_eq!(other.statuses().await.unwrap().len(), 3);
    let mode = |name: &str| {
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(config.dir.join(name)).unwrap().permissions())
    };
    assert_eq!((mode("shim.sock") & 0o777, mode("containers") & 0o777), (0o600, 0o700), "root only");
    sandbox.stop().await.unwrap();
    assert!(other.statuses().await.is_err());
}

/// Signals reach a program without handlers, and orphans are reaped.
pub(crate) async fn a_first_process(world: &World) {
    let config = world.sandbox("init");
    let sandbox = Sandbox::create(&config).await.unwrap();
    let script = "(sleep 0.01 & sleep 0.02 &) ; echo pid $$; sleep 0.1; \
                  echo zombies $(grep -l '^State:.Z' /proc/[0-9]*/status | wc -l); readlink /proc/1/exe; exec sleep 100";
    let mut first = container(&config, "first", script);
    first.init = true;
    sandbox.start_container(&first).await.unwrap();
    let text = || log(&first).join("\n");
    wait_until("it has said all", || text().contains("zombies")).await;
    assert!(text().contains("pid 2") && text().contains("zombies 0"), "{}", text());
    assert!(!text().contains("/containers"), "nobody inside sees the program's file: {}", text());
    sandbox.signal("first", 15).await.unwrap();
    assert_eq!(code(&end_of(&sandbox, "first").await), 128 + 15);
    let mut exits = container(&config, "exits", "exit 5");
    exits.init = true;
    sandbox.start_container(&exits).await.unwrap();
    assert_eq!(code(&end_of(&sandbox, "exits").await), 5);
    let mut missing = container(&config, "missing", "");
    (missing.init, missing.command) = (true, vec!["/no/such".to_owned()]);
    assert!(sandbox.start_container(&missing).await.unwrap_err().to_string().contains("no such file"));
    sandbox.stop().await.unwrap();
}

pub(crate) async fn a_lost_shim(world: &World) {
    let config = world.sandbox("lost");
    let sandbox = Sandbox::create(&config).await.unwrap();
    sandbox.start_container(&container(&config, "runs", "sleep 100; true")).await.unwrap();
    sandbox.start_container(&container(&config, "ended", "exit 9")).await.unwrap();
    end_of(&sandbox, "ended").await;
    let mut events = sandbox.events().unwrap();
    kill(Pid::from_raw(sandbox.pid().cast_signed()), Signal::SIGKILL).unwrap();
    while events.recv().await.unwrap() != SandboxEvent::Lost {}
    assert!(sandbox.statuses().await.is_err());
    assert!(Sandbox::adopt(&config.dir).await.unwrap().is_none());
    let mut codes: Vec<i32> = recorded(&config.dir).iter().map(code).collect();
    codes.sort_unstable();
    assert_eq!(codes, [9, 137]);
    clean_up(&config).unwrap();
    nothing_left(world, &config);
}

pub(crate) async fn frozen_and_killed(world: &World) {
    let config = world.sandbox("frozen");
    let sandbox = Sandbox::create(&config).await.unwrap();
    let tick = container(&config, "tick", "while true; do echo tick; sleep 0.005; done");
    sandbox.start_container(&tick).await.unwrap();
    wait_until("it ticks", || fs::metadata(&tick.log_path).is_ok_and(|log| log.len() > 0)).await;
    let (pod, pid) = (world.pod("frozen"), sandbox.statuses().await.unwrap()[0].pid);
    pod.freeze(true).unwrap();
    assert!(
        tokio::time::timeout(Duration::from_millis(50), sandbox.statuses()).await.is_err(),
        "the shim is frozen too"
    );
    let ran = || number_in(&format!("/proc/{pid}/status"), "voluntary_ctxt_switches:");
    let before = ran();
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(ran(), before, "a frozen process does not run");
    pod.freeze(false).unwrap();
    let lines = log(&tick).len();
    wait_until("it ticks again", || log(&tick).len() > lines).await;
    pod.kill_containers().unwrap();
    assert_eq!(code(&end_of(&sandbox, "tick").await), 137);
    sandbox.start_container(&container(&config, "more", "sleep 99 & sleep 98")).await.unwrap();
    // A frozen pod can be stopped.
    pod.freeze(true).unwrap();
    sandbox.stop().await.unwrap();
    nothing_left(world, &config);
    // All of a node at once, frozen as it is.
    let config = world.sandbox("killed");
    let sandbox = Sandbox::create(&config).await.unwrap();
    sandbox.start_container(&container(&config, "c", "sleep 99 & sleep 98")).await.unwrap();
    world.node().freeze(true).unwrap();
    world.node().kill().unwrap();
    assert!(world.node().processes().is_empty());
    clean_up(&config).unwrap();
    nothing_left(world, &config);
}

/// Many containers in one sandbox leave no descriptors, processes, groups or memory in the shim.
pub(crate) async fn one_sandbox_for_long(world: &World) {
    let config = world.sandbox("long");
    let sandbox = Sandbox::create(&config).await.unwrap();
    let open = || fs::read_dir(format!("/proc/{}/fd", sandbox.pid())).unwrap().count();
    let resident = || number_in(&format!("/proc/{}/status", sandbox.pid()), "VmRSS:");
    let mut before = (0, 0, 0, 0);
    for round in 0..20 {
        let id = format!("c{round}");
        sandbox.start_container(&container(&config, &id, "true")).await.unwrap();
        end_of(&sandbox, &id).await;
        sandbox.remove_container(&id).await.unwrap();
        assert!(!config.dir.join("containers").join(&id).exists() && !config.dir.join("state").join(&id).exists());
        if round == 4 {
            before = (open(), world.pod("long").processes().len(), world.groups().len(), resident());
        }
    }
    let after = (open(), world.pod("long").processes().len(), world.groups().len(), resident());
    assert_eq!((after.0, after.1, after.2), (before.0, before.1, before.2), "descriptors, processes, groups");
    assert!(after.3 < before.3 + 512, "memory grows from {} to {} kB", before.3, after.3);
    sandbox.stop().await.unwrap();
}

pub(crate) async fn no_leaks(world: &World) {
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let begun = Instant::now();
    for round in 0..20 {
        let config = world.sandbox(&format!("round{round}"));
        let sandbox = Sandbox::create(&config).await.unwrap();
        sandbox.start_container(&container(&config, "c", "sleep 100 & sleep 100")).await.unwrap();
        sandbox.stop().await.unwrap();
        nothing_left(world, &config);
    }
    println!("pod made, container run, all gone: {:.1} ms", begun.elapsed().as_micros() as f64 / 20_000.0);
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    assert!(world.node().processes().is_empty());
    let own = format!("/proc/{0}/task/{0}/children", std::process::id());
    wait_until("all shims are reaped", || fs::read_to_string(&own).unwrap_or_default().is_empty()).await;
}

/// Only logs and volumes are left of a pod.
fn nothing_left(world: &World, config: &SandboxConfig) {
    let group = format!("pod{}", config.uid);
    assert!(!world.groups().iter().any(|path| path.ends_with(&group)), "{:?}", world.groups());
    let mut left: Vec<String> =
        fs::read_dir(&config.dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["logs", "shim.log"]);
    fs::remove_dir_all(&config.dir).unwrap();
}
