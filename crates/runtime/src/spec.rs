//! The OCI runtime specification of a container.
//!
//! Defaults (capabilities, masked and read-only paths) are those of containerd.
//!
//! Source: <https://github.com/opencontainers/runtime-spec/blob/main/config.md>.

use std::collections::BTreeSet;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};
use serde_json::{Value, json};

use crate::cgroup::{CPU_PERIOD_US, Cgroups, cpu_quota_us, cpu_shares};
use crate::image::{ImageRef, PROGRAM};
use crate::protocol::{ContainerConfig, Mount, MountKind, SandboxConfig};
use crate::seccomp::{Filters, SeccompError};

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

/// In the kernel's order: the place is the number. Source: `linux/capability.h`.
const ALL_CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
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

/// Bytes of shared memory a container has.
const SHM: &str = "size=65536k";

/// Where programs are looked for when the container does not say.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Open files of a process: what it begins with, and how far it may raise that.
const OPEN_FILES: (u64, u64) = (65_536, 524_288);

/// Whose processes a container sees and is seen by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PidNamespace {
    /// Only its own.
    Own,
    /// Those of the namespace that this process lives in.
    Of(i32),
    /// All of the machine.
    Machine,
}

/// What of this machine shapes a container.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    /// A device cgroup keeps containers from the machine's devices.
    pub(crate) guards_devices: bool,
    /// Processor shares can be set.
    pub(crate) shares_cpu: bool,
    /// The machine swaps, and that can be limited.
    pub(crate) limits_swap: bool,
    /// The capabilities that can be given, a bit for each: those that the shim has.
    pub(crate) capabilities: u64,
    /// How unready to be killed a process here may be made.
    pub(crate) oom_score_adj_min: i32,
    /// How many open files a process here may be allowed.
    pub(crate) open_files_max: u64,
}

impl Machine {
    pub(crate) fn of(cgroups: &Cgroups) -> Self {
        let swaps = std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1);
        let memory = cgroups.controller("memory");
        let counted =
            memory.is_some_and(|root| cgroups.is_unified() || root.join("memory.memsw.limit_in_bytes").exists());
        Self {
            // On version 2 that takes a BPF program, which `libcontainer` does not load as it is built here.
            guards_devices: !cgroups.is_unified(),
            shares_cpu: cgroups.controller("cpu").is_some(),
            limits_swap: swaps && counted,
            capabilities: own_capabilities(),
            oom_score_adj_min: oom_score_adj_min(own_capabilities()),
            open_files_max: getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(_, hard)| hard),
        }
    }
}

fn own_capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(u64::MAX)
}

/// Without the capability for it (`CAP_SYS_RESOURCE`), a process can only become readier to be killed.
fn oom_score_adj_min(capabilities: u64) -> i32 {
    let right = ALL_CAPABILITIES.iter().position(|name| *name == "SYS_RESOURCE").unwrap_or(0);
    if capabilities >> right & 1 == 1 {
        return -1000;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    own.trim().parse().unwrap_or(0)
}

/// The specification of a container whose root file system is mounted at `rootfs`.
pub(crate) fn build(
    machine: Machine,
    sandbox: &SandboxConfig,
    config: &ContainerConfig,
    pids: &PidNamespace,
    filters: &Filters,
    rootfs: &Path,
) -> Value {
    // Network, IPC and host name are the shim's, that is, the pod's.
    let mut namespaces = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    match pids {
        PidNamespace::Own => namespaces.push(json!({"type": "pid"})),
        PidNamespace::Of(process) => namespaces.push(json!({"type": "pid", "path": format!("/proc/{process}/ns/pid")})),
        PidNamespace::Machine => {}
    }
    let mut capabilities = capabilities(machine, config);
    capabilities.extend(filters.needed().iter().map(|name| format!("CAP_{name}")));
    let mut env: Vec<String> = config.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if !config.env.iter().any(|(name, _)| name == "PATH") {
        env.push(DEFAULT_PATH.to_owned());
    }
    let working_dir = if config.working_dir.is_empty() { "/" } else { &config.working_dir };
    let privileged = config.privileged;
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "terminal": config.tty,
            "user": {"uid": config.user, "gid": config.group, "additionalGids": config.supplementary_groups},
            "args": config.command, "env": env, "cwd": working_dir,
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "oomScoreAdj": config.oom_score_adj.max(machine.oom_score_adj_min),
            "noNewPrivileges": config.no_new_privileges,
            "rlimits": [{
                "type": "RLIMIT_NOFILE",
                "soft": OPEN_FILES.0.min(machine.open_files_max),
                "hard": OPEN_FILES.1.min(machine.open_files_max),
            }],
        },
        "root": {"path": rootfs, "readonly": config.read_only_root},
        "mounts": mounts(sandbox, config),
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": format!("/mainstay/{}/{}/pod{}/{}", sandbox.instance, sandbox.node, sandbox.uid, config.id),
            "resources": resources(machine, config),
            "rootfsPropagation": "slave",
            "maskedPaths": if privileged { &[][..] } else { MASKED },
            "readonlyPaths": read_only_paths(privileged),
        },
    })
}

