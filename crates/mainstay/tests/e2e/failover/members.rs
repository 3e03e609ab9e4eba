//! Three members as processes on ports of their own, and ways to break them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tempfile::TempDir;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use crate::cluster::{MAINSTAY, PATIENCE};
use crate::control_plane::ControlPlane;

const PASSWORD: &str = "a password with 'quotes'";

/// Where PostgreSQL's programs are, if anywhere.
pub fn installed() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.filter_map(Result::ok);
    versions.map(|it| it.path().join("bin")).filter(|it| it.join("postgres").exists()).max()
}

/// Whether a process is there and not a zombie.
pub fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

struct Member {
    steward: Option<Child>,
    steward_port: u16,
    port: u16,
}

/// The members, their control plane and their directory; all of it ends with this.
pub struct Members {
    pub plane: ControlPlane,
    members: Vec<Member>,
    programs: PathBuf,
    frozen: Vec<i32>,
    directory: TempDir,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Members {
    pub fn start(programs: &Path, count: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // The servers run as another user.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let plane = ControlPlane::start(&directory.path().join("plane"), &[]);
        fs::write(directory.path().join("password"), PASSWORD).unwrap();
        fs::write(directory.path().join("secret"), "shared by the stewards").unwrap();
        let member = |_| Member { steward: None, steward_port: free_port(), port: free_port() };
        let members = (0..count).map(member).collect();
        let mut all = Self { plane, members, programs: programs.to_owned(), frozen: Vec::new(), directory };
        all.start_missing();
        all.until_whole("the beginning");
        all.query("read-write", "CREATE TABLE ledger (id bigint PRIMARY KEY)").unwrap();
        all
    }

    fn path(&self, index: usize, name: &str) -> PathBuf {
        self.directory.path().join(format!("db-{index}")).join(name)
    }

    /// Starts every steward that does not run.
    pub fn start_missing(&mut self) {
        for index in 0..self.members.len() {
            if self.members[index].steward.is_none() {
                self.members[index].steward = Some(self.spawn(index));
            }
        }
    }

    fn spawn(&self, index: usize) -> Child {
        let member = &self.members[index];
        let folder = self.path(index, "");
        fs::create_dir_all(&folder).unwrap();
        let postgres = User::from_name("postgres").unwrap().expect("Debian's package makes the user");
        std::os::unix::fs::chown(&folder, Some(postgres.uid.as_raw()), Some(postgres.gid.as_raw())).unwrap();
        let log = File::options().create(true).append(true).open(self.path(index, "log")).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", MAINSTAY, "steward", "--lease", "db", "--no-pod"]);
        command.arg("--member").arg(format!("db-{index}"));
        command.arg("--user").arg(format!("{}:{}", postgres.uid, postgres.gid));
        command.arg("--kubeconfig").arg(self.plane.directory.join("kubeconfig"));
        command.arg("--listen").arg(format!("127.0.0.1:{}", member.steward_port));
        command.arg("--port").arg(member.port.to_string()).args(["--address", "127.0.0.1"]);
        command.arg("--data").arg(self.path(index, "data")).arg("--socket").arg(&folder);
        command.arg("--programs").arg(&self.programs);
        command.arg("--password-file").arg(self.directory.path().join("password"));
        command.arg("--secret-file").arg(self.directory.path().join("secret"));
        // Small, and no slower than it must be: three of them share this machine.
        for parameter in ["shared_buffers=16MB", "max_connections=30", "max_wal_size=256MB"] {
            command.args(["--parameter", parameter]);
        }
        for (other, it) in self.members.iter().enumerate().filter(|(other, _)| *other != index) {
            let peer = format!("db-{other}=127.0.0.1:{},127.0.0.1:{}", it.steward_port, it.port);
            command.arg("--peer").arg(peer);
        }
        command.env("MAINSTAY_LOG", "info,mainstay_failover=debug");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    /// How clients reach them: all hosts, and who of them is wanted.
    pub fn conninfo(&self, wanted: &str) -> String {
        let ports: Vec<_> = self.members.iter().map(|it| it.port.to_string()).collect();
        let hosts = vec!["127.0.0.1"; ports.len()].join(",");
        let password = PASSWORD.replace('\'', "\\'");
        format!(
            "host={hosts} port={} user=postgres password='{password}' dbname=postgres connect_timeout=1 target_session_attrs={wanted}",
            ports.join(",")
        )
    }

    /// Rows of a statement, by whoever accepts it.
    pub fn query(&self, wanted: &str, statement: &str) -> Option<Vec<Vec<String>>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let address = self.conninfo(wanted);
        runtime.block_on(async {
            let work = async {
                let (client, connection) = tokio_postgres::connect(&address, NoTls).await.ok()?;
                tokio::spawn(connection);
                let rows = client.simple_query(statement).await.ok()?.into_iter().filter_map(|it| match it {
                    SimpleQueryMessage::Row(row) => {
                        Some((0..row.len()).map(|i| row.get(i).unwrap_or_default().to_owned()).collect())
                    }
                    _ => None,
                });
                Some(rows.collect())
            };
            tokio::time::timeout(Duration::from_secs(5), work).await.ok()?
        })
    }

    /// Every row there is.
    pub fn rows(&self) -> BTreeSet<u64> {
        let rows = self.query("read-write", "SELECT id FROM ledger").expect("the primary answers");
        rows.iter().map(|row| row[0].parse().unwrap()).collect()
    }

    /// Who accepts writes.
    pub fn primary(&self) -> usize {
        let rows = self.query("read-write", "SELECT current_setting('port')").expect("there is a primary");
        self.members.iter().position(|it| it.port.to_string() == rows[0][0]).unwrap()
    }

    /// Somebody who does not.
    pub fn replica(&self) -> usize {
        (self.primary() + 1) % self.members.len()
    }

    /// Waits for a primary with everybody else streaming from it.
    pub fn until_whole(&self, what: &str) {
        let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'quorum'";
        let whole = (self.members.len() - 1).to_string();
        self.until(&format!("all members are there ({what})"), |it| {
            it.query("read-write", streaming).is_some_and(|rows| rows[0][0] == whole)
        });
    }

    pub fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let since = Instant::now();
        while !holds(self) {
            assert!(since.elapsed() < PATIENCE, "waited in vain until {what}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The ends of all logs.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for index in 0..self.members.len() {
            let log = fs::read_to_string(self.path(index, "log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            text += &format!("--- db-{index}\n{}\n", lines[lines.len().saturating_sub(120)..].join("\n"));
        }
        text
    }

    pub fn server_pid(&self, index: usize) -> i32 {
        let text = fs::read_to_string(self.path(index, "data/postmaster.pid")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }

    pub fn kill_server(&mut self, index: usize) {
        kill(Pid::from_raw(self.server_pid(index)), Signal::SIGKILL).unwrap();
    }

    pub fn kill_steward(&mut self, index: usize) {
        let mut steward = self.members[index].steward.take().unwrap();
        steward.kill().unwrap();
        steward.wait().unwrap();
    }

    pub fn kill_all(&mut self) {
        for index in 0..self.members.len() {
            self.kill_steward(index);
        }
    }

    /// SIGSTOP to the server and all its children, and to the steward too.
    pub fn freeze(&mut self, index: usize, steward: bool) {
        let server = self.server_pid(index);
        let children = fs::read_to_string(format!("/proc/{server}/task/{server}/children")).unwrap();
        let mut pids: Vec<i32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        pids.push(server);
        if steward {
            pids.insert(0, self.members[index].steward.as_ref().unwrap().id() as i32);
        }
        for pid in &pids {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGSTOP);
        }
        self.frozen = pids;
    }

    /// SIGCONT to what was frozen.
    pub fn thaw(&mut self) {
        for pid in self.frozen.drain(..) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
        }
    }

    /// Asks for another primary.
    pub fn switchover(&self) {
        let before = self.primary();
        self.plane.k(&["annotate", "lease", "db", "mainstay.dev/switchover="]);
        self.until("another is primary", |it| {
            it.query("read-write", "SELECT current_setting('port')")
                .is_some_and(|rows| rows[0][0] != it.members[before].port.to_string())
        });
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        self.thaw();
        for member in &mut self.members {
            if let Some(mut steward) = member.steward.take() {
                let _ = steward.kill();
                let _ = steward.wait();
            }
        }
    }
}
