//! TLS with clients and with endpoints, and what a reload does to it.
#![allow(clippy::unwrap_used)]

mod world;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustls::crypto::ring::default_provider;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use world::{Endpoint, Gateway, PATIENCE, free_port, plain, policy, reply};

const HOST: &str = "shop.example";

/// A certificate of its own authority, and the Secret and the ConfigMap with it.
struct Made {
    pem: String,
    key: String,
    objects: String,
}

fn make() -> Made {
    let made = rcgen::generate_simple_self_signed(vec![HOST.to_owned()]).unwrap();
    let indented = |text: &str| text.lines().flat_map(|line| ["    ", line, "\n"]).collect::<String>();
    let (pem, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let objects = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: tls}}\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca}}\ndata:\n  ca.crt: |\n{}---\n",
        indented(&pem),
        indented(&key),
        indented(&pem)
    );
    Made { pem, key, objects }
}

/// A configuration whose only listener speaks HTTPS.
fn encrypted(port: u16, made: &Made, endpoint: SocketAddr, more: &str) -> String {
    plain(port, &[endpoint], &format!("{}{more}", made.objects))
        .replace("protocol: HTTP}", "protocol: HTTPS, tls: {certificateRefs: [{name: tls}]}}")
}

fn client(made: &Made) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(made.pem.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    Arc::new(builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth())
}

/// One GET: how the handshake went, and the answer; an error if the certificate is not believed.
fn ask(client: &Arc<ClientConfig>, port: u16) -> std::io::Result<(HandshakeKind, String)> {
    let name = ServerName::try_from(HOST).unwrap();
    let connection = ClientConnection::new(client.clone(), name).unwrap();
    let tcp = TcpStream::connect(("127.0.0.1", port))?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(connection, tcp);
    write!(stream, "GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok((stream.conn.handshake_kind().unwrap(), answer))
}

#[test]
fn sessions_outlive_a_reload_and_certificates_are_exchanged() {
    let endpoint = Endpoint::start(|_, stream| reply(stream, "200 OK", "", b"good"));
    let (port, old, new) = (free_port(), make(), make());
    let gateway = Gateway::start(port, &encrypted(port, &old, endpoint.address, ""));
    let visitor = client(&old);
    let (kind, answer) = ask(&visitor, port).unwrap();
    assert!(kind == HandshakeKind::Full && answer.ends_with("good"), "{kind:?} {answer}");
    assert_eq!(ask(&visitor, port).unwrap().0, HandshakeKind::Resumed);
    gateway.reconfigure(&encrypted(port, &old, endpoint.address, &policy("  retry: {attempts: 1}\n")));
    assert_eq!(ask(&visitor, port).unwrap().0, HandshakeKind::Resumed, "after a reload that is about something else");
    gateway.reconfigure(&encrypted(port, &new, endpoint.address, ""));
    assert!(ask(&client(&new), port).unwrap().1.ends_with("good"));
    assert!(ask(&client(&old), port).is_err(), "the old certificate is shown no more");
}

/// An endpoint that speaks TLS, and how many connections were opened to it.
fn encrypted_endpoint(made: &Made) -> (SocketAddr, Arc<AtomicU32>) {
    let chain = vec![CertificateDer::from_pem_slice(made.pem.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes()).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = Arc::new(builder.with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, opened) = (listener.local_addr().unwrap(), Arc::new(AtomicU32::new(0)));
    let counter = opened.clone();
    thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            counter.fetch_add(1, Ordering::Relaxed);
            let connection = ServerConnection::new(config.clone()).unwrap();
            thread::spawn(move || {
                let mut stream = StreamOwned::new(connection, tcp);
                let mut head = Vec::new();
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() {
                    head.push(byte[0]);
                    if head.ends_with(b"\r\n\r\n") {
                        head.clear();
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood").unwrap();
                    }
                }
            });
        }
    });
    (address, opened)
}

#[test]
fn connections_to_endpoints_with_tls_outlive_a_reload() {
    let (port, made) = (free_port(), make());
    let (inner, opened) = encrypted_endpoint(&made);
    let outer = |attempts: usize| {
        let more = format!("{}{}", made.objects, policy(&format!("  retry: {{attempts: {attempts}}}\n")));
        plain(port, &[inner], &more).replace(
            "kind: Backend\nmetadata: {name: b}\nspec:\n",
            &format!("kind: Backend\nmetadata: {{name: b}}\nspec:\n  protocol: https\n  tls: {{hostname: {HOST}, caCertificateRefs: [{{name: ca}}]}}\n"),
        )
    };
    let gateway = Gateway::start(port, &outer(0));
    // On one connection, and so on one core.
    let mut conversation = gateway.connect();
    for attempts in 1..=5 {
        conversation.write(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes());
        assert_eq!(conversation.answer(false).text(), "good");
        gateway.reconfigure(&outer(attempts));
    }
    assert_eq!(opened.load(Ordering::Relaxed), 1, "for five requests and five reloads");
}

#[test]
fn what_is_passed_through_is_not_looked_into() {
    let endpoint = Endpoint::start(|_, stream| reply(stream, "200 OK", "", b"good"));
    let (inner_port, port, made) = (free_port(), free_port(), make());
    let _inner = Gateway::start(inner_port, &encrypted(inner_port, &made, endpoint.address, ""));
    let configuration = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g}}\nspec:\n  gatewayClassName: mainstay\n  listeners: [{{name: t, port: {port}, protocol: TLS, tls: {{mode: Passthrough}}}}]\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {{name: r}}\nspec: {{parentRefs: [{{name: g}}], hostnames: [{HOST}], rules: [{{backendRefs: [{{group: mainstay.dev, kind: Backend, name: b}}]}}]}}\n---\n\
         apiVersion: mainstay.dev/v1alpha1\nkind: Backend\nmetadata: {{name: b}}\nspec: {{endpoints: [{{address: '127.0.0.1:{inner_port}'}}]}}\n"
    );
    let _gateway = Gateway::start(port, &configuration);
    assert!(ask(&client(&made), port).unwrap().1.ends_with("good"), "the inner certificate is the one that is shown");
}
