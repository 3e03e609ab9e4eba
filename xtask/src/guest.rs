//! `cargo xtask guest-test`: the end-to-end tests on another kernel, in a small Debian guest under qemu that has cgroup version 2
//! alone, as most machines have.
//!
//! # Flow
//! qemu and mmdebstrap are looked for → once, a root file system with Debian's own kernel (`target/guest/root.ext4`; kept) → the tests
//! are built → the guest boots with the repository mounted read-only, copies what the tests need, runs them and powers off → its last
//! line says how that went.
//!
//! # Guarantees
//! Nothing of the guest is written back: its disk is a snapshot. It has no network but its own, and ends by itself or after
//! [`GuestArgs::minutes`]. With a `/dev/kvm` that works it runs at nearly full speed; without, qemu translates, and everything takes ten times as
//! long.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use crate::install;
use crate::process::{Failure, Outcome, at, cargo, find_program, output, run as run_command};
use crate::workspace::Workspace;

/// Flags of `cargo xtask guest-test`.
#[derive(Args)]
pub(crate) struct GuestArgs {
    /// Tests to run, by parts of their names (default: pods, nodes, isolation and recovery)
    tests: Vec<String>,
    /// Make the root file system anew
    #[arg(long)]
    fresh: bool,
    /// Memory of the guest, in MiB
    #[arg(long, default_value_t = 4096)]
    memory: u32,
    /// Do not use /dev/kvm
    #[arg(long)]
    translate: bool,
    /// Minutes after which the guest is ended
    #[arg(long, default_value_t = 40)]
    minutes: u64,
    /// The test program to run instead of building it
    #[arg(long)]
    program: Option<PathBuf>,
    /// kubectl (default: the one that `cargo xtask test` installs)
    #[arg(long, env = "MAINSTAY_KUBECTL")]
    kubectl: Option<PathBuf>,
}

/// What the guest needs besides the smallest Debian.
const PACKAGES: &str =
    "linux-image-amd64,kmod,iproute2,curl,procps,nginx-light,python3-minimal,redis-server,nftables,ca-certificates";
/// The tests of whatever depends on the kernel most.
const TESTS: [&str; 4] = ["pods::", "nodes::", "isolation::", "recovery::"];
/// The guest's first process. Its words come from the kernel's command line.
const INIT: &str = r#"#!/bin/sh
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
for place in "proc /proc" "sysfs /sys" "devtmpfs /dev" "tmpfs /run" "tmpfs /tmp"; do
  set -- $place; grep -q " $2 " /proc/mounts 2>/dev/null || mount -t $1 $1 $2
