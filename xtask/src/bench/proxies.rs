//! The proxies of the gateway's bench and their endpoints: configured alike, started on a core of their own, ended with their value.
//!
//! Each listens on its port without TLS, and 400 above it with TLS and HTTP/2.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::process::{Failure, Outcome, at, find_program, output};

/// Ports of the endpoints.
pub(super) const ENDPOINTS: [u16; 3] = [19_001, 19_002, 19_003];
/// (proxy, port it listens on).
pub(super) const PROXIES: [(&str, u16); 3] = [("gateway", 18_080), ("haproxy", 18_081), ("nginx", 18_082)];
/// So much above a proxy's port is its port for TLS.
pub(super) const TLS: u16 = 400;
/// Connections that nginx takes.
const CONNECTIONS_MAX: u32 = 12_000;

/// A process that ends with this value.
pub(super) struct Running(pub(super) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// Starts a proxy by its name, on core 0.
pub(super) fn start_proxy(name: &str, binary: &Path, folder: &Path) -> Outcome<Running> {
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).map_err(at(&path)).map(|()| path.to_string_lossy().into_owned())
    };
    certificate(folder)?;
    match name {
        "haproxy" => start("0", &find(name)?, &["-db", "-f", &write("haproxy.cfg", haproxy_cfg(folder))?]),
        "nginx" => start("0", &find(name)?, &["-c", &write("nginx.conf", nginx_conf(folder))?]),
        _ => {
            let configuration = write("gateway.yaml", gateway_yaml(folder)?)?;
            let socket = folder.join("hand-over.sock").to_string_lossy().into_owned();
            let mut arguments =
                vec!["gateway", "--cores", "1", "--address", "127.0.0.1", "--admin", "off", "-f", &configuration];
            if name.contains("hand-over") {
                arguments.extend(["--hand-over", &socket]);
            }
            start("0", binary, &arguments)
        }
    }
}

pub(super) fn find(program: &str) -> Outcome<PathBuf> {
    find_program(program).ok_or_else(|| Failure::Found(format!("{program} is missing; apt-get install {program}")))
}

pub(super) fn start(core: &str, program: &Path, arguments: &[&str]) -> Outcome<Running> {
    let mut command = Command::new("taskset");
    command
        .args(["-c", core])
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let started = command.spawn();
    started.map(Running).map_err(|source| Failure::Start { program: program.display().to_string(), source })
}

