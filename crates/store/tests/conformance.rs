//! What every store must do, written against `dyn Store`: run against each implementation, etcd being a real one.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use mainstay_store::{
    Change, Durability, EmbeddedStore, Error, Event, Expect, Result, Revision, Settings, Store, WatchError, Watcher,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use support::Etcd;

/// An empty store, and the revision it is at: others may have used its etcd.
struct Subject {
    store: Arc<dyn Store>,
    base: Revision,
    _etcd: Option<Etcd>,
}

impl Subject {
    async fn new(store: Arc<dyn Store>, etcd: Option<Etcd>) -> Self {
        let base = store.revision().await.unwrap();
        Self { store, base, _etcd: etcd }
    }
}

/// A new store of each implementation.
async fn subjects() -> Vec<Subject> {
    let etcd = Etcd::start();
    vec![
        Subject::new(Arc::new(EmbeddedStore::in_memory(Settings::default()).unwrap()), None).await,
        Subject::new(Arc::new(etcd.store("/conformance").await), Some(etcd)).await,
    ]
}

async fn put(store: &dyn Store, key: &str, value: &str, expect: Expect) -> Result<Revision> {
    Ok(store.put(key, Bytes::copy_from_slice(value.as_bytes()), expect).await?.mod_revision)
}

async fn next(watcher: &mut Watcher) -> Arc<Event> {
    watcher.next().await.unwrap().unwrap()
}

/// What is there to be taken from a watcher up to `revision`.
async fn taken(watcher: &mut Watcher, through: Revision) -> Vec<Arc<Event>> {
    let mut events = Vec::new();
    while watcher.progress() < through {
        let event = std::future::poll_fn(|context| {
            let polled = std::pin::pin!(watcher.next()).poll(context);
            match polled {
                std::task::Poll::Pending if watcher.progress() >= through => std::task::Poll::Ready(None),
                other => other,
            }
        });
        match event.await {
            Some(event) => events.push(event.unwrap()),
            None => break,
        }
    }
    events
}

#[tokio::test]
async fn compare_and_swap() {
    for Subject { store, base, _etcd } in subjects().await {
        let store = &*store;
        let first = put(store, "/a/b/x", "1", Expect::Absent).await.unwrap();
        assert_eq!((base, first), (1, 2));
        let refused = put(store, "/a/b/x", "2", Expect::Absent).await;
        assert!(matches!(refused, Err(Error::Conflict { current: Some(entry) }) if entry.value == "1"));
        let second = put(store, "/a/b/x", "2", Expect::Revision(first)).await.unwrap();
        assert!(second > first);
        assert!(matches!(put(store, "/a/b/x", "3", Expect::Revision(first)).await, Err(Error::Conflict { .. })));
        assert!(matches!(store.delete("/a/b/x", Expect::Revision(first)).await, Err(Error::Conflict { .. })));
        assert!(matches!(store.delete("/a/b/x", Expect::Absent).await, Err(Error::Conflict { .. })));
        let deleted = store.delete("/a/b/x", Expect::Revision(second)).await.unwrap();
        assert_eq!((&deleted.entry.value[..], deleted.entry.mod_revision), (&b"2"[..], second));
        assert!(deleted.revision > second);
        assert!(matches!(store.delete("/a/b/x", Expect::Any).await, Err(Error::Conflict { current: None })));
        assert!(matches!(put(store, "/a/b/x", "3", Expect::Revision(second)).await, Err(Error::Conflict { .. })));
        assert_eq!(store.get("/a/b/x", None).await.unwrap(), (None, deleted.revision));
        let old = store.get("/a/b/x", Some(first)).await.unwrap().0.unwrap();
        assert_eq!((&old.value[..], old.create_revision), (&b"1"[..], first));
        let again = store.put("/a/b/x", Bytes::new(), Expect::Any).await.unwrap();
        assert_eq!(again.create_revision, again.mod_revision);
    }
}

