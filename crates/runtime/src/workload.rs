//! The last step of a process on its way into a container: find the program and become it.
//!
//! `libcontainer` calls this in the new process, when all of the container is in place. It differs from its default in what
//! people see: the messages are those of containerd, a program that cannot be executed is told to whoever started it
//! instead of only ending with a code, and a text file without `#!` is an error and not a shell script.

use std::error::Error;
use std::ffi::CString;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{AccessFlags, access, execv, write};

use crate::seccomp::Filters;

/// How every message about a program begins.
const MARK: &str = "exec: ";
/// What `libcontainer` puts between a failure and the failure to clean up after it.
const CLEANUP: &str = ". error during cleanup: ";

/// What is done besides executing the program. The descriptors belong to who made this and are inherited.
#[derive(Debug, Clone, Default)]
pub(crate) struct Program {
    /// Standard input is a terminal that shall control the process.
    pub(crate) terminal: bool,
    /// The process is killed when its parent ends.
    pub(crate) dies_with_parent: bool,
    /// The process stays, as the program's parent: see [`crate::init`].
    pub(crate) init: bool,
    /// What the process and all that come of it may ask the kernel for.
    pub(crate) filters: Filters,
    /// A pipe that closes when the program runs, and before that tells why it does not.
    pub(crate) report: Option<RawFd>,
}

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        find(spec).map(drop).map_err(ExecutorValidationError::ArgValidationError)
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let failed = self.become_program(spec);
        if let Some(report) = self.report {
            // Whoever should have read it is gone: then nobody is interested.
            let _ = write(borrow(report), failed.as_bytes());
        }
        Err(ExecutorError::Other(failed))
    }
}

impl Program {
    /// Answers only when it fails.
    #[allow(unsafe_code)]
    fn become_program(&self, spec: &Spec) -> String {
        let (path, args) = match find(spec).and_then(|path| Ok((to_c(path.as_os_str().as_bytes())?, arguments(spec)?)))
        {
            Ok(found) => found,
            Err(text) => return text,
        };
        if self.dies_with_parent
            && let Err(error) = set_pdeathsig(Signal::SIGKILL)
        {
            return format!("{MARK}cannot tie the command to its helper: {}", describe(error));
        }
        if self.terminal {
            // SAFETY: plain ioctl on standard input; the process has just become a session leader without a terminal.
            unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
        }
        if self.init
            && let Err(error) = crate::init::split(self.terminal)
        {
            return format!("{MARK}cannot become the program's parent: {}", describe(error));
        }
        if let Err(error) = self.filters.install() {
            return format!("{MARK}cannot install the seccomp filter: {error}");
        }
        match execv(&path, &args) {
            Ok(never) => match never {},
            Err(error) => format!("{MARK}{path:?}: {}", describe(error)),
        }
    }
}

#[allow(unsafe_code)]
fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: whoever made the `Program` keeps the descriptor open until the process runs, and forks inherit it.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

fn words_of(spec: &Spec) -> &[String] {
    spec.process().as_ref().and_then(|process| process.args().as_deref()).unwrap_or_default()
}

fn arguments(spec: &Spec) -> Result<Vec<CString>, String> {
    words_of(spec).iter().map(|word| to_c(word.as_bytes())).collect()
}

fn to_c(bytes: &[u8]) -> Result<CString, String> {
    CString::new(bytes).map_err(|_| format!("{MARK}an argument holds a NUL character"))
}

/// The program's file, as the user whom the process has become may execute it.
fn find(spec: &Spec) -> Result<PathBuf, String> {
    let program = words_of(spec).first().map_or("", String::as_str);
    let refused = |reason: &str| format!("{MARK}{program:?}: {reason}");
    if program.is_empty() {
        return Err(refused("no command is given"));
    }
    if program.contains('/') {
        return executable(Path::new(program)).map(|()| PathBuf::from(program)).map_err(|reason| refused(&reason));
    }
    let process = spec.process().as_ref();
    let env = process.and_then(|process| process.env().as_deref()).unwrap_or_default();
    let path = env.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default();
    let mut denied = false;
    for directory in path.split(':') {
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(program);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(_) => denied |= candidate.is_file(),
        }
    }
    Err(refused(if denied { "permission denied" } else { "executable file not found in $PATH" }))
}

fn executable(path: &Path) -> Result<(), String> {
    let metadata = path.metadata().map_err(|error| format!("stat {}: {}", path.display(), io_words(&error)))?;
    if metadata.is_dir() {
        return Err("is a directory".to_owned());
    }
    access(path, AccessFlags::X_OK).map_err(describe)
}

fn io_words(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| describe(nix::Error::from_raw(number)))
}

/// The system's words for an error, in the small letters that containerd uses.
fn describe(error: nix::Error) -> String {
    error.desc().to_lowercase()
}

/// What people should read of an error of `libcontainer`: about the program if that is the reason, else all of it.
pub(crate) fn reason(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    let text = text.replace('\0', "");
    match text.find(&format!("{MARK}\"")).or_else(|| text.find(&format!("{MARK}cannot"))) {
        // With cgroup version 2 it often adds that a group is still in use; whoever cleans up takes that.
        Some(start) => text[start..].split(CLEANUP).next().unwrap_or_default().to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn spec(program: &str, path: &str) -> Spec {
        let process =
            json!({"args": [program], "env": [format!("PATH={path}")], "cwd": "/", "user": {"uid": 0, "gid": 0}});
        serde_json::from_value(json!({"ociVersion": "1.1.0", "process": process})).unwrap()
    }

    #[test]
    fn programs_are_found_or_the_reason_is_told() {
        assert_eq!(find(&spec("sh", "/nowhere:/bin")).unwrap(), Path::new("/bin/sh"));
        assert_eq!(find(&spec("/bin/sh", "")).unwrap(), Path::new("/bin/sh"));
        let reason = |program: &str| find(&spec(program, "/etc:/bin")).unwrap_err();
        assert_eq!(reason("no-such"), "exec: \"no-such\": executable file not found in $PATH");
        assert_eq!(reason("/no/such"), "exec: \"/no/such\": stat /no/such: no such file or directory");
        assert_eq!(reason("/etc"), "exec: \"/etc\": is a directory");
        assert_eq!(reason("/etc/passwd"), "exec: \"/etc/passwd\": permission denied");
        assert_eq!(find(&spec("passwd", "/etc")).unwrap_err(), "exec: \"passwd\": permission denied");
    }

    #[test]
    fn the_reason_about_a_program_stands_alone() {
        let inner = "exec process failed: exec: \"foo\": executable file not found in $PATH\0";
        let error = io::Error::other(inner);
        assert_eq!(reason(&error), "exec: \"foo\": executable file not found in $PATH");
        let both = format!("{}. error during cleanup: could not delete", inner.trim_end_matches('\0'));
        assert_eq!(reason(&io::Error::other(both)), "exec: \"foo\": executable file not found in $PATH");
        assert_eq!(reason(&io::Error::other("no space")), "no space");
    }
}
