//! What every store must do, run against each implementation.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use mainstay_store::{Durability, Embedded, EventKind, Expect, Revision, Settings, Store, StoreError};
use proptest::prelude::*;

fn open(directory: &std::path::Path) -> Arc<dyn Store> {
    Arc::new(Embedded::open(directory, &Settings::default()).unwrap())
}

async fn put(store: &dyn Store, key: &str, value: &str, expect: Expect) -> Result<Revision, StoreError> {
    let value = Bytes::copy_from_slice(value.as_bytes());
    store.put(Arc::from(key), value, expect, Durability::Full).await.map(|entry| entry.mod_revision)
}

#[tokio::test]
async fn compare_and_swap() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let first = put(&*store, "/a/b/x", "1", Expect::Absent).await.unwrap();
    assert!(matches!(
        put(&*store, "/a/b/x", "2", Expect::Absent).await,
        Err(StoreError::Conflict { current: Some(_) })
    ));
    let second = put(&*store, "/a/b/x", "2", Expect::Revision(first)).await.unwrap();
    assert!(second > first);
    assert!(matches!(put(&*store, "/a/b/x", "3", Expect::Revision(first)).await, Err(StoreError::Conflict { .. })));
    assert!(matches!(store.delete("/a/b/x", Expect::Revision(first)).await, Err(StoreError::Conflict { .. })));
    let deleted = store.delete("/a/b/x", Expect::Revision(second)).await.unwrap();
    assert_eq!((&deleted.value[..], deleted.mod_revision > second), (&b"2"[..], true));
    assert!(store.get("/a/b/x", None).await.unwrap().0.is_none());
    let old = store.get("/a/b/x", Some(first)).await.unwrap().0.unwrap();
    assert_eq!((&old.value[..], old.create_revision), (&b"1"[..], first));
}

#[tokio::test]
async fn ranges_come_in_pages_of_one_revision() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    for i in 0..10 {
        put(&*store, &format!("/a/b/{i}"), "v", Expect::Absent).await.unwrap();
    }
    put(&*store, "/a/c/1", "other", Expect::Absent).await.unwrap();
    let page = store.range("/a/b/", None, Some(4), None).await.unwrap();
    assert_eq!((page.entries.len(), page.more, page.remaining), (4, true, 6));
    store.delete("/a/b/7", Expect::Any).await.unwrap();
    put(&*store, "/a/b/99", "late", Expect::Absent).await.unwrap();
    let rest = store.range("/a/b/", Some("/a/b/3"), None, Some(page.revision)).await.unwrap();
    let keys: Vec<&str> = rest.entries.iter().map(|entry| &*entry.key).collect();
    assert_eq!(keys, ["/a/b/4", "/a/b/5", "/a/b/6", "/a/b/7", "/a/b/8", "/a/b/9"]);
    assert!(!rest.more);
}

#[tokio::test]
async fn a_watch_has_neither_gap_nor_duplicate() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let from = put(&*store, "/a/b/x", "0", Expect::Absent).await.unwrap();
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for i in 1..200 {
                put(&*store, "/a/b/x", &i.to_string(), Expect::Any).await.unwrap();
            }
            store.delete("/a/b/x", Expect::Any).await.unwrap();
        })
    };
    tokio::task::yield_now().await;
    let mut watcher = store.watch("/a/b/", from).await.unwrap();
    for i in 1..200 {
        let event = watcher.next().await.unwrap();
        let EventKind::Put { entry, previous } = &event.kind else { panic!("expected a write") };
        assert_eq!(entry.value, i.to_string().as_bytes());
        assert_eq!(previous.as_ref().unwrap().value, (i - 1).to_string().as_bytes());
    }
    assert!(matches!(&watcher.next().await.unwrap().kind, EventKind::Delete { previous } if previous.value == "199"));
    writer.await.unwrap();
    assert!(matches!(store.watch("/a/b/", 1_000_000).await, Err(StoreError::Future { .. })));
}

