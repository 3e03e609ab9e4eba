//! The cache of one kind and the loop that keeps it fresh.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Debug};
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::subscription::{Mailbox, Subscription};

/// A typed Kubernetes object that can be cached.
pub trait Kind: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {}
impl<K> Kind for K where K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {}

/// Namespace and name of an object; the namespace is empty for cluster-scoped kinds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Namespace, or empty.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object.
    pub fn of<K: kube::Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// Which objects of a kind a cache holds.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Field selector, for example `spec.nodeName=node-1`.
    pub fields: Option<String>,
    /// Label selector.
    pub labels: Option<String>,
    /// One namespace instead of all.
    pub namespace: Option<String>,
}

struct Slot<K> {
    object: Arc<K>,
    revision: u64,
    /// The list in which the object was last seen; older ones are swept when a list ends.
    epoch: u64,
}

struct Content<K> {
    objects: BTreeMap<ObjectKey, Slot<K>>,
    /// By namespace and uid of the controller (empty without one): the names of what it controls.
    controlled: HashMap<(String, String), BTreeSet<String>>,
    /// Deleted by a writer, and the watch has not said so yet: key and the deletion's revision.
    buried: HashMap<ObjectKey, u64>,
    epoch: u64,
    mailboxes: Vec<Weak<Mailbox<K>>>,
}

/// A shared cache of one kind; clones are the same cache.
pub struct Cache<K> {
    content: Arc<RwLock<Content<K>>>,
    synced: Arc<watch::Sender<bool>>,
    /// Held by the loop that fills it.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self { content: self.content.clone(), synced: self.synced.clone(), turn: self.turn.clone() }
    }
}

impl<K> Debug for Cache<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("synced", &*self.synced.borrow()).finish_non_exhaustive()
    }
}

impl<K: Kind> Default for Cache<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Kind> Cache<K> {
    /// An empty cache; also what tests fill by [`Cache::observe`].
    pub fn new() -> Self {
        let content = Content {
            objects: BTreeMap::new(),
            controlled: HashMap::new(),
            buried: HashMap::new(),
            epoch: 0,
            mailboxes: Vec::new(),
        };
        Self {
            content: Arc::new(RwLock::new(content)),
            synced: Arc::new(watch::channel(false).0),
            turn: Arc::default(),
        }
    }

