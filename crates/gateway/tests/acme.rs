//! Certificates from a real ACME server: Debian's `pebble`, which asks this gateway for the answers to its challenges, and
//! `pebble-challtestsrv`, which tells it where names are.
#![allow(clippy::unwrap_used)]

mod world;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::ring::default_provider;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;

use world::{Endpoint, Gateway, PATIENCE, free_port, reply};

/// A process that ends with its value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An authority, and what tells it addresses.
struct Authority {
    _processes: [Running; 2],
    _directory: tempfile::TempDir,
    port: u16,
    management: u16,
    names: u16,
    /// The authority of its own certificate.
    ca: String,
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn start(program: &str, arguments: &[String], log: &Path, port: u16) -> Running {
    let log = fs::File::create(log).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).env("PEBBLE_VA_NOSLEEP", "1").stdin(Stdio::null());
    command.stdout(log.try_clone().unwrap()).stderr(log);
    let child = command.spawn();
    let running = Running(child.unwrap_or_else(|error| panic!("{program}: {error}; apt-get install pebble")));
    let end = Instant::now() + PATIENCE;
    while TcpStream::connect(local(port)).is_err() {
        assert!(Instant::now() < end, "{program} does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    running
}

impl Authority {
    /// Starts one that asks for challenges at `http_port` and gives certificates for so many seconds.
    fn start(http_port: u16, validity_s: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        fs::write(file("ca.pem"), made.cert.pem()).unwrap();
        fs::write(file("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let (port, management, dns, names) = (free_port(), free_port(), free_port(), free_port());
        let configuration = serde_json::json!({"pebble": {
            "listenAddress": local(port), "managementListenAddress": local(management),
            "certificate": file("ca.pem"), "privateKey": file("key.pem"),
            "httpPort": http_port, "tlsPort": 1, "ocspResponderURL": "", "externalAccountBindingRequired": false,
            "certificateValidityPeriod": validity_s,
        }});
        fs::write(file("pebble.json"), configuration.to_string()).unwrap();
        let of = |list: &[&str]| list.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let (dns, at) = (local(dns).to_string(), local(names).to_string());
        let asked = ["-dns01", &dns, "-management", &at, "-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""];
        let off = ["-http01", "", "-https01", "", "-tlsalpn01", ""];
        let teller = start("pebble-challtestsrv", &of(&[&asked[..], &off[..]].concat()), &file("names.log"), names);
        let configuration = file("pebble.json").to_string_lossy().into_owned();
        let pebble = start("pebble", &of(&["-config", &configuration, "-dnsserver", &dns]), &file("pebble.log"), port);
        Self { _processes: [teller, pebble], _directory: directory, port, management, names, ca: made.cert.pem() }
    }

    /// Has a name lead to an address where nobody is.
    fn mislead(&self, host: &str) {
        let mut stream = TcpStream::connect(local(self.names)).unwrap();
        let body = format!("{{\"host\":\"{host}.\",\"addresses\":[\"127.0.0.9\"]}}");
        write!(stream, "POST /add-a HTTP/1.0\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 200 "), "{answer}");
    }

    /// The root of what it gives, as PEM.
    fn root(&self) -> String {
        let text = get(self.management, "127.0.0.1", "/roots/0", &self.ca).unwrap().1;
        text.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// A gateway that has certificates from here, for these listeners: name and host of each.
    fn gateway(&self, http: u16, https: u16, listeners: &[(&str, &str)], endpoint: SocketAddr, state: &Path) -> Gateway {
        let listeners: Vec<String> = listeners
            .iter()
            .map(|(name, host)| {
                format!("  - {{name: {name}, port: {https}, protocol: HTTPS, hostname: {host}, tls: {{certificateRefs: [{{name: {name}-tls}}]}}}}\n")
            })
            .collect();
        let listeners = format!("  listeners:\n{}", listeners.concat());
        let ca: String = self.ca.lines().flat_map(|line| ["    ", line, "\n"]).collect();
        let more = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca}}\ndata:\n  ca.crt: |\n{ca}---\n\
             apiVersion: mainstay.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: acme}}\nspec:\n  targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: g}}]\n  acme: {{server: 'https://127.0.0.1:{}/dir', email: ops@example.com, caCertificateRefs: [{{name: ca}}]}}\n",
            self.port
        );
        let configuration = world::plain(http, &[endpoint], &more).replacen("  listeners:\n", &listeners, 1);
        Gateway::start_with(http, &configuration, &[("STATE", &state.to_string_lossy())])
    }
}

