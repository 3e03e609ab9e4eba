//! Standard streams of containers, and whose processes they see.

use std::time::Duration;

use mainstay_runtime::protocol::{ContainerConfig, SandboxConfig};
use mainstay_runtime::sandbox::{AttachReader, Sandbox, attach};

use crate::world::{World, code, container, end_of, log, run, wait_until};

/// Reads until the text is there; answers all that came.
async fn read_until(reader: &mut AttachReader, text: &str) -> String {
    let mut all = String::new();
    while !all.contains(text) {
        let next = tokio::time::timeout(Duration::from_secs(10), reader.next()).await;
        let Ok(Some((_, bytes))) = next else { panic!("{text:?} does not come, only {all:?}") };
        all.push_str(&String::from_utf8_lossy(&bytes));
    }
    all
}

pub(crate) async fn attached_by_pipes(world: &World) {
    let config = world.sandbox("pipes");
    let sandbox = Sandbox::create(&config).await.unwrap();
    let echo = ContainerConfig { stdin: true, stdin_once: true, ..container(&config, "once", "cat; echo over >&2") };
    sandbox.start_container(&echo).await.unwrap();
    let (mut reader, mut writer) = attach(&config.dir, "once", true).await.unwrap();
    let (mut other, _silent) = attach(&config.dir, "once", false).await.unwrap();
    // More than a pipe holds: it goes around as the container reads it.
    let large = vec![b'x'; 300_000];
    let feed = tokio::spawn(async move {
        assert!(writer.write(&large).await && writer.write(b"end").await);
        writer.end().await;
        writer
    });
    let seen = read_until(&mut reader, "end").await;
    assert_eq!(seen.len(), 300_003);
    assert_eq!(read_until(&mut other, "end").await.len(), 300_003);
    let _writer = feed.await.unwrap();
    assert_eq!(reader.next().await, Some((true, b"over\n".to_vec())));
    assert_eq!(reader.next().await, None, "the end of the container is the end of the streams");
    assert_eq!(code(&end_of(&sandbox, "once").await), 0);
    // Without `stdinOnce` who leaves, leaves the container reading; the agent itself may have died.
    let stays = ContainerConfig { stdin: true, ..container(&config, "stays", "while read a; do echo got $a; done") };
    sandbox.start_container(&stays).await.unwrap();
    for word in ["one", "two"] {
        let (mut reader, mut writer) = attach(&config.dir, "stays", true).await.unwrap();
        assert!(writer.write(format!("{word}\n").as_bytes()).await);
        read_until(&mut reader, &format!("got {word}\n")).await;
    }
    // The streams do not wait for the log.
    wait_until("both lines in the log", || log(&stays) == ["got one", "got two"]).await;
    assert!(attach(&config.dir, "nobody", false).await.is_err());
    sandbox.stop().await.unwrap();
}

pub(crate) async fn attached_to_a_terminal(world: &World) {
    let config = world.sandbox("terminal");
    let sandbox = Sandbox::create(&config).await.unwrap();
    let shell = ContainerConfig { stdin: true, stdin_once: true, tty: true, ..container(&config, "sh", "exec sh") };
    sandbox.start_container(&shell).await.unwrap();
    for columns in [100, 90] {
        let (mut reader, mut writer) = attach(&config.dir, "sh", true).await.unwrap();
        writer.resize(columns, 30).await;
        writer.write(b"stty size; tty\n").await;
        let seen = read_until(&mut reader, "/dev/pts/0\r\n").await;
        assert!(seen.contains(&format!("30 {columns}\r\n")), "{seen}");
    }
    let (mut reader, mut writer) = attach(&config.dir, "sh", true).await.unwrap();
    writer.write(b"exit 4\n").await;
    while reader.next().await.is_some() {}
    assert_eq!(code(&end_of(&sandbox, "sh").await), 4);
    sandbox.stop().await.unwrap();
}

pub(crate) async fn process_namespaces(world: &World) {
    let shared = SandboxConfig { share_pid: true, ..world.sandbox("shared") };
    let sandbox = Sandbox::create(&shared).await.unwrap();
    sandbox.start_container(&container(&shared, "a", "sleep 1000 & exec sleep 2000")).await.unwrap();
    let (_, lines) =
        run(&sandbox, &container(&shared, "b", "cat /proc/1/comm; cat /proc/[0-9]*/cmdline | tr '\\0' ' '")).await;
    assert_eq!(lines[0], "pause");
    assert!(lines[1].contains("sleep 2000") && lines[1].contains("sleep 1000"), "{lines:?}");
    // What a container started ends with it.
    let groups = world.pod("shared");
    let count = groups.processes().len();
    sandbox.signal("a", 9).await.unwrap();
    wait_until("both sleeps are gone", || groups.processes().len() <= count - 2).await;
    sandbox.stop().await.unwrap();

    let own = world.sandbox("target");
    let sandbox = Sandbox::create(&own).await.unwrap();
    sandbox.start_container(&container(&own, "app", "exec sleep 3000")).await.unwrap();
    let debug = ContainerConfig { pid_of: Some("app".to_owned()), ..container(&own, "debug", "cat /proc/1/cmdline") };
    let (_, lines) = run(&sandbox, &debug).await;
    assert_eq!(lines, ["sleep\x003000\x00"]);
    let lost = ContainerConfig { pid_of: Some("none".to_owned()), ..container(&own, "lost", "true") };
    assert!(sandbox.start_container(&lost).await.is_err());
    sandbox.stop().await.unwrap();

    let machine = SandboxConfig { host_pid: true, host_ipc: true, ..world.sandbox("machine") };
    let sandbox = Sandbox::create(&machine).await.unwrap();
    let (_, lines) =
        run(&sandbox, &container(&machine, "all", "test -d /proc/$PPID && readlink /proc/self/ns/ipc")).await;
    assert_eq!(lines, [std::fs::read_link("/proc/self/ns/ipc").unwrap().to_str().unwrap()]);
    sandbox.stop().await.unwrap();
}