    /// The object, if it exists.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get_key(&ObjectKey::new(namespace, name))
    }

    /// The object of a key, if it exists.
    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.read(|content| content.objects.get(key).map(|slot| slot.object.clone()))
    }

    /// All objects, in no order.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.read(|content| content.objects.values().map(|slot| slot.object.clone()).collect())
    }

    /// The objects that satisfy a condition, in no order.
    pub fn filter(&self, keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        self.read(|content| {
            content.objects.values().filter(|slot| keep(&slot.object)).map(|slot| slot.object.clone()).collect()
        })
    }

    /// The objects of a namespace that satisfy a condition, by name; others are not looked at.
    pub fn in_namespace(&self, namespace: &str, keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        self.read(|content| {
            let from = content.objects.range(ObjectKey::new(namespace, "")..);
            let own = from.take_while(|(key, _)| key.namespace == namespace).filter(|(_, slot)| keep(&slot.object));
            own.map(|(_, slot)| slot.object.clone()).collect()
        })
    }

    /// The objects of a namespace whose controller has this uid, by name; with an empty one, those without a controller.
    pub fn controlled_by(&self, namespace: &str, uid: &str) -> Vec<Arc<K>> {
        self.read(|content| {
            let names = content.controlled.get(&(namespace.to_owned(), uid.to_owned()));
            let found =
                names.into_iter().flatten().filter_map(|name| content.objects.get(&ObjectKey::new(namespace, name)));
            found.map(|slot| slot.object.clone()).collect()
        })
    }

    /// A new reader. It starts with every object that is in the cache as a change.
    pub fn subscribe(&self) -> Subscription<K> {
        let mailbox = Mailbox::new();
        let mut content = self.content.write().unwrap_or_else(PoisonError::into_inner);
        for (key, slot) in &content.objects {
            mailbox.note(key, None, Some(&slot.object));
        }
        content.mailboxes.retain(|m| m.strong_count() > 0);
        content.mailboxes.push(Arc::downgrade(&mailbox));
        Subscription(mailbox)
    }

    /// Waits until the first full list has arrived.
    pub async fn synced(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Whether the first full list has arrived.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Takes in an object as the API server answered it; older than what is held, it is dropped.
    pub fn observe(&self, object: K) {
        let key = ObjectKey::of(&object);
        let revision = revision_of(&object);
        self.write(|content| content.put(&key, object, revision));
    }

    /// Takes in that an object was deleted at `revision`.
    pub fn observe_deleted(&self, key: &ObjectKey, revision: u64) {
        self.write(|content| {
            content.remove(key, revision);
            content.buried.insert(key.clone(), revision);
        });
    }

    /// Lists and watches for ever; errors are logged and tried again after 20 ms to 1 s.
    ///
    /// Whoever shares a cache may call this: the first call fills it, the others wait until that one is dropped.
    pub fn run(self, client: Client, scope: Scope) -> impl Future<Output = ()> + Send
    where
        K: kube::Resource<DynamicType = ()>,
    {
        // Taken here and not when the future is first polled, so that the order of the calls decides.
        let turn = self.turn.clone().try_lock_owned();
        async move {
            let _turn = match turn {
                Ok(turn) => turn,
                Err(_) => self.turn.clone().lock_owned().await,
            };
            self.fill(client, scope).await;
        }
    }

    async fn fill(&self, client: Client, scope: Scope)
    where
        K: kube::Resource<DynamicType = ()>,
    {
        let api: Api<K> = Api::all(client);
        let mut config = watcher::Config::default();
        config.field_selector.clone_from(&scope.fields);
        config.label_selector.clone_from(&scope.labels);
        let mut events = pin!(watcher::watcher(api, config).backoff(ShortBackoff::default()));
        let wanted = |object: &K| scope.namespace.is_none() || object.meta().namespace == scope.namespace;
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => self.write(|content| content.epoch += 1),
                Ok(Event::InitApply(object) | Event::Apply(object)) if wanted(&object) => self.observe(object),
                Ok(Event::Delete(object)) if wanted(&object) => {
                    let (key, revision) = (ObjectKey::of(&object), revision_of(&object));
                    self.write(|content| {
                        content.remove(&key, revision);
                        content.buried.remove(&key);
                    });
                }
                Ok(Event::InitDone) => {
                    self.write(Content::sweep);
                    self.synced.send_replace(true);
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(kind = %K::kind(&()), %error, "watch interrupted"),
            }
        }
    }

    fn read<T>(&self, look: impl FnOnce(&Content<K>) -> T) -> T {
        look(&self.content.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Content<K>) -> T) -> T {
        change(&mut self.content.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<K: Kind> Content<K> {
    fn put(&mut self, key: &ObjectKey, mut object: K, revision: u64) {
        if self.buried.get(key).is_some_and(|deleted| revision <= *deleted) {
            return;
        }
        self.buried.remove(key);
        let epoch = self.epoch;
        if let Some(slot) = self.objects.get_mut(key).filter(|slot| revision <= slot.revision && revision > 0) {
            slot.epoch = epoch;
            return;
        }
        // Who set which field is nobody's question here, and takes more room than all the rest of an object.
        object.meta_mut().managed_fields = None;
        let object = Arc::new(object);
        let before = self.objects.insert(key.clone(), Slot { object: object.clone(), revision, epoch });
        self.file(key, before.as_ref().map(|slot| &slot.object), Some(&object));
        self.tell(key, before.as_ref().map(|slot| &slot.object), Some(&object));
    }

    fn remove(&mut self, key: &ObjectKey, revision: u64) {
        if self.objects.get(key).is_some_and(|slot| slot.revision <= revision)
            && let Some(slot) = self.objects.remove(key)
        {
            self.file(key, Some(&slot.object), None);
            self.tell(key, Some(&slot.object), None);
        }
    }

    /// Keeps the index by controller.
    fn file(&mut self, key: &ObjectKey, before: Option<&Arc<K>>, after: Option<&Arc<K>>) {
        let (before, after) = (before.map(|object| controller(&**object)), after.map(|object| controller(&**object)));
        if before == after {
            return;
        }
        if let Some(uid) = before {
            let at = (key.namespace.clone(), uid.to_owned());
            if let Some(names) = self.controlled.get_mut(&at) {
                names.remove(&key.name);
                if names.is_empty() {
                    self.controlled.remove(&at);
                }
            }
        }
        if let Some(uid) = after {
            self.controlled.entry((key.namespace.clone(), uid.to_owned())).or_default().insert(key.name.clone());
        }
    }

    /// After a full list: what was not in it is gone.
    fn sweep(&mut self) {
        let epoch = self.epoch;
        let stale = self.objects.iter().filter(|(_, slot)| slot.epoch < epoch).map(|(key, _)| key.clone());
        for key in stale.collect::<Vec<_>>() {
            self.remove(&key, u64::MAX);
        }
        self.buried.clear();
    }

    fn tell(&self, key: &ObjectKey, before: Option<&Arc<K>>, after: Option<&Arc<K>>) {
        for mailbox in self.mailboxes.iter().filter_map(Weak::upgrade) {
            mailbox.note(key, before, after);
        }
    }
}

/// The uid of an object's controller, or nothing.
fn controller<K: Kind>(object: &K) -> &str {
    let mut owners = object.meta().owner_references.iter().flatten();
    owners.find(|owner| owner.controller == Some(true)).map_or("", |owner| owner.uid.as_str())
}

fn revision_of<K: kube::Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Waits between attempts: 20 ms to 1 s, because the server is usually back within a second.
#[derive(Debug)]
pub struct ShortBackoff(Duration);

const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

impl Default for ShortBackoff {
    fn default() -> Self {
        Self(FIRST_WAIT)
    }
}

impl Iterator for ShortBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.0;
        self.0 = (wait * 2).min(LONGEST_WAIT);
        Some(wait)
    }
}

