//! Encryption at rest, down to the bytes of the file.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use mainstay_store::{
    Change, EmbeddedStore, Encrypted, EncryptionConfiguration, Error, Expect, Keyring, NamedKey, Settings, Store,
    Survey,
};

const SECRET: &str = "/core/secrets/default/db";
const PLAIN: &str = "correct horse battery staple";

fn key(name: &str) -> NamedKey {
    NamedKey::random(name.to_owned()).unwrap()
}

fn open(directory: &Path, configuration: &EncryptionConfiguration) -> (Arc<dyn Store>, Encrypted) {
    let raw: Arc<dyn Store> = Arc::new(EmbeddedStore::open(directory, Settings::default()).unwrap());
    let encrypted = Encrypted::new(Arc::clone(&raw), Keyring::new(configuration).unwrap());
    (raw, encrypted)
}

async fn put(store: &dyn Store, key: &str, value: &str, expect: Expect) -> u64 {
    store.put(key, Bytes::copy_from_slice(value.as_bytes()), expect).await.unwrap().mod_revision
}

fn contains(path: &Path, text: &str) -> bool {
    fs::read(path).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn the_plain_text_is_nowhere_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let configuration = EncryptionConfiguration::new(&["secrets"], key("one"));
    let (raw, store) = open(directory.path(), &configuration);
    let mut watcher = store.watch("/core/", 1).await.unwrap();
    let first = put(&store, SECRET, PLAIN, Expect::Absent).await;
    let second = put(&store, SECRET, &format!("{PLAIN} 2"), Expect::Revision(first)).await;
    put(&store, "/core/configmaps/default/c", "this may be seen", Expect::Absent).await;
    // Every way back gives the plain text.
    let conflict = store.put(SECRET, Bytes::new(), Expect::Absent).await;
    assert!(matches!(conflict, Err(Error::Conflict { current: Some(entry) }) if entry.value == format!("{PLAIN} 2")));
    assert_eq!(store.get(SECRET, Some(first)).await.unwrap().0.unwrap().value, PLAIN);
    let range = store.range("/core/", None, None, None).await.unwrap();
    assert_eq!(range.entries.iter().filter(|entry| entry.value == format!("{PLAIN} 2")).count(), 1);
    for wanted in [(None, PLAIN.to_owned()), (Some(PLAIN), format!("{PLAIN} 2"))] {
        let event = watcher.next().await.unwrap().unwrap();
        let Change::Put { entry, previous } = &event.change else { panic!("a write") };
        assert_eq!(
            (previous.as_ref().map(|entry| entry.value.clone()), &entry.value[..]),
            (wanted.0.map(Bytes::from), wanted.1.as_bytes())
        );
    }
    assert_eq!(store.delete(SECRET, Expect::Revision(second)).await.unwrap().entry.value, format!("{PLAIN} 2"));
    put(&store, SECRET, PLAIN, Expect::Absent).await;
    drop((watcher, store, raw));
    let file = directory.path().join("store.redb");
    assert!(contains(&file, "this may be seen") && contains(&file, SECRET));
    assert!(!contains(&file, PLAIN));
}

#[tokio::test]
async fn keys_rotate() {
    let directory = tempfile::tempdir().unwrap();
    let mut configuration = EncryptionConfiguration::new(&["secrets"], key("one"));
    let (raw, store) = open(directory.path(), &configuration);
    put(&*raw, "/core/secrets/default/old", "from before encryption", Expect::Absent).await;
    for i in 0..1200 {
        let durability = mainstay_store::Durability::Relaxed;
        let value = Bytes::from(format!("{PLAIN} {i}"));
        store.put_with(&format!("{SECRET}{i}"), value, Expect::Absent, durability).await.unwrap();
    }
    let mut watcher = store.watch(SECRET, store.revision().await.unwrap()).await.unwrap();
    let by_key = |name: &str, count| [(name.to_owned(), count)].into();
    assert_eq!(store.survey().await.unwrap(), Survey { by_key: by_key("one", 1200), plain: 1, outdated: 1 });
    let old = configuration.clone();
    configuration.put_first(&key("two"));
    store.use_keyring(Keyring::new(&configuration).unwrap());
    assert_eq!(store.survey().await.unwrap().outdated, 1201);
    assert_eq!(store.rewrite().await.unwrap(), 1201);
    assert_eq!(store.survey().await.unwrap(), Survey { by_key: by_key("two", 1201), plain: 0, outdated: 0 });
    assert_eq!(store.rewrite().await.unwrap(), 0);
    assert!(watcher.next().await.unwrap().is_ok(), "a rewritten value is an event like any other");
    // The old key is not needed any more; without the new one there is a clear word, and nothing is harmed.
    assert_eq!(configuration.keep_first(), ["one"]);
    store.use_keyring(Keyring::new(&configuration).unwrap());
    assert_eq!(store.get(&format!("{SECRET}7"), None).await.unwrap().0.unwrap().value, format!("{PLAIN} 7"));
    store.use_keyring(Keyring::new(&old).unwrap());
    let missing = store.get(&format!("{SECRET}7"), None).await.unwrap_err().to_string();
    assert!(missing.contains("key \"two\", which the configuration does not have"), "{missing}");
    assert!(matches!(store.range("/core/secrets/", None, None, None).await, Err(Error::Encryption { .. })));
    assert!(store.rewrite().await.is_err());
    assert!(store.count("/core/secrets/").await.unwrap() == 1201);
}

#[tokio::test]
async fn a_value_moved_to_another_key_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (raw, store) = open(directory.path(), &EncryptionConfiguration::new(&["secrets"], key("one")));
    put(&store, SECRET, PLAIN, Expect::Absent).await;
    let sealed = raw.get(SECRET, None).await.unwrap().0.unwrap().value;
    raw.put("/core/secrets/attacker/mine", sealed, Expect::Absent).await.unwrap();
    let error = store.get("/core/secrets/attacker/mine", None).await.unwrap_err().to_string();
    assert!(error.contains("/core/secrets/attacker/mine") && error.contains("copied from elsewhere"), "{error}");
    // It can still be removed.
    store.delete("/core/secrets/attacker/mine", Expect::Any).await.unwrap();
}
