//! Snapshots: whole under load, refused when damaged, restored into either store.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt as _;
use mainstay_store::snapshot::{self, REVISION_GAP, SnapshotError};
use mainstay_store::{EmbeddedStore, Error, Expect, Settings, Store};
use support::Etcd;

fn embedded(directory: &Path) -> Arc<dyn Store> {
    Arc::new(EmbeddedStore::open(directory, Settings::default()).unwrap())
}

async fn fill(store: &dyn Store) {
    for i in 0..1300 {
        let durability = mainstay_store::Durability::Relaxed;
        let value = Bytes::from(vec![i as u8; 1 + i * 3 % 4000]);
        store.put_with(&format!("/core/pods/a/{i}"), value, Expect::Absent, durability).await.unwrap();
    }
    store.put("/core/secrets/a/s", Bytes::new(), Expect::Absent).await.unwrap();
}

async fn content(store: &dyn Store) -> Vec<(String, Bytes)> {
    let range = store.range("", None, None, None).await.unwrap();
    range.entries.into_iter().map(|entry| (entry.key.to_string(), entry.value)).collect()
}

async fn save(store: &Arc<dyn Store>, path: &Path) {
    let pieces: Vec<Bytes> = snapshot::save(Arc::clone(store), 7).await.unwrap().try_collect().await.unwrap();
    fs::write(path, pieces.concat()).unwrap();
}

fn file(directory: &Path) -> PathBuf {
    directory.join("snapshot")
}

#[tokio::test]
async fn the_state_of_one_moment_comes_back_and_revisions_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let store = embedded(&directory.path().join("one"));
    fill(&*store).await;
    let (before, revision) = (content(&*store).await, store.revision().await.unwrap());
    // Written while the snapshot is taken: not in it.
    let mut pieces = snapshot::save(Arc::clone(&store), 7).await.unwrap();
    let mut saved = Vec::new();
    let mut i = 0;
    while let Some(piece) = pieces.try_next().await.unwrap() {
        saved.extend_from_slice(&piece);
        store.put("/core/pods/a/5", Bytes::from("later"), Expect::Any).await.unwrap();
        store.put(&format!("/core/pods/a/later-{i}"), Bytes::new(), Expect::Any).await.unwrap();
        store.delete(&format!("/core/pods/a/{}", 700 + i), Expect::Any).await.unwrap();
        i += 1;
    }
    fs::write(file(directory.path()), saved).unwrap();
    let summary = snapshot::verify(&file(directory.path())).unwrap();
    assert_eq!((summary.header.revision, summary.header.count, summary.header.created_unix_s), (revision, 1301, 7));
    assert_eq!(
        summary.entries.into_iter().collect::<Vec<_>>(),
        [("core/pods".into(), 1300), ("core/secrets".into(), 1)]
    );

    let place = directory.path().join("two");
    snapshot::restore_embedded(&file(directory.path()), &place).unwrap();
    let restored = embedded(&place);
    assert_eq!(content(&*restored).await, before);
    let first = restored.get("/core/pods/a/0", None).await.unwrap().0.unwrap().mod_revision;
    assert_eq!(first, revision + REVISION_GAP + 1);
    let now = restored.revision().await.unwrap();
    assert_eq!(now, revision + REVISION_GAP + 1301);
    // Whoever knew the old store lists again.
    assert!(matches!(restored.watch("/", revision).await, Err(Error::Compacted { oldest }) if oldest == now));
    assert!(matches!(restored.get("/core/pods/a/0", Some(first)).await, Err(Error::Compacted { .. })));
    assert_eq!(restored.put("/x", Bytes::new(), Expect::Absent).await.unwrap().mod_revision, now + 1);
    // Nothing is overwritten.
    let again = snapshot::restore_embedded(&file(directory.path()), &directory.path().join("one"));
    assert!(matches!(again, Err(SnapshotError::Store(Error::InUse { .. }))), "{again:?}");
    drop(store);
    let again = snapshot::restore_embedded(&file(directory.path()), &directory.path().join("one"));
    assert!(matches!(again, Err(SnapshotError::Store(Error::NotEmpty { .. }))), "{again:?}");
}

