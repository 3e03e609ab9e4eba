//! What is particular to the embedded store: its file, its disk, and relaxed writes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstay_store::{Durability, EmbeddedStore, Error, Expect, Settings, Store, WatchError};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

fn open(directory: &Path) -> Result<EmbeddedStore, Error> {
    EmbeddedStore::open(directory, Settings::default())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn the_file_is_private_and_belongs_to_one_process() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("a/b");
    let store = open(&directory).unwrap();
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&directory.join("store.redb")), 0o600);
    let error = open(&directory).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }));
    assert!(error.to_string().contains("in use by another mainstay server"), "{error}");
    drop(store);
    open(&directory).unwrap();
}

#[tokio::test]
async fn a_clean_restart_keeps_everything_and_skips_no_revision() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    store.put("/a", Bytes::from("1"), Expect::Absent).await.unwrap();
    let relaxed = store.put_with("/b", Bytes::from("2"), Expect::Absent, Durability::Relaxed).await.unwrap();
    let relaxed_too = store.put_with("/b", Bytes::from("3"), Expect::Any, Durability::Relaxed).await.unwrap();
    drop(store);
    let store = open(directory.path()).unwrap();
    assert_eq!(store.get("/b", None).await.unwrap(), (Some(relaxed_too.clone()), relaxed_too.mod_revision));
    assert_eq!(store.get("/b", Some(relaxed.mod_revision)).await.unwrap().0, Some(relaxed));
    let next = store.put("/c", Bytes::new(), Expect::Absent).await.unwrap();
    assert_eq!(next.mod_revision, relaxed_too.mod_revision + 1);
}

#[tokio::test]
async fn relaxed_writes_reach_the_disk_by_themselves() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    // The first reserves revisions on disk; the second is the one that stays in memory.
    store.put_with("/a", Bytes::from("1"), Expect::Any, Durability::Relaxed).await.unwrap();
    store.put_with("/a", Bytes::from("2"), Expect::Any, Durability::Relaxed).await.unwrap();
    let copy = tempfile::tempdir().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    // A copy of the file is what a crash would leave (all that was written to it; redb finds the last whole commit).
    loop {
        fs::copy(directory.path().join("store.redb"), copy.path().join("store.redb")).unwrap();
        let found = open(copy.path()).unwrap();
        let (entry, revision) = found.get("/a", None).await.unwrap();
        assert!(revision >= store.revision().await.unwrap());
        if entry.unwrap().value == "2" {
            break;
        }
        assert!(Instant::now() < deadline, "not on disk after five seconds");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_lost_relaxed_write_is_not_believed_in() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let kept = store.put_with("/a", Bytes::from("1"), Expect::Any, Durability::Relaxed).await.unwrap();
    let lost = store.put_with("/a", Bytes::from("2"), Expect::Any, Durability::Relaxed).await.unwrap();
    let copy = tempfile::tempdir().unwrap();
    fs::copy(directory.path().join("store.redb"), copy.path().join("store.redb")).unwrap();
    let after = open(copy.path()).unwrap();
    let (entry, revision) = after.get("/a", None).await.unwrap();
    assert_eq!(entry.as_ref(), Some(&kept));
    assert!(revision > lost.mod_revision);
    assert!(
        matches!(after.watch("/", lost.mod_revision).await, Err(Error::Compacted { oldest }) if oldest == revision)
    );
    assert!(matches!(after.get("/a", Some(lost.mod_revision)).await, Err(Error::Compacted { .. })));
    let swap = after.put("/a", Bytes::new(), Expect::Revision(lost.mod_revision)).await;
    assert!(matches!(swap, Err(Error::Conflict { current: Some(_) })));
    // Whoever saw only what survived goes on.
    let mut watcher = after.watch("/", kept.mod_revision).await.unwrap();
    let next = after.put("/a", Bytes::new(), Expect::Revision(kept.mod_revision)).await.unwrap();
    assert_eq!(watcher.next().await.unwrap().unwrap().revision, next.mod_revision);
}

#[tokio::test]
async fn the_past_is_given_up_by_age_and_the_file_stays_small() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { keep_revisions: 100, ..Settings::default() };
    let store = EmbeddedStore::open(directory.path(), settings).unwrap();
    let mut last = 0;
    for _ in 0..40 {
        let value = Bytes::from(vec![1; 10_000]);
        let writes = (0..256).map(|_| store.put_with("/a", value.clone(), Expect::Any, Durability::Relaxed));
        last = futures::future::try_join_all(writes).await.unwrap().last().unwrap().mod_revision;
    }
    assert!(matches!(store.get("/a", Some(2)).await, Err(Error::Compacted { .. })));
    store.get("/a", Some(last - 50)).await.unwrap().0.unwrap();
    drop(store);
    let bytes = fs::metadata(directory.path().join("store.redb")).unwrap().len();
    assert!(bytes < 100 << 20, "the file has {bytes} bytes after writing 100 MB over one key");
}

