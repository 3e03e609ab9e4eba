//! Certificates from a real ACME server, which asks this gateway for the answers to its challenges.
#![allow(clippy::unwrap_used)]

mod authority;
mod world;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use authority::{Authority, get};
use world::{Endpoint, Gateway, free_port, reply};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn authority(http_port: u16, validity_s: u64) -> Authority {
    Authority::start(local(0).ip(), "127.0.0.1", http_port, validity_s)
}

/// A gateway that has certificates from an authority, for these listeners: name and host of each.
fn start(
    authority: &Authority,
    (http, https): (u16, u16),
    listeners: &[(&str, &str)],
    endpoint: SocketAddr,
    state: &Path,
) -> Gateway {
    let listeners: Vec<String> = listeners
        .iter()
        .map(|(name, host)| {
            format!("  - {{name: {name}, port: {https}, protocol: HTTPS, hostname: {host}, tls: {{certificateRefs: [{{name: {name}-tls}}]}}}}\n")
        })
        .collect();
    let listeners = format!("  listeners:\n{}", listeners.concat());
    let ca: String = authority.ca.lines().flat_map(|line| ["    ", line, "\n"]).collect();
    let more = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca}}\ndata:\n  ca.crt: |\n{ca}---\n\
         apiVersion: mainstay.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: acme}}\nspec:\n  targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: g}}]\n  acme: {{server: '{}', email: ops@example.com, caCertificateRefs: [{{name: ca}}]}}\n",
        authority.url
    );
    let configuration = world::plain(http, &[endpoint], &more).replacen("  listeners:\n", &listeners, 1);
    Gateway::start_with(http, &configuration, &[("STATE", &state.to_string_lossy())])
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
    let ports @ (http, https) = (free_port(), free_port());
    let authority = authority(http, 9);
    let endpoint = Endpoint::start(|_, stream| reply(stream, "200 OK", "", b"good"));
    let state = tempfile::tempdir().unwrap();
    let state = state.path().join("state");
    let listeners = [("shop", "Shop.example"), ("api", "api.example")];
    let gateway = start(&authority, ports, &listeners, endpoint.address, &state);
    gateway.wait(|it| it.metric("certificate_orders_total{result=\"good\"}") >= 2.0);
    let root = authority.root();
    let (first, answer) = get(local(https), "shop.example", "/", &root).unwrap();
    assert!(answer.ends_with("good"), "{answer}");
    assert!(get(local(https), "api.example", "/", &root).unwrap().1.ends_with("good"));
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
    let gateway = start(&authority, ports, &listeners, endpoint.address, &state);
    gateway.wait(|_| get(local(https), "shop.example", "/", &root).is_some_and(|it| it.1.ends_with("good")));
    // Two thirds of nine seconds later there is another.
    gateway.wait(|_| get(local(https), "shop.example", "/", &root).is_some_and(|(shown, _)| shown != first));
    assert!(gateway.metric("certificate_orders_total{result=\"bad\"}") < 1.0);
}

#[test]
fn a_failure_is_said_and_not_repeated_at_once() {
    let ports = (free_port(), free_port());
    let authority = authority(ports.0, 3600);
    authority.mislead("lost.example");
    let endpoint = Endpoint::start(|_, stream| reply(stream, "200 OK", "", b"good"));
    let state = tempfile::tempdir().unwrap();
    let listeners = [("lost", "lost.example"), ("shop", "shop.example")];
    let failed = |gateway: &Gateway| certificates(gateway).iter().any(|it| it["failures"] == 1);
    for _ in 0..2 {
        let gateway = start(&authority, ports, &listeners, endpoint.address, state.path());
        // What fails does not keep the others from being had.
        let has_other = |it: &Gateway| it.metric("certificate_not_after_seconds{secret=\"default/shop-tls\"}") > 0.0;
        gateway.wait(|it| failed(it) && has_other(it));
        let shown = certificates(&gateway);
        let lost = shown.iter().find(|it| it["secret"] == "default/lost-tls").unwrap();
        let error = lost["error"].as_str().unwrap();
        assert!(error.contains("lost.example") && error.contains("refuse"), "{error}");
        assert!(gateway.admin("GET", "/config").contains("1 attempts have failed"));
        // The other name proves that the work goes on; the failure waits, and so it does after a restart.
        gateway.wait(|it| it.metric("certificate_failures{secret=\"default/shop-tls\"}") < 1.0);
    }
}
