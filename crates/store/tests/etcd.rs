//! What is particular to the store in etcd: several servers, lost connections, roots, certificates, restores.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mainstay_store::{Change, Error, EtcdStore, Event, Expect, Store, WatchError, Watcher};
use support::Etcd;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

async fn next(watcher: &mut Watcher) -> Arc<Event> {
    timeout(PATIENCE, watcher.next()).await.expect("no event").unwrap().unwrap()
}

async fn put(store: &EtcdStore, key: &str, value: &str) -> u64 {
    store.put(key, Bytes::copy_from_slice(value.as_bytes()), Expect::Any).await.unwrap().mod_revision
}

#[tokio::test]
async fn two_servers_see_each_others_writes() {
    let etcd = Etcd::start();
    let (one, other) = (etcd.store("/m").await, etcd.store("/m").await);
    let from = other.revision().await.unwrap();
    let mut watcher = other.watch("/a/", from).await.unwrap();
    for i in 0..20 {
        let revision = put(&one, "/a/x", &i.to_string()).await;
        // Reads are of what is acknowledged, whoever wrote it; watches bring it.
        assert_eq!(other.get("/a/x", None).await.unwrap().0.unwrap().mod_revision, revision);
        assert_eq!(next(&mut watcher).await.revision, revision);
    }
    // One writer wins.
    let created = |store: EtcdStore, name: &'static str| async move {
        store.put("/b", Bytes::from_static(name.as_bytes()), Expect::Absent).await.is_ok()
    };
    let (first, second) = tokio::join!(created(one, "one"), created(other, "other"));
    assert!(first != second);
}

#[tokio::test]
async fn roots_do_not_see_each_other() {
    let etcd = Etcd::start();
    let (one, other) = (etcd.store("/m").await, etcd.store("/m2").await);
    let mut watcher = one.watch("", one.revision().await.unwrap()).await.unwrap();
    put(&other, "/a/x", "other").await;
    let own = put(&one, "/a/y", "own").await;
    assert_eq!(next(&mut watcher).await.revision, own);
    assert_eq!((one.count("").await.unwrap(), one.count("/a/").await.unwrap()), (1, 1));
    assert_eq!(one.get("/a/x", None).await.unwrap().0, None);
}

#[tokio::test]
async fn watches_outlive_a_dead_etcd() {
    let mut etcd = Etcd::start();
    let (store, other) = (etcd.store("/m").await, etcd.store("/m").await);
    let mut watcher = store.watch("/a/", store.revision().await.unwrap()).await.unwrap();
    let mut last = put(&other, "/a/x", "0").await;
    assert_eq!(next(&mut watcher).await.revision, last);
    for round in 1..4 {
        etcd.kill();
        let refused = store.put("/a/x", Bytes::new(), Expect::Any).await.unwrap_err();
        assert!(matches!(refused, Error::Storage { .. }), "{refused}");
        etcd.restart();
        // What was written while this watch had no connection comes too, once and in order.
        let mut written = Vec::new();
        for i in 0..5 {
            written.push(put(&other, "/a/x", &format!("{round}-{i}")).await);
        }
        for revision in written {
            let event = next(&mut watcher).await;
            let Change::Put { previous, .. } = &event.change else { panic!("a write") };
            assert_eq!((event.revision, previous.as_ref().unwrap().mod_revision), (revision, last));
            last = revision;
        }
    }
}

#[tokio::test]
async fn a_new_server_goes_on_where_the_old_one_ended() {
    let etcd = Etcd::start();
    let store = etcd.store("/m").await;
    let seen = put(&store, "/a/x", "1").await;
    let missed = put(&store, "/a/x", "2").await;
    drop(store);
    let store = etcd.store("/m").await;
    let mut watcher = store.watch("/a/", seen).await.unwrap();
    assert_eq!(next(&mut watcher).await.revision, missed);
    let new = put(&store, "/a/x", "3").await;
    assert_eq!(next(&mut watcher).await.revision, new);
}

#[tokio::test]
async fn what_somebody_else_compacted_is_said_to_be_compacted() {
    let mut etcd = Etcd::start();
    let (store, other) = (etcd.store("/m").await, etcd.store("/m").await);
    let first = put(&store, "/a/x", "1").await;
    let mut watcher = store.watch("/a/", first).await.unwrap();
    let last = put(&store, "/a/x", "2").await;
    next(&mut watcher).await;
    other.compact(last).await.unwrap();
    assert!(matches!(store.get("/a/x", Some(first)).await, Err(Error::Compacted { oldest }) if oldest == last));
    // A server that starts now knows no further back.
    let new = etcd.store("/m").await;
    assert!(matches!(new.watch("/a/", first).await, Err(Error::Compacted { oldest }) if oldest == last));
    new.watch("/a/", last).await.unwrap();
    // Compacted while the feed had no connection: a gap, which is said.
    etcd.kill();
    etcd.restart();
    // The first try may find the old connection dead, and cannot know whether it arrived.
    let _ = other.put("/a/x", Bytes::new(), Expect::Any).await;
    let later = put(&other, "/a/x", "3").await;
    other.compact(later).await.unwrap();
    drop(other);
    let end = loop {
        match timeout(PATIENCE, watcher.next()).await.expect("silence").unwrap() {
            Ok(event) if event.revision == later => break None,
            Ok(_) => {}
            Err(error) => break Some(error),
        }
    };
    // Which of the two was faster is not ours to say, but there is no third.
    assert!(end.is_none_or(|error| matches!(error, WatchError::Compacted { .. })));
}

#[tokio::test]
async fn an_unreachable_etcd_is_named() {
    let etcd = Etcd::start();
    let settings = etcd.settings("/m");
    drop(etcd);
    let Err(error) = EtcdStore::open(settings.clone()).await else { panic!("opened nothing") };
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    assert!(text.contains(&settings.addresses[0]), "{text}");
}

#[tokio::test]
async fn a_full_etcd_refuses_writes_and_says_what_to_do() {
    let etcd = Etcd::start_with(&["--quota-backend-bytes", "4000000"]);
    let store = etcd.store("/m").await;
    let mut written = 0;
    let error = loop {
        match store.put(&format!("/a/{written}"), vec![7; 200_000].into(), Expect::Absent).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 1000);
    };
    assert!(matches!(error, Error::EtcdFull), "{error:?}");
    assert_eq!(store.range("/a/", None, None, None).await.unwrap().entries.len(), written);
    let sizes = store.defragment().await.unwrap();
    assert!(sizes.before_bytes > 2_000_000 && sizes.after_bytes <= sizes.before_bytes);
}
