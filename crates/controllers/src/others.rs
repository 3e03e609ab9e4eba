//! Objects of kinds that no controller reads: their metadata, for garbage collection and for counting.
//!
//! Role: ConfigMaps, Secrets, Roles, custom resources and the like have owners too. One metadata watch for each such kind
//! that the API server serves; kinds that come and go with CustomResourceDefinitions are followed.
//!
//! Guarantees: a kind counts as known only after its first full list, so that what has not been listed yet is never taken
//! for gone. Memory per object: uid, revision, owners, finalizers and what says that it is being deleted.
//!
//! Deliberately absent: Events and Leases outside the heartbeats; they change often and own nothing.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIResource, APIResourceList, ObjectMeta};
use kube::api::{Api, ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt as _};
use mainstay_informer::ObjectKey;
use mainstay_model::resource::{self, Resource};
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use crate::caches::Caches;

/// The first look at what is served waits until the start is over: nothing here is urgent.
const START_PAUSE: Duration = Duration::from_secs(2);
/// What is served is looked at again at least this often, and soon after a CustomResourceDefinition changes.
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(300);
const DISCOVERY_SOON: Duration = Duration::from_millis(500);
/// Kinds that change often and own nothing.
const LEFT_OUT: &[&str] = &["Event", "Lease"];

/// The name of a kind: `Kind` of a built-in, `Kind.group` of any other.
pub(crate) type KindName = &'static str;

/// A change of an object.
pub(crate) struct Changed {
    pub(crate) kind: KindName,
    pub(crate) key: ObjectKey,
    pub(crate) before: Option<Arc<ObjectMeta>>,
    pub(crate) after: Option<Arc<ObjectMeta>>,
}

struct Held {
    resource: &'static Resource,
    objects: HashMap<ObjectKey, Arc<ObjectMeta>>,
    is_complete: bool,
    watch: AbortHandle,
}

#[derive(Default)]
struct Content {
    kinds: HashMap<KindName, Held>,
    /// Rows made at run time; one for every custom kind ever seen, kept for ever.
    interned: Vec<&'static Resource>,
    listeners: Vec<mpsc::UnboundedSender<Changed>>,
}

/// The store; clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Others(Arc<Mutex<Content>>);

impl Others {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The metadata of an object.
    pub(crate) fn meta(&self, kind: &str, key: &ObjectKey) -> Option<Arc<ObjectMeta>> {
        self.lock().kinds.get(kind)?.objects.get(key).cloned()
    }

