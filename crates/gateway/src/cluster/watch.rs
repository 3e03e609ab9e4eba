//! One kind's copy, kept by list and watch.

use std::collections::BTreeSet;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::Api;
use kube::core::DynamicObject;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use mainstay_informer::ShortBackoff;
use serde_json::Value;

use super::World;
use super::kinds::{KINDS, Watched};
use crate::api::Key;
use crate::config::source::Source;

/// The wait before a kind that is not there, or may not be read, is looked for again.
const ABSENT: Duration = Duration::from_secs(5);
/// Secrets that no gateway needs, and that are large or many.
const FOREIGN_SECRETS: &[&str] = &["helm.sh/release.v1", "kubernetes.io/service-account-token"];

/// Follows a kind for ever, in the first version that is served.
pub(super) async fn follow(world: Rc<World>, index: usize) {
    let watched = &KINDS[index];
    loop {
        for version in watched.versions {
            follow_version(&world, index, watched, version).await;
        }
        world.replace_all(index, &BTreeSet::new());
        world.mark_listed(index);
        tokio::time::sleep(ABSENT).await;
    }
}

/// Follows a kind in one version, until the API says that it has no such kind.
async fn follow_version(world: &World, index: usize, watched: &Watched, version: &str) {
    let resource = watched.resource(version);
    let api: Api<DynamicObject> = Api::all_with(world.client.clone(), &resource);
    let mut events = pin!(watcher::watcher(api, watcher::Config::default()).backoff(ShortBackoff::default()));
    let mut seen = BTreeSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => seen.clear(),
            Ok(Event::InitApply(object)) => seen.extend(world.put(index, object, &resource)),
            Ok(Event::InitDone) => {
                world.replace_all(index, &seen);
                world.mark_listed(index);
            }
            Ok(Event::Apply(object)) => drop(world.put(index, object, &resource)),
            Ok(Event::Delete(object)) => world.remove(index, &key_of(&object)),
            Err(error) => match refusal(&error) {
                Some(404) => return,
                Some(code) => {
                    tracing::warn!(kind = watched.kind, code, "may not be read; it counts as absent");
                    return;
                }
                None => tracing::debug!(kind = watched.kind, %error, "watch interrupted"),
            },
        }
    }
}

/// The status of an answer that will not change by trying again at once: no such kind, or no permission.
fn refusal(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
            Some(status.code)
        }
        _ => None,
    }
}

fn key_of(object: &DynamicObject) -> Key {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    Key::new(object.metadata.namespace.as_deref().unwrap_or_default(), name)
}

/// What decides about traffic: everything but the status, the revision, and what says who wrote it.
fn essence(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    value
}

impl World {
    /// Takes an object in; answers its key.
    fn put(&self, index: usize, mut object: DynamicObject, resource: &kube::core::ApiResource) -> Option<Key> {
        let key = key_of(&object);
        object.metadata.managed_fields = None;
        if let Some(annotations) = &mut object.metadata.annotations {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
        let mut value = serde_json::to_value(&object).ok()?;
        // Items of a list do not say what they are.
        value["apiVersion"] = Value::from(resource.api_version.as_str());
        value["kind"] = Value::from(resource.kind.as_str());
        if resource.kind == "Secret" && FOREIGN_SECRETS.iter().any(|kind| value["type"] == *kind) {
            return None;
        }
        let mut objects = self.objects.borrow_mut();
        let before = objects.insert((index, key.clone()), Source::of_api(value));
        let now = &objects[&(index, key.clone())];
        let same = before.as_ref().is_some_and(|before| essence(&before.value) == essence(&now.value));
        if !same {
            self.changed.notify_one();
        }
        self.reportable.notify_one();
        Some(key)
    }

    fn remove(&self, index: usize, key: &Key) {
        if self.objects.borrow_mut().remove(&(index, key.clone())).is_some() {
            self.changed.notify_one();
            self.reportable.notify_one();
        }
    }

    /// After a full list: what was not in it is gone.
    fn replace_all(&self, index: usize, seen: &BTreeSet<Key>) {
        let objects = self.objects.borrow();
        let gone: Vec<Key> =
            objects.keys().filter(|(at, key)| *at == index && !seen.contains(key)).map(|it| it.1.clone()).collect();
        drop(objects);
        for key in gone {
            self.remove(index, &key);
        }
    }

    fn mark_listed(&self, index: usize) {
        self.listed.borrow_mut()[index] = true;
        self.listed_one.notify_one();
    }
}