#[tokio::test]
async fn a_slow_watcher_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let mut watcher = store.watch("/a/b/", 0).await.unwrap();
    let writes = (0..9_000).map(|i| {
        let store = store.clone();
        async move {
            store.put(Arc::from(format!("/a/b/{i}")), Bytes::new(), Expect::Any, Durability::Relaxed).await.unwrap()
        }
    });
    futures::future::join_all(writes).await;
    let mut seen = 0;
    while watcher.next().await.is_ok() {
        seen += 1;
    }
    assert!(seen < 9_000, "it must learn that it lost events");
}

#[tokio::test]
async fn compaction_forgets_the_past_and_keeps_the_present() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let first = put(&*store, "/a/b/x", "1", Expect::Absent).await.unwrap();
    put(&*store, "/a/b/y", "only", Expect::Absent).await.unwrap();
    let last = put(&*store, "/a/b/x", "2", Expect::Any).await.unwrap();
    store.compact(last).await.unwrap();
    assert!(matches!(store.get("/a/b/x", Some(first)).await, Err(StoreError::Compacted { .. })));
    assert!(matches!(store.watch("/a/b/", first).await, Err(StoreError::Compacted { .. })));
    assert_eq!(store.get("/a/b/x", Some(last)).await.unwrap().0.unwrap().value, "2");
    assert_eq!(store.get("/a/b/y", None).await.unwrap().0.unwrap().value, "only");
    store.watch("/a/b/", last).await.unwrap();
}

#[tokio::test]
async fn reopening_goes_on_above_every_revision_given_out() {
    let directory = tempfile::tempdir().unwrap();
    let seen = {
        let store = open(directory.path());
        put(&*store, "/a/b/x", "1", Expect::Absent).await.unwrap();
        store.put(Arc::from("/a/b/y"), Bytes::new(), Expect::Any, Durability::Relaxed).await.unwrap().mod_revision
    };
    // The writer thread ends on its own after the last handle is gone; until then the file is in use.
    let store = loop {
        if let Ok(store) = Embedded::open(directory.path(), &Settings::default()) {
            break store;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(store.get("/a/b/x", None).await.unwrap().0.unwrap().value, "1");
    assert!(put(&store, "/a/b/z", "2", Expect::Absent).await.unwrap() > seen);
    assert!(matches!(
        Embedded::open(directory.path(), &Settings::default()),
        Err(mainstay_store::OpenError::InUse { .. })
    ));
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    Compact(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..6u8, any::<u8>()).prop_map(|(k, v)| Step::Put(k, v)),
        3 => (0..6u8).prop_map(Step::Delete),
        1 => any::<u8>().prop_map(Step::Compact),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Every past state that is not compacted reads as it was.
    #[test]
    fn the_past_reads_as_it_was(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let store = open(directory.path());
            let mut states: BTreeMap<Revision, BTreeMap<String, u8>> = BTreeMap::from([(0, BTreeMap::new())]);
            let mut oldest = 0;
            for step in steps {
                let mut state = states.values().next_back().unwrap().clone();
                match step {
                    Step::Put(key, value) => {
                        let key = format!("/m/n/{key}");
                        let value_bytes = Bytes::copy_from_slice(&[value]);
                        let entry = store.put(Arc::from(key.as_str()), value_bytes, Expect::Any, Durability::Relaxed).await.unwrap();
                        state.insert(key, value);
                        states.insert(entry.mod_revision, state);
                    }
                    Step::Delete(key) => {
                        let key = format!("/m/n/{key}");
                        let result = store.delete(&key, Expect::Any).await;
                        assert_eq!(result.is_ok(), state.remove(&key).is_some());
                        if let Ok(entry) = result {
                            states.insert(entry.mod_revision, state);
                        }
                    }
                    Step::Compact(share) => {
                        let last = *states.keys().next_back().unwrap();
                        oldest = oldest.max(last * u64::from(share) / 255);
                        store.compact(oldest).await.unwrap();
                    }
                }
            }
            for (revision, state) in states.range(oldest.max(1)..) {
                let range = store.range("/m/n/", None, None, Some(*revision)).await.unwrap();
                let read: BTreeMap<String, u8> = range.entries.iter().map(|e| (e.key.to_string(), e.value[0])).collect();
                assert_eq!(&read, state, "at revision {revision}");
            }
        });
    }
}
