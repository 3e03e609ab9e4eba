//! Memory of Mainstay's processes, by role, from `/proc`.
//!
//! Resident memory (`VmRSS`) counts a page shared by several processes once for each of them; the proportional set
//! size (`Pss`) divides it among them. Goals are set on the first, which is what people see in `top`; the second is
//! what the machine really loses. `man 5 proc_pid_smaps`.

use std::collections::BTreeSet;
use std::fs;

/// One process of ours.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// The subcommand: `server`, `node`, `shim`, `demo`.
    pub(crate) role: String,
    /// Resident, in megabytes (1,000,000 bytes).
    pub(crate) resident_mb: f64,
    /// Proportional, in megabytes.
    pub(crate) proportional_mb: f64,
}

/// All processes of ours, except those in `but`.
pub(crate) fn processes(but: &BTreeSet<u32>) -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| !but.contains(pid)).filter_map(look_at).collect()
}

/// The ids of all processes of ours.
pub(crate) fn pids() -> BTreeSet<u32> {
    processes(&BTreeSet::new()).into_iter().map(|process| process.pid).collect()
}

/// What any process holds resident, in megabytes; `None` if it is gone.
pub(crate) fn resident_mb(pid: u32) -> Option<f64> {
    megabytes(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:")
}

/// None if it is not ours, or gone.
fn look_at(pid: u32) -> Option<Process> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let role = role(&read("cmdline")?)?;
    Some(Process {
        pid,
        role,
        resident_mb: megabytes(&read("status")?, "VmRSS:")?,
        proportional_mb: megabytes(&read("smaps_rollup")?, "Pss:")?,
    })
}

/// `server` for `/usr/bin/mainstay\0server\0…`.
fn role(cmdline: &str) -> Option<String> {
    let mut words = cmdline.split('\0');
    let program = words.next()?.rsplit('/').next()?;
    (program == "mainstay").then(|| words.next().unwrap_or_default().to_owned())
}

/// The number of a line such as `VmRSS:  5120 kB` (which are kibibytes), in megabytes.
fn megabytes(text: &str, field: &str) -> Option<f64> {
    let kibibytes: f64 =
        text.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_come_from_the_command_line() {
        assert_eq!(role("/x/mainstay\0shim\0--pod\0a\0").as_deref(), Some("shim"));
        assert_eq!(role("mainstay\0").as_deref(), Some(""));
        assert_eq!(role("/x/cargo\0mainstay\0"), None);
    }

    #[test]
    fn kibibytes_become_megabytes() {
        let found = megabytes("Name: x\nVmRSS:\t   1000 kB\n", "VmRSS:").unwrap_or_default();
        assert!((found - 1.024).abs() < 1e-9);
    }
}
