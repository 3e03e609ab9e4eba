//! A `mainstay server` for one test, and waiting.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub const MAINSTAY: &str = env!("CARGO_BIN_EXE_mainstay");
/// How long anything may take that a test waits for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The control plane; killed when dropped.
pub struct Server {
    child: Child,
    pub directory: PathBuf,
}

impl Server {
    pub fn start(directory: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let data = directory.join("data");
        let log = File::create(directory.join("server.log")).unwrap();
        let mut command = bound(MAINSTAY);
        command.args(["server", "--api", &format!("127.0.0.1:{port}"), "--data-dir"]).arg(&data);
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { child, directory: directory.to_owned() }
    }

    pub fn signal(&self, signal: Signal) {
        kill(pid(&self.child), signal).unwrap();
    }

    /// Where its kubeconfig is, once it is there.
    pub fn kubeconfig(&self) -> PathBuf {
        let path = self.directory.join("data/kubeconfig");
        wait("the kubeconfig is written", || path.exists());
        path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

pub fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A command whose process does not outlive the test, even if that is killed.
pub fn bound(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}
