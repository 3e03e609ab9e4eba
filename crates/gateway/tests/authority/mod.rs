//! A real ACME server, Debian's `pebble`, and `pebble-challtestsrv`, which tells it where names are; and a client that believes
//! what it gives. Shared with the end-to-end tests.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub, missing_docs)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A process that ends with its value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An authority, and what tells it addresses.
pub struct Authority {
    _processes: [Running; 2],
    _directory: tempfile::TempDir,
    /// The URL of its directory.
    pub url: String,
    management: SocketAddr,
    names: SocketAddr,
    /// The authority of its own certificate.
    pub ca: String,
}

fn free_port(on: IpAddr) -> u16 {
    TcpListener::bind((on, 0)).unwrap().local_addr().unwrap().port()
}

fn start(program: &str, arguments: &[&str], log: &Path, address: SocketAddr) -> Running {
    let log = fs::File::create(log).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).env("PEBBLE_VA_NOSLEEP", "1").stdin(Stdio::null());
    command.stdout(log.try_clone().unwrap()).stderr(log);
    let child = command.spawn();
    let running = Running(child.unwrap_or_else(|error| panic!("{program}: {error}; apt-get install pebble")));
    let end = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < end, "{program} does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    running
}

impl Authority {
    /// Starts one here that finds every name at `at`, asks for challenges at that port there, and gives certificates for so many
    /// seconds.
    pub fn start(here: IpAddr, at: &str, http_port: u16, validity_s: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let made = rcgen::generate_simple_self_signed(vec![here.to_string()]).unwrap();
        fs::write(file("ca.pem"), made.cert.pem()).unwrap();
        fs::write(file("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let [address, management, dns, names] = [(); 4].map(|()| SocketAddr::new(here, free_port(here)));
        let configuration = serde_json::json!({"pebble": {
            "listenAddress": address, "managementListenAddress": management,
            "certificate": file("ca.pem"), "privateKey": file("key.pem"),
            "httpPort": http_port, "tlsPort": 1, "ocspResponderURL": "", "externalAccountBindingRequired": false,
            "certificateValidityPeriod": validity_s,
        }});
        fs::write(file("pebble.json"), configuration.to_string()).unwrap();
        let (dns, asked) = (dns.to_string(), names.to_string());
        let asked = ["-dns01", &dns, "-management", &asked, "-defaultIPv4", at, "-defaultIPv6", ""];
        let off = ["-http01", "", "-https01", "", "-tlsalpn01", ""];
        let teller = start("pebble-challtestsrv", &[&asked[..], &off[..]].concat(), &file("names.log"), names);
        let configuration = file("pebble.json").to_string_lossy().into_owned();
        let pebble = start("pebble", &["-config", &configuration, "-dnsserver", &dns], &file("pebble.log"), address);
        let (url, ca) = (format!("https://{address}/dir"), made.cert.pem());
        Self { _processes: [teller, pebble], _directory: directory, url, management, names, ca }
    }

    /// Has a name lead to an address where nobody is.
    pub fn mislead(&self, host: &str) {
        let mut stream = TcpStream::connect(self.names).unwrap();
        let body = format!("{{\"host\":\"{host}.\",\"addresses\":[\"127.0.0.9\"]}}");
        write!(stream, "POST /add-a HTTP/1.0\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 200 "), "{answer}");
    }

    /// The root of what it gives, as PEM.
    pub fn root(&self) -> String {
        let text = get(self.management, &self.management.ip().to_string(), "/roots/0", &self.ca).unwrap().1;
        text.split_once("\r\n\r\n").unwrap().1.to_owned()
    }
}

/// One GET over TLS by somebody who believes one authority: the certificate that was shown, and the whole answer.
pub fn get(address: SocketAddr, host: &str, path: &str, ca: &str) -> Option<(CertificateDer<'static>, String)> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let config = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let connection = ClientConnection::new(Arc::new(config.with_no_client_auth()), name).unwrap();
    let tcp = TcpStream::connect(address).ok()?;
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = StreamOwned::new(connection, tcp);
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let shown = stream.conn.peer_certificates()?.first()?.clone().into_owned();
    Some((shown, String::from_utf8_lossy(&answer).into_owned()))
}
