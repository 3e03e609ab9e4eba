//! The load of `cargo xtask bench api`, in a process of its own. Each mode prints one JSON object.
//!
//! ```text
//! api_load fsync DIRECTORY            a write of 4 KiB with fdatasync
//! api_load api KUBECONFIG             create, update, list, watch through an API server
//! api_load etcd URL                   the same work by an etcd alone
//! api_load pods KUBECONFIG COUNT      pods through the API
//! api_load etcd-pods URL COUNT        their bytes into an etcd
//! api_load store-pods DIRECTORY COUNT their bytes into an embedded store, here; its own memory
//! ```
#![allow(clippy::unwrap_used, missing_docs)] // a tool for one bench: what goes wrong ends it

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use mainstay_store::bench::EtcdLoad;
use mainstay_store::{EmbeddedStore, EtcdSettings, Expect, Settings, Store};
use serde_json::{Value, json};
use tokio::sync::mpsc;

const SINGLE: usize = 500;
const CLIENTS: usize = 256;
const PER_CLIENT: usize = 40;
const CONNECTIONS: usize = 16;
const LISTED: usize = CLIENTS * PER_CLIENT;
const LISTS: usize = 7;
const WATCHERS: usize = 1000;
const CHANGES: usize = 50;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::main(worker_threads = 2)]
async fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let count = || args[2].parse::<usize>().unwrap();
    let etcd_load = || EtcdLoad::new(&EtcdSettings::parse(&args[1]).unwrap(), CONNECTIONS).unwrap();
    let answer = match args[0].as_str() {
        "fsync" => json!({"fsync_us": us(mainstay_store::bench::bare_fsync(Path::new(&args[1])).unwrap())}),
        "api" => api(&ApiLoad::connect(&args[1]).await).await,
        "etcd" => etcd(&etcd_load()).await,
        "pods" => pods(&ApiLoad::connect(&args[1]).await, count()).await,
        "etcd-pods" => etcd_pods(&etcd_load(), count()).await,
        "store-pods" => store_pods(Path::new(&args[1]), count()).await,
        other => panic!("no mode {other}"),
    };
    println!("{answer}");
}

fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn median(mut samples: Vec<Duration>) -> f64 {
    samples.sort_unstable();
    us(samples[samples.len() / 2])
}

/// About 2 kB, in an object of the smallest kind, so that the store's part is not lost in the kind's rules.
fn config_map(name: &str, revision: Option<&str>) -> String {
    let mut metadata = json!({"name": name, "labels": {"app": "bench"}});
    if let Some(revision) = revision {
        metadata["resourceVersion"] = json!(revision);
    }
    let data = json!({"x": "x".repeat(1800), "revision": revision.unwrap_or_default()});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}).to_string()
}

/// A pod of ordinary size, about 3 kB as stored: two containers with probes, environment and volumes.
fn pod(number: usize) -> String {
    let variable = |i: usize| json!({"name": format!("SETTING_{i}"), "value": format!("value-{number}-{i}")});
    let container = |name: &str| {
        json!({
            "name": name, "image": "registry.example.com/shop/catalogue:v1.4.2",
            "env": (0..8).map(variable).collect::<Vec<_>>(),
            "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}},
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 5},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{number}"), "labels": {"app": "catalogue", "number": number.to_string()},
            "annotations": {"example.com/note": "n".repeat(300)}},
        // Nobody schedules it: it only lies there.
        "spec": {"schedulerName": "nobody", "containers": [container("app"), container("sidecar")],
            "volumes": [{"name": "data", "emptyDir": {}}], "terminationGracePeriodSeconds": 30},
    })
    .to_string()
}

/// HTTP/2 connections to an API server, as its administrator.
struct ApiLoad {
    senders: Vec<SendRequest<Full<Bytes>>>,
    authority: String,
}