/// What of the kernel's own files a container may look at but not change. Limits are among them: whoever is root in a
/// container could otherwise lift its own.
fn read_only_paths(privileged: bool) -> Vec<String> {
    if privileged {
        return Vec::new();
    }
    // With version 1 every hierarchy is a mount of its own, which the option `ro` of the directory above does not reach.
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let hierarchies = hierarchies.filter(|entry| {
        entry.path().join("cgroup.procs").exists() && !entry.path().join("cgroup.subtree_control").exists()
    });
    let hierarchies: Vec<_> = hierarchies.map(|entry| entry.path().display().to_string()).collect();
    // The directory first, with what is mounted below it.
    let directory = (!hierarchies.is_empty()).then(|| "/sys/fs/cgroup".to_owned());
    READ_ONLY.iter().map(|path| (*path).to_owned()).chain(directory).chain(hierarchies).collect()
}

/// The filters of a container's system calls.
///
/// # Errors
/// What is wrong with its profile.
pub(crate) fn filters(machine: Machine, config: &ContainerConfig) -> Result<Filters, SeccompError> {
    if config.privileged {
        return Ok(Filters::default());
    }
    let own =
        capabilities(machine, config).iter().map(|name| name.trim_start_matches("CAP_").to_owned()).collect::<Vec<_>>();
    Filters::of(&config.seccomp, &own, config.no_new_privileges)
}

fn capabilities(machine: Machine, config: &ContainerConfig) -> Vec<String> {
    let bare = |name: &String| name.to_uppercase().trim_start_matches("CAP_").to_owned();
    let all = || ALL_CAPABILITIES.iter().map(|name| (*name).to_owned());
    let mut set: BTreeSet<String> = if config.privileged {
        all().collect()
    } else {
        let default = DEFAULT_CAPABILITIES.iter().filter(|name| machine.guards_devices || **name != "MKNOD");
        default.map(|name| (*name).to_owned()).collect()
    };
    let dropped: Vec<String> = config.capabilities_drop.iter().map(bare).collect();
    if dropped.iter().any(|name| name == "ALL") {
        set.clear();
    }
    for name in config.capabilities_add.iter().map(bare) {
        set.extend(if name == "ALL" { all().collect() } else { vec![name] });
    }
    set.retain(|name| !dropped.contains(name) || config.capabilities_add.iter().map(bare).any(|added| added == *name));
    // As in other runtimes, what is not there to be given is left out.
    let there = |name: &str| ALL_CAPABILITIES.iter().position(|known| *known == name);
    set.retain(|name| there(name).is_some_and(|number| machine.capabilities >> number & 1 == 1));
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
        // Programs read their own limits here, for example how much memory to plan with.
        special("/sys/fs/cgroup", "cgroup", "cgroup", sys),
    ];
    if config.image == ImageRef::Host {
        let program = sandbox.exe.display().to_string();
        mounts.push(special(PROGRAM, "bind", &program, &["bind", "ro", "nosuid", "nodev"]));
    }
    mounts.extend(config.mounts.iter().map(volume));
    mounts
}

