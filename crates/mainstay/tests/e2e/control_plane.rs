//! A control plane without nodes, for tests of its state.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

use crate::cluster::{MAINSTAY, PATIENCE, text};

/// A `mainstay server --api`, killed when dropped.
pub struct ControlPlane {
    pub directory: PathBuf,
    pub api: String,
    more: Vec<String>,
    child: Option<Child>,
}

impl ControlPlane {
    /// Starts one in `directory` with these further flags, and waits until it is ready.
    pub fn start(directory: &Path, more: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let more = more.iter().map(|flag| (*flag).to_owned()).collect();
        let mut plane = Self { directory: directory.to_owned(), api: format!("127.0.0.1:{port}"), more, child: None };
        plane.restart();
        plane
    }

    /// Starts it again after a kill, and waits until it is ready.
    pub fn restart(&mut self) {
        self.spawn();
        let since = Instant::now();
        // No credentials are needed to ask whether it is ready, only trust.
        while !self.kubectl(&["get", "--raw", "/readyz"]).output().unwrap().status.success() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && since.elapsed() < PATIENCE, "the server does not get ready:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it without waiting.
    pub fn spawn(&mut self) {
        std::fs::create_dir_all(&self.directory).unwrap();
        let log = std::fs::File::options().create(true).append(true).open(self.log_file()).unwrap();
        // It must not outlive a test that is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", MAINSTAY, "server", "--api", &self.api, "--data-dir"]);
        command.arg(&self.directory).args(&self.more);
        self.child = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn log_file(&self) -> PathBuf {
        self.directory.with_extension("log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub fn kubectl(&self, args: &[&str]) -> Command {
        let program = std::env::var_os("MAINSTAY_KUBECTL").map_or_else(|| PathBuf::from("kubectl"), PathBuf::from);
        let mut command = Command::new(program);
        command
            .env("KUBECONFIG", self.directory.join("kubeconfig"))
            .env("KUBECACHEDIR", self.directory.with_extension("cache"))
            .args(args);
        command
    }

    /// Runs `kubectl` and expects success.
    pub fn k(&self, args: &[&str]) -> String {
        expect(&mut self.kubectl(args), &self.log())
    }

    /// Runs `mainstay` on this instance.
    pub fn mainstay(&self, args: &[&str]) -> Output {
        Command::new(MAINSTAY).args(args).arg("--data-dir").arg(&self.directory).output().unwrap()
    }

    /// Runs `mainstay` on this instance and expects success.
    pub fn ok(&self, args: &[&str]) -> String {
        expect(Command::new(MAINSTAY).args(args).arg("--data-dir").arg(&self.directory), &self.log())
    }

    /// An administrator's client.
    pub async fn client(&self) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.directory.join("kubeconfig")).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        Client::try_from(config).unwrap()
    }
}

fn expect(command: &mut Command, log: &str) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?} failed:\n{}\n{log}", text(&output));
    text(&output)
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.kill();
    }
}
