//! A cluster for one test, and what tests do with it.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The binary under test.
pub const MAINSTAY: &str = env!("CARGO_BIN_EXE_mainstay");
/// How long anything may take that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running instance; dropping it takes it down.
pub struct Cluster {
    directory: tempfile::TempDir,
    pub api: String,
    pub network: String,
}

impl Cluster {
    /// A place for an instance that is not started yet.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let number = 100 + (std::process::id() + NEXT.fetch_add(1, Ordering::Relaxed)) % 100;
        let directory = tempfile::Builder::new().prefix("mainstay-e2e-").tempdir().unwrap();
        Self { directory, api: format!("127.0.0.1:{port}"), network: format!("10.{number}.0.0/16") }
    }

    /// A running instance with these manifests, all Ready.
    pub fn up(files: &[&str]) -> Self {
        let cluster = Self::new();
        cluster.start(files);
        cluster
    }

    /// Starts it, or starts it again.
    pub fn start(&self, files: &[&str]) {
        let output = self.try_start(files, &[]);
        assert!(output.status.success(), "mainstay up failed:\n{}\n{}", text(&output), self.logs());
    }

    pub fn try_start(&self, files: &[&str], more: &[&str]) -> Output {
        let mut command = Command::new(MAINSTAY);
        command
            .args(["up", "--detach", "--api", &self.api, "--network", &self.network])
            .arg("--data-dir")
            .arg(self.dir());
        for file in files {
            command.arg("-f").arg(example(file));
        }
        command.args(more).output().unwrap()
    }

    pub fn down(&self) {
        let output = self.mainstay(&["down"]);
        assert!(output.status.success(), "mainstay down failed:\n{}", text(&output));
    }

    pub fn dir(&self) -> &Path {
        self.directory.path()
    }

    /// Runs `mainstay` on this instance.
    pub fn mainstay(&self, args: &[&str]) -> Output {
        Command::new(MAINSTAY).args(args).arg("--data-dir").arg(self.dir()).output().unwrap()
    }

    /// Runs `mainstay` on this instance and expects success.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.mainstay(args);
        assert!(output.status.success(), "mainstay {args:?} failed:\n{}", text(&output));
        text(&output)
    }

    /// A `kubectl` command for this instance.
    pub fn kubectl(&self, args: &[&str]) -> Command {
        let program = std::env::var_os("MAINSTAY_KUBECTL").map_or_else(|| PathBuf::from("kubectl"), PathBuf::from);
        let mut command = Command::new(program);
        // Its cache of discovery must not be another cluster's.
        command
            .env("KUBECONFIG", self.dir().join("kubeconfig"))
            .env("KUBECACHEDIR", self.dir().join("kubectl-cache"))
            .args(args);
        command
    }

    /// `kubectl` with the terminal that `-it` asks for, as a line for the shell.
    ///
    /// `timeout` stays in the terminal's foreground group, whether the shell that `script` starts makes way for it
    /// or not: a group of its own would be stopped as soon as kubectl touches the terminal.
    pub fn on_terminal(&self, line: &str) -> Command {
        let kubectl = self.kubectl(&[]);
        let line = format!("timeout --foreground 60 {} {line}", kubectl.get_program().to_str().unwrap());
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).env("KUBECONFIG", self.dir().join("kubeconfig"));
        script
    }

    /// Runs `kubectl` and expects success.
    pub fn k(&self, args: &[&str]) -> String {
        let output = self.kubectl(args).output().unwrap();
        assert!(output.status.success(), "kubectl {args:?} failed:\n{}\n{}", text(&output), self.logs());
        text(&output)
    }

    /// Applies manifests in YAML or JSON.
    pub fn apply(&self, manifests: &str) {
        let file = self.dir().join("manifests.yaml");
        std::fs::write(&file, manifests).unwrap();
        self.k(&["apply", "-f", file.to_str().unwrap()]);
    }

    /// Objects as JSON.
    pub fn get(&self, args: &[&str]) -> Value {
        let output = self.kubectl(&[&["get", "-o", "json"], args].concat()).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// The pods of a namespace.
    pub fn pods(&self, namespace: &str) -> Vec<Value> {
        self.get(&["pods", "-n", namespace])["items"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until the condition holds.
    pub fn wait(&self, what: &str, condition: impl Fn() -> bool) -> Duration {
        let since = Instant::now();
        while !condition() {
            if since.elapsed() > PATIENCE {
                let state = self.kubectl(&["get", "pods,nodes", "-A", "-o", "wide"]).output().unwrap();
                panic!("waited in vain until {what}\n{}\n{}", text(&state), self.logs());
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        since.elapsed()
    }

    /// The process of a role.
    pub fn pid(&self, role: &str) -> i32 {
        let path = self.dir().join("run").join(format!("{role}.pid"));
        std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
    }

    /// The process of a role, if it has one: one that was killed may not have been started again yet.
    pub fn try_pid(&self, role: &str) -> Option<i32> {
        let path = self.dir().join("run").join(format!("{role}.pid"));
        let pid: i32 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        command.contains(self.dir().to_str()?).then_some(pid)
    }

    /// SIGKILL to the process of a role.
    pub fn kill(&self, role: &str) {
        let pid = nix::unistd::Pid::from_raw(self.pid(role));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    /// The load-balancer address of the shop's front.
    pub fn front(&self) -> String {
        let service = self.get(&["service", "front", "-n", "shop"]);
        let address = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().unwrap().to_owned();
        format!("{address}:{}", service["spec"]["ports"][0]["port"])
    }

    fn logs(&self) -> String {
        let mut all = String::new();
        for role in ["supervisor", "server", "node-1", "node-2", "node-3"] {
            let log = std::fs::read_to_string(self.dir().join("logs").join(format!("{role}.log"))).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(15)..];
            all.push_str(&format!("--- {role}\n{}\n", tail.join("\n")));
        }
        all
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.dir().join("instance.json").exists() {
            let _ = self.mainstay(&["down"]);
        }
    }
}

/// The path of an example, from the repository's root; absolute paths stay.
pub fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// What a command printed.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// GET over a fresh connection; `None` unless the answer is 200 within a second.
pub fn http_get(address: &str, path: &str) -> Option<String> {
    http_ask(address, address, path).ok()
}

/// GET of a host over a fresh connection: the body of a 200 within a second.
///
/// # Errors
/// Another answer's head, or what went wrong.
pub fn http_ask(address: &str, host: &str, path: &str) -> Result<String, String> {
    let limit = Duration::from_secs(1);
    let failed = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), limit).map_err(failed)?;
    stream.set_read_timeout(Some(limit)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").map_err(failed)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("half an answer: {answer:?}"))?;
    if head.split(' ').nth(1) == Some("200") { Ok(body.to_owned()) } else { Err(head.to_owned()) }
}

/// Whether a pod is Ready.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// How many pods are Ready and not ending.
pub fn ready(pods: &[Value]) -> usize {
    pods.iter().filter(|pod| is_ready(pod) && pod["metadata"]["deletionTimestamp"].is_null()).count()
}

/// Pod names with the ids and restart counts of their containers.
pub fn containers(pods: &[Value]) -> Vec<String> {
    let mut all: Vec<String> = pods
        .iter()
        .map(|pod| {
            let container = &pod["status"]["containerStatuses"][0];
            format!("{} {} {}", pod["metadata"]["name"], container["containerID"], container["restartCount"])
        })
        .collect();
    all.sort();
    all
}
