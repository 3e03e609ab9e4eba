//! What a container sees of the machine, and what it may do.

use std::fs;
use std::path::{Path, PathBuf};

use mainstay_runtime::protocol::{ContainerState, Mount, MountKind};
use mainstay_runtime::sandbox::Sandbox;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::world::{World, container, end_of, number_in, run};

pub(crate) fn volume(source: &Path, destination: &str, read_only: bool, kind: MountKind) -> Mount {
    Mount { source: source.to_owned(), destination: PathBuf::from(destination), read_only, kind, propagation: None }
}

pub(crate) async fn what_is_seen(world: &World) {
    let mut config = world.sandbox("seen");
    // A link to what is to be hidden hides it too.
    let secret = Path::new("/var/lib").join(format!("mainstay-test-{}", world.instance));
    let link = world.directory.path().join("link");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("key"), "secret").unwrap();
    std::os::unix::fs::symlink(&secret, &link).unwrap();
    config.hidden.push(link);
    let sandbox = Sandbox::create(&config).await.unwrap();
    let script = format!(
        "echo $$; hostname; ls -A {own} {secret} /root /home /mnt /media /etc/ssh 2>/dev/null | grep -v :; \
         ls -A {secret}; cat /etc/shadow; ls -A /tmp /run /var/tmp | grep -v : ; ls /sys/class/net; \
         stat -c '%a %U' /tmp /run /root; touch /made && echo wrote; [ -x /usr/local/bin/mainstay ] && echo has-program; \
         ls /proc | grep -c '^[0-9]'; umask; ulimit -n",
        own = world.directory.path().display(),
        secret = secret.display()
    );
    let (_, lines) = run(&sandbox, &container(&config, "look", &script)).await;
    fs::remove_dir_all(&secret).unwrap();
    let mut shown: Vec<&str> = lines.iter().map(String::as_str).filter(|line| !line.is_empty()).collect();
    let files: u64 = shown.pop().unwrap().parse().unwrap();
    assert!(files >= 1024, "{files}");
    // The shell, `ls` and `grep`.
    assert_eq!(shown, ["1", "a-pod", "lo", "1777 root", "755 root", "700 root", "wrote", "has-program", "3", "0022"]);
    assert!(!Path::new("/made").exists(), "the machine must not be written");

    if Path::new("/sys/fs/cgroup/memory").exists() {
        let mut limited =
            container(&config, "limited", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes; cat /proc/self/cgroup");
        limited.memory_limit_bytes = Some(64 << 20);
        let (_, lines) = run(&sandbox, &limited).await;
        assert_eq!(lines[0], (64 << 20).to_string());
        assert!(lines[1..].iter().all(|line| line.ends_with(":/")), "own cgroup namespace: {lines:?}");
    }
    sandbox.stop().await.unwrap();

    // The node's network and host name instead of its own.
    let mut config = world.sandbox("host");
    config.host_network = true;
    let sandbox = Sandbox::create(&config).await.unwrap();
    let (_, lines) = run(&sandbox, &container(&config, "c", "hostname; readlink /proc/self/ns/net")).await;
    assert_eq!(lines[0], config.node);
    assert_eq!(lines[1], fs::read_link("/proc/self/ns/net").unwrap().to_str().unwrap());
    sandbox.stop().await.unwrap();
}

