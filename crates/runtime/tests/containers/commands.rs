//! Commands in running containers.

use std::time::Instant;

use mainstay_runtime::exec::{Exec, ExecConfig, Streams};
use mainstay_runtime::protocol::SandboxConfig;
use mainstay_runtime::sandbox::Sandbox;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::{World, container, end_of, wait_until};

fn command(config: &SandboxConfig, id: &str, words: &[&str]) -> ExecConfig {
    ExecConfig {
        dir: config.dir.clone(),
        exe: config.exe.clone(),
        container_id: id.to_owned(),
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        env: vec![("SHAPE".to_owned(), "round".to_owned())],
        tty: false,
        stdin: false,
    }
}

/// Runs a command to its end: exit code, output, complaints.
async fn done(config: &ExecConfig) -> (i32, String, String) {
    let (mut exec, streams) = Exec::spawn(config).unwrap();
    let Streams::Pipes { mut stdout, mut stderr, .. } = streams else { panic!("pipes expected") };
    let (mut out, mut err) = (String::new(), String::new());
    stdout.read_to_string(&mut out).await.unwrap();
    stderr.read_to_string(&mut err).await.unwrap();
    (exec.wait().await.unwrap(), out, err)
}

pub(crate) async fn codes_streams_and_terminals(world: &World) {
    let config = world.sandbox("commands");
    let sandbox = Sandbox::create(&config).await.unwrap();
    sandbox.start_container(&container(&config, "c", "exec sleep 100")).await.unwrap();
    let mut best_ms = f64::MAX;
    for _ in 0..5 {
        let begun = Instant::now();
        assert_eq!(done(&command(&config, "c", &["true"])).await.0, 0);
        best_ms = best_ms.min(begun.elapsed().as_micros() as f64 / 1000.0);
    }
    println!("best command from start to end {best_ms:.1} ms");

    let script = "read x; echo $COLOUR-$SHAPE-$x; hostname; readlink /proc/self/ns/net; echo bad >&2; exit 4";
    let mut asked = command(&config, "c", &["sh", "-c", script]);
    asked.stdin = true;
    let (mut exec, streams) = Exec::spawn(&asked).unwrap();
    let Streams::Pipes { stdin, mut stdout, mut stderr } = streams else { panic!("pipes expected") };
    stdin.unwrap().write_all(b"hello\n").await.unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    stdout.read_to_string(&mut out).await.unwrap();
    stderr.read_to_string(&mut err).await.unwrap();
    let network = std::fs::read_link(format!("/proc/{}/ns/net", sandbox.pid())).unwrap();
    assert_eq!(out, format!("blue-round-hello\na-pod\n{}\n", network.display()));
    assert_eq!((err.as_str(), exec.wait().await.unwrap()), ("bad\n", 4));

    let mut terminal = command(&config, "c", &["sh", "-c", "tty -s && echo terminal; read x; stty size; echo $TERM"]);
    terminal.tty = true;
    let (mut exec, streams) = Exec::spawn(&terminal).unwrap();
    let Streams::Terminal(mut pty) = streams else { panic!("a terminal expected") };
    pty.resize(120, 40).unwrap();
    pty.write_all(b"\n").await.unwrap();
    let mut text = String::new();
    pty.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("terminal") && text.contains("40 120") && text.contains("xterm"), "{text}");
    assert_eq!(exec.wait().await.unwrap(), 0);

    let (code, _, err) = done(&command(&config, "c", &["no-such"])).await;
    assert_eq!((code, err.as_str()), (127, "exec failed: exec: \"no-such\": executable file not found in $PATH\n"));
    let (code, _, err) = done(&command(&config, "nobody", &["true"])).await;
    assert_eq!((code, err.as_str()), (126, "exec failed: container not found\n"));
    assert_eq!(done(&command(&config, "c", &["sh", "-c", "kill -9 $$"])).await.0, 137);

    let mut plain = container(&config, "plain", "exec sleep 100");
    (plain.user, plain.group, plain.supplementary_groups) = (1000, 1001, vec![1002]);
    plain.working_dir = String::from("/usr");
    sandbox.start_container(&plain).await.unwrap();
    let (_, out, _) =
        done(&command(&config, "plain", &["sh", "-c", "id -u; id -G; pwd; grep CapEff /proc/self/status"])).await;
    assert_eq!(out, "1000\n1001 1002\n/usr\nCapEff:\t0000000000000000\n");
    sandbox.signal("plain", 9).await.unwrap();
    end_of(&sandbox, "plain").await;
    let (code, _, err) = done(&command(&config, "plain", &["true"])).await;
    assert_eq!((code, err.as_str()), (126, "exec failed: container not running\n"));
    sandbox.stop().await.unwrap();
}

/// Whoever drops the helper has killed the command with all that it started, and nothing else.
pub(crate) async fn all_of_it_is_killed(world: &World) {
    let config = world.sandbox("dropped");
    let sandbox = Sandbox::create(&config).await.unwrap();
    sandbox.start_container(&container(&config, "c", "exec sleep 100")).await.unwrap();
    let processes = || world.pod("dropped").processes().len();
    let before = processes();
    let script = "sleep 99 & (sleep 98 & sleep 97) & setsid sleep 96; wait";
    let (exec, streams) = Exec::spawn(&command(&config, "c", &["sh", "-c", script])).unwrap();
    wait_until("the commands run", || processes() >= before + 6).await;
    drop((exec, streams));
    wait_until("the commands are gone", || processes() == before).await;
    let commands =
        || world.groups().iter().any(|group| group.file_name().unwrap().to_string_lossy().starts_with("exec"));
    wait_until("their group is gone", || !commands()).await;
    // The same for one that is dropped at once, wherever it is.
    for _ in 0..5 {
        drop(Exec::spawn(&command(&config, "c", &["sh", "-c", script])).unwrap());
    }
    wait_until("these are gone too", || processes() == before).await;
    wait_until("their groups are gone", || !commands()).await;
    assert_eq!(sandbox.statuses().await.unwrap().len(), 1);
    sandbox.stop().await.unwrap();
}

/// What a command that ended by itself left running goes on as part of the container, and ends with it.
pub(crate) async fn what_it_leaves_stays(world: &World) {
    let config = world.sandbox("left");
    let sandbox = Sandbox::create(&config).await.unwrap();
    sandbox.start_container(&container(&config, "c", "exec sleep 100")).await.unwrap();
    let processes = || world.pod("left").processes().len();
    let before = processes();
    let script = "(sleep 95 & setsid sleep 94) >/dev/null 2>&1 & echo begun";
    let (code, out, _) = done(&command(&config, "c", &["sh", "-c", script])).await;
    assert_eq!((code, out.as_str()), (0, "begun\n"));
    wait_until("two go on", || processes() >= before + 2).await;
    let commands =
        || world.groups().iter().any(|group| group.file_name().unwrap().to_string_lossy().starts_with("exec"));
    wait_until("the command's own group is gone", || !commands()).await;
    let (_, seen, _) = done(&command(&config, "c", &["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"])).await;
    assert!(seen.contains("sleep 95") && seen.contains("sleep 94"), "{seen}");
    sandbox.signal("c", 9).await.unwrap();
    end_of(&sandbox, "c").await;
    wait_until("they end with the container", || processes() < before).await;
    sandbox.stop().await.unwrap();
}
