//! The OCI runtime specification of a container.
//!
//! Defaults (capabilities, masked and read-only paths) are those of containerd.
//!
//! Source: <https://github.com/opencontainers/runtime-spec/blob/main/config.md>.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::image::PROGRAM;
use crate::protocol::{ContainerConfig, Mount, MountKind, SandboxConfig};

const DEFAULT_CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

const ALL_CAPABILITIES: &[&str] = &[
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Length of the scheduler period in which a CPU limit is enforced, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// Bytes of shared memory a container has.
const SHM: &str = "size=65536k";

/// The specification of a container whose root file system is mounted at `rootfs`.
pub(crate) fn build(sandbox: &SandboxConfig, config: &ContainerConfig, rootfs: &Path) -> Value {
    let capabilities = capabilities(config);
    let env: Vec<String> = config.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let working_dir = if config.working_dir.is_empty() { "/" } else { &config.working_dir };
    let privileged = config.privileged;
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "terminal": false,
            "user": {"uid": config.user, "gid": config.group, "additionalGids": config.supplementary_groups},
            "args": config.command, "env": env, "cwd": working_dir,
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "oomScoreAdj": config.oom_score_adj,
            "noNewPrivileges": config.no_new_privileges,
        },
        "root": {"path": rootfs, "readonly": config.read_only_root},
        "mounts": mounts(sandbox, config),
        "linux": {
            // Network, IPC and host name are the shim's, that is, the pod's.
            "namespaces": [{"type": "pid"}, {"type": "mount"}],
            "cgroupsPath": format!("/mainstay/{}/{}/pod{}/{}", sandbox.instance, sandbox.node, sandbox.uid, config.id),
            "resources": resources(config),
            "rootfsPropagation": "slave",
            "maskedPaths": if privileged { &[][..] } else { MASKED },
            "readonlyPaths": if privileged { &[][..] } else { READ_ONLY },
        },
    })
}

fn capabilities(config: &ContainerConfig) -> Vec<String> {
    let bare = |name: &String| name.to_uppercase().trim_start_matches("CAP_").to_owned();
    let all = || ALL_CAPABILITIES.iter().map(|name| (*name).to_owned());
    let mut set: BTreeSet<String> = if config.privileged {
        all().collect()
    } else {
        DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect()
    };
    let dropped: Vec<String> = config.capabilities_drop.iter().map(bare).collect();
    if dropped.iter().any(|name| name == "ALL") {
        set.clear();
    }
    for name in config.capabilities_add.iter().map(bare) {
        set.extend(if name == "ALL" { all().collect() } else { vec![name] });
    }
    set.retain(|name| !dropped.contains(name) || config.capabilities_add.iter().map(bare).any(|added| added == *name));
    set.into_iter().map(|name| format!("CAP_{name}")).collect()
}

fn mounts(sandbox: &SandboxConfig, config: &ContainerConfig) -> Vec<Value> {
    let special = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let sys: &[&str] =
        if config.privileged { &["nosuid", "noexec", "nodev"] } else { &["nosuid", "noexec", "nodev", "ro"] };
    let mut mounts = vec![
        special("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        special("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        special(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        special("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", SHM]),
        special("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        special("/sys", "sysfs", "sysfs", sys),
    ];
    let program = sandbox.exe.display().to_string();
    mounts.push(special(PROGRAM, "bind", &program, &["bind", "ro", "nosuid", "nodev"]));
    mounts.extend(config.mounts.iter().map(volume));
    mounts
}

fn volume(mount: &Mount) -> Value {
    let mode = if mount.read_only { "ro" } else { "rw" };
    let (kind, source, options) = match mount.kind {
        MountKind::Bind => ("bind", mount.source.display().to_string(), vec!["rbind".to_owned(), mode.to_owned()]),
        MountKind::Tmpfs => {
            let mut options = vec!["mode=1777".to_owned(), mode.to_owned()];
            if !mount.source.as_os_str().is_empty() {
                options.push(format!("size={}", mount.source.display()));
            }
            ("tmpfs", "tmpfs".to_owned(), options)
        }
    };
    json!({"destination": mount.destination, "type": kind, "source": source, "options": options})
}

fn resources(config: &ContainerConfig) -> Value {
    let mut resources = json!({"devices": [{"allow": config.privileged, "access": "rwm"}]});
    // Kubernetes' conversion: a whole core is 1024 shares, and the kernel's smallest share is 2.
    let shares = config.cpu_request_milli.map_or(2, |milli| (milli * 1024 / 1000).max(2));
    resources["cpu"] = json!({"shares": shares});
    if let Some(milli) = config.cpu_limit_milli {
        resources["cpu"]["period"] = json!(CPU_PERIOD_US);
        resources["cpu"]["quota"] = json!((milli * CPU_PERIOD_US / 1000).max(1000));
    }
    if let Some(bytes) = config.memory_limit_bytes {
        resources["memory"] = json!({"limit": bytes});
    }
    if let Some(limit) = config.pids_limit {
        resources["pids"] = json!({"limit": limit});
    }
    resources
}
