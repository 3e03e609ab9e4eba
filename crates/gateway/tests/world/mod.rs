//! A gateway as a process of its own, endpoints as threads, and a client that says exactly what it is told to.
#![allow(dead_code, clippy::unwrap_used, clippy::format_collect)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway that ends with the test.
pub(crate) struct Gateway {
    child: Child,
    pub(crate) port: u16,
    pub(crate) admin: SocketAddr,
    pub(crate) directory: tempfile::TempDir,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that is free now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().unwrap().parent().unwrap().join("examples/stand_alone");
    assert!(built.exists(), "{} is missing: cargo builds it with the tests of this package", built.display());
    built
}

/// A Gateway with one HTTP listener and a route `/` to a Backend of these endpoints, as YAML; `more` follows.
pub(crate) fn plain(port: u16, endpoints: &[SocketAddr], more: &str) -> String {
    let endpoints: String = endpoints.iter().map(|it| format!("  - {{address: \"{it}\"}}\n")).collect();
    let endpoints =
        if endpoints.is_empty() { "  endpoints: []\n".to_owned() } else { format!("  endpoints:\n{endpoints}") };
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g}}\nspec:\n  gatewayClassName: mainstay\n  listeners:\n  - {{name: http, port: {port}, protocol: HTTP}}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec:\n  parentRefs: [{{name: g}}]\n  rules:\n  - name: all\n    backendRefs: [{{group: mainstay.dev, kind: Backend, name: b}}]\n---\n\
         apiVersion: mainstay.dev/v1alpha1\nkind: Backend\nmetadata: {{name: b}}\nspec:\n{endpoints}---\n{more}"
    )
}

/// A policy on the route of [`plain`].
pub(crate) fn policy(sections: &str) -> String {
    format!(
        "apiVersion: mainstay.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p}}\nspec:\n  targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}}]\n{sections}"
    )
}

impl Gateway {
    /// Starts a gateway with this configuration and waits until it is ready.
    pub(crate) fn start(port: u16, configuration: &str) -> Self {
        Self::start_with(port, configuration, &[])
    }

    /// The same with variables in its environment.
    pub(crate) fn start_with(port: u16, configuration: &str, variables: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("gateway.yaml"), configuration).unwrap();
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = Command::new(program());
        command.args(["2", &admin.to_string()]).arg(directory.path()).stdin(Stdio::null());
        command.envs(variables.iter().copied());
        command.stderr(fs::File::create(directory.path().join("log")).unwrap());
        let gateway = Self { child: command.spawn().unwrap(), port, admin, directory };
        gateway.wait(|gateway| gateway.admin("GET", "/readyz").starts_with("HTTP/1.1 200"));
        gateway
    }

    /// Starts a gateway with [`plain`].
    pub(crate) fn plain(endpoints: &[SocketAddr], more: &str) -> Self {
        let port = free_port();
        Self::start(port, &plain(port, endpoints, more))
    }

    /// Writes another configuration; it is live when this returns.
    pub(crate) fn reconfigure(&self, configuration: &str) {
        let version = |gateway: &Self| gateway.metric("configuration_version");
        let before = version(self);
        let file = self.directory.path().join("next");
        fs::write(&file, configuration).unwrap();
        fs::rename(file, self.directory.path().join("gateway.yaml")).unwrap();
        self.wait(|gateway| version(gateway) > before);
    }

    /// Waits until a condition holds.
    pub(crate) fn wait(&self, condition: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < end, "waited in vain; the gateway's log:\n{}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Waits until the process has ended by itself; whether it did so well.
    pub(crate) fn ended(&mut self) -> bool {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status.success(),
                None if Instant::now() > end => return false,
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks the admin; the whole answer, or nothing.
    pub(crate) fn admin(&self, method: &str, path: &str) -> String {
        let Ok(mut stream) = TcpStream::connect(self.admin) else { return String::new() };
        let _ = write!(stream, "{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    /// The sum of a metric over its labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.admin("GET", "/metrics");
        let ours = text.lines().filter(|line| line.contains(name) && !line.starts_with('#'));
        ours.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    pub(crate) fn connect(&self) -> Conversation {
        Conversation::to(SocketAddr::from(([127, 0, 0, 1], self.port)))
    }

    /// One GET on a connection of its own.
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n"))
    }

    /// One request on a connection of its own, written out.
    pub(crate) fn send(&self, request: &str) -> Answer {
        let mut conversation = self.connect();
        conversation.write(request.as_bytes());
        conversation.answer(request.starts_with("HEAD"))
    }
}

/// A connection.
pub(crate) struct Conversation(pub(crate) BufReader<TcpStream>);

/// An answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Conversation {
    pub(crate) fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap_or(0);
        line.trim_end().to_owned()
    }

    fn headers(&mut self) -> Vec<(String, String)> {
        std::iter::from_fn(|| {
            let line = self.line();
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect()
    }

    /// Reads an answer; status 0 if the connection was closed instead.
    pub(crate) fn answer(&mut self, head_only: bool) -> Answer {
        let status = self.line();
        let mut answer = Answer {
            status: status.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0),
            ..Answer::default()
        };
        answer.headers = self.headers();
        if head_only || matches!(answer.status, 0 | 100..=199 | 204 | 304) {
            return answer;
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = usize::from_str_radix(&self.line(), 16).unwrap();
                if size == 0 {
                    answer.trailers = self.headers();
                    return answer;
                }
                let mut chunk = vec![0; size];
                self.0.read_exact(&mut chunk).unwrap();
                answer.body.extend_from_slice(&chunk);
                self.line();
            }
        }
        match answer.header("content-length").and_then(|it| it.parse().ok()) {
            Some(length) => {
                answer.body.resize(length, 0);
                self.0.read_exact(&mut answer.body).unwrap();
            }
            None => drop(self.0.read_to_end(&mut answer.body).unwrap()),
        }
        answer
    }
}