    /// The row of a kind that is held here and has been listed in full.
    pub(crate) fn resource(&self, kind: &str) -> Option<&'static Resource> {
        self.lock().kinds.get(kind).filter(|held| held.is_complete).map(|held| held.resource)
    }

    /// Kind and row for an owner reference.
    pub(crate) fn find(&self, api_version: &str, kind: &str) -> Option<(KindName, &'static Resource)> {
        let content = self.lock();
        let found = content.kinds.iter().find(|(_, held)| {
            held.is_complete && held.resource.kind == kind && held.resource.api_version() == api_version
        });
        found.map(|(name, held)| (*name, held.resource))
    }

    /// Every row whose objects live in a namespace and can be deleted together.
    pub(crate) fn namespaced(&self) -> Vec<&'static Resource> {
        let content = self.lock();
        let rows = content.kinds.values().map(|held| held.resource);
        rows.filter(|row| row.namespaced && row.has_verb("deletecollection")).collect()
    }

    /// Objects of a kind in a namespace; `None` while that is not known.
    pub(crate) fn count(&self, resource: &Resource, namespace: &str) -> Option<usize> {
        let content = self.lock();
        let held = content.kinds.values().find(|held| held.is_complete && held.resource == resource)?;
        Some(held.objects.keys().filter(|key| key.namespace == namespace).count())
    }

    /// Objects that name `uid` as an owner.
    pub(crate) fn dependents(&self, uid: &str) -> Vec<(&'static Resource, ObjectKey, Arc<ObjectMeta>)> {
        let content = self.lock();
        let owned = |meta: &ObjectMeta| meta.owner_references.iter().flatten().any(|owner| owner.uid == uid);
        let all =
            content.kinds.values().flat_map(|held| held.objects.iter().map(|(key, meta)| (held.resource, key, meta)));
        all.filter(|(_, _, meta)| owned(meta)).map(|(row, key, meta)| (row, key.clone(), meta.clone())).collect()
    }

    /// Hears of every change from now on, and of everything that is there already.
    pub(crate) fn listen(&self) -> mpsc::UnboundedReceiver<Changed> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut content = self.lock();
        for (kind, held) in &content.kinds {
            for (key, meta) in &held.objects {
                let _ = sender.send(Changed { kind, key: key.clone(), before: None, after: Some(meta.clone()) });
            }
        }
        content.listeners.push(sender);
        receiver
    }

    /// Notes an object as it is now, or that it is gone.
    fn note(&self, kind: KindName, key: &ObjectKey, after: Option<ObjectMeta>) {
        let mut content = self.lock();
        let Some(held) = content.kinds.get_mut(kind) else { return };
        let after = after.map(slim).map(Arc::new);
        let before = match &after {
            Some(meta) => held.objects.insert(key.clone(), meta.clone()),
            None => held.objects.remove(key),
        };
        if before.is_none() && after.is_none() {
            return;
        }
        content.listeners.retain(|listener| {
            let changed = Changed { kind, key: key.clone(), before: before.clone(), after: after.clone() };
            listener.send(changed).is_ok()
        });
    }

    /// Follows the kinds that are served, for ever.
    pub(crate) async fn run(self, client: Client) {
        let (mut watches, definitions) = (JoinSet::new(), Arc::new(Notify::new()));
        tokio::time::sleep(START_PAUSE).await;
        loop {
            match served(&client).await {
                Ok(rows) => self.follow(&client, rows, &definitions, &mut watches),
                Err(error) => tracing::warn!(%error, "cannot learn which kinds are served; will try again"),
            }
            tokio::select! {
                () = tokio::time::sleep(DISCOVERY_INTERVAL) => {}
                () = definitions.notified() => tokio::time::sleep(DISCOVERY_SOON).await,
            }
        }
    }

    fn follow(&self, client: &Client, rows: Vec<Resource>, definitions: &Arc<Notify>, watches: &mut JoinSet<()>) {
        let mut content = self.lock();
        content.kinds.retain(|_, held| {
            let stays = rows.contains(held.resource);
            if !stays {
                held.watch.abort();
            }
            stays
        });
        for row in rows {
            if content.kinds.values().any(|held| *held.resource == row) {
                continue;
            }
            let (kind, resource) = content.intern(row);
            let told = (resource.kind == "CustomResourceDefinition").then(|| definitions.clone());
            let watch = watches.spawn(self.clone().watch(client.clone(), kind, resource, told));
            content.kinds.insert(kind, Held { resource, objects: HashMap::new(), is_complete: false, watch });
        }
    }

    async fn watch(self, client: Client, kind: KindName, row: &'static Resource, told: Option<Arc<Notify>>) {
        let api_resource = ApiResource {
            group: row.group.clone(),
            version: row.version.clone(),
            api_version: row.api_version(),
            kind: row.kind.clone(),
            plural: row.plural.clone(),
        };
        let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &api_resource);
        let mut events = pin!(watcher::watcher(api, watcher::Config::default()).default_backoff());
        let mut listed: Option<Vec<ObjectKey>> = None;
        let key_of = |object: &PartialObjectMeta<DynamicObject>| {
            ObjectKey::new(object.namespace().unwrap_or_default(), object.name_any())
        };
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed = Some(Vec::new()),
                Ok(Event::InitApply(object) | Event::Apply(object)) => {
                    let key = key_of(&object);
                    if let Some(listed) = &mut listed {
                        listed.push(key.clone());
                    }
                    self.note(kind, &key, Some(object.metadata));
                }
                Ok(Event::Delete(object)) => self.note(kind, &key_of(&object), None),
                Ok(Event::InitDone) => self.sweep(kind, &listed.take().unwrap_or_default()),
                Err(error) => tracing::debug!(kind, %error, "watch interrupted"),
            }
            if let Some(told) = &told {
                told.notify_one();
            }
        }
    }

    /// After a full list: what was not in it is gone.
    fn sweep(&self, kind: KindName, listed: &[ObjectKey]) {
        let listed: std::collections::HashSet<&ObjectKey> = listed.iter().collect();
        let gone: Vec<ObjectKey> = match self.lock().kinds.get_mut(kind) {
            Some(held) => {
                held.is_complete = true;
                held.objects.keys().filter(|key| !listed.contains(key)).cloned().collect()
            }
            None => return,
        };
        for key in &gone {
            self.note(kind, key, None);
        }
    }
}