#[tokio::test]
async fn from_file_to_etcd_and_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = embedded(&directory.path().join("one"));
    fill(&*store).await;
    save(&store, &file(directory.path())).await;
    let revision = store.revision().await.unwrap();
    let etcd = Etcd::start();
    snapshot::restore_etcd(&file(directory.path()), etcd.settings("/m")).await.unwrap();
    let shared: Arc<dyn Store> = Arc::new(etcd.store("/m").await);
    assert_eq!(content(&*shared).await, content(&*store).await);
    let now = shared.revision().await.unwrap();
    assert!(now > revision + REVISION_GAP && now < revision + REVISION_GAP + 2000, "{now}");
    assert!(matches!(shared.watch("/", revision).await, Err(Error::Compacted { oldest }) if oldest > revision));
    assert!(matches!(shared.get("/core/pods/a/0", Some(revision)).await, Err(Error::Compacted { .. })));
    let stale = shared.put("/core/pods/a/0", Bytes::new(), Expect::Revision(2)).await;
    assert!(matches!(stale, Err(Error::Conflict { current: Some(entry) }) if entry.mod_revision > revision));
    let mut watcher = shared.watch("/", now).await.unwrap();
    let written = shared.put("/core/pods/a/0", Bytes::new(), Expect::Any).await.unwrap();
    assert_eq!(watcher.next().await.unwrap().unwrap().revision, written.mod_revision);
    // And from there again, where the counting goes on once more.
    save(&shared, &file(directory.path())).await;
    let again = snapshot::restore_etcd(&file(directory.path()), etcd.settings("/m")).await;
    assert!(matches!(again, Err(SnapshotError::Store(Error::NotEmpty { .. }))), "{again:?}");
    snapshot::restore_embedded(&file(directory.path()), &directory.path().join("two")).unwrap();
    let back = embedded(&directory.path().join("two"));
    assert_eq!(content(&*back).await, content(&*shared).await);
    assert!(back.revision().await.unwrap() > written.mod_revision + REVISION_GAP);
}

#[tokio::test]
async fn damage_is_found_before_anything_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let store = embedded(&directory.path().join("one"));
    for i in 0..20 {
        store.put(&format!("/core/pods/a/{i}"), Bytes::from(vec![7; 50]), Expect::Absent).await.unwrap();
    }
    let path = file(directory.path());
    save(&store, &path).await;
    let whole = fs::read(&path).unwrap();
    let place = directory.path().join("two");
    let refused = |bytes: &[u8], what: &str| {
        fs::write(&path, bytes).unwrap();
        let error = snapshot::restore_embedded(&path, &place).unwrap_err();
        assert!(matches!(error, SnapshotError::Unusable { .. }), "{what}: {error}");
        assert!(!place.exists(), "{what}");
    };
    for at in (0..whole.len()).step_by(13) {
        refused(&whole[..at], &format!("cut off at {at}"));
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        refused(&changed, &format!("changed at {at}"));
    }
    refused(&[&whole[..], b"x"].concat(), "too long");
    fs::write(&path, &whole).unwrap();
    snapshot::restore_embedded(&path, &place).unwrap();
    assert!(matches!(snapshot::verify(&directory.path().join("none")), Err(SnapshotError::Read { .. })));
}

#[tokio::test]
async fn defragmentation_gives_space_back_and_keeps_everything() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { keep_revisions: 10, ..Settings::default() };
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(directory.path(), settings).unwrap());
    for i in 0..3000 {
        let durability = mainstay_store::Durability::Relaxed;
        store.put_with(&format!("/a/{i}"), vec![i as u8; 4000].into(), Expect::Any, durability).await.unwrap();
    }
    for i in 50..3000 {
        store.delete(&format!("/a/{i}"), Expect::Any).await.unwrap();
    }
    let before = content(&*store).await;
    store.compact(store.revision().await.unwrap()).await.unwrap();
    let mut watcher = store.watch("/", store.revision().await.unwrap()).await.unwrap();
    // What compaction left is removed in the background.
    let sizes = loop {
        let sizes = store.defragment().await.unwrap();
        if sizes.after_bytes < 4 << 20 {
            break sizes;
        }
        tokio::task::yield_now().await;
    };
    assert!(sizes.before_bytes >= sizes.after_bytes);
    assert_eq!(content(&*store).await, before);
    let written = store.put("/a/0", Bytes::new(), Expect::Any).await.unwrap();
    assert_eq!(watcher.next().await.unwrap().unwrap().revision, written.mod_revision);
}
