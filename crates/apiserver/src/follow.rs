//! Views of parts of the state that every request needs, kept in memory and fed by the store's watch.
//!
//! Flow: the first reader lists the prefix and starts a task that takes in every later change; a watch that cannot go on
//! (compacted, too slow) begins anew with a list. A view is as old as the last change that reached it, which is
//! microseconds; a write waits in [`Follower::settle`] until the views have it, so that its caller never meets the
//! past. If the store does not answer, readers see the last state.
//!
//! Deliberately absent: views of what is only rarely needed; those readers ask the store.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use mainstay_model::resource::{Resource, known};
use mainstay_model::status::ApiError;
use mainstay_store::{Change, Entry, Revision, Store, Watcher};
use serde_json::Value;
use tokio::sync::{OnceCell, watch};
use tokio::task::AbortHandle;

use crate::guard;
use crate::rest::decode_entry;

/// How long a write waits for the views.
const SETTLE_MAX: Duration = Duration::from_secs(1);
/// Between two tries to list when the store does not answer.
const RETRY: Duration = Duration::from_millis(200);

/// What is made of the entries under a prefix.
pub(crate) trait View: Default + Send + Sync + 'static {
    /// Takes in the present state of one key; `None` when it is gone.
    fn take(&mut self, key: &str, entry: Option<&Entry>);
}

struct Shared<V> {
    view: RwLock<V>,
    /// Every change up to this revision is in the view.
    seen: watch::Sender<Revision>,
}

/// A view and what feeds it.
pub(crate) struct Follower<V> {
    store: Arc<dyn Store>,
    prefix: String,
    shared: Arc<Shared<V>>,
    feed: OnceCell<AbortHandle>,
}

impl<V> Drop for Follower<V> {
    fn drop(&mut self) {
        if let Some(feed) = self.feed.get() {
            feed.abort();
        }
    }
}

impl<V: View> Follower<V> {
    /// A view of all keys that begin with `prefix`; nothing happens before the first reading.
    pub(crate) fn new(store: Arc<dyn Store>, prefix: impl Into<String>) -> Self {
        let shared = Shared { view: RwLock::default(), seen: watch::channel(0).0 };
        Self { store, prefix: prefix.into(), shared: Arc::new(shared), feed: OnceCell::new() }
    }

    /// Looks at the view.
    ///
    /// # Errors
    /// 500 when the store could not be listed for the first time.
    pub(crate) async fn read<R>(&self, look: impl FnOnce(&V) -> R) -> Result<R, ApiError> {
        self.feed.get_or_try_init(|| self.start()).await?;
        Ok(look(&self.shared.view.read().unwrap_or_else(PoisonError::into_inner)))
    }

    async fn start(&self) -> Result<AbortHandle, ApiError> {
        let (store, prefix, shared) = (self.store.clone(), self.prefix.clone(), self.shared.clone());
        let watcher = list(&store, &prefix, &shared).await.map_err(ApiError::internal)?;
        Ok(tokio::spawn(feed(store, prefix, shared, watcher)).abort_handle())
    }

    /// Waits until the change of `key` at `revision` is in the view; at most a second, and not at all for other keys or
    /// while nobody reads.
    pub(crate) async fn settle(&self, key: &str, revision: Revision) {
        if self.feed.initialized() && key.starts_with(&self.prefix) {
            let mut seen = self.shared.seen.subscribe();
            // Late is not wrong: the write itself stands.
            let _ = tokio::time::timeout(SETTLE_MAX, seen.wait_for(|seen| *seen >= revision)).await;
        }
    }
}

/// An object that a view stumbles over is left out: it must not end the server, nor each of its starts.
fn take<V: View>(view: &mut V, key: &str, entry: Option<&Entry>) {
    if let Err(panicked) = guard::caught(|| view.take(key, entry)) {
        tracing::error!(key, %panicked, "an object cannot be taken into account");
    }
}

async fn list<V: View>(
    store: &Arc<dyn Store>,
    prefix: &str,
    shared: &Shared<V>,
) -> Result<Watcher, mainstay_store::Error> {
    let range = store.range(prefix, None, None, None).await?;
    let watcher = store.watch(prefix, range.revision).await?;
    let mut view = V::default();
    for entry in &range.entries {
        take(&mut view, &entry.key, Some(entry));
    }
    *shared.view.write().unwrap_or_else(PoisonError::into_inner) = view;
    shared.seen.send_replace(range.revision);
    Ok(watcher)
}