done
mkdir -p /dev/pts /dev/shm /mnt/work
mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /dev/shm; mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up; hostname guest
modprobe -a 9pnet_virtio 9p overlay nf_tables nft_chain_nat veth bridge 2>/dev/null
word() { tr ' ' '\n' < /proc/cmdline | sed -n "s/^$1=//p"; }
work=$(word work) program=$(word program) kubectl=$(word kubectl)
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144 work /mnt/work
mkdir -p "$work/target/debug" "$work/crates/mainstay" /usr/local/bin
cp -r /mnt/work/examples "$work/"; cp -r /mnt/work/crates/mainstay/tests "$work/crates/mainstay/"
cp /mnt/work/target/debug/mainstay "$work/target/debug/"; cp "/mnt/work/$program" /usr/local/bin/e2e
cp "/mnt/work/$kubectl" /usr/local/bin/kubectl; chmod +x /usr/local/bin/*
cd "$work/crates/mainstay"
MAINSTAY_KUBECTL=/usr/local/bin/kubectl e2e --test-threads=1 $(word tests | tr ',' ' ')
echo "guest-test: exit $?"
sync; echo o > /proc/sysrq-trigger; sleep 10
"#;

/// Runs the tests in a guest.
pub(crate) fn run(args: &GuestArgs) -> Outcome {
    for (program, package) in
        [("qemu-system-x86_64", "qemu-system-x86"), ("mmdebstrap", "mmdebstrap"), ("mkfs.ext4", "e2fsprogs")]
    {
        if find_program(program).is_none() {
            return Err(Failure::Found(format!("{program} is missing; apt-get install {package}")));
        }
    }
    let workspace = Workspace::load()?;
    let folder = workspace.target.join("guest");
    if args.fresh || !folder.join("root.ext4").exists() {
        make_root(&folder)?;
    }
    let program = match &args.program {
        Some(program) => program.clone(),
        None => build()?,
    };
    let kubectl = args.kubectl.clone().or_else(|| install::kubectl(&workspace.target));
    let kubectl =
        kubectl.ok_or_else(|| Failure::Found("kubectl is missing; run `cargo xtask test --only install`".into()))?;
    // The guest sees the repository only.
    let copy = folder.join("kubectl");
    fs::copy(&kubectl, &copy).map_err(at(&kubectl))?;
    let inside = |path: &Path| {
        let inner = path
            .strip_prefix(&workspace.root)
            .map_err(|_| Failure::Found(format!("{} is not below {}", path.display(), workspace.root.display())))?;
        Ok(inner.display().to_string())
    };
    let tests = if args.tests.is_empty() { TESTS.map(str::to_owned).to_vec() } else { args.tests.clone() };
    let words = format!(
        "console=ttyS0 quiet root=/dev/vda rw init=/guest-init panic=-1 work={} program={} kubectl={} tests={}",
        workspace.root.display(),
        inside(&program)?,
        inside(&copy)?,
        tests.join(",")
    );
    if Path::new("/dev/kvm").exists() && !args.translate {
        match boot(args, "accel=kvm", &folder, &workspace.root, &words)? {
            Some(code) => return verdict(code),
            // On a machine that is a guest itself, kvm may be there and not work.
            None => println!("the guest did not come up with kvm; once more without"),
        }
    }
    match boot(args, "accel=tcg", &folder, &workspace.root, &words)? {
        Some(code) => verdict(code),
        None => Err(Failure::Found("the guest ended before its tests did".to_owned())),
    }
}

fn verdict(code: i32) -> Outcome {
    if code == 0 { Ok(()) } else { Err(Failure::Found(format!("the tests ended with {code} in the guest"))) }
}

/// A Debian root file system with a kernel, as a disk.
fn make_root(folder: &Path) -> Outcome {
    let root = folder.join("root");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(folder).map_err(at(folder))?;
    let include = format!("--include={PACKAGES}");
    run_command(Command::new("mmdebstrap").args(["--variant=minbase", &include, "bookworm"]).arg(&root))?;
    let init = root.join("guest-init");
    fs::write(&init, INIT).map_err(at(&init))?;
    run_command(Command::new("chmod").arg("+x").arg(&init))?;
    for kind in ["vmlinuz", "initrd.img"] {
        let entries = fs::read_dir(root.join("boot")).map_err(at(&root))?.flatten();
        let newest = entries.map(|entry| entry.path()).filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{kind}-")))
        });
        let newest = newest.max().ok_or_else(|| Failure::Found(format!("the guest's root has no {kind}")))?;
        fs::copy(&newest, folder.join(kind)).map_err(at(&newest))?;
    }
    let disk = folder.join("root.new");
    let file = fs::File::create(&disk).map_err(at(&disk))?;
    file.set_len(6 << 30).map_err(at(&disk))?;
    run_command(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&root).arg(&disk))?;
    fs::rename(&disk, folder.join("root.ext4")).map_err(at(&disk))?;
    fs::remove_dir_all(&root).map_err(at(&root))
}

/// Builds the tests; answers their program.
fn build() -> Outcome<PathBuf> {
    let args = ["test", "--workspace", "--locked", "--test", "e2e", "--no-run", "--message-format=json"];
    let text = output(cargo().args(args))?;
    let found = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
        let is_it = message["target"]["name"] == "e2e";
        message["executable"].as_str().filter(|_| is_it).map(PathBuf::from)
    });
    found.ok_or_else(|| Failure::Found("cargo built no program for the end-to-end tests".to_owned()))
}

/// Boots the guest and passes on what it says; its tests' exit code, if it came as far.
fn boot(args: &GuestArgs, machine: &str, folder: &Path, root: &Path, words: &str) -> Outcome<Option<i32>> {
    let shared = format!("local,path={},mount_tag=work,security_model=none,readonly=on", root.display());
    let disk = format!("file={},format=raw,if=virtio,snapshot=on", folder.join("root.ext4").display());
    let mut guest = Command::new("qemu-system-x86_64")
        .args(["-machine", machine, "-cpu", "max", "-smp", "2", "-m", &args.memory.to_string()])
        .args(["-nographic", "-no-reboot", "-nic", "none", "-drive", &disk, "-virtfs", &shared, "-append", words])
        .arg("-kernel")
        .arg(folder.join("vmlinuz"))
        .arg("-initrd")
        .arg(folder.join("initrd.img"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(at(Path::new("qemu-system-x86_64")))?;
    let stdout = guest.stdout.take().ok_or_else(|| Failure::Found("no output of the guest".to_owned()))?;
    let (over, id) = (Arc::new(AtomicBool::new(false)), guest.id());
    let (watched, limit) = (over.clone(), Duration::from_secs(args.minutes * 60));
    let watch = std::thread::spawn(move || {
        let begun = Instant::now();
        while !watched.load(Ordering::Relaxed) {
            if begun.elapsed() > limit {
                let _ = Command::new("kill").args(["-KILL", &id.to_string()]).status();
                return;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let mut verdict = None;
    for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        println!("{line}");
        verdict = line.strip_prefix("guest-test: exit ").and_then(|code| code.parse::<i32>().ok()).or(verdict);
    }
    let _ = guest.wait();
    over.store(true, Ordering::Relaxed);
    let _ = watch.join();
    Ok(verdict)
}
