//! Filters of system calls: the runtime's default, and profiles of the node.
//!
//! Flow: a [`Seccomp`] is compiled to filters for the kernel when the container is made ([`Filters::of`]) and kept beside its
//! specification; every process that starts in the container installs them right before it becomes its program
//! ([`Filters::install`]).
//!
//! The default lets everything through but what containers have no business with: the calls that containerd and Docker
//! refuse by default, unless a capability that the container was given brings the right to them. Those two list what is
//! allowed instead; the difference is in calls that are younger than the list.
//!
//! A profile is the OCI's JSON. One filter has one answer for what matches, so there are as many filters as answers; the
//! kernel takes the strictest, and among equal ones that of the youngest filter.
//!
//! Deliberately absent: programs of other architectures than the machine's (they are killed), and notification to another
//! process (`SCMP_ACT_NOTIFY`).
//!
//! Sources: <https://kubernetes.io/docs/tutorials/security/seccomp/>, <https://docs.docker.com/engine/security/seccomp/>,
//! <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#seccomp>, `man 2 seccomp`.

use std::collections::BTreeMap;
use std::io;

use caps::{CapSet, Capability};
use seccompiler::{BpfProgram, TargetArch, compile_from_json, sock_filter};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Which system calls a container may use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// All.
    #[default]
    Unconfined,
    /// All but those that containers have no business with.
    RuntimeDefault,
    /// Those of a profile: its text.
    Profile(String),
}

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// Not JSON, or not of a profile's shape.
    #[error("the seccomp profile cannot be read: {0}")]
    Read(#[from] serde_json::Error),
    /// A word that is not known.
    #[error("the seccomp profile says {0:?}, which is not supported")]
    Word(String),
    /// The compiler refused.
    #[error("the seccomp profile cannot be compiled: {0}")]
    Compile(String),
}

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// What the default refuses: calls, and the capabilities any of which brings the right to them.
///
/// Source: the tables in Docker's documentation, and containerd's `contrib/seccomp`.
const REFUSED: &[(&[&str], &[&str])] = &[
    (
        &[
            "mount",
            "umount2",
            "pivot_root",
            "setns",
            "unshare",
            "fsopen",
            "fsconfig",
            "fsmount",
            "fspick",
            "move_mount",
            "open_tree",
            "mount_setattr",
            "quotactl",
            "quotactl_fd",
            "swapon",
            "swapoff",
            "lookup_dcookie",
            "fanotify_init",
            "sethostname",
            "setdomainname",
        ],
        &["SYS_ADMIN"],
    ),
    (&["bpf"], &["SYS_ADMIN", "BPF"]),
    (&["perf_event_open"], &["SYS_ADMIN", "PERFMON"]),
    (&["init_module", "finit_module", "delete_module"], &["SYS_MODULE"]),
    (&["reboot", "kexec_load"], &["SYS_BOOT"]),
    (&["settimeofday", "clock_settime", "clock_adjtime"], &["SYS_TIME"]),
    (&["acct"], &["SYS_PACCT"]),
    (&["syslog"], &["SYSLOG", "SYS_ADMIN"]),
    (&["open_by_handle_at"], &["DAC_READ_SEARCH"]),
    (&["kcmp", "process_vm_readv", "process_vm_writev", "pidfd_getfd"], &["SYS_PTRACE"]),
    (&["vhangup"], &["SYS_TTY_CONFIG"]),
    (&["mbind", "set_mempolicy", "get_mempolicy", "move_pages", "migrate_pages"], &["SYS_NICE"]),
    (
        &[
            "add_key",
            "keyctl",
            "request_key",
            "userfaultfd",
            "nfsservctl",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
        ],
        &[],
    ),
];

/// The same for calls that only this architecture has.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[(&[&str], &[&str])] = &[
    (&["iopl", "ioperm"], &["SYS_RAWIO"]),
    (&["kexec_file_load"], &["SYS_BOOT"]),
    (&["uselib", "ustat", "sysfs"], &[]),
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[(&[&str], &[&str])] = &[];