#[tokio::test]
async fn sizes_are_limited() {
    for Subject { store, base: _, _etcd } in subjects().await {
        assert!(matches!(put(&*store, "", "", Expect::Any).await, Err(Error::KeyLength { bytes: 0 })));
        assert!(matches!(put(&*store, &"/".repeat(1025), "", Expect::Any).await, Err(Error::KeyLength { .. })));
        let large = Bytes::from(vec![1; 2 << 20]);
        assert!(matches!(store.put("/k", large, Expect::Any).await, Err(Error::ValueTooLarge { .. })));
        let fits = Bytes::from(vec![7; 1 << 20]);
        store.put(&"/".repeat(1024), fits.clone(), Expect::Any).await.unwrap();
        assert_eq!(store.get(&"/".repeat(1024), None).await.unwrap().0.unwrap().value, fits);
    }
}

#[tokio::test]
async fn ranges_come_in_pages_of_one_revision() {
    for Subject { store, base: _, _etcd } in subjects().await {
        for i in 0..10 {
            put(&*store, &format!("/a/b/{i}"), "v", Expect::Absent).await.unwrap();
        }
        put(&*store, "/a/c/1", "other", Expect::Absent).await.unwrap();
        let page = store.range("/a/b/", None, Some(4), None).await.unwrap();
        assert_eq!((page.entries.len(), page.more(), page.remaining), (4, true, 6));
        store.delete("/a/b/7", Expect::Any).await.unwrap();
        store.delete("/a/b/9", Expect::Any).await.unwrap();
        put(&*store, "/a/b/5", "changed", Expect::Any).await.unwrap();
        put(&*store, "/a/b/99", "late", Expect::Absent).await.unwrap();
        let rest = store.range("/a/b/", Some("/a/b/3"), None, Some(page.revision)).await.unwrap();
        let keys: Vec<&str> = rest.entries.iter().map(|entry| &*entry.key).collect();
        assert_eq!(keys, ["/a/b/4", "/a/b/5", "/a/b/6", "/a/b/7", "/a/b/8", "/a/b/9"]);
        assert!(!rest.more() && rest.entries.iter().all(|entry| entry.value == "v"));
        assert_eq!(store.count("/a/b/").await.unwrap(), 9);
        assert_eq!(store.count("/a/").await.unwrap(), 10);
        assert_eq!(store.count("/b").await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_watch_has_neither_gap_nor_duplicate() {
    for Subject { store, base: _, _etcd } in subjects().await {
        let from = put(&*store, "/a/b/x", "0", Expect::Absent).await.unwrap();
        let writer = {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for i in 1..200 {
                    put(&*store, "/a/b/x", &i.to_string(), Expect::Any).await.unwrap();
                    put(&*store, "/a/c/y", "another", Expect::Any).await.unwrap();
                }
                store.delete("/a/b/x", Expect::Any).await.unwrap();
            })
        };
        // Begin anew from where the last watch ended, at every point of the way.
        let mut last = from;
        for i in 1..200 {
            let mut watcher = store.watch("/a/b/", last).await.unwrap();
            let event = next(&mut watcher).await;
            let Change::Put { entry, previous } = &event.change else { panic!("expected a write") };
            assert_eq!(entry.value, i.to_string().as_bytes());
            assert_eq!(previous.as_ref().unwrap().value, (i - 1).to_string().as_bytes());
            assert!(event.revision > last && watcher.progress() == event.revision);
            last = event.revision;
        }
        let mut watcher = store.watch("/a/b/", last).await.unwrap();
        let event = next(&mut watcher).await;
        assert!(matches!(&event.change, Change::Delete { previous } if previous.value == "199"));
        writer.await.unwrap();
        assert!(matches!(store.watch("/a/b/", 1_000_000).await, Err(Error::Future { .. })));
    }
}

#[tokio::test]
async fn progress_goes_beyond_the_last_event_of_the_prefix() {
    for Subject { store, base, _etcd } in subjects().await {
        let mut watcher = store.watch("/a/", base).await.unwrap();
        put(&*store, "/a/x", "1", Expect::Any).await.unwrap();
        let last = put(&*store, "/b/x", "1", Expect::Any).await.unwrap();
        assert_eq!(taken(&mut watcher, last).await.len(), 1);
        assert_eq!(watcher.progress(), last);
    }
}

#[tokio::test]
async fn an_acknowledged_write_is_already_with_its_watchers() {
    for Subject { store, base, _etcd } in subjects().await {
        let mut watcher = store.watch("/a/", base).await.unwrap();
        for i in 0..50 {
            let revision = put(&*store, "/a/x", &i.to_string(), Expect::Any).await.unwrap();
            let event = futures::FutureExt::now_or_never(watcher.next()).unwrap().unwrap().unwrap();
            assert_eq!(event.revision, revision);
        }
    }
}

#[tokio::test]
async fn a_slow_watcher_is_ended() {
    for Subject { store, base, _etcd } in subjects().await {
        let mut watcher = store.watch("/a/b/", base).await.unwrap();
        for batch in 0..10 {
            let keys: Vec<String> = (0..1000).map(|i| format!("/a/b/{batch}-{i}")).collect();
            let writes = keys.iter().map(|key| store.put_with(key, Bytes::new(), Expect::Any, Durability::Relaxed));
            futures::future::try_join_all(writes).await.unwrap();
        }
        let (mut seen, mut last) = (0, base);
        let error = loop {
            match watcher.next().await.unwrap() {
                Ok(event) => {
                    assert_eq!(event.revision, last + 1);
                    (seen, last) = (seen + 1, event.revision);
                }
                Err(error) => break error,
            }
        };
        assert!(matches!(error, WatchError::Slow { .. }), "{error}");
        assert!(seen < 10_000 && watcher.next().await.is_none());
    }
}

#[tokio::test]
async fn compaction_forgets_the_past_and_keeps_the_present() {
    for Subject { store, base: _, _etcd } in subjects().await {
        let first = put(&*store, "/a/b/x", "1", Expect::Absent).await.unwrap();
        put(&*store, "/a/b/y", "only", Expect::Absent).await.unwrap();
        let last = put(&*store, "/a/b/x", "2", Expect::Any).await.unwrap();
        store.compact(last).await.unwrap();
        assert!(matches!(store.get("/a/b/x", Some(first)).await, Err(Error::Compacted { oldest }) if oldest == last));
        assert!(matches!(store.range("/a", None, None, Some(first)).await, Err(Error::Compacted { .. })));
        assert!(matches!(store.watch("/a/b/", first).await, Err(Error::Compacted { .. })));
        assert!(matches!(store.compact(last + 1).await, Err(Error::Future { .. })));
        store.compact(first).await.unwrap();
        assert_eq!(store.get("/a/b/x", Some(last)).await.unwrap().0.unwrap().value, "2");
        assert_eq!(store.get("/a/b/y", None).await.unwrap().0.unwrap().value, "only");
        store.watch("/a/b/", last).await.unwrap();
        // The deletion of the last key leaves nothing, but its revision was used.
        let deleted = store.delete("/a/b/x", Expect::Any).await.unwrap().revision;
        store.compact(deleted).await.unwrap();
        store.compact(deleted).await.unwrap();
        assert_eq!(store.revision().await.unwrap(), deleted);
        assert_eq!(put(&*store, "/a/b/z", "3", Expect::Absent).await.unwrap(), deleted + 1);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put { key: u8, value: u8, relaxed: bool },
    Delete { key: u8 },
    Swap { key: u8, value: u8, stale: bool },
    Compact { share: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..6u8, any::<u8>(), any::<bool>()).prop_map(|(key, value, relaxed)| Step::Put { key, value, relaxed }),
        3 => (0..6u8).prop_map(|key| Step::Delete { key }),
        3 => (0..6u8, any::<u8>(), any::<bool>()).prop_map(|(key, value, stale)| Step::Swap { key, value, stale }),
        1 => any::<u8>().prop_map(|share| Step::Compact { share }),
    ]
}

/// The whole history, by revision: each state with (created, changed, value) by key.
type State = BTreeMap<String, (Revision, Revision, u8)>;

struct Model {
    /// The revision of the empty store.
    base: Revision,
    states: BTreeMap<Revision, State>,
    compacted: Revision,
}

impl Model {
    fn now(&self) -> (Revision, State) {
        self.states.last_key_value().map_or((self.base, State::new()), |(revision, state)| (*revision, state.clone()))
    }

    fn at(&self, revision: Revision) -> State {
        self.states.range(..=revision).next_back().map(|(_, state)| state.clone()).unwrap_or_default()
    }

    /// The events of a prefix after a revision: revision, key, value or deletion, value before.
    fn events(&self, prefix: &str, from: Revision) -> Vec<(Revision, String, Option<u8>, Option<u8>)> {
        let mut events = Vec::new();
        for (revision, state) in self.states.range(from + 1..) {
            let before = self.at(revision - 1);
            let changed = state.keys().chain(before.keys()).find(|key| state.get(*key) != before.get(*key)).unwrap();
            if changed.starts_with(prefix) {
                let value = |state: &State| state.get(changed).map(|(_, _, value)| *value);
                events.push((*revision, changed.clone(), value(state), value(&before)));
            }
        }
        events
    }
}

async fn perform(store: &dyn Store, model: &mut Model, step: Step) {
    let (revision, mut state) = model.now();
    let name = |key: u8| format!("/{}/{key}", if key < 3 { "m" } else { "n" });
    match step {
        Step::Put { key, value, relaxed } => {
            let key = name(key);
            let durability = if relaxed { Durability::Relaxed } else { Durability::Immediate };
            let bytes = Bytes::from(vec![value; 1 + usize::from(value) * 8]);
            let entry = store.put_with(&key, bytes, Expect::Any, durability).await.unwrap();
            assert_eq!(entry.mod_revision, revision + 1);
            let created = state.get(&key).map_or(revision + 1, |known| known.0);
            assert_eq!(entry.create_revision, created);
            state.insert(key, (created, revision + 1, value));
            model.states.insert(revision + 1, state);
        }
        Step::Delete { key } => {
            let key = name(key);
            match (store.delete(&key, Expect::Any).await, state.remove(&key)) {
                (Ok(deleted), Some(known)) => {
                    assert_eq!((deleted.entry.mod_revision, deleted.revision), (known.1, revision + 1));
                    model.states.insert(revision + 1, state);
                }
                (Err(Error::Conflict { current: None }), None) => {}
                (other, known) => panic!("{other:?} for {known:?}"),
            }
        }
        Step::Swap { key, value, stale } => {
            let key = name(key);
            let known = state.get(&key).copied();
            let expect = match known {
                Some((_, changed, _)) => Expect::Revision(changed - u64::from(stale)),
                None if stale => Expect::Revision(revision),
                None => Expect::Absent,
            };
            match store.put(&key, Bytes::from(vec![value]), expect).await {
                Ok(entry) => {
                    assert!(!stale);
                    assert_eq!(entry.mod_revision, revision + 1);
                    state.insert(key, (known.map_or(revision + 1, |known| known.0), revision + 1, value));
                    model.states.insert(revision + 1, state);
                }
                Err(Error::Conflict { current }) => {
                    assert!(stale);
                    assert_eq!(current.map(|entry| entry.mod_revision), known.map(|known| known.1));
                }
                Err(other) => panic!("{other}"),
            }
        }
        Step::Compact { share } => {
            let to = model.base + (revision - model.base) * u64::from(share) / 255;
            store.compact(to).await.unwrap();
            model.compacted = model.compacted.max(to);
        }
    }
}

async fn compare(store: &dyn Store, model: &Model) {
    let (now, _) = model.now();
    assert_eq!(store.revision().await.unwrap(), now);
    for at in model.base..=now {
        if at < model.compacted {
            assert!(matches!(store.range("/", None, None, Some(at)).await, Err(Error::Compacted { .. })));
            assert!(matches!(store.watch("/m", at).await, Err(Error::Compacted { .. })));
            continue;
        }
        let state = model.at(at);
        for prefix in ["/", "/m/", "/n/4"] {
            let range = store.range(prefix, None, None, Some(at)).await.unwrap();
            let read: State = range
                .entries
                .iter()
                .map(|e| (e.key.to_string(), (e.create_revision, e.mod_revision, e.value[0])))
                .collect();
            let wanted: State = state.clone().into_iter().filter(|(key, _)| key.starts_with(prefix)).collect();
            assert_eq!(read, wanted, "{prefix} at revision {at}");
            assert!(range.entries.is_sorted_by(|a, b| a.key < b.key), "{prefix} at revision {at}");
        }
        // Pages of one, glued together, are the whole.
        let (mut after, mut pages): (Option<String>, Vec<String>) = (None, Vec::new());
        loop {
            let page = store.range("/", after.as_deref(), Some(1), Some(at)).await.unwrap();
            let Some(entry) = page.entries.first() else { break };
            pages.push(entry.key.to_string());
            assert_eq!(page.remaining as usize, state.len() - pages.len());
            after = pages.last().cloned();
        }
        assert_eq!(pages, state.keys().cloned().collect::<Vec<_>>());
        for key in ["/m/0", "/n/3"] {
            let read = store.get(key, Some(at)).await.unwrap().0.map(|e| e.mod_revision);
            assert_eq!(read, state.get(key).map(|known| known.1), "{key} at revision {at}");
        }
        for prefix in ["/m/", ""] {
            let mut watcher = store.watch(prefix, at).await.unwrap();
            let events: Vec<_> = taken(&mut watcher, now).await.iter().map(|event| simplify(event)).collect();
            assert_eq!(events, model.events(prefix, at), "{prefix} from revision {at}");
        }
    }
}

fn simplify(event: &Event) -> (Revision, String, Option<u8>, Option<u8>) {
    let (value, before) = match &event.change {
        Change::Put { entry, previous } => (Some(entry.value[0]), previous.as_ref().map(|entry| entry.value[0])),
        Change::Delete { previous } => (None, Some(previous.value[0])),
    };
    (event.revision, event.key().to_string(), value, before)
}

async fn check_history(subject: Subject, steps: &[Step]) {
    let Subject { store, base, _etcd } = subject;
    let mut model = Model { base, states: BTreeMap::new(), compacted: base };
    let mut live = store.watch("/m/", base).await.unwrap();
    for step in steps {
        perform(&*store, &mut model, step.clone()).await;
    }
    compare(&*store, &model).await;
    let now = model.now().0;
    let events: Vec<_> = taken(&mut live, now).await.iter().map(|event| simplify(event)).collect();
    assert_eq!(events, model.events("/m/", base));
}

/// Any history reads, at every point of it that is kept, as a simple model says, and so do watches from there.
#[test]
fn any_history_reads_as_the_model_says() {
    let etcd = Etcd::start();
    let case = std::cell::Cell::new(0);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) };
    let histories = proptest::collection::vec(step(), 1..40);
    let outcome = TestRunner::new(config).run(&histories, |steps| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        case.set(case.get() + 1);
        runtime.block_on(async {
            let embedded = EmbeddedStore::in_memory(Settings::default()).unwrap();
            check_history(Subject::new(Arc::new(embedded), None).await, &steps).await;
            // A third of them in etcd, which takes ten times as long.
            if case.get() % 3 != 0 {
                return;
            }
            let shared = etcd.store(&format!("/case-{}", case.get())).await;
            check_history(Subject::new(Arc::new(shared), None).await, &steps).await;
        });
        Ok(())
    });
    outcome.unwrap();
}
