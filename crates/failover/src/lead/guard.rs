//! The guard: parent of the program, and its end when the lease ends.
//!
//! Flow: `mainstay lead` starts `mainstay lead-guard`, which starts the program through `mainstay lead-exec`. Over a pipe the
//! guard hears until when the lease is good, and what to do before that. When the pipe closes (the holder is dead), at the
//! deadline, or when told to, it kills the program and everything below it, and ends when all of it is gone.
//!
//! Guarantees: a guard that does not get to run any more is killed by a kernel timer shortly after the deadline
//! (`timer_create(2)` with SIGKILL, which ends stopped processes too), and the program with it (`PR_SET_PDEATHSIG`). As
//! their subreaper (`PR_SET_CHILD_SUBREAPER`) it finds the processes that left the program's process group.
//!
//! Single-threaded and without a runtime: a guard does nothing but wait.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt as _, parent_id};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::{set_child_subreaper, set_pdeathsig};
use nix::sys::signal::{SigEvent, SigSet, SigevNotify, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, close, getpid};

/// How long after the deadline the kernel kills a guard that did not act.
const LATE: Duration = Duration::from_millis(20);
/// Between two passes over processes that are being killed.
const PASS: Duration = Duration::from_millis(5);
/// The exit code when the program could not be executed, as shells have it.
const CANNOT_EXECUTE: i32 = 126;
/// The exit code when there is no such program.
const NOT_FOUND: i32 = 127;

/// What the holder says: one letter and a number of eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// The lease is good until this time, in milliseconds since boot.
    Until(u64),
    /// Send this signal to the program.
    Signal(u64),
    /// Kill everything.
    Kill,
}

/// Bytes of a word.
pub(super) const WORD: usize = 9;

impl Word {
    pub(super) fn encode(self) -> [u8; WORD] {
        let (letter, number) = match self {
            Self::Until(at) => (b'U', at),
            Self::Signal(signal) => (b'S', signal),
            Self::Kill => (b'K', 0),
        };
        let mut bytes = [letter; WORD];
        bytes[1..].copy_from_slice(&number.to_le_bytes());
        bytes
    }

    fn decode(bytes: [u8; WORD]) -> Option<Self> {
        let [letter, number @ ..] = bytes;
        let number = u64::from_le_bytes(number);
        match letter {
            b'U' => Some(Self::Until(number)),
            b'S' => Some(Self::Signal(number)),
            b'K' => Some(Self::Kill),
            _ => None,
        }
    }
}

/// The time since boot, sleep included.
pub(super) fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from)
}

/// `mainstay lead-guard PIPE COMMAND...`: answers the exit code of the program.
pub fn run(args: &[String]) -> i32 {
    let (Some(pipe), Some(command)) = (args.first().and_then(|pipe| pipe.parse().ok()), args.get(1..)) else {
        eprintln!("mainstay lead-guard: started by mainstay lead only");
        return CANNOT_EXECUTE;
    };
    match Guard::start(pipe, command).and_then(Guard::watch) {
        Ok(code) => code,
        Err(error) => {
            // Without a guard nothing may run.
            kill_below(getpid());
            eprintln!("mainstay lead: cannot guard {}: {error}", command.join(" "));
            CANNOT_EXECUTE
        }
    }
}

/// `mainstay lead-exec PARENT COMMAND...`: becomes the program, which dies with its parent.
pub fn execute(args: &[String]) -> i32 {
    let (Some(parent), Some(program)) = (args.first().and_then(|it| it.parse::<u32>().ok()), args.get(1)) else {
        return CANNOT_EXECUTE;
    };
    // The parent may have died before the kernel knew that it matters.
    if set_pdeathsig(Signal::SIGKILL).is_err() || parent_id() != parent {
        return CANNOT_EXECUTE;
    }
    let error = Command::new(program).args(args.get(2..).unwrap_or_default()).exec();
    eprintln!("mainstay lead: cannot run {program}: {error}");
    if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_EXECUTE }
}

struct Guard {
    pipe: File,
    children: SignalFd,
    /// Kills this process when it is late.
    timer: Timer,
    program: Pid,
    until: Option<Duration>,
    killing: bool,
    code: Option<i32>,
}