/// One GET over TLS by somebody who believes one authority: the certificate that was shown, and the whole answer.
fn get(port: u16, host: &str, path: &str, ca: &str) -> Option<(CertificateDer<'static>, String)> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let config = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let connection = ClientConnection::new(Arc::new(config.with_no_client_auth()), name).unwrap();
    let tcp = TcpStream::connect(local(port)).ok()?;
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = StreamOwned::new(connection, tcp);
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let shown = stream.conn.peer_certificates()?.first()?.clone().into_owned();
    Some((shown, String::from_utf8_lossy(&answer).into_owned()))
}

fn certificates(gateway: &Gateway) -> Vec<Value> {
    let answer = gateway.admin("GET", "/config");
    let body = answer.split_once("\r\n\r\n").map_or("", |it| it.1);
    serde_json::from_str::<Value>(body).ok().and_then(|it| it["certificates"].as_array().cloned()).unwrap_or_default()
}

fn files(state: &Path) -> Vec<PathBuf> {
    fs::read_dir(state).map(|list| list.flatten().map(|it| it.path()).collect()).unwrap_or_default()
}

#[test]
fn a_certificate_is_obtained_served_kept_and_renewed() {
    let (http, https) = (free_port(), free_port());
    let authority = Authority::start(http, 9);
    let endpoint = Endpoint::start(|_, stream| reply(stream, "200 OK", "", b"good"));
    let state = tempfile::tempdir().unwrap();
    let state = state.path().join("state");
    let listeners = [("shop", "Shop.example"), ("api", "api.example")];
    let gateway = authority.gateway(http, https, &listeners, endpoint.address, &state);
    gateway.wait(|it| it.metric("certificate_orders_total{result=\"good\"}") >= 2.0);
    let root = authority.root();
    let (first, answer) = get(https, "shop.example", "/", &root).unwrap();
    assert!(answer.ends_with("good"), "{answer}");
    assert!(get(https, "api.example", "/", &root).unwrap().1.ends_with("good"));
    let shown = certificates(&gateway);
    assert!(shown.len() == 2 && shown.iter().all(|it| it["failures"] == 0 && it["notAfter"].is_string()), "{shown:?}");
    // The key is nobody else's to read, and other paths of the challenge's folder are not the gateway's own.
    for file in files(&state) {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
    assert_eq!(gateway.get("/.well-known/acme-challenge/a.b").text(), "good");
    // A new process has it from the start, without asking anybody.
    drop(gateway);
    let gateway = authority.gateway(http, https, &listeners, endpoint.address, &state);
    gateway.wait(|_| get(https, "shop.example", "/", &root).is_some_and(|it| it.1.ends_with("good")));
    // Two thirds of nine seconds later there is another.
    gateway.wait(|_| get(https, "shop.example", "/", &root).is_some_and(|(shown, _)| shown != first));
    assert_eq!(gateway.metric("certificate_orders_total{result=\"bad\"}"), 0.0);
}

#[test]
fn a_failure_is_said_and_not_repeated_at_once() {
    let (http, https) = (free_port(), free_port());
    let authority = Authority::start(http, 3600);
    authority.mislead("lost.example");
    let endpoint = Endpoint::start(|_, stream| reply(stream, "200 OK", "", b"good"));
    let state = tempfile::tempdir().unwrap();
    let listeners = [("lost", "lost.example"), ("shop", "shop.example")];
    let failed = |gateway: &Gateway| certificates(gateway).iter().any(|it| it["failures"] == 1);
    for _ in 0..2 {
        let gateway = authority.gateway(http, https, &listeners, endpoint.address, state.path());
        // What fails does not keep the others from being had.
        let has_other = |it: &Gateway| it.metric("certificate_not_after_seconds{secret=\"default/shop-tls\"}") > 0.0;
        gateway.wait(|it| failed(it) && has_other(it));
        let shown = certificates(&gateway);
        let lost = shown.iter().find(|it| it["secret"] == "default/lost-tls").unwrap();
        let error = lost["error"].as_str().unwrap();
        assert!(error.contains("lost.example") && error.contains("refuse"), "{error}");
        assert!(gateway.admin("GET", "/config").contains("1 attempts have failed"));
        // The other name proves that the work goes on; the failure waits, and so it does after a restart.
        gateway.wait(|it| it.metric("certificate_failures{secret=\"default/shop-tls\"}") == 0.0);
    }
}
