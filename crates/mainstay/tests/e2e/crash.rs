//! kill -9 of the server at random moments, under writers and watchers that use its API.
//!
//! `MAINSTAY_CRASH_ROUNDS` sets how often (100; 20 with etcd), `MAINSTAY_CRASH_SEED` repeats the moments.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt as _};

use crate::cluster::PATIENCE;
use crate::control_plane::ControlPlane;
use crate::etcd::Etcd;

const WRITERS: usize = 6;

/// What the API acknowledged.
#[derive(Default)]
struct Ledger {
    /// By name: revision and number of the last acknowledged write, and the number of one without an answer.
    acknowledged: BTreeMap<String, (u64, u64, Option<u64>)>,
    /// Every acknowledged revision.
    revisions: Vec<u64>,
    /// What the watcher saw, in its order.
    seen: Vec<u64>,
}

fn revision(object: &ConfigMap) -> u64 {
    object.resource_version().unwrap().parse().unwrap()
}

/// Content that shows any tear: a number, over and over, for a length that depends on it.
fn content(number: u64) -> String {
    format!("{number:08}").repeat(1 + (number as usize * 37) % 400)
}

fn number(object: &ConfigMap) -> u64 {
    let text = &object.data.as_ref().unwrap()["x"];
    let number = text[..8].parse().unwrap();
    assert_eq!(*text, content(number), "a torn value");
    number
}

async fn write(client: Client, name: String, ledger: Arc<Mutex<Ledger>>, over: Arc<AtomicBool>) {
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    let mut next = 0;
    let mut known: Option<ConfigMap> = None;
    while !over.load(Ordering::Relaxed) {
        next += 1;
        let mut object = known.clone().unwrap_or_default();
        object.metadata.name = Some(name.clone());
        object.data = Some([("x".to_owned(), content(next))].into());
        ledger.lock().unwrap().acknowledged.entry(name.clone()).or_default().2 = Some(next);
        let written = match known {
            Some(_) => api.replace(&name, &PostParams::default(), &object).await,
            None => api.create(&PostParams::default(), &object).await,
        };
        match written {
            Ok(object) => {
                let mut ledger = ledger.lock().unwrap();
                ledger.acknowledged.insert(name.clone(), (revision(&object), next, None));
                ledger.revisions.push(revision(&object));
                known = Some(object);
            }
            // Dead, or what had no answer was written after all: look again.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
                if let Ok(found) = api.get_opt(&name).await {
                    known = found;
                }
            }
        }
    }
}

/// Watches from where the last watch ended, again and again; a 410 would be a gap.
async fn watch(client: Client, from: u64, ledger: Arc<Mutex<Ledger>>, over: Arc<AtomicBool>) {
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    let params = WatchParams::default().fields("metadata.name!=kube-root-ca.crt").timeout(290);
    let mut last = from;
    while !over.load(Ordering::Relaxed) {
        let Ok(stream) = api.watch(&params, &last.to_string()).await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let mut stream = std::pin::pin!(stream);
        while let Ok(Some(event)) = stream.try_next().await {
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object) => {
                    number(&object);
                    assert!(revision(&object) > last, "a duplicate, or out of order");
                    last = revision(&object);
                    ledger.lock().unwrap().seen.push(last);
                }
                WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(status) => panic!("a gap: {status:?}"),
            }
        }
    }
}

async fn examine(client: &Client, ledger: &Mutex<Ledger>) {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let before: Vec<(String, (u64, u64, Option<u64>))> =
        ledger.lock().unwrap().acknowledged.iter().map(|(name, known)| (name.clone(), *known)).collect();
    let list = api.list(&ListParams::default()).await.unwrap();
    let now: u64 = list.metadata.resource_version.clone().unwrap().parse().unwrap();
    for (name, (at, acknowledged, _)) in before {
        assert!(now >= at, "revisions went back from {at} to {now}");
        let found = list.items.iter().find(|object| object.name_any() == name);
        let Some(found) = found else {
            assert_eq!(acknowledged, 0, "{name} is lost");
            continue;
        };
        // Writers go on meanwhile: what is there may be later, never earlier.
        assert!(number(found) >= acknowledged && revision(found) >= at, "{name} went back from {acknowledged}");
    }
}

/// Starts the server again and waits until it answers: by the client, which costs less than a program each time.
async fn again(plane: &mut ControlPlane, client: &Client) {
    plane.spawn();
    let answers = async || {
        let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
        client.request_text(request).await.is_ok()
    };
    let ready = async {
        while !answers().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let ready = tokio::time::timeout(PATIENCE, ready).await;
    assert!(ready.is_ok(), "the server does not get ready:\n{}", plane.log());
}

async fn rounds(plane: &mut ControlPlane, rounds: u64) {
    let number_of = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number_of("MAINSTAY_CRASH_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let rounds = number_of("MAINSTAY_CRASH_ROUNDS").unwrap_or(rounds);
    println!("MAINSTAY_CRASH_SEED={seed}");
    let client = plane.client().await;
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let over = Arc::new(AtomicBool::new(false));
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let from = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap().parse().unwrap();
    let watcher = tokio::spawn(watch(client.clone(), from, Arc::clone(&ledger), Arc::clone(&over)));
    let writers: Vec<_> = (0..WRITERS)
        .map(|i| tokio::spawn(write(client.clone(), format!("w{i}"), Arc::clone(&ledger), Arc::clone(&over))))
        .collect();
    for round in 0..rounds {
        let before = ledger.lock().unwrap().revisions.len();
        // Some writes at least, then a moment that is different in every round (SplitMix64's multiplier).
        let moment = seed.wrapping_add(round).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        while ledger.lock().unwrap().revisions.len() < before + 5 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        tokio::time::sleep(Duration::from_micros(moment % 150_000)).await;
        plane.kill();
        again(plane, &client).await;
        examine(&client, &ledger).await;
    }
    over.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    // The watcher has seen every acknowledged write, or will have in a moment.
    let last = ledger.lock().unwrap().revisions.iter().copied().max().unwrap();
    let caught_up = async {
        while ledger.lock().unwrap().seen.last().is_none_or(|seen| *seen < last) {
            assert!(!watcher.is_finished(), "the watcher ended");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, caught_up).await.expect("the watcher does not catch up");
    watcher.abort();
    let ledger = ledger.lock().unwrap();
    let seen: HashSet<&u64> = ledger.seen.iter().collect();
    let missed: Vec<&u64> = ledger.revisions.iter().filter(|revision| !seen.contains(revision)).collect();
    assert!(missed.is_empty(), "gaps: {missed:?}");
    println!("{rounds} rounds, {} writes acknowledged, {} seen", ledger.revisions.len(), ledger.seen.len());
}

fn run(plane: &mut ControlPlane, count: u64) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(rounds(plane, count));
}

#[test]
fn nothing_the_api_acknowledged_is_lost_to_kill_9() {
    let place = tempfile::tempdir().unwrap();
    run(&mut ControlPlane::start(&place.path().join("data"), &[]), 100);
}

#[test]
fn nor_with_the_state_in_etcd() {
    let place = tempfile::tempdir().unwrap();
    let etcd = Etcd::start();
    let url = format!("etcd://127.0.0.1:{}", etcd.port);
    run(&mut ControlPlane::start(&place.path().join("data"), &["--store", &url]), 20);
}