/// Flags of `clone` that make namespaces (`linux/sched.h`).
const NAMESPACES: [u64; 7] =
    [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
/// `AF_VSOCK`: sockets to whatever runs this machine.
const VSOCK: u64 = 40;
/// What `personality` may be set to: Linux, with 32 bits or an old version number, and "tell me".
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// A container's filters, and the capabilities that its processes keep when they are installed: without the one to
/// administrate the system, which installing takes, nobody could.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Filters {
    /// Instructions: code, two jumps, operand.
    programs: Vec<Vec<(u16, u8, u8, u32)>>,
    /// Capabilities that are only there for installing.
    drop: Vec<String>,
}

impl Filters {
    /// The filters of a container that has these capabilities, without `CAP_`.
    ///
    /// # Errors
    /// What is wrong with its profile.
    pub(crate) fn of(wanted: &Seccomp, capabilities: &[String], no_new_privileges: bool) -> Result<Self, SeccompError> {
        let documents = match wanted {
            Seccomp::Unconfined => return Ok(Self::default()),
            Seccomp::RuntimeDefault => default_documents(capabilities),
            Seccomp::Profile(text) => profile_documents(&serde_json::from_str(text)?)?,
        };
        let mut programs = Vec::new();
        if cfg!(target_arch = "x86_64") {
            programs.push(no_x32());
        }
        for document in documents {
            let program = compile(&document)?;
            programs.push(program.iter().map(|step| (step.code, step.jt, step.jf, step.k)).collect());
        }
        let needed = ["SYS_ADMIN", "SETPCAP"].map(str::to_owned).into_iter();
        let drop = needed.filter(|name| !no_new_privileges && !capabilities.contains(name)).collect();
        Ok(Self { programs, drop })
    }

    /// Capabilities that a process needs besides its own to install the filters, without `CAP_`.
    pub(crate) fn needed(&self) -> &[String] {
        &self.drop
    }

    /// Installs the filters for the calling process and all that come of it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn install(&self) -> io::Result<()> {
        for program in &self.programs {
            let steps: Vec<_> =
                program.iter().map(|(code, jt, jf, k)| sock_filter { code: *code, jt: *jt, jf: *jf, k: *k }).collect();
            set(&steps)?;
        }
        for name in &self.drop {
            let capability: Capability = format!("CAP_{name}").parse().map_err(io::Error::other)?;
            caps::drop(None, CapSet::Bounding, capability).map_err(io::Error::other)?;
        }
        for name in &self.drop {
            let capability: Capability = format!("CAP_{name}").parse().map_err(io::Error::other)?;
            for set in [CapSet::Effective, CapSet::Permitted] {
                caps::drop(None, set, capability).map_err(io::Error::other)?;
            }
        }
        Ok(())
    }
}

#[allow(unsafe_code)]
fn set(program: &[sock_filter]) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        length: u16,
        steps: *const sock_filter,
    }
    let length = u16::try_from(program.len()).map_err(|_| io::Error::other("the seccomp filter is too long"))?;
    let whole = Program { length, steps: program.as_ptr() };
    // SAFETY: the structure is `struct sock_fprog`, its pointer and length are those of a slice that lives over the call, and
    // the kernel only reads them.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, std::ptr::from_ref(&whole)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The second way to call the kernel that 64-bit processors have, by which numbers mean other calls: there is none.
fn no_x32() -> Vec<(u16, u8, u8, u32)> {
    const LOAD: u16 = 0x20;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const ERRNO: u32 = 0x0005_0000;
    const ALLOW: u32 = 0x7fff_0000;
    // The number is the first field of `struct seccomp_data`; `__X32_SYSCALL_BIT`.
    vec![(LOAD, 0, 0, 0), (JUMP_IF_AT_LEAST, 0, 1, 0x4000_0000), (RETURN, 0, 0, ERRNO | ENOSYS), (RETURN, 0, 0, ALLOW)]
}