fn volume(mount: &Mount) -> Value {
    let mode = if mount.read_only { "ro" } else { "rw" };
    let (kind, source, options) = match mount.kind {
        MountKind::Bind => {
            let mut options = vec!["rbind".to_owned(), mode.to_owned()];
            options.extend(mount.propagation.map(|kind| kind.option().to_owned()));
            ("bind", mount.source.display().to_string(), options)
        }
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

fn resources(machine: Machine, config: &ContainerConfig) -> Value {
    let mut resources = json!({"devices": [{"allow": config.privileged, "access": "rwm"}]});
    let shares = cpu_shares(config.cpu_request_milli);
    resources["cpu"] = if machine.shares_cpu { json!({"shares": shares}) } else { json!({}) };
    if let Some(milli) = config.cpu_limit_milli {
        resources["cpu"]["period"] = json!(CPU_PERIOD_US);
        resources["cpu"]["quota"] = json!(cpu_quota_us(milli));
    }
    if let Some(bytes) = config.memory_limit_bytes {
        resources["memory"] = json!({"limit": bytes});
        if machine.limits_swap {
            // Memory and swap together: no swap beyond the limit, as Kubernetes has it.
            resources["memory"]["swap"] = json!(bytes);
        }
    }
    if let Some(limit) = config.pids_limit {
        resources["pids"] = json!({"limit": limit});
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine {
        capabilities: u64::MAX,
        guards_devices: true,
        shares_cpu: true,
        limits_swap: false,
        oom_score_adj_min: -1000,
        open_files_max: 4096,
    };

    fn config() -> ContainerConfig {
        ContainerConfig {
            id: "c".to_owned(),
            name: "c".to_owned(),
            image: ImageRef::Host,
            command: vec!["true".to_owned()],
            env: vec![],
            working_dir: String::new(),
            mounts: vec![],
            cpu_request_milli: Some(250),
            cpu_limit_milli: Some(500),
            memory_limit_bytes: Some(1 << 20),
            pids_limit: None,
            user: 0,
            group: 0,
            supplementary_groups: vec![],
            read_only_root: false,
            seccomp: crate::seccomp::Seccomp::Unconfined,
            privileged: false,
            capabilities_add: vec![],
            capabilities_drop: vec![],
            no_new_privileges: false,
            oom_score_adj: 0,
            log_path: "/log".into(),
            stdin: false,
            stdin_once: false,
            tty: false,
            init: false,
            pid_of: None,
        }
    }

    #[test]
    fn capabilities_are_added_to_and_dropped_from_the_default() {
        let of = |add: &[&str], drop: &[&str]| {
            let words = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            capabilities(
                MACHINE,
                &ContainerConfig { capabilities_add: words(add), capabilities_drop: words(drop), ..config() },
            )
        };
        assert_eq!(of(&[], &[]).len(), DEFAULT_CAPABILITIES.len());
        assert_eq!(of(&["net_bind_service"], &["ALL"]), ["CAP_NET_BIND_SERVICE"]);
        assert_eq!(of(&["ALL"], &[]).len(), ALL_CAPABILITIES.len());
        assert!(!of(&[], &["CAP_CHOWN"]).contains(&"CAP_CHOWN".to_owned()));
        assert_eq!(of(&["NO_SUCH"], &["ALL"]), [""; 0]);
        let weak = Machine { capabilities: 1, ..MACHINE };
        assert_eq!(capabilities(weak, &ContainerConfig { privileged: true, ..config() }), ["CAP_CHOWN"]);
        let unguarded = Machine { guards_devices: false, ..MACHINE };
        assert!(!capabilities(unguarded, &config()).contains(&"CAP_MKNOD".to_owned()));
    }

    #[test]
    fn limits_are_the_units_of_the_kernel() {
        let resources = resources(MACHINE, &config());
        assert_eq!(resources["cpu"], json!({"shares": 256, "period": 100_000, "quota": 50_000}));
        assert_eq!(resources["memory"], json!({"limit": 1 << 20}));
    }
}