impl Guard {
    fn start(pipe: i32, command: &[String]) -> io::Result<Self> {
        let inherited = pipe;
        let pipe = File::open(format!("/proc/self/fd/{inherited}"))?;
        close(inherited)?;
        set_child_subreaper(true)?;
        let mut mask = SigSet::empty();
        // Signals meant for the group of the holder (a terminal's Ctrl-C) reach this process only through it.
        for signal in [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let children = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let event = SigEvent::new(SigevNotify::SigevSignal { signal: Signal::SIGKILL, si_value: 0 });
        let timer = Timer::new(ClockId::CLOCK_BOOTTIME, event)?;
        let mut guard =
            Self { pipe, children, timer, program: Pid::from_raw(0), until: None, killing: false, code: None };
        // The first word is the deadline: the program never runs without one.
        guard.listen()?;
        if guard.until.is_none() || guard.killing {
            return Err(io::Error::other("the lease ended before the program began"));
        }
        let mut child = Command::new("/proc/self/exe");
        child.args(["lead-exec", &std::process::id().to_string()]).args(command).process_group(0);
        let child = child.spawn()?;
        guard.program = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
        Ok(guard)
    }

    /// Waits for the end, whatever it is.
    fn watch(mut self) -> io::Result<i32> {
        loop {
            self.reap();
            if let Some(code) = self.code
                && descendants(getpid()).is_empty()
            {
                return Ok(code);
            }
            // What a program leaves behind when it ends would run beside the next holder's.
            self.killing |= self.code.is_some() || self.until.is_none_or(|until| now() >= until);
            if self.killing {
                kill_below(getpid());
                std::thread::sleep(PASS);
                continue;
            }
            let left = self.until.unwrap_or_default().saturating_sub(now());
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            let spoken = {
                let mut ready = [
                    PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN),
                    PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
                ];
                match poll(&mut ready, timeout) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
                ready[0].any().unwrap_or(false)
            };
            while let Ok(Some(_)) = self.children.read_signal() {}
            if spoken {
                self.listen()?;
            }
        }
    }

    /// Takes in every word that is there; waits for the first. A closed pipe is a dead holder.
    fn listen(&mut self) -> io::Result<()> {
        loop {
            let mut word = [0; WORD];
            if let Err(error) = self.pipe.read_exact(&mut word) {
                self.killing = true;
                return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(()) } else { Err(error) };
            }
            match Word::decode(word) {
                Some(Word::Until(at)) => self.arm(Duration::from_millis(at))?,
                Some(Word::Signal(number)) => {
                    let signal = i32::try_from(number).ok().and_then(|number| Signal::try_from(number).ok());
                    // Gone already: that is what was wanted.
                    let _ = kill(Pid::from_raw(-self.program.as_raw()), signal);
                }
                Some(Word::Kill) | None => self.killing = true,
            }
            let mut more = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
            if poll(&mut more, PollTimeout::ZERO)? == 0 {
                return Ok(());
            }
        }
    }

    fn arm(&mut self, until: Duration) -> io::Result<()> {
        self.until = Some(until);
        let at = Expiration::OneShot((until + LATE).into());
        Ok(self.timer.set(at, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?)
    }

    /// Collects what ended: the program, and orphans that fell to this process.
    fn reap(&mut self) {
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                _ => return,
            };
            if pid == self.program {
                self.code = Some(code);
            }
        }
    }
}

/// SIGKILL to everything below a process.
pub(super) fn kill_below(root: Pid) {
    for pid in descendants(root) {
        // Gone already: that is what was wanted.
        let _ = kill(pid, Signal::SIGKILL);
    }
}

/// Everything below a process, by the parents that `/proc/PID/stat` names (proc(5)), zombies included.
pub(super) fn descendants(root: Pid) -> Vec<Pid> {
    let parent = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in brackets may hold anything.
        let (_, rest) = stat.rsplit_once(')')?;
        rest.split_whitespace().nth(1)?.parse::<i32>().ok()
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let parents: Vec<(i32, i32)> = pids.filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found = vec![root.as_raw()];
    let mut at = 0;
    while let Some(&above) = found.get(at) {
        found.extend(parents.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| *pid));
        at += 1;
    }
    found.split_off(1).into_iter().map(Pid::from_raw).collect()
}

/// An exit status as shells count it.
pub(super) fn code_of(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn words_survive_the_pipe() {
        for word in [Word::Until(u64::MAX), Word::Signal(15), Word::Kill] {
            assert_eq!(Word::decode(word.encode()), Some(word));
        }
        assert_eq!(Word::decode([0; WORD]), None);
    }

    #[test]
    fn descendants_are_found_and_killed() {
        let mut child = Command::new("sh").args(["-c", "sleep 60 & sleep 60 & wait"]).spawn().unwrap();
        let root = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let since = std::time::Instant::now();
        while descendants(root).len() < 2 {
            assert!(since.elapsed() < Duration::from_secs(10));
            std::thread::sleep(PASS);
        }
        let below = descendants(root);
        kill_below(root);
        child.wait().unwrap();
        assert_eq!(below.len(), 2);
    }
}