fn compile(document: &Value) -> Result<BpfProgram, SeccompError> {
    let error = match compile_all(document) {
        Err(error) => error,
        compiled => return compiled,
    };
    // As the runtimes do: profiles name calls of all kernels and machines; those that are not here need no rule.
    let is_here = |call: &&Value| {
        let alone = self::document(&json!("allow"), &json!("trap"), &[json!({"syscall": call["syscall"]})]);
        compile_all(&alone).is_ok()
    };
    let calls = document["filter"].as_array().map(Vec::as_slice).unwrap_or_default();
    let here: Vec<_> = calls.iter().filter(is_here).cloned().collect();
    if here.len() == calls.len() {
        return Err(error);
    }
    compile_all(&self::document(&document["match_action"], &document["mismatch_action"], &here))
}

fn compile_all(document: &Value) -> Result<BpfProgram, SeccompError> {
    let failed = |error: &dyn std::fmt::Display| SeccompError::Compile(error.to_string());
    let target: TargetArch = std::env::consts::ARCH.try_into().map_err(|error| failed(&error))?;
    let text = json!({ "all": document }).to_string();
    let mut compiled = compile_from_json(text.as_bytes(), target).map_err(|error| failed(&error))?;
    compiled.remove("all").ok_or_else(|| failed(&"nothing came of it"))
}

fn document(matched: &Value, otherwise: &Value, filter: &[Value]) -> Value {
    json!({"match_action": matched, "mismatch_action": otherwise, "filter": filter})
}

/// The default, for a container with these capabilities. Pure.
fn default_documents(capabilities: &[String]) -> Vec<Value> {
    let has = |names: &[&str]| capabilities.iter().any(|own| names.contains(&own.as_str()));
    let refused = REFUSED.iter().chain(REFUSED_HERE).filter(|(_, rights)| !has(rights));
    let mut filter: Vec<_> = refused.flat_map(|(calls, _)| *calls).map(|call| json!({ "syscall": call })).collect();
    let argument = |op: Value, value: u64| json!({"index": 0, "type": "qword", "op": op, "val": value});
    filter.push(json!({"syscall": "socket", "args": [argument(json!("eq"), VSOCK)]}));
    let others: Vec<_> = PERSONALITIES.iter().map(|value| argument(json!("ne"), *value)).collect();
    filter.push(json!({"syscall": "personality", "args": others}));
    let mut documents = Vec::new();
    if !has(&["SYS_ADMIN"]) {
        let flags = NAMESPACES
            .iter()
            .map(|flag| json!({"syscall": "clone", "args": [argument(json!({"masked_eq": flag}), *flag)]}));
        filter.extend(flags);
        // Its flags are out of a filter's sight: as if it were an old kernel, so that programs take `clone`.
        documents.push(document(&json!({"errno": ENOSYS}), &json!("allow"), &[json!({"syscall": "clone3"})]));
    }
    documents.push(document(&json!({"errno": EPERM}), &json!("allow"), &filter));
    documents
}

/// A profile in the compiler's words. Pure.
fn profile_documents(profile: &Value) -> Result<Vec<Value>, SeccompError> {
    let default = action(&profile["defaultAction"], &profile["defaultErrnoRet"])?;
    let permits = |action: &Value| action == "allow" || action == "log";
    let mut groups: BTreeMap<String, (Value, Vec<Value>)> = BTreeMap::new();
    for rule in profile["syscalls"].as_array().into_iter().flatten() {
        let mut answer = action(&rule["action"], &rule["errnoRet"])?;
        if permits(&answer) && !permits(&default) {
            answer = json!("allow");
        }
        let group = groups.entry(answer.to_string()).or_insert_with(|| (answer, Vec::new()));
        let args = rule["args"].as_array().into_iter().flatten().map(argument).collect::<Result<Vec<_>, _>>()?;
        for name in rule["names"].as_array().into_iter().flatten() {
            let call =
                if args.is_empty() { json!({ "syscall": name }) } else { json!({"syscall": name, "args": args}) };
            group.1.push(call);
        }
    }
    let mut documents = Vec::new();
    if !permits(&default) {
        let allowed = groups.remove(&json!("allow").to_string()).map(|(_, calls)| calls).unwrap_or_default();
        documents.push(document(&json!("allow"), &default, &allowed));
    }
    let otherwise = if permits(&default) { default.clone() } else { json!("allow") };
    let rest =
        groups.into_values().filter(|(answer, calls)| *answer != default && *answer != otherwise && !calls.is_empty());
    documents.extend(rest.map(|(answer, calls)| document(&answer, &otherwise, &calls)));
    Ok(documents)
}