async fn feed<V: View>(store: Arc<dyn Store>, prefix: String, shared: Arc<Shared<V>>, mut watcher: Watcher) {
    loop {
        while let Some(Ok(event)) = watcher.next().await {
            let entry = match &event.change {
                Change::Put { entry, .. } => Some(entry),
                Change::Delete { .. } => None,
            };
            take(&mut *shared.view.write().unwrap_or_else(PoisonError::into_inner), event.key(), entry);
            shared.seen.send_replace(event.revision);
        }
        watcher = loop {
            match list(&store, &prefix, &shared).await {
                Ok(watcher) => break watcher,
                Err(error) => tracing::warn!(%error, prefix, "cannot list what is kept in memory; trying again"),
            }
            tokio::time::sleep(RETRY).await;
        };
    }
}

/// The objects of one kind, by key.
#[derive(Default)]
pub(crate) struct Objects {
    by_key: BTreeMap<String, Arc<Value>>,
}

impl View for Objects {
    fn take(&mut self, key: &str, entry: Option<&Entry>) {
        match entry {
            // Which kind it is matters only where versions are converted, and no followed kind has two.
            Some(entry) => drop(self.by_key.insert(key.to_owned(), Arc::new(decode_entry(kind_of(key), entry)))),
            None => drop(self.by_key.remove(key)),
        }
    }
}

/// The row of a followed kind's key.
fn kind_of(key: &str) -> &'static Resource {
    let found = FOLLOWED.iter().map(|kind| known(kind)).find(|row| key.starts_with(&row.key_prefix()));
    found.unwrap_or_else(|| known("Namespace"))
}

/// The kinds that requests of other kinds are checked against.
const FOLLOWED: &[&str] = &[
    "IngressClass",
    "LimitRange",
    "MutatingAdmissionPolicyBinding",
    "MutatingWebhookConfiguration",
    "Namespace",
    "PriorityClass",
    "ResourceQuota",
    "RuntimeClass",
    "StorageClass",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
];

/// The followed kinds.
pub(crate) struct Followed {
    kinds: Vec<(&'static str, Follower<Objects>)>,
}

impl Followed {
    /// Views over `store`.
    pub(crate) fn new(store: &Arc<dyn Store>) -> Self {
        let follower = |kind: &&'static str| (*kind, Follower::new(store.clone(), known(kind).key_prefix()));
        Self { kinds: FOLLOWED.iter().map(follower).collect() }
    }

    fn of(&self, kind: &str) -> Result<&Follower<Objects>, ApiError> {
        let found = self.kinds.iter().find(|(followed, _)| *followed == kind);
        found.map(|(_, follower)| follower).ok_or_else(|| ApiError::internal(format!("{kind} is not followed")))
    }

    /// The objects of a kind, in a namespace or all, ordered by name.
    ///
    /// # Errors
    /// 500 when the store does not answer.
    pub(crate) async fn list(&self, kind: &str, namespace: Option<&str>) -> Result<Vec<Arc<Value>>, ApiError> {
        let prefix = known(kind).key(namespace, "");
        let below = |objects: &Objects| {
            let rest = objects.by_key.range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded));
            rest.take_while(|(key, _)| key.starts_with(&prefix)).map(|(_, object)| object.clone()).collect()
        };
        self.of(kind)?.read(below).await
    }

    /// One object.
    ///
    /// # Errors
    /// 500 when the store does not answer.
    pub(crate) async fn get(
        &self,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Arc<Value>>, ApiError> {
        let key = known(kind).key(namespace, name);
        self.of(kind)?.read(|objects| objects.by_key.get(&key).cloned()).await
    }

    /// Waits until a change is in the views.
    pub(crate) async fn settle(&self, key: &str, revision: Revision) {
        for (_, follower) in &self.kinds {
            follower.settle(key, revision).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use mainstay_store::{EmbeddedStore, Expect, Settings};

    #[tokio::test]
    async fn a_view_has_what_was_written_before_and_after() {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(directory.path(), Settings::default()).unwrap());
        let put = async |name: &str| {
            let key = known("LimitRange").key(Some("a"), name);
            let entry = store.put(&key, r#"{"metadata":{}}"#.into(), Expect::Any).await.unwrap();
            (key, entry.mod_revision)
        };
        put("x").await;
        let followed = Followed::new(&store);
        assert_eq!(followed.list("LimitRange", Some("a")).await.unwrap().len(), 1);
        for name in ["y", "z"] {
            let (key, revision) = put(name).await;
            followed.settle(&key, revision).await;
            assert!(followed.get("LimitRange", Some("a"), name).await.unwrap().is_some());
        }
        let deleted = store.delete(&known("LimitRange").key(Some("a"), "y"), Expect::Any).await.unwrap();
        followed.settle(&deleted.entry.key, deleted.revision).await;
        assert_eq!(followed.list("LimitRange", Some("a")).await.unwrap().len(), 2);
        assert!(followed.list("LimitRange", Some("b")).await.unwrap().is_empty());
    }
}
