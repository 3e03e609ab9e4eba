//! A Database of three MariaDB servers: what was committed outlives the primary, and a former primary comes back as a replica.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::poll::{PollFd, PollFlags, poll};

use super::PATIENT;
use super::members::Members;
use super::simple::{Client, matrix, trial};

/// Small: three of them share this machine.
const PARAMETERS: &str = "{innodb_buffer_pool_size: 16M}";
/// For an answer, in milliseconds.
const ANSWER_MS: u16 = 1000;

/// MariaDB's own client, which keeps its connection; it ends with the first error.
struct Shell {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Shell {
    /// The one line that these statements answer.
    fn ask(&mut self, statements: &str) -> Option<String> {
        self.child.stdin.as_mut()?.write_all(format!("{statements}\n").as_bytes()).ok()?;
        let mut waiting = [PollFd::new(self.answers.get_ref().as_fd(), PollFlags::POLLIN)];
        poll(&mut waiting, ANSWER_MS).ok().filter(|ready| *ready > 0)?;
        let mut line = String::new();
        self.answers.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
        Some(line.trim_end().to_owned())
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Client for Shell {
    fn open(members: &Members) -> Option<Self> {
        let (address, password) = members.service();
        let mut shell = Command::new("mariadb");
        shell.args([
            "--no-defaults",
            "--batch",
            "--skip-column-names",
            "--unbuffered",
            "--connect-timeout=1",
            "-u",
            "root",
        ]);
        shell.args(["-h", address, "-P", "3306"]).env("MYSQL_PWD", password);
        let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut shell = Self { child, answers };
        let table = "CREATE DATABASE IF NOT EXISTS ledger; CREATE TABLE IF NOT EXISTS ledger.rows (id BIGINT PRIMARY KEY); SELECT 1;";
        shell.ask(table).is_some_and(|it| it == "1").then_some(shell)
    }

    fn write(&mut self, key: u64) -> bool {
        self.ask(&format!("INSERT INTO ledger.rows VALUES ({key}); SELECT {key};")) == Some(key.to_string())
    }

    fn has(&mut self, key: u64) -> bool {
        self.ask(&format!("SELECT COUNT(*) FROM ledger.rows WHERE id = {key};")).is_some_and(|it| it == "1")
    }
}

#[test]
#[ignore = "takes minutes: `cargo xtask bench failover` runs it"]
fn the_matrix() {
    matrix::<Shell>("mysql", &Members::of("mysql", &format!("  parameters: {PARAMETERS}\n")));
}

#[test]
fn mariadb_outlives_its_primary() {
    let members = Members::of("mysql", &format!("  parameters: {PARAMETERS}\n{PATIENT}"));
    trial::<Shell>("mysql-server-killed", &members, 0, |it| it.kill_server(&it.primary()));
    trial::<Shell>("mysql-switchover", &members, 1_000_000, |it| {
        it.db(&["switchover", &it.name]);
    });
    trial::<Shell>("mysql-all-killed", &members, 2_000_000, Members::kill_all);
    members.until_healthy("the end");
}