fn action(word: &Value, errno: &Value) -> Result<Value, SeccompError> {
    let errno = errno.as_u64().unwrap_or(u64::from(EPERM));
    Ok(match word.as_str().unwrap_or_default() {
        "SCMP_ACT_ALLOW" => json!("allow"),
        "SCMP_ACT_LOG" => json!("log"),
        "SCMP_ACT_ERRNO" => json!({ "errno": errno }),
        "SCMP_ACT_TRAP" => json!("trap"),
        "SCMP_ACT_TRACE" => json!({ "trace": errno }),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => json!("kill_thread"),
        "SCMP_ACT_KILL_PROCESS" => json!("kill_process"),
        other => return Err(SeccompError::Word(other.to_owned())),
    })
}

fn argument(argument: &Value) -> Result<Value, SeccompError> {
    let value = argument["value"].as_u64().unwrap_or(0);
    let (op, value) = match argument["op"].as_str().unwrap_or_default() {
        "SCMP_CMP_EQ" => (json!("eq"), value),
        "SCMP_CMP_NE" => (json!("ne"), value),
        "SCMP_CMP_LT" => (json!("lt"), value),
        "SCMP_CMP_LE" => (json!("le"), value),
        "SCMP_CMP_GT" => (json!("gt"), value),
        "SCMP_CMP_GE" => (json!("ge"), value),
        // The mask first, then what is to be left of it.
        "SCMP_CMP_MASKED_EQ" => (json!({ "masked_eq": value }), argument["valueTwo"].as_u64().unwrap_or(0)),
        other => return Err(SeccompError::Word(other.to_owned())),
    };
    Ok(json!({"index": argument["index"], "type": "qword", "op": op, "val": value}))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_default_compiles_and_leaves_out_what_capabilities_allow() {
        let plain = Filters::of(&Seccomp::RuntimeDefault, &[], false).unwrap();
        assert_eq!(plain.needed(), ["SYS_ADMIN", "SETPCAP"]);
        let strong =
            Filters::of(&Seccomp::RuntimeDefault, &["SYS_ADMIN".to_owned(), "SETPCAP".to_owned()], false).unwrap();
        assert!(strong.needed().is_empty() && strong.programs.len() < plain.programs.len());
        assert!(Filters::of(&Seccomp::RuntimeDefault, &[], true).unwrap().needed().is_empty());
        assert!(Filters::of(&Seccomp::Unconfined, &[], false).unwrap().programs.is_empty());
    }

    #[test]
    fn profiles_become_one_filter_per_answer() {
        let profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["write"], "action": "SCMP_ACT_LOG"},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 2_114_060_288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}]});
        let documents = profile_documents(&profile).unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0]["mismatch_action"], json!({"errno": 1}));
        assert_eq!(documents[0]["filter"].as_array().unwrap().len(), 4);
        assert_eq!(documents[1]["match_action"], json!({"errno": 38}));
        assert!(Filters::of(&Seccomp::Profile(profile.to_string()), &[], false).is_ok());
        let open = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}]});
        assert_eq!(profile_documents(&open).unwrap().len(), 1);
        for bad in ["{", r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#] {
            assert!(Filters::of(&Seccomp::Profile(bad.to_owned()), &[], false).is_err());
        }
    }
}