#[tokio::test]
async fn more_writes_than_can_wait_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { queue_max: 4, queue_bytes_max: 1 << 20, ..Settings::default() };
    let store = EmbeddedStore::open(directory.path(), settings).unwrap();
    let writes = (0..5000).map(|_| store.put("/a", Bytes::new(), Expect::Any));
    let outcomes = futures::future::join_all(writes).await;
    assert!(outcomes.iter().any(Result::is_ok));
    assert!(outcomes.iter().any(|outcome| matches!(outcome, Err(Error::Busy))));
    let large = Bytes::from(vec![0; 1 << 20]);
    store.put("/a", large, Expect::Any).await.unwrap();
}

#[test]
fn foreign_and_damaged_files_are_refused_with_advice() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("store.redb");
    fs::write(&file, "not a store").unwrap();
    let error = open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("store.redb") && error.contains("Move it away"), "{error}");
    fs::remove_file(&file).unwrap();

    let other: redb::TableDefinition<u64, u64> = redb::TableDefinition::new("other");
    let database = redb::Database::create(&file).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(other).unwrap().insert(1, 1).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = open(directory.path()).unwrap_err();
    assert!(matches!(error, Error::Unusable { .. }), "{error}");
    fs::remove_file(&file).unwrap();

    drop(open(directory.path()).unwrap());
    let length = fs::metadata(&file).unwrap().len();
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(length / 2).unwrap();
    let error = open(directory.path()).unwrap_err();
    assert!(matches!(error, Error::Unusable { .. } | Error::Open { .. }), "{error}");
}

/// A small disk of its own, gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(place: &Path) -> Option<Self> {
        match mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), Some("size=32m")) {
            Ok(()) => Some(Self(place.to_owned())),
            Err(error) => {
                eprintln!("skipped: cannot mount a tmpfs: {error}");
                None
            }
        }
    }

    /// Takes all room that is left.
    fn fill(&self) {
        use std::io::Write;
        let mut file = fs::File::create(self.0.join("filler")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn relieve(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_full_disk_stops_writes_only_and_not_for_ever() {
    let place = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(place.path()) else { return };
    let directory = place.path().join("data");
    let store = open(&directory).unwrap();
    let value = Bytes::from(vec![7; 100_000]);
    let mut acknowledged = 0;
    for _ in 0..5 {
        store.put(&format!("/a/{acknowledged}"), value.clone(), Expect::Absent).await.unwrap();
        acknowledged += 1;
    }
    let mut watcher = store.watch("/", store.revision().await.unwrap()).await.unwrap();
    for round in 0..3 {
        disk.fill();
        let error = loop {
            match store.put(&format!("/a/{acknowledged}"), value.clone(), Expect::Absent).await {
                Ok(entry) => {
                    acknowledged += 1;
                    assert_eq!(watcher.next().await.unwrap().unwrap().revision, entry.mod_revision);
                }
                Err(error) => break error,
            }
            assert!(acknowledged < 1000);
        };
        assert!(matches!(error, Error::DiskFull { .. }), "round {round}: {error:?}");
        // Refused again, and nothing of it is there; reads go on.
        let again = store.put("/x", value.clone(), Expect::Absent).await;
        assert!(matches!(again, Err(Error::DiskFull { .. })), "round {round}: {again:?}");
        let range = store.range("/", None, None, None).await.unwrap();
        assert_eq!(range.entries.len(), acknowledged);
        assert!(range.entries.iter().all(|entry| entry.value == value));
        disk.relieve();
        let entry = store.put(&format!("/a/{acknowledged}"), value.clone(), Expect::Absent).await.unwrap();
        acknowledged += 1;
        assert!(entry.mod_revision > range.revision);
        assert_eq!(watcher.next().await.unwrap().unwrap().revision, entry.mod_revision);
        assert_eq!(store.revision().await.unwrap(), entry.mod_revision);
    }
    drop(store);
    assert_eq!(open(&directory).unwrap().count("/a/").await.unwrap() as usize, acknowledged);
}

#[tokio::test]
async fn relaxed_writes_lost_to_a_full_disk_end_the_watches_that_saw_them() {
    let place = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(place.path()) else { return };
    let store = open(&place.path().join("data")).unwrap();
    let kept = store.put_with("/a", Bytes::from("1"), Expect::Any, Durability::Relaxed).await.unwrap();
    let mut watcher = store.watch("/", kept.mod_revision).await.unwrap();
    disk.fill();
    let lost = store.put_with("/a", Bytes::from("2"), Expect::Any, Durability::Relaxed).await.unwrap();
    let refused = store.put("/b", Bytes::from(vec![1; 1 << 20]), Expect::Any).await;
    assert!(matches!(refused, Err(Error::DiskFull { .. })), "{refused:?}");
    assert_eq!(watcher.next().await.unwrap().unwrap().revision, lost.mod_revision);
    let end = watcher.next().await.unwrap().unwrap_err();
    let (entry, revision) = store.get("/a", None).await.unwrap();
    assert!(matches!(end, WatchError::Compacted { oldest } if oldest == revision), "{end}");
    assert_eq!(entry, Some(kept));
    assert!(revision > lost.mod_revision);
    disk.relieve();
    let next = store.put("/a", Bytes::from("3"), Expect::Any).await.unwrap();
    assert_eq!(next.mod_revision, revision + 1);
}