impl Content {
    /// A row that lives as long as the process, and the kind's name.
    fn intern(&mut self, row: Resource) -> (KindName, &'static Resource) {
        let built_in = resource::find_kind(&row.api_version(), &row.kind).filter(|known| known.plural == row.plural);
        let known =
            built_in.map(|known| &**known).or_else(|| self.interned.iter().copied().find(|known| **known == row));
        let resource: &'static Resource = known.unwrap_or_else(|| {
            let leaked: &'static Resource = Box::leak(Box::new(row));
            self.interned.push(leaked);
            leaked
        });
        if built_in.is_some() {
            return (&resource.kind, resource);
        }
        let name = format!("{}.{}", resource.kind, resource.group);
        let known = self.kinds.keys().find(|known| **known == name).copied();
        (known.unwrap_or_else(|| Box::leak(name.into_boxed_str())), resource)
    }
}

/// Only what is asked for here.
fn slim(meta: ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        uid: meta.uid,
        resource_version: meta.resource_version,
        owner_references: meta.owner_references,
        finalizers: meta.finalizers,
        deletion_timestamp: meta.deletion_timestamp,
        ..ObjectMeta::default()
    }
}

/// Rows of all kinds that are served, can be watched and deleted, and have no cache.
async fn served(client: &Client) -> Result<Vec<Resource>, kube::Error> {
    let mut lists = vec![client.list_core_api_resources("v1").await?];
    for group in client.list_api_groups().await?.groups {
        let preferred = group.preferred_version.or_else(|| group.versions.into_iter().next());
        if let Some(version) = preferred {
            // One group that does not answer must not hide the others.
            match client.list_api_group_resources(&version.group_version).await {
                Ok(list) => lists.push(list),
                Err(error) => tracing::debug!(version.group_version, %error, "group not listed"),
            }
        }
    }
    Ok(lists.iter().flat_map(rows_of).collect())
}

fn rows_of(list: &APIResourceList) -> impl Iterator<Item = Resource> {
    let (group, version) = list.group_version.split_once('/').unwrap_or(("", &list.group_version));
    let has = |row: &APIResource, verb: &str| row.verbs.iter().any(|own| own == verb);
    let wanted = move |row: &&APIResource| {
        let cached = resource::find_kind(&list.group_version, &row.kind).is_some() && Caches::is_cached(&row.kind);
        !row.name.contains('/')
            && ["list", "watch", "delete"].iter().all(|verb| has(row, verb))
            && !cached
            && !LEFT_OUT.contains(&row.kind.as_str())
    };
    list.resources.iter().filter(wanted).map(move |row| Resource {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: row.kind.clone(),
        plural: row.name.clone(),
        singular: row.singular_name.clone(),
        list_kind: format!("{}List", row.kind),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced: row.namespaced,
        subresources: Vec::new(),
        verbs: row.verbs.clone(),
    })
}