pub(super) fn wait_for(name: &str, port: u16) -> Outcome {
    for _ in 0..500 {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(Failure::Found(format!("{name} does not listen on port {port}; is something else there?")))
}

/// What nginx needs to run from a folder of its own.
pub(super) fn nginx_frame(folder: &Path, name: &str, http: &str) -> String {
    let folder = folder.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {folder}/{name}-{kind};\n"))
        .concat();
    format!(
        "daemon off;\nworker_processes 1;\nworker_rlimit_nofile 40000;\npid {folder}/{name}.pid;\nerror_log {folder}/{name}.log crit;\nevents {{ worker_connections {CONNECTIONS_MAX}; }}\nhttp {{\n{temporary}  access_log off;\n  keepalive_requests 100000000;\n{http}}}\n"
    )
}

pub(super) fn endpoint(folder: &Path, port: u16) -> String {
    let server = format!(
        "  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 \"{}\"; }} location = /large {{ root {}; }} }}\n",
        "x".repeat(512),
        folder.display()
    );
    nginx_frame(folder, &format!("endpoint-{port}"), &server)
}

/// One line of configuration for each endpoint.
fn for_each_endpoint(line: impl Fn(u16) -> String) -> String {
    ENDPOINTS.map(line).concat()
}

/// The certificate of all proxies, made when it is first wanted.
fn certificate(folder: &Path) -> Outcome {
    let (chain, key, both) = (folder.join("tls.crt"), folder.join("tls.key"), folder.join("tls.pem"));
    if both.exists() {
        return Ok(());
    }
    let mut openssl = Command::new(find("openssl")?);
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
    openssl.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
    output(openssl.arg("-keyout").arg(&key).arg("-out").arg(&chain).stderr(Stdio::null()))?;
    let read = |file: &Path| fs::read_to_string(file).map_err(at(file));
    fs::write(&both, read(&chain)? + &read(&key)?).map_err(at(&both))
}

fn gateway_yaml(folder: &Path) -> Outcome<String> {
    let indented = |name: &str| {
        let file = folder.join(name);
        let text = fs::read_to_string(&file).map_err(at(&file))?;
        Ok(text.lines().map(|line| format!("    {line}\n")).collect::<Vec<_>>().concat())
    };
    let (chain, key) = (indented("tls.crt")?, indented("tls.key")?);
    let endpoints = for_each_endpoint(|port| format!("  - {{address: \"127.0.0.1:{port}\"}}\n"));
    let (port, tls) = (PROXIES[0].1, PROXIES[0].1 + TLS);
    Ok(format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: bench}}\nspec:\n  gatewayClassName: mainstay\n  listeners:\n  - {{name: http, port: {port}, protocol: HTTP}}\n  - {{name: https, port: {tls}, protocol: HTTPS, tls: {{certificateRefs: [{{name: bench}}]}}}}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {{name: bench}}\nstringData:\n  tls.crt: |\n{chain}  tls.key: |\n{key}---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: all}}\nspec:\n  parentRefs: [{{name: bench}}]\n  rules:\n  - backendRefs: [{{group: mainstay.dev, kind: Backend, name: endpoints}}]\n---\n\
         apiVersion: mainstay.dev/v1alpha1\nkind: Backend\nmetadata: {{name: endpoints}}\nspec:\n  endpoints:\n{endpoints}---\n\
         apiVersion: mainstay.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: all}}\nspec:\n  targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: all}}]\n  rateLimits: [{{requests: 10000000, period: 1s}}]\n  healthCheck: {{http: {{path: /whoami}}, interval: 1s}}\n"
    ))
}

fn haproxy_cfg(folder: &Path) -> String {
    let (port, tls, pem) = (PROXIES[1].1, PROXIES[1].1 + TLS, folder.join("tls.pem"));
    let pem = pem.display();
    let servers = for_each_endpoint(|port| format!("  server s{port} 127.0.0.1:{port} check inter 200ms\n"));
    format!(
        "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  mode http\n  timeout connect 500ms\n  timeout client 60s\n  timeout server 500ms\n  http-reuse always\n  retries 3\n  option redispatch 1\n  retry-on all-retryable-errors\n\
         frontend f\n  bind 127.0.0.1:{port}\n  bind 127.0.0.1:{tls} ssl crt {pem} alpn h2,http/1.1\n  stick-table type ip size 100k expire 30s store http_req_rate(1s)\n  http-request track-sc0 src\n  http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt 10000000 }}\n  option forwardfor\n  default_backend b\n\
         backend b\n  balance roundrobin\n  option httpchk GET /whoami\n{servers}"
    )
}

fn nginx_conf(folder: &Path) -> String {
    let servers = for_each_endpoint(|port| format!("server 127.0.0.1:{port} max_fails=1 fail_timeout=1s; "));
    let (port, tls, folder_shown) = (PROXIES[2].1, PROXIES[2].1 + TLS, folder.display());
    let http = format!(
        "  limit_req_zone $binary_remote_addr zone=a:10m rate=1000000r/s;\n  upstream u {{ {servers}keepalive 128; keepalive_requests 100000000; }}\n  server {{ listen 127.0.0.1:{port} backlog=4096; listen 127.0.0.1:{tls} ssl http2 backlog=4096; ssl_certificate {folder_shown}/tls.crt; ssl_certificate_key {folder_shown}/tls.key; location / {{ limit_req zone=a burst=100000 nodelay; proxy_http_version 1.1; proxy_connect_timeout 500ms; proxy_read_timeout 500ms; proxy_next_upstream error timeout http_500 http_502 http_503 http_504; proxy_set_header Connection \"\"; proxy_set_header X-Forwarded-For $remote_addr; proxy_pass http://u; }} }}\n"
    );
    nginx_frame(folder, "nginx", &http)
}
