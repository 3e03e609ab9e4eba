//! What the kernel knows about this process, as Prometheus' client libraries report it.

use std::fmt::Write as _;
use std::fs;

/// Clock ticks a second in `/proc`, which Linux fixed at 100 for programs.
const TICKS: f64 = 100.0;
const PAGE_BYTES: f64 = 4096.0;

/// The lines; figures that cannot be read are left out.
pub(super) fn write(out: &mut String) {
    let mut gauge = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            // Writing to a text cannot fail.
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
    };
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name may hold anything, so fields are counted from behind its closing parenthesis; the third is the first.
    let fields: Vec<f64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().skip(1).map(|field| field.parse().unwrap_or(0.0)).collect())
        .unwrap_or_default();
    let field = |number: usize| fields.get(number - 4).copied();
    let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS);
    let descriptors = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64);
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = limits.lines().find(|line| line.starts_with("Max open files"));
    let limit = limit.and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
    let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot = boot.lines().find_map(|line| line.strip_prefix("btime ")?.parse::<f64>().ok());
    let started = field(22).zip(boot).map(|(ticks, boot)| boot + ticks / TICKS);
    let resident = field(24).map(|pages| pages * PAGE_BYTES);
    gauge("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", cpu);
    gauge("process_max_fds", "gauge", "Maximum number of open file descriptors.", limit);
    gauge("process_open_fds", "gauge", "Number of open file descriptors.", descriptors);
    gauge("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", resident);
    gauge("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", started);
    gauge("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", field(23));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_figures() {
        let mut text = String::new();
        write(&mut text);
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        assert!(value("process_resident_memory_bytes ").is_some_and(|bytes| bytes > 1e6), "{text}");
        assert!(value("process_start_time_seconds ").is_some_and(|seconds| seconds > 1.6e9), "{text}");
        assert!(value("process_open_fds ").is_some_and(|count| count > 2.0), "{text}");
    }
}