pub(crate) async fn what_may_be_done(world: &World) {
    let config = world.sandbox("done");
    let sandbox = Sandbox::create(&config).await.unwrap();
    let mut read_only = container(&config, "read-only", "touch /made || echo refused; touch /t/made && echo wrote");
    read_only.read_only_root = true;
    read_only.mounts = vec![volume(Path::new("65536"), "/t", false, MountKind::Tmpfs)];
    let (_, lines) = run(&sandbox, &read_only).await;
    assert!(lines.contains(&"refused".to_owned()) && lines.contains(&"wrote".to_owned()), "{lines:?}");

    let shared = config.dir.join("volume");
    fs::create_dir_all(&shared).unwrap();
    fs::write(shared.join("file"), "text\n").unwrap();
    fs::set_permissions(&shared, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let script = "cat /v/file /etc/hosts; touch /v/new; touch /r/new 2>/dev/null || echo refused; id -u; id -G; pwd; \
                  grep -e CapEff -e CapBnd -e NoNewPrivs /proc/self/status; cat /proc/self/oom_score_adj";
    let mut mounted = container(&config, "mounted", script);
    mounted.mounts = vec![
        volume(&shared, "/v", false, MountKind::Bind),
        volume(&shared, "/r", true, MountKind::Bind),
        volume(&shared.join("file"), "/etc/hosts", true, MountKind::Bind),
    ];
    (mounted.user, mounted.group, mounted.supplementary_groups) = (1000, 1001, vec![1002]);
    mounted.working_dir = String::from("/usr");
    mounted.capabilities_drop = vec!["ALL".to_owned()];
    mounted.capabilities_add = vec!["NET_BIND_SERVICE".to_owned()];
    mounted.no_new_privileges = true;
    mounted.oom_score_adj = 500;
    let (_, lines) = run(&sandbox, &mounted).await;
    let expected =
        "text|text|refused|1000|1001 1002|/usr|CapEff:\t0000000000000000|CapBnd:\t0000000000000400|NoNewPrivs:\t1|500";
    assert_eq!(lines.join("|"), expected);
    assert!(shared.join("new").exists());
    // The containers' readiness to be killed is not the shim's.
    let adj: i64 =
        fs::read_to_string(format!("/proc/{}/oom_score_adj", sandbox.pid())).unwrap().trim().parse().unwrap();
    let own: i64 = fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    assert!(adj <= own, "{adj} instead of {own} or less");

    let mut elsewhere = container(&config, "elsewhere", "pwd");
    elsewhere.working_dir = String::from("/not/there/yet");
    assert_eq!(run(&sandbox, &elsewhere).await.1, ["/not/there/yet"]);

    let script = "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk >/dev/null 2>&1 && echo read-the-disk; mount -t tmpfs x /mnt 2>/dev/null && echo mounted; echo 1 > /proc/sys/vm/swappiness && echo tuned; head -c 1 /dev/zero | wc -c";
    let (_, lines) = run(&sandbox, &container(&config, "tries", script)).await;
    assert_eq!(lines.last().map(String::as_str), Some("1"), "{lines:?}");
    assert!(!lines.iter().any(|line| ["read-the-disk", "mounted", "tuned"].contains(&line.as_str())), "{lines:?}");
    let mut privileged = container(&config, "privileged", "mount -t tmpfs x /mnt && echo mounted");
    privileged.privileged = true;
    assert_eq!(run(&sandbox, &privileged).await.1, ["mounted"]);
    sandbox.stop().await.unwrap();
}

pub(crate) async fn memory_runs_out(world: &World) {
    let config = world.sandbox("memory");
    let sandbox = Sandbox::create(&config).await.unwrap();
    // Once the first process is killed, once a child of a shell that answers for it.
    for (id, script) in [("self", "exec tail /dev/zero"), ("child", "tail /dev/zero; exit $?")] {
        let mut greedy = container(&config, id, script);
        greedy.memory_limit_bytes = Some(16 << 20);
        sandbox.start_container(&greedy).await.unwrap();
        let status = end_of(&sandbox, id).await;
        assert!(matches!(status.state, ContainerState::Exited { code: 137, oom_killed: true, .. }), "{status:?}");
    }
    let mut busy =
        container(&config, "busy", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; exec sleep 100");
    busy.memory_limit_bytes = Some(64 << 20);
    sandbox.start_container(&busy).await.unwrap();
    crate::world::wait_until("it has worked", || !crate::world::log(&busy).is_empty()).await;
    let usage = world.pod("memory").container_usage("busy");
    assert!(usage.cpu_usage_ns > 100_000 && (1..64 << 20).contains(&usage.memory_bytes), "{usage:?}");
    let (pod, node) = (world.pod("memory").usage(), world.node().usage());
    assert!(pod.cpu_usage_ns >= usage.cpu_usage_ns && node.cpu_usage_ns >= pod.cpu_usage_ns, "{pod:?} {node:?}");
    sandbox.stop().await.unwrap();
}

/// Where the data directory lies on a file system that cannot hold the upper layer, here an overlay itself.
pub(crate) async fn without_an_upper_layer(world: &World) {
    let places = ["lower", "upper", "work", "merged"].map(|name| world.directory.path().join(name));
    for place in &places {
        fs::create_dir(place).unwrap();
    }
    let [lower, upper, work, merged] = places.map(|place| place.display().to_string());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    mount(Some("overlay"), merged.as_str(), Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
    let mut config = world.sandbox("memory-upper");
    config.dir = Path::new(&merged).join("pod");
    let sandbox = Sandbox::create(&config).await.unwrap();
    let script = "ls -A /root; cat /etc/shadow; echo text > /made; cat /made; stat -f -c %T /";
    assert_eq!(run(&sandbox, &container(&config, "c", script)).await.1, ["text", "overlayfs"]);
    let mounts = fs::read_to_string(format!("/proc/{}/mounts", sandbox.pid())).unwrap();
    assert!(mounts.contains("/containers/c/memory tmpfs"), "{mounts}");
    assert!(number_in("/proc/self/status", "Threads:") < 10);
    sandbox.stop().await.unwrap();
    umount2(merged.as_str(), MntFlags::empty()).unwrap();
}
