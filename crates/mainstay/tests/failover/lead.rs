//! `mainstay lead` with real processes and a real control plane: killed, stopped, handed over, cut off. Never two at once.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::server::{MAINSTAY, Server, bound, pid, wait};

/// What is led: it notes twenty times a second that it runs, and who started it, and leaves a child of its own behind.
const PROGRAM: &str = r#"(while :; do echo "$(date +%s%N) $MAINSTAY_LEAD_IDENTITY $MAINSTAY_LEAD_EPOCH" >> "$LEDGER"; sleep 0.05; done) &
trap 'exit 0' TERM; while :; do sleep 0.05; done"#;

impl Server {
    fn holder(&self, name: &str, more: &[&str]) -> Holder {
        let ledger = self.directory.join("ledger");
        let log = self.directory.join(format!("{name}.log"));
        let kubeconfig = self.kubeconfig();
        let mut command = bound(MAINSTAY);
        command.args(["lead", "-o", "json", "--lease", "default/job", "--identity", name]).args(more);
        command.args(["--", "sh", "-c", PROGRAM]).env("KUBECONFIG", kubeconfig).env("LEDGER", ledger);
        let child = command.stdin(Stdio::null()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        Holder { child, name: name.to_owned(), log }
    }

    /// The ledger's lines: nanoseconds, holder, epoch.
    fn ledger(&self) -> Vec<(u128, String, u64)> {
        let Ok(file) = File::open(self.directory.join("ledger")) else { return Vec::new() };
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        let parts = lines.map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        parts.filter_map(|it| Some((it.first()?.parse().ok()?, it.get(1)?.clone(), it.get(2)?.parse().ok()?))).collect()
    }

    /// Waits until somebody other than `not` runs the program; who.
    fn leader(&self, not: &str) -> String {
        let from = self.ledger().len();
        let mut found = String::new();
        wait("another leads", || {
            let ledger = self.ledger();
            let other = ledger.iter().skip(from).find(|(_, who, _)| not.is_empty() || !who.starts_with(not));
            found = other.map(|(_, who, _)| who.clone()).unwrap_or_default();
            !found.is_empty()
        });
        found
    }

    /// Every epoch's lines lie together, and later ones come later; the longest gap.
    fn gap(&self) -> Duration {
        let ledger = self.ledger();
        let mut gap = 0;
        for (before, after) in ledger.iter().zip(ledger.iter().skip(1)) {
            assert!(before.2 <= after.2, "epoch {} wrote after epoch {}: two at once", before.2, after.2);
            assert!(before.2 != after.2 || before.1 == after.1, "two holders of epoch {}", before.2);
            gap = gap.max(after.0.saturating_sub(before.0));
        }
        Duration::from_nanos(u64::try_from(gap).unwrap())
    }
}

struct Holder {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Holder {
    fn signal(&self, signal: Signal) {
        kill(pid(&self.child), signal).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn of<'a>(holders: &'a [Holder], leader: &str) -> &'a Holder {
    holders.iter().find(|holder| leader.starts_with(&holder.name)).unwrap()
}

#[test]
fn killed_stopped_and_cut_off_holders_never_run_beside_another() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path());
    let holders: Vec<_> = ["a", "b", "c"].iter().map(|name| server.holder(name, &[])).collect();
    let first = server.leader("");

    // Stopped: its guard kills the program; when it goes on it stands by, and knows.
    of(&holders, &first).signal(Signal::SIGSTOP);
    let second = server.leader(&first);
    of(&holders, &first).signal(Signal::SIGCONT);
    wait("it knows", || of(&holders, &first).log().contains(r#""event":"lost""#));

    // Killed: the program, and what that left behind, dies with it.
    of(&holders, &second).signal(Signal::SIGKILL);
    let third = server.leader(&second);
    let gap = server.gap();
    assert!(gap < Duration::from_secs(4), "{gap:?}");

    // No API: it stops by itself, and goes on when there is one again.
    server.signal(Signal::SIGSTOP);
    wait("it gives up", || of(&holders, &third).log().contains(r#""event":"lost""#));
    let lines = server.ledger().len();
    server.signal(Signal::SIGCONT);
    wait("it runs again", || server.ledger().len() > lines);
    println!("longest gap after SIGSTOP and SIGKILL of the holder: {gap:?}; all: {:?}", server.gap());
}

#[test]
fn a_holder_hands_over_when_told_to_stop() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path());
    let notes = directory.path().join("notes");
    let hook = |word: &str| format!("echo {word} $MAINSTAY_LEAD_LEASE $MAINSTAY_LEAD_EPOCH >> {}", notes.display());
    let mut first = server.holder("first", &["--pre", &hook("pre"), "--post", &hook("post")]);
    let leader = server.leader("");
    let second = server.holder("second", &[]);
    wait("the second stands by", || second.log().contains(r#""event":"standby""#));
    first.signal(Signal::SIGTERM);
    assert_eq!(first.code(), Some(0), "{}", first.log());
    server.leader(&leader);
    assert_eq!(fs::read_to_string(&notes).unwrap(), "pre default/job 1\npost default/job 1\n");
    let gap = server.gap();
    assert!(gap < Duration::from_secs(1), "{gap:?}");
    println!("longest gap at a hand-over: {gap:?}");
}

#[test]
fn the_code_of_the_program_is_the_code_of_lead() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path());
    let kubeconfig = server.kubeconfig();
    let codes = [(&["sh", "-c", "exit 7"][..], 7), (&["sh", "-c", "kill -9 $$"], 137), (&["/no/such/program"], 127)];
    for (command, code) in codes {
        let mut lead = Command::new(MAINSTAY);
        lead.args(["lead", "--lease", "default/code", "--"]).args(command).env("KUBECONFIG", &kubeconfig);
        assert_eq!(lead.output().unwrap().status.code(), Some(code), "{command:?}");
    }
    drop(server);
}