impl ApiLoad {
    async fn connect(kubeconfig: &str) -> Self {
        let config = Kubeconfig::read_from(kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
        let authority = config.cluster_url.authority().unwrap().to_string();
        let mut tls = kube::client::ConfigExt::rustls_client_config(&config).unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let mut senders = Vec::new();
        for _ in 0..CONNECTIONS {
            let stream = tokio::net::TcpStream::connect(&authority).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let name = authority.split(':').next().unwrap().to_owned().try_into().unwrap();
            let stream = connector.connect(name, stream).await.unwrap();
            let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            builder.initial_stream_window_size(2 << 20).initial_connection_window_size(8 << 20);
            let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            senders.push(sender);
        }
        Self { senders, authority }
    }

    async fn send(
        &self,
        client: usize,
        method: Method,
        path: &str,
        body: String,
    ) -> hyper::Response<hyper::body::Incoming> {
        let request = Request::builder().method(method).uri(format!("https://{}{path}", self.authority));
        let request = request.header("content-type", "application/json").body(Full::new(Bytes::from(body))).unwrap();
        let response = self.senders[client % self.senders.len()].clone().send_request(request).await.unwrap();
        assert!(response.status().is_success(), "{} {path}", response.status());
        response
    }

    async fn bytes(&self, client: usize, method: Method, path: &str, body: String) -> Bytes {
        self.send(client, method, path, body).await.into_body().collect().await.unwrap().to_bytes()
    }

    async fn get(&self, path: &str) -> Value {
        serde_json::from_slice(&self.bytes(0, Method::GET, path, String::new()).await).unwrap()
    }

    /// Writes an object; returns its revision.
    async fn write(&self, client: usize, method: Method, path: &str, body: String) -> String {
        let answer: Value = serde_json::from_slice(&self.bytes(client, method, path, body).await).unwrap();
        answer["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    }

    async fn create(&self, client: usize, name: &str) -> String {
        self.write(client, Method::POST, MAPS, config_map(name, None)).await
    }

    async fn update(&self, client: usize, name: &str, revision: &str) {
        self.write(client, Method::PUT, &format!("{MAPS}/{name}"), config_map(name, Some(revision))).await;
    }

    async fn namespace(&self, name: &str) {
        let namespace = json!({"metadata": {"name": name}}).to_string();
        self.bytes(0, Method::POST, "/api/v1/namespaces", namespace).await;
    }
}

/// Per second, from the moment at which all began.
fn rate(start: Instant) -> f64 {
    LISTED as f64 / start.elapsed().as_secs_f64()
}

async fn api(load: &ApiLoad) -> Value {
    let (mut created, mut updated) = (Vec::new(), Vec::new());
    for i in 0..SINGLE {
        let name = format!("single-{i}");
        let start = Instant::now();
        let revision = load.create(0, &name).await;
        created.push(start.elapsed());
        let start = Instant::now();
        load.update(0, &name, &revision).await;
        updated.push(start.elapsed());
    }
    load.bytes(0, Method::DELETE, MAPS, String::new()).await;
    let one = |client: usize| async move {
        let mut revisions = Vec::new();
        for turn in 0..PER_CLIENT {
            revisions.push(load.create(client, &format!("m-{client}-{turn}")).await);
        }
        revisions
    };
    let start = Instant::now();
    let revisions: Vec<Vec<String>> = futures::future::join_all((0..CLIENTS).map(one)).await;
    let creates = rate(start);
    let one = |(client, revisions): (usize, Vec<String>)| async move {
        for (turn, revision) in revisions.iter().enumerate() {
            load.update(client, &format!("m-{client}-{turn}"), revision).await;
        }
    };
    let start = Instant::now();
    futures::future::join_all(revisions.into_iter().enumerate().map(one)).await;
    let updates = rate(start);
    let mut lists = Vec::new();
    for _ in 0..LISTS {
        let start = Instant::now();
        let bytes = load.bytes(0, Method::GET, MAPS, String::new()).await;
        lists.push(start.elapsed());
        assert!(bytes.len() > LISTED * 1800);
    }
    let fan_out = fan_out(load).await;
    json!({
        "create_us": median(created), "update_us": median(updated), "creates_per_s": creates, "updates_per_s": updates,
        "list_ms": median(lists) / 1e3, "fan_out_ms": median(fan_out) / 1e3, "listed": LISTED,
    })
}

async fn fan_out(load: &ApiLoad) -> Vec<Duration> {
    load.namespace("watched").await;
    let path = "/api/v1/namespaces/watched/secrets";
    let list = load.get(path).await;
    let watch = format!("{path}?watch=true&resourceVersion={}", list["metadata"]["resourceVersion"].as_str().unwrap());
    let (sender, mut received) = mpsc::channel(WATCHERS);
    for client in 0..WATCHERS {
        let mut body = load.send(client, Method::GET, &watch, String::new()).await.into_body();
        let sender = sender.clone();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = body.frame().await {
                if frame.is_data() && sender.send(Instant::now()).await.is_err() {
                    break;
                }
            }
        });
    }
    let mut samples = Vec::new();
    for change in 0..CHANGES {
        let secret = json!({"metadata": {"name": format!("s-{change}")}, "data": {"x": "eA=="}}).to_string();
        let start = Instant::now();
        load.write(0, Method::POST, path, secret).await;
        let mut last = start;
        for _ in 0..WATCHERS {
            last = last.max(received.recv().await.unwrap());
        }
        samples.push(last - start);
    }
    samples
}

async fn etcd(load: &EtcdLoad) -> Value {
    let key = |name: &str| format!("/registry/configmaps/default/{name}");
    let value = |name: &str| Bytes::from(config_map(name, None));
    let (mut created, mut updated) = (Vec::new(), Vec::new());
    for i in 0..SINGLE {
        let name = format!("/single/{i}");
        let start = Instant::now();
        let revision = load.create(0, &name, value(&name)).await.unwrap();
        created.push(start.elapsed());
        let start = Instant::now();
        load.update(0, &name, value(&name), revision).await.unwrap();
        updated.push(start.elapsed());
    }
    let one = |client: usize| async move {
        let mut revisions = Vec::new();
        for turn in 0..PER_CLIENT {
            let name = format!("m-{client}-{turn}");
            revisions.push(load.create(client, &key(&name), value(&name)).await.unwrap());
        }
        revisions
    };
    let start = Instant::now();
    let revisions: Vec<Vec<i64>> = futures::future::join_all((0..CLIENTS).map(one)).await;
    let creates = rate(start);
    let one = |(client, revisions): (usize, Vec<i64>)| async move {
        for (turn, revision) in revisions.into_iter().enumerate() {
            let name = format!("m-{client}-{turn}");
            load.update(client, &key(&name), value(&name), revision).await.unwrap();
        }
    };
    let start = Instant::now();
    futures::future::join_all(revisions.into_iter().enumerate().map(one)).await;
    let updates = rate(start);
    let mut lists = Vec::new();
    for _ in 0..LISTS {
        let start = Instant::now();
        assert_eq!(load.list("/registry/configmaps/").await.unwrap(), LISTED);
        lists.push(start.elapsed());
    }
    let fan_out = load.fan_out("/registry/secrets/", WATCHERS, CHANGES).await.unwrap();
    json!({
        "create_us": median(created), "update_us": median(updated), "creates_per_s": creates, "updates_per_s": updates,
        "list_ms": median(lists) / 1e3, "fan_out_ms": median(fan_out) / 1e3, "listed": LISTED,
    })
}

async fn pods(load: &ApiLoad, count: usize) -> Value {
    load.namespace("bench").await;
    let path = "/api/v1/namespaces/bench/pods";
    let start = Instant::now();
    let write = |i: usize| async move { load.bytes(i, Method::POST, path, pod(i)).await.len() };
    let sizes = stream::iter(0..count).map(write).buffer_unordered(CLIENTS);
    let bytes: usize = sizes.fold(0, |sum, one| async move { sum + one }).await;
    let seconds = start.elapsed().as_secs_f64();
    // As an informer does: in pages.
    let (mut next, mut listed) = (String::new(), 0);
    loop {
        let mut page = format!("{path}?limit=500");
        if !next.is_empty() {
            let _ = write!(page, "&continue={next}");
        }
        let page = load.get(&page).await;
        listed += page["items"].as_array().unwrap().len();
        match page["metadata"]["continue"].as_str() {
            Some(token) if !token.is_empty() => token.clone_into(&mut next),
            _ => break,
        }
    }
    json!({"pods_per_s": count as f64 / seconds, "bytes_each": bytes / count.max(1), "listed": listed})
}

async fn etcd_pods(load: &EtcdLoad, count: usize) -> Value {
    let write = |i: usize| async move {
        load.create(i, &format!("/registry/pods/bench/pod-{i}"), pod(i).into()).await.unwrap();
    };
    stream::iter(0..count).map(write).buffer_unordered(CLIENTS).collect::<Vec<()>>().await;
    json!({"listed": load.list("/registry/pods/").await.unwrap()})
}

async fn store_pods(directory: &Path, count: usize) -> Value {
    let resident = || -> f64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap() * 1024.0 / 1e6
    };
    let before = resident();
    let store = &EmbeddedStore::open(directory, Settings::default()).unwrap();
    let write = |i: usize| async move {
        store.put(&format!("/core/pods/bench/pod-{i}"), pod(i).into(), Expect::Absent).await.unwrap();
    };
    stream::iter(0..count).map(write).buffer_unordered(CLIENTS).collect::<Vec<()>>().await;
    let written = resident();
    let start = Instant::now();
    let listed = store.range("/core/pods/", None, None, None).await.unwrap().entries.len();
    let list_ms = us(start.elapsed()) / 1e3;
    json!({"resident_mb": written, "before_mb": before, "listed": listed, "list_ms": list_ms})
}
