//! How containers end, what their logs hold, and what cannot start.

use std::fs;
use std::time::Instant;

use jiff::Timestamp;
use mainstay_runtime::protocol::{ContainerState, MountKind};
use mainstay_runtime::sandbox::{Sandbox, SandboxError};

use crate::world::{World, code, container, end_of, log, number_in, run};

pub(crate) async fn codes_signals_and_logs(world: &World) {
    let config = world.sandbox("ends");
    let begun = Instant::now();
    let sandbox = Sandbox::create(&config).await.unwrap();
    let shim_ms = begun.elapsed().as_micros() as f64 / 1000.0;
    let mut start_ms = f64::MAX;
    for round in 0..5 {
        let begun = Instant::now();
        sandbox.start_container(&container(&config, &format!("warm{round}"), "exec sleep 100")).await.unwrap();
        start_ms = start_ms.min(begun.elapsed().as_micros() as f64 / 1000.0);
    }
    let resident = number_in(&format!("/proc/{}/status", sandbox.pid()), "VmRSS:");
    println!("shim up in {shim_ms:.1} ms, {resident} kB; best container start {start_ms:.1} ms");

    let first = container(&config, "first", "echo out; echo err >&2; echo $COLOUR; printf end; exit 3");
    sandbox.start_container(&first).await.unwrap();
    let status = end_of(&sandbox, "first").await;
    assert_eq!(code(&status), 3);
    assert!(status.started_at <= status.finished_at.unwrap());
    let text = fs::read_to_string(&first.log_path).unwrap();
    let mut lines: Vec<&str> = text.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["stderr F err", "stdout F blue", "stdout F end", "stdout F out"]);
    for line in text.lines() {
        let time = line.split_once(' ').unwrap().0;
        assert!(time.len() == "2026-01-02T03:04:05.123456789Z".len() && time.parse::<Timestamp>().is_ok(), "{time}");
    }

    let long = container(&config, "long", "head -c 20000 /dev/zero | tr '\\0' x; echo; echo short");
    sandbox.start_container(&long).await.unwrap();
    end_of(&sandbox, "long").await;
    let text = fs::read_to_string(&long.log_path).unwrap();
    let tags: String = text.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
    assert!(tags.starts_with('P') && tags.ends_with("FF"), "{tags}");
    assert_eq!(log(&long).concat().len(), 20_000 + "short".len());

    // More than pipes and buffers hold, and another container is heard meanwhile.
    let loud = container(&config, "loud", "exec yes");
    sandbox.start_container(&loud).await.unwrap();
    assert_eq!(run(&sandbox, &container(&config, "quiet", "echo here")).await.1, ["here"]);
    sandbox.signal("loud", 9).await.unwrap();
    let status = end_of(&sandbox, "loud").await;
    assert_eq!(status.state, ContainerState::Exited { code: 137, signal: Some(9), oom_killed: false });
    sandbox.remove_container("loud").await.unwrap();
    fs::remove_file(&loud.log_path).unwrap();

    let polite = container(&config, "polite", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done");
    sandbox.start_container(&polite).await.unwrap();
    crate::world::wait_until("it is ready", || !log(&polite).is_empty()).await;
    sandbox.signal("polite", 15).await.unwrap();
    assert_eq!(code(&end_of(&sandbox, "polite").await), 5);
    assert!(sandbox.signal("nobody", 15).await.is_err());
    sandbox.stop().await.unwrap();
}

pub(crate) async fn what_does_not_start(world: &World) {
    let config = world.sandbox("refused");
    let sandbox = Sandbox::create(&config).await.unwrap();
    sandbox.start_container(&container(&config, "good", "exec sleep 100")).await.unwrap();
    let before = world.groups().len();
    let volume = config.dir.join("volume");
    fs::create_dir_all(&volume).unwrap();
    for (name, text, mode) in [("garbage", "\x01\x02", 0o755), ("no-line", "echo hello\n", 0o755), ("plain", "", 0o644)]
    {
        fs::write(volume.join(name), text).unwrap();
        fs::set_permissions(volume.join(name), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    for (program, expected) in [
        ("no-such-program", "exec: \"no-such-program\": executable file not found in $PATH"),
        ("/no/such", "exec: \"/no/such\": stat /no/such: no such file or directory"),
        ("/volume/plain", "exec: \"/volume/plain\": permission denied"),
        ("/volume/garbage", "exec: \"/volume/garbage\": exec format error"),
        ("/volume/no-line", "exec: \"/volume/no-line\": exec format error"),
    ] {
        let mut bad = container(&config, "bad", "");
        bad.command = vec![program.to_owned()];
        bad.mounts = vec![crate::isolation::volume(&volume, "/volume", false, MountKind::Bind)];
        match sandbox.start_container(&bad).await {
            Err(SandboxError::Refused(text)) => assert_eq!(text, expected),
            other => panic!("{program}: {other:?}"),
        }
        assert!(!config.dir.join("containers/bad").exists() && !config.dir.join("state/bad").exists());
    }
    let mut lost = container(&config, "bad", "true");
    lost.mounts = vec![crate::isolation::volume(&config.dir.join("none"), "/volume", false, MountKind::Bind)];
    let error = sandbox.start_container(&lost).await.unwrap_err().to_string();
    assert!(error.ends_with("at /volume: No such file or directory (os error 2)"), "{error}");
    let twice = sandbox.start_container(&container(&config, "good", "true")).await.unwrap_err();
    assert!(twice.to_string().contains("exists already"));
    let mut large = container(&config, "large", "true");
    large.env.push(("LARGE".to_owned(), "x".repeat(2 << 20)));
    assert!(matches!(sandbox.start_container(&large).await, Err(SandboxError::Refused(_))));
    assert_eq!(world.groups().len(), before, "{:?}", world.groups());
    assert_eq!(sandbox.statuses().await.unwrap().len(), 1);
    sandbox.stop().await.unwrap();

    // A sandbox that cannot be leaves nothing behind either.
    let mut wrong = world.sandbox("wrong");
    wrong.sysctls = vec![("vm.swappiness".to_owned(), "1".to_owned())];
    let error = Sandbox::create(&wrong).await.err().unwrap().to_string();
    assert!(error.contains("sysctl \"vm.swappiness\""), "{error}");
    assert!(!world.groups().iter().any(|group| group.ends_with("podwrong")));
}