impl Backoff for ShortBackoff {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, OwnerReference};

    fn config_map(name: &str, revision: u64) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.name = Some(name.to_owned());
        object.metadata.namespace = Some("default".to_owned());
        object.metadata.resource_version = Some(revision.to_string());
        object
    }

    #[test]
    fn newer_wins_and_the_deleted_stay_deleted() {
        let cache = Cache::new();
        cache.observe(config_map("a", 5));
        cache.observe(config_map("a", 4));
        assert_eq!(cache.get("default", "a").map(|o| revision_of(&*o)), Some(5));
        cache.observe_deleted(&ObjectKey::new("default", "a"), 7);
        cache.observe(config_map("a", 6));
        assert!(cache.get("default", "a").is_none(), "a late event must not bring it back");
        cache.observe(config_map("a", 8));
        assert!(cache.get("default", "a").is_some(), "but a new object of that name is welcome");
    }

    #[test]
    fn what_a_controller_has_is_found_by_its_uid() {
        let cache = Cache::<ConfigMap>::new();
        let owned = |name: &str, revision: u64, owner: &str| {
            let mut object = config_map(name, revision);
            let controller =
                OwnerReference { uid: owner.to_owned(), controller: Some(true), ..OwnerReference::default() };
            object.metadata.owner_references = Some(vec![controller]);
            object
        };
        let names = |namespace: &str, uid: &str| {
            let found = cache.controlled_by(namespace, uid);
            found.iter().filter_map(|object| object.metadata.name.clone()).collect::<Vec<_>>().join(" ")
        };
        for object in [owned("b", 1, "u"), owned("a", 2, "u"), owned("c", 3, "w"), config_map("d", 4)] {
            cache.observe(object);
        }
        assert_eq!(
            (names("default", "u"), names("default", "w"), names("default", "")),
            ("a b".into(), "c".into(), "d".into())
        );
        cache.observe(owned("d", 5, "u"));
        cache.observe(config_map("a", 6));
        cache.observe_deleted(&ObjectKey::new("default", "c"), 7);
        assert_eq!(
            (names("default", "u"), names("default", "w"), names("default", "")),
            ("b d".into(), String::new(), "a".into())
        );
        assert_eq!(names("other", "u"), "");
        assert_eq!(cache.in_namespace("default", |_| true).len(), 3);
        assert!(cache.in_namespace("def", |_| true).is_empty() && cache.in_namespace("z", |_| true).is_empty());
    }

    #[test]
    fn who_set_which_field_is_not_kept() {
        let cache = Cache::new();
        let mut object = config_map("a", 1);
        object.metadata.managed_fields = Some(vec![ManagedFieldsEntry::default()]);
        cache.observe(object);
        assert_eq!(cache.get("default", "a").and_then(|object| object.metadata.managed_fields.clone()), None);
    }

    #[tokio::test]
    async fn a_subscription_melts_changes_of_one_object() {
        let cache = Cache::new();
        cache.observe(config_map("a", 1));
        let mut reader = cache.subscribe();
        for revision in 2..100 {
            cache.observe(config_map("a", revision));
        }
        let changes = reader.changed().await;
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].after.as_ref().map(|o| revision_of(&**o)), Some(99));
        assert!(reader.take().is_empty());
    }

    #[test]
    fn a_list_sweeps_what_it_does_not_hold() {
        let cache = Cache::new();
        cache.observe(config_map("a", 1));
        cache.observe(config_map("b", 2));
        cache.write(|content| content.epoch += 1);
        cache.observe(config_map("b", 2));
        cache.observe(config_map("written-meanwhile", 9));
        cache.write(Content::sweep);
        let mut names: Vec<_> = cache.list().iter().filter_map(|o| o.metadata.name.clone()).collect();
        names.sort();
        assert_eq!(names, ["b", "written-meanwhile"]);
    }
}