/// An endpoint that ends with the test.
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) requests: Arc<AtomicU32>,
    connections: Arc<AtomicU32>,
}

/// What an endpoint does with a request: its head as text, and the connection behind it. `false` closes the connection.
pub(crate) type Handler = fn(&str, &mut BufReader<TcpStream>) -> bool;

impl Endpoint {
    /// Starts an endpoint.
    pub(crate) fn start(handler: Handler) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicU32::new(0));
        let connections = Arc::new(AtomicU32::new(0));
        let (counter, opened) = (requests.clone(), connections.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                opened.fetch_add(1, Ordering::Relaxed);
                let counter = counter.clone();
                thread::spawn(move || {
                    let mut stream = BufReader::new(stream);
                    while let Some(head) = read_head(&mut stream) {
                        counter.fetch_add(1, Ordering::Relaxed);
                        if !handler(&head, &mut stream) {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, requests, connections }
    }

    /// Connections that were opened to it.
    pub(crate) fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }
}

fn read_head(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).unwrap_or(0) == 0 {
            return None;
        }
    }
    Some(head)
}

/// The value of a header in a head.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

/// Reads a request's body, whatever its framing.
pub(crate) fn read_body(head: &str, stream: &mut BufReader<TcpStream>) -> Vec<u8> {
    let mut body = Vec::new();
    if header(head, "transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            let size = usize::from_str_radix(line.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk).unwrap();
            if size == 0 {
                return body;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }
    let length = header(head, "content-length").and_then(|it| it.parse().ok()).unwrap_or(0);
    body.resize(length, 0);
    stream.read_exact(&mut body).unwrap();
    body
}

/// Answers with a text.
pub(crate) fn reply(stream: &mut BufReader<TcpStream>, status: &str, headers: &str, body: &[u8]) -> bool {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    stream.get_mut().write_all(&[head.as_bytes(), body].concat()).is_ok()
}

/// Answers with the request's head and body.
pub(crate) fn echo(head: &str, stream: &mut BufReader<TcpStream>) -> bool {
    let body = read_body(head, stream);
    reply(stream, "200 OK", "", &[head.as_bytes(), &body].concat())
}
