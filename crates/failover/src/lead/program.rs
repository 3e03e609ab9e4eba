//! The holder's end of the pipe to the guard of what runs.

use std::io::{self, PipeWriter, Write as _};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::getpid;
use tokio::process::{Child, Command};

use super::guard::{self, Word};

/// Between two looks at processes that are being killed.
const PASS: Duration = Duration::from_millis(5);

/// What runs: the guard, and below it a program or hook.
pub(super) struct Program {
    guard: Child,
    words: PipeWriter,
    until: Option<Duration>,
}

impl Program {
    /// Starts a command that may run until `until`.
    pub(super) fn start(command: &[String], variables: &[(&str, String)], until: Duration) -> io::Result<Self> {
        let (reader, words) = io::pipe()?;
        // The guard finds the pipe by its number; everything else closes when a program is executed.
        fcntl(&reader, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let mut guard = Command::new("/proc/self/exe");
        guard.args(["lead-guard", &reader.as_raw_fd().to_string()]).args(command);
        // A group of its own: a terminal's Ctrl-C is for the holder, which then stops the program in order.
        guard.envs(variables.iter().map(|(name, value)| (name, value))).process_group(0);
        let mut program = Self { guard: guard.spawn()?, words, until: None };
        program.until(until);
        Ok(program)
    }

    /// Moves the deadline. A guard that does not listen any more is about to end, which [`Program::ended`] tells.
    pub(super) fn until(&mut self, until: Duration) {
        if self.until.replace(until) != Some(until) {
            self.say(Word::Until(u64::try_from(until.as_millis()).unwrap_or(0)));
        }
    }

    /// Sends a signal to the program.
    pub(super) fn signal(&mut self, signal: i32) {
        self.say(Word::Signal(u64::try_from(signal).unwrap_or(0)));
    }

    /// Has all of it killed; [`Program::ended`] tells when it is gone.
    pub(super) fn kill(&mut self) {
        self.say(Word::Kill);
    }

    fn say(&mut self, word: Word) {
        let _ = self.words.write_all(&word.encode());
    }

    /// Waits until the program and everything it started is gone; answers its exit code.
    pub(super) async fn ended(&mut self) -> i32 {
        let code = self.guard.wait().await.map_or(128, guard::code_of);
        // A guard that was killed leaves its children to this process.
        while !guard::descendants(getpid()).is_empty() {
            guard::kill_below(getpid());
            while !matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive) | Err(_)) {}
            tokio::time::sleep(PASS).await;
        }
        code
    }
}
