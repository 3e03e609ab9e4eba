//! A real etcd, of Debian's `etcd-server`, for one test.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)] // each test uses a part of it

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mainstay_store::{EtcdSettings, EtcdStore};
use tempfile::TempDir;

/// A running etcd of one member, gone when dropped.
pub struct Etcd {
    child: Child,
    pub port: u16,
    peer_port: u16,
    directory: TempDir,
    more: Vec<String>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Etcd {
    /// Starts one, with its data in memory where that can be: these tests are not about its disk.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one with more flags.
    pub fn start_with(more: &[&str]) -> Self {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let directory = tempfile::Builder::new().prefix("mainstay-etcd-").tempdir_in(place).unwrap();
        let (port, peer_port) = (free_port(), free_port());
        let more: Vec<String> = more.iter().map(|flag| (*flag).to_owned()).collect();
        let child = spawn(directory.path(), port, peer_port, &more);
        let mut etcd = Self { child, port, peer_port, directory, more };
        etcd.await_answer();
        etcd
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same data and port.
    pub fn restart(&mut self) {
        self.child = spawn(self.directory.path(), self.port, self.peer_port, &self.more);
        self.await_answer();
    }

    fn await_answer(&mut self) {
        let since = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(self.child.try_wait().unwrap().is_none(), "etcd ended at once: see its output");
            assert!(since.elapsed() < Duration::from_secs(20), "etcd does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn settings(&self, root: &str) -> EtcdSettings {
        EtcdSettings::parse(&format!("etcd://127.0.0.1:{}{root}", self.port)).unwrap()
    }

    /// A store under `root`.
    pub async fn store(&self, root: &str) -> EtcdStore {
        EtcdStore::open(self.settings(root)).await.unwrap()
    }
}

fn spawn(directory: &Path, port: u16, peer_port: u16, more: &[String]) -> Child {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    // It must not outlive a test that is killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "etcd", "--name", "one", "--logger", "zap", "--log-level", "error"]);
    command.arg("--data-dir").arg(directory.join("data"));
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("one={peer}")]);
    command.args(["--heartbeat-interval", "10", "--election-timeout", "100"]).args(more);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("needs etcd of Debian's etcd-server: cargo xtask test --only install")
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
